"""The facts that the cells of the bias experiment tell: the law, its range, its abscissae, drift and bound."""

import numpy as np

from experiments.bias_claims import Claims
from experiments.bias_law import Cells, clip_free, gain
from staleness_grpo.scaling.fits import fit_power_law

NAMES = {"sgd": "SGD", "adam": "Adam"}
SLOPE_TOLERANCE, LEAST_R_SQUARED = 0.01, 0.9995


def add_law(claims: Claims, laws: dict, optimizer: str, schedule: str) -> None:
    """Slope of the law and the end of its range, for one optimizer and schedule."""
    law = laws[optimizer][schedule]
    abscissa = {"constant": "S*eta", "cyclic": "eta*rms(age)"}[schedule]
    claims.add(
        f"{optimizer}_{schedule}_slope",
        f"{NAMES[optimizer]}, {schedule} lag: log||bias|| against log({abscissa}) has slope 1 +- {SLOPE_TOLERANCE} "
        f"with R^2 >= {LEAST_R_SQUARED} on the clip-free range",
        law["slope"],
        law["slope_ci"],
        law["num_draws"],
        abs(law["slope"] - 1) <= SLOPE_TOLERANCE and law["r_squared"] >= LEAST_R_SQUARED,
        f"R^2 {law['r_squared']:.5f} over {law['num_cells']} cells; standard deviation of the slope over draws "
        f"{law['slope_sd_over_draws']:.3f}; ||bias|| = {law['gain']:.3g} * {abscissa} in the geometric mean",
    )
    claims.add(
        f"{optimizer}_{schedule}_linear_range_end",
        f"{NAMES[optimizer]}, {schedule} lag: the linear range ends where the first token is clipped (within one "
        "step of the learning-rate grid, and never earlier in more than 5 % of the cases)",
        law["end_minus_clip_in_grid_steps"],
        law["end_minus_clip_ci"],
        law["num_pairs"],
        abs(law["end_minus_clip_in_grid_steps"]) <= 1 and law["share_before_clip"] <= 0.05,
        f"in steps of a factor {law['grid_ratio']:.2f}; {100 * law['share_within_one_step']:.0f} % of the pairs (draw, "
        f"lag) within one step, {100 * law['share_before_clip']:.0f} % off the line before the first clipped token; "
        f"linear up to S*eta = {law['max_s_eta_linear']:.3g} in the median draw",
    )


def add_abscissae(claims: Claims, cells: Cells, laws: dict, optimizer: str) -> None:
    """Cyclic against constant lag, and displacement against S * eta under sampled gradients."""
    of = cells.where(optimizer=optimizer, gradient="exact")
    constant, cyclic = of.where(schedule="constant"), of.where(schedule="cyclic")
    ratio = gain(cyclic) / gain(constant)
    claims.add(
        f"{optimizer}_cyclic_same_line",
        f"{NAMES[optimizer]}: against eta*rms(age), cyclic refresh falls on the line of constant lag (mean ratio of "
        "||bias|| / (eta*rms(age)) within 5 % of 1)",
        ratio.mean(),
        claims.interval(ratio),
        len(ratio),
        abs(ratio.mean() - 1) <= 0.05,
    )
    against = laws[optimizer]["cyclic"]["against_s_eta"]
    kept = clip_free(cyclic)
    by_age = fit_power_law(kept["s_eta"], kept["eta_rms_age"], kept["draw"]).slopes.mean()
    low, high = against["slope_ci"]
    claims.add(
        f"{optimizer}_cyclic_against_s_eta",
        f"{NAMES[optimizer]}, cyclic: against S*eta the slope is 1.08",
        against["slope"],
        against["slope_ci"],
        against["num_draws"],
        low <= 1.08 <= high,
        f"rms(age) = sqrt((S-1)(2S-1)/6) alone gives {by_age:.3f} on these cells: the number belongs to the grid of S",
    )
    by_age, by_displacement = (
        laws[optimizer]["constant"]["sampled"][name] for name in ("against_eta_rms_age", "against_displacement")
    )
    claims.add(
        f"{optimizer}_displacement_is_universal",
        f"{NAMES[optimizer]}, sampled gradients, constant lag: displacement explains the bias better than S*eta does "
        "(slope nearer to 1 and higher R^2)",
        by_displacement["slope"],
        by_displacement["slope_ci"],
        by_displacement["num_draws"],
        abs(by_displacement["slope"] - 1) < abs(by_age["slope"] - 1)
        and by_displacement["r_squared"] > by_age["r_squared"],
        f"R^2 {by_displacement['r_squared']:.4f} against displacement; against S*eta slope {by_age['slope']:.3f} "
        f"({by_age['slope_ci'][0]:.3f} to {by_age['slope_ci'][1]:.3f}), R^2 {by_age['r_squared']:.4f}",
    )


def add_drift(claims: Claims, cells: Cells) -> None:
    """The law of the drift under sampled gradients, and its crossover at S* = tr(Sigma) / (B ||H||^2)."""
    sampled = cells.where(optimizer="sgd", schedule="constant", gradient="sampled")
    sampled = sampled.keep(sampled["clip_fraction"] == 0)
    s, eta, draw = sampled["max_lag"], sampled["learning_rate"], sampled["draw"]
    draws = np.unique(draw)
    predicted = eta**2 * (s**2 * sampled["surrogate_gradient"] ** 2 + s * sampled["noise"] ** 2)
    over_predicted = sampled["displacement"] ** 2 / predicted
    ratio = np.array([over_predicted[draw == d].mean() for d in draws])
    claims.add(
        "drift_law",
        "SGD, sampled gradients: E ||theta_t - theta_{t-S}||^2 = eta^2 (S^2 ||H||^2 + S tr(Sigma)/B) (within 10 %)",
        ratio.mean(),
        claims.interval(ratio),
        len(draws),
        abs(ratio.mean() - 1) <= 0.1,
        f"mean of measured over predicted, {len(s)} clip-free cells",
    )
    slowest = cells.where(
        optimizer="sgd", schedule="constant", gradient="sampled", learning_rate=sampled["learning_rate"].min()
    )
    lags = np.unique(slowest["max_lag"])

    def table(name):
        """Squares [draws, lags]."""
        return np.stack([slowest.where(max_lag=lag)[name] for lag in lags], axis=-1) ** 2

    def exponent(drift_squared, axis, of):
        """Slope of log drift against log S among the lags `of`; drift is the rms over the draws in `axis`."""
        mean = np.moveaxis(np.log(drift_squared.mean(axis=axis))[..., of], -1, 0) / 2
        return np.polyfit(np.log(lags[of]), mean, 1)[0]

    def below(values, axis):
        return exponent(values, axis, slice(3))

    s_star = table("noise").mean() / table("surrogate_gradient").mean()
    rises_to = exponent(table("displacement"), 0, slice(-3, None))
    measured = below(table("displacement"), 0)
    claims.add(
        "drift_crossover",
        "SGD, sampled gradients: drift grows as sqrt(S) below S* and as S above (exponent 0.45 to 0.75 for the three "
        "smallest S, and a larger one for the three largest)",
        measured,
        claims.interval(table("displacement"), below),
        len(draws),
        0.45 <= measured <= 0.75 and rises_to > measured,
        f"exponent {rises_to:.2f} for S = {lags[-3]} to {lags[-1]}; S* = tr(Sigma)/(B ||H||^2) = {s_star:.1f}",
    )


def add_lipschitz(claims: Claims, laws: dict, optimizer: str) -> None:
    """The bound ||bias|| <= sigma_max(d_phi H) ||dtheta||, before and after the first clipped token."""
    parts = [law["lipschitz_tightness"] for law in laws[optimizer].values()]
    before, after = ([part[name] for part in parts] for name in ("before_clipping", "after_clipping"))
    tight = np.mean([part["median"] for part in before])
    lowest, highest = min(part["min"] for part in before), max(part["max"] for part in before)
    claims.add(
        f"{optimizer}_lipschitz_before_clipping",
        f"{NAMES[optimizer]}: ||bias|| <= sigma_max(d_phi H) ||dtheta|| holds before clipping, tight to 0.4-0.9",
        tight,
        None,
        sum(part["num_cells"] for part in before),
        highest <= 1 and 0.4 <= tight <= 0.9,
        f"bias over bound, mean of the two schedules' medians; the cells range from {lowest:.2f} to {highest:.2f}",
    )
    share = np.mean([part["share_above_one"] for part in after])
    worst = max(part["max"] for part in after)
    claims.add(
        f"{optimizer}_lipschitz_after_clipping",
        f"{NAMES[optimizer]}: after clipping the bound fails (by up to 17 times in a first measurement)",
        worst,
        None,
        sum(part["num_cells"] for part in after),
        worst > 1,
        f"largest ratio of bias and bound; the bound fails in {100 * share:.0f} % of the cells with clipped tokens",
    )


def law_facts(cells: Cells, laws: dict, rng: np.random.Generator, num_resamples: int) -> list[dict]:
    """All of them; `laws` is what `bias_law.summarize` gives for each optimizer and schedule."""
    claims = Claims(rng, num_resamples)
    for optimizer, schedules in laws.items():
        for schedule in schedules:
            add_law(claims, laws, optimizer, schedule)
        add_abscissae(claims, cells, laws, optimizer)
        add_lipschitz(claims, laws, optimizer)
    add_drift(claims, cells)
    return claims.facts
