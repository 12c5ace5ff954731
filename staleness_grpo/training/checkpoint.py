"""Saves whole runs beside the loop, rollouts in flight included, and restores them.

    workdir/checkpoints/step_00000050/
      manifest.json     format, step, hash of the config, commit, library versions, digest of each
      file
      arrays/           Orbax: the arrays of `Run.arrays`
      buffer_0.npz      the unread groups of process 0's slots; one file for each process

Random keys derive from (seed, step, slot), lags from the schedule, and the evaluation history
stands in metrics.jsonl: none of them is saved twice. A save goes into a folder of another name,
which is renamed when everything is on disk.
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

from staleness_grpo.runtime.environment import describe_environment
from staleness_grpo.runtime.records import plain, write_json
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
from staleness_grpo.training.run import Run, Snapshot

FORMAT = 2
PARTIAL, REFUSED = ".partial", ".refused"
# Sections that change where and how often a run computes, and not its results.
NOT_HASHED = ("mesh", "checkpoint", "rewards")
DISK_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
CHECKED_ENTRIES = ("format", "config_hash", "step", "drift_versions", "files", "arrays")


def config_hash(config: ConfigDict) -> str:
    """Returns a hash of every field that can change a result.

    Unset fields are skipped, so that a new optional field leaves old hashes valid.
    """
    sections = plain(config.to_dict()).items()
    fields = {name: value for name, value in sections if name not in NOT_HASHED}
    text = json.dumps(_without_unset(fields), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_unset(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_unset(item) for key, item in value.items() if item is not None}
    return value


def step_name(step: int) -> str:
    """Returns the name of a checkpoint's folder."""
    return f"step_{step:08d}"


class Checkpoints:
    """Keeps the newest `config.checkpoint.keep` checkpoints of one run in a folder."""

    def __init__(self, folder: pathlib.Path, config: ConfigDict):
        self.folder = folder
        self._config = config.checkpoint
        self._described: dict[str, Any] = {
            "format": FORMAT,
            "config_hash": config_hash(config),
            **describe_environment(),
        }
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        self._writer = futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: futures.Future | None = None
        self._latest = -1  # the step saved or restored last

    def due(self, step: int) -> bool:
        """Says whether the run is to be saved before this learner step."""
        return step > max(self._latest, 0) and step % self._config.save_every == 0

    def save(self, snapshot: Snapshot) -> None:
        """Starts writing; returns at once unless the last save is still being written.

        Several processes write on the caller's thread: their barriers are collectives, which must
        not mix with those of the loop. A full disk costs this checkpoint and a line on stderr, and
        the run goes on.
        """
        self.wait()
        if snapshot.step == self._latest:
            return
        self._latest = snapshot.step
        self._writing = self._writer.submit(self._write, snapshot)
        if jax.process_count() > 1:
            self.wait()

    def wait(self) -> None:
        """Waits for a save that is being written, and raises what went wrong in it."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def steps(self) -> list[int]:
        """Returns the steps that have a committed checkpoint, in no order."""
        names = (re.fullmatch(r"step_(\d+)", path.name) for path in self.folder.glob("step_*"))
        return [int(name[1]) for name in names if name]

    def restore(self, run: Run, refuse: Callable[[str, str], Exception]) -> None:
        """Puts the newest checkpoint, if there is one, into a run just built from the same config.

        Args:
          run: from `build_run`; its mesh may have another shape than the one that was saved.
          refuse: makes the error of (what is wrong, how to go on).

        Raises:
          Exception: the one that `refuse` makes, when the newest checkpoint cannot be used and
            `checkpoint.fallback` is not set.
        """
        first = jax.process_index() == 0
        for left_over in self.folder.glob(f"*{PARTIAL}") if first else ():
            shutil.rmtree(left_over)
        manifest, faults = self._newest_usable(run)
        if faults and not self._config.fallback:
            newest = max(faults)
            target = f"step {manifest['step']}" if manifest else "step 0, as no other can be used"
            reason = f"the checkpoint of step {newest} cannot be used: {faults[newest]}"
            raise refuse(reason, f"add --config.checkpoint.fallback to go on from {target}")
        _barrier("checked")
        for step in faults if first else ():
            refused = self.folder / (step_name(step) + REFUSED)
            shutil.rmtree(refused, ignore_errors=True)
            (self.folder / step_name(step)).rename(refused)
        if manifest:
            self._load(run, manifest)
        _barrier("restored")

    def _write(self, snapshot: Snapshot) -> None:
        """Writes a checkpoint, or says in one line that the disk is full."""
        partial = self.folder / (step_name(snapshot.step) + PARTIAL)
        try:
            self._write_files(partial, snapshot)
        # Orbax and TensorStore wrap the system's words in errors of their own.
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = next((words for words in DISK_FULL if words in str(error)), None)
            if reason is None:
                raise
            kept = f"step {max(self.steps())} is kept" if self.steps() else "there is none yet"
            print(
                f"checkpoint of step {snapshot.step} not saved ({reason}): {kept}; the run goes on",
                file=sys.stderr,
            )

    def _write_files(self, partial: pathlib.Path, snapshot: Snapshot) -> None:
        first = jax.process_index() == 0
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        _barrier(f"folder {snapshot.step}")
        write_groups(partial / f"buffer_{jax.process_index()}.npz", snapshot.groups())
        arrays = by_path(stacked(snapshot.arrays))
        self._orbax.save(partial / "arrays", args=ocp.args.StandardSave(arrays))
        _barrier(f"files {snapshot.step}")
        if first:
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
        """Returns the newest usable checkpoint's manifest, and why newer ones are not usable."""
        arrays = by_path(run.arrays())
        expected = {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in arrays.items()}
        faults: dict[int, CheckpointError] = {}
        for step in sorted(self.steps(), reverse=True):
            try:
                return self._checked_manifest(step, expected), faults
            except CheckpointError as error:
                faults[step] = error
        return None, faults

    def _checked_manifest(self, step: int, expected: dict[str, list]) -> dict:
        """Returns the manifest of a checkpoint whose every byte is as it was written.

        Raises:
          CheckpointError: saying what is wrong with it.
        """
        folder = self.folder / step_name(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            checked = {name: manifest[name] for name in CHECKED_ENTRIES}
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"its {MANIFEST} cannot be read ({reason})") from error
        for name in ("format", "config_hash"):
            saved, here = checked[name], self._described[name]
            if saved != here:
                raise CheckpointError(f"its {name} is {saved}, this run has {here}")
        for path, described in expected.items():
            saved = checked["arrays"].get(path)
            if saved != described:
                shown = "absent" if saved is None else saved
                raise CheckpointError(f"array {path} is {shown} there, {described} in this code")
        on_disk = digests(folder)
        for name, digest in checked["files"].items():
            if on_disk.get(name) != digest:
                fault = "is damaged" if name in on_disk else "is missing"
                raise CheckpointError(f"its file {name} {fault}")
        return manifest

    def _load(self, run: Run, manifest: dict) -> None:
        """Reads a checked checkpoint, sharded as the run is, and gives it to the run."""
        folder = self.folder / step_name(manifest["step"])
        versions = tuple(manifest["drift_versions"])
        tree = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            run.arrays(),
        )
        if versions:
            tree["drift_versions"] = jax.tree.map(
                lambda leaf: stacked_leaf(leaf, len(versions)), tree["state"].params
            )
        abstract = by_path(tree)
        restored = self._orbax.restore(folder / "arrays", args=ocp.args.StandardRestore(abstract))
        leaves = [restored[path] for path in abstract]
        arrays = jax.tree.unflatten(jax.tree.structure(tree), leaves)
        if versions:
            arrays["drift_versions"] = unstacked(arrays["drift_versions"], arrays["state"].params)
        groups = [read_groups(path) for path in sorted(folder.glob("buffer_*.npz"))]
        run.restore(manifest["step"], arrays, versions, groups)
        self._latest = manifest["step"]
        for name in ("versions", "commit"):
            saved, here = manifest[name], self._described[name]
            if saved != here:
                print(
                    f"resumed from {name} {saved}, now {here}: the bytes may differ from here on",
                    file=sys.stderr,
                )


def _barrier(name: str) -> None:
    """Waits for all processes."""
    ocp.multihost.sync_global_processes(f"checkpoint {name}")
