"""Trains under each buffer rule for the same simulated time, with lengths that the policy samples.

It is the default config of `experiments.clock`. Its task asks for 1 to 32 letters, so some prompts
need long answers.

    python -m experiments.clock --workdir=results/clock

Hardware: 2 CPU cores. The time and the numbers to expect are in experiments/clock/README.md.
"""

from ml_collections import ConfigDict

from experiments.configs import pipeline
from staleness_grpo.config.defaults import default_config


def get_config() -> ConfigDict:
    """Returns a toy pipeline whose engines are about as fast as its learner.

    At one token a second, a slot for each response of a step needs ten seconds for ten tokens. The
    longest answers need 33 s, which is more than two steps of the learner.
    """
    config = default_config()
    config.update(dict(steps=1000, num_prompts=16, group_size=8, eval_every=5))
    config.sampler.batch_prompts = 1  # each group starts at a time of its own
    config.warm_start.steps = 0
    config.optimizer.learning_rate = 1e-3
    config.metrics.parameter_drift = False
    # The largest lag that a training accepts. The S of a rule may be broken by the rule alone.
    config.lag.max_lag = 256
    config.task = ConfigDict(dict(name="docs/examples/counting.py:Counting"))

    clock = pipeline.get_config()
    for name in ("steps", "warm_up", "map", "target_reward"):
        del clock[name]
    clock.update(
        dict(
            seeds=(0, 1, 2),  # seeds of the trainings
            buffers=("synchronous", "in_order", "bounded", "ready_first", "windowed", "drop"),
            max_lags=(1, 4),
            limits=(33,),  # the task's longest response
            seconds=3000.0,  # simulated time of each training
        )
    )
    clock.cluster.update(dict(num_groups=16, group_size=8, step_seconds=10.0, publish_seconds=1.0))
    clock.cluster.engines.update(dict(count=2, slots=64, tokens_per_second=1.0))
    clock.cluster.lengths.update(dict(distribution="constant", mean=1.0))
    config.clock = clock
    return config
