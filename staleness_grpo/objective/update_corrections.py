"""Corrections that act on the update rather than on the loss, as optax gradient transformations.

They compose with any correction of the loss. Neither has a population gradient of its own: the one scales the
update of a batch, the other depends on the batch before.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from staleness_grpo.types import Array, PyTree


def sequence_ess(policy_logprobs: Array, behavior_logprobs: Array, mask: Array) -> jax.Array:
    """Effective sample size (sum w)^2 / (B sum w^2) of the responses' weights w = prod_t rho, in (0, 1].

    1 on policy, 1/B when one response has all the weight. In log space, so nothing overflows.
    """
    log_ratio = jnp.where(mask, policy_logprobs, 0.0) - jnp.where(mask, behavior_logprobs, 0.0)
    log_weights = jax.lax.stop_gradient(jnp.sum(log_ratio, axis=-1)).ravel()
    log_ess = 2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights) - jnp.log(log_weights.size)
    return jnp.exp(log_ess)


def vcpo(*, ess_target: float = 1.0, ess_power: float = 0.5) -> optax.GradientTransformationExtraArgs:
    """Scales the update by min(1, ess / ess_target)^ess_power   (VCPO, arXiv 2602.17616).

    The learning rate falls with the batch's `sequence_ess`, an extra argument of the update; it comes after Adam,
    which would undo a scale of the gradient. Power 1/2 is the authors' rule for Adam, 1 their linear one. Does not
    change the bias of a step, only its length, by a factor that correlates with the batch. The authors' value of
    ess_target could not be verified. Their minimum-variance baseline, which needs every response's own gradient
    norm, is not here.
    """

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: PyTree, state: optax.EmptyState, params: PyTree = None, *, sequence_ess: Array, **extra):
        del params, extra
        scale = jnp.minimum(1.0, sequence_ess / ess_target) ** ess_power
        return jax.tree.map(lambda u: (scale * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


class AlignmentState(NamedTuple):
    """What gradient alignment control remembers."""

    previous: PyTree  # the updates it was given last time, before any removal; 0 at first


def gac(
    *, alignment_threshold: float = 0.5, removed_fraction: float = 1.0, skip_threshold: float = 1.0
) -> optax.GradientTransformation:
    """Removes a part of g_t along g_{t-1} when their cosine is high   (GAC, arXiv 2603.01501, second-hand).

        cos(g_t, g_{t-1}) > alignment_threshold:  g_t - removed_fraction <g_t, g_{t-1}> g_{t-1} / |g_{t-1}|^2
        cos(g_t, g_{t-1}) > skip_threshold:       0   (1 switches this off)

    Biased by design: it slows coherent drift, fresh or stale. Could not be verified: both thresholds, the fraction,
    whether g_{t-1} is taken before or after the removal (before, here), and whether all this happens before Adam
    (`gac`) or to Adam's update (`gac_after_optimizer`).
    """

    def init(params: PyTree) -> AlignmentState:
        return AlignmentState(jax.tree.map(jnp.zeros_like, params))

    def update(updates: PyTree, state: AlignmentState, params: PyTree = None):
        del params
        product = optax.tree.vdot(updates, state.previous)
        square = optax.tree.norm(state.previous, squared=True)
        length = jnp.sqrt(square) * optax.tree.norm(updates)
        # A zero gradient, like that before the first, is aligned with nothing.
        cosine = jnp.where(length > 0, product / jnp.where(length > 0, length, 1.0), 0.0)
        aligned = cosine > alignment_threshold
        share = jnp.where(aligned, removed_fraction * product / jnp.where(square > 0, square, 1.0), 0.0)
        keep = jnp.where(cosine > skip_threshold, 0.0, 1.0)
        controlled = jax.tree.map(lambda g, p: (keep * (g - share * p)).astype(g.dtype), updates, state.previous)
        return controlled, AlignmentState(updates)

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class UpdateCorrection:
    """A gradient transformation, and its place. Its keyword arguments are its parameters."""

    transformation: Callable[..., optax.GradientTransformation]
    after_optimizer: bool  # acts on Adam's update, before the learning rate; else on the raw gradient


UPDATE_CORRECTIONS: dict[str, UpdateCorrection] = {
    "vcpo": UpdateCorrection(vcpo, after_optimizer=True),
    "gac": UpdateCorrection(gac, after_optimizer=False),
    "gac_after_optimizer": UpdateCorrection(gac, after_optimizer=True),
}
