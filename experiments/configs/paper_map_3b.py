"""Trains the map of paper_map_1b.py with Llama-3.2-3B, on twice as many devices.

    python -m experiments.sweep --config=experiments/configs/paper_map_3b.py --workdir=DIR \
        --config.policy.checkpoint=FOLDER --config.task.path=FILE.jsonl [--share=I/N]

Hardware: 16 GPUs or TPU chips with 80 GB each for one cell.
Run time and outcome: not known. The config has not been run, because no accelerator was available.
"""

from ml_collections import ConfigDict

from experiments.configs import paper_map_1b


def get_config() -> ConfigDict:
    """Returns the config of the 1B model, on a mesh of 8 x 2 devices (`fsdp` x `tensor`)."""
    config = paper_map_1b.get_config()
    config.mesh.update(dict(fsdp=8, tensor=2))
    return config
