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
        _win(
            "saturating_rule_wins",
            "On seeds that no rule was fitted to, the saturating rule has a higher log-likelihood "
            "than every other rule of the boundary.",
            summary["rules"],
        ),
        _win(
            "saturating_law_wins",
            "The same for laws of the collapse time.",
            summary["laws"],
        ),
    ]
    return found + _predictions(summary["heldout"])


def _win(name: str, sentence: str, judged: dict[str, Any]) -> Claim:
    """Returns the claim that the saturating candidate has the highest held-out likelihood."""
    others = {key: value for key, value in judged["sum"].items() if key != "saturating"}
    best = max(others, key=lambda key: others[key])
    lead = judged["sum"]["saturating"] - others[best]
    return Claim(
        name=name,
        claim=sentence,
        measured=lead,
        interval=None,
        n=judged["num_settings"],
        unit="settings",
        holds=bool(lead > 0),
        note=f"The best other one is {best}.",
        command=COMMAND,
    )


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
