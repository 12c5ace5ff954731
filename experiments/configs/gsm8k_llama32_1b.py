"""Trains Llama-3.2-1B on GSM8K for each lag and learning rate of the paper's grid.

Gradient bias and reward are measured.

    python -m experiments.paired_bias --config=experiments/configs/gsm8k_llama32_1b.py \
        --workdir=DIR --config.policy.checkpoint=FOLDER --config.task.path=FILE.jsonl

FOLDER: the downloaded files of Llama-3.2-1B-Instruct.
FILE.jsonl: train.jsonl of GSM8K, with lines {"question", "answer"}.

Hardware: 8 GPUs or TPU chips with 80 GB each.
Run time and outcome: not known. The config has not been run, because no accelerator was available.
Without the checkpoint, tests cover the config, and the reading, prompts and verifier of GSM8K.
With a model of 135 million parameters in place of the checkpoint, three updates have been run on a
CPU (docs/log/2026-11-25-gsm8k-with-135m-on-a-cpu.md).
"""

from ml_collections import ConfigDict, config_dict

from experiments.common import llama_shapes


def get_config() -> ConfigDict:
    """Returns trainings in the paper's ranges: lags 8 to 32, learning rates 1e-7 to 1e-6.

    Synchronous training (lag 0) is added for comparison.
    """
    config = llama_shapes.large_model_config()
    config.update(
        dict(steps=200, num_prompts=64, group_size=8, microbatch_prompts=8, eval_every=20)
    )
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
            # Unset fields. docs/models.md says what each of them does.
            max_prompt_length=config_dict.placeholder(int),
            too_long=config_dict.placeholder(str),
            template_arguments=dict(enable_thinking=config_dict.placeholder(bool)),
            prompt_column=config_dict.placeholder(str),
            answer_column=config_dict.placeholder(str),
            answer_after=config_dict.placeholder(str),
            reward_weights={
                name: config_dict.placeholder(float)
                for name in ("exact", "number", "math_verify", "format", "length")
            },
            format_pattern=config_dict.placeholder(str),
            length_range=config_dict.placeholder(tuple),
            length_unit=config_dict.placeholder(str),
        )
    )
    config.paired = ConfigDict(
        dict(max_lags=(0, 8, 16, 32), learning_rates=(1e-7, 2e-7, 5e-7, 1e-6))
    )
    return config
