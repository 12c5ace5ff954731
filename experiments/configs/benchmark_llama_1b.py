"""The shape of Llama-3.2-1B with random weights, to time an accelerator: 8 responses of 1,024 tokens.

    python -m experiments.benchmark --preset=llama_1b --workdir=results/benchmark_llama_1b

Hardware: one GPU or TPU with 80 GB, not run yet: no accelerator was at hand. What memory it takes is known from the
TPU's compiler: memory_llama_1b.py.
"""

from ml_collections import ConfigDict

from experiments import llama_shapes


def get_config():
    """bfloat16 products, float32 master weights, rematerialised attention, logits in 16 parts of the vocabulary."""
    config = llama_shapes.at_size()
    config.update(dict(steps=10, num_prompts=2, group_size=4, microbatch_prompts=0))
    config.policy.update(llama_shapes.LLAMA_32_1B)
    config.warm_start.steps = 0
    config.benchmark = ConfigDict(dict(vocab_size=128_256, prompt_length=128, max_response_length=1024))
    return config
