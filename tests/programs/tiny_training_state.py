"""Trains `decoder_config` on the devices that there are; prints records and final state as JSON.

    python -m tests.programs.tiny_training_state OVERRIDES

OVERRIDES are config fields by their dotted names, as JSON. Printed are the records, the parameters,
and for every leaf of the state its sharding, its size, and the size of its first device's part.
"""

import json
import sys

import jax
import numpy as np

from staleness_grpo.config.build import build_run
from staleness_grpo.runtime.records import plain
from staleness_grpo.training.loop import train
from tests.helpers.tiny import decoder_config


def trained(overrides: dict) -> str:
    """Trains, and returns what is printed."""
    run = build_run(decoder_config(**overrides))
    records = list(train(run))
    leaves = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(run.state)
    }
    state = {
        "records": records,
        "params": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(run.state.params)],
        "specs": {name: [str(leaf.sharding.spec), leaf.size] for name, leaf in leaves.items()},
        "shards": {name: leaf.addressable_shards[0].data.size for name, leaf in leaves.items()},
    }
    return json.dumps(plain(state))


if __name__ == "__main__":
    print(trained(json.loads(sys.argv[1])))
