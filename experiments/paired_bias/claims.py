"""The claims of the paired bias: what should hold, beside what was measured.

All trainings of a workdir have one seed. So the intervals, which resample groups or cells, say
nothing of other seeds.
"""

from typing import Any

from experiments.common.claims import Claim
from experiments.paired_bias.grid import short
from experiments.sweep.laws import CLIP_LEVEL

COMMAND = "python -m experiments.paired_bias --workdir=DIR"
NUM_SEEDS = 1


def claims(cells: list[dict], slopes: dict[str, dict]) -> list[Claim]:
    """Returns the claims on lag 0 and on the law, and the rewards of the synchronous trainings.

    Args:
      cells: the records of the trainings.
      slopes: `analysis.slope` by abscissa.
    """
    synchronous = [cell for cell in cells if cell["max_lag"] == 0]
    found = []
    compared = [cell for cell in synchronous if cell["num_comparisons"]]
    if compared:
        found.append(_bias_at_lag_0(compared))
    found += [_reward(cell) for cell in synchronous if len(cell["eval_rewards"]) >= 2]
    if law := slopes.get("s_eta", {}).get("unclipped"):
        low, high = law["interval"]
        found.append(
            Claim(
                name="slope_s_eta",
                claim="Before clipping the bias is proportional to S eta: its slope in log-log "
                "axes is 1.",
                measured=law["slope"],
                interval=law["interval"],
                n=NUM_SEEDS,
                unit="seeds",
                holds=bool(0 < low <= 1 <= high),
                paper="Stale rollouts introduce a per-step bias of order O(S eta).",
                note=_cells_of(law),
                command=COMMAND,
            )
        )
    if law := slopes.get("drift", {}).get("unclipped"):
        found.append(
            Claim(
                name="slope_drift",
                claim="Before clipping the bias has this slope in log-log axes against the drift "
                "from the behavior policy.",
                measured=law["slope"],
                interval=law["interval"],
                n=NUM_SEEDS,
                unit="seeds",
                holds=None,
                note=_cells_of(law),
                command=COMMAND,
            )
        )
    return found


def _bias_at_lag_0(compared: list[dict]) -> Claim:
    """Returns the claim that follows from the definition: same policy and noise, same gradient."""
    largest = max(cell["bias_norm"] for cell in compared)
    count = sum(cell["num_comparisons"] for cell in compared)
    return Claim(
        name="bias_at_lag_0",
        claim="The bias at lag 0 is exactly 0.",
        measured=largest,
        interval=None,
        n=NUM_SEEDS,
        unit="seeds",
        holds=bool(largest == 0.0),
        note=f"{count} comparisons in {len(compared)} trainings.",
        command=COMMAND,
    )


def _reward(cell: dict[str, Any]) -> Claim:
    rate = short(cell["learning_rate"])
    return Claim(
        name=f"reward_at_lag_0_eta_{rate}",
        claim=f"At S = 0 and eta = {rate} the reward of the current policy goes from "
        f"{cell['eval_rewards'][0]:.3f} to this.",
        measured=cell["final_eval_reward"],
        interval=None,
        n=NUM_SEEDS,
        unit="seeds",
        holds=None,
        note=f"{len(cell['eval_rewards'])} evaluations during the training"
        + ("; it collapsed." if cell["collapsed"] else "."),
        command=COMMAND,
    )


def _cells_of(law: dict[str, Any]) -> str:
    """Says which cells a slope is over."""
    note = f"{law['n']} cells with a clip fraction below {CLIP_LEVEL:g}"
    if law["num_left_out"]:
        note += f" ({law['num_left_out']} more have an estimate of 0)"
    return f"{note}. The interval resamples cells."
