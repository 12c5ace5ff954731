"""Runs the cells of the bias experiment.

A cell is one lagged run, for one optimizer, schedule, lag, learning rate and draw. A draw is a
problem with rewards and an initial policy of its own.
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
MIN_MEASURED_STEPS = {"exact": 1, "sampled": 16}  # a single noisy step says little
# Compiler options for programs that run once, for a moment: they compile faster without
# optimization.
RUN_ONCE_OPTIONS = {"xla_backend_optimization_level": 0}
# Purposes of random keys.
INITIAL_POLICY, SAMPLING, POWER_START = range(3)


@dataclasses.dataclass(frozen=True)
class Draws:
    """Holds independent problems of one shape.

    The draw is the leading axis of `levels` and `params`.
    """

    config: ConfigDict
    problem: Problem  # with the rewards of draw 0
    levels: jax.Array  # int32 [draws, N, Y]
    params: PyTree
    objective: SurrogateConfig

    def over_draws(self, function: Callable, *args: Any) -> PyTree:
        """Returns function(problem, params, *args) of every draw, as NumPy arrays.

        It is compiled once.
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
        """Returns sigma_max(d_phi H), [draws, O], at params with leading axes [draws, O].

        O is any number of policies for each draw.
        """
        return np.asarray(
            self._smoothness(self.levels, params, draw_keys(self.config, POWER_START))
        )

    def with_task(self, **changes: Any) -> "Draws":
        """Returns the same initial policies on another task.

        Args:
          **changes: of the task's fields, of num_prompts and of group_size.
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
    """Makes the draws of a config: for each, rewards and an initial policy of its own."""
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
    """Makes the toy decoder, with some of its fields changed."""
    return Policy(
        TransformerConfig(
            vocab_size=config.task.vocab_size, **{**config.policy.to_dict(), **changes}
        )
    )


def make_problems(config: ConfigDict, apply: Callable) -> list[Problem]:
    """Makes one problem for each draw."""
    fields = {**config.task.to_dict(), "num_prompts": config.num_prompts}
    seeds = [config.seed * config.num_draws + draw for draw in range(config.num_draws)]
    # `validation` lets no other kind of task through.
    tasks = [cast(EnumerableTask, make_task({**fields, "seed": seed})) for seed in seeds]
    return [Problem.from_task(apply, task, config.group_size) for task in tasks]


def stacked_levels(problems: list[Problem]) -> jax.Array:
    """Stacks the reward levels of every response, int32 [draws, N, Y]."""
    return jnp.stack([problem.level_NxY for problem in problems])


def draw_keys(config: ConfigDict, purpose: int) -> jax.Array:
    """Returns one key for each draw; keys of different purposes are independent."""
    key = jax.random.fold_in(jax.random.key(config.seed), purpose)
    return jax.vmap(lambda draw: jax.random.fold_in(key, draw))(jnp.arange(config.num_draws))


def learning_rates(config: ConfigDict, optimizer: str, gradient: str) -> np.ndarray:
    """Returns the learning rates of one optimizer, even in the logarithm."""
    ends = config[optimizer].lowest_learning_rate, config[optimizer].highest_learning_rate
    return np.geomspace(*ends, config[gradient].num_learning_rates)


def measured_steps(max_lag: int, gradient: str) -> slice:
    """Returns the learner steps that a cell's record sums up.

    They are whole cycles of S steps, after the warm-up of S.
    """
    cycles = -(-MIN_MEASURED_STEPS[gradient] // max_lag)
    return slice(max_lag, max_lag * (1 + cycles))


def sgd_or_adam(use_adam: jax.Array) -> optax.GradientTransformation:
    """Makes SGD or Adam by a traced choice, so that both are one compiled program."""
    adam = optax.scale_by_adam()

    def update(gradient: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        direction, state = adam.update(gradient, state, params)
        return jnp.where(use_adam, direction, gradient), state

    return optax.GradientTransformation(adam.init, update)


class CellRunner:
    """Runs blocks of cells with one kind of gradient.

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
        self._run = jax.jit(jax.vmap(over_rates, in_axes=(0, 0, 0, None, None, None, None)))

    def block(self, optimizer: str, schedule: str, max_lag: int) -> list[dict]:
        """Returns the records of one optimizer, schedule and lag: every draw and learning rate.

        Norms are root mean squares over the measured steps; the clip fraction is the largest. The
        constant of the Lipschitz bound is measured at the last step of exact cells with the largest
        lag, whose S * eta spans the whole range.
        """
        config, window = self._config, measured_steps(max_lag, self._gradient)
        rates = learning_rates(config, optimizer, self._gradient)
        lags_I = np.zeros(self._num_steps, np.int32)
        lags_I[: window.stop] = make_schedule(schedule, max_lag, num_groups=1).lags(
            np.arange(window.stop)
        )[:, 0]
        records, last_params = self._run(
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
