"""Runs a whole asynchronous training as one compiled program, which takes S, eta and seed as data.

The training loop samples a rollout S updates before the learner step that uses the rollout. This
program samples the rollout in that learner step, with old parameters. A ring on the device stores
the parameters of the latest versions. Both give the same rollouts, because the sampling noise
depends on (seed, step, slot) only. The ring is affordable for small policies: the parameters of a
26k-parameter policy are smaller than the other state of the program.
"""

import dataclasses
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from staleness_grpo.policy.configured import make_policy
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.base import ArrayTask, lowest_reward
from staleness_grpo.training import learner
from staleness_grpo.training.guard import OFF
from staleness_grpo.training.programs import make_programs
from staleness_grpo.training.rewards import FAILED, JUDGED
from staleness_grpo.training.rollouts import EVALUATION, TRAINING, draw_prompts, purpose_key
from staleness_grpo.training.run import lag_schedule
from staleness_grpo.training.warm_start import warm_start
from staleness_grpo.types import Array, Prompts, PyTree, Rollout

# A cell whose reward stays below this fraction of its peak is frozen. The fraction is lower than
# the collapse detector's, which is one half. Both are measured from the task's lowest reward.
FREEZE_FRACTION = 0.25
# The ceiling of the gradient cosine is measured at every fifth evaluation only, because it costs as
# much as a learner step.
CEILING_EVERY = 5
# Schedules with one lag for all slots of a step. The program samples a step with one old version.
SCHEDULES = ("constant", "cyclic")

# Metrics of an update that a record keeps. Quantiles of the ratio are left out, because they need a
# sort of all ratios at every step.
UPDATE_METRICS = (
    "reward",
    "entropy",
    "clip_fraction",
    "approx_kl",
    "ess",
    "log_ratio_second_moment",
    "grad_norm",
    "update_norm",
    "param_norm",
    "gradient_cosine",
)
GUARD_METRICS = ("guard_average", "guard_scale")  # of an update with a guard
DRIFT_METRICS = ("drift_from_behavior", "drift_from_start")
FAILURES = "reward_errors"  # rewards of a batch that were not finite, scored 0
EVALUATION_METRICS = ("eval_reward", "gradient_cosine_ceiling")  # one entry for each evaluation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CellInputs:
    """Holds everything that differs between cells of one program.

    Cells that are vectorized together have their inputs stacked along a leading axis.
    """

    params: PyTree  # the warm-started policy
    key: Array  # the key of the run's seed
    learning_rate: Array  # float32 scalar, eta
    lag_I: Array  # int32, the lag of every learner step
    tokens_IxNxP: Array  # int32, the prompts of every learner step
    mask_IxNxP: Array  # bool, False on the padding
    answer_key_IxN: Array  # the prompts' answer keys, with the key's own axes last
    eval_tokens_BxP: Array  # int32, the prompts of every evaluation
    eval_mask_BxP: Array  # bool
    eval_answer_key_B: Array


def cell_inputs(config: ConfigDict) -> CellInputs:
    """Returns the inputs of the training that `build_run(config)` would start, on the host.

    Raises:
      ValueError: the schedule may give the slots of one step different lags.
    """
    if config.lag.schedule not in SCHEDULES:
        raise ValueError(
            f"a sweep cannot run lag.schedule={config.lag.schedule!r}: "
            f"choose one of {', '.join(SCHEDULES)}"
        )
    task = cast(ArrayTask, make_task(config.task))
    policy = make_policy(config.policy, task.vocab_size)
    steps, slots = np.arange(config.steps), np.arange(config.num_prompts)
    shape = (config.steps, config.num_prompts)
    step_slot_pairs = np.repeat(steps, len(slots)), np.tile(slots, len(steps))
    prompts = draw_prompts(task, config.seed, TRAINING, *step_slot_pairs)
    eval_slots = np.arange(config.num_prompts * config.group_size)
    eval_steps = np.zeros_like(eval_slots)  # every evaluation uses the same prompts
    eval_prompts = draw_prompts(task, config.seed, EVALUATION, eval_steps, eval_slots)
    key = jax.random.key(config.seed)
    if config.warm_start.steps:
        params = warm_start(policy, task, config)
    else:
        params = jax.device_get(jax.jit(policy.init)(key))

    def by_step(array):
        return array.reshape(*shape, *array.shape[1:])

    return CellInputs(
        params=params,
        key=key,
        learning_rate=np.asarray(config.optimizer.learning_rate, np.float32),
        lag_I=lag_schedule(config).lags(steps)[:, 0].astype(np.int32),
        tokens_IxNxP=by_step(prompts.tokens_NxP),
        mask_IxNxP=by_step(prompts.mask_NxP),
        answer_key_IxN=by_step(task.answer_key(np.asarray(prompts.index_N))),
        eval_tokens_BxP=eval_prompts.tokens_NxP,
        eval_mask_BxP=eval_prompts.mask_NxP,
        eval_answer_key_B=task.answer_key(np.asarray(eval_prompts.index_N)),
    )


def make_cell_program(
    config: ConfigDict, max_lag: int, freeze_after: int
) -> Callable[[CellInputs], dict[str, jax.Array]]:
    """Returns a whole training as a pure function of CellInputs.

    The function returns a dict with these entries:
      each of UPDATE_METRICS and DRIFT_METRICS, and FAILURES: [I], one value for each learner step;
      with a guard each of GUARD_METRICS: [I];
      each of EVALUATION_METRICS: [X], one value for each evaluation;
      `steps_run`: the number of learner steps before the cell was frozen or finished.
    The ceiling of the gradient cosine is measured at every CEILING_EVERY-th evaluation, and is NaN
    at the others.

    A cell is frozen, which ends its training early, in two cases:
      a parameter is not finite;
      the last evaluation with at least FREEZE_FRACTION of the peak reward is more than
      `freeze_after` learner steps ago.
    All trace values after the freeze are NaN.

    Args:
      config: the config of any cell. Seed, learning rate and lag are not read from it. `eval_every`
        must divide `steps`.
      max_lag: the largest lag of all cells.
      freeze_after: learner steps with a low pass rate after which a cell is frozen.
    """
    task = cast(ArrayTask, make_task(config.task))
    programs = make_programs(config, task)
    cosine_ceiling = programs.cosine_ceiling
    eval_every, group_size = config.eval_every, config.group_size
    num_blocks = config.steps // eval_every
    floor = lowest_reward(task)
    update_metrics = UPDATE_METRICS + (() if config.guard.mode == OFF else GUARD_METRICS)

    def draw(params, tokens, mask, key, purpose, step, group_size):
        """Samples with the noise of `Generator.sample`, and returns prompts and responses."""
        slots = jnp.arange(len(tokens), dtype=jnp.int32)
        # The index identifies a prompt in the host's buffer. This program never reads it.
        prompts = Prompts(tokens_NxP=tokens, mask_NxP=mask, index_N=slots)
        steps = jnp.full_like(slots, step)
        key = purpose_key(key, purpose)
        return prompts, programs.sample(params, prompts, key, steps, slots, group_size)

    def judged(answer_key, responses):
        rewards = task.judge(answer_key, responses.tokens_NxGxR, responses.mask_NxGxR)
        return rewards.astype(jnp.float32)

    def with_reference(rollout, inputs):
        """Adds the log-probabilities of the start policy, if there is a penalty."""
        if programs.reference_logprobs is None:
            return rollout
        logprobs = programs.reference_logprobs(inputs.params, rollout)
        return dataclasses.replace(rollout, reference_logprobs_NxGxR=logprobs)

    def program(inputs: CellInputs) -> dict[str, jax.Array]:
        optimizer = programs.make_optimizer(inputs.learning_rate)
        update = learner.update_step(programs.loss, optimizer)
        start_D, unravel = ravel_pytree(inputs.params)

        def stale_rollout(theta_D, ring_OxD, step):
            """Stores theta in the ring, and returns this step's rollout, its phi and the ring.

            A row of the ring holds the parameters of one version. O = max_lag + 1 rows hold the
            latest versions.
            """
            ring_OxD = ring_OxD.at[step % (max_lag + 1)].set(theta_D)
            version = step - inputs.lag_I[step]
            phi_D = ring_OxD[version % (max_lag + 1)]
            prompts, responses = draw(
                unravel(phi_D),
                inputs.tokens_IxNxP[step],
                inputs.mask_IxNxP[step],
                inputs.key,
                TRAINING,
                step,
                group_size,
            )
            rewards = judged(inputs.answer_key_IxN[step], responses)
            outcome = jnp.where(jnp.isfinite(rewards), JUDGED, FAILED).astype(jnp.int8)
            rollout = Rollout(
                prompts,
                responses,
                jnp.where(outcome == JUDGED, rewards, 0),
                jnp.full(len(rewards), version),
                reward_outcome_NxG=outcome,
            )
            return rollout, phi_D, ring_OxD

        def learner_step(carry, step):
            state, ring_OxD = carry
            theta_D = ravel_pytree(state.params)[0]
            rollout, phi_D, ring_OxD = stale_rollout(theta_D, ring_OxD, step)
            state, metrics = update(state, with_reference(rollout, inputs))
            record = {name: metrics[name] for name in update_metrics}
            record[FAILURES] = jnp.count_nonzero(rollout.reward_outcome_NxG).astype(jnp.float32)
            record["drift_from_behavior"] = jnp.linalg.norm(theta_D - phi_D)
            record["drift_from_start"] = jnp.linalg.norm(theta_D - start_D)
            return (state, ring_OxD), record

        def evaluate(params, step):
            _, responses = draw(
                params,
                inputs.eval_tokens_BxP,
                inputs.eval_mask_BxP,
                inputs.key,
                EVALUATION,
                step,
                1,
            )
            rewards = judged(inputs.eval_answer_key_B, responses)
            return jnp.mean(jnp.where(jnp.isfinite(rewards), rewards, 0))

        def measured_ceiling(ceiling_of, carry, step):
            state, ring_OxD = carry
            rollout, _, _ = stale_rollout(ravel_pytree(state.params)[0], ring_OxD, step)
            rollout = with_reference(rollout, inputs)
            return ceiling_of(state.params, rollout).astype(jnp.float32)

        def block(loop):
            """Evaluates the policy, then runs the learner steps before the next evaluation."""
            block_index, peak, last_high_block, carry, traces = loop
            first_step = block_index * eval_every
            ceiling = jnp.float32(jnp.nan)
            if cosine_ceiling is not None:
                is_due = block_index % CEILING_EVERY == 0
                ceiling = jax.lax.cond(
                    is_due,
                    lambda: measured_ceiling(cosine_ceiling, carry, first_step),
                    lambda: ceiling,
                )
            reward = evaluate(carry[0].params, first_step)
            peak = jnp.maximum(peak, reward)
            is_low = reward - floor < FREEZE_FRACTION * (peak - floor)
            last_high_block = jnp.where(is_low, last_high_block, block_index)
            carry, records = jax.lax.scan(
                learner_step, carry, first_step + jnp.arange(eval_every, dtype=jnp.int32)
            )
            records |= {"eval_reward": reward[None], "gradient_cosine_ceiling": ceiling[None]}
            traces = {
                name: jax.lax.dynamic_update_slice_in_dim(
                    traces[name], records[name], block_index * len(records[name]), 0
                )
                for name in traces
            }
            return block_index + 1, peak, last_high_block, carry, traces

        def is_unfinished(loop):
            block_index, _, last_high_block, (state, _), _ = loop
            is_finite = jnp.isfinite(ravel_pytree(state.params)[0]).all()
            return (
                (block_index < num_blocks)
                & is_finite
                & ((block_index - last_high_block) * eval_every <= freeze_after)
            )

        names = (*update_metrics, *DRIFT_METRICS, FAILURES)
        traces = {name: jnp.full(num_blocks * eval_every, jnp.nan) for name in names}
        traces |= {name: jnp.full(num_blocks, jnp.nan) for name in EVALUATION_METRICS}
        carry = (
            learner.initial_state(optimizer, inputs.params),
            jnp.zeros((max_lag + 1, start_D.size), start_D.dtype),
        )
        zero = jnp.zeros((), jnp.int32)
        block_index, *_, traces = jax.lax.while_loop(
            is_unfinished, block, (zero, jnp.full((), floor), zero, carry, traces)
        )
        return traces | {"steps_run": block_index * eval_every}

    return program
