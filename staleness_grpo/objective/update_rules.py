"""Defines update rules, which correct the update instead of the loss, as optax transformations.

They can be combined with any correction of the loss. Neither VCPO nor GAC has a population gradient
of its own. VCPO scales the update of a batch, and GAC depends on the previous batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from staleness_grpo.types import Array, PyTree


def sequence_ess(policy_logprobs: Array, behavior_logprobs: Array, mask: Array) -> jax.Array:
    """Returns the effective sample size of the responses' importance weights, in (0, 1].

    The size is (sum W)^2 / (B sum W^2) with W = prod_t rho. It is 1 if all responses are on policy,
    and 1/B if one response has all the weight. It is computed in log space to avoid overflow, and
    has no gradient.

    Args:
      policy_logprobs: [..., R] float, log pi_theta of the response tokens.
      behavior_logprobs: [..., R] float, log pi_phi of the response tokens.
      mask: [..., R] bool, True on the response's tokens.
    """
    log_ratio = jnp.where(mask, policy_logprobs, 0.0) - jnp.where(mask, behavior_logprobs, 0.0)
    log_weights = jax.lax.stop_gradient(jnp.sum(log_ratio, axis=-1)).ravel()
    log_ess = (
        2 * jax.nn.logsumexp(log_weights)
        - jax.nn.logsumexp(2 * log_weights)
        - jnp.log(log_weights.size)
    )
    return jnp.exp(log_ess)


def vcpo(
    *, ess_target: float = 1.0, ess_power: float = 0.5
) -> optax.GradientTransformationExtraArgs:
    """Makes the update smaller when a few responses have most of the importance weight.

    Formula: min(1, ess / ess_target)^ess_power g_t, with ess the batch's `sequence_ess`.
    Source: VCPO, arXiv 2602.17616. `sequence_ess` is passed as an extra argument of the update. The
    rule is applied after Adam, because Adam would undo a scaling of the gradient. ess_power = 1/2
    is the authors' rule for Adam, and ess_power = 1 is their linear rule.
    Verified: the authors' code and run scripts use ess_target = 1, ess_power = 1/2 and raw sequence
    ratios. Their minimum-variance baseline and their loss are the correction `opob`.
    Bias and variance: the direction of a step does not change. Its length is multiplied by a factor
    that correlates with the batch.
    """

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree = None,
        *,
        sequence_ess: Array,
        **extra: Any,
    ) -> tuple[PyTree, optax.EmptyState]:
        del params, extra
        scale = jnp.minimum(1.0, sequence_ess / ess_target) ** ess_power
        return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


class AlignmentState(NamedTuple):
    """Holds the state that gradient alignment control (GAC) keeps between updates."""

    # The updates that GAC received at the previous step, before any removal. They are 0 at first.
    previous: PyTree


def gac(
    *, alignment_threshold: float = 0.5, removed_fraction: float = 1.0, skip_threshold: float = 1.0
) -> optax.GradientTransformation:
    """Removes part of the gradient's component along the previous gradient if their cosine is high.

    Formula:

        cos(g_t, g_{t-1}) > alignment_threshold:
            g_t - removed_fraction <g_t, g_{t-1}> g_{t-1} / |g_{t-1}|^2
        cos(g_t, g_{t-1}) > skip_threshold:
            0   (skip_threshold = 1 disables this case)

    Source: GAC, arXiv 2603.01501.
    Verified: second-hand. The following could not be verified:
      - both thresholds and the fraction;
      - whether g_{t-1} is taken before or after the removal (here: before);
      - whether the rule acts on the gradient before Adam (`gac`) or on Adam's update
        (`gac_after_optimizer`).
    Bias and variance: biased by design. The rule slows every coherent drift, whether the rollouts
    are fresh or stale.
    """

    def init(params: PyTree) -> AlignmentState:
        return AlignmentState(jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: PyTree, state: AlignmentState, params: PyTree = None
    ) -> tuple[PyTree, AlignmentState]:
        del params
        product = optax.tree.vdot(updates, state.previous)
        square = optax.tree.norm(state.previous, squared=True)
        length = jnp.sqrt(square) * optax.tree.norm(updates)
        # The cosine of a zero gradient is set to 0. At the first step, the previous one is zero.
        cosine = jnp.where(length == 0, 0.0, product / jnp.where(length == 0, 1.0, length))
        aligned = cosine > alignment_threshold
        coefficient = jnp.where(
            aligned, removed_fraction * product / jnp.where(square == 0, 1.0, square), 0.0
        )
        keep = jnp.where(cosine > skip_threshold, 0.0, 1.0)
        controlled = jax.tree.map(
            lambda leaf, previous: (keep * (leaf - coefficient * previous)).astype(leaf.dtype),
            updates,
            state.previous,
        )
        return controlled, AlignmentState(updates)

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class UpdateRule:
    """Holds a gradient transformation, its source, and whether it acts before or after Adam.

    The keyword arguments of `transformation` are the parameters of the rule.
    """

    transformation: Callable[..., optax.GradientTransformation]
    _: dataclasses.KW_ONLY
    # True: the rule acts on Adam's update, before the learning rate. False: on the raw gradient.
    after_optimizer: bool
    # The next three fields are used only in the documentation.
    formula: str = ""  # one line, in which g_t is the input of the rule at step t
    source: str = ""  # the paper or code
    verified: str = ""  # how the agreement with the published rule was checked


_GAC_FORMULA = (
    "with c = cos(g_t, g_{t-1}): 0 if c > skip_threshold; g_t - removed_fraction <g_t, g_{t-1}> "
    "g_{t-1} / |g_{t-1}|^2 if c > alignment_threshold; else g_t"
)
_GAC_NOT_VERIFIED = (
    "second-hand; not verified: the thresholds, the fraction, g_{t-1} before or after the removal, "
    "before or after Adam"
)

UPDATE_RULES: dict[str, UpdateRule] = {
    "vcpo": UpdateRule(
        vcpo,
        after_optimizer=True,
        formula=(
            "min(1, ess / ess_target)^ess_power g_t, ess = (sum W)^2 / (B sum W^2), W = prod_t rho"
        ),
        source="VCPO, arXiv 2602.17616",
        verified="read in the authors' code; its baseline and loss are the correction opob",
    ),
    "gac": UpdateRule(
        gac,
        after_optimizer=False,
        formula=_GAC_FORMULA,
        source="GAC, arXiv 2603.01501",
        verified=_GAC_NOT_VERIFIED,
    ),
    "gac_after_optimizer": UpdateRule(
        gac,
        after_optimizer=True,
        formula=f"{_GAC_FORMULA}; g_t is Adam's update",
        source="GAC, arXiv 2603.01501",
        verified=_GAC_NOT_VERIFIED,
    ),
}
