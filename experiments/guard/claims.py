"""States what the guard must do, with what its maps give."""

from typing import Any

from experiments.common.claims import Claim

COMMAND = "python -m experiments.guard --workdir=DIR"
PREVENTED = 0.8  # share of the seeds of a setting beyond the boundary that must not collapse
COST = 0.1  # largest share of the final reward that the guard may cost inside


def claims(summary: dict[str, Any]) -> list[Claim]:
    """Returns the claims about the guard.

    Args:
      summary: the result of `analysis.summarize`.
    """
    beyond, inside = summary["beyond"], summary["inside"]
    found = []
    if beyond["settings"]:
        share = beyond["least_prevented_share"]
        found.append(
            Claim(
                name="guard_prevents",
                claim=f"In every setting beyond the boundary, at least {PREVENTED:.0%} of the "
                "seeds do not collapse with guard.mode=scale.",
                measured=share,
                interval=None,
                n=beyond["settings"],
                unit="settings",
                holds=bool(share >= PREVENTED),
                command=COMMAND,
            )
        )
    if inside["largest_cost"] is not None:
        found.append(
            Claim(
                name="guard_is_cheap",
                claim=f"Inside the boundary it costs at most {COST:.0%} of the final reward.",
                measured=inside["largest_cost"],
                interval=None,
                n=inside["settings"],
                unit="settings",
                holds=bool(inside["largest_cost"] <= COST),
                command=COMMAND,
            )
        )
    found.append(
        Claim(
            name="warnings_change_nothing",
            claim="With guard.mode=warn every cell is the same as without a guard.",
            measured=summary["same_as_without"],
            interval=None,
            n=summary["warnings"]["collapsed"] + summary["warnings"]["stable"],
            unit="trainings",
            holds=summary["same_as_without"],
            command=COMMAND,
        )
    )
    return found
