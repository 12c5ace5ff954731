"""Trains a Qwen2.5 or Qwen3 checkpoint on a task of reasoning-gym.

    python -m experiments.train --config=experiments/configs/reasoning_gym_qwen.py --workdir=DIR \
        --config.policy.checkpoint=FOLDER \
        [--config.task.dataset=NAME --config.task.options="{'min_terms': 3}"]

FOLDER: the downloaded files of Qwen2.5-1.5B-Instruct, or of another Qwen2.5 or Qwen3 model.
NAME: any dataset in the gallery of reasoning-gym. The extra `tasks` installs the library.

Hardware: one GPU or TPU chip with 80 GB.
Run time and outcome: not known. No accelerator was available, so the config has not been run at
this size. The slow test of SmolLM2-135M trains on the same task on a CPU.
"""

from ml_collections import ConfigDict, config_dict

from experiments.common import llama_shapes


def get_config() -> ConfigDict:
    """Returns a training with lag 8 on sums of a few terms.

    The policy puts its answer between <answer> tags.
    """
    config = llama_shapes.large_model_config()
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
            # Settings of the dataset. If unset, the library's defaults are used.
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
