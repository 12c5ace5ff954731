"""Compares two workdirs of trainings to the byte."""

import hashlib
import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from staleness_grpo.runtime.records import read_json, read_jsonl


def metrics(workdir: pathlib.Path) -> list[str]:
    """Returns the records of a training, without the times of the clock."""
    return [
        json.dumps({name: value for name, value in record.items() if name[:5] != "time_"})
        for record in read_jsonl(workdir / "metrics.jsonl")
    ]


def parameters(workdir: pathlib.Path) -> dict[str, bytes]:
    """Returns the bytes of each array of the last learner state, by its path.

    These are the parameters, the moments of the optimizer and the last gradient.
    """
    folder = max((workdir / "checkpoints").glob("step_????????"))
    described = read_json(folder / "manifest.json")["arrays"]
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=sharding)
        for name, (shape, dtype) in described.items()
    }
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    arguments = ocp.args.StandardRestore(abstract)
    restored = checkpointer.restore(folder / "arrays", args=arguments)
    return {
        name: np.asarray(leaf).tobytes()
        for name, leaf in restored.items()
        if name.startswith("['state']")
    }


def trace_digest(workdir: pathlib.Path) -> str:
    """Returns a digest of the versions in a trace."""
    versions = [record["behavior_version"] for record in read_jsonl(workdir / "trace.jsonl")]
    return hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:12]
