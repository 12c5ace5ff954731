"""Makes the loss, which is the negative surrogate of a rollout as a function of the parameters.

The policy may run on microbatches. The surrogate's batch statistics are always computed from the
whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from staleness_grpo.objective.advantages import group_advantages
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig, corrected_surrogate
from staleness_grpo.objective.update_rules import sequence_ess
from staleness_grpo.policy.logprobs import response_logprobs
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.training.microbatches import accumulated, in_microbatches
from staleness_grpo.types import Array, PyTree, Rollout

Loss = Callable[[PyTree, Rollout], tuple[jax.Array, dict[str, jax.Array]]]


def surrogate_loss(
    policy: Policy,
    surrogate: SurrogateConfig,
    temperature: float,
    correction: Any = None,
    microbatch_prompts: int = 0,
) -> Loss:
    """Returns the loss (params, rollout) -> (loss, diagnostics). Its gradient is -H.

    Args:
      policy, surrogate, temperature: the settings of the run.
      correction: `config.correction`; None for the clip of GRPO.
      microbatch_prompts: number of groups that the policy processes at a time; 0: the whole batch.
        A correction that needs all log-probabilities before any gradient takes two passes over the
        policy (`in_microbatches`). Other corrections take one pass (`accumulated`).
    """
    loss_of_logprobs = logprobs_loss(surrogate, correction)
    name = "grpo_clip" if correction is None else correction.name
    if microbatch_prompts and not registry.CORRECTIONS[name].reads_other_responses:
        logprobs_of = logprobs_function(policy, temperature)
        return accumulated(logprobs_of, loss_of_logprobs, scored_batch, microbatch_prompts)
    logprobs_of = logprobs_function(policy, temperature, microbatch_prompts)

    def loss_fn(params, rollout):
        logprobs, entropy = logprobs_of(params, *scored_batch(rollout))
        return loss_of_logprobs(logprobs, entropy, rollout)

    return loss_fn


def logprobs_function(
    policy: Policy, temperature: float, microbatch_prompts: int = 0
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns (params, prompts, tokens, mask) -> (log pi of tokens, entropy), both [N, G, R]."""

    def logprobs_of(params, prompts, tokens_NxGxR, mask_NxGxR):
        return response_logprobs(policy, params, prompts, tokens_NxGxR, mask_NxGxR, temperature)

    return in_microbatches(logprobs_of, microbatch_prompts) if microbatch_prompts else logprobs_of


def scored_batch(rollout: Rollout) -> tuple:
    """Returns the arguments of a `logprobs_function` that follow the parameters."""
    return rollout.prompts, rollout.responses.tokens_NxGxR, rollout.responses.mask_NxGxR


def logprobs_loss(
    surrogate: SurrogateConfig, correction: Any = None
) -> Callable[[Array, Array, Rollout], tuple[jax.Array, dict[str, jax.Array]]]:
    """Returns the loss as a function (log pi, entropy, rollout) -> (loss, diagnostics).

    Advantages are computed within groups. Length normalization and correction use the whole batch.
    """
    name = "grpo_clip" if correction is None else correction.name
    objective = registry.CORRECTIONS[name].token_objective
    overrides = {} if correction is None else registry.chosen_parameters(objective, correction)
    token_objective = registry.bind(name, surrogate, overrides)

    def loss_of_logprobs(policy_logprobs, entropy, rollout):
        responses = rollout.responses
        rewards = jnp.asarray(rollout.rewards_NxG, policy_logprobs.dtype)
        advantages = group_advantages(
            rewards, normalize_std=surrogate.normalize_std, std_epsilon=surrogate.std_epsilon
        )
        behavior_logprobs, mask = responses.behavior_logprobs_NxGxR, responses.mask_NxGxR
        proximal_logprobs = rollout.proximal_logprobs_NxGxR
        loss, diagnostics = corrected_surrogate(
            policy_logprobs,
            behavior_logprobs,
            policy_logprobs if proximal_logprobs is None else proximal_logprobs,
            advantages,
            mask,
            surrogate.length_normalization,
            token_objective,
        )
        tokens = jnp.maximum(jnp.sum(mask), 1)
        diagnostics |= {
            "sequence_ess": sequence_ess(policy_logprobs, behavior_logprobs, mask),
            "entropy": jnp.sum(entropy) / tokens,
            "reward": jnp.mean(rewards),
            "reward_std_in_group": jnp.mean(jnp.std(rewards, axis=-1)),
            "response_length": jnp.mean(jnp.sum(mask, axis=-1)),
        }
        return loss, diagnostics

    return loss_of_logprobs
