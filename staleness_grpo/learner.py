"""The learner: optimizer, sharded state, and one jitted update with donated state and its diagnostics."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from staleness_grpo import mesh as mesh_lib
from staleness_grpo.loss import in_parts, logprobs_function, logprobs_loss, scored_batch
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.objective.update_corrections import UPDATE_CORRECTIONS
from staleness_grpo.policy.logprobs import response_logprobs
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.types import Array, LearnerState, PyTree, Rollout

OPTIMIZERS = ("sgd", "adam", "adamw")
NOISE_PARTS = 8  # at most, of the batch whose gradients tell signal from noise


def learning_rate_schedule(config) -> optax.Schedule:
    """Linear warm-up from learning_rate / warmup_steps to `learning_rate`, constant afterwards."""
    peak, warmup = config.learning_rate, config.warmup_steps
    return lambda count: peak * jnp.minimum(1.0, (count + 1) / warmup) if warmup else peak


def make_optimizer(config, correction=None) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`: global-norm clip, then SGD, Adam or AdamW, then the learning rate.

    The update correction that `config.correction` names, if given, stands first or just before the learning rate.
    Gradients are those of a loss, to be descended.
    """
    stages, after = [], []
    if correction is not None and correction.update_rule is not None:
        rule = UPDATE_CORRECTIONS[correction.update_rule]
        transformation = rule.transformation(**registry.chosen(rule.transformation, correction))
        (after if rule.after_optimizer else stages).append(transformation)
    if config.max_grad_norm > 0:
        stages.append(optax.clip_by_global_norm(config.max_grad_norm))
    if config.name in ("adam", "adamw"):
        stages.append(optax.scale_by_adam(config.b1, config.b2, config.epsilon))
    if config.name == "adamw":
        stages.append(optax.add_decayed_weights(config.weight_decay))
    stages += [*after, optax.scale_by_learning_rate(learning_rate_schedule(config))]
    return optax.chain(*stages)


def initial_state(optimizer: optax.GradientTransformation, params: PyTree) -> LearnerState:
    """The state at version 0."""
    return LearnerState(
        policy_version=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        previous_gradient=jax.tree.map(jnp.zeros_like, params),
    )


def init_state(policy: Policy, optimizer: optax.GradientTransformation, mesh: Mesh, key=None, params=None):
    """A LearnerState at version 0, created sharded: from `key`, or from given `params` (host or device arrays)."""

    def create(params):
        return initial_state(optimizer, params)

    def fresh(key):
        return create(policy.init(key))

    if params is None:
        shardings = mesh_lib.parameter_shardings(jax.eval_shape(fresh, key), mesh)
        return jax.jit(fresh, out_shardings=shardings)(key)
    params = mesh_lib.put(params, mesh_lib.parameter_shardings(params, mesh))
    shardings = mesh_lib.parameter_shardings(jax.eval_shape(create, params), mesh)
    return jax.jit(create, out_shardings=shardings)(params)


def make_paired_gram(
    policy: Policy,
    surrogate: SurrogateConfig,
    temperature: float,
    correction,
    microbatch_prompts: int,
    num_blocks: int,
) -> Callable[[PyTree, Rollout, Rollout], Array]:
    """Jitted (params, stale rollout, fresh rollout) -> inner products of the gradients of blocks of groups, [4, J, J].

    The N groups are cut into J = `num_blocks` blocks. A block's gradient is J times its part of the gradient of the
    whole batch's surrogate, so that the blocks' mean is H, whatever the length normalization or the correction takes
    from the batch. With s_i of the stale and f_i of the fresh rollout the four matrices are those of `bias.paired`:
    (s_i - f_i) . (s_j - f_j), s_i . s_j, f_i . f_j, and s_i . f_j. Memory: 3 J gradients.
    """
    logprobs_of = logprobs_function(policy, temperature, microbatch_prompts)
    loss_of_logprobs = logprobs_loss(surrogate, correction)

    def block_gradients(params, rollout):
        batch = scored_batch(rollout)
        logprobs, entropy = logprobs_of(params, *batch)
        cotangent = jax.grad(lambda x: -num_blocks * loss_of_logprobs(x, entropy, rollout)[0])(logprobs)

        def one(block):
            inputs, cotangent = block
            _, pull = jax.vjp(lambda p: logprobs_of(p, *inputs)[0], params)
            return mesh_lib.keep_parameters_split(pull(cotangent)[0])

        return jax.lax.map(one, in_parts((batch, cotangent), num_blocks))

    def products(a, b):
        def one(x, y):  # over all axes as they are: joined, they could not stay in parts
            inner = tuple(range(1, x.ndim))
            return jnp.tensordot(x, y, axes=(inner, inner), precision="highest")

        return sum(jax.tree.leaves(jax.tree.map(one, a, b)))

    @jax.jit
    def paired_gram(params, stale, fresh):
        stale, fresh = block_gradients(params, stale), block_gradients(params, fresh)
        bias = jax.tree.map(jnp.subtract, stale, fresh)
        pairs = ((bias, bias), (stale, stale), (fresh, fresh), (stale, fresh))
        return jnp.stack([products(*pair) for pair in pairs])

    return paired_gram


def make_scorer(policy: Policy, temperature: float) -> Callable[[PyTree, Rollout], Array]:
    """Jitted (params, rollout) -> log pi of the response tokens [N, G, R]: those of a proximal policy."""

    @jax.jit
    def score(params: PyTree, rollout: Rollout) -> Array:
        responses = rollout.responses
        return response_logprobs(
            policy, params, rollout.prompts, responses.tokens_NxGxR, responses.mask_NxGxR, temperature
        )[0]

    return score


def cosine(a: PyTree, b: PyTree) -> jax.Array:
    """Cosine of the angle between two pytrees; NaN when one of them is 0."""
    return optax.tree.vdot(a, b) / (optax.tree.norm(a) * optax.tree.norm(b))


def distance(a: PyTree, b: PyTree) -> jax.Array:
    """Euclidean norm of a - b."""
    return optax.tree.norm(optax.tree.sub(a, b))


def update_step(
    loss_fn, optimizer: optax.GradientTransformation
) -> Callable[[LearnerState, Rollout], tuple[LearnerState, dict[str, jax.Array]]]:
    """One optimizer update as a pure function (state, rollout) -> (state, metrics).

    Metrics are scalars on the device: loss, the diagnostics of the loss, grad_norm, update_norm (of the change of
    the parameters), param_norm, and gradient_cosine with the previous step's gradient (NaN at the first step).
    """

    optimizer = optax.with_extra_args_support(optimizer)

    def update(state, rollout):
        (loss, diagnostics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params, rollout)
        extra = {name: diagnostics[name] for name in ("sequence_ess",) if name in diagnostics}
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, **extra)
        metrics = {
            "loss": loss,
            **diagnostics,
            "grad_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(state.params),
            "gradient_cosine": cosine(gradient, state.previous_gradient),
        }
        state = LearnerState(
            policy_version=state.policy_version + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            previous_gradient=gradient,
        )
        return state, metrics

    return update


def make_update(loss_fn, optimizer: optax.GradientTransformation, state: LearnerState, mesh: Mesh):
    """`update_step`, jitted for states sharded like `state`, which it donates."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        update_step(loss_fn, optimizer), donate_argnums=0, out_shardings=(shardings, mesh_lib.replicated(mesh))
    )


def make_cosine_ceiling(loss_fn, num_prompts: int) -> Callable[[PyTree, Rollout], Array] | None:
    """Jitted (params, rollout) -> the cosine that two independent batches' gradients would have at these params.

    Two gradients at the same parameters differ by sampling noise alone, which caps the cosine of consecutive
    gradients. The batch of `num_prompts` groups is cut into equal parts of whole groups, NOISE_PARTS if they divide
    it, with gradients g_i and mean g. The mean of g_i . g_j over i != j estimates the squared norm of the expected
    gradient without bias; over |g|^2 it estimates the cosine. It can come out negative when the gradient is mostly
    noise. None if the batch cannot be cut.
    """
    num_parts = math.gcd(num_prompts, NOISE_PARTS)
    if num_parts == 1:
        return None

    @jax.jit
    def ceiling(params: PyTree, rollout: Rollout) -> Array:
        gradients = jax.lax.map(
            lambda part: jax.grad(loss_fn, has_aux=True)(params, part)[0], in_parts(rollout, num_parts)
        )
        square_of_mean = optax.tree.norm(jax.tree.map(lambda leaf: leaf.mean(axis=0), gradients), squared=True)
        mean_of_squares = optax.tree.norm(gradients, squared=True) / num_parts
        signal = (num_parts * square_of_mean - mean_of_squares) / (num_parts - 1)
        return signal / square_of_mean

    return ceiling
