"""Trains the (S, eta) cells of every correction. Other settings are as in `corrections`.

    python -m experiments.corrections --config=experiments/configs/corrections_full.py --workdir=DIR

Hardware: 2 CPU cores. The numbers to expect are in docs/log/2026-11-24-corrections.md.
"""

from ml_collections import ConfigDict

from experiments.configs import corrections
from staleness_grpo.objective.corrections.registry import CORRECTIONS
from staleness_grpo.objective.update_rules import UPDATE_RULES


def get_config() -> ConfigDict:
    """Returns the default config, with all corrections and all update rules trained."""
    config = corrections.get_config()
    config.trained = tuple(CORRECTIONS)
    config.trained_update_rules = tuple(UPDATE_RULES)
    return config
