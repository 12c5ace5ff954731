"""Asks which learning rate is safe at which lag: the default config of `experiments.advise`.

    python -m experiments.advise --workdir=results/advice --probe --horizon=600

The fields outside of `advise` describe the training of which a probe makes short runs. They are
those of `experiments.train`, and another config file may give them.

Hardware: 2 CPU cores, a few minutes with a probe, and seconds without.
"""

from ml_collections import ConfigDict

from experiments.advise.question import add_question
from experiments.configs import scaling_laws


def get_config() -> ConfigDict:
    """Returns two-digit addition with 32 prompts, evaluated every 5 steps, and no runs to read."""
    config = scaling_laws.get_config()
    with config.unlocked():
        del config["sweep"], config["variants"]
    add_question(config)
    return config
