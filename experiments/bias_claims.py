"""The facts of the bias experiment: each claim with its measured value, interval, n, and whether it holds.

What counts as holding is written here, beside the claim. Intervals are 95 % bootstrap intervals over draws; a number
that is a largest value or a range has none.
"""

import numpy as np

from experiments import bias_identities as identities
from experiments.bias_cells import Draws
from experiments.bias_law import Cells, clip_free, gain
from staleness_grpo.scaling.fits import bootstrap_interval, fit_power_law

SLOPE_TOLERANCE, LEAST_R_SQUARED = 0.01, 0.9995
STALE_STEP = 0.05  # S * eta of one step of SGD for what is measured at one stale pair of policies
SMALLEST_STEP = 1e-5  # S * eta at which float32 is tried
ROUNDING = 1e-12  # relative, of thousands of float64 terms


def fact(name: str, claim: str, measured: float, interval, n: int, holds: bool, note: str = "") -> dict:
    """One fact; `measured` is the number that the claim is about."""
    return {
        "name": name,
        "claim": claim,
        "measured": float(measured),
        "interval": None if interval is None else [float(end) for end in interval],
        "n": int(n),
        "holds": bool(holds),
        "note": note,
    }


class Claims:
    """Collects facts that share a random generator and a number of resamples."""

    def __init__(self, rng: np.random.Generator, num_resamples: int):
        self._rng, self._num_resamples = rng, num_resamples
        self.facts: list[dict] = []

    def add(self, *args, **kwargs) -> None:
        """Adds a `fact`."""
        self.facts.append(fact(*args, **kwargs))

    def interval(self, values: np.ndarray, statistic=np.mean) -> tuple[float, float]:
        """Bootstrap interval of one value for each draw."""
        return bootstrap_interval(values, self._rng, self._num_resamples, statistic)

    def add_residual(self, name: str, claim: str, values: np.ndarray, tolerance: float, note: str = "") -> None:
        """A quantity that ought to be 0 in every draw; measured is the largest."""
        self.add(name, claim, values.max(), None, len(values), values.max() < tolerance, note)


def add_law(claims: Claims, laws: dict, optimizer: str, schedule: str) -> None:
    """Slope of the law and the end of its range, for one optimizer and schedule."""
    law = laws[optimizer][schedule]
    abscissa = {"constant": "S*eta", "cyclic": "eta*rms(age)"}[schedule]
    claims.add(
        f"{optimizer}_{schedule}_slope",
        f"{optimizer.upper()}, {schedule} lag: log||bias|| against log({abscissa}) has slope 1 +- {SLOPE_TOLERANCE} "
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
        f"{optimizer.upper()}, {schedule} lag: the linear range ends where the first token is clipped (within one "
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
        f"{optimizer.upper()}: against eta*rms(age), cyclic refresh falls on the line of constant lag (mean ratio of "
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
        f"{optimizer.upper()}, cyclic: against S*eta the slope is 1.08",
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
        f"{optimizer.upper()}, sampled gradients, constant lag: displacement explains the bias better than S*eta does "
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
        f"{optimizer.upper()}: ||bias|| <= sigma_max(d_phi H) ||dtheta|| holds before clipping, tight to 0.4-0.9",
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
        f"{optimizer.upper()}: after clipping the bound fails (by up to 17 times in the prototype)",
        worst,
        None,
        sum(part["num_cells"] for part in after),
        worst > 1,
        f"largest ratio of bias and bound; the bound fails in {100 * share:.0f} % of the cells with clipped tokens",
    )


def add_identities(claims: Claims, draws: Draws) -> None:
    """What theory predicts at fixed policies."""
    errors = identities.brute_force_error(draws)
    claims.add_residual(
        "exact_against_all_groups",
        "the exact H equals autodiff of the training loop's surrogate summed over all groups (1e-12 relative)",
        errors,
        ROUNDING,
        "two and three reward levels, variable length, G = 4, stale with clipped tokens",
    )
    diagonal = identities.diagonal_identities(draws)
    claims.add_residual(
        "diagonal_is_zero", "L(theta, theta) = 0 with centred advantages and 1/|y|", diagonal["diagonal"], 1e-14
    )
    claims.add_residual(
        "phi_gradient_is_minus_h", "grad_phi L = -H at phi = theta (relative)", diagonal["phi_gradient"], ROUNDING
    )
    add_gradient_field(claims, draws)
    weights = identities.sequence_is_residual(draws, STALE_STEP)
    claims.add_residual(
        "sequence_is_leaves_group_statistics",
        "exact sequence-level importance weights leave exactly the bias of the group statistics (relative to ||H||)",
        weights["unexplained"],
        ROUNDING,
        f"the residual itself is {np.median(weights['residual']):.3g} of ||H|| in the median, the bias of the clipped "
        f"surrogate {np.median(weights['bias']):.3g}",
    )
    claims.add_residual(
        "sequence_is_unbiased_without_std",
        "without std and with constant length the residual of sequence-level weights is 0 (relative to ||H||)",
        weights["constant"],
        1e-14,
    )
    jump = identities.clip_jump(draws)
    claims.add(
        "h_is_discontinuous",
        "the clipped H is discontinuous in theta: it jumps at the first clipped token, so no Lipschitz constant holds",
        np.median(jump["relative_jump"]),
        claims.interval(jump["relative_jump"], np.median),
        len(jump["relative_jump"]),
        jump["relative_jump"].min() > 1e3 * jump["relative_width"].max(),
        f"||jump|| / ||H||, median over draws ({jump['relative_jump'].min():.2g} to {jump['relative_jump'].max():.2g}) "
        f"when S*eta grows by a part in {1 / jump['relative_width'].max():.0e}",
    )
    error = identities.float32_error(draws, SMALLEST_STEP)
    low, high = claims.interval(error["difference"], np.median)
    claims.add(
        "float32_error",
        f"in float32 the bias has 33 % error at S*eta = {SMALLEST_STEP:g}",
        np.median(error["difference"]),
        (low, high),
        len(error["difference"]),
        low <= 0.33 <= high,
        f"median over draws; largest {error['difference'].max():.2g}; pulled back as one difference "
        f"{np.median(error['pullback']):.2g}, since the parameters themselves are rounded",
    )


def add_gradient_field(claims: Claims, draws: Draws) -> None:
    """Whether H(theta, theta) is the gradient of something, and its angle to grad J."""
    fixed = identities.gradient_field(draws.with_task(variable_length=False))
    levels = identities.gradient_field(
        draws.with_task(variable_length=False, reward_levels=(0.0, 0.3, 1.0), difficulty=0.4)
    )
    variable = identities.gradient_field(draws)
    claims.add_residual(
        "fixed_length_is_a_gradient_field",
        "fixed length, two reward levels: H(theta, theta) is a gradient field (asymmetry of its Jacobian 0)",
        fixed["asymmetry"],
        ROUNDING,
    )
    claims.add(
        "fixed_length_three_levels",
        "fixed length with std and three reward levels: H(theta, theta) is still a gradient field",
        np.median(levels["asymmetry"]),
        claims.interval(levels["asymmetry"], np.median),
        len(levels["asymmetry"]),
        levels["asymmetry"].max() < ROUNDING,
        "asymmetry ||J - J^T|| / ||J + J^T||, median over draws",
    )
    low, high = claims.interval(fixed["angle"], np.median)
    claims.add(
        "fixed_length_angle",
        "fixed length: angle between H(theta, theta) and grad J is 0.5 to 2 degrees",
        np.median(fixed["angle"]),
        (low, high),
        len(fixed["angle"]),
        0.5 <= np.median(fixed["angle"]) <= 2,
        f"median over draws; {fixed['angle'].min():.2g} to {fixed['angle'].max():.2g} degrees",
    )
    low, high = claims.interval(variable["angle"], np.median)
    claims.add(
        "variable_length_angle",
        "variable length and 1/|y|: H(theta, theta) is no gradient field, about 30 degrees from grad J",
        np.median(variable["angle"]),
        (low, high),
        len(variable["angle"]),
        low <= 30 <= high and variable["asymmetry"].min() > 1e-3,
        f"median over draws; {variable['angle'].min():.2g} to {variable['angle'].max():.2g} degrees; asymmetry "
        f"of the Jacobian {variable['asymmetry'].min():.2g} to {variable['asymmetry'].max():.2g}, never 0",
    )


def add_sampling(claims: Claims, draws: Draws) -> None:
    """Sampled gradients, through the code that trains, against the exact H."""
    for name, statistics in identities.sampled_deviation(draws, STALE_STEP).items():
        claims.add(
            f"sampled_mean_{name}",
            f"sampled gradients average to the exact H within 4 standard errors, {name} phi",
            statistics["max_z"],
            None,
            statistics["num_batches"],
            statistics["max_z"] < 4,
            f"largest deviation of {statistics['num_components']} components, in standard errors; n counts batches",
        )
        claims.add(
            f"sampled_error_{name}",
            f"the error of the mean falls as n^-1/2, {name} phi (exponent -0.5 +- 0.05)",
            statistics["slope"],
            None,
            statistics["num_batches"],
            abs(statistics["slope"] + 0.5) <= 0.05,
        )


def measure_facts(draws: Draws, rng: np.random.Generator, num_resamples: int) -> list[dict]:
    """The facts that need no cells."""
    claims = Claims(rng, num_resamples)
    add_identities(claims, draws)
    add_sampling(claims, draws)
    return claims.facts


def law_facts(cells: Cells, laws: dict, rng: np.random.Generator, num_resamples: int) -> list[dict]:
    """The facts that the cells tell."""
    claims = Claims(rng, num_resamples)
    for optimizer, schedules in laws.items():
        for schedule in schedules:
            add_law(claims, laws, optimizer, schedule)
        add_abscissae(claims, cells, laws, optimizer)
        add_lipschitz(claims, laws, optimizer)
    add_drift(claims, cells)
    return claims.facts
