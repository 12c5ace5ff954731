"""Makes the loss, which is the negative surrogate of a rollout as a function of the parameters.

The policy may run on microbatches. The surrogate's batch statistics are always computed from the
whole batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from staleness_grpo.objective.advantages import group_advantages, optimal_baseline_weights
from staleness_grpo.objective.corrections import registry, signatures
from staleness_grpo.objective.reference_kl import kl_terms
from staleness_grpo.objective.surrogate import (
    SurrogateConfig,
    corrected_surrogate,
    token_weights,
)
from staleness_grpo.objective.update_rules import sequence_ess
from staleness_grpo.policy.base import AnyPolicy
from staleness_grpo.policy.logprobs import response_logprobs
from staleness_grpo.policy.truncation import Truncation
from staleness_grpo.training.microbatches import accumulated, in_microbatches
from staleness_grpo.training.score_norms import score_norms
from staleness_grpo.types import Array, PyTree, Responses, Rollout

EndToken = int | tuple[int, ...] | None
Loss = Callable[[PyTree, Rollout], tuple[jax.Array, dict[str, jax.Array]]]


def surrogate_loss(
    policy: AnyPolicy,
    surrogate: SurrogateConfig,
    temperature: float,
    correction: Any = None,
    microbatch_prompts: int = 0,
    end_token: EndToken = None,
    drop_truncated: bool = False,
    reference: Any = None,
    truncation: Truncation | None = None,
    entropy_bonus: float = 0.0,
) -> Loss:
    """Returns the loss (params, rollout) -> (loss, diagnostics). Its gradient is -H.

    Args:
      policy, surrogate, temperature: the settings of the run.
      correction: `config.correction`; None for the clip of GRPO.
      microbatch_prompts: number of groups that the policy processes at a time; 0: the whole batch.
        A correction that needs all log-probabilities before any gradient takes two passes over the
        policy (`in_microbatches`), and so does an entropy bonus. Others take one (`accumulated`).
      end_token, drop_truncated, reference, entropy_bonus: see `logprobs_loss`.
      truncation: the truncation of the learner's distribution; None for the full distribution.
    """
    loss_of_logprobs = logprobs_loss(
        surrogate, correction, end_token, drop_truncated, reference, entropy_bonus
    )
    chosen = registry.CORRECTIONS["grpo_clip" if correction is None else correction.name]
    if chosen.optimal_baseline:
        add_norms = score_norms_function(
            policy, temperature, microbatch_prompts, end_token, drop_truncated, truncation
        )
    takes_two_passes = chosen.reads_other_responses or entropy_bonus > 0
    if microbatch_prompts and not takes_two_passes:
        logprobs_of = logprobs_function(policy, temperature, truncation=truncation)
        loss_fn = accumulated(logprobs_of, loss_of_logprobs, scored_batch, microbatch_prompts)
    else:
        logprobs_of = logprobs_function(
            policy, temperature, microbatch_prompts, truncation, entropy_bonus > 0
        )

        def loss_fn(params, rollout):
            logprobs, entropy = logprobs_of(params, *scored_batch(rollout))
            return loss_of_logprobs(logprobs, entropy, rollout)

    if not chosen.optimal_baseline:
        return loss_fn
    return lambda params, rollout: loss_fn(params, add_norms(params, rollout))


def score_norms_function(
    policy: AnyPolicy,
    temperature: float,
    microbatch_prompts: int = 0,
    end_token: EndToken = None,
    drop_truncated: bool = False,
    truncation: Truncation | None = None,
) -> Callable[[PyTree, Rollout], Rollout]:
    """Returns (params, rollout) -> the rollout with `score_norms_NxG`, for the optimal baseline.

    The arguments are those of `surrogate_loss`. A response that has no part in the loss has norm 0.
    """
    logprobs_of = logprobs_function(policy, temperature, truncation=truncation)

    def add_norms(params, rollout):
        prompts, tokens, mask = scored_batch(rollout)
        if drop_truncated:
            mask = mask & ~truncated(rollout.responses, end_token)[..., None]
        norms = score_norms(logprobs_of, params, prompts, tokens, mask, microbatch_prompts)
        return dataclasses.replace(rollout, score_norms_NxG=norms)

    return add_norms


def logprobs_function(
    policy: AnyPolicy,
    temperature: float,
    microbatch_prompts: int = 0,
    truncation: Truncation | None = None,
    entropy_gradient: bool = False,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns (params, prompts, tokens, mask) -> (log pi of tokens, entropy), both [N, G, R]."""

    def logprobs_of(params, prompts, tokens_NxGxR, mask_NxGxR):
        batch = prompts, tokens_NxGxR, mask_NxGxR
        return response_logprobs(policy, params, *batch, temperature, truncation, entropy_gradient)

    return in_microbatches(logprobs_of, microbatch_prompts) if microbatch_prompts else logprobs_of


def scored_batch(rollout: Rollout) -> tuple:
    """Returns the arguments of a `logprobs_function` that follow the parameters."""
    return rollout.prompts, rollout.responses.tokens_NxGxR, rollout.responses.mask_NxGxR


def logprobs_loss(
    surrogate: SurrogateConfig,
    correction: Any = None,
    end_token: EndToken = None,
    drop_truncated: bool = False,
    reference: Any = None,
    entropy_bonus: float = 0.0,
) -> Callable[[Array, Array, Rollout], tuple[jax.Array, dict[str, jax.Array]]]:
    """Returns the loss as a function (log pi, entropy, rollout) -> (loss, diagnostics).

    Advantages are computed within groups. Length normalization and correction use the whole batch.

    Args:
      surrogate, correction: as in `surrogate_loss`.
      end_token: the tokens that end a response; None if every response has the full length.
      drop_truncated: whether responses that were cut at the length limit have no part in the loss,
        as in the overlong filtering of DAPO (arXiv 2503.14476). Their tokens count as masked. Their
        rewards still count in the advantages of their group, but not in an optimal baseline.
      reference: `config.reference`, if the divergence from a reference policy is a penalty. It is
        added to the loss with the weights of the tokens. Or it is summed over the tokens of a
        response, with the behavior policy's log-probabilities, and subtracted from its reward.
      entropy_bonus: weight of the policy's entropy, which is subtracted from the loss with the
        weights of the tokens.
    """
    name = "grpo_clip" if correction is None else correction.name
    has_optimal_baseline = registry.CORRECTIONS[name].optimal_baseline
    objective = registry.CORRECTIONS[name].token_objective
    overrides = {} if correction is None else signatures.chosen_parameters(objective, correction)
    token_objective = registry.bind(name, surrogate, overrides)

    def divergence(logprobs, rollout, mask):
        """Returns the divergence of each token from the reference policy, 0 where masked."""
        logprobs = jnp.where(mask, logprobs, 0.0)
        reference_logprobs = jnp.where(mask, rollout.reference_logprobs_NxGxR, 0.0)
        return kl_terms(logprobs, reference_logprobs, reference.estimator)

    def loss_of_logprobs(policy_logprobs, entropy, rollout):
        responses = rollout.responses
        rewards = jnp.asarray(rollout.rewards_NxG, policy_logprobs.dtype)
        judged = rewards
        if reference is not None and reference.in_reward:
            mask = rollout.responses.mask_NxGxR
            behavior = rollout.responses.behavior_logprobs_NxGxR
            judged = rewards - reference.kl * jnp.sum(divergence(behavior, rollout, mask), axis=-1)
        behavior_logprobs, mask = responses.behavior_logprobs_NxGxR, responses.mask_NxGxR
        baseline_weights = None
        if has_optimal_baseline:
            baseline_weights = optimal_baseline_weights(
                policy_logprobs, behavior_logprobs, mask, rollout.score_norms_NxG
            )
        advantages = group_advantages(
            judged,
            normalize_std=surrogate.normalize_std,
            std_epsilon=surrogate.std_epsilon,
            baseline_weights_NxG=baseline_weights,
        )
        is_truncated = truncated(responses, end_token)
        loss_mask = mask & ~is_truncated[..., None] if drop_truncated else mask
        proximal_logprobs = rollout.proximal_logprobs_NxGxR
        loss, diagnostics = corrected_surrogate(
            policy_logprobs,
            behavior_logprobs,
            policy_logprobs if proximal_logprobs is None else proximal_logprobs,
            advantages,
            loss_mask,
            surrogate.length_normalization,
            token_objective,
        )
        tokens = jnp.maximum(jnp.sum(mask), 1)
        if entropy_bonus:
            weights = token_weights(loss_mask, surrogate.length_normalization)
            loss -= entropy_bonus * jnp.sum(weights * jnp.where(loss_mask, entropy, 0.0))
        if reference is not None:
            # Of cut responses that are left out too: their tokens have no weight below.
            terms = divergence(policy_logprobs, rollout, mask)
            if not reference.in_reward:
                weights = token_weights(loss_mask, surrogate.length_normalization)
                loss += reference.kl * jnp.sum(weights * terms)
            diagnostics["reference_kl"] = jnp.sum(jax.lax.stop_gradient(terms)) / tokens
        diagnostics |= {
            "sequence_ess": sequence_ess(policy_logprobs, behavior_logprobs, loss_mask),
            "entropy": jnp.sum(entropy) / tokens,
            "reward": jnp.mean(rewards),
            "reward_std_in_group": jnp.mean(jnp.std(rewards, axis=-1)),
            "zero_std_fraction": jnp.mean(jnp.ptp(rewards, axis=-1) == 0),
            "response_length": jnp.mean(jnp.sum(mask, axis=-1)),
            "truncated_fraction": jnp.mean(is_truncated),
        }
        return loss, diagnostics

    return loss_of_logprobs


def truncated(responses: Responses, end_token: EndToken) -> Array:
    """Returns for each response whether the length limit cut it: bool [N, G].

    Such a response has the full length, and its last token does not end it. No response is cut if
    `end_token` is None.
    """
    if end_token is None:
        return jnp.zeros(responses.mask_NxGxR.shape[:2], bool)
    last_token, is_full = responses.tokens_NxGxR[..., -1], responses.mask_NxGxR[..., -1]
    return is_full & ~jnp.isin(last_token, jnp.asarray(end_token))
