"""Runs the trainings of gsm8k_llama32_1b.py with Llama-3.2-3B, on twice as many devices.

    python -m experiments.paired_bias --config=experiments/configs/gsm8k_llama32_3b.py \
        --workdir=DIR --config.policy.checkpoint=FOLDER --config.task.path=FILE.jsonl

Hardware: 16 GPUs or TPU chips with 80 GB each. The TPU's compiler says that an update needs 21 GB
on each, and a comparison of gradients 35 GB (experiments/results/memory_grid_3b_v5p).
Run time and outcome: not known. The config has not been run, because no accelerator was available.
"""

from ml_collections import ConfigDict

from experiments.configs import gsm8k_llama32_1b


def get_config() -> ConfigDict:
    """Returns the config of the 1B model, on a mesh of 8 x 2 devices (`fsdp` x `tensor`).

    The axis `tensor` cuts each of the eight parts of the parameters in two.
    """
    config = gsm8k_llama32_1b.get_config()
    config.mesh.update(dict(fsdp=8, tensor=2))
    return config
