"""Runs the benchmark for one step on a mesh of 2 x 2 x 2 devices, with calls that take one second.

    python -m tests.programs.benchmark_on_mesh

Printed is one JSON object:
  in_mesh: for each update, whether it ran inside the mesh of its run.
  devices: for the argument and the result of each timed call, the devices that hold it.
  sizes: for the same arrays, the elements on the first device.
  peak_flops, memory_bandwidth: as the benchmark reports them.
"""

import json
import pathlib
import tempfile

import jax

from experiments.common import cli
from experiments.common.flag_parsing import load_config
from experiments.performance import benchmark, machine
from staleness_grpo.training import run as run_lib

CONFIG = "experiments/configs/benchmark.py"


def measure(workdir: pathlib.Path) -> dict:
    """Measures a small step, and notes where updates and timed calls ran."""
    config = load_config(cli.ROOT / CONFIG)
    config.steps = 1
    config.policy.update(
        dict(num_layers=1, d_model=8, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16)
    )
    config.mesh.update(dict(data=2, fsdp=2, tensor=2))
    config.benchmark.update(dict(vocab_size=16, prompt_length=4, max_response_length=3))
    seen: dict = {"in_mesh": [], "devices": [], "sizes": []}
    assemble_run = run_lib.assemble_run

    def assemble_watched_run(*args):
        run = assemble_run(*args)
        update = run.update

        def watched_update(state, batch):
            in_mesh = jax.sharding.get_abstract_mesh() == run.mesh.abstract_mesh
            seen["in_mesh"].append(in_mesh)
            return update(state, batch)

        run.update = watched_update
        return run

    def one_second(function, argument):
        arrays = (argument, function(argument))
        seen["devices"].append([len(x.sharding.device_set) for x in arrays])
        seen["sizes"].append([x.addressable_shards[0].data.size for x in arrays])
        return 1.0

    benchmark.WARM_UP_STEPS = 0
    machine.PEAK_SIZE, machine.COPY_BYTES = {"cpu": 16}, 2**12
    run_lib.assemble_run, machine.fastest = assemble_watched_run, one_second
    benchmark.validate(config)
    summary = benchmark.measure(config, workdir)
    return seen | {name: summary[name] for name in ("peak_flops", "memory_bandwidth")}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(pathlib.Path(folder))))
