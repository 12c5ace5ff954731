"""The paper's grid on mathematics with Llama-3.2-3B: as gsm8k_llama32_1b.py, on twice as many devices.

    python -m experiments.paired_bias --config=experiments/configs/gsm8k_llama32_3b.py --workdir=DIR \
        --config.policy.checkpoint=FOLDER --config.task.path=FILE.jsonl

Hardware: 16 GPUs or TPU chips with 80 GB each; by a TPU's compiler (memory_grid_3b.py) an update takes 21 GB of each,
comparing gradients 35 GB. Run time and outcome: not known, it has not been run (no accelerator was at hand).
"""

from experiments.configs import gsm8k_llama32_1b


def get_config():
    """The 1B grid with each of its eight parts of the parameters in two tensor-parallel halves."""
    config = gsm8k_llama32_1b.get_config()
    config.mesh.update(dict(fsdp=8, tensor=2))
    return config
