"""Times learner steps with the shape of Llama-3.2-1B: random weights, 8 long responses.

    python -m experiments.benchmark --preset=llama_1b --workdir=results/benchmark_llama_1b

Hardware: one GPU or TPU with 80 GB.
Outcome: not known. The config has not been run, because no accelerator was available. The same
config with two layers has been run on a CPU (experiments/results/benchmark_llama_1b_small_cpu).
The TPU's compiler says how much memory it needs (memory_llama_1b.py).
"""

from ml_collections import ConfigDict

from experiments.common import llama_shapes


def get_config() -> ConfigDict:
    """Returns a config with two groups of four responses, and 16 vocabulary chunks."""
    config = llama_shapes.large_model_config()
    config.update(dict(steps=10, num_prompts=2, group_size=4, microbatch_prompts=0))
    config.policy.update(llama_shapes.LLAMA_32_1B)
    config.warm_start.steps = 0
    config.benchmark = ConfigDict(
        dict(vocab_size=128_256, prompt_length=128, max_response_length=1024)
    )
    return config
