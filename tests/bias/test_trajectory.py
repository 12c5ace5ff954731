"""The lagged trajectory against a plain loop that keeps every version."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from staleness_grpo.bias import trajectory
from staleness_grpo.staleness.schedule import make_schedule
from tests.bias import problems
from tests.bias.problems import OBJECTIVE, flatten

MAX_LAG = 3


@pytest.mark.parametrize(("schedule", "lag"), [("constant", 2), ("cyclic", 3)])
def test_against_a_plain_loop(schedule, lag):
    problem, _, policy = problems.make("tabular")
    params = problems.initial_params(policy)
    num_steps, learning_rate = 7, 0.3
    lags_K = np.zeros(10, int)
    lags_K[:num_steps] = make_schedule(schedule, lag, num_groups=1).lags(np.arange(num_steps))[:, 0]

    versions, expected = [params], []
    optimizer = optax.scale_by_adam()
    state = optimizer.init(params)
    for t in range(num_steps):
        behavior_params = versions[t - lags_K[t]]
        gradient = problems.surrogate_gradient(problem, versions[t], behavior_params, OBJECTIVE)
        bias = problems.surrogate_bias(problem, versions[t], behavior_params, OBJECTIVE)
        update, state = optimizer.update(gradient, state)
        logprobs = [problems.logprobs(problem, p) for p in (versions[t], behavior_params)]
        expected.append(
            {
                "bias": jnp.linalg.norm(flatten(bias)),
                "displacement": jnp.linalg.norm(flatten(versions[t]) - flatten(behavior_params)),
                "gradient": jnp.linalg.norm(flatten(gradient) - flatten(bias)),
                "noise": 0.0,
                "update_norm": jnp.linalg.norm(flatten(update)),
                "clip_fraction": problems.clip_fraction(problem, *logprobs, OBJECTIVE),
                "log_ratio_max": jnp.max(jnp.abs(logprobs[0] - logprobs[1])),
            }
        )
        versions.append(jax.tree.map(lambda p, u: p + learning_rate * u, versions[t], update))

    run = jax.jit(trajectory.lagged_trajectory, static_argnames=("objective", "optimizer", "batch_prompts", "max_lag"))
    records, last_params = run(
        problem, params, lags_K, num_steps, learning_rate, jax.random.key(0),
        objective=OBJECTIVE, optimizer=optimizer, batch_prompts=0, max_lag=MAX_LAG,
    )  # fmt: skip
    for name in trajectory.QUANTITIES:
        measured = np.asarray(records[name])
        # 1e-9: Adam divides by the root of tiny squares, which magnifies rounding.
        np.testing.assert_allclose(measured[:num_steps], [e[name] for e in expected], rtol=1e-9, atol=1e-14)
        assert np.all(measured[num_steps:] == 0)
    assert max(e["clip_fraction"] for e in expected) > 0 and expected[0]["bias"] < 1e-15
    np.testing.assert_allclose(flatten(last_params), flatten(versions[num_steps - 1]), rtol=1e-9)


def test_sampled_noise_depends_on_key_and_step_alone():
    """Two lags see the same groups at step 0, where the policy is the same; another key sees others."""
    problem, _, policy = problems.make("tabular")
    run = jax.jit(trajectory.lagged_trajectory, static_argnames=("objective", "optimizer", "batch_prompts", "max_lag"))

    def noise(lag, seed):
        lags_K = make_schedule("constant", lag, num_groups=1).lags(np.arange(4))[:, 0]
        records, _ = run(
            problem, problems.initial_params(policy), lags_K, 4, 0.1, jax.random.key(seed),
            objective=OBJECTIVE, optimizer=optax.identity(), batch_prompts=2, max_lag=MAX_LAG,
        )  # fmt: skip
        return np.asarray(records["noise"])

    first, lagged, other = noise(0, 0), noise(2, 0), noise(0, 1)
    assert np.all(first > 0)
    assert first[0] == lagged[0] and first[0] != other[0]
    assert np.all(first[1:] != lagged[1:])
