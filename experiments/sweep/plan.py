"""Says how long a sweep will take, before any of its cells runs."""

import dataclasses
import itertools
import pathlib
import statistics
import time

import jax
from ml_collections import ConfigDict

from experiments.sweep import grid
from experiments.sweep.engine import COMPILED, engine
from experiments.sweep.measure import duration
from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.cores import usable_cores
from staleness_grpo.sweeps.program import cell_inputs, make_cell_program
from staleness_grpo.sweeps.records import CellFile
from staleness_grpo.sweeps.workers import worker_pool
from staleness_grpo.training.loop import train

STEPS_BEFORE = 3  # the fewest learner steps of the loop before the measurement: they compile
BLOCKS_MEASURED = 2  # evaluations of a compiled cell, with the learner steps between them


@dataclasses.dataclass(frozen=True)
class Given:
    """Holds what was measured elsewhere, for a plan of other hardware; None for what was not."""

    step_seconds: float | None  # time of a learner step
    devices: int | None  # devices of one training


def plan(config: ConfigDict, workdir: pathlib.Path, given: Given) -> str:
    """Returns the plan of a sweep as text: a line for each map, and one for all together.

    The times hold if no cell ends early. Cells that collapse do, so the times are upper bounds.

    Args:
      config: the sweep's validated config.
      workdir: the folder of the records. Cells that have a record there are not planned.
      given: replaces the measurement.

    Raises:
      FlagError: a cell has too few steps to measure one.
    """
    lines, total, device_seconds = [], 0.0, 0.0
    for name, variant in grid.variant_configs(config).items():
        cells = grid.cells(variant)
        done = set(CellFile(workdir / grid.cells_file(name)).records)
        missing = {cell: settings for cell, settings in cells.items() if cell not in done}
        steps = len(missing) * variant.steps
        text = f"{name}: {len(missing)} of {len(cells)} cells are left, {steps} learner steps"
        if missing:
            # The largest lag needs the most memory and time.
            cell = max(missing.values(), key=lambda settings: settings.lag.max_lag)
            seconds = given.step_seconds
            source = "given"
            if seconds is None:
                seconds, source = _step_seconds(variant, cell), "measured"
            at_once, devices = _shape(variant, given)
            needed = steps * seconds / at_once
            total, device_seconds = total + needed, device_seconds + needed * at_once * devices
            text += (
                f"; cells: {engine(variant)}, {at_once} at once on {devices} device(s) each; "
                f"a step takes {seconds:.3g} s ({source}): {duration(needed)}"
            )
        lines.append(text)
    device_hours = f"{device_seconds / 3600:.3g} device-hours"
    lines.append(f"together at most {duration(total)}, {device_hours}; collapsed cells end earlier")
    lines.append("imports, compilation and warm starts come on top")
    return "\n".join(lines)


def _shape(config: ConfigDict, given: Given) -> tuple[int, int]:
    """Returns how many cells run at once, and on how many devices each of them."""
    if given.step_seconds is not None or jax.default_backend() != "cpu" or jax.device_count() > 1:
        mesh = config.mesh
        return 1, given.devices or mesh.data * mesh.fsdp * mesh.tensor
    return config.sweep.num_workers or len(usable_cores()), given.devices or 1


def _step_seconds(config: ConfigDict, cell: ConfigDict) -> float:
    """Measures a learner step of a cell, in a worker process if the cells run in such."""
    measure = _compiled_step_seconds if engine(config) == COMPILED else _loop_step_seconds
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return measure(cell.to_dict(), config.sweep.freeze_after)
    with worker_pool(1) as pool:
        return pool.submit(measure, cell.to_dict(), config.sweep.freeze_after).result()


def _compiled_step_seconds(fields: dict, freeze_after: int) -> float:
    """Returns the time of a step of a compiled cell, in which no compilation is counted."""
    cell = ConfigDict(fields)
    shortest = cell.lag.max_lag // cell.eval_every + 1
    cell.steps = cell.eval_every * max(BLOCKS_MEASURED, shortest)
    program = jax.jit(make_cell_program(cell, cell.lag.max_lag, freeze_after))
    inputs = cell_inputs(cell)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        steps_run = jax.device_get(program(inputs))["steps_run"]
        seconds.append((time.perf_counter() - start) / float(steps_run))
    return min(seconds[1:])


def _loop_step_seconds(fields: dict, freeze_after: int) -> float:
    """Returns the mean time of the steps from one evaluation to the next, after compilation.

    Raises:
      FlagError: a cell has too few steps.
    """
    del freeze_after
    cell = ConfigDict(fields)
    first = cell.eval_every * -(-STEPS_BEFORE // cell.eval_every)
    num_steps = first + cell.eval_every
    if cell.steps < num_steps:
        hint = f"too few to measure: give {num_steps} or more, or --plan_step_seconds"
        raise FlagError("config.steps", cell.steps, hint)
    run = build_run(cell)
    try:
        records = list(itertools.islice(train(run), num_steps))
    finally:
        run.close()
    return statistics.mean(record["time_step"] for record in records[first:])
