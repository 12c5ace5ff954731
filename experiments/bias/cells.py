"""Runs the cells of the bias experiment.

A cell is one run with lag. It has one optimizer, schedule, lag, learning rate and draw. A draw is a
problem with its own rewards and its own initial policy.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from staleness_grpo.bias.enumeration import Problem
from staleness_grpo.bias.smoothness import behavior_smoothness
from staleness_grpo.bias.trajectory import lagged_trajectory
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.staleness.schedule import make_schedule
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.enumerable import EnumerableTask
from staleness_grpo.types import PyTree

POWER_ITERATIONS = 20
# The fewest learner steps that a record averages. One step with a sampled gradient is too noisy.
MIN_MEASURED_STEPS = {"exact": 1, "sampled": 16}
# Compiler options for short programs that run only once. Without optimization they compile faster.
RUN_ONCE_OPTIONS = {"xla_backend_optimization_level": 0}
# The purposes for which random keys are made. Each purpose has its own number.
INITIAL_POLICY, SAMPLING, POWER_START = range(3)


@dataclasses.dataclass(frozen=True)
class Draws:
    """Holds the draws of a config: problems of the same shape, each with its initial policy.

    The first axis of `levels` and `params` is the draw.
    """

    config: ConfigDict
    problem: Problem  # the problem of draw 0
    levels: jax.Array  # reward level of every response, int32 [draws, N, Y]
    params: PyTree  # initial parameters
    objective: SurrogateConfig

    def over_draws(self, function: Callable, *args: Any) -> PyTree:
        """Calls function(problem, params, *args) for every draw in one compiled program.

        Returns:
          The results as NumPy arrays. Their first axis is the draw.
        """

        def of_draw(level_NxY: jax.Array, params: PyTree) -> PyTree:
            return function(dataclasses.replace(self.problem, level_NxY=level_NxY), params, *args)

        program = jax.jit(jax.vmap(of_draw), compiler_options=RUN_ONCE_OPTIONS)
        return jax.tree.map(np.asarray, program(self.levels, self.params))

    @functools.cached_property
    def _smoothness(self) -> Callable:
        def of_policy(level_NxY: jax.Array, params: PyTree, key: jax.Array) -> jax.Array:
            problem = dataclasses.replace(self.problem, level_NxY=level_NxY)
            return behavior_smoothness(problem, params, self.objective, POWER_ITERATIONS, key)

        return jax.jit(jax.vmap(jax.vmap(of_policy, in_axes=(None, 0, None))))

    def smoothness(self, params: PyTree) -> np.ndarray:
        """Returns sigma_max(d_phi H) at several policies of each draw.

        Args:
          params: parameters whose first two axes are [draws, O], for O policies of each draw.

        Returns:
          [draws, O].
        """
        return np.asarray(
            self._smoothness(self.levels, params, draw_keys(self.config, POWER_START))
        )

    def with_task(self, **changes: Any) -> "Draws":
        """Returns draws with the same initial policies and a changed task.

        Args:
          **changes: new values for fields of the task, for num_prompts and for group_size.
        """
        config = self.config.copy_and_resolve_references()
        config.update(
            {name: changes.pop(name) for name in ("num_prompts", "group_size") if name in changes}
        )
        config.task.update(changes)
        problems = make_problems(config, self.problem.apply)
        return dataclasses.replace(
            self, config=config, problem=problems[0], levels=stacked_levels(problems)
        )


def make_draws(config: ConfigDict) -> Draws:
    """Makes the draws of a config. Each draw has its own rewards and its own initial policy."""
    policy = make_policy(config)
    problems = make_problems(config, policy.apply)
    return Draws(
        config=config,
        problem=problems[0],
        levels=stacked_levels(problems),
        params=jax.jit(lambda keys: jax.lax.map(policy.init, keys))(
            draw_keys(config, INITIAL_POLICY)
        ),
        objective=SurrogateConfig(**config.surrogate.to_dict()),
    )


def make_policy(config: ConfigDict, **changes: Any) -> Policy:
    """Makes the toy decoder.

    Args:
      config: the experiment's config.
      **changes: values that replace fields of config.policy.
    """
    return Policy(
        TransformerConfig(
            vocab_size=config.task.vocab_size, **{**config.policy.to_dict(), **changes}
        )
    )


def make_problems(config: ConfigDict, apply: Callable) -> list[Problem]:
    """Makes one problem for each draw.

    Args:
      config: the experiment's config.
      apply: the policy's function from parameters and tokens to logits.
    """
    fields = {**config.task.to_dict(), "num_prompts": config.num_prompts}
    seeds = [config.seed * config.num_draws + draw for draw in range(config.num_draws)]
    # `validation` accepts only enumerable tasks, so the cast is right.
    tasks = [cast(EnumerableTask, make_task({**fields, "seed": seed})) for seed in seeds]
    return [Problem.from_task(apply, task, config.group_size) for task in tasks]


def stacked_levels(problems: list[Problem]) -> jax.Array:
    """Returns the reward level of every response of every problem, int32 [draws, N, Y]."""
    return jnp.stack([problem.level_NxY for problem in problems])


def draw_keys(config: ConfigDict, purpose: int) -> jax.Array:
    """Returns one random key for each draw. Keys of different purposes are independent."""
    key = jax.random.fold_in(jax.random.key(config.seed), purpose)
    return jax.vmap(lambda draw: jax.random.fold_in(key, draw))(jnp.arange(config.num_draws))


def learning_rates(config: ConfigDict, optimizer: str, gradient: str) -> np.ndarray:
    """Returns the learning rates of one optimizer, with a constant ratio between neighbors."""
    ends = config[optimizer].lowest_learning_rate, config[optimizer].highest_learning_rate
    return np.geomspace(*ends, config[gradient].num_learning_rates)


def measured_steps(max_lag: int, gradient: str) -> slice:
    """Returns the learner steps over which a cell's record averages.

    The first S steps are left out as warm-up. The measured steps are whole cycles of S steps.
    """
    num_cycles = -(-MIN_MEASURED_STEPS[gradient] // max_lag)
    return slice(max_lag, max_lag * (1 + num_cycles))


def sgd_or_adam(use_adam: jax.Array) -> optax.GradientTransformation:
    """Makes an optimizer that is Adam or SGD, depending on a traced boolean.

    The choice is traced, so one compiled program serves both optimizers.
    """
    adam = optax.scale_by_adam()

    def update(gradient: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        direction, state = adam.update(gradient, state, params)
        return jnp.where(use_adam, direction, gradient), state

    return optax.GradientTransformation(adam.init, update)


class CellRunner:
    """Runs cells in blocks. All cells have the same kind of gradient, 'exact' or 'sampled'.

    One compiled program serves all optimizers, schedules and lags.
    """

    def __init__(self, draws: Draws, gradient: str):
        self._config = config = draws.config
        self._draws = draws
        self._gradient = gradient
        self._num_steps = max(measured_steps(lag, gradient).stop for lag in config.max_lags)
        batch_prompts = config.sampled.batch_prompts if gradient == "sampled" else 0

        def trajectory(level_NxY, params, key, learning_rate, use_adam, lags_I, num_steps):
            return lagged_trajectory(
                dataclasses.replace(draws.problem, level_NxY=level_NxY),
                params,
                lags_I,
                num_steps,
                learning_rate,
                key,
                objective=draws.objective,
                optimizer=sgd_or_adam(use_adam),
                batch_prompts=batch_prompts,
                max_lag=max(config.max_lags),
            )

        over_rates = jax.vmap(trajectory, in_axes=(None, None, None, 0, None, None, None))
        self._compiled_trajectories = jax.jit(
            jax.vmap(over_rates, in_axes=(0, 0, 0, None, None, None, None))
        )

    def block(self, optimizer: str, schedule: str, max_lag: int) -> list[dict]:
        """Runs one optimizer, schedule and lag with every draw and learning rate.

        Returns:
          One record per draw and learning rate. Each norm is the root mean square over the measured
          steps. The clip fraction and the log ratio are the largest over these steps.
          `smoothness` is the constant of the Lipschitz bound, measured at the last step. Only exact
          cells with the largest lag have it, because their S * eta spans the whole range.
        """
        config, window = self._config, measured_steps(max_lag, self._gradient)
        rates = learning_rates(config, optimizer, self._gradient)
        lags_I = np.zeros(self._num_steps, np.int32)
        lags_I[: window.stop] = make_schedule(schedule, max_lag, num_groups=1).lags(
            np.arange(window.stop)
        )[:, 0]
        records, last_params = self._compiled_trajectories(
            self._draws.levels,
            self._draws.params,
            draw_keys(config, SAMPLING),
            rates,
            optimizer == "adam",
            lags_I,
            window.stop,
        )
        records = {name: np.asarray(values)[..., window] for name, values in records.items()}
        rms = {name: np.sqrt(np.mean(values**2, axis=-1)) for name, values in records.items()}
        rms_age = float(np.sqrt(np.mean(lags_I[window].astype(float) ** 2)))
        smoothness = None
        if self._gradient == "exact" and max_lag == max(config.max_lags):
            smoothness = self._draws.smoothness(last_params)
        return [
            {
                "optimizer": optimizer,
                "schedule": schedule,
                "gradient": self._gradient,
                "draw": draw,
                "max_lag": max_lag,
                "learning_rate": float(rate),
                "s_eta": max_lag * float(rate),
                "eta_rms_age": rms_age * float(rate),
                "bias": rms["bias"][draw, i],
                "displacement": rms["displacement"][draw, i],
                "surrogate_gradient": rms["gradient"][draw, i],
                "noise": rms["noise"][draw, i],
                "update_norm": rms["update_norm"][draw, i],
                "clip_fraction": records["clip_fraction"][draw, i].max(),
                "log_ratio_max": records["log_ratio_max"][draw, i].max(),
                "last_bias": records["bias"][draw, i, -1],
                "last_displacement": records["displacement"][draw, i, -1],
                "smoothness": None if smoothness is None else smoothness[draw, i],
            }
            for draw in range(config.num_draws)
            for i, rate in enumerate(rates)
        ]
