"""The facts of the bias experiment: each claim with its measured value, interval, n, and whether it holds.

What counts as holding is written here, beside the claim. Intervals are 95 % bootstrap intervals over draws; a number
that is a largest value or a range has none.
"""

import numpy as np

from experiments import bias_identities as identities
from experiments.bias_cells import Draws
from staleness_grpo.scaling.fits import bootstrap_interval

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
