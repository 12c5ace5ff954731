"""Tests the law of collapse again, on fresh seeds and on settings that `law.py` left out.

    python -m experiments.law --config=experiments/configs/law_rest.py --workdir=results/law_rest

The settings and the criteria were in the repository before any of these trainings ran:
docs/log/2026-11-30-plan-of-a-second-law-study.md.

Hardware: 2 CPU cores, an hour. The numbers to expect are in
experiments/results/law_rest/summary.json.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import law

# Names of settings that only differ in Adam's b1, with its value.
MOMENTUM = {"b1_0": 0.0, "b1_50": 0.5, "b1_80": 0.8, "b1_95": 0.95, "b1_97": 0.97, "b1_99": 0.99}


def get_config() -> ConfigDict:
    """Returns the reference map on fresh seeds, further momenta, and twelve held-out settings."""
    config = law.get_config()
    config.sweep.seeds = (40, 41, 42)
    heldout = _heldout()
    settings: dict[str, Any] = {name: dict(optimizer=dict(b1=b1)) for name, b1 in MOMENTUM.items()}
    for name, differences in heldout.items():
        sweep = dict(seeds=(50, 51, 52)) | differences.get("sweep", {})
        settings[name] = differences | dict(sweep=sweep)
    config.variants = ConfigDict(settings)
    config.law.update(
        dict(
            calibration=tuple(MOMENTUM),
            heldout=tuple(heldout),
            interventions=(*heldout, *MOMENTUM),
            age="mean",
            probe_steps=300,
        )
    )
    return config


def _heldout() -> dict[str, dict[str, Any]]:
    """Returns the differences of each held-out setting from the reference."""
    # The loop trains these cells, because compiled ones have no such lag. So the grid is smaller.
    rates = (1e-3, 1.6e-3, 2.5e-3, 4e-3, 6.3e-3)
    uniform = dict(max_lags=(0, 1, 16, 64), learning_rates=rates, horizons=(400,))
    return {
        "uniform": dict(lag=dict(schedule="uniform"), sweep=uniform),
        "cyclic": dict(lag=dict(schedule="cyclic")),
        "gradient_clip": dict(optimizer=dict(max_grad_norm=0.1)),
        "dual_clip_10": dict(correction=dict(name="dual_clip", cap=10.0)),
        "clip_10": dict(surrogate=dict(clip_low=0.1, clip_high=0.1)),
        "clip_40": dict(surrogate=dict(clip_low=0.4, clip_high=0.4)),
        "dr_grpo": dict(
            surrogate=dict(normalize_std=False, length_normalization="constant"),
            correction=dict(name="dr_grpo"),
        ),
        "adamw": dict(optimizer=dict(name="adamw", weight_decay=0.1)),
        "one_digit": dict(task=dict(num_digits=1)),
        "group_16": dict(group_size=16),
        "wider": dict(policy=dict(d_model=64, head_dim=16, d_ff=128)),
        "deeper": dict(policy=dict(num_layers=4)),
    }
