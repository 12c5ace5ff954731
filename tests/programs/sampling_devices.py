"""Trains with and without devices of the sampler's own, and prints both results as JSON.

    python -m tests.programs.sampling_devices OVERRIDES

OVERRIDES are fields of `decoder_config` by their dotted names, as JSON. Printed is a list with a
result without `sampler.devices`, and with 2. The second training is interrupted after its third
step and continued as another run, from a snapshot.
"""

import json
import sys

import jax
import numpy as np

import tests.conftest  # noqa: F401  strict JAX flags and the compile cache of the tests
from staleness_grpo.config.build import build_run
from staleness_grpo.runtime.records import plain
from staleness_grpo.training.loop import train
from tests.helpers.tiny import decoder_config


def trained(overrides: dict, num_devices: int | None) -> dict:
    """Trains with so many devices of the sampler."""
    config = decoder_config(**overrides)
    config.sampler.devices = num_devices
    run, sampled_by = build_run(config), set()

    def watch(part, arrays):
        if part == "sampling":
            sampled_by.update(len(leaf.devices()) for leaf in jax.tree.leaves(arrays))

    run.watch_with(watch)
    records = train(run)
    if num_devices:
        # Records come one step late, so step 2 has ended when the second one is here.
        kept = [next(records) for _ in range(2)]
        snapshot = run.snapshot()
        run = build_run(config)
        run.watch_with(watch)
        state = (snapshot.arrays, snapshot.drift_versions, [snapshot.groups()])
        run.restore(snapshot.step, *state)
        records = [*kept, *train(run)]
    return {
        "records": list(records),
        "params": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(run.state.params)],
        "sampled_by": sorted(sampled_by),
        "state_on": sorted(
            {device.id for leaf in jax.tree.leaves(run.state) for device in leaf.devices()}
        ),
    }


if __name__ == "__main__":
    print(json.dumps(plain([trained(json.loads(sys.argv[1]), count) for count in (None, 2)])))
