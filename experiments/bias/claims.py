"""Makes the claims and findings of the bias experiment that are measured at fixed policies.

Each function states a claim and also the condition under which the claim holds.
"""

from typing import Any

import numpy as np

from experiments.bias import identities
from experiments.bias.cells import Draws
from experiments.bias.claim_kinds import Bootstrap, bias_claim, zero_claim
from experiments.bias.sampled_gradients import sampled_deviation
from experiments.common.claims import Claim

STALE_STEP = 0.05  # S * eta of the SGD step that separates the two policies of a stale pair
SMALLEST_STEP = 1e-5  # S * eta at which the error of float32 is measured
ROUNDING = 1e-12  # bound on the relative rounding error of a sum of thousands of float64 terms


def identity_claims(draws: Draws, bootstrap: Bootstrap) -> list[Claim]:
    """Returns the claims that theory predicts exactly, and the findings at fixed policies."""
    diagonal = identities.diagonal_identities(draws)
    return [
        zero_claim(
            "exact_against_all_groups",
            "The exact H equals autodiff of the training loop's surrogate summed over all groups "
            "(relative error below 1e-12).",
            identities.brute_force_error(draws),
            ROUNDING,
            "two and three reward levels, variable length, G = 4, stale with clipped tokens",
        ),
        zero_claim(
            "diagonal_is_zero",
            "L(theta, theta) = 0 with centered advantages and 1/|y|.",
            diagonal["diagonal"],
            1e-14,
        ),
        zero_claim(
            "phi_gradient_is_minus_h",
            "grad_phi L = -H at phi = theta (relative error).",
            diagonal["phi_gradient"],
            ROUNDING,
        ),
        *gradient_field_claims(draws, bootstrap),
        *sequence_weight_claims(draws),
        jump_claim(draws, bootstrap),
        float32_finding(draws, bootstrap),
    ]


def gradient_field_claims(draws: Draws, bootstrap: Bootstrap) -> list[Claim]:
    """Says whether H(theta, theta) is a gradient field, and measures its angle to grad J.

    H(theta, theta) is the surrogate's gradient with fresh rollouts. J is the expected reward.
    """
    fixed = identities.gradient_field(draws.with_task(variable_length=False))
    three_levels = identities.gradient_field(
        draws.with_task(variable_length=False, reward_levels=(0.0, 0.3, 1.0), difficulty=0.4)
    )
    variable = identities.gradient_field(draws)
    asymmetry = "asymmetry ||J - J^T|| / ||J + J^T|| of its Jacobian J, 0 for a gradient field"
    return [
        zero_claim(
            "fixed_length_is_a_gradient_field",
            "With fixed length and two reward levels H(theta, theta) is a gradient field.",
            fixed["asymmetry"],
            ROUNDING,
            asymmetry,
        ),
        bootstrap.median_finding(
            "fixed_length_three_levels",
            "Asymmetry of the Jacobian of H(theta, theta) with fixed length, std and three reward "
            "levels.",
            three_levels["asymmetry"],
            asymmetry,
        ),
        bootstrap.median_finding(
            "fixed_length_angle",
            "Angle in degrees between H(theta, theta) and grad J with fixed length and two reward "
            "levels.",
            fixed["angle"],
        ),
        bootstrap.median_finding(
            "variable_length_angle",
            "Angle in degrees between H(theta, theta) and grad J with variable length and 1/|y|.",
            variable["angle"],
            f"H(theta, theta) is no gradient field there: {asymmetry}, is "
            f"{variable['asymmetry'].min():.2g} to {variable['asymmetry'].max():.2g}",
        ),
    ]


def sequence_weight_claims(draws: Draws) -> list[Claim]:
    """Measures which part of the bias exact sequence-level importance weights do not remove."""
    weights = identities.sequence_is_residual(draws, STALE_STEP)
    return [
        zero_claim(
            "sequence_is_leaves_group_statistics",
            "Exact sequence-level importance weights leave exactly the bias of the group "
            "statistics (difference relative to ||H||).",
            weights["unexplained"],
            ROUNDING,
            f"the residual itself is {np.median(weights['residual']):.3g} of ||H|| in the median, "
            f"the bias of the clipped surrogate {np.median(weights['bias']):.3g}",
        ),
        zero_claim(
            "sequence_is_unbiased_without_std",
            "Without std and with constant length, sequence-level weights leave no bias (relative "
            "to ||H||).",
            weights["constant"],
            1e-14,
        ),
    ]


def jump_claim(draws: Draws, bootstrap: Bootstrap) -> Claim:
    """Checks that the clipped H jumps where the first token is clipped."""
    jump = identities.clip_jump(draws)
    size, width = jump["relative_jump"], jump["relative_width"]
    return bias_claim(
        name="h_is_discontinuous",
        claim="The clipped H is discontinuous in theta: it jumps at the first clipped token, so no "
        "Lipschitz constant holds.",
        measured=float(np.median(size)),
        interval=bootstrap.interval(size, np.median),
        n=len(size),
        unit="problems",
        holds=bool(size.min() > 1e3 * width.max()),
        note=f"||jump|| / ||H||, median over problems ({size.min():.2g} to {size.max():.2g}), when "
        f"S*eta grows by a part in {1 / width.max():.0e}",
    )


def float32_finding(draws: Draws, bootstrap: Bootstrap) -> Claim:
    """Measures the relative error of a bias that is computed in float32."""
    error = identities.float32_error(draws, SMALLEST_STEP)
    return bootstrap.median_finding(
        "float32_error",
        f"Relative error of the bias in float32 at S*eta = {SMALLEST_STEP:g}.",
        error["difference"],
        f"pulled back as one difference {np.median(error['pullback']):.2g}, since the parameters "
        "themselves are rounded",
    )


def sampling_claims(draws: Draws) -> list[Claim]:
    """Compares sampled gradients with the exact H.

    The sampled gradients are computed by the code that also computes them in training.
    """
    claims = []
    for name, statistics in sampled_deviation(draws, STALE_STEP).items():
        batches: dict[str, Any] = {
            "interval": None,
            "n": statistics["num_batches"],
            "unit": "batches",
        }
        claims += [
            bias_claim(
                name=f"sampled_mean_{name}",
                claim="Sampled gradients average to the exact H within 4 standard errors, "
                f"{name} phi.",
                measured=statistics["max_z"],
                holds=statistics["max_z"] < 4,
                note=f"largest deviation of {statistics['num_components']} components, in standard "
                "errors",
                **batches,
            ),
            bias_claim(
                name=f"sampled_error_{name}",
                claim=f"The error of the mean falls as n^-1/2, {name} phi (exponent -0.5 +- 0.05).",
                measured=statistics["slope"],
                holds=abs(statistics["slope"] + 0.5) <= 0.05,
                **batches,
            ),
        ]
    return claims
