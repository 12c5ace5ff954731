"""The loop: sample -> push -> pop -> update -> log.

At learner step t the parameters are version t. First everything whose behavior policy is version t is generated
and waits in the ring buffer; then the groups of step t, generated up to S versions ago, come out and are learned
from. Prompts and noise belong to (seed, step, slot), so the lag changes which policy answers and nothing else.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from staleness_grpo import learner
from staleness_grpo import mesh as mesh_lib
from staleness_grpo.checkpoint import Checkpoints
from staleness_grpo.config import ConfigError
from staleness_grpo.drift import ParameterDrift
from staleness_grpo.loss import surrogate_loss
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.policy.configured import make_policy, starting_params
from staleness_grpo.policy.huggingface_config import CheckpointError
from staleness_grpo.preemption import Preemption
from staleness_grpo.rewards import FAILED, TIMED_OUT, RewardPool
from staleness_grpo.rollouts import Generator, PendingRollout
from staleness_grpo.staleness import trace
from staleness_grpo.staleness.ring_buffer import RingBuffer
from staleness_grpo.staleness.schedule import Schedule, make_schedule
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.base import Task, TextTask
from staleness_grpo.types import Array, LearnerState, PyTree, Rollout

VITAL = ("loss", "grad_norm", "update_norm", "param_norm")  # a run in which one is not finite has collapsed


@dataclasses.dataclass
class Run:
    """The parts of a run. Those from `buffer` on change as it goes: they are what a checkpoint holds."""

    mesh: Mesh
    generator: Generator
    schedule: Schedule
    update: Callable[[LearnerState, Rollout], tuple[LearnerState, dict]]
    cosine_ceiling: Callable | None
    proximal_logprobs: Callable[[PyTree, Rollout], Array] | None  # for more than one update per rollout batch
    paired_gram: Callable[[PyTree, Rollout, Rollout], Array] | None
    buffer: RingBuffer
    drift: ParameterDrift | None
    state: LearnerState
    proximal_params: PyTree | None = None
    step: int = 0  # the learner step that is next
    # (steps, slots, behavior version, groups) whose rewards are on their way; empty in a checkpoint.
    unjudged: list[tuple[np.ndarray, np.ndarray, int, PendingRollout]] = dataclasses.field(default_factory=list)

    def push_judged(self, needed: int) -> None:
        """Moves to the buffer every group whose rewards are there, and waits for those that steps <= needed read."""
        waiting = []
        for steps, slots, version, pending in self.unjudged:
            if pending.ready() or steps.min() <= needed:
                self.buffer.push(steps, np.searchsorted(self.own_slots, slots), version, pending.result())
            else:
                waiting.append((steps, slots, version, pending))
        self.unjudged = waiting

    @property
    def own_slots(self) -> np.ndarray:
        """The group slots that this process keeps in its buffer, in order: all of them if it is alone."""
        return mesh_lib.own_rows(self.mesh, self.schedule.num_groups)

    def close(self) -> None:
        """Ends the processes that judge rewards."""
        if self.generator.reward_pool is not None:
            self.generator.reward_pool.close()


def build(config, task: Task | None = None) -> Run:
    """Makes the parts of a run from a validated config: mesh, task, policy, optimizer, schedule.

    A `task` of your own stands in for the one that `config.task` names; set `config.warm_start.steps` to 0 with it,
    unless it has the corpus of a warm start.

    Raises:
      ConfigError: for what only reading a checkpoint's weights can show.
    """
    mesh = mesh_lib.make_mesh(**config.mesh.to_dict())
    task = make_task(config.task, config.policy.checkpoint) if task is None else task
    policy = make_policy(config.policy, task.vocab_size)
    try:
        params = starting_params(policy, task, config, mesh)
    except CheckpointError as error:
        raise ConfigError("policy.checkpoint", config.policy.checkpoint, str(error)) from error
    optimizer = learner.make_optimizer(config.optimizer, config.correction)
    state = learner.init_state(policy, optimizer, mesh, jax.random.key(config.seed), params)
    surrogate = SurrogateConfig(**config.surrogate.to_dict())
    loss_fn = surrogate_loss(
        policy, surrogate, config.sampler.temperature, config.correction, config.microbatch_prompts
    )
    paired_gram = None
    if config.metrics.paired_every:
        num_blocks = config.metrics.paired_blocks or config.num_prompts
        paired_gram = learner.make_paired_gram(
            policy, surrogate, config.sampler.temperature, config.correction, config.microbatch_prompts, num_blocks
        )
    size = dict(num_prompts=config.num_prompts, group_size=config.group_size)
    pool = RewardPool(task.verify, **config.rewards) if isinstance(task, TextTask) else None
    updates_per_batch = config.updates_per_batch
    schedule = lag_schedule(config)
    return Run(
        mesh=mesh,
        generator=Generator(
            policy,
            task,
            mesh,
            config.seed,
            temperature=config.sampler.temperature,
            updates_per_batch=updates_per_batch,
            reward_pool=pool,
            **size,
        ),
        schedule=schedule,
        update=learner.make_update(loss_fn, optimizer, state, mesh),
        cosine_ceiling=learner.make_cosine_ceiling(loss_fn, config.num_prompts // updates_per_batch),
        proximal_logprobs=learner.make_scorer(policy, config.sampler.temperature) if updates_per_batch > 1 else None,
        paired_gram=paired_gram,
        buffer=RingBuffer(schedule.max_lag, len(mesh_lib.own_rows(mesh, schedule.num_groups))),
        drift=ParameterDrift(state.params, schedule.max_lag) if config.metrics.parameter_drift else None,
        state=state,
    )


def lag_schedule(config) -> Schedule:
    """The schedule that `config.lag` names, a trace among them."""
    lag, num_groups = config.lag, config.num_prompts
    if lag.schedule == "trace":
        lags_TxN = trace.read(lag.trace, num_steps=config.steps, num_groups=num_groups, max_lag=lag.max_lag)
        return trace.Trace(lag.max_lag, num_groups, lags_TxN=lags_TxN)
    return make_schedule(lag.schedule, lag.max_lag, num_groups, config.seed, lag.start, config.updates_per_batch)


def train(
    run: Run, config, checkpoints: Checkpoints | None = None, preemption: Preemption | None = None
) -> Iterator[dict]:
    """Runs the learner steps from `run.step` to `config.steps` and yields one record for each, a step late.

    Late, so that the device never waits for the host to read its metrics. A step in which a vital number is not
    finite yields its record with `collapsed` true, and is the last. With `checkpoints`, the run is saved as its config
    says, after the records before the saved step were taken, and at its end, which a preemption brings on early.
    """
    learning_rate = learner.learning_rate_schedule(config.optimizer)
    copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params))  # `params` themselves are donated to the update
    drift, pending = run.drift, None
    clock = time.perf_counter()
    for step in range(run.step, config.steps):
        if preemption is not None and preemption.requested(step):
            break
        snapshot = None
        if checkpoints is not None and checkpoints.due(step):
            run.push_judged(needed=config.steps)
            snapshot = checkpoints.snapshot(run)
        steps_K, slots_K = run.schedule.due(step, config.steps)
        if drift and np.any(steps_K > step):
            drift.remember(step, run.state.params)
        for steps, slots, pending_rollout in run.generator.generate(run.state.params, step, steps_K, slots_K):
            run.unjudged.append((steps, slots, step, pending_rollout))
        run.push_judged(needed=step)
        versions_N = run.schedule.behavior_versions(step)
        rollout, _ = run.buffer.pop(step, versions_N[run.own_slots])
        lag_N = step - versions_N  # of all processes' groups; each one's buffer has just asserted its own

        record = {
            "step": step,
            "learning_rate": float(learning_rate(step)),
            "lag_mean": lag_N.mean(),
            "lag_max": lag_N.max(),
            "lag_histogram": np.bincount(lag_N, minlength=run.schedule.max_lag + 1),
        } | ({"lags": lag_N} if config.metrics.lags else {})
        if rollout.reward_outcome_NxG is not None:
            counts = [np.count_nonzero(rollout.reward_outcome_NxG == kind) for kind in (FAILED, TIMED_OUT)]
            counts = mesh_lib.sum_over_processes(np.array(counts))
            record |= zip(("reward_errors", "reward_timeouts"), counts.astype(int), strict=True)
        batch = mesh_lib.put_own_rows(rollout, run.mesh, run.schedule.num_groups)
        with jax.set_mesh(run.mesh):
            if run.proximal_logprobs is not None:
                if step % config.updates_per_batch == 0:
                    run.proximal_params = copy(run.state.params)
                proximal_logprobs = run.proximal_logprobs(run.proximal_params, batch)
                batch = dataclasses.replace(batch, proximal_logprobs_NxGxR=proximal_logprobs)
            drifts = drift.measure(step, run.state.params, lag_N) if drift else {}
            if config.eval_every and step % config.eval_every == 0:
                record |= run.generator.evaluate(run.state.params, step)
                if run.cosine_ceiling is not None:
                    record["gradient_cosine_ceiling"] = run.cosine_ceiling(run.state.params, batch)
            if run.paired_gram is not None and step % config.metrics.paired_every == 0:
                fresh = run.generator.answer_again(run.state.params, step)
                record["paired_gram"] = run.paired_gram(run.state.params, batch, fresh)
                if fresh.reward_outcome_NxG is not None:
                    record["paired_reward_failures"] = jnp.count_nonzero(fresh.reward_outcome_NxG)
            run.state, on_device = run.update(run.state, batch)
        run.step = step + 1

        if pending is not None:
            yield (finished := finish(*pending))
            if finished["collapsed"]:
                return
        if snapshot is not None:
            checkpoints.save(snapshot)
        now = time.perf_counter()
        pending = record | {"time_step": now - clock}, on_device | drifts
        clock = now
    if pending is not None:
        yield (finished := finish(*pending))
        if finished["collapsed"]:
            return
    if checkpoints is not None:
        run.push_judged(needed=config.steps)
        checkpoints.save(checkpoints.snapshot(run))
        checkpoints.wait()


def finish(record: dict, on_device: dict) -> dict:
    """The record with its metrics fetched from the device, marked as collapsed if a vital one is not finite."""
    record |= {name: float(value) for name, value in jax.device_get(on_device).items()}
    broken = [name for name in VITAL if not math.isfinite(record[name])]
    return record | {"collapsed": bool(broken)} | ({"not_finite": broken} if broken else {})
