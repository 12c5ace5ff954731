"""Computes summary.json from the cells of a sweep.

The summary has the laws of each map, and compares the other maps with the main map.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.paired_bias import analysis as paired_analysis
from experiments.sweep import laws
from experiments.sweep.grid import MAIN
from staleness_grpo.scaling import alarms, edges, outcomes, stability

MIN_LAGS = 5  # the fewest different S >= 1 to which the laws can be fitted
FIGURES_WITH_FITS = ("collapse_time", "eta_max", "cosine", "anatomy")  # they need a fitted map


def summarize(maps: dict[str, list[dict]], config: ConfigDict) -> dict[str, Any]:
    """Returns the contents of summary.json without the claims.

    The top level is the summary of the main map. The field `variants` has the summaries of the
    other maps, each compared with the cells of the main map that have the same settings, if any.

    Args:
      maps: the records of each map, by name.
      config: the sweep's config.
    """
    horizons = tuple(sorted(config.sweep.horizons))
    summary = summarize_map(maps[MAIN], horizons)
    summary["variants"] = {
        name: summarize_map(records, horizons) | side_by_side(records, maps[MAIN])
        for name, records in maps.items()
        if name != MAIN
    }
    by_name = summary["variants"] | {MAIN: summary}
    summary["figures_left_out"] = [
        f"{figure_prefix(name)}_{figure}: {reason}"
        for name, records in maps.items()
        for figure, reason in figures_left_out(records, by_name[name]).items()
    ]
    return summary


def summarize_map(records: list[dict], horizons: tuple[int, ...]) -> dict[str, Any]:
    """Returns the counts and the laws of one map.

    If the rules cannot be fitted to the cells (`can_be_fitted`), the summary has only what needs no
    rule (`laws_without_rules`).

    Args:
      records: the records of the map's cells.
      horizons: the numbers of learner steps at which the boundary is fitted.
    """
    summary: dict[str, Any] = {
        "num_cells": len(records),
        "num_seeds": laws.num_seeds(records),
        # Cells that fall, whether they end collapsed or recover. Laws and fits count these.
        "num_collapsed": sum(record["collapse_step"] is not None for record in records),
        "outcomes": outcomes.count(records),
        "usable": edges.summarize(records, laws.RESAMPLES),
        "num_reward_errors": sum(record.get("reward_errors", 0) for record in records),
        "horizons": horizons,
    }
    if compared := paired_cells(records):
        summary["paired_bias"] = paired_analysis.summarize(compared)
    all_cells = stability.at_horizons(records, horizons)
    cells = all_cells[all_cells.max_lag >= 1]
    last = cells[cells.horizon == max(horizons)]
    if not can_be_fitted(last):
        return summary | laws_without_rules(records, last)
    by_horizon = {
        horizon: {
            "eta_max": laws.eta_max(cells[cells.horizon == horizon]),
            "eta_max_slope": laws.slopes(cells[cells.horizon == horizon]),
        }
        for horizon in horizons
    }
    summary |= {
        **by_horizon[max(horizons)],
        "by_horizon": {str(horizon): law for horizon, law in by_horizon.items()},
        "collapse_time": laws.collapse_time(records),
        "collapse_step_times_eta": laws.collapse_step_times_eta(records),
        "rules": laws.rules(all_cells),
        "alarms": {
            sign: alarm
            for sign in alarms.measured_signs(records)
            if (alarm := alarms.alarm(records, sign)) is not None
        },
    }
    summary["scale_free_ratio"] = laws.scale_free_ratio(summary)
    cosine = alarms.cosine(records) if has_trace(records, "gradient_cosine_ceiling") else None
    if cosine is not None:
        summary["cosine"] = cosine
    if has_trace(records, "drift_from_behavior"):
        summary |= laws.constants(records)
        if all(name in summary for name in laws.CONSTANTS):
            summary["predicted_eta_max"] = laws.predicted_eta_max(summary, cells)
    return summary


def laws_without_rules(records: list[dict], cells: stability.Cells) -> dict[str, Any]:
    """Returns the laws of a map with too few lags for a rule of the boundary, as the paper's has.

    A law is left out if the cells say nothing about it.

    Args:
      records: the records of the map's cells.
      cells: the cells with S >= 1 at the last horizon.

    Returns:
      `eta_max`: the boundary of each S, if a cell collapsed.
      `collapse_step_times_eta`, `collapse_time`: see `laws`. They need collapses at
        S >= laws.LONG_LAG, and the exponents two such S and two learning rates.
      `scale_free_ratio`, and the constants of `laws.constants` that were measured.
    """
    found: dict[str, Any] = {}
    if not cells.collapsed.any():
        return found
    found["eta_max"] = laws.eta_max(cells)
    stale = [record for record in records if record["max_lag"] >= laws.LONG_LAG]
    if len(laws.collapsed(stale)) >= laws.MIN_COLLAPSES:
        found["collapse_step_times_eta"] = laws.collapse_step_times_eta(records)
        found["scale_free_ratio"] = laws.scale_free_ratio(found)
        if all(len({r[name] for r in stale}) > 1 for name in ("max_lag", "learning_rate")):
            found["collapse_time"] = laws.collapse_time(records)
    if has_trace(records, "drift_from_behavior"):
        found |= laws.constants(records)
    return found


def has_trace(records: list[dict], name: str) -> bool:
    """Says whether all cells have measured a trace."""
    return all(name in record["traces"] for record in records)


def paired_cells(records: list[dict]) -> list[dict]:
    """Returns the comparisons of stale with fresh gradients, as records of `paired_bias`.

    Cells without a comparison at their full lag are left out. The list is empty if there is none.
    """
    return [
        {
            "max_lag": record["max_lag"],
            "learning_rate": record["learning_rate"],
            "seed": record["seed"],
            **record["paired"],
            "collapsed": not record["finite"],
            "final_eval_reward": record["final"],
            "eval_steps": list(range(0, record["steps_run"], record["trace_every"])),
            "eval_rewards": record["traces"]["eval_reward"],
        }
        for record in records
        if record.get("paired", {}).get("num_comparisons")
    ]


def side_by_side(records: list[dict], main: list[dict]) -> dict[str, dict]:
    """Compares a map with the same cells of the main map.

    Two cells are the same if they have the same S, learning rate and seed. A map with other
    learning rates has none in common with the main map.

    Args:
      records: the records of the map.
      main: the records of the main map.

    Returns:
      The number of cells, the number that collapse, and the mean of collapse step times eta: under
      'variant' and under 'main'.
    """
    cells = {(r["max_lag"], r["learning_rate"], r["seed"]) for r in records}
    same_cells = [r for r in main if (r["max_lag"], r["learning_rate"], r["seed"]) in cells]

    def collapses(chosen: list[dict]) -> dict[str, Any]:
        products = [r["collapse_step"] * r["learning_rate"] for r in laws.collapsed(chosen)]
        return {
            "n": len(chosen),
            "collapsed": len(products),
            "collapse_step_times_eta": np.mean(products) if products else None,
        }

    return {"variant": collapses(records), "main": collapses(same_cells)}


def can_be_fitted(cells: stability.Cells) -> bool:
    """Says whether the laws can be fitted to the cells.

    Each half of the seeds needs stable cells and collapsing cells. The cells need at least MIN_LAGS
    different lags. Two of them must be at most `laws.LONG_LAG`, and one must be above it.
    """
    half = laws.seed_halves(cells.seed)
    fractions = [cells.collapsed[half == i].mean() for i in (0, 1) if (half == i).any()]
    lags = np.unique(cells.max_lag)
    both_outcomes = len(fractions) == 2 and all(0 < fraction < 1 for fraction in fractions)
    return bool(both_outcomes and len(lags) >= MIN_LAGS and lags[1] <= laws.LONG_LAG < lags[-1])


def is_fitted(summary: dict[str, Any]) -> bool:
    """Says whether the summary of a map has fitted rules, and so all laws."""
    return "rules" in summary


def figure_prefix(name: str) -> str:
    """Returns the beginning of the file names of a map's figures."""
    return "scaling" if name == MAIN else f"scaling_{name}"


def figures_left_out(records: list[dict], summary: dict[str, Any]) -> dict[str, str]:
    """Returns the figures that cannot be drawn for a map: name -> reason, as a sentence.

    The comparison of gradients is a figure only of maps that ask for it.

    Args:
      records: the records of the map.
      summary: the summary of the map.
    """
    reasons = {}
    if any("paired" in record for record in records) and not paired_cells(records):
        reasons["paired_bias"] = "No cell has a comparison of gradients at its full lag."
    if len({record["learning_rate"] for record in records}) < 2:
        reasons["reward"] = "It compares two learning rates, and the map has one."
    if not is_fitted(summary):
        requirement = (
            f"No boundary can be fitted. Each half of the seeds needs stable and collapsing cells, "
            f"at {MIN_LAGS} lags or more: two or more up to S = {laws.LONG_LAG}, one or more above."
        )
        reasons |= dict.fromkeys(FIGURES_WITH_FITS, requirement)
        if "collapse_step_times_eta" in summary:
            del reasons["collapse_time"]
    else:
        if not has_trace(records, "gradient_cosine_ceiling"):
            reasons["cosine"] = "The ceiling of the gradient cosine was not measured."
        if not has_trace(records, "drift_from_behavior"):
            reasons["anatomy"] = "The drift of the parameters was not measured."
        elif not any(record["stayed_down"] for record in records):
            reasons["anatomy"] = "No run stayed down after its collapse."
    return reasons
