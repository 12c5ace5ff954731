"""Tests on many settings which law the collapse time follows: the default of `experiments.law`.

    python -m experiments.law --workdir=results/law

The settings and the criteria were in the repository before any of these trainings ran.

Hardware: 2 CPU cores, an hour and a half beside other work. The numbers to expect are in
experiments/results/law/summary.json.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

from experiments.configs import scaling_laws

# Names of settings that only differ in Adam's b1, with its value.
MOMENTUM = {"b1_0": 0.0, "b1_70": 0.7, "b1_97": 0.97, "b1_99": 0.99}


def get_config() -> ConfigDict:
    """Returns the reference map, and three kinds of settings that differ from it.

    - `law.calibration`: other momenta. From these maps and the reference come the constants of the
      law, and how S0 depends on the momentum.
    - `law.heldout`: settings whose boundary is predicted. No constant is fitted to more of them
      than the prediction says.
    - `law.interventions`: what may move the boundary.
    """
    config = scaling_laws.get_config()
    config.update(dict(steps=400, num_prompts=16))
    config.sweep.update(
        dict(
            max_lags=(0, 1, 4, 16, 64),
            learning_rates=(4e-4, 6.3e-4, 1e-3, 1.6e-3, 2.5e-3, 4e-3, 6.3e-3),
            seeds=(10, 11, 12),
            horizons=(100, 200, 400),
        )
    )
    heldout = _heldout()
    settings = {name: _field("optimizer", b1=b1) for name, b1 in MOMENTUM.items()}
    for name, differences in heldout.items():
        sweep = dict(seeds=(20, 21, 22)) | differences.get("sweep", {})
        settings[name] = differences | dict(sweep=sweep)
    config.variants = ConfigDict(settings)
    # A finished map of experiments/configs/stories260k_map.py, for one more held-out setting.
    config.stories = config_dict.placeholder(str)
    config.law = ConfigDict(
        dict(
            calibration=tuple(MOMENTUM),
            heldout=tuple(heldout),
            interventions=("dual_clip_1_5", "dual_clip_3", "prompts_8", "prompts_32")
            + ("b2_95", "reference_kl", "b1_0", "b1_97"),
            # The probe of a setting. At each of these lags (or the nearest of the grid), runs of
            # the first seed halve the learning rates until a stable one is next to one that
            # collapses.
            probe_lags=(0, 1, 16),
            probe_steps=150,  # learner steps of a run of the probe
            # What takes the place of S under a cyclic or uniform schedule: largest (S) or mean.
            age="largest",
        )
    )
    return config


def _heldout() -> dict[str, dict[str, Any]]:
    """Returns the differences of each held-out setting from the reference."""
    sgd_rates = (0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024, 0.2048)
    return {
        "longer": dict(steps=800, sweep=dict(max_lags=(0, 2, 6, 24, 48), horizons=(800,))),
        "sgd": dict(optimizer=dict(name="sgd"), sweep=dict(learning_rates=sgd_rates)),
        "three_terms": _field("task", num_terms=3, num_digits=1),
        "cyclic": _field("lag", schedule="cyclic"),
        "dual_clip_3": _field("correction", name="dual_clip", cap=3.0),
        "b2_95": _field("optimizer", b2=0.95),
        "prompts_8": dict(num_prompts=8),
        "prompts_32": dict(num_prompts=32),
        "group_4": dict(group_size=4),
        "reference_kl": _field("reference", kl=0.05),
        "dual_clip_1_5": _field("correction", name="dual_clip", cap=1.5),
    }


def _field(section: str, **fields: Any) -> dict[str, dict[str, Any]]:
    """Returns the differences of a setting that changes fields of one section."""
    return {section: fields}
