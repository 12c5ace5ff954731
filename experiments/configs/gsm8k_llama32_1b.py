"""The paper's grid on mathematics: Llama-3.2-1B on GSM8K, gradient bias and reward by lag and learning rate.

    python -m experiments.paired_bias --config=experiments/configs/gsm8k_llama32_1b.py --workdir=DIR \
        --config.policy.checkpoint=FOLDER --config.task.path=FILE.jsonl

FOLDER: Llama-3.2-1B-Instruct as downloaded. FILE.jsonl: GSM8K's train.jsonl, of lines {"question", "answer"}.

Hardware: 8 GPUs or TPU chips with 80 GB each. Run time and outcome: not known, it has not been run (no accelerator was
at hand). Reading GSM8K, its prompts, its verifier and the config itself are tested without the checkpoint, and the
config has taken three updates of a model of 135 million parameters on a CPU (experiments/LOG.md).
"""

from ml_collections import ConfigDict

from experiments import llama_shapes


def get_config():
    """S in {0, 8, 16, 32} and learning rates from 1e-7 to 1e-6, the paper's ranges, beside synchronous training."""
    config = llama_shapes.at_size()
    config.update(dict(steps=200, num_prompts=64, group_size=8, microbatch_prompts=8, eval_every=20))
    config.warm_start.steps = 0
    config.mesh.fsdp = 8
    config.optimizer.name = "adam"
    config.metrics.update(dict(paired_every=10, paired_blocks=4))
    config.rewards.num_workers = 8
    config.task = ConfigDict(
        dict(
            name="jsonl",
            path="train.jsonl",
            verifier="math_verify",
            prompt="{prompt}\nReason step by step, and put the final answer in \\boxed{}.",
            chat=True,
            system="",
            max_response_length=1024,
        )
    )
    config.paired = ConfigDict(dict(max_lags=(0, 8, 16, 32), learning_rates=(1e-7, 2e-7, 5e-7, 1e-6)))
    return config
