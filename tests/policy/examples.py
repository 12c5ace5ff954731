"""Makes small policies, parameters and rollouts for the tests of the policy."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
import numpy as np

from staleness_grpo.policy.transformer import Policy
from staleness_grpo.types import Prompts, PyTree, Responses, Rollout


def random_params(policy: Policy, seed: int = 0) -> PyTree:
    """Draws every leaf at random, norms and biases too: a norm of ones hides a missing norm."""
    abstract = jax.eval_shape(policy.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (0.5 + rng.normal(size=leaf.shape) * 0.3).astype(leaf.dtype), abstract
    )


def random_rollout(num_prompts: int = 6, group_size: int = 3, length: int = 4) -> Rollout:
    """Draws a rollout with 12 tokens, prompts of 1 to 3, and responses of 0 to `length` tokens.

    The behavior log-probabilities are NaN where masked, so that a leak shows.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 12, (num_prompts, group_size, length))
    lengths = rng.integers(0, length + 1, (num_prompts, group_size, 1))
    mask = np.arange(length) < lengths
    prompts = rng.integers(0, 12, (num_prompts, 3))
    prompt_mask = np.arange(3) >= rng.integers(0, 3, (num_prompts, 1))
    behavior_logprobs = np.where(mask, -2.5 + 0.5 * rng.normal(size=mask.shape), np.nan)
    return Rollout(
        prompts=Prompts(prompts, prompt_mask, np.arange(num_prompts)),
        responses=Responses(tokens, mask, behavior_logprobs),
        rewards_NxG=rng.normal(size=(num_prompts, group_size)),
        behavior_version_N=np.zeros(num_prompts, int),
    )


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields all equations of a program, with those of its loops and functions."""
    for equation in jaxpr.eqns:
        yield equation
        for sub in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(sub)
