"""Whole asynchronous trainings as one compiled program: S, eta and seed are data, not code.

The program samples at the learner step, from a ring of parameter snapshots on the device, what the loop of
`train.py` samples S updates earlier and keeps in its ring buffer: the noise belongs to (seed, step, slot), so the
rollouts are the same. A snapshot of a 26k-parameter policy is smaller than the compiled loop's other state.

Letters beyond the legend of `types.py`: C, cells vectorized together; E, prompts of an evaluation, N * G.
"""

import dataclasses
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from staleness_grpo import learner
from staleness_grpo import mesh as mesh_lib
from staleness_grpo.loss import surrogate_loss
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.policy.configured import make_policy
from staleness_grpo.policy.sampler import sample
from staleness_grpo.policy.supervised import warm_start
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.rollouts import EVALUATION, TRAINING, Generator
from staleness_grpo.staleness.schedule import make_schedule
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.base import Task
from staleness_grpo.types import Array, Prompts, PyTree, Rollout

FREEZE_FRACTION = 0.25  # of the peak pass rate; the collapse detector looks at half
CEILING_EVERY = 5  # evaluations between two ceilings of the gradient cosine, each as dear as a learner step
SCHEDULES = ("constant", "cyclic")  # one lag for all slots of a step, as a ring of snapshots needs

# Metrics of an update that a record keeps; sorting all ratios for the quantiles would cost a tenth of the step.
KEPT = (
    "reward", "entropy", "clip_fraction", "approx_kl", "ess", "log_ratio_second_moment",
    "grad_norm", "update_norm", "param_norm", "gradient_cosine",
)  # fmt: skip


BY_BLOCK = ("eval_reward", "gradient_cosine_ceiling")  # one entry for each evaluation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CellInputs:
    """All that tells one cell from another; stacked along a leading axis for cells vectorized together."""

    params: PyTree  # the warm-started policy
    key: Array  # of the run's seed
    learning_rate: Array  # float32 scalar, eta
    lag_T: Array  # int32, the lag of every learner step
    tokens_TxNxP: Array  # int32, the prompts of every learner step,
    mask_TxNxP: Array  # their padding,
    answer_key_TxN: Array  # and their answer keys, with the key's own axes last
    eval_tokens_ExP: Array
    eval_mask_ExP: Array
    eval_answer_key_E: Array


def sweep_parts(config) -> tuple[Task, Policy]:
    """The task and the policy of a config."""
    task = make_task(config.task)
    return task, make_policy(config.policy, task.vocab_size)


def cell_inputs(config) -> CellInputs:
    """The inputs of the training that `train.build(config)` would run, on the host.

    Raises:
      ValueError: for a schedule whose slots have different lags.
    """
    if config.lag.schedule not in SCHEDULES:
        raise ValueError(f"lag.schedule must be one of {SCHEDULES}, got {config.lag.schedule!r}")
    task, policy = sweep_parts(config)
    size = dict(num_prompts=config.num_prompts, group_size=config.group_size)
    generator = Generator(
        policy, task, mesh_lib.make_mesh(), config.seed, temperature=config.sampler.temperature, **size
    )
    steps, slots = np.arange(config.steps), np.arange(config.num_prompts)
    shape = (config.steps, config.num_prompts)
    prompts = generator.prompts(TRAINING, np.repeat(steps, len(slots)), np.tile(slots, len(steps)))
    eval_slots = np.arange(config.num_prompts * config.group_size)
    eval_prompts = generator.prompts(EVALUATION, np.zeros_like(eval_slots), eval_slots)
    key = jax.random.key(config.seed)
    if config.warm_start.steps:
        params = warm_start(policy, task, config)
    else:
        params = jax.device_get(jax.jit(policy.init)(key))
    lag = config.lag
    schedule = make_schedule(lag.schedule, lag.max_lag, config.num_prompts, config.seed, lag.start)

    def by_step(array):
        return array.reshape(*shape, *array.shape[1:])

    return CellInputs(
        params=params,
        key=key,
        learning_rate=np.float32(config.optimizer.learning_rate),
        lag_T=schedule.lags(steps)[:, 0].astype(np.int32),
        tokens_TxNxP=by_step(prompts.tokens_NxP),
        mask_TxNxP=by_step(prompts.mask_NxP),
        answer_key_TxN=by_step(task.answer_key(prompts.index_N)),
        eval_tokens_ExP=eval_prompts.tokens_NxP,
        eval_mask_ExP=eval_prompts.mask_NxP,
        eval_answer_key_E=task.answer_key(eval_prompts.index_N),
    )


def make_cell_program(config, max_lag: int, freeze_after: int) -> Callable[[CellInputs], dict[str, jax.Array]]:
    """A whole training as a pure function of CellInputs: traces of every step, and of every evaluation.

    It returns the metrics KEPT, drift_from_behavior and drift_from_start, [T] each; eval_reward and
    gradient_cosine_ceiling (NaN but for every CEILING_EVERY-th), [T / eval_every]; and `steps_run`. A cell is frozen,
    which leaves NaN in the rest of its traces, when a parameter is not finite, or when the last evaluation with at
    least a quarter of the peak pass rate is more than `freeze_after` learner steps ago: a collapse with no end in
    sight.

    Args:
      config: of any cell; its seed, learning rate and lag are not read.
      max_lag: the largest lag of all cells.
      freeze_after: learner steps. `config.eval_every` must divide `config.steps`.
    """
    task, policy = sweep_parts(config)
    temperature = config.sampler.temperature
    surrogate = SurrogateConfig(**config.surrogate.to_dict())
    loss_fn = surrogate_loss(policy, surrogate, temperature, config.correction)
    cosine_ceiling = learner.make_cosine_ceiling(loss_fn, config.num_prompts)
    every, group_size = config.eval_every, config.group_size
    num_blocks = config.steps // every
    limits = dict(max_length=task.max_response_length, end_token=task.end_token, pad_token=task.pad_token)

    def draw(params, tokens, mask, key, purpose, step, group_size):
        """Responses with the noise of `Generator.sample`, and the prompts they answer."""
        slots = jnp.arange(len(tokens), dtype=jnp.int32)
        # A prompt's index is its identity through the host's buffer; nothing reads it here.
        prompts = Prompts(tokens_NxP=tokens, mask_NxP=mask, index_N=slots)
        key = jax.random.fold_in(key, purpose)
        steps = jnp.full_like(slots, step)
        return prompts, sample(policy, params, prompts, key, steps, slots, temperature, group_size=group_size, **limits)

    def program(inputs: CellInputs) -> dict[str, jax.Array]:
        settings = config.optimizer.to_dict() | {"learning_rate": inputs.learning_rate}
        optimizer = learner.make_optimizer(types.SimpleNamespace(**settings), config.correction)
        update = learner.update_step(loss_fn, optimizer)
        start, unravel = ravel_pytree(inputs.params)

        def stale_rollout(theta, ring_SxD, step):
            """The rollout of this step, the parameters that generated it, and the ring with theta in it."""
            ring_SxD = ring_SxD.at[step % (max_lag + 1)].set(theta)
            version = step - inputs.lag_T[step]
            phi = ring_SxD[version % (max_lag + 1)]
            prompts, responses = draw(
                unravel(phi), inputs.tokens_TxNxP[step], inputs.mask_TxNxP[step], inputs.key, TRAINING, step, group_size
            )
            rewards = task.judge(inputs.answer_key_TxN[step], responses.tokens_NxGxR, responses.mask_NxGxR)
            rollout = Rollout(prompts, responses, rewards.astype(jnp.float32), jnp.full(len(rewards), version))
            return rollout, phi, ring_SxD

        def learner_step(carry, step):
            state, ring_SxD = carry
            theta = ravel_pytree(state.params)[0]
            rollout, phi, ring_SxD = stale_rollout(theta, ring_SxD, step)
            state, metrics = update(state, rollout)
            record = {name: metrics[name] for name in KEPT}
            record["drift_from_behavior"] = jnp.linalg.norm(theta - phi)
            record["drift_from_start"] = jnp.linalg.norm(theta - start)
            return (state, ring_SxD), record

        def evaluate(params, step):
            _, responses = draw(params, inputs.eval_tokens_ExP, inputs.eval_mask_ExP, inputs.key, EVALUATION, step, 1)
            rewards = task.judge(inputs.eval_answer_key_E, responses.tokens_NxGxR, responses.mask_NxGxR)
            return jnp.mean(rewards.astype(jnp.float32))

        def measured_ceiling(carry, step):
            state, ring_SxD = carry
            rollout, _, _ = stale_rollout(ravel_pytree(state.params)[0], ring_SxD, step)
            return cosine_ceiling(state.params, rollout).astype(jnp.float32)

        def block(loop):
            number, peak, low_since, carry, traces = loop
            first = number * every
            ceiling = jnp.float32(jnp.nan)
            if cosine_ceiling is not None:
                due = number % CEILING_EVERY == 0
                ceiling = jax.lax.cond(due, lambda: measured_ceiling(carry, first), lambda: ceiling)
            reward = evaluate(carry[0].params, first)
            peak = jnp.maximum(peak, reward)
            low_since = jnp.where(reward < FREEZE_FRACTION * peak, low_since, number)
            carry, records = jax.lax.scan(learner_step, carry, first + jnp.arange(every, dtype=jnp.int32))
            records |= {"eval_reward": reward[None], "gradient_cosine_ceiling": ceiling[None]}
            traces = {
                name: jax.lax.dynamic_update_slice_in_dim(traces[name], records[name], number * len(records[name]), 0)
                for name in traces
            }
            return number + 1, peak, low_since, carry, traces

        def goes_on(loop):
            number, _, low_since, (state, _), _ = loop
            finite = jnp.isfinite(ravel_pytree(state.params)[0]).all()
            return (number < num_blocks) & finite & ((number - low_since) * every <= freeze_after)

        names = (*KEPT, "drift_from_behavior", "drift_from_start")
        traces = {name: jnp.full(num_blocks * every, jnp.nan) for name in names}
        traces |= {name: jnp.full(num_blocks, jnp.nan) for name in BY_BLOCK}
        carry = learner.initial_state(optimizer, inputs.params), jnp.zeros((max_lag + 1, start.size), start.dtype)
        zero = jnp.zeros((), jnp.int32)
        number, *_, traces = jax.lax.while_loop(goes_on, block, (zero, jnp.zeros(()), zero, carry, traces))
        return traces | {"steps_run": number * every}

    return program
