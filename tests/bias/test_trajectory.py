"""Tests the lagged trajectory against a plain loop that keeps every version."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from staleness_grpo.bias import exact, trajectory
from staleness_grpo.staleness.schedule import make_schedule
from tests.bias import problems
from tests.bias.problems import OBJECTIVE, flatten

MAX_LAG = 3
ADAM = optax.scale_by_adam()


STATIC = ("objective", "optimizer", "batch_prompts", "max_lag", "coefficients")
RUN = jax.jit(trajectory.lagged_trajectory, static_argnames=STATIC)


corrected_gradient = jax.jit(
    exact.corrected_gradient, static_argnames=("objective", "coefficients")
)


def plain_importance_weights(policy_logprobs, behavior_logprobs):
    """Returns the coefficients of token_is: the ratio, never clipped."""
    ratio = jnp.exp(policy_logprobs - behavior_logprobs)
    return ratio, ratio


@pytest.mark.parametrize(
    ("schedule", "lag", "coefficients", "synchronous"),
    [
        ("constant", 2, None, False),
        ("cyclic", 3, None, False),
        ("constant", 2, plain_importance_weights, False),
        ("constant", 2, plain_importance_weights, True),
    ],
)
def test_against_a_plain_loop(schedule, lag, coefficients, synchronous):
    problem, _, policy = problems.make("tabular")
    chosen = coefficients or exact.clip_coefficients(OBJECTIVE)
    params = problems.initial_params(policy)
    num_steps, learning_rate = 7, 0.3
    lags_I = np.zeros(10, int)
    lags_I[:num_steps] = make_schedule(schedule, lag, num_groups=1).lags(np.arange(num_steps))[:, 0]

    versions, expected = [params], []
    optimizer = ADAM
    state = optimizer.init(params)
    for t in range(num_steps):
        behavior_params = versions[t - lags_I[t]]
        stale = corrected_gradient(problem, versions[t], behavior_params, OBJECTIVE, chosen)
        fresh = problems.surrogate_gradient(problem, versions[t], versions[t], OBJECTIVE)
        update, state = optimizer.update(fresh if synchronous else stale, state)
        a, b = flatten(stale), flatten(fresh)
        logprobs = [problems.logprobs(problem, p) for p in (versions[t], behavior_params)]
        expected.append(
            {
                "bias": jnp.linalg.norm(a - b),
                "displacement": jnp.linalg.norm(flatten(versions[t]) - flatten(behavior_params)),
                "gradient": jnp.linalg.norm(b),
                "cosine": a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b),
                "noise": 0.0,
                "update_norm": jnp.linalg.norm(flatten(update)),
                "clip_fraction": problems.clip_fraction(problem, *logprobs, OBJECTIVE),
                "log_ratio_max": jnp.max(jnp.abs(logprobs[0] - logprobs[1])),
            }
        )
        versions.append(jax.tree.map(lambda p, u: p + learning_rate * u, versions[t], update))

    records, last_params = RUN(
        problem,
        params,
        lags_I,
        num_steps,
        learning_rate,
        jax.random.key(0),
        objective=OBJECTIVE,
        optimizer=ADAM,
        batch_prompts=0,
        max_lag=MAX_LAG,
        coefficients=coefficients,
        synchronous=synchronous,
    )
    for name in trajectory.QUANTITIES:
        measured = np.asarray(records[name])
        # 1e-9: Adam divides by the root of tiny squares, which magnifies rounding.
        np.testing.assert_allclose(
            measured[:num_steps], [e[name] for e in expected], rtol=1e-9, atol=1e-14
        )
        assert np.all(measured[num_steps:] == 0)
    assert max(e["clip_fraction"] for e in expected) > 0 and expected[0]["bias"] < 1e-15
    np.testing.assert_allclose(flatten(last_params), flatten(versions[num_steps - 1]), rtol=1e-9)


def test_sampled_noise_depends_on_key_and_step_alone():
    """Two lags see the same groups at step 0, where their policy is the same.

    Another key sees others.
    """
    problem, _, policy = problems.make("tabular")

    def noise(lag, seed):
        lags_I = make_schedule("constant", lag, num_groups=1).lags(np.arange(4))[:, 0]
        records, _ = RUN(
            problem,
            problems.initial_params(policy),
            lags_I,
            4,
            0.1,
            jax.random.key(seed),
            objective=OBJECTIVE,
            optimizer=optax.identity(),
            batch_prompts=2,
            max_lag=MAX_LAG,
        )
        return np.asarray(records["noise"])

    first, lagged, other = noise(0, 0), noise(2, 0), noise(0, 1)
    assert np.all(first > 0)
    assert first[0] == lagged[0] and first[0] != other[0]
    assert np.all(first[1:] != lagged[1:])


@pytest.mark.parametrize(
    "exact_only", [dict(coefficients=plain_importance_weights), dict(synchronous=True)]
)
def test_sampled_groups_train_on_stale_rollouts_with_the_clip_alone(exact_only):
    problem, _, policy = problems.make("tabular")
    with pytest.raises(ValueError, match="batch_prompts=0"):
        trajectory.lagged_trajectory(
            problem,
            problems.initial_params(policy),
            np.zeros(1, int),
            1,
            0.1,
            jax.random.key(0),
            objective=OBJECTIVE,
            optimizer=ADAM,
            batch_prompts=1,
            max_lag=0,
            **exact_only,
        )
