"""Batches of tokens, and their surrogate by the package and by the reference."""

import functools

import jax
import numpy as np

from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig, corrected_surrogate
from tests.helpers import correction_reference

CLIP = {"clip_low": 0.15, "clip_high": 0.3}  # asymmetric, so that swapped bounds show


def surrogate_config(name, **fields):
    """Returns a surrogate that the correction's definition allows."""
    correction = registry.CORRECTIONS[name]
    fixed = {
        "length_normalization": correction.length_normalization,
        "normalize_std": correction.normalize_std,
    }
    return SurrogateConfig(
        **{**CLIP, **fields, **{key: value for key, value in fixed.items() if value is not None}}
    )


def random_batch(seed=0, num_responses=14, length=6, drift=0.4):
    """Returns policy, behavior and proximal log-probabilities, advantages and mask.

    There are two responses of each length from 0 on.
    """
    rng = np.random.default_rng(seed)
    behavior = -rng.exponential(size=(num_responses, length)) - 0.05
    proximal = behavior + rng.normal(scale=drift, size=behavior.shape)
    policy = proximal + rng.normal(scale=drift, size=behavior.shape)
    mask = np.arange(length) < np.arange(num_responses)[:, None] % (length + 1)
    return policy, behavior, proximal, rng.normal(size=num_responses), mask


@functools.partial(jax.jit, static_argnames=("name", "config"))
def jitted(arrays, overrides, name, config):
    token_objective = registry.bind(name, config, overrides)
    policy, behavior, proximal, advantages, mask = arrays
    normalization = config.length_normalization

    def loss(policy_logprobs):
        return corrected_surrogate(
            policy_logprobs, behavior, proximal, advantages, mask, normalization, token_objective
        )[0]

    return jax.value_and_grad(loss)(policy)


def ascent(name, arrays, config, overrides):
    """Returns (L, dL/dlog pi) of a batch by the package.

    The parameters are traced, so that one program serves all their values.
    """
    loss, gradient = jitted(arrays, overrides, name, config)
    return -np.asarray(loss), -np.asarray(gradient)


def expected(name, arrays, config, overrides):
    """Returns (L, dL/dlog pi) of a batch by the reference."""
    parameters = registry.parameters(name) | overrides
    if registry.uses_surrogate_clip(name):
        parameters |= {"clip_low": config.clip_low, "clip_high": config.clip_high}
    batch = correction_reference.Batch(*arrays)
    objective, slope = getattr(correction_reference, name)(batch, **parameters)
    num_responses, length = batch.mask.shape
    divisor = {
        "response": num_responses * np.maximum(batch.mask.sum(axis=1, keepdims=True), 1),
        "constant": num_responses * length,
        "tokens": max(batch.mask.sum(), 1),
    }[config.length_normalization]
    return np.sum(objective / divisor), slope / divisor
