"""The sampled gradient, through the code that trains, averages to the exact one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.bias import exact
from staleness_grpo.bias.enumeration import response_logprobs
from staleness_grpo.objective.advantages import group_advantages
from staleness_grpo.objective.surrogate import grpo_surrogate
from tests.bias import problems
from tests.bias.problems import OBJECTIVE, flatten, fresh_and_stale

CHUNK = 10_000


def sampled_gradients(problem, task, policy, params, behavior_params, num_batches):
    """One gradient [D] for each of `num_batches` batches with one group for every prompt."""
    behavior_logprobs = response_logprobs(problem, behavior_params)
    rewards_NxY = jnp.asarray(task.reward_table, jnp.float64)
    num_prompts = len(rewards_NxY)
    rows_Nx1 = jnp.arange(num_prompts)[:, None]

    def loss(policy_logprobs, responses_NxG):
        advantages = group_advantages(
            rewards_NxY[rows_Nx1, responses_NxG],
            normalize_std=OBJECTIVE.normalize_std,
            std_epsilon=OBJECTIVE.std_epsilon,
        )
        flat = [x.reshape(-1, *x.shape[2:]) for x in (
            policy_logprobs[rows_Nx1, responses_NxG],
            behavior_logprobs[rows_Nx1, responses_NxG],
            advantages,
            jnp.asarray(problem.mask_YxR)[responses_NxG],
        )]  # fmt: skip
        return grpo_surrogate(*flat, OBJECTIVE)[0]

    policy_logprobs = response_logprobs(problem, params)
    jacobian = jax.jacrev(lambda p: response_logprobs(problem, p).ravel())(params)
    jacobian = jnp.concatenate([x.reshape(policy_logprobs.size, -1) for x in jax.tree.leaves(jacobian)], axis=1)

    @jax.jit
    def chunk(key):
        shape = (CHUNK, num_prompts, problem.group_size)
        log_probs_NxY = jnp.sum(behavior_logprobs, axis=-1)
        responses = jax.random.categorical(key, log_probs_NxY[:, None], axis=-1, shape=shape)
        cotangents = jax.vmap(jax.grad(loss), in_axes=(None, 0))(policy_logprobs, responses)
        return -cotangents.reshape(CHUNK, -1) @ jacobian

    return np.concatenate([chunk(jax.random.fold_in(jax.random.key(0), i)) for i in range(num_batches // CHUNK)])


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_sampled_gradient_averages_to_the_exact_one(scale):
    problem, task, policy = problems.make("transformer", group_size=4, reward_levels=(0.0, 0.5, 1.0), difficulty=0.4)
    params, behavior_params = fresh_and_stale(policy, scale)
    gradients = sampled_gradients(problem, task, policy, params, behavior_params, 200_000)
    expected = np.asarray(flatten(exact.surrogate_gradient(problem, params, behavior_params, OBJECTIVE)))
    deviation = gradients.mean(axis=0) - expected
    standard_error = gradients.std(axis=0, ddof=1) / np.sqrt(len(gradients))
    moving = standard_error > 0
    assert moving.sum() > 100 and np.all(np.abs(deviation[~moving]) < 1e-15)
    assert np.max(np.abs(deviation[moving]) / standard_error[moving]) < 4

    # rms error over disjoint blocks of n batches falls as n^-1/2.
    sizes = np.array([10, 100, 1000])
    rms = [
        np.sqrt(np.mean(np.sum((gradients.reshape(-1, n, expected.size).mean(axis=1) - expected) ** 2, axis=1)))
        for n in sizes
    ]
    slope = np.polyfit(np.log(sizes), np.log(rms), 1)[0]
    # 200 blocks of the largest size: the rms is known to about 4 %, the slope to about 0.01.
    np.testing.assert_allclose(slope, -0.5, atol=0.03)
