"""Compares what public systems report with what the simulations give."""

from typing import Any

from experiments.common.claims import Claim
from experiments.pipeline.grid import COLOCATED, SYNCHRONOUS

COMMAND = "python -m experiments.pipeline --workdir=DIR"
SATURATED = 1.05  # times the shortest time: more lag gains nothing beyond


def claims(cells: list[dict], summary: dict[str, Any]) -> list[Claim]:
    """Returns the claims that the cells can answer.

    Args:
      cells: the records of cells.jsonl.
      summary: the result of `analysis.summarize`.
    """
    found = [kept_bounds(cells)] if any(cell["keeps_bound"] for cell in cells) else []
    for limit, rules in summary["by_limit"].items():
        prefix = f"limit_{limit}_" if len(summary["by_limit"]) > 1 else ""
        if rules.get("bounded"):
            found += _bounded(prefix, rules, summary["num_seeds"])
    found += _discarded(summary)
    return found


def _claim(name: str, sentence: str, measured: Any, n: int, **fields: Any) -> Claim:
    return Claim(
        name=name,
        claim=sentence,
        measured=measured,
        interval=fields.pop("interval", None),
        n=n,
        unit="seeds",
        holds=fields.pop("holds", None),
        command=COMMAND,
        **fields,
    )


def kept_bounds(cells: list[dict]) -> Claim:
    """Claims that no lag is above S, for the rules that promise it."""
    bound = [cell for cell in cells if cell["keeps_bound"]]
    excess = max(cell["lag_max"] - cell["max_lag"] for cell in bound)
    num_seeds = len({cell["seed"] for cell in bound})
    return _claim(
        "lags_within_bound",
        "The largest lag minus S is at most 0, for rules that promise a bound.",
        excess,
        num_seeds,
        holds=bool(excess <= 0),
        note=f"{len(bound)} simulations.",
    )


def _bounded(prefix: str, rules: dict[str, Any], n: int) -> list[Claim]:
    """Returns the claims about bounded admission, by the times and lags of one limit."""
    lags = rules["bounded"]
    fastest = min(numbers["seconds_per_step"] for numbers in lags.values())
    enough = min(
        int(lag) for lag, v in lags.items() if v["seconds_per_step"] <= SATURATED * fastest
    )
    at_enough = lags[str(enough)]
    smallest = min(lags, key=int)
    found = [
        _claim(
            f"{prefix}enough_lag",
            f"Bounded admission with this S is within a factor {SATURATED:g} of its shortest "
            "learner step.",
            enough,
            n,
        ),
        _claim(
            f"{prefix}bound_overtaken",
            f"Bounded admission at S = {smallest} bounds how many groups are ahead and not their "
            "lag, which reaches this.",
            lags[smallest]["lag_max"],
            n,
            note="A slow group is overtaken by later ones.",
        ),
    ]
    if at_enough["length_lag_correlation"] is not None:
        found.append(
            _claim(
                f"{prefix}longer_is_staler",
                f"Long responses are staler with bounded admission at S = {enough}: their length "
                "and lag are correlated.",
                at_enough["length_lag_correlation"],
                n,
                holds=bool(at_enough["length_lag_correlation"] > 0),
            )
        )
    if f"speedup_over_{COLOCATED}" in at_enough:
        over_split = at_enough[f"speedup_over_{SYNCHRONOUS}"]
        found.append(
            _claim(
                f"{prefix}speedup",
                f"Bounded admission at S = {enough} is so many times as fast as a synchronous run "
                "that has all accelerators for each phase.",
                at_enough[f"speedup_over_{COLOCATED}"],
                n,
                paper="AReaL: up to 2.77 times. verl, fully asynchronous: 2.35 to 2.67 times.",
                note=f"Over a synchronous run on the same split it is {over_split:.2f} times. The "
                "factor depends on the tail of the lengths, on the share of the time that "
                "publication takes, and on the balance of engines and learner.",
            )
        )
    return found


def _discarded(summary: dict[str, Any]) -> list[Claim]:
    """Claims that a longer response limit raises the discarded share, if there are two limits."""
    limits = sorted(summary["by_limit"], key=int)
    rows = [summary["by_limit"][limit].get("windowed") for limit in limits]
    if len(limits) < 2 or not all(rows):
        return []
    lag = min(rows[0], key=int)
    shares = [row[lag]["discarded_tokens"] for row in rows]
    lengths = ", ".join(f"{row[lag]['length_mean']:.0f}" for row in rows)
    return [
        _claim(
            "discarded_by_limit",
            f"A longer response limit raises the discarded share of tokens (windowed, S = {lag}).",
            shares,
            summary["num_seeds"],
            holds=bool(all(a < b for a, b in zip(shares, shares[1:], strict=False))),
            paper="marin: from 0.014 to 0.329 when the limit was doubled from 2,048 to 4,096.",
            note=f"Limits {', '.join(limits)}. The mean length of what is trained is {lengths} "
            "tokens.",
        )
    ]
