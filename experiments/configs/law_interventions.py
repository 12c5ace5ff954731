"""Asks what moves the boundary, and whether momentum helps or hurts under cyclic refresh.

    python -m experiments.law --config=experiments/configs/law_interventions.py --workdir=DIR

The settings and the criteria were in the repository before any of these trainings ran:
docs/log/2026-11-30-plan-of-a-second-law-study.md.

Hardware: 2 CPU cores, twenty minutes. The numbers to expect are in
experiments/results/law_interventions/summary.json.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import law

# Names of settings under cyclic refresh that only differ in Adam's b1, with its value.
CYCLIC = {"cyclic_b1_0": 0.0, "cyclic_b1_90": 0.9, "cyclic_b1_97": 0.97}
NO_CLIP = dict(clip_low=0.999, clip_high=1e6)


def get_config() -> ConfigDict:
    """Returns the reference, cyclic refresh with three momenta, and three interventions."""
    config = law.get_config()
    config.sweep.update(dict(seeds=(60, 61, 62), max_lags=(0, 4, 16, 64)))
    settings: dict[str, Any] = {
        name: dict(optimizer=dict(b1=b1), lag=dict(schedule="cyclic"))
        for name, b1 in CYCLIC.items()
    }
    # Only the ratio of tokens with a negative advantage is capped, and only from above.
    settings["negative_cap_1_5"] = dict(
        correction=dict(name="dual_clip", cap=1.5), surrogate=NO_CLIP
    )
    settings["no_clip"] = dict(surrogate=NO_CLIP)
    few = dict(max_lags=(0, 16), learning_rates=(6.3e-4, 1e-3, 1.6e-3, 2.5e-3, 4e-3))
    settings["prompts_128"] = dict(num_prompts=128, sweep=few)
    config.variants = ConfigDict(settings)
    config.law.update(
        dict(
            calibration=("cyclic_b1_0", "cyclic_b1_90", "cyclic_b1_97"),
            heldout=("no_clip",),
            interventions=tuple(settings),
            age="mean",
            probe_steps=300,
        )
    )
    return config
