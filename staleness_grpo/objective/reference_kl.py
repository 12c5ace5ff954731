"""Estimates the divergence of the policy from a reference policy, for a penalty."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from staleness_grpo.errors import require, require_at_least, require_choice
from staleness_grpo.types import Array

ESTIMATORS = ("k1", "k2", "k3")
# Fields that only a penalty reads -> the default, which they have without one.
UNUSED = {"estimator": "k3", "in_reward": False, "checkpoint": None}


def check_reference(fields: Mapping[str, Any]) -> None:
    """Raises FieldError if a field of `config.reference` has a value that cannot be used."""
    require_at_least(fields, {"kl": 0})
    require_choice(fields, "estimator", ESTIMATORS)
    is_used = fields["kl"] > 0
    hint = "reference.kl=0 makes no use of it: leave it out, or give reference.kl a number > 0"
    for name, default in UNUSED.items():
        require(is_used or fields[name] == default, name, hint, fields[name])


def kl_terms(logprobs: Array, reference_logprobs: Array, estimator: str) -> Array:
    """Returns the estimate of KL(policy || reference) of each token, in nats, in the same shape.

    With d = log pi_ref - log pi, for tokens that the policy sampled:

      k1 = -d                  unbiased, and of either sign
      k2 = d^2 / 2             biased, and >= 0
      k3 = exp(d) - 1 - d      unbiased, and >= 0; DeepSeekMath, arXiv 2402.03300, equation 4

    The names are those of J. Schulman, "Approximating KL Divergence" (2020). As a term of a loss,
    the gradients in log pi are 1, -d and 1 - exp(d). On policy, the expected gradient of k1 is 0,
    that of k2 is the gradient of the divergence, and that of k3 is the gradient of
    KL(pi_ref || pi). Here the tokens are those of the behavior policy, and are not weighted by the
    ratio.

    Args:
      logprobs: log pi of the tokens, float.
      reference_logprobs: log pi_ref of the tokens, float. They get no gradient.
      estimator: one of ESTIMATORS.
    """
    difference = jax.lax.stop_gradient(reference_logprobs) - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference**2 / 2
    return jnp.expm1(difference) - difference
