"""Defines the guard, which watches the ratio and scales the learning rate down at an alarm.

The sign that it watches is a batch's mean of (log r)^2, `log_ratio_second_moment`. The guard takes
an exponential average of this sign. An average above `config.guard.level` is an alarm, and so is a
sign that is not finite.

After an alarm, batches still have rollouts of the policies from before it. They show what the alarm
was about, not what came of it. So these batches are not judged: the average starts again with the
first batch whose rollouts all come from later policies.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from staleness_grpo.errors import require, require_choice, require_positive
from staleness_grpo.types import Array, PyTree

MODES = OFF, WARN, SCALE = "off", "warn", "scale"
MEMORY = 0.8  # weight that the average so far has in the next average


def check_guard(fields: Mapping[str, Any], default: Mapping[str, Any]) -> None:
    """Raises FieldError if a field of `config.guard` cannot be used, or has no effect.

    Args:
      fields: `config.guard`.
      default: the same section of the default config.
    """
    require_choice(fields, "mode", MODES)
    mode, factor = fields["mode"], fields["factor"]
    require_positive(fields, ("level",))
    require(0 < factor < 1, "factor", "give a number above 0 and below 1", factor)
    # The modes that use a field.
    for name, users in (("level", (WARN, SCALE)), ("factor", (SCALE,))):
        hint = f"guard.mode={mode} makes no use of it: leave it out, or choose {' or '.join(users)}"
        require(mode in users or fields[name] == default[name], name, hint, fields[name])


class GuardState(NamedTuple):
    """Holds the state that the guard keeps between updates: four scalars."""

    scale: Array  # float32, by which the last update was multiplied; 1 at first
    average: Array  # float32, of the sign after the last update; 0 while batches are not judged
    acted_at: Array  # int32, the policy version that the last alarm's update started from; -1: none
    alarm: Array  # bool, whether the last update had an alarm


def guard(level: float, factor: float) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation that counts alarms and multiplies updates by `GuardState.scale`.

    Formulas, with x_t the sign of the batch of version t, and v the version of the last alarm:

        m_t = MEMORY m_{t-1} + (1 - MEMORY) x_t   if all rollouts are newer than v, else 0
        alarm at t: m_t > level, or m_t is not finite
        scale_t = factor scale_{t-1} at an alarm, else scale_{t-1}

    m starts from 0, also after an alarm. An alarm already scales the update of its own batch.
    A finite update stays finite, whatever the sign is.

    The extra arguments of its `update` are:
      log_ratio_second_moment: float scalar, the sign.
      policy_version: int32 scalar, the version that is updated.
      behavior_version_N: int32 [N], the version that generated each group of the batch.

    Args:
      level: the largest average without an alarm.
      factor: by which an alarm multiplies the scale. With 1 it only marks alarms.
    """

    def init(params: PyTree) -> GuardState:
        del params
        return GuardState(
            scale=jnp.ones((), jnp.float32),
            average=jnp.zeros((), jnp.float32),
            acted_at=jnp.full((), -1, jnp.int32),
            alarm=jnp.zeros((), bool),
        )

    def update(
        updates: PyTree,
        state: GuardState,
        params: PyTree = None,
        *,
        log_ratio_second_moment: Array,
        policy_version: Array,
        behavior_version_N: Array,
        **extra: Any,
    ) -> tuple[PyTree, GuardState]:
        del params, extra
        sign = jnp.asarray(log_ratio_second_moment, jnp.float32)
        is_judged = jnp.min(jnp.asarray(behavior_version_N)) > state.acted_at
        average = MEMORY * jnp.where(state.alarm, 0.0, state.average) + (1 - MEMORY) * sign
        average = jnp.where(is_judged, average, 0.0)
        alarm = (average > level) | ~jnp.isfinite(average)
        scale = jnp.where(alarm, state.scale * factor, state.scale)
        acted_at = jnp.where(alarm, policy_version, state.acted_at)
        if factor != 1:
            updates = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), updates)
        return updates, GuardState(scale, average, acted_at, alarm)

    return optax.GradientTransformationExtraArgs(init, update)


def make_guard(config: Any) -> optax.GradientTransformationExtraArgs:
    """Returns the guard that `config.guard` describes, whose mode is WARN or SCALE."""
    return guard(config.level, config.factor if config.mode == SCALE else 1.0)


def guard_metrics(opt_state: PyTree) -> dict[str, Array]:
    """Returns the metrics of the update that led to this optimizer state; {} without a guard.

    guard_average: the average of the sign after this batch.
    guard_scale: the number that this update was multiplied by.
    guard_alarm: whether this batch had an alarm.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, GuardState))
    states = [node for node in nodes if isinstance(node, GuardState)]
    names = ("average", "scale", "alarm")
    return {f"guard_{name}": getattr(state, name) for state in states for name in names}
