"""Draws the map of outcomes over S and eta."""

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from experiments.sweep.analysis import is_fitted
from experiments.sweep.laws import best_rule
from staleness_grpo.scaling import outcomes, stability

NAMED_ON_MAP = (outcomes.STALLED, outcomes.RECOVERED)


def map_figure(records: list[dict], summary: dict) -> plt.Figure:
    """Draws the share of seeds that fall at each S and eta, and the fitted boundaries.

    A seed falls if it collapses or recovers from a collapse; the laws count both. A second line in
    a square counts the seeds that stalled or recovered, if there are any.
    """
    lags = sorted({record["max_lag"] for record in records})
    rates = sorted({record["learning_rate"] for record in records})
    share = np.full((len(rates), len(lags)), np.nan)
    found = outcomes.outcomes(records)
    texts: dict[tuple[int, int], str] = {}
    for i, rate in enumerate(rates):
        for j, lag in enumerate(lags):
            chosen = [r for r in records if r["max_lag"] == lag and r["learning_rate"] == rate]
            share[i, j] = np.mean([r["collapse_step"] is not None for r in chosen])
            of_seeds = [
                outcome
                for outcome, r in zip(found, records, strict=True)
                if r["max_lag"] == lag and r["learning_rate"] == rate
            ]
            counts = ((of_seeds.count(name), name) for name in NAMED_ON_MAP)
            texts[i, j] = " ".join(f"{number} {name[:3]}" for number, name in counts if number)
    figure, axis = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
    colors = matplotlib.colors.LinearSegmentedColormap.from_list(
        "share", ["#dfeaf4", "#f4d9c6", style.COLORS[1]]
    )
    image = axis.imshow(share, origin="lower", aspect="auto", cmap=colors, vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(share):
        text = "\n".join(line for line in (f"{value:.2g}", texts[i, j]) if line)
        axis.text(j, i, text, ha="center", va="center", fontsize=6, color="#444")
    axis.set_xticks(range(len(lags)), lags)
    axis.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    horizon = max(summary["horizons"])
    positive = np.array([lag for lag in lags if lag >= 1], float)
    columns = np.array([lags.index(lag) for lag in positive])
    if is_fitted(summary):
        best = best_rule(summary["rules"])
        for name, line_style in (("min", ":"), ("max", "--"), (best, "-")):
            boundary = stability.log_eta_max(
                name, summary["rules"][name]["parameters"], positive, horizon
            )
            rows = _row_of(boundary, rates)
            axis.plot(columns, rows, line_style, color="black", label=f"fitted: {name}")
        figure.legend(loc="outside lower center", ncols=3)
    axis.set(xlabel="max_lag S", ylabel=r"learning rate $\eta$", ylim=(-0.5, len(rates) - 0.5))
    axis.set_title(
        f"share of seeds that collapse within T = {horizon}\n"
        "(rec: recovered later; sta: stalled, neither fell nor learned)"
    )
    figure.colorbar(image, ax=axis)
    return figure


def _row_of(log_rate: np.ndarray, rates: list[float]) -> np.ndarray:
    """Returns the vertical position of learning rates on the map, whose rows are `rates`.

    Learning rates outside the grid are extrapolated.

    Args:
      log_rate: logarithms of the learning rates, [n].
      rates: the learning rates of the grid, in increasing order.

    Returns:
      The positions in rows, from 0, [n].
    """
    step = np.diff(np.log(rates)).mean()
    inside = np.interp(log_rate, np.log(rates), np.arange(len(rates)))
    below = np.minimum(log_rate - np.log(rates[0]), 0) / step
    return inside + below + np.maximum(log_rate - np.log(rates[-1]), 0) / step
