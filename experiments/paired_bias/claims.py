"""Compares what should hold of the paired bias with what was measured.

The intervals resample groups or cells, so they do not cover the variation between seeds. All
trainings of `experiments.paired_bias` have the same seed; those of a sweep may have several.
"""

from typing import Any

from experiments.common.claims import Claim
from experiments.paired_bias.grid import shortest_text
from staleness_grpo.scaling.alarms import CLIP_LEVEL

# A slope whose interval is wider does not tell proportional from constant or quadratic.
WIDEST = 1.0
COMMAND = "python -m experiments.paired_bias --workdir=DIR"


def claims(cells: list[dict], slopes: dict[str, dict]) -> list[Claim]:
    """Returns the claims on lag 0 and on the law of the bias, and the synchronous rewards.

    Args:
      cells: the records of cells.jsonl.
      slopes: `analysis.slope` by abscissa.
    """
    synchronous = [cell for cell in cells if cell["max_lag"] == 0]
    bias = bias_claims(cells, slopes, COMMAND, num_seeds=1)
    rewards = [_reward(cell) for cell in synchronous if len(cell["eval_rewards"]) >= 2]
    at_lag_0 = [claim for claim in bias if claim.name == "bias_at_lag_0"]
    return at_lag_0 + rewards + bias[len(at_lag_0) :]


def bias_claims(
    cells: list[dict], slopes: dict[str, dict], command: str, num_seeds: int
) -> list[Claim]:
    """Returns the claims on the bias at lag 0, and on the law of the bias.

    Args:
      cells: records of `measure.cell_record`, or of a sweep that compares gradients.
      slopes: `analysis.slope` by abscissa.
      command: the command that measured the cells.
      num_seeds: how many seeds the cells have.
    """
    shared: dict[str, Any] = dict(n=num_seeds, unit="seeds", command=command)
    result = []
    compared = [cell for cell in cells if cell["max_lag"] == 0 and cell["num_comparisons"]]
    if compared:
        result.append(_bias_at_lag_0(compared, shared))
    if law := slopes.get("s_eta", {}).get("unclipped"):
        low, high = law["interval"]
        is_decided = high - low <= WIDEST
        undecided = f"undecided: the interval is wider than {WIDEST:g}"
        result.append(
            Claim(
                name="slope_s_eta",
                claim="Before clipping the bias is proportional to S eta: its slope in log-log "
                "axes is 1.",
                measured=law["slope"],
                interval=law["interval"],
                holds=bool(0 < low <= 1 <= high) if is_decided else None,
                paper="Stale rollouts introduce a per-step bias of order O(S eta).",
                note=_cells_note(law) if is_decided else f"{undecided}; {_cells_note(law)}",
                **shared,
            )
        )
    if law := slopes.get("drift", {}).get("unclipped"):
        result.append(
            Claim(
                name="slope_drift",
                claim="Before clipping the bias has this slope in log-log axes against the drift "
                "from the behavior policy.",
                measured=law["slope"],
                interval=law["interval"],
                holds=None,
                note=_cells_note(law),
                **shared,
            )
        )
    return result


def _bias_at_lag_0(compared: list[dict], shared: dict[str, Any]) -> Claim:
    """Claims that the bias at lag 0 is 0.

    The claim follows from the definition: both gradients come from the same policy and noise.
    """
    largest_bias = max(cell["bias_norm"] for cell in compared)
    num_comparisons = sum(cell["num_comparisons"] for cell in compared)
    return Claim(
        name="bias_at_lag_0",
        claim="The bias at lag 0 is exactly 0.",
        measured=largest_bias,
        interval=None,
        holds=bool(largest_bias == 0.0),
        note=f"{num_comparisons} comparisons in {len(compared)} trainings.",
        **shared,
    )


def _reward(cell: dict[str, Any]) -> Claim:
    rate = shortest_text(cell["learning_rate"])
    return Claim(
        name=f"reward_at_lag_0_eta_{rate}",
        claim=f"At S = 0 and eta = {rate} the reward of the current policy goes from "
        f"{cell['eval_rewards'][0]:.3f} to this.",
        measured=cell["final_eval_reward"],
        interval=None,
        n=1,
        unit="seeds",
        holds=None,
        note=f"{len(cell['eval_rewards'])} evaluations during the training"
        + ("; it collapsed." if cell["collapsed"] else "."),
        command=COMMAND,
    )


def _cells_note(law: dict[str, Any]) -> str:
    """Says from which cells a slope was fitted."""
    note = f"{law['n']} cells with a clip fraction below {CLIP_LEVEL:g}"
    if law["num_left_out"]:
        note += f" ({law['num_left_out']} more have an estimate of 0)"
    return f"{note}. The interval resamples cells."
