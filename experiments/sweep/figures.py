"""Draws the figures of the scaling laws from cells.jsonl and summary.json.

If a field that a figure needs is missing in these files, drawing raises KeyError.
"""

import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from experiments.common.workdir import SUMMARY
from experiments.paired_bias import figures as paired_figures
from experiments.sweep.analysis import figure_prefix, figures_left_out, paired_cells
from experiments.sweep.grid import MAIN, cells_file
from experiments.sweep.laws import LONG_LAG, best_rule, collapsed
from experiments.sweep.map_figure import map_figure
from experiments.sweep.usable_figure import LAG_0_AT, usable_figure
from staleness_grpo.runtime.records import read_json, read_jsonl
from staleness_grpo.scaling import alarms, stability
from staleness_grpo.scaling.outcomes import reward_trace

LAG_COLORS = plt.get_cmap("viridis")
STABLE_COLOR, COLLAPSED_COLOR = style.COLORS[:2]


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the figures of every map into the folder of a finished sweep.

    The files of the main map are named `scaling_FIGURE`, and those of the other maps
    `scaling_MAP_FIGURE`. A figure is left out if the records do not have enough data for it. The
    field `figures_left_out` of summary.json lists these figures.

    Returns:
      The paths of the PNGs.
    """
    summary = read_json(workdir / SUMMARY)
    paths = []
    with style.context():
        for name, laws in {MAIN: summary, **summary["variants"]}.items():
            records = read_jsonl(workdir / cells_file(name))
            left_out = figures_left_out(records, laws)
            compared = {"paired_bias": paired_bias_figure} if paired_cells(records) else {}
            for figure, draw_figure in (FIGURES | compared).items():
                if figure not in left_out:
                    path = workdir / f"{figure_prefix(name)}_{figure}"
                    paths.append(style.save(draw_figure(records, laws), path))
    return paths


def lag_color(records: list[dict], lag: int) -> Any:
    """Returns the color of a lag S, which is the same in every figure of one map."""
    lags = sorted({record["max_lag"] for record in records})
    return LAG_COLORS(0.95 * lags.index(lag) / max(len(lags) - 1, 1))


def steps_of(record: dict) -> np.ndarray:
    """Returns the learner step of each entry of a record's traces."""
    return record["trace_every"] * np.arange(len(record["traces"]["eval_reward"]))


def reward_figure(records: list[dict], summary: dict) -> plt.Figure:
    """Draws the reward against the learner step, in one panel for each of two learning rates.

    A thin line is one seed. A thick line is the mean over the seeds of one S.
    """
    rates = sorted({record["learning_rate"] for record in records})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    shown = rates if len(rates) == 2 else (rates[len(rates) // 2 - 1], rates[-2])
    for axis, rate in zip(axes, shown, strict=True):
        for lag in sorted({record["max_lag"] for record in records}):
            chosen = [r for r in records if r["max_lag"] == lag and r["learning_rate"] == rate]
            longest = max(len(reward_trace(r)) for r in chosen)
            # A frozen run ended early, after its reward stayed low. Its last reward is repeated.
            padded = [
                np.pad(reward_trace(r), (0, longest - len(reward_trace(r))), mode="edge")
                for r in chosen
            ]
            steps = chosen[0]["trace_every"] * np.arange(longest)
            color = lag_color(records, lag)
            for values in padded:
                axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.6)
            axis.plot(steps, np.mean(padded, axis=0), color=color, label=f"S = {lag}")
        axis.set(xlabel="learner step", title=rf"$\eta$ = {rate:g}")
    axes[0].set_ylabel("reward of the current policy")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def collapse_time_figure(records: list[dict], summary: dict) -> plt.Figure:
    """Draws collapse_step * eta against S, and collapse_step against eta.

    The points of runs whose reward stayed low after the collapse are filled. Runs without a
    collapse are not drawn.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    collapsed_runs = collapsed(records)
    jitter = np.random.default_rng(0).uniform(0.93, 1.07, len(collapsed_runs))
    for record, shift in zip(collapsed_runs, jitter, strict=True):
        product = record["collapse_step"] * record["learning_rate"]
        color = lag_color(records, record["max_lag"])
        face_color = color if record["stayed_down"] else "none"
        point = dict(color=color, markerfacecolor=face_color)
        left.plot(max(record["max_lag"], LAG_0_AT) * shift, product, "o", **point)
        right.plot(record["learning_rate"] * shift, record["collapse_step"], "o", **point)
    product = summary["collapse_step_times_eta"]
    for lag, at_lag in product["by_lag"].items():
        x = max(float(lag), LAG_0_AT)
        left.errorbar(x, at_lag["mean"], at_lag["std"], color="black", marker="_", capsize=3)
    left.set(
        xscale="log",
        xlabel=f"max_lag S (0 at {LAG_0_AT})",
        ylabel=r"collapse_step $\cdot\ \eta$",
        ylim=(0, None),
    )
    lags = sorted({record["max_lag"] for record in records})
    left.set_xticks([max(lag, LAG_0_AT) for lag in lags], [f"{lag:g}" for lag in lags])
    left.minorticks_off()
    spread = f"mean {product['mean']:.3g}, CV of runs {product['cv_of_runs']:.2f}"
    left.set_title(f"S >= {LONG_LAG}: {spread}")
    rates = np.array(sorted({record["learning_rate"] for record in records}))
    right.plot(
        rates,
        product["mean"] / rates,
        "--",
        color="black",
        label=rf"{product['mean']:.3g} / $\eta$",
    )
    right.axhline(
        records[0]["steps"], color="gray", linewidth=0.8, label="T: no collapse is seen beyond"
    )
    right.set(xscale="log", yscale="log", xlabel=r"learning rate $\eta$", ylabel="collapse_step")
    right.set_title("filled: stayed down")
    right.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45)
    right.minorticks_off()
    right.legend()
    return figure


def eta_max_figure(records: list[dict], summary: dict) -> plt.Figure:
    """Draws eta_max against S at several horizons.

    Points are measured values, and solid lines are the fitted rule. The dotted line is the paper's
    rule with the measured constants.
    """
    figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    rates = sorted({record["learning_rate"] for record in records})
    best = best_rule(summary["rules"])
    parameters = summary["rules"][best]["parameters"]
    for color, (horizon, laws) in zip(style.COLORS, summary["by_horizon"].items(), strict=False):
        by_lag = laws["eta_max"]
        lags = np.array([float(lag) for lag in by_lag])
        is_known = np.array([value is not None for value in by_lag.values()])
        values = np.array([value for value in by_lag.values() if value is not None])
        axis.plot(lags[is_known], values, "o", color=color, label=f"T = {horizon}")
        axis.plot(
            lags[~is_known],
            np.full((~is_known).sum(), 1.15 * rates[-1]),
            "^",
            color=color,
            markerfacecolor="none",
        )
        boundary = stability.log_eta_max(best, parameters, lags, float(horizon))
        axis.plot(lags, np.exp(boundary), "-", color=color, linewidth=1)
    if "predicted_eta_max" in summary:
        by_lag = summary["predicted_eta_max"]["by_lag"]
        axis.plot(
            [float(lag) for lag in by_lag],
            list(by_lag.values()),
            ":",
            color="black",
            label=r"paper's rule, measured $R$ and $G$",
        )
    axis.set(xscale="log", yscale="log", xlabel="max_lag S", ylabel=r"$\eta_{\max}$")
    axis.set_title(f"lines: fitted rule ({best}); open triangles: above the grid")
    axis.legend()
    return figure


def cosine_figure(records: list[dict], summary: dict) -> plt.Figure:
    """Draws the cosine of consecutive gradients as a sign of a collapse.

    - Left: the cosine against S.
    - Middle: the cosine divided by the ceiling that batch noise sets.
    - Right: ROC curves for telling collapsing runs from stable runs by the cosine.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for axis, cosine_of, label in (
        (left, alarms.mean_cosine, "cosine of consecutive gradients"),
        (middle, alarms.relative_cosine, "cosine / ceiling of batch noise"),
    ):
        for label_of_runs, is_collapsed, color, shift in (
            ("stable", False, STABLE_COLOR, 0.94),
            ("collapsing", True, COLLAPSED_COLOR, 1.06),
        ):
            chosen = [r for r in records if (r["collapse_step"] is not None) == is_collapsed]
            lags = [max(r["max_lag"], LAG_0_AT) * shift for r in chosen]
            cosines = [cosine_of(r) for r in chosen]
            axis.plot(lags, cosines, "o", color=color, alpha=0.5, label=label_of_runs)
        axis.set(xscale="log", xlabel=f"max_lag S (0 at {LAG_0_AT})", ylabel=label)
    left.legend()
    # Batch noise can bring the estimate of a small ceiling close to 0. The ratio is then far too
    # large, with any sign, so the axis is limited.
    ratios = [alarms.relative_cosine(r) for r in records]
    outside = sum(not -1 <= ratio <= 3 for ratio in ratios)
    middle.set(ylim=(-1, 3), title=f"{outside} of {len(ratios)} runs outside the axis")
    compared = [r for r in records if r["max_lag"] >= alarms.MIN_LAG_WITH_BOTH_OUTCOMES]
    is_collapsed_run = np.array([r["collapse_step"] is not None for r in compared])
    for name, cosine_of, steps in (
        ("whole", alarms.mean_cosine, None),
        ("early", alarms.mean_cosine, alarms.EARLY_STEPS),
        ("relative_whole", alarms.relative_cosine, None),
        ("relative_early", alarms.relative_cosine, alarms.EARLY_STEPS),
    ):
        values = np.array([cosine_of(r, steps) for r in compared])
        thresholds = np.sort(values)[::-1]
        hits = [np.mean(values[is_collapsed_run] >= threshold) for threshold in thresholds]
        false_alarms = [np.mean(values[~is_collapsed_run] >= threshold) for threshold in thresholds]
        area = summary["cosine"]["roc_area"][name]
        label = f"{name.replace('_', ', ')}: area {area:.2f}"
        right.plot([0, *false_alarms], [0, *hits], label=label)
    right.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    right.set(
        xlabel="stable runs called collapsing",
        ylabel="collapsing runs found",
        title=f"S >= {compared[0]['max_lag']}",
    )
    right.legend()
    return figure


def anatomy_figure(records: list[dict], summary: dict) -> plt.Figure:
    """Draws one collapsed run, and a stable run with the same S and seed if there is one.

    The panels show the reward, the clip fraction, the tail of the ratio, the entropy, the drift
    and the gradient cosine.
    """
    stayed_down = [r for r in records if r["stayed_down"]]
    late = [r for r in stayed_down if r["collapse_step"] >= 60]
    chosen = min(late or stayed_down, key=lambda r: (-r["max_lag"], -r["collapse_step"]))
    stable = [
        record
        for record in records
        if record["max_lag"] == chosen["max_lag"]
        and record["seed"] == chosen["seed"]
        and record["collapse_step"] is None
    ]
    panels = (
        ("eval_reward", "reward"),
        ("clip_fraction", "clip fraction"),
        ("log_ratio_second_moment", r"mean of $(\log r)^2$"),
        ("entropy", "entropy (nats)"),
        ("drift_from_behavior", "drift from behavior"),
        ("gradient_cosine", "gradient cosine"),
    )
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), sharex=True, layout="constrained")
    for axis, (name, label) in zip(axes.flat, panels, strict=True):
        for record, color in [(r, STABLE_COLOR) for r in stable[:1]] + [(chosen, COLLAPSED_COLOR)]:
            axis.plot(
                steps_of(record),
                record["traces"][name],
                color=color,
                label=rf"$\eta$ = {record['learning_rate']:g}",
            )
        axis.axvline(chosen["collapse_step"], color="gray", linewidth=0.8)
        axis.set_title(label)
    axes[0, 2].set_yscale("log")
    for axis in axes[1]:
        axis.set_xlabel("learner step")
    axes[0, 0].legend()
    figure.suptitle(
        f"S = {chosen['max_lag']}: a collapse at step {chosen['collapse_step']}, and a stable run",
        fontsize=9,
    )
    return figure


def paired_bias_figure(records: list[dict], summary: dict) -> plt.Figure:
    """Draws the bias of stale gradients against fresh ones, from the same records."""
    return paired_figures.paired_figure(paired_cells(records))


FIGURES = {
    "reward": reward_figure,
    "map": map_figure,
    "usable": usable_figure,
    "collapse_time": collapse_time_figure,
    "eta_max": eta_max_figure,
    "cosine": cosine_figure,
    "anatomy": anatomy_figure,
}
