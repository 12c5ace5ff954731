"""Times learner steps of a policy with 0.66M parameters: 8 groups of 8 responses, AdamW.

    python -m experiments.benchmark --workdir=results/benchmark

Hardware: 2 CPU cores with no other load. It takes less than a minute.
Outcome: in experiments/results/benchmark_cpu.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config() -> ConfigDict:
    """Returns the default config with the benchmark's shape, without evaluations."""
    config = default_config()
    config.update(dict(steps=40, num_prompts=8, group_size=8, eval_every=0))
    config.policy.update(dict(d_model=128, num_heads=4, num_kv_heads=4, head_dim=32, d_ff=512))
    config.optimizer.name = "adamw"
    config.warm_start.steps = 0
    config.benchmark = ConfigDict(dict(vocab_size=512, prompt_length=16, max_response_length=32))
    return config
