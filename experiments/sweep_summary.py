"""From the cells of a sweep to summary.json: what each map says, the maps side by side, and the claims.

What counts as holding is written here, beside the claim.
"""

import numpy as np
from ml_collections import ConfigDict

from experiments.sweep_grid import MAIN
from experiments.sweep_signs import BOTH_KINDS, EARLY
from experiments.sweep_statistics import STALE, best_rule, summarize_map

COMMAND = "python -m experiments.sweep --workdir=DIR"


def summarize(maps: dict[str, list[dict]], config: ConfigDict) -> dict:
    """The summary of the main map, with those of the others under `variants`, each beside the main one's same cells."""
    horizons = tuple(sorted(config.sweep.horizons))
    summary = summarize_map(maps[MAIN], horizons)
    summary["variants"] = {
        name: summarize_map(records, horizons) | side_by_side(records, maps[MAIN])
        for name, records in maps.items()
        if name != MAIN
    }
    return summary | {"claims": claims(summary) if "rules" in summary else []}


def side_by_side(records: list[dict], main: list[dict]) -> dict:
    """A map and the same cells of the main one: how many collapse, and when."""
    cells = {(r["max_lag"], r["learning_rate"], r["seed"]) for r in records}
    beside = [r for r in main if (r["max_lag"], r["learning_rate"], r["seed"]) in cells]

    def numbers(found):
        products = [r["collapse_step"] * r["learning_rate"] for r in found if r["collapse_step"] is not None]
        return {
            "n": len(found),
            "collapsed": len(products),
            "collapse_step_times_eta": np.mean(products) if products else None,
        }

    return {"variant": numbers(records), "main": numbers(beside)}


def claims(summary: dict) -> list[dict]:
    """The paper's claims beside what was measured, for the main map and for every other one that was fitted."""
    rows = map_claims(summary) + sign_claims(summary)
    for name, found in summary["variants"].items():
        if found["main"]["n"]:  # SGD has learning rates of its own
            pair = [found[kind]["collapsed"] for kind in ("main", "variant")]
            rows.append(
                (
                    f"{name}: at least as many of the same cells collapse as on the main map (main, {name})",
                    "",
                    pair, None, found["variant"]["n"], pair[1] >= pair[0],
                )
            )  # fmt: skip
        if "rules" in found:
            rows += [(f"{name}: {row[0]}", *row[1:]) for row in map_claims(found)]
    names = ("claim", "paper", "measured", "interval", "n", "holds")
    return [dict(zip(names, row, strict=True)) | {"command": COMMAND} for row in rows]


def map_claims(summary: dict) -> list[tuple]:
    """Rows on the boundary, the collapse time and the rule of one map."""
    horizon = str(max(summary["horizons"]))
    slope = summary["eta_max_slope"]
    product, time = summary["collapse_step_times_eta"], summary["collapse_time"]
    best = best_rule(summary["rules"])
    rule = summary["rules"][best]
    return [
        (
            f"slope of log eta_max against log S, S <= {STALE}, T = {horizon}",
            "-1: S eta_max constant (1.6e-6 there)",
            slope["falling"]["slope"], slope["falling"]["interval"], slope["falling"]["n"],
            slope["falling"]["interval"][0] <= -1 <= slope["falling"]["interval"][1],
        ),
        (
            f"slope of log eta_max against log S, S >= {STALE}, T = {horizon}",
            "0 where the horizon binds",
            slope["flat"]["slope"], slope["flat"]["interval"], slope["flat"]["n"],
            slope["flat"]["interval"][0] <= 0 <= slope["flat"]["interval"][1],
        ),
        (
            f"collapse_step * eta is the same for all S >= {STALE}: coefficient of variation of runs <= 0.25",
            "t_collapse eta about 3.2e-5 for S in {8, 16, 32}",
            product["cv_of_runs"], product["cv_interval"], product["n"], product["cv_of_runs"] <= 0.25,
        ),
        (
            f"exponent of eta in the collapse time, S >= {STALE}, censored runs counted",
            "-1",
            time["eta_exponent"], time["eta_exponent_interval"], time["n"],
            time["eta_exponent_interval"][0] <= -1 <= time["eta_exponent_interval"][1],
        ),
        (
            f"exponent of S in the collapse time, S >= {STALE}",
            "0",
            time["s_exponent"], time["s_exponent_interval"], time["n"],
            time["s_exponent_interval"][0] <= 0 <= time["s_exponent_interval"][1],
        ),
        (
            f"the smaller of the two bounds describes the boundary best (here: {best})",
            "eta << min{R_batch / (S G), R_crit / (T G)}",
            summary["rules"]["min"]["held_out_log_likelihood"] - rule["held_out_log_likelihood"],
            None, rule["n"], best == "min",
        ),
        (
            f"the fitted boundary ({best}) classifies other seeds, T = {horizon}: balanced accuracy >= 0.9 (without "
            f"S = 0: {rule['held_out_balanced_accuracy_stale']:.3f})",
            "",
            rule["held_out_balanced_accuracy"], None, summary["num_cells"], rule["held_out_balanced_accuracy"] >= 0.9,
        ),
    ]  # fmt: skip


def sign_claims(summary: dict) -> list[tuple]:
    """Rows on what foretells a collapse on the main map."""
    areas, n = summary["cosine"]["roc_area"], summary["cosine"]["n"]
    rows = [
        (
            f"the cosine of the first {EARLY} steps' gradients{over} tells collapsing from stable runs: "
            f"ROC area >= 0.8, S >= {BOTH_KINDS}",
            "over 0.5 before a collapse, near 0 when stable",
            areas[name], None, n, areas[name] >= 0.8,
        )
        for name, over in (("early", ""), ("relative_early", ", over the ceiling of batch noise,"))
    ]  # fmt: skip
    for sign, found in summary["alarms"].items():
        lead = "none" if found["median_lead"] is None else f"{found['median_lead']:g} steps"
        rows.append(
            (
                f"an alarm on {sign} foretells 80 % of the collapses (lead: {lead}; false alarms "
                f"{found['false_alarms']:.2f})",
                "" if sign != "gradient_cosine" else "precedes collapse",
                found["found"], None, found["n"], found["found"] >= 0.8,
            )
        )  # fmt: skip
    return rows
