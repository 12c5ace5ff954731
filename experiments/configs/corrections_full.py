"""As the default, with the (S, eta) cells of every correction.

    python -m experiments.corrections --config=experiments/configs/corrections_full.py --workdir=DIR

Hardware: 2 CPU cores. How long it takes is in docs/log/2026-11-24-corrections.md.
"""

from experiments.configs import corrections
from staleness_grpo.objective.corrections.registry import CORRECTIONS
from staleness_grpo.objective.update_corrections import UPDATE_CORRECTIONS


def get_config():
    """Every correction of the loss and of the update."""
    config = corrections.get_config()
    config.trained = tuple(CORRECTIONS)
    config.trained_update_rules = tuple(UPDATE_CORRECTIONS)
    return config
