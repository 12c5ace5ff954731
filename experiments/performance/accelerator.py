"""Runs all that an accelerator should be asked, in one call, and writes a table.

    python -m experiments.accelerator --workdir=DIR

Each part is a process of its own. A part that fails or takes too long costs no other:

  gradients  loss and gradient of a learner step, against float64 on the CPU, for each attention
  benchmark  a learner step of the shape of Llama-3.2-1B: share of the matrix peak, tokens/s
  map        cells of the default map, many in one program
  repeat     two trainings with deterministic operations, compared to the byte

A call on an unfinished workdir makes only the parts that have no record yet.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli, devices
from staleness_grpo.errors import require
from staleness_grpo.policy.architecture import KERNEL_PLATFORMS
from staleness_grpo.runtime.distributed import VARIABLES

CONFIG = "experiments/configs/accelerator.py"
RECORDS, LOGS = "cells.jsonl", "logs"
POLL_SECONDS = 0.05  # between two looks at whether a process has ended
DETERMINISTIC = {"gpu": "--xla_gpu_deterministic_ops=true"}  # others have no such flag
Numbers = dict[str, Any]


class Failed(Exception):
    """Says why a part has no numbers."""


def validate(config: ConfigDict) -> None:
    """Raises FieldError if a part is unknown or a number cannot be used."""
    settings = config.accelerator
    for name in settings.parts:
        require(name in PARTS, "accelerator.parts", f"choose among {', '.join(PARTS)}", name)
    require(len(settings.parts) > 0, "accelerator.parts", "give at least one part")
    for name in ("seconds", "repeat_steps"):
        require(settings[name] > 0, f"accelerator.{name}", "give a number > 0", settings[name])
    sizes = settings.chunk_sizes
    are_sizes = len(sizes) > 0 and min(sizes) >= 1
    require(are_sizes, "accelerator.chunk_sizes", "give numbers >= 1", sizes)


def host_variables(num_processes: int) -> list[dict[str, str]]:
    """Returns the environment variables with which processes on this machine find each other."""
    if num_processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        {
            VARIABLES["coordinator"]: coordinator,
            VARIABLES["num_processes"]: str(num_processes),
            VARIABLES["process_id"]: str(process),
        }
        for process in range(num_processes)
    ]


class Programme:
    """Starts processes, and keeps their output in log files.

    Args:
      config: the section `accelerator`.
      workdir: the folder of the results.
      platform: of the devices under test: cpu, gpu or tpu.
    """

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, platform: str):
        self.config, self.workdir, self.platform = config, workdir, platform

    def run(
        self,
        name: str,
        *words: str,
        environment: dict[str, str] | None = None,
        num_processes: int = 1,
    ) -> float:
        """Runs `python -m WORDS`, and returns its seconds.

        With several processes, each runs the same words, and `distributed.find` tells it of the
        others.

        Raises:
          Failed: it took longer than `accelerator.seconds`, or an exit code is not 0.
        """
        log = self.workdir / LOGS / f"{name}.txt"
        log.parent.mkdir(exist_ok=True)
        start = time.perf_counter()
        own = os.environ | (environment or {})
        with log.open("w", encoding="utf-8") as file:
            started = [
                subprocess.Popen(
                    [sys.executable, "-m", *words],
                    cwd=cli.ROOT,
                    env=own | hosts,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
                for hosts in host_variables(num_processes)
            ]
            try:
                codes = self._wait_for_all_or_a_failure(name, started, start + self.config.seconds)
            finally:
                for process in started:
                    process.kill()
                    process.wait()
        code = next((code for code in codes if code), 0)
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise Failed(f"{name} ended with code {code}: {''.join(last)[:300]}")
        return time.perf_counter() - start

    def _wait_for_all_or_a_failure(
        self, name: str, started: list[subprocess.Popen], end: float
    ) -> list[int | None]:
        """Returns the exit codes of processes; None for one that still runs as another fails.

        Raises:
          Failed: it is later than `end`.
        """
        while True:
            codes = [process.poll() for process in started]
            if any(codes) or None not in codes:
                return codes
            if time.perf_counter() > end:
                raise Failed(f"{name} took more than {self.config.seconds:g} s")
            time.sleep(POLL_SECONDS)

    def attentions(self) -> list[str]:
        """Returns XLA's attention, and the fused kernels for the platform."""
        kernels = [name for name, own in KERNEL_PLATFORMS.items() if own == self.platform]
        return ["xla", *kernels]


def gradients(programme: Programme) -> Numbers:
    """Compares loss and gradient with float64 on the CPU, by dtype and attention."""
    import numpy as np

    from experiments.performance.gradient import errors

    module, folder = "experiments.performance.gradient", programme.workdir
    reference = folder / "float64.npz"
    exact = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    programme.run("gradient_float64", module, str(reference), "float64", "xla", environment=exact)
    found = {}
    cases = [("float32", "xla"), *(("bfloat16", name) for name in programme.attentions())]
    for dtype, attention in cases:
        name = f"{dtype}_{attention}"
        path = folder / f"{name}.npz"
        programme.run(f"gradient_{name}", module, str(path), dtype, attention, str(reference))
        found[name] = errors(dict(np.load(path)), dict(np.load(reference)))
    return found


def benchmark(programme: Programme) -> Numbers:
    """Times a learner step with each attention. The aims: 45 % of the peak, 50 % of bandwidth."""
    from staleness_grpo.runtime.records import read_json

    found = {}
    for attention in programme.attentions():
        folder = programme.workdir / f"benchmark_{attention}"
        flags = [f"--config={programme.config.benchmark}", f"--workdir={folder}"]
        flags += list(programme.config.benchmark_flags)
        if attention != "xla":
            flags.append(f"--config.policy.attention={attention}")
        programme.run(f"benchmark_{attention}", "experiments.benchmark", *flags)
        found[attention] = read_json(folder / "summary.json")
    return found


def map_cells(programme: Programme) -> Numbers:
    """Times cells of a map by the number of cells in one program; the aim is 384 in 120 s."""
    from staleness_grpo.runtime.records import read_jsonl

    found = {}
    for size in programme.config.chunk_sizes:
        folder = programme.workdir / f"map_{size}"
        flags = [f"--config={programme.config.map}", f"--workdir={folder}"]
        flags += [f"--config.sweep.chunk_size={size}", *programme.config.map_flags]
        seconds = programme.run(f"map_{size}", "experiments.sweep", *flags)
        cells = read_jsonl(folder / "cells.jsonl")
        found[str(size)] = {
            "num_cells": len(cells),
            "command_seconds": seconds,
            "cell_seconds": sum(cell["time_cell"] for cell in cells) / len(cells),
        }
    return found


def repeat(programme: Programme) -> Numbers:
    """Makes the same training twice, and compares metrics and parameters to the byte."""
    from experiments.async_train import comparison

    folders = [programme.workdir / f"repeat_{number}" for number in (1, 2)]
    flag = DETERMINISTIC.get(programme.platform, "")
    xla_flags = " ".join(part for part in (os.environ.get("XLA_FLAGS", ""), flag) if part)
    for folder in folders:
        steps = f"--config.steps={programme.config.repeat_steps}"
        words = ("experiments.train", f"--workdir={folder}", steps, *programme.config.repeat_flags)
        programme.run(folder.name, *words, environment={"XLA_FLAGS": xla_flags})
    first, second = folders
    return {
        "same_metrics": comparison.metrics(first) == comparison.metrics(second),
        "same_parameters": comparison.parameters(first) == comparison.parameters(second),
        "xla_flags": xla_flags,
    }


PARTS: dict[str, Callable[[Programme], Numbers]] = {
    "gradients": gradients,
    "benchmark": benchmark,
    "map": map_cells,
    "repeat": repeat,
}


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs the parts that have no record yet; writes summary.json and prints the table."""
    from experiments.common.claims import KEY
    from experiments.common.workdir import SUMMARY, write_run_files
    from staleness_grpo.runtime.records import Appender, plain, read_jsonl, write_json

    write_run_files(workdir, config)
    path = workdir / RECORDS
    records = {r["part"]: r for r in read_jsonl(path)} if path.exists() else {}
    platform, num_devices, kind = devices_of_parts()
    programme = Programme(config.accelerator, workdir, platform)
    with Appender(path) as file:
        for name in config.accelerator.parts:
            if name in records:
                continue
            start = time.perf_counter()
            try:
                result: Numbers = {"numbers": PARTS[name](programme), "failure": None}
            except Failed as error:
                result = {"numbers": None, "failure": str(error)}
            records[name] = {"part": name, "seconds": time.perf_counter() - start, **result}
            file.append(records[name])
    summary = {
        "device": kind,
        "num_devices": num_devices,
        "parts": {name: plain(records[name]) for name in config.accelerator.parts},
        KEY: [],
    }
    write_json(workdir / SUMMARY, summary)
    print(table(summary))


def devices_of_parts() -> tuple[str, int, str]:
    """Returns platform, number and kind of the devices that a new process finds."""
    program = "import jax; d = jax.devices(); print(d[0].platform, len(d), d[0].device_kind)"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    platform, count, kind = found.strip().splitlines()[-1].split(" ", 2)
    return platform, int(count), kind


def table(summary: dict[str, Any]) -> str:
    """Returns the numbers as lines of text, one for each, with the name of its part."""
    lines = [f"{summary['num_devices']} x {summary['device']}"]
    for name, record in summary["parts"].items():
        lines.append(f"{name}: {record['failure'] or 'done'}, {record['seconds']:.0f} s")
        lines += [f"  {label} = {value}" for label, value in _flat(record["numbers"] or {})]
    return "\n".join(lines)


def _flat(numbers: Numbers, prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in numbers.items():
        label = f"{prefix}{name}"
        if isinstance(value, dict):
            rows += _flat(value, f"{label}.")
        elif not isinstance(value, list):
            rows.append((label, f"{value:.4g}" if isinstance(value, float) else value))
    return rows


def command() -> None:
    """Runs the programme from the command line."""
    cli.run(
        main,
        cli.draw_nothing,
        default_config=CONFIG,
        validate=validate,
        prepare=devices.leave_to_others,
    )
