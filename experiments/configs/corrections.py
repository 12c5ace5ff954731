"""Compares all corrections, and trains ten: the default config of `experiments.corrections`.

    python -m experiments.corrections --workdir=results/corrections

Hardware: 2 CPU cores, about half an hour. An earlier and longer run is described in
docs/log/2026-11-24-corrections.md.
"""

from ml_collections import ConfigDict

from experiments.configs import bias, scaling_laws
from staleness_grpo.objective.corrections.registry import CORRECTIONS


def get_config() -> ConfigDict:
    """Returns exact measurements of all corrections at S = 16, and trainings at S = 8 and 32.

    Eight corrections of the loss and two update rules are trained.
    """
    exact = bias.get_config()
    stability = scaling_laws.get_config()
    del stability.variants
    stability.sweep.max_lags = (8, 32)
    stability.sweep.learning_rates = (7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3)
    stability.sweep.seeds = (0, 1, 2, 3)
    stability.steps = 300
    stability.sweep.horizons = (300,)
    return ConfigDict(
        dict(
            # The next fields are the same as in `experiments.bias`.
            **{
                name: exact[name]
                for name in ("seed", "num_draws", "num_prompts", "group_size", "num_resamples")
            },
            **{name: exact[name] for name in ("task", "policy", "surrogate")},
            corrections=tuple(CORRECTIONS),
            max_lag=16,  # S of the exact trajectories, which have a constant lag and SGD
            s_eta=tuple(2.0**power for power in range(-9, 0)),
            variance=dict(
                s_eta=2.0**-4,  # S * eta of the synchronous trajectory
                num_batches=1000,  # sampled batches, each with one group for every prompt
            ),
            cost=dict(num_rounds=100),  # each round times one update of every trained method
            # Corrections whose (S, eta) cells are trained. grpo_clip must be among them, since all
            # others are compared with it.
            trained=(
                "grpo_clip",
                "none",
                "token_tis",
                "sequence_mis",
                "gspo",
                "cispo",
                "dppo_tv",
                "m2po_areal",
            ),
            trained_update_rules=("vcpo", "gac"),  # trained too, with grpo_clip
            stability=stability,  # the config of the sweep that trains the cells
        )
    )
