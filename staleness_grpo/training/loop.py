"""Runs the training loop: sample -> push -> pop -> update -> log.

At learner step t the parameters are version t. First the loop generates all groups whose behavior
policy is version t, and pushes them into the ring buffer. Then it pops the groups of step t, which
were generated up to S versions ago, and updates the parameters on them. Prompts and noise depend on
(seed, step, slot) only. So the lag changes only which policy version generates a group.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.runtime.preemption import Preemption
from staleness_grpo.training import learner
from staleness_grpo.training.checkpoint import Checkpoints
from staleness_grpo.training.diagnostics import copied
from staleness_grpo.training.in_flight import Replay, samples_in_parts
from staleness_grpo.training.rewards import FAILED, TIMED_OUT
from staleness_grpo.training.run import Run
from staleness_grpo.training.samples import PendingSamples
from staleness_grpo.types import Rollout

# A run ends, with `collapsed` true in its record, if one of these metrics is not finite.
MUST_BE_FINITE = ("loss", "grad_norm", "update_norm", "param_norm")


class Source(Protocol):
    """Gives the loop the groups of each learner step."""

    def provide(self, run: Run, step: int) -> dict[str, float]:
        """Pushes all groups of this step into the buffer of a run that has version `step`.

        Returns fields for the record of the step, whose names begin with `time_`.
        """

    def settle(self, run: Run) -> bool:
        """Pushes all groups that versions before `run.step` generate, before a snapshot.

        Returns whether a snapshot can be made. If not, this one is left out.
        """


class Due:
    """Generates the groups that are due at a step in that step, for the synchronous loop."""

    def provide(self, run: Run, step: int) -> dict[str, float]:
        """Generates the groups of this policy version, and pushes judged groups."""
        steps_W, slots_W = run.schedule.due(step, run.config.steps)
        params = run.state.params
        if run.drift and np.any(steps_W > step):
            run.drift.remember(step, params)
            run.watch("drift", run.drift.versions[step])
        for steps, slots, rollout in run.generator.generate(params, step, steps_W, slots_W):
            run.unjudged.append((steps, slots, step, rollout))
        run.push_judged(needed=step)
        return {}

    def settle(self, run: Run) -> bool:
        """Returns True, because no group is in flight between two steps."""
        return True


def default_source(run: Run) -> Source:
    """Returns the source of the synchronous loop, which may replay changes in flight."""
    if run.config.lag.schedule == "trace" and samples_in_parts(run.config):
        return Replay(run)
    return Due()


def train(
    run: Run,
    checkpoints: Checkpoints | None = None,
    preemption: Preemption | None = None,
    source: Source | None = None,
) -> Iterator[dict]:
    """Runs the learner steps from `run.step` on, and yields one record for each, one step late.

    Because of the delay, the device does not wait while the host reads metrics. If one of
    MUST_BE_FINITE is not finite in a step, the step's record has `collapsed` true, and the run ends
    after this record.

    A record has `samples`, a list of the records of some groups, at the steps that
    `metrics.samples_every` chooses.

    Args:
      run: a run from `build_run`, new or restored.
      checkpoints: saves the run every `checkpoint.save_every` steps, and at its end unless it has
        collapsed; None to save nothing. A save starts only after all records before the saved step
        were yielded.
      preemption: is asked before each step whether to stop. If so, the run is saved and ends.
      source: gives the groups of each step; None for those of `default_source`.
    """
    config, drift = run.config, run.drift
    source = default_source(run) if source is None else source
    if checkpoints is not None:
        checkpoints.check(run)
    learning_rate = learner.learning_rate_schedule(config.optimizer, config.steps)
    pending, collapsed = None, False
    last_time = time.perf_counter()
    for step in range(run.step, config.steps):
        if preemption is not None and preemption.requested(step):
            break
        snapshot = None
        if checkpoints is not None and checkpoints.due(step) and source.settle(run):
            snapshot = run.snapshot()
            run.watch("snapshot", ())
        times = source.provide(run, step)
        record, rollout, lag_N = _read_rollout(run, step)
        record["learning_rate"] = float(learning_rate(step))
        batch = mesh_lib.put_own_rows(rollout, run.mesh, run.schedule.num_groups)
        run.watch("buffer", batch)
        with jax.set_mesh(run.mesh):
            if run.programs.proximal_logprobs is not None:
                if step % config.updates_per_batch == 0:
                    # The update donates the parameters.
                    run.proximal_params = copied(run.state.params)
                logprobs = run.programs.proximal_logprobs(run.proximal_params, batch)
                batch = dataclasses.replace(batch, proximal_logprobs_NxGxR=logprobs)
            batch = run.with_reference(batch)
            drifts = drift.measure(step, run.state.params, lag_N) if drift else {}
            record |= _evaluate(run, step, batch, lag_N)
            run.state, metrics = run.update(run.state, batch)
        _end_collectives((run.state, metrics))
        run.watch("update", (run.state, metrics))
        run.step = step + 1

        if pending is not None:
            yield (finished := finish_record(*pending))
            if finished["collapsed"]:
                pending, collapsed = None, True
                break
        run.watch("records", ())
        if checkpoints is not None and snapshot is not None:
            checkpoints.save(snapshot)
            run.watch("save", ())
        now = time.perf_counter()
        pending = record | {"time_step": now - last_time} | times, metrics | drifts
        last_time = now
    if pending is not None:
        yield (finished := finish_record(*pending))
        collapsed = finished["collapsed"]
    if checkpoints is not None:
        if not collapsed and source.settle(run):
            checkpoints.save(run.snapshot())
        checkpoints.wait()


def _read_rollout(run: Run, step: int) -> tuple[dict, Rollout, np.ndarray]:
    """Pops this step's rollout from the buffer.

    Returns:
      (record, rollout, lag_N). The record has only the step's first fields.
    """
    versions_N = run.schedule.behavior_versions(step)
    rollout, _ = run.buffer.pop(step, versions_N[run.own_slots])
    # The lags of the groups of all processes. `pop` has checked the versions of this process's.
    lag_N = step - versions_N
    record = {
        "step": step,
        "lag_mean": lag_N.mean(),
        "lag_max": lag_N.max(),
        "lag_histogram": np.bincount(lag_N, minlength=run.schedule.max_lag + 1),
    }
    if run.config.metrics.lags:
        record["lags"] = lag_N
    outcomes = [
        np.count_nonzero(rollout.reward_outcome_NxG == kind) for kind in (FAILED, TIMED_OUT)
    ]
    counts = mesh_lib.sum_over_processes(np.array(outcomes)).astype(int)
    record |= zip(("reward_errors", "reward_timeouts"), counts, strict=True)
    if names := run.generator.component_names:
        components = np.asarray(rollout.reward_components_NxGxO, np.float64)
        means = mesh_lib.sum_over_processes(components.sum(axis=(0, 1)))
        means = means / (len(lag_N) * run.config.group_size)
        record |= {f"reward_{name}": float(mean) for name, mean in zip(names, means, strict=True)}
    if rollout.token_version_NxR is not None:
        record |= lags_of_tokens(rollout, step)
    # The update does not need them, so its program is the same with and without them.
    rollout = dataclasses.replace(rollout, reward_components_NxGxO=None, token_version_NxR=None)
    return record, rollout, lag_N


def lags_of_tokens(rollout: Rollout, step: int) -> dict[str, float]:
    """Returns the mean lag of the tokens, and the share of groups that several versions sampled."""
    mask_NxGxR = np.asarray(rollout.responses.mask_NxGxR)
    version_NxR = np.asarray(rollout.token_version_NxR)
    tokens_NxR = mask_NxGxR.sum(axis=1)
    last_version_N = np.max(np.where(tokens_NxR > 0, version_NxR, -1), axis=1)
    return {
        "token_lag_mean": float(np.average(step - version_NxR, weights=tokens_NxR)),
        "in_flight_share": float(np.mean(last_version_N > version_NxR[:, 0])),
    }


def _evaluate(run: Run, step: int, batch: Rollout, lag_N: np.ndarray) -> dict:
    """Measures the fields of the record that are not measured at every step, if they are due."""
    config, params = run.config, run.state.params
    measured: dict[str, Any] = {}
    if config.eval_every and step % config.eval_every == 0:
        measured |= run.generator.evaluate(params, step)
        if run.programs.cosine_ceiling is not None:
            measured["gradient_cosine_ceiling"] = run.programs.cosine_ceiling(params, batch)
    if run.heldout is not None and step % config.heldout.every == 0:
        measured |= run.heldout.evaluate(params, step)
    if run.programs.paired_gram is not None and step % config.metrics.paired_every == 0:
        fresh = run.with_reference(run.generator.answer_again(params, step))
        measured["paired_gram"] = run.programs.paired_gram(params, batch, fresh)
        assert fresh.reward_outcome_NxG is not None  # `answer_again` waits for the rewards
        measured["paired_reward_failures"] = jnp.count_nonzero(fresh.reward_outcome_NxG)
    if run.programs.samples is not None and step % config.metrics.samples_every == 0:
        taken = run.programs.samples(params, batch)
        _end_collectives(taken)
        measured["samples"] = PendingSamples(run.programs.task, step, lag_N, *taken)
    return measured


def _end_collectives(arrays: Any) -> None:
    """Waits for arrays of several processes on CPUs.

    There, programs without a common array may run at the same time, and then collectives of several
    processes mix: those of an update with those of a save or a sum.
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.block_until_ready(arrays)


def finish_record(record: dict, on_device: dict) -> dict:
    """Adds the metrics on the device to a record, and whether the run has collapsed.

    Samples in the record are decoded.
    """
    if "samples" in record:
        record["samples"] = record["samples"].records()
    record |= {name: float(value) for name, value in jax.device_get(on_device).items()}
    not_finite = [name for name in MUST_BE_FINITE if not math.isfinite(record[name])]
    record["collapsed"] = bool(not_finite)
    return record | ({"not_finite": not_finite} if not_finite else {})
