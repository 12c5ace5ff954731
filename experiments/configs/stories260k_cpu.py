"""Trains a small pretrained language model on a CPU: rewards and gradient bias by lag.

    python -m experiments.paired_bias --config=experiments/configs/stories260k_cpu.py \
        --workdir=DIR --config.policy.checkpoint=FOLDER

FOLDER holds the 260k-parameter Llama of the tinyllamas family (MIT license) as config.json,
model.safetensors and tokenizer.json. It goes on with openings of stories, and is rewarded for each
of four words that it uses. The same config with `experiments.train` is one of these trainings.

Hardware: 2 CPU cores; 6 min 5 s and 7 min 20 s in two runs. The reward rises from 0.16 to 0.75
(S = 0), 0.68 (S = 8) and 0.36 (S = 32). The rest is in docs/log/2026-11-24-stories260k-bias.md.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config():
    """Returns 100 learner steps at five lags, compared with fresh rollouts every fourth step."""
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
