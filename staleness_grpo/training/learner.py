"""Makes the optimizer, the sharded learner state, and the jitted update that donates it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from staleness_grpo.errors import require, require_at_least, require_choice, require_positive
from staleness_grpo.objective.corrections import signatures
from staleness_grpo.objective.update_rules import UPDATE_RULES
from staleness_grpo.policy.base import AnyPolicy
from staleness_grpo.policy.logprobs import response_logprobs
from staleness_grpo.policy.truncation import Truncation
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.training import vectors
from staleness_grpo.training.diagnostics import cosine
from staleness_grpo.training.guard import OFF, guard_metrics, make_guard
from staleness_grpo.types import Array, LearnerState, PyTree, Rollout

DECAYS = ("none", "linear", "cosine")
# Last names of the paths of parameters that are no matrices: the scales of norms, and biases.
VECTORS = ("scale", "bias")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw")
# Diagnostics of the loss that update rules and the guard read.
READ_BY_OPTIMIZERS = ("sequence_ess", "log_ratio_second_moment")


def check_optimizer(fields: Mapping[str, Any]) -> None:
    """Raises FieldError if a field of `config.optimizer` has a value that cannot be used."""
    require_choice(fields, "name", OPTIMIZERS)
    require_choice(fields, "decay", DECAYS)
    decay_steps = fields["decay_steps"]
    if decay_steps is not None:
        hint = "optimizer.decay=none makes no use of it: leave it out, or choose linear or cosine"
        require(fields["decay"] != "none", "decay_steps", hint, decay_steps)
        hint = f"give a number above warmup_steps={fields['warmup_steps']}"
        require(decay_steps > fields["warmup_steps"], "decay_steps", hint, decay_steps)
    require_at_least(fields, {"warmup_steps": 0, "max_grad_norm": 0, "weight_decay": 0})
    require_positive(fields, ("learning_rate", "epsilon"))
    for name in ("b1", "b2"):
        require(0 <= fields[name] < 1, name, "give a number in [0, 1)", fields[name])
    require(
        fields["weight_decay"] == 0 or fields["name"] == "adamw",
        "weight_decay",
        f"optimizer.name={fields['name']} has no weight decay: give 0, or set optimizer.name=adamw",
        fields["weight_decay"],
    )
    hint = "optimizer.weight_decay=0 makes no use of it: leave it out, or give AdamW a weight decay"
    is_used = fields["weight_decay"] > 0
    require(is_used or fields["decay_norms"], "decay_norms", hint, fields["decay_norms"])


def momentum_decay(config: Any) -> float:
    """Returns the factor by which an optimizer weights a gradient less with each step.

    It is 0 without momentum. `config` is `config.optimizer`.
    """
    return 0.0 if config.name == "sgd" else float(config.b1)


def learning_rate_schedule(config: Any, num_steps: int, peak: Any = None) -> optax.Schedule:
    """Returns a schedule that rises linearly from peak / warmup_steps to the peak, then may fall.

    After the warm-up the learning rate stays, or falls to 0 at step `decay_steps`: along a line, or
    along half a cosine.

    Args:
      config: `config.optimizer`.
      num_steps: learner steps of the run, which unset `decay_steps` equal.
      peak: a learning rate, possibly traced, that replaces `config.learning_rate`.
    """
    peak = config.learning_rate if peak is None else peak
    warmup = config.warmup_steps

    def risen(count):
        return peak * jnp.minimum(1.0, (count + 1) / warmup) if warmup else peak

    if config.decay == "none":
        return risen
    end = num_steps if config.decay_steps is None else config.decay_steps
    length = max(end - warmup, 1)
    fall = (
        optax.cosine_decay_schedule(1.0, length)
        if config.decay == "cosine"
        else optax.linear_schedule(1.0, 0.0, length)
    )
    return lambda count: risen(count) * fall(jnp.maximum(count - warmup, 0))


def make_optimizer(
    config: Any,
    num_steps: int,
    correction: Any = None,
    learning_rate: Any = None,
    guard: Any = None,
) -> optax.GradientTransformation:
    """Returns the optimizer: global-norm clip, SGD, Adam or AdamW, guard, learning rate.

    `momentum` is SGD with the sum of past gradients, each weighted by b1 to the power of its age.

    The optimizer descends, so it expects the gradient of a loss.

    Args:
      config: `config.optimizer`.
      num_steps: learner steps of the run, for the fall of the learning rate.
      correction: `config.correction`. If it names an update rule, that rule is applied either first
        or just before the learning rate.
      learning_rate: a number, possibly traced, that replaces `config.learning_rate`.
      guard: `config.guard`; None for no guard. It scales what the learning rate multiplies.
    """
    before: list[optax.GradientTransformation] = []
    after: list[optax.GradientTransformation] = []
    if correction is not None and correction.update_rule is not None:
        rule = UPDATE_RULES[correction.update_rule]
        overrides = signatures.chosen_parameters(rule.transformation, correction)
        transformation = rule.transformation(**overrides)
        (after if rule.after_optimizer else before).append(transformation)
    if config.max_grad_norm > 0:
        before.append(optax.clip_by_global_norm(config.max_grad_norm))
    if config.name == "momentum":
        before.append(optax.trace(config.b1))
    if config.name in ("adam", "adamw"):
        before.append(optax.scale_by_adam(config.b1, config.b2, config.epsilon))
    if config.name == "adamw":
        mask = None if config.decay_norms else _matrices
        before.append(optax.add_decayed_weights(config.weight_decay, mask))
    # The product with a scale of 1 is exact here. After the learning rate, a compiler could round
    # the sum of parameters and update otherwise than without a guard.
    if guard is not None and guard.mode != OFF:
        after.append(make_guard(guard))
    schedule = learning_rate_schedule(config, num_steps, learning_rate)
    return optax.chain(*before, *after, optax.scale_by_learning_rate(schedule))


def _matrices(params: PyTree) -> PyTree:
    """Returns for each parameter whether it is a matrix: no scale of a norm, and no bias."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) not in VECTORS, params
    )


def initial_state(optimizer: optax.GradientTransformation, params: PyTree) -> LearnerState:
    """Returns the learner state of policy version 0."""
    return LearnerState(
        policy_version=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        previous_gradient=jax.tree.map(jnp.zeros_like, params),
    )


def abstract_state(
    policy: AnyPolicy, optimizer: optax.GradientTransformation, mesh: Mesh
) -> LearnerState:
    """Returns shapes, dtypes and shardings of the state of version 0, without allocating it."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: initial_state(optimizer, policy.init(key)), key)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        mesh_lib.parameter_shardings(state, mesh),
    )


def init_state(
    policy: AnyPolicy,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array | None = None,
    params: PyTree | None = None,
) -> LearnerState:
    """Creates the state of version 0. Its arrays are created with their final sharding.

    Args:
      policy, optimizer, mesh: the parts of the run.
      key: the random key of the parameters; not needed if `params` is given.
      params: host or device arrays that replace random parameters.
    """

    def create(params):
        return initial_state(optimizer, params)

    donated: tuple[int, ...] = ()
    if params is None:
        assert key is not None, "random parameters need a key"
        params, donated = _random_params(policy, mesh)(key), (0,)  # nobody else has these arrays
    else:
        params = mesh_lib.put(params, mesh_lib.parameter_shardings(params, mesh))
    shardings = mesh_lib.parameter_shardings(jax.eval_shape(create, params), mesh)
    return jax.jit(create, donate_argnums=donated, out_shardings=shardings)(params)


@functools.lru_cache(maxsize=8)
def _random_params(policy: AnyPolicy, mesh: Mesh) -> Callable[[jax.Array], PyTree]:
    """Returns jitted key -> sharded parameters. Runs of equal policies share what is compiled."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    shardings = mesh_lib.parameter_shardings(jax.eval_shape(policy.init, key), mesh)
    return jax.jit(policy.init, out_shardings=shardings)


def make_scorer(
    policy: AnyPolicy, temperature: float, truncation: Truncation | None = None
) -> Callable[[PyTree, Rollout], Array]:
    """Returns jitted (params, rollout) -> log pi of the response tokens [N, G, R].

    The function computes the log-probabilities of the proximal and of the reference policy.
    """

    @jax.jit
    def score(params: PyTree, rollout: Rollout) -> Array:
        tokens, mask = rollout.responses.tokens_NxGxR, rollout.responses.mask_NxGxR
        arguments = (policy, params, rollout.prompts, tokens, mask, temperature, truncation)
        return response_logprobs(*arguments)[0]

    return score


def update_step(
    loss_fn: Callable, optimizer: optax.GradientTransformation
) -> Callable[[LearnerState, Rollout], tuple[LearnerState, dict[str, jax.Array]]]:
    """Returns one optimizer update as a pure function (state, rollout) -> (state, metrics).

    Metrics are scalars on the device:
      loss, and the diagnostics of the loss;
      grad_norm: the norm of the gradient;
      update_norm: the norm of the change of the parameters;
      param_norm: the norm of the parameters before the update;
      gradient_cosine: the cosine of this gradient and the previous step's. NaN at the first step.
      with a guard, those of `guard_metrics`.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def update(state, rollout):
        gradient_of_loss = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, diagnostics), gradient = gradient_of_loss(state.params, rollout)
        extra = {name: diagnostics[name] for name in READ_BY_OPTIMIZERS if name in diagnostics}
        updates, opt_state = optimizer.update(
            gradient,
            state.opt_state,
            state.params,
            policy_version=state.policy_version,
            behavior_version_N=rollout.behavior_version_N,
            **extra,
        )
        metrics = {
            "loss": loss,
            **diagnostics,
            "grad_norm": vectors.norm(gradient),
            "update_norm": vectors.norm(updates),
            "param_norm": vectors.norm(state.params),
            "gradient_cosine": cosine(gradient, state.previous_gradient),
            **guard_metrics(opt_state),
        }
        state = LearnerState(
            policy_version=state.policy_version + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            previous_gradient=gradient,
        )
        return state, metrics

    return update


def compile_update(update: Callable, state: LearnerState, mesh: Mesh) -> Any:
    """Jits an `update_step` for states sharded like `state`. Each call donates its state."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    out_shardings = (shardings, mesh_lib.replicated(mesh))
    return jax.jit(update, donate_argnums=0, out_shardings=out_shardings)
