"""Kills trainings at random moments and starts them again, until they end."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from staleness_grpo.training import checkpoint

ROOT = pathlib.Path(__file__).parents[2]


def start(
    workdir: pathlib.Path, overrides: dict, program: str = "train_tiny", **environment: str
) -> subprocess.Popen:
    """Starts a training of `tiny_config(**overrides)` in a process of its own."""
    command = ["-m", f"tests.programs.{program}", str(workdir), json.dumps(overrides)]
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen, seconds: float = 120) -> tuple[int, str]:
    """Returns exit code and stderr of a process, which is gone then.

    Raises:
      subprocess.TimeoutExpired: it did not end by itself in that time. It is killed.
    """
    try:
        _, errors = process.communicate(timeout=seconds)
        return process.returncode, errors
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def num_records(workdir: pathlib.Path) -> int:
    """Returns the number of whole records that a training has written."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(
    process: subprocess.Popen,
    workdir: pathlib.Path,
    records: int,
    sleep: float,
    sign: signal.Signals = signal.SIGKILL,
) -> bool:
    """Sends a signal `sleep` seconds after the file has that many records.

    Returns False if the run ended before.
    """
    while num_records(workdir) < records and process.poll() is None:
        time.sleep(0.0005)
    time.sleep(sleep)
    killed = process.poll() is None
    process.send_signal(sign)
    return killed


def kill_often(workdir: pathlib.Path, overrides: dict, kills: int, seed: int) -> dict[str, int]:
    """Sends SIGKILL at `kills` random moments, each to a resumed run; then lets the run end.

    Every third kill does not wait for a new record after the resume. So it strikes twice in a row
    at one place, or during the start. The result counts the kills, those that struck twice in a
    row, and those during a save, whose unfinished folder was there.
    """
    choose = random.Random(seed)
    counts = {"kills": 0, "in_a_save": 0, "twice_in_a_row": 0}
    while counts["kills"] < kills:
        before = num_records(workdir)
        again = counts["kills"] % 3 == 2
        span = max(2, (overrides["steps"] - before) // max(1, (kills - counts["kills"])))
        target = before if again else min(before + choose.randint(1, span), overrides["steps"] - 1)
        process = start(workdir, overrides)
        struck = kill_after(process, workdir, target, choose.random() * (2.0 if again else 0.03))
        code, errors = end(process)
        assert code == (-signal.SIGKILL if struck else 0), errors
        counts["kills"] += struck
        counts["twice_in_a_row"] += struck and again
        counts["in_a_save"] += struck and any((workdir / "checkpoints").glob("*.partial"))
        if not struck:
            break
    code, errors = end(start(workdir, overrides))
    assert code == 0, errors
    return counts


def ending(workdir: pathlib.Path) -> tuple[list[str], dict[str, bytes]]:
    """Returns the records without wall-clock fields, and the arrays of the last checkpoint."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    records = [
        json.dumps({k: v for k, v in line.items() if not k.startswith("time_")}) for line in lines
    ]
    return records, final_arrays(workdir)


def final_arrays(workdir: pathlib.Path) -> dict[str, bytes]:
    """Returns the bytes of every array of the last checkpoint, by name."""
    import orbax.checkpoint as ocp

    folder = max((workdir / "checkpoints").glob("step_????????"))
    described = json.loads((folder / "manifest.json").read_text())["arrays"]
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=sharding)
        for name, (shape, dtype) in described.items()
    }
    restored = ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(
        folder / "arrays", args=ocp.args.StandardRestore(abstract)
    )
    return {name: np.asarray(leaf).tobytes() for name, leaf in restored.items()}


assert checkpoint.PARTIAL == ".partial"  # the folder that kill_often looks for
