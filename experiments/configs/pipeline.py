"""Simulates how the buffer rule and the lag bound S set the time of a learner step.

It is the default config of `experiments.pipeline`.

    python -m experiments.pipeline --workdir=results/pipeline

Hardware: 2 CPU cores, about a minute. The numbers to expect are in
experiments/results/pipeline/summary.json.
"""

from ml_collections import ConfigDict, config_dict

from staleness_grpo.pipeline.cluster import FINISH, LEARNER
from staleness_grpo.pipeline.lengths import LOGNORMAL
from staleness_grpo.pipeline.rules import RULES


def get_config() -> ConfigDict:
    """Returns a cluster whose engines are about as fast as its learner.

    At 50 tokens/s, 64 slots take 40 s for the 128 responses of a learner step, if none is idle.
    """
    return ConfigDict(
        dict(
            seeds=(0, 1),  # seeds of the response lengths
            steps=100,  # learner steps of each simulation
            warm_up=30,  # learner steps that no number counts
            buffers=tuple(RULES),  # the buffer rules
            max_lags=(1, 2, 4, 8, 16),  # S, for rules that have no lag of their own
            limits=(16384,),  # largest tokens of a response
            # The share of the accelerators that the learner has. The synchronous run that shares
            # them in time has all of them for each phase.
            learner_share=0.5,
            cluster=dict(
                num_groups=16,  # N
                group_size=8,  # G
                reward_seconds=0.0,  # from a group's last token to its rewards
                step_seconds=40.0,  # time of an optimizer update
                publish_seconds=2.0,  # time in which the engines get new weights
                publish_blocks=LEARNER,  # what stands still meanwhile: nothing, learner or all
                in_flight=FINISH,  # responses at new weights: continue, finish or drain
                engines=dict(
                    count=4,
                    slots=16,
                    tokens_per_second=50.0,  # of a response alone on its engine
                    slowdown=0.0,  # by which each further busy slot lengthens a token's time
                ),
                lengths=dict(
                    distribution=LOGNORMAL,  # or constant, geometric, file
                    mean=1000.0,  # tokens, before the limit
                    sigma=0.8,  # of the logarithm
                    correlation=0.0,  # within a group, of the lengths' normal numbers
                    path=config_dict.placeholder(str),  # of recorded lengths, for file
                ),
            ),
            map=config_dict.placeholder(str),  # a finished workdir of experiments.sweep
            target_reward=0.8,  # which the map's trainings are to reach
        )
    )
