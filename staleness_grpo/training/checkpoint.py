"""Saves whole runs, including rollouts in flight, while training goes on, and restores them.

    workdir/checkpoints/step_00000050/
      manifest.json     format, step, config hash, commit, library versions, digests of all files
      arrays/           the arrays of `Run.arrays`, written by Orbax
      buffer_0.npz      the unread groups in the slots of process 0; one file for each process

A checkpoint does not contain what can be computed or read again. Random keys are computed from
(seed, step, slot), and lags from the schedule. The evaluation history is in metrics.jsonl.

A checkpoint is first written to a folder with another name. The folder is renamed when all files
are on disk.
"""

import hashlib
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from staleness_grpo.policy import own
from staleness_grpo.runtime.environment import RANDOM_SETTINGS, describe_environment
from staleness_grpo.runtime.records import flattened, plain, write_json
from staleness_grpo.training.checkpoint_files import (
    MANIFEST,
    CheckpointError,
    by_path,
    digests,
    read_groups,
    stacked,
    stacked_leaf,
    sync,
    sync_folder,
    unstacked,
    write_groups,
)
from staleness_grpo.training.guard import OFF
from staleness_grpo.training.run import Run, Snapshot

FORMAT = 3
PARTIAL, REFUSED = ".partial", ".refused"
# Sections that a resumed run may change. Only one field of them can change a result: a reward that
# takes longer than rewards.time_limit is 0.
FREE_SECTIONS = ("mesh.", "checkpoint.", "rewards.", "sinks.")
# The number of steps may grow (`_check_length`). A file of problems may be moved, because the
# experiment compares its content. Samples are not part of a run's state.
FREE_FIELDS = ("steps", "task.path", "metrics.samples_every", "metrics.num_samples")
DISK_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
CHECKED_ENTRIES = ("format", "config_hash", "steps", "step", "drift_versions", "files", "arrays")


def config_hash(config: ConfigDict) -> str:
    """Returns a hash of all fields that a resumed run may not change.

    Unset fields are left out. So a new optional field does not change the hash of old configs. A
    guard that is off is left out too, because old configs have none. The code of a policy of one's
    own is in the hash.
    """
    free = set(FREE_FIELDS) - ({"steps"} if steps_shape_the_run(config) else set())
    free_sections = FREE_SECTIONS + (("guard.",) if config.guard.mode == OFF else ())
    fields = {
        name: value
        for name, value in flattened(plain(config.to_dict())).items()
        if name not in free and not name.startswith(free_sections)
    }
    code = own.fingerprint(config.policy)
    if code is not None:
        fields["policy.code"] = code
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def steps_shape_the_run(config: ConfigDict) -> bool:
    """Says whether a run with more steps would differ from the first step on."""
    return config.optimizer.decay != "none" and config.optimizer.decay_steps is None


def step_name(step: int) -> str:
    """Returns the folder name of the checkpoint before a learner step."""
    return f"step_{step:08d}"


class Checkpoints:
    """Saves, restores and deletes one run's checkpoints; the newest `checkpoint.keep` remain."""

    def __init__(self, folder: pathlib.Path, config: ConfigDict):
        self.folder = folder
        self._config, self._max_lag = config.checkpoint, config.lag.max_lag
        self._described: dict[str, Any] = {
            "format": FORMAT,
            "config_hash": config_hash(config),
            "steps": config.steps,
            **describe_environment(),
        }
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        self._writer = futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: futures.Future | None = None
        self._latest = -1  # the step of the last save or restore

    def check(self, run: Run) -> None:
        """Raises ValueError if these checkpoints were not made for the config of this run."""
        if config_hash(run.config) != self._described["config_hash"]:
            raise ValueError(
                "these checkpoints have another config than the run, which may have a task of its "
                "own: make them by Checkpoints(folder, run.config)"
            )

    def due(self, step: int) -> bool:
        """Returns whether the run must be saved before this learner step."""
        return step > max(self._latest, 0) and step % self._config.save_every == 0

    def save(self, snapshot: Snapshot) -> None:
        """Starts to write a checkpoint in the background.

        The call first waits for the previous save, if that is still being written. A run with
        several processes waits for this save too. Its barriers are collectives, which must not mix
        with the collectives of the training loop.

        If the disk is full, this checkpoint is not written, a line on stderr says so, and the run
        continues. With several processes the run ends instead, because the others wait for this
        one.
        """
        self.wait()
        if snapshot.step == self._latest:
            return
        self._latest = snapshot.step
        self._writing = self._writer.submit(self._write, snapshot)
        if jax.process_count() > 1:
            self.wait()

    @property
    def latest(self) -> int:
        """Returns the step of the last save or restore; -1 if there was none."""
        return self._latest

    def wait(self) -> None:
        """Waits until the last save is written, and raises the error of a failed save."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, in no fixed order."""
        names = (re.fullmatch(r"step_(\d+)", path.name) for path in self.folder.glob("step_*"))
        return [int(name[1]) for name in names if name]

    def restore(self, run: Run, refuse: Callable[[str, str], Exception]) -> None:
        """Loads the newest checkpoint, if there is one, into a run built from the same config.

        Args:
          run: a new run from `build_run`. Its mesh may have another shape than the saved run's.
          refuse: a function from (what is wrong, how to continue) to an error.

        Raises:
          ValueError: these checkpoints were made for another config than that of the run.
          Exception: the error that `refuse` makes, if the newest checkpoint cannot be used and
            `checkpoint.fallback` is not set.
        """
        self.check(run)
        is_first_process = jax.process_index() == 0
        for left_over in self.folder.glob(f"*{PARTIAL}") if is_first_process else ():
            shutil.rmtree(left_over)
        manifest, errors_by_step = self._newest_usable(run)
        if errors_by_step and not self._config.fallback:
            newest = max(errors_by_step)
            resume_point = (
                f"step {manifest['step']}" if manifest else "step 0 (no usable checkpoint)"
            )
            reason = f"the checkpoint of step {newest} cannot be used: {errors_by_step[newest]}"
            raise refuse(reason, f"add --config.checkpoint.fallback to go on from {resume_point}")
        _barrier("checked")
        for step in errors_by_step if is_first_process else ():
            refused = self.folder / (step_name(step) + REFUSED)
            shutil.rmtree(refused, ignore_errors=True)
            (self.folder / step_name(step)).rename(refused)
        if manifest:
            self._load(run, manifest)
        _barrier("restored")

    def _write(self, snapshot: Snapshot) -> None:
        """Writes a checkpoint. If the disk is full, a single process prints one line instead."""
        partial = self.folder / (step_name(snapshot.step) + PARTIAL)
        try:
            self._write_files(partial, snapshot)
        # Orbax and TensorStore raise their own error types, which contain the system's message.
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = next((words for words in DISK_FULL if words in str(error)), None)
            # Other processes wait at a barrier, so this one may not train on without them.
            if reason is None or jax.process_count() > 1:
                raise
            kept = f"step {max(self.steps())} is kept" if self.steps() else "no older one exists"
            print(
                f"checkpoint of step {snapshot.step} not saved ({reason}): {kept}; the run goes on",
                file=sys.stderr,
            )

    def _write_files(self, partial: pathlib.Path, snapshot: Snapshot) -> None:
        is_first_process = jax.process_index() == 0
        if is_first_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        _barrier(f"folder {snapshot.step}")
        write_groups(partial / f"buffer_{jax.process_index()}.npz", snapshot.groups())
        arrays = by_path(stacked(snapshot.arrays))
        self._orbax.save(partial / "arrays", args=ocp.args.StandardSave(arrays))
        _barrier(f"files {snapshot.step}")
        if is_first_process:
            manifest = self._described | {
                "step": snapshot.step,
                "drift_versions": snapshot.drift_versions,
                "arrays": {path: [leaf.shape, str(leaf.dtype)] for path, leaf in arrays.items()},
                "files": digests(partial),
            }
            write_json(partial / MANIFEST, manifest)
            sync_folder(partial)
            partial.rename(self.folder / step_name(snapshot.step))
            sync(self.folder)
            for step in sorted(self.steps())[: -self._config.keep]:
                shutil.rmtree(self.folder / step_name(step))
        _barrier(f"committed {snapshot.step}")

    def _newest_usable(self, run: Run) -> tuple[dict | None, dict[int, CheckpointError]]:
        """Returns the newest usable checkpoint's manifest, and the errors of newer ones."""
        arrays = by_path(run.arrays())
        expected = {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in arrays.items()}
        errors_by_step: dict[int, CheckpointError] = {}
        for step in sorted(self.steps(), reverse=True):
            try:
                return self._checked_manifest(step, expected), errors_by_step
            except CheckpointError as error:
                errors_by_step[step] = error
        return None, errors_by_step

    def _checked_manifest(self, step: int, expected: dict[str, list]) -> dict:
        """Returns a checkpoint's manifest, after a check that all its files are unchanged.

        Raises:
          CheckpointError: the checkpoint cannot be used. The message says why.
        """
        folder = self.folder / step_name(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            checked = {name: manifest[name] for name in CHECKED_ENTRIES}
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"its {MANIFEST} cannot be read ({reason})") from error
        for name in ("format", "config_hash"):
            saved, current = checked[name], self._described[name]
            if saved != current:
                reason = f"its {name} is {saved}, but this run has {current}"
                if name == "config_hash":
                    reason += "; another config, task or reward function made it"
                raise CheckpointError(reason)
        self._check_length(step, checked["steps"])
        settings = manifest.get("jax_settings", {})  # checkpoints of version 0.1 lack them
        for name in RANDOM_SETTINGS:
            saved, current = settings.get(name), self._described["jax_settings"][name]
            if saved not in (None, current):
                raise CheckpointError(
                    f"its random numbers are those of {name}={saved}, but this run has {current}"
                )
        for path, described in expected.items():
            saved = checked["arrays"].get(path)
            if saved != described:
                shown = "absent" if saved is None else saved
                raise CheckpointError(
                    f"its array {path} is {shown}, but this run needs {described}"
                )
        on_disk = digests(folder)
        for name, digest in checked["files"].items():
            if on_disk.get(name) != digest:
                fault = "is damaged" if name in on_disk else "is missing"
                raise CheckpointError(f"its file {name} {fault}")
        return manifest

    def _check_length(self, step: int, saved_steps: int) -> None:
        """Raises CheckpointError if the saved run was cut short in a way that this run is not.

        The last S versions of a run generate no rollouts for steps after its end. A longer run
        needs them, so it can only go on from a step before those versions.
        """
        steps = self._described["steps"]
        if saved_steps > steps:
            raise CheckpointError(
                f"its run has {saved_steps} steps, but this run has {steps}: give at least those"
            )
        last_complete = saved_steps - self._max_lag
        if saved_steps < steps and step > last_complete:
            raise CheckpointError(
                f"its run ends at step {saved_steps}, and with lags up to {self._max_lag} the "
                f"rollouts of a longer run are complete only up to step {last_complete}"
            )

    def _load(self, run: Run, manifest: dict) -> None:
        """Loads a checked checkpoint into the run, with the run's shardings."""
        folder = self.folder / step_name(manifest["step"])
        versions = tuple(manifest["drift_versions"])
        tree = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            run.arrays(),
        )
        if versions:
            assert run.drift is not None  # a run without drift has no versions
            described = run.drift.described()
            tree["drift_versions"] = jax.tree.map(
                lambda leaf: stacked_leaf(leaf, len(versions)), described
            )
        abstract = by_path(tree)
        restored = self._orbax.restore(folder / "arrays", args=ocp.args.StandardRestore(abstract))
        leaves = [restored[path] for path in abstract]
        arrays = jax.tree.unflatten(jax.tree.structure(tree), leaves)
        if versions:
            arrays["drift_versions"] = unstacked(arrays["drift_versions"], described)
        groups = [read_groups(path) for path in sorted(folder.glob("buffer_*.npz"))]
        run.restore(manifest["step"], arrays, versions, groups)
        self._latest = manifest["step"]
        for name in ("versions", "commit", "jax_settings"):
            saved, current = manifest.get(name), self._described[name]
            if saved != current:
                print(
                    f"the checkpoint has {name} {saved}, this run has {current}: "
                    "results may differ in the last digits from now on",
                    file=sys.stderr,
                )


def _barrier(name: str) -> None:
    """Waits until all processes have reached the barrier of this name."""
    ocp.multihost.sync_global_processes(f"checkpoint {name}")
