"""Draws the figures of the study from its summary."""

import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from staleness_grpo.runtime.records import read_json

LABELS = {
    "transfer": "constants of the reference",
    "probe": "short runs of one seed",
    "synchronous": "synchronous rate",
    "inverse_lag": "synchronous rate / S",
}


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws all figures of a finished workdir; returns the paths of the PNGs."""
    summary = read_json(workdir / "summary.json")
    with style.context():
        figures = {
            "law_rule": rule_figure(summary),
            "law_momentum": momentum_figure(summary),
            "law_heldout": heldout_figure(summary["heldout"]),
            "law_interventions": interventions_figure(summary["interventions"]),
        }
        return [style.save(figure, workdir / name) for name, figure in figures.items()]


def rule_figure(summary: dict[str, Any]) -> plt.Figure:
    """Draws measured boundaries of each momentum, and the law that is fitted to its collapse times.

    The right panel has the same boundaries in units of the law: the lag over the memory of the
    momentum, and eta_max over that of an endless lag.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    settings = [summary["settings"][name] for name in summary["prior"]["settings"]]
    settings.sort(key=lambda setting: setting["b1"])
    lags = np.geomspace(0.5, 128, 100)
    slopes = []
    for i, setting in enumerate(settings):
        shade = plt.get_cmap("viridis")(i / max(len(settings) - 1, 1))
        t_inf, b, s0, cap = (setting[key]["median"] for key in ("t_inf", "b", "s0", "cap"))
        endless = setting["eta_ref"] * (t_inf / setting["steps"]) ** (1 / b)
        curve = np.minimum(endless * (1 + s0 / lags) ** (1 / b), cap)
        left.plot(lags, curve, color=shade, label=f"{setting['b1']:g}")
        measured = {
            float(lag): rate
            for lag, rate in setting["eta_max"].items()
            if rate is not None and float(lag) > 0
        }
        there, rates = np.array(list(measured)), np.array(list(measured.values()))
        left.plot(there, rates, "o", color=shade)
        right.plot(there * (1 - setting["b1"]), rates / endless, "o", color=shade)
        slopes.append(b)
    shares = np.geomspace(0.005, 100, 100)
    right.plot(shares, (1 + 1 / shares) ** (1 / np.mean(slopes)), "--", color="grey")
    steps = settings[0]["steps"]
    left.set(xscale="log", yscale="log", xlabel="lag S", ylabel=f"eta_max, {steps} steps")
    left.legend(title="b1", ncols=2)
    label = "(1 + 1/x)^(1/b)"
    right.set(xscale="log", yscale="log", xlabel="x = S (1 - b1)", ylabel="eta_max over its limit")
    right.set_title(f"dashed: {label}, no cap")
    return figure


def momentum_figure(summary: dict[str, Any]) -> plt.Figure:
    """Draws S0 against the memory of the momentum, and the best final reward by S."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    names = summary["prior"]["settings"]
    settings = [summary["settings"][name] for name in names]
    memory = np.array([1 / (1 - setting["b1"]) for setting in settings])
    order = np.argsort(memory)
    s0 = np.array([[s["s0"][key] for key in ("median", "low", "high")] for s in settings])
    median, low, high = s0[order].T
    left.errorbar(memory[order], median, [median - low, high - median], fmt="o", capsize=2)
    line = np.exp(np.mean(np.log(median) - np.log(memory[order])))
    left.plot(memory[order], line * memory[order], "--", color="grey", label="slope 1")
    left.set(xscale="log", yscale="log", xlabel="1 / (1 - b1), learner steps", ylabel="S0")
    left.set_title(f"slope {summary['momentum']['slope']:.2f}")
    left.legend()
    for i, row in enumerate(order):
        rewards = summary["rewards"][names[row]]
        lags = sorted(int(lag) for lag in rewards)
        shade = plt.get_cmap("viridis")(i / max(len(order) - 1, 1))
        values = [rewards[str(lag)]["best_final"] for lag in lags]
        label = f"{settings[row]['b1']:g}"
        right.plot([max(lag, 0.5) for lag in lags], values, "o-", color=shade, label=label)
    right.set(xscale="log", xlabel="lag S (0 is drawn at 0.5)", ylabel="final reward, best rate")
    right.legend(title="b1", ncols=2)
    return figure


def heldout_figure(heldout: dict[str, Any]) -> plt.Figure:
    """Draws predicted over measured eta_max, for each held-out setting and prediction."""
    rows = [row for row in heldout["rows"] if row["measured"] is not None]
    names = list(dict.fromkeys(row["setting"] for row in rows))
    figure, axes = plt.subplots(
        1, len(LABELS), figsize=(10, 0.28 * len(names) + 1.6), layout="constrained", sharey=True
    )
    lags = sorted({row["max_lag"] for row in rows})
    shades = dict(zip(lags, plt.get_cmap("viridis")(np.linspace(0, 0.95, len(lags))), strict=True))
    ratios = [row[kind] / row["measured"] for row in rows for kind in LABELS]
    limits = (min(ratios) / 1.5, max(ratios) * 1.5)
    for axis, (kind, label) in zip(axes, LABELS.items(), strict=True):
        for row in rows:
            place = len(names) - 1 - names.index(row["setting"])
            axis.plot(row[kind] / row["measured"], place, "o", color=shades[row["max_lag"]])
        axis.axvspan(1 / 1.5, 1.5, color="0.92", zorder=0)
        axis.axvline(1, color="0.6", linewidth=0.8)
        axis.set(xscale="log", title=label, xlabel="predicted / measured", xlim=limits)
        axis.set_yticks(range(len(names)), names[::-1])
    for lag in lags:
        axes[-1].plot([], [], "o", color=shades[lag], label=f"S = {lag}")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def interventions_figure(interventions: dict[str, Any]) -> plt.Figure:
    """Draws by which factor each intervention moves eta_max at one lag."""
    by_name = interventions["by_name"]
    figure, axis = plt.subplots(figsize=(5.6, 0.3 * len(by_name) + 1.2), layout="constrained")
    for place, found in enumerate(reversed(by_name.values())):
        axis.plot([found["low"], found["high"]], [place, place], color=style.COLORS[0])
        axis.plot(found["ratio"], place, "o", color=style.COLORS[0])
    axis.axvline(1, color="0.6", linewidth=0.8)
    axis.set_yticks(range(len(by_name)), list(by_name)[::-1])
    axis.set(xscale="log", xlabel=f"eta_max over that of the reference, S = {interventions['lag']}")
    return figure
