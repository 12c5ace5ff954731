"""Makes the claims and findings that are computed from the cells of the bias experiment.

The law is that the bias is proportional to eta * rms(age) up to the first clipped token. The claims
are about the following:

- the slope of the law, and where the law ends
- the quantity on the x-axis: S * eta, eta * rms(age) or the displacement
- the drift of the parameters during the lag
- the Lipschitz bound of the bias
"""

from typing import Any

import numpy as np

from experiments.bias.axes import OPTIMIZER_LABELS
from experiments.bias.claim_kinds import Bootstrap, bias_claim
from experiments.bias.law import CellTable, clip_free, gain
from experiments.common.claims import Claim
from staleness_grpo.scaling.power_laws import fit_power_law

SLOPE_TOLERANCE, MIN_R_SQUARED = 0.01, 0.9995
MAX_SHARE_BEFORE_CLIP = 0.05  # share of cases in which the law may end before clipping starts
LINE_TOLERANCE = 0.05  # allowed distance of a ratio of two gains from 1
DRIFT_TOLERANCE = 0.1  # allowed distance of measured over predicted drift from 1

Laws = dict[str, dict[str, Any]]  # optimizer -> schedule -> result of `law.summarize`


def slope_claim(laws: Laws, optimizer: str, schedule: str) -> Claim:
    """Checks that the law of one optimizer and schedule has slope 1."""
    law = laws[optimizer][schedule]
    label = OPTIMIZER_LABELS[optimizer]
    abscissa = {"constant": "S*eta", "cyclic": "eta*rms(age)"}[schedule]
    return bias_claim(
        name=f"{optimizer}_{schedule}_slope",
        claim=f"{label}, {schedule} lag: log||bias|| against log({abscissa}) has "
        f"slope 1 +- {SLOPE_TOLERANCE} with R^2 >= {MIN_R_SQUARED} up to the first clipped token.",
        paper="the bias is O(S * eta): slope 1" if schedule == "constant" else "",
        measured=law["slope"],
        interval=law["slope_ci"],
        n=law["num_draws"],
        unit="problems",
        holds=abs(law["slope"] - 1) <= SLOPE_TOLERANCE and law["r_squared"] >= MIN_R_SQUARED,
        note=f"R^2 {law['r_squared']:.5f} over {law['num_cells']} cells; standard deviation of the "
        f"slope over problems {law['slope_sd_over_draws']:.3f}; ||bias|| = {law['gain']:.3g} * "
        f"{abscissa} in the geometric mean",
    )


def range_claim(laws: Laws, optimizer: str, schedule: str) -> Claim:
    """Checks that the law ends where the first token is clipped."""
    law = laws[optimizer][schedule]
    label = OPTIMIZER_LABELS[optimizer]
    return bias_claim(
        name=f"{optimizer}_{schedule}_linear_range_end",
        claim=f"{label}, {schedule} lag: the linear range ends where the first "
        "token is clipped (within one step of the learning-rate grid, and earlier in at most "
        f"{100 * MAX_SHARE_BEFORE_CLIP:.0f} % of the cases).",
        measured=law["end_minus_clip_in_grid_steps"],
        interval=law["end_minus_clip_ci"],
        n=law["num_pairs"],
        unit="pairs of problem and lag",
        holds=abs(law["end_minus_clip_in_grid_steps"]) <= 1
        and law["share_before_clip"] <= MAX_SHARE_BEFORE_CLIP,
        note=f"in steps of a factor {law['grid_ratio']:.2f}; "
        f"{100 * law['share_within_one_step']:.0f} % of the pairs within one step, "
        f"{100 * law['share_before_clip']:.0f} % off the line before the first clipped token; "
        f"linear up to S*eta = {law['max_s_eta_linear']:.3g} in the median problem; the interval "
        "resamples problems",
    )


def cyclic_claims(
    cells: CellTable, laws: Laws, optimizer: str, bootstrap: Bootstrap
) -> list[Claim]:
    """Compares cyclic lag with constant lag, by eta * rms(age) and by S * eta."""
    label = OPTIMIZER_LABELS[optimizer]
    exact = cells.where(optimizer=optimizer, gradient="exact")
    constant, cyclic = exact.where(schedule="constant"), exact.where(schedule="cyclic")
    ratio = gain(cyclic) / gain(constant)
    law_in_s_eta = laws[optimizer]["cyclic"]["against_s_eta"]
    free = clip_free(cyclic)
    age_slope = fit_power_law(free["s_eta"], free["eta_rms_age"], free["draw"]).slopes.mean()
    return [
        bias_claim(
            name=f"{optimizer}_cyclic_same_line",
            claim=f"{label}: against eta*rms(age), cyclic refresh falls on the "
            "line of constant lag (mean ratio of ||bias|| / (eta*rms(age)) within "
            f"{100 * LINE_TOLERANCE:.0f} % of 1).",
            measured=float(ratio.mean()),
            interval=bootstrap.interval(ratio),
            n=len(ratio),
            unit="problems",
            holds=bool(abs(ratio.mean() - 1) <= LINE_TOLERANCE),
        ),
        bias_claim(
            name=f"{optimizer}_cyclic_against_s_eta",
            claim=f"{label}, cyclic lag: slope of log||bias|| against log(S*eta).",
            measured=law_in_s_eta["slope"],
            interval=law_in_s_eta["slope_ci"],
            n=law_in_s_eta["num_draws"],
            unit="problems",
            holds=None,
            note=f"rms(age) = sqrt((S-1)(2S-1)/6) alone gives {age_slope:.3f} on these cells: the "
            "number belongs to the grid of S",
        ),
    ]


def displacement_finding(laws: Laws, optimizer: str) -> Claim:
    """Reports the slope of the bias against the displacement, with sampled gradients."""
    by_age, by_displacement = (
        laws[optimizer]["constant"]["sampled"][name]
        for name in ("against_eta_rms_age", "against_displacement")
    )
    label = OPTIMIZER_LABELS[optimizer]
    low, high = by_age["slope_ci"]
    return bias_claim(
        name=f"{optimizer}_sampled_against_displacement",
        claim=f"{label}, sampled gradients, constant lag: slope of log||bias|| "
        "against the log of the displacement.",
        measured=by_displacement["slope"],
        interval=by_displacement["slope_ci"],
        n=by_displacement["num_draws"],
        unit="problems",
        holds=None,
        note=f"R^2 {by_displacement['r_squared']:.4f} against displacement; against S*eta slope "
        f"{by_age['slope']:.3f} ({low:.3f} to {high:.3f}), R^2 {by_age['r_squared']:.4f}",
    )


def drift_claims(cells: CellTable, bootstrap: Bootstrap) -> list[Claim]:
    """Checks the law of the drift with sampled gradients, and reports its growth with S."""
    sampled = cells.where(optimizer="sgd", schedule="constant", gradient="sampled")
    sampled = sampled.keep(sampled["clip_fraction"] == 0)
    max_lag, eta, draw = sampled["max_lag"], sampled["learning_rate"], sampled["draw"]
    draws = np.unique(draw)
    signal, noise = sampled["surrogate_gradient"], sampled["noise"]
    predicted = eta**2 * (max_lag**2 * signal**2 + max_lag * noise**2)
    measured_over_predicted = sampled["displacement"] ** 2 / predicted
    ratio = np.array([measured_over_predicted[draw == d].mean() for d in draws])
    law = bias_claim(
        name="drift_law",
        claim="SGD, sampled gradients: E ||theta_t - theta_{t-S}||^2 = eta^2 (S^2 ||H||^2 + "
        f"S tr(Sigma)/B) (within {100 * DRIFT_TOLERANCE:.0f} %).",
        measured=float(ratio.mean()),
        interval=bootstrap.interval(ratio),
        n=len(draws),
        unit="problems",
        holds=bool(abs(ratio.mean() - 1) <= DRIFT_TOLERANCE),
        note=f"mean of measured over predicted, {len(sampled)} clip-free cells",
    )
    return [law, crossover_finding(cells, float(eta.min()), bootstrap)]


def crossover_finding(cells: CellTable, learning_rate: float, bootstrap: Bootstrap) -> Claim:
    """Reports how the drift of SGD grows with S, below and above S* = tr(Sigma) / (B ||H||^2)."""
    slowest = cells.where(
        optimizer="sgd", schedule="constant", gradient="sampled", learning_rate=learning_rate
    )
    lags = np.unique(slowest["max_lag"])

    def squares(name: str) -> np.ndarray:
        """Returns the squared values of a field, [draws, lags]."""
        return np.stack([slowest.where(max_lag=lag)[name] for lag in lags], axis=-1) ** 2

    def exponent(drift_squared: np.ndarray, axis: int, lag_range: slice) -> np.ndarray:
        """Returns the slope of log drift against log S over a range of the lags.

        Drift is the root mean square over the draws. `axis` is the axis of the draws.
        """
        log_drift = np.moveaxis(np.log(drift_squared.mean(axis=axis))[..., lag_range], -1, 0) / 2
        return np.polyfit(np.log(lags[lag_range]), log_drift, 1)[0]

    def exponent_below(drift_squared: np.ndarray, axis: int) -> np.ndarray:
        return exponent(drift_squared, axis, slice(3))

    drift_squared = squares("displacement")
    s_star = squares("noise").mean() / squares("surrogate_gradient").mean()
    exponent_above = exponent(drift_squared, 0, slice(-3, None))
    return bias_claim(
        name="drift_crossover",
        claim="SGD, sampled gradients: exponent of the drift in S over the three smallest S.",
        measured=float(exponent_below(drift_squared, 0)),
        interval=bootstrap.interval(drift_squared, exponent_below),
        n=len(drift_squared),
        unit="problems",
        holds=None,
        note="noise alone gives 1/2, a gradient alone 1; the exponent is "
        f"{exponent_above:.2f} for S = {lags[-3]} to {lags[-1]}; both contribute equally at "
        f"S* = tr(Sigma)/(B ||H||^2) = {s_star:.1f}",
    )


def lipschitz_claims(laws: Laws, optimizer: str) -> list[Claim]:
    """Checks the bound ||bias|| <= sigma_max(d_phi H) ||dtheta|| before the first clipped token.

    After the first clipped token, the ratio of the two sides is only reported.
    """
    label = OPTIMIZER_LABELS[optimizer]
    tightness = [law["lipschitz_tightness"] for law in laws[optimizer].values()]
    before = [part["before_clipping"] for part in tightness]
    after = [part["after_clipping"] for part in tightness]
    lowest, highest = min(part["min"] for part in before), max(part["max"] for part in before)
    share_above = float(np.mean([part["share_above_one"] for part in after]))
    unclipped = {"interval": None, "n": sum(part["num_cells"] for part in before), "unit": "cells"}
    clipped = {"interval": None, "n": sum(part["num_cells"] for part in after), "unit": "cells"}
    bound = "sigma_max(d_phi H) ||dtheta||"
    return [
        bias_claim(
            name=f"{optimizer}_lipschitz_before_clipping",
            claim=f"{label}: ||bias|| <= {bound} holds before clipping.",
            measured=highest,
            holds=highest <= 1,
            note="largest ratio of bias and bound",
            **unclipped,
        ),
        bias_claim(
            name=f"{optimizer}_lipschitz_tightness",
            claim=f"{label}: ratio of ||bias|| and {bound} before clipping.",
            measured=float(np.mean([part["median"] for part in before])),
            holds=None,
            note="mean of the two schedules' medians; the cells range from "
            f"{lowest:.2f} to {highest:.2f}",
            **unclipped,
        ),
        bias_claim(
            name=f"{optimizer}_lipschitz_after_clipping",
            claim=f"{label}: largest ratio of ||bias|| and {bound} after the first clipped token.",
            measured=max(part["max"] for part in after),
            holds=None,
            note=f"the ratio is above 1 in {100 * share_above:.0f} % of the cells with clipped "
            "tokens",
            **clipped,
        ),
    ]


def law_claims(cells: CellTable, laws: Laws, bootstrap: Bootstrap) -> list[Claim]:
    """Returns all claims and findings about the cells.

    Args:
      cells: all cells of the experiment.
      laws: the result of `law.summarize` for each optimizer and schedule.
      bootstrap: makes the intervals.
    """
    claims = []
    for optimizer, schedules in laws.items():
        for schedule in schedules:
            claims += [
                slope_claim(laws, optimizer, schedule),
                range_claim(laws, optimizer, schedule),
            ]
        claims += cyclic_claims(cells, laws, optimizer, bootstrap)
        claims.append(displacement_finding(laws, optimizer))
        claims += lipschitz_claims(laws, optimizer)
    return claims + drift_claims(cells, bootstrap)
