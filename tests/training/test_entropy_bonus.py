"""The entropy bonus: its gradient against the definition, microbatches, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FieldError
from staleness_grpo.objective.surrogate import LENGTH_NORMALIZATIONS, SurrogateConfig
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.training.loop import train
from staleness_grpo.training.loss import surrogate_loss
from staleness_grpo.types import Prompts, Responses, Rollout
from tests.helpers.tiny import tiny_config

BONUS, TEMPERATURE = 0.7, 1.3
N, G, P, R = 4, 3, 2, 3


@pytest.fixture(scope="module")
def problem():
    """Returns a float64 policy with its parameters, and a rollout of random tokens."""
    with jax.enable_x64(True):
        config = TransformerConfig(
            vocab_size=5,
            num_layers=1,
            d_model=8,
            num_heads=2,
            num_kv_heads=1,
            head_dim=4,
            d_ff=8,
            dtype="float64",
            param_dtype="float64",
        )
        policy, rng = Policy(config), np.random.default_rng(0)
        params = jax.jit(policy.init)(jax.random.key(0))
        prompts = Prompts(rng.integers(5, size=(N, P)), np.ones((N, P), bool), np.arange(N))
        mask = np.arange(R) < rng.integers(1, R + 1, size=(N, G, 1))
        tokens = rng.integers(5, size=(N, G, R))
        behavior = np.where(mask, -rng.exponential(size=mask.shape), 0.0)
        responses = Responses(tokens, mask, behavior)
        yield policy, params, Rollout(prompts, responses, rng.normal(size=(N, G)), np.zeros(N, int))


def gradient(problem, bonus, surrogate, microbatch=0):
    policy, params, rollout = problem
    loss = surrogate_loss(policy, surrogate, TEMPERATURE, None, microbatch, entropy_bonus=bonus)
    return ravel_pytree(jax.jit(jax.grad(lambda p: loss(p, rollout)[0]))(params))[0]


@pytest.mark.parametrize("normalization", LENGTH_NORMALIZATIONS)
def test_its_gradient_is_that_of_the_entropy_of_whole_sequences(normalization, problem):
    """The reference runs the policy on each sequence alone, and sums over the vocabulary."""
    policy, params, rollout = problem
    surrogate = SurrogateConfig(length_normalization=normalization)
    tokens, mask = rollout.responses.tokens_NxGxR, rollout.responses.mask_NxGxR
    lengths = mask.sum(axis=-1, keepdims=True)
    weights = {
        "response": 1 / (N * G * lengths),
        "constant": np.full(mask.shape, 1 / (N * G * R)),
        "tokens": np.full(mask.shape, 1 / mask.sum()),
    }[normalization] * mask

    prompts = np.repeat(rollout.prompts.tokens_NxP, G, axis=0)
    sequences = np.concatenate([prompts, tokens.reshape(N * G, R)], axis=1)

    @jax.jit
    def weighted_entropy(params):
        logits = policy.apply(params, sequences)[:, P - 1 : -1] / TEMPERATURE
        q = jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=-1, keepdims=True)
        return jnp.sum(weights.reshape(N * G, R) * -jnp.sum(q * jnp.log(q), axis=-1))

    with jax.enable_x64(True):
        found = gradient(problem, BONUS, surrogate) - gradient(problem, 0.0, surrogate)
        expected = -BONUS * ravel_pytree(jax.grad(weighted_entropy)(params))[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        assert np.abs(expected).max() > 1e-3


def test_microbatches_give_the_same_gradient(problem):
    with jax.enable_x64(True):
        whole = gradient(problem, BONUS, SurrogateConfig())
        parts = gradient(problem, BONUS, SurrogateConfig(), microbatch=2)
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-12)


def test_it_keeps_the_entropy_high():
    plain = {"optimizer.name": "sgd", "optimizer.learning_rate": 1.0, "steps": 15}
    rewarded = tiny_config(**plain, **{"entropy_bonus": 1.0})
    with_bonus = [record["entropy"] for record in train(build_run(rewarded))]
    without = [record["entropy"] for record in train(build_run(tiny_config(**plain)))]
    assert with_bonus[0] == without[0] and with_bonus[-1] > without[-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "^entropy_bonus=-0.1: give a number >= 0"),
        ({"entropy_bonus": 0.1, "policy.vocab_chunks": 5}, "^entropy_bonus=0.1: .*vocab_chunks=1"),
        ({"entropy_bonus": 0.1, "sampler.top_k": 3}, "^entropy_bonus=0.1: .*distribution=full"),
    ],
)
def test_a_bonus_without_a_gradient_is_refused(fields, message):
    with pytest.raises(FieldError, match=message):
        validation.validate(tiny_config(**{"entropy_bonus": -0.1} | fields), 1)
