"""Compares what the plan of the study says with what its maps give."""

from typing import Any

from experiments.common.claims import Claim
from experiments.law.predictions import LARGEST, TYPICAL

COMMAND = "python -m experiments.law --workdir=DIR"


def claims(summary: dict[str, Any]) -> list[Claim]:
    """Returns the claims of docs/log/2026-11-28-plan-of-the-law-study.md.

    Args:
      summary: the result of `analysis.summarize`.
    """
    slope = summary["momentum"]
    low, high = slope["slope_interval"]
    sums, times = summary["rules"]["sum"], summary["laws"]["sum"]
    rivals = {name: value for name, value in sums.items() if name != "saturating"}
    rival = max(rivals, key=lambda name: rivals[name])
    others = {name: value for name, value in times.items() if name != "saturating"}
    other = max(others, key=lambda name: others[name])
    found = [
        Claim(
            name="s0_grows_like_the_memory",
            claim="log S0 has slope 1 in log(1 / (1 - b1)).",
            measured=slope["slope"],
            interval=[low, high],
            n=slope["n"],
            unit="momenta",
            holds=bool(low <= 1 <= high),
            command=COMMAND,
        ),
        Claim(
            name="saturating_rule_wins",
            claim="On seeds that no rule was fitted to, the saturating rule has a higher "
            "log-likelihood than every other rule of the boundary.",
            measured=sums["saturating"] - rivals[rival],
            interval=None,
            n=summary["rules"]["num_settings"],
            unit="settings",
            holds=bool(sums["saturating"] > rivals[rival]),
            note=f"The best other rule is {rival}.",
            command=COMMAND,
        ),
        Claim(
            name="saturating_law_wins",
            claim="The same for laws of the collapse time.",
            measured=times["saturating"] - others[other],
            interval=None,
            n=summary["laws"]["num_settings"],
            unit="settings",
            holds=bool(times["saturating"] > others[other]),
            note=f"The best other law is {other}.",
            command=COMMAND,
        ),
    ]
    return found + _predictions(summary["heldout"])


def _predictions(heldout: dict[str, Any]) -> list[Claim]:
    """Returns two claims for each way to predict: about the typical and the largest factor."""
    found = []
    for name, factors in heldout["factors"].items():
        if factors["median"] is None:
            continue
        is_baseline = name in ("synchronous", "inverse_lag")
        for statistic, aim in (("median", TYPICAL), ("largest", LARGEST)):
            value = factors[statistic]
            found.append(
                Claim(
                    name=f"{name}_{statistic}",
                    claim=f"The {statistic} factor between eta_max by `{name}` and the measured "
                    f"one is at most {aim:g}.",
                    measured=value,
                    interval=None,
                    n=heldout["num_counted"],
                    unit="settings and lags",
                    holds=None if is_baseline else bool(value <= aim),
                    command=COMMAND,
                )
            )
    return found
