"""What lag can and cannot do to the exact, unclipped dynamics theta' = theta + eta H(theta, phi).

With one token per response and two reward levels, E[A | y] depends on the level alone. So
H(theta, phi) = c(phi) grad V(theta) for each prompt, with c > 0: old rollouts rescale the step and
never turn it. Where grad V is 0, the derivative of H in phi is 0 too, so lag is absent from the
linearized dynamics. With two tokens the ratio of one token is not that of the response, and both
statements fail.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.bias import exact
from staleness_grpo.bias.enumeration import expected_reward
from staleness_grpo.objective.surrogate import SurrogateConfig
from tests.bias import problems

UNCLIPPED = SurrogateConfig(clip_low=1.0, clip_high=1e9, std_epsilon=1e-4)
CLIPPED = SurrogateConfig(clip_low=0.2, clip_high=0.2, std_epsilon=1e-4)
ONE_TOKEN = {"max_response_length": 1, "num_prompts": 1, "vocab_size": 5, "variable_length": False}


def functions(objective=UNCLIPPED, **fields):
    problem, _, policy = problems.make("tabular", 4, **(ONE_TOKEN | fields))
    flat, unravel = jax.flatten_util.ravel_pytree(problems.initial_params(policy))

    def update(theta, phi):
        def surrogate(at):
            return exact.surrogate(problem, unravel(at), unravel(phi), objective)

        return jax.grad(surrogate)(theta)

    def value(theta):
        return expected_reward(problem, unravel(theta))

    return flat, jax.jit(update), jax.jit(value), jax.jit(jax.grad(value))


def parted(theta, scale, seed=0):
    return theta + scale * np.random.default_rng(seed).normal(size=theta.size)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_old_rollouts_rescale_the_step_and_do_not_turn_it(scale):
    theta, update, _, slope = functions()
    for seed in range(4):
        phi = parted(theta, scale, seed)
        assert cosine(update(theta, phi), slope(theta)) == pytest.approx(1, abs=1e-10)


def test_with_two_tokens_or_with_clipping_they_turn_it():
    theta, update, _, slope = functions(max_response_length=2, vocab_size=3)
    assert cosine(update(theta, parted(theta, 1.0)), slope(theta)) < 0.999
    theta, update, _, slope = functions(CLIPPED)
    assert cosine(update(theta, parted(theta, 1.0)), slope(theta)) < 0.999


def test_where_the_slope_vanishes_so_does_the_derivative_in_phi():
    """A policy that is nearly always right: the derivative falls as the slope does."""
    theta, update, value, slope = functions()
    rows = [theta + step * slope(theta) for step in (0.0, 30.0, 300.0)]
    assert value(rows[-1]) > 0.99
    norms = []
    for row in rows:
        in_phi = np.linalg.norm(jax.jacobian(update, argnums=1)(row, row))
        norms.append((np.linalg.norm(slope(row)), in_phi))
    assert norms[2][0] < 0.1 * norms[0][0] and norms[2][1] < 0.2 * norms[0][1]
    # The derivative has rank one, along the slope.
    left, size, _ = np.linalg.svd(np.asarray(jax.jacobian(update, argnums=1)(theta, theta)))
    assert size[1] < 1e-10 * size[0]
    assert abs(cosine(left[:, 0], slope(theta))) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("max_lag", [0, 4, 16])
def test_without_clipping_the_reward_rises_at_every_step_whatever_the_lag(max_lag):
    theta, update, value, _ = functions()
    versions, rewards = [theta], []
    for step in range(200):
        behavior = versions[max(step - max_lag, 0)]
        versions.append(versions[-1] + 0.2 * update(versions[-1], behavior))
        rewards.append(float(value(versions[-1])))
    assert np.all(np.diff(rewards) > -1e-12)
    assert rewards[-1] > 0.9
    assert jnp.isfinite(versions[-1]).all()
