"""Asynchronous GRPO of a Qwen2.5 or Qwen3 checkpoint on a task of reasoning-gym.

    python -m experiments.train --config=experiments/configs/reasoning_gym_qwen.py --workdir=DIR \
        --config.policy.checkpoint=FOLDER \
        [--config.task.dataset=NAME --config.task.options="{'min_terms': 3}"]

FOLDER: Qwen2.5-1.5B-Instruct, or another of the family, as downloaded.
NAME: any dataset of reasoning-gym's gallery (`pip install reasoning-gym`, of the extra tasks).

Hardware: one GPU or TPU chip with 80 GB.
Run time and outcome: not known. It has not been run at this size, because no accelerator was at
hand. The slow test of SmolLM2-135M trains on the same task on a CPU.
"""

from ml_collections import ConfigDict, config_dict

from experiments.common import llama_shapes


def get_config():
    """Returns a training with lag 8 on sums of a few terms, answered between <answer> tags."""
    config = llama_shapes.at_size()
    config.update(
        dict(steps=200, num_prompts=32, group_size=8, microbatch_prompts=4, eval_every=20)
    )
    config.warm_start.steps = 0
    config.lag.max_lag = 8
    config.rewards.num_workers = 4
    config.task = ConfigDict(
        dict(
            name="reasoning_gym",
            dataset="chain_sum",
            size=2000,
            seed=0,
            # The dataset's own settings. Unset: the library's defaults.
            options=config_dict.placeholder(object),
            prompt="{prompt}",
            chat=True,
            system=(
                "Think step by step, then write the final answer alone "
                "between <answer> and </answer>."
            ),
            max_response_length=512,
        )
    )
    return config
