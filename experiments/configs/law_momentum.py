"""Asks whether the law of collapse holds for SGD with momentum, as it does for Adam.

    python -m experiments.law --config=experiments/configs/law_momentum.py --workdir=DIR

The settings and the criteria were in the repository before any of these trainings ran:
docs/log/2026-11-30-plan-of-sgd-with-momentum.md.

Hardware: 2 CPU cores, a quarter of an hour. The numbers to expect are in
experiments/results/law_momentum/summary.json.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import law

# Names of settings with SGD that only differ in the momentum, with its value.
MOMENTUM = {"momentum_50": 0.5, "momentum_80": 0.8, "momentum_90": 0.9, "momentum_97": 0.97}
# Of SGD without momentum. An update with momentum b1 has 1 / (1 - b1) times the size after a while.
RATES = (0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024, 0.2048)


def get_config() -> ConfigDict:
    """Returns SGD without momentum as the reference, and four momenta, one of them held out."""
    config = law.get_config()
    config.optimizer.name = "sgd"
    config.sweep.update(dict(seeds=(70, 71, 72), learning_rates=RATES))
    settings: dict[str, Any] = {}
    for name, b1 in MOMENTUM.items():
        sweep = dict(learning_rates=tuple(rate * (1 - b1) for rate in RATES))
        settings[name] = dict(optimizer=dict(name="momentum", b1=b1), sweep=sweep)
    settings["momentum_80"]["sweep"]["seeds"] = (80, 81, 82)
    config.variants = ConfigDict(settings)
    config.law.update(
        dict(
            calibration=("momentum_50", "momentum_90", "momentum_97"),
            heldout=("momentum_80",),
            interventions=(),
            age="mean",
            probe_steps=300,
        )
    )
    return config
