"""Draws the figures of the bias experiment from cells.jsonl alone.

If a cell is missing, drawing raises an error.
"""

import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.bias.axes import GRADIENT_KINDS, OPTIMIZER_LABELS, SCHEDULES
from experiments.bias.law import CellTable, clip_free, fit, read_cells
from experiments.common import style

BLUE, RED, GREEN = style.COLORS[:3]
LAG_COLORS = plt.get_cmap("viridis")
LABELS = {
    "s_eta": r"$S\,\eta$",
    "eta_rms_age": r"$\eta \cdot$ rms(age)",
    "displacement": r"displacement $\|\theta_t - \theta_{t-\tau}\|$",
}


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws bias_law and bias_range into the workdir, each as PNG and PDF.

    Returns:
      The paths of the PNGs.

    Raises:
      FileNotFoundError: there is no cells.jsonl.
      KeyError: a cell of the grid, or a field of a cell, is missing.
    """
    cells = read_cells(workdir)
    with style.context():
        return [
            style.save(law_figure(cells), workdir / "bias_law"),
            style.save(range_figure(cells), workdir / "bias_range"),
        ]


def law_figure(cells: CellTable) -> plt.Figure:
    """Draws the bias of every cell against the x-values of the law.

    Each row of panels has one optimizer. Each column has one x-axis, schedule and kind of gradient.
    """
    columns = (
        ("constant lag", "exact", ("constant",), "s_eta"),
        ("cyclic lag", "exact", ("cyclic",), "s_eta"),
        ("cyclic lag", "exact", ("cyclic",), "eta_rms_age"),
        ("sampled, both schedules", "sampled", SCHEDULES, "displacement"),
    )
    figure, axes = plt.subplots(2, 4, figsize=(11, 5.4), layout="constrained")
    lags = np.unique(cells["max_lag"])
    for row, (optimizer, name) in zip(axes, OPTIMIZER_LABELS.items(), strict=True):
        for axis, (title, gradient, schedules, abscissa) in zip(row, columns, strict=True):
            for schedule in schedules:
                normalized_cells(axis, cells, optimizer, schedule, gradient, abscissa, lags)
            axis.set(xscale="log", yscale="log", xlabel=LABELS[abscissa], title=f"{name}, {title}")
            ends = np.array(axis.get_xlim())
            axis.plot(ends, ends, color="black", linewidth=0.8, linestyle="--", zorder=0)
            axis.set_xlim(ends)
        row[0].set_ylabel(r"$\|$bias$\|$ / gain of the draw")
    marker: dict[str, Any] = {"marker": "o", "linestyle": ""}
    handles = [
        plt.Line2D([], [], color=LAG_COLORS(i / (len(lags) - 1)), label=f"S = {lag}", **marker)
        for i, lag in enumerate(lags)
    ]
    handles.append(
        plt.Line2D([], [], color="gray", markerfacecolor="none", label="tokens clipped", **marker)
    )
    handles.append(
        plt.Line2D([], [], color="black", linewidth=0.8, linestyle="--", label="slope 1")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def normalized_cells(
    axis: plt.Axes,
    cells: CellTable,
    optimizer: str,
    schedule: str,
    gradient: str,
    abscissa: str,
    lags: np.ndarray,
) -> None:
    """Draws the bias divided by the draw's gain, so that the law is y = x in every draw.

    The gain is the constant of the law with slope 1, fitted to the draw's clip-free cells.
    """
    stale = cells.where(optimizer=optimizer, schedule=schedule, gradient=gradient)
    stale = stale.keep(stale["displacement"] > 0)
    free = clip_free(stale)
    log_gain = np.log(free["bias"] / free[abscissa])
    gains = {
        draw: np.exp(log_gain[free["draw"] == draw].mean()) for draw in np.unique(stale["draw"])
    }
    y = stale["bias"] / np.array([gains[draw] for draw in stale["draw"]])
    clipped = stale["clip_fraction"] > 0
    colors = LAG_COLORS(np.searchsorted(lags, stale["max_lag"]) / (len(lags) - 1))
    axis.scatter(stale[abscissa][~clipped], y[~clipped], s=7, c=colors[~clipped], linewidth=0)
    axis.scatter(
        stale[abscissa][clipped],
        y[clipped],
        s=7,
        edgecolors=list(colors[clipped]),
        facecolors="none",
        linewidth=0.6,
    )


def range_figure(cells: CellTable) -> plt.Figure:
    """Draws four panels about the range of the law.

    They show where the law ends, where clipping starts, how tight the Lipschitz bound is, and how
    the drift grows with the lag.
    """
    figure, axes = plt.subplots(2, 2, figsize=(8, 6.4), layout="constrained")
    for optimizer, color in zip(OPTIMIZER_LABELS, (BLUE, RED), strict=True):
        for schedule, symbol in zip(SCHEDULES, ("o", "^"), strict=True):
            exact = cells.where(optimizer=optimizer, schedule=schedule, gradient="exact")
            look = {
                "color": color,
                "marker": symbol,
                "markersize": 3,
                "linestyle": "",
                "markeredgewidth": 0,
            }
            look["label"] = f"{OPTIMIZER_LABELS[optimizer]}, {schedule} lag"
            past_the_end(axes[0, 0], exact, look)
            clip_onset(axes[0, 1], exact, look)
            tightness(axes[1, 0], exact, look)
    drift(axes[1, 1], cells.where(optimizer="sgd", schedule="constant"))
    to_first = r"$S\,\eta$ / $S\,\eta$ at the first clipped token"
    axes[0, 0].axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes[0, 0].axhline(1, color="black", linewidth=0.8)
    axes[0, 0].set(xscale="log", yscale="log", xlabel=to_first, ylabel=r"$\|$bias$\|$ / fitted law")
    axes[0, 0].set_title("The law ends where clipping starts")
    axes[0, 1].set(xscale="log", yscale="log", xlabel=LABELS["s_eta"], ylabel="clip fraction")
    axes[0, 1].set_title("Clipping, largest S")
    axes[0, 1].legend(loc="lower left")
    axes[1, 0].axhline(1, color="black", linewidth=0.8)
    axes[1, 0].axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes[1, 0].set(xscale="log", yscale="log", xlabel=to_first)
    axes[1, 0].set_ylabel(r"$\|$bias$\|$ / ($\sigma_{\max}(\partial_\phi H)$ displacement)")
    axes[1, 0].set_title("Lipschitz bound: holds below 1, largest S")
    axes[1, 1].set(xlabel="maximum lag $S$", ylabel=r"displacement / $\eta$, rms over draws")
    axes[1, 1].set_xscale("log", base=2)
    axes[1, 1].set_yscale("log")
    axes[1, 1].xaxis.set_major_formatter("{x:.0f}")
    axes[1, 1].set_title("SGD, constant lag: drift over the lag")
    axes[1, 1].legend(loc="upper left")
    return figure


def relative_to_clip(cells: CellTable) -> tuple[CellTable, np.ndarray]:
    """Returns cells, and their learning rates divided by the learning rate where clipping starts.

    Clipping starts at the lowest learning rate with clipped tokens, for each draw and lag. A draw
    and lag without clipped tokens is left out.
    """
    clipped = cells.keep(cells["clip_fraction"] > 0)
    onset: dict[tuple, float] = {}
    for draw, lag, rate in zip(
        clipped["draw"], clipped["max_lag"], clipped["learning_rate"], strict=True
    ):
        onset[draw, lag] = min(rate, onset.get((draw, lag), np.inf))
    draws_and_lags = list(zip(cells["draw"], cells["max_lag"], strict=True))
    kept = cells.keep(np.array([key in onset for key in draws_and_lags]))
    onset_of_kept = np.array([onset[key] for key in draws_and_lags if key in onset])
    return kept, kept["learning_rate"] / onset_of_kept


def past_the_end(axis: plt.Axes, cells: CellTable, look: dict) -> None:
    """Draws the bias divided by the law that was fitted to the clip-free cells."""
    law = fit(cells, "eta_rms_age")
    kept, x = relative_to_clip(cells.keep(cells["eta_rms_age"] > 0))
    axis.plot(x, kept["bias"] / law.predict(kept["eta_rms_age"], kept["draw"]), alpha=0.5, **look)


def clip_onset(axis: plt.Axes, cells: CellTable, look: dict) -> None:
    """Draws the clip fraction against S * eta, for every draw at the largest lag."""
    longest = cells.where(max_lag=cells["max_lag"].max())
    clipped = longest.keep(longest["clip_fraction"] > 0)
    axis.plot(clipped["s_eta"], clipped["clip_fraction"], alpha=0.6, **look)


def tightness(axis: plt.Axes, cells: CellTable, look: dict) -> None:
    """Draws the bias divided by its Lipschitz bound, for every draw at the largest lag."""
    longest = cells.where(max_lag=cells["max_lag"].max())
    kept, x = relative_to_clip(longest)
    bound = kept["smoothness"].astype(float) * kept["last_displacement"]
    axis.plot(x, kept["last_bias"] / bound, alpha=0.6, **look)


def drift(axis: plt.Axes, cells: CellTable) -> None:
    """Draws displacement / eta against S at the lowest learning rate, and the law of the drift."""
    for gradient, color in zip(GRADIENT_KINDS, (BLUE, GREEN), strict=True):
        chosen = cells.where(gradient=gradient)
        slowest = chosen.keep(chosen["learning_rate"] == chosen["learning_rate"].min())
        lags = np.unique(slowest["max_lag"])

        def by_lag(name: str, slowest: CellTable = slowest, lags: np.ndarray = lags) -> np.ndarray:
            """Returns the root mean square of a field over the draws, for each lag, [lags]."""
            return np.array(
                [np.sqrt(np.mean(slowest.where(max_lag=lag)[name] ** 2)) for lag in lags]
            )

        eta = slowest["learning_rate"][0]
        axis.plot(
            lags, by_lag("displacement") / eta, "o", color=color, label=f"{gradient} gradients"
        )
        law = np.sqrt(lags**2 * by_lag("surrogate_gradient") ** 2 + lags * by_lag("noise") ** 2)
        axis.plot(lags, law, color=color, linewidth=0.8)
    noise, signal = by_lag("noise"), by_lag("surrogate_gradient")
    axis.axvline(np.mean(noise**2) / np.mean(signal**2), color=GREEN, linestyle=":", label=r"$S^*$")
    axis.plot(
        [],
        [],
        color="gray",
        linewidth=0.8,
        label=r"$\sqrt{S^2 \|H\|^2 + S\,\mathrm{tr}\,\Sigma/B}$",
    )
