"""A value that is not finite shows in the loss or in its gradient, whatever the correction.

No guard against division by zero, and no mask, takes NaN for a legitimate value.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from staleness_grpo.errors import FieldError
from staleness_grpo.objective import update_rules
from staleness_grpo.objective.advantages import group_advantages
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig, corrected_surrogate
from staleness_grpo.tasks.enumerable import EnumerableTask

SHAPE = num_responses, length = 6, 4


@functools.partial(jax.jit, static_argnames=("name", "normalize_std"))
def loss_and_gradient(policy, behavior, rewards, name, normalize_std):
    correction = registry.CORRECTIONS[name]
    fixed = {
        "length_normalization": correction.length_normalization,
        "normalize_std": correction.normalize_std,
    }
    config = SurrogateConfig(**{key: value for key, value in fixed.items() if value is not None})
    objective = registry.bind(name, config, {})
    advantages = group_advantages(
        rewards.reshape(2, 3), normalize_std=normalize_std, std_epsilon=config.std_epsilon
    ).ravel()

    def loss(policy):
        return corrected_surrogate(
            policy,
            behavior,
            policy,
            advantages,
            jnp.ones(SHAPE, bool),
            config.length_normalization,
            objective,
        )[0]

    return jax.value_and_grad(loss)(policy)


def batch():
    rng = np.random.default_rng(0)
    behavior = -rng.exponential(size=SHAPE) - 0.05
    policy = behavior + rng.normal(scale=0.1, size=SHAPE)
    return policy, behavior, rng.normal(size=num_responses)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize_std", [True, False])
def test_no_advantage_of_a_group_with_such_a_reward_is_finite(value, normalize_std):
    rewards = np.array([[0.0, 1.0, value], [0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    advantages = group_advantages(rewards, normalize_std=normalize_std, std_epsilon=1e-6)
    assert not np.isfinite(advantages[0]).any()
    assert np.isfinite(advantages[1:]).all() and (advantages[2] == 0).all()


@pytest.mark.parametrize(
    ("name", "where"),
    [
        (name, where)
        for name in registry.CORRECTIONS
        for where in ("policy", "behavior", "rewards")
        if (name, where) != ("none", "behavior")  # it does not read the behavior policy
    ],
)
def test_nan_is_not_masked_or_clipped_away(name, where):
    policy, behavior, rewards = batch()
    sound_loss, sound_gradient = loss_and_gradient(policy, behavior, rewards, name, False)
    assert np.isfinite(sound_loss) and np.isfinite(sound_gradient).all()
    # The response with the lowest reward has A < 0, for which every correction reads the ratio.
    row = np.argmin(rewards)
    {"policy": policy[row], "behavior": behavior[row], "rewards": rewards}[where][2] = np.nan
    loss, gradient = loss_and_gradient(policy, behavior, rewards, name, False)
    assert np.isnan(loss) or np.isnan(gradient).any()


@pytest.mark.parametrize("name", update_rules.UPDATE_RULES)
def test_update_rules_pass_nan_on(name):
    transformation = optax.with_extra_args_support(update_rules.UPDATE_RULES[name].transformation())
    params = {"w": jnp.ones(3)}
    state = transformation.init(params)
    gradients = {"w": jnp.array([1.0, 2.0, 3.0])}, {"w": jnp.array([1.0, jnp.nan, 3.0])}
    for gradient in gradients:
        update, state = transformation.update(gradient, state, params, sequence_ess=0.5)
    assert np.isnan(update["w"]).any()


@pytest.mark.parametrize("levels", [(0.0, np.nan), (-np.inf, 1.0)])
def test_levels_of_a_reward_are_finite(levels):
    with pytest.raises(FieldError, match="reward_levels"):
        EnumerableTask(vocab_size=3, max_response_length=2, num_prompts=1, reward_levels=levels)
