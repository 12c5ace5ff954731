"""Makes the claims of a sweep, which compare statements of the paper with the measured map.

Each claim is defined together with the condition under which it holds. If the paper gives no bound
for this condition, the bound is this project's own, and the note of the claim says so.
"""

from collections.abc import Callable
from typing import Any

from experiments.common.claims import Claim
from experiments.paired_bias.claims import bias_claims
from experiments.sweep.analysis import is_fitted
from experiments.sweep.laws import LONG_LAG, best_rule
from staleness_grpo.scaling.alarms import EARLY_STEPS, MIN_LAG_WITH_BOTH_OUTCOMES

COMMAND = "python -m experiments.sweep --workdir=DIR"
MAX_VARIATION = 0.25  # largest coefficient of variation of a product that is called constant
MIN_ROC_AREA = 0.8  # smallest area for a sign that tells collapsing runs from stable runs
MIN_FORETOLD = 0.8  # smallest share of the collapses that an alarm must foretell
OWN_BOUND = "The bound is this project's."


def claims(summary: dict[str, Any]) -> list[Claim]:
    """Returns the claims about all maps that were fitted.

    If the main map was not fitted, there are only those that need no fit.

    Args:
      summary: the result of `analysis.summarize`.
    """
    all_claims = edge_claims(summary)
    if not is_fitted(summary):
        if summary.get("scale_free_ratio") is not None:
            all_claims.append(_scale_free(summary, _claim_maker()))
        return all_claims
    all_claims = map_claims(summary) + sign_claims(summary) + all_claims
    for name, variant in summary["variants"].items():
        # A variant with other learning rates, such as SGD, shares no cells with the main map.
        if variant["main"]["n"]:
            all_claims.append(_same_cells(name, variant))
        if is_fitted(variant):
            all_claims += map_claims(variant, name)
    return all_claims


def map_claims(summary: dict[str, Any], variant: str = "") -> list[Claim]:
    """Returns the claims about the boundary, the collapse time and the rule of one map.

    Args:
      summary: the summary of the map.
      variant: the name of a variant, which each claim's name and sentence start with; empty for the
        main map.
    """
    claim = _claim_maker(variant)
    steps = f"T = {max(summary['horizons'])} learner steps"
    falling, flat = (summary["eta_max_slope"][name] for name in ("falling", "flat"))
    product, time = summary["collapse_step_times_eta"], summary["collapse_time"]
    best = best_rule(summary["rules"])
    rule = summary["rules"][best]
    distance = summary["rules"]["min"]["held_out_log_likelihood"] - rule["held_out_log_likelihood"]
    cells_note = (
        f"{time['n']} cells, of which {time['n_censored']} did not collapse and are censored."
    )
    return [
        claim(
            "eta_max_slope_falling",
            f"log eta_max falls with slope -1 in log S for S <= {LONG_LAG} ({steps}).",
            falling["slope"],
            falling["interval"],
            falling["num_seeds"],
            holds=_contains(falling["interval"], -1),
            paper="S eta_max is constant where the stale-rollout constraint is active (1.6e-6).",
            note=f"{falling['n']} cells.",
        ),
        claim(
            "eta_max_slope_flat",
            f"log eta_max has slope 0 in log S for S >= {LONG_LAG} ({steps}).",
            flat["slope"],
            flat["interval"],
            flat["num_seeds"],
            holds=_contains(flat["interval"], 0),
            paper="eta_max appears weakly dependent on S in the horizon-limited regime.",
            note=f"{flat['n']} cells.",
        ),
        claim(
            "collapse_step_times_eta",
            f"collapse_step * eta is the same for all S >= {LONG_LAG}: the coefficient of "
            f"variation of runs is at most {MAX_VARIATION}.",
            product["cv_of_runs"],
            product["cv_interval"],
            product["num_seeds"],
            holds=bool(product["cv_of_runs"] <= MAX_VARIATION),
            paper="t_collapse eta is about 3.2e-5 for S in {8, 16, 32}.",
            note=f"{product['n']} cells that collapsed. {OWN_BOUND}",
        ),
        claim(
            "collapse_time_eta_exponent",
            f"The collapse time is proportional to eta^-1 for S >= {LONG_LAG}.",
            time["eta_exponent"],
            time["eta_exponent_interval"],
            time["num_seeds"],
            holds=_contains(time["eta_exponent_interval"], -1),
            paper="Collapse is governed primarily by cumulative drift T eta.",
            note=cells_note,
        ),
        claim(
            "collapse_time_s_exponent",
            f"The collapse time does not depend on S for S >= {LONG_LAG}: its exponent is 0.",
            time["s_exponent"],
            time["s_exponent_interval"],
            time["num_seeds"],
            holds=_contains(time["s_exponent_interval"], 0),
            paper="t_collapse eta is independent of S in {8, 16, 32}.",
            note=cells_note,
        ),
        claim(
            "smaller_bound_is_best",
            "The smaller of the two bounds describes the boundary best.",
            distance,
            None,
            summary["num_seeds"],
            holds=best == "min",
            paper="eta << min{R_batch / (S G_upd), R_crit / (T G_upd)}",
            note=f"The best rule is {best}. Measured is the held-out log-likelihood of the smaller "
            f"bound minus that of the best, over {rule['n']} pairs of cell and horizon.",
        ),
        *([] if summary.get("scale_free_ratio") is None else [_scale_free(summary, claim)]),
        claim(
            "boundary_classifies_other_seeds",
            f"The fitted boundary ({best}) classifies seeds that it was not fitted to with this "
            f"balanced accuracy ({steps}).",
            rule["held_out_balanced_accuracy"],
            None,
            summary["num_seeds"],
            holds=None,
            note=f"{summary['num_cells']} cells. Without S = 0 it is "
            f"{rule['held_out_balanced_accuracy_stale']:.3f}.",
        ),
    ]


def _claim_maker(variant: str = "") -> Callable[..., Claim]:
    """Returns the function that makes the claims of one map; arguments as in `map_claims`."""
    prefix, title = (f"{variant}_", f"{variant}: ") if variant else ("", "")

    def claim(
        name: str, sentence: str, measured: Any, interval: Any, n: int, **fields: Any
    ) -> Claim:
        return Claim(
            name=prefix + name,
            claim=title + sentence,
            measured=measured,
            interval=interval,
            n=n,
            unit="seeds",
            command=COMMAND,
            **fields,
        )

    return claim


def _scale_free(summary: dict[str, Any], claim: Callable[..., Claim]) -> Claim:
    """Returns the finding that compares a map with the paper without any unit."""
    note = (
        f"The mean of collapse_step * eta for S >= {LONG_LAG}, over the median of S * eta_max for "
        f"S from 1 to {LONG_LAG}. The paper's numbers give 3.2e-5 / 1.6e-6 = 20, each from "
        "three lags of one model."
    )
    if {"r_crit", "r_batch"} <= summary.keys():
        note += f" R_crit / R_batch is {summary['r_crit'] / summary['r_batch']:.3g} on this map."
    return claim(
        "scale_free_ratio",
        "(collapse_step * eta) / (S * eta_max) is this number.",
        summary["scale_free_ratio"],
        None,
        summary["num_seeds"],
        holds=None,
        note=note,
    )


def edge_claims(summary: dict[str, Any]) -> list[Claim]:
    """Returns the claims about the main map that need no fitted boundary."""
    usable, found = summary["usable"], []
    if usable["slope"] is not None:
        found.append(
            Claim(
                name="usable_edge_slope",
                claim="The largest usable learning rate has this slope in log S.",
                measured=usable["slope"],
                interval=usable["slope_interval"],
                n=usable["num_seeds"],
                unit="seeds",
                holds=None,
                note="A rate is usable if at least half of the seeds learn.",
                command=COMMAND,
            )
        )
    if paired := summary.get("paired_bias"):
        cells, num_seeds = paired["by_cell"], summary["num_seeds"]
        found += bias_claims(cells, paired["slopes"], COMMAND, num_seeds)
    return found


def sign_claims(summary: dict[str, Any]) -> list[Claim]:
    """Returns the claims about the signs that foretell a collapse on the main map."""
    lags = f"S >= {MIN_LAG_WITH_BOTH_OUTCOMES}"
    shared: dict[str, Any] = dict(
        interval=None, n=summary["num_seeds"], unit="seeds", command=COMMAND
    )
    all_claims = []
    if "cosine" in summary:
        all_claims = _cosine_claims(summary["cosine"], lags, shared)
    for sign, alarm in summary["alarms"].items():
        lead = "none"
        if alarm["median_lead"] is not None:
            lead = f"{alarm['median_lead']:g} learner steps"
        note = (
            f"{alarm['n']} collapses, {lags}; median lead: {lead}; "
            f"false alarms in {alarm['false_alarms']:.0%} of the stable runs."
        )
        in_paper = sign == "gradient_cosine"
        all_claims.append(
            Claim(
                name=f"alarm_{sign}",
                claim=f"An alarm on {sign} foretells at least {MIN_FORETOLD:.0%} of the collapses."
                if in_paper
                else f"An alarm on {sign} foretells this share of the collapses.",
                measured=alarm["found"],
                holds=bool(alarm["found"] >= MIN_FORETOLD) if in_paper else None,
                paper="A persistently positive cosine precedes a collapse." if in_paper else "",
                note=f"{note} {OWN_BOUND}" if in_paper else note,
                **shared,
            )
        )
    return all_claims


def _cosine_claims(cosine: dict[str, Any], lags: str, shared: dict[str, Any]) -> list[Claim]:
    """Returns the claims about the cosine of consecutive gradients."""
    areas, num_cells = cosine["roc_area"], cosine["n"]
    return [
        Claim(
            name="early_cosine",
            claim=f"The cosine of the first {EARLY_STEPS} steps' gradients tells collapsing from "
            f"stable runs: its ROC area is at least {MIN_ROC_AREA} ({lags}).",
            measured=areas["early"],
            holds=bool(areas["early"] >= MIN_ROC_AREA),
            paper="The cosine is over 0.5 before a collapse, and near 0 when stable.",
            note=f"{num_cells} cells. {OWN_BOUND}",
            **shared,
        ),
        Claim(
            name="relative_early_cosine",
            claim=f"The cosine of the first {EARLY_STEPS} steps' gradients over the ceiling that "
            f"batch noise sets has this ROC area for collapsing against stable runs ({lags}).",
            measured=areas["relative_early"],
            holds=None,
            note=f"{num_cells} cells.",
            **shared,
        ),
    ]


def _same_cells(name: str, variant: dict[str, Any]) -> Claim:
    """Returns the finding that compares a variant with the same cells of the main map."""
    main_and_variant = [variant[name] for name in ("main", "variant")]
    means = [
        "none"
        if collapses["collapse_step_times_eta"] is None
        else f"{collapses['collapse_step_times_eta']:.3g}"
        for collapses in main_and_variant
    ]
    return Claim(
        name=f"{name}_collapses",
        claim=f"Of the same cells, this many collapse on the main map and on {name}.",
        measured=[collapses["collapsed"] for collapses in main_and_variant],
        interval=None,
        n=variant["num_seeds"],
        unit="seeds",
        holds=None,
        note=f"{main_and_variant[0]['n']} and {main_and_variant[1]['n']} cells; "
        f"mean collapse_step * eta: {means[0]} and {means[1]}.",
        command=COMMAND,
    )


def _contains(interval: Any, value: float) -> bool:
    """Says whether the interval [low, high] contains the value."""
    low, high = interval
    return bool(low <= value <= high)
