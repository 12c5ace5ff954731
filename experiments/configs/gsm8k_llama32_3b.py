"""Runs the grid of gsm8k_llama32_1b.py with Llama-3.2-3B, on twice as many devices.

    python -m experiments.paired_bias --config=experiments/configs/gsm8k_llama32_3b.py \
        --workdir=DIR --config.policy.checkpoint=FOLDER --config.task.path=FILE.jsonl

Hardware: 16 GPUs or TPU chips with 80 GB each. A TPU's compiler says that an update takes 21 GB of
each, and a comparison of gradients 35 GB (experiments/results/memory_grid_3b_v5p).
Run time and outcome: not known. It has not been run, because no accelerator was at hand.
"""

from experiments.configs import gsm8k_llama32_1b


def get_config():
    """Returns the 1B grid with each of the eight parts of the parameters cut in two by `tensor`."""
    config = gsm8k_llama32_1b.get_config()
    config.mesh.update(dict(fsdp=8, tensor=2))
    return config
