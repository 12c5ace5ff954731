"""Trains a small pretrained language model on a CPU, and measures the gradient bias by lag.

    python -m experiments.paired_bias --config=experiments/configs/stories260k_cpu.py \
        --workdir=DIR --config.policy.checkpoint=FOLDER

FOLDER: config.json, model.safetensors and tokenizer.json of the Llama with 260k parameters, from
the tinyllamas family (MIT license).

The model continues the openings of stories. It is rewarded for each of four words that it uses.
`experiments.train` runs one of these trainings with the same config.

Hardware: 2 CPU cores, some minutes. The numbers to expect are in
experiments/results/stories260k/summary.json.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config() -> ConfigDict:
    """Returns trainings of 100 learner steps at five lags.

    Every fourth step, the gradient is compared with a gradient from fresh rollouts.
    """
    config = default_config()
    config.steps = 100
    config.eval_every = 5
    config.num_prompts = 16
    config.group_size = 8
    config.warm_start.steps = 0
    config.optimizer.learning_rate = 1e-4
    config.metrics.paired_every = 4
    config.task = ConfigDict(dict(name="stories", rule="mentions", max_response_length=48))
    config.paired = ConfigDict(dict(max_lags=(0, 2, 4, 8, 32), learning_rates=(1e-4,)))
    return config
