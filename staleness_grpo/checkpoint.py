"""Checkpoints of a whole run: parameters, optimizer, rollouts in flight; saved beside the loop, committed at once.

    workdir/checkpoints/step_00000050/
      manifest.json     format, step, hash of the config, commit, library versions; size and SHA-256 of each file
      arrays/           Orbax: the learner's state, and the parameter versions that the drift is measured from
      buffer_0.npz      the unread groups of process 0's slots; one file for each process

Random keys derive from (seed, step, slot), lags from the schedule, and the evaluation history stands in metrics.jsonl:
none of them is saved twice. A save goes into a folder of another name, which is renamed when everything is on disk.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from staleness_grpo import metrics
from staleness_grpo.staleness.ring_buffer import RingBuffer
from staleness_grpo.types import LearnerState, Prompts, PyTree, Responses, Rollout

FORMAT = 2
PARTIAL, REFUSED = ".partial", ".refused"
NOT_HASHED = ("mesh", "checkpoint", "rewards")  # sections that change where and how often a run computes, not what
FULL = ("No space left on device", "Disk quota exceeded", "File too large")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: damaged, or of another config, format or code."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run as it was before learner step `step`."""

    step: int
    tree: PyTree  # of `run_arrays`
    buffer: RingBuffer  # with the unread groups of this process's slots
    own_slots: np.ndarray
    drift_versions: tuple[int, ...]


def config_hash(config) -> str:
    """Of all that decides what is computed; unset fields are left out."""
    fields = {name: value for name, value in metrics.plain(config.to_dict()).items() if name not in NOT_HASHED}
    return hashlib.sha256(json.dumps(_without_unset(fields), sort_keys=True).encode()).hexdigest()[:16]


def _without_unset(value):
    if isinstance(value, dict):
        return {key: _without_unset(item) for key, item in value.items() if item is not None}
    return value


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them."""

    def __init__(self, folder: pathlib.Path, config):
        self.folder = pathlib.Path(folder)
        self._config = config.checkpoint
        self._described = {"format": FORMAT, "config_hash": config_hash(config), **metrics.environment()}
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        self._writer = futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: futures.Future | None = None
        self._latest = -1  # the step saved or restored last

    def due(self, step: int) -> bool:
        """Whether the run is to be saved before this learner step."""
        return step > max(self._latest, 0) and step % self._config.save_every == 0

    def snapshot(self, run) -> Snapshot:
        """The run as it stands between two learner steps. Nothing is waited for: copies are made on the device."""
        tree = run_arrays(run, self._copy(run.state))  # the state itself is donated to the next update
        return Snapshot(run.step, tree, run.buffer.copy(), run.own_slots, tuple(_drift_versions(run)))

    def save(self, snapshot: Snapshot) -> None:
        """Starts writing; returns at once unless the last save is still being written.

        Several processes write on the caller's thread: their barriers are collectives, which must not mix with
        those of the loop. A full disk costs this checkpoint and a line on stderr, and the run goes on.
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

    def _write(self, snapshot: Snapshot) -> None:
        partial = self.folder / (step_name(snapshot.step) + PARTIAL)
        try:
            self._write_files(partial, snapshot)
        except Exception as error:  # Orbax and TensorStore wrap what the system says in errors of their own
            shutil.rmtree(partial, ignore_errors=True)
            if not any(words in str(error) for words in FULL):
                raise
            kept = f"step {max(self.steps())} is kept" if self.steps() else "there is none yet"
            reason = next(words for words in FULL if words in str(error))
            print(f"checkpoint of step {snapshot.step} not saved ({reason}): {kept}; the run goes on", file=sys.stderr)

    def _write_files(self, partial: pathlib.Path, snapshot: Snapshot) -> None:
        first = jax.process_index() == 0
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        _barrier(f"folder {snapshot.step}")
        np.savez(partial / f"buffer_{jax.process_index()}.npz", **_flat_groups(snapshot))
        arrays = _by_path(_stacked(snapshot.tree))
        self._orbax.save(partial / "arrays", args=ocp.args.StandardSave(arrays))
        _barrier(f"files {snapshot.step}")
        if first:
            manifest = self._described | {
                "step": snapshot.step,
                "drift_versions": snapshot.drift_versions,
                "arrays": {path: [leaf.shape, str(leaf.dtype)] for path, leaf in arrays.items()},
                "files": _digests(partial),
            }
            metrics.write_json(partial / "manifest.json", manifest)
            _to_disk(partial)
            partial.rename(self.folder / step_name(snapshot.step))
            _sync(self.folder)
            for step in sorted(self.steps())[: -self._config.keep]:
                shutil.rmtree(self.folder / step_name(step))
        _barrier(f"committed {snapshot.step}")

    def steps(self) -> list[int]:
        """The steps that have a committed checkpoint, in no order."""
        names = (re.fullmatch(r"step_(\d+)", path.name) for path in self.folder.glob("step_*"))
        return [int(name[1]) for name in names if name]

    def restore(self, run, refuse: Callable[[str, str], Exception]) -> None:
        """Puts the newest checkpoint, if there is one, into a run that was just built from the same config.

        Args:
          run: from `train.build`; its mesh may have another shape than the one that was saved.
          refuse: makes the error of (what is wrong, how to go on).

        Raises:
          what `refuse` makes: the newest checkpoint cannot be used, and `checkpoint.fallback` is not set.
        """
        first = jax.process_index() == 0
        for left_over in self.folder.glob(f"*{PARTIAL}") if first else ():
            shutil.rmtree(left_over)
        arrays = _by_path(run_arrays(run, run.state))
        expected = {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in arrays.items()}
        faults = {}
        for step in sorted(self.steps(), reverse=True):
            try:
                manifest = self._checked_manifest(step, expected)
                break
            except CheckpointError as error:
                faults[step] = error
        else:
            manifest = None
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

    def _checked_manifest(self, step: int, expected: dict) -> dict:
        """The manifest of a checkpoint whose every byte is as it was written. Raises CheckpointError."""
        folder = self.folder / step_name(step)
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            found = {name: manifest[name] for name in ("format", "config_hash", "step", "drift_versions", "files")}
            arrays = manifest["arrays"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"its manifest.json cannot be read ({type(error).__name__}: {error})") from error
        for name in ("format", "config_hash"):
            if found[name] != self._described[name]:
                raise CheckpointError(f"its {name} is {found[name]}, this run has {self._described[name]}")
        for path, described in expected.items():
            if arrays.get(path) != described:
                raise CheckpointError(f"array {path} is {arrays.get(path, 'absent')} there, {described} in this code")
        on_disk = _digests(folder)
        for name, digest in found["files"].items():
            if on_disk.get(name) != digest:
                there = "is damaged" if name in on_disk else "is missing"
                raise CheckpointError(f"its file {name} {there}")
        return manifest

    def _load(self, run, manifest: dict) -> None:
        folder = self.folder / step_name(manifest["step"])
        versions = manifest["drift_versions"]
        tree = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            run_arrays(run, run.state),
        )
        if versions:
            tree["drift_versions"] = jax.tree.map(lambda leaf: _of_versions(leaf, len(versions)), tree["state"].params)
        abstract = _by_path(tree)
        restored = self._orbax.restore(folder / "arrays", args=ocp.args.StandardRestore(abstract))
        tree = jax.tree.unflatten(jax.tree.structure(tree), [restored[path] for path in abstract])
        run.state, run.step, self._latest = tree["state"], manifest["step"], manifest["step"]
        if run.drift is not None:
            run.drift.start = tree["drift_start"]
            shardings = jax.tree.map(lambda leaf: leaf.sharding, run.state.params)
            take = jax.jit(lambda stacked, k: jax.tree.map(lambda leaf: leaf[k], stacked), out_shardings=shardings)
            run.drift.versions = {v: take(tree["drift_versions"], k) for k, v in enumerate(versions)}
        run.proximal_params = tree.get("proximal_params")
        for path in sorted(folder.glob("buffer_*.npz")):
            _push_all(run, path)
        for name in ("versions", "commit"):
            there, here = manifest[name], self._described[name]
            if there != here:
                print(f"resumed from {name} {there}, now {here}: the bytes may differ from here on", file=sys.stderr)


def step_name(step: int) -> str:
    """The folder of a checkpoint."""
    return f"step_{step:08d}"


def run_arrays(run, state: LearnerState) -> PyTree:
    """All arrays of a run that live on the devices; `drift_versions` is a list of trees, if any are kept."""
    tree = {"state": state}
    if run.drift is not None:
        tree["drift_start"] = run.drift.start
        if run.drift.versions:
            tree["drift_versions"] = [run.drift.versions[version] for version in _drift_versions(run)]
    if run.proximal_logprobs is not None:
        tree["proximal_params"] = state.params if run.proximal_params is None else run.proximal_params
    return tree


def _stacked(tree: PyTree) -> PyTree:
    """With the K drift versions as one tree of leaves [K, ...]: Orbax takes its time for each array, however small."""
    if "drift_versions" not in tree:
        return tree
    return tree | {"drift_versions": jax.tree.map(_stack, *tree["drift_versions"])}


def _stack(*leaves: jax.Array) -> jax.Array:
    """Arrays of one sharding as one of leaves [K, ...]; on the host, where no new K has to be compiled."""
    described = _of_versions(leaves[0], len(leaves))
    shards = zip(*(leaf.addressable_shards for leaf in leaves), strict=True)
    parts = [jax.device_put(np.stack([shard.data for shard in same]), same[0].device) for same in shards]
    return jax.make_array_from_single_device_arrays(described.shape, described.sharding, parts)


def _of_versions(leaf, count: int) -> jax.ShapeDtypeStruct:
    """What `count` versions of this parameter are when stacked."""
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
    return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=NamedSharding(mesh, P(None, *spec)))


def _drift_versions(run) -> list[int]:
    return [] if run.drift is None else sorted(run.drift.versions)


def _by_path(tree: PyTree) -> dict[str, jax.Array]:
    """Leaves by path, in the order of the leaves: Orbax gets a flat dict, whatever the optimizer's state is made of."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


_ROLLOUT = Rollout(
    prompts=Prompts(0, 0, 0), responses=Responses(0, 0, 0), rewards_NxG=0, behavior_version_N=0
)  # the names of the arrays of buffer_*.npz; proximal log-probabilities are computed when a group is read


def _flat_groups(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """Unread groups as named arrays [K, ...], with the slots that they have among all processes'."""
    steps_K, places_K, versions_K, groups = snapshot.buffer.unread()
    return {"steps_K": steps_K, "slots_K": snapshot.own_slots[places_K], "versions_K": versions_K} | _by_path(groups)


def _push_all(run, path: pathlib.Path) -> None:
    """Pushes the saved groups of this process's slots, version by version: the buffer asserts their lags again."""
    try:
        with np.load(path) as stored:
            saved = dict(stored)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    judged_elsewhere = ".reward_outcome_NxG" in saved
    template = dataclasses.replace(_ROLLOUT, reward_outcome_NxG=0) if judged_elsewhere else _ROLLOUT
    own_K = np.isin(saved["slots_K"], run.own_slots)
    places_K = np.searchsorted(run.own_slots, saved["slots_K"])
    for version in np.unique(saved["versions_K"][own_K]):
        chosen = own_K & (saved["versions_K"] == version)
        leaves = [saved[name][chosen] for name in _by_path(template)]
        groups = jax.tree.unflatten(jax.tree.structure(template), leaves)
        run.buffer.push(saved["steps_K"][chosen], places_K[chosen], int(version), groups)


def _digests(folder: pathlib.Path) -> dict[str, list]:
    """[bytes, SHA-256] of every file but the manifest."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests[str(path.relative_to(folder))] = [path.stat().st_size, digest]
    return digests


def _to_disk(folder: pathlib.Path) -> None:
    """Everything below a folder is on the disk itself when this returns."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _barrier(name: str) -> None:
    """Waits for all processes."""
    ocp.multihost.sync_global_processes(f"checkpoint {name}")
