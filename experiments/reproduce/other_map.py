"""Makes the report's section on the map of another task or model than the toy's."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from experiments.common import html

SWEEP = "experiments.sweep"
MAIN = "scaling_laws"  # the map that the paper's claims are judged on
FIGURES = (
    ("scaling_usable.png", "Outcome of every training, and the usable learning rates by S."),
    ("scaling_map.png", "Share of seeds that collapse, with the fitted boundaries."),
    ("scaling_eta_max.png", "The largest stable learning rate by S, at each horizon."),
    ("scaling_collapse_time.png", "Collapse time against eta and S."),
    ("scaling_paired_bias.png", "The bias of stale gradients against fresh ones."),
)
Figures = Callable[[Sequence[tuple[str, str]]], str]


def other_maps(jobs: dict[str, tuple[str, ...]]) -> list[str]:
    """Returns the names of the jobs that are maps, without the main one."""
    return [name for name, (module, *_) in jobs.items() if module == SWEEP and name != MAIN]


def section(folder: pathlib.Path, summary: dict[str, Any] | None, figures: Figures) -> str:
    """Returns the section's HTML.

    Args:
      folder: of the job's results.
      summary: of the job; None while it is not finished.
      figures: makes HTML of figures in the folder, each with its caption.
    """
    if summary is None:
        return "<p>Not measured yet.</p>"
    outcomes = ", ".join(f"{count} {name}" for name, count in summary["outcomes"].items())
    words = (
        f"{summary['num_cells']} trainings, seeds: {summary['num_seeds']}. Outcomes: {outcomes}. "
        f"Horizons are {' and '.join(map(str, summary['horizons']))} learner steps."
    )
    rows = _laws(summary)
    laws = html.plain_table(("quantity", "value", "95 % interval"), rows) if rows else ""
    header = ("S", "smallest usable eta", "largest usable eta", "eta_max by fit", "relative bias")
    by_lag = html.plain_table(header, _by_lag(summary))
    return f"<p>{html.text(words)}</p>{figures(FIGURES[:2])}{laws}{by_lag}{figures(FIGURES[2:])}"


def _laws(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the exponents, the scale-free ratio and the alarms that a map has."""
    rows: list[tuple[str, ...]] = []
    usable = summary["usable"]
    if usable.get("slope") is not None:
        label, interval = "slope of log(largest usable eta) in log S", usable["slope_interval"]
        rows.append((label, html.number(usable["slope"]), html.number(interval)))
    if "eta_max_slope" in summary:
        for part, fit in summary["eta_max_slope"].items():
            lags = f"S = {fit['lags'][0]:g} to {fit['lags'][-1]:g}"
            name = f"slope of log eta_max in log S, {part}, {lags}"
            rows.append((name, html.number(fit["slope"]), html.number(fit["interval"])))
    if times := summary.get("collapse_time"):
        for name, symbol in (("eta", "eta"), ("s", "S")):
            value, interval = times[f"{name}_exponent"], times[f"{name}_exponent_interval"]
            label = f"exponent of {symbol} in the collapse time"
            rows.append((label, html.number(value), html.number(interval)))
    if (ratio := summary.get("scale_free_ratio")) is not None:
        label = "(collapse time eta) / (S eta)_max; the paper's is 20"
        rows.append((label, html.number(ratio), "-"))
    for signal, alarm in summary.get("alarms", {}).items():
        found = f"{100 * alarm['found']:.0f} % of {alarm['n']}"
        false = f"{100 * alarm['false_alarms']:.0f} % false"
        rows.append((f"collapses that an alarm on {signal} finds", f"{found}, {false}", "-"))
    return rows


def _by_lag(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the edges of the usable learning rates and the relative bias, a row for each S."""
    fitted = summary.get("eta_max", {})
    compared = summary.get("paired_bias", {}).get("by_cell", [])
    rows: list[tuple[str, ...]] = []
    for lag, edges in summary["usable"]["by_lag"].items():
        ends = [
            edges.get(f"{end}_is", "") if edges[end] is None else html.number(edges[end])
            for end in ("low", "high")
        ]
        biases = [cell["relative_bias"] for cell in compared if str(cell["max_lag"]) == lag]
        biases = sorted(bias for bias in biases if bias is not None)
        spread = f"{html.number(biases[0])} to {html.number(biases[-1])}" if biases else "-"
        rows.append((lag, *ends, html.number(fitted[lag]) if lag in fitted else "-", spread))
    return rows
