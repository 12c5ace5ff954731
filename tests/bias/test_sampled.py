"""Tests that the sampled gradient, through the code that trains, averages to the exact one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.bias.enumeration import response_logprobs
from staleness_grpo.bias.sampling import sampled_cotangent
from tests.bias import problems
from tests.bias.problems import OBJECTIVE, flatten, fresh_and_stale

CHUNK = 10_000
NUM_BATCHES = 200_000  # each of one group for one or both prompts


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "batch_prompts"), [(0.0, 1), (0.3, 2)])
def test_sampled_gradient_averages_to_the_exact_one(scale, batch_prompts):
    problem, _, policy = problems.make(
        "transformer", group_size=4, reward_levels=(0.0, 0.5, 1.0), difficulty=0.4
    )
    params, behavior_params = fresh_and_stale(policy, scale)
    policy_logprobs, behavior_logprobs = (
        problems.logprobs(problem, p) for p in (params, behavior_params)
    )
    jacobian = jax.jit(jax.jacrev(lambda p: response_logprobs(problem, p).ravel()))(params)
    jacobian = jnp.concatenate(
        [x.reshape(policy_logprobs.size, -1) for x in jax.tree.leaves(jacobian)], axis=1
    )

    @jax.jit
    def chunk(key):
        def sample(key):
            return sampled_cotangent(
                problem, policy_logprobs, behavior_logprobs, OBJECTIVE, batch_prompts, key
            )

        return jax.vmap(sample)(jax.random.split(key, CHUNK)).reshape(CHUNK, -1) @ jacobian

    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(NUM_BATCHES // CHUNK)]
    gradients = np.concatenate([chunk(key) for key in keys])
    expected = np.asarray(
        flatten(problems.surrogate_gradient(problem, params, behavior_params, OBJECTIVE))
    )
    deviation = gradients.mean(axis=0) - expected
    standard_error = gradients.std(axis=0, ddof=1) / np.sqrt(len(gradients))
    moving = standard_error > 0
    assert moving.sum() > 100 and np.all(np.abs(deviation[~moving]) < 1e-15)
    assert np.max(np.abs(deviation[moving]) / standard_error[moving]) < 4

    # rms error over disjoint blocks of n batches falls as n^-1/2.
    sizes = np.array([10, 100, 1000])
    rms = [
        np.sqrt(
            np.mean(
                np.sum(
                    (gradients.reshape(-1, n, expected.size).mean(axis=1) - expected) ** 2, axis=1
                )
            )
        )
        for n in sizes
    ]
    slope = np.polyfit(np.log(sizes), np.log(rms), 1)[0]
    # 200 blocks of the largest size: the rms is known to about 4 %, the slope to about 0.01.
    np.testing.assert_allclose(slope, -0.5, atol=0.03)
