"""What the configs of billion-parameter policies share: shapes, from their model cards, and training at size."""

from staleness_grpo import config as config_lib

LLAMA_32_1B = dict(
    num_layers=16, d_model=2048, num_heads=32, num_kv_heads=8, head_dim=64, d_ff=8192, rope_theta=5e5,
    norm_epsilon=1e-5, tie_embeddings=True,
)  # fmt: skip

LLAMA_32_3B = LLAMA_32_1B | dict(num_layers=28, d_model=3072, num_heads=24, head_dim=128)


def at_size():
    """bfloat16 products, float32 master weights and log-probs, rematerialised; no copies of parameters for metrics."""
    config = config_lib.default()
    config.update(dict(eval_every=0))
    config.policy.update(dict(dtype="bfloat16", remat="attention", vocab_chunks=16))
    config.optimizer.update(dict(name="adamw", learning_rate=1e-6, max_grad_norm=1.0))
    config.metrics.parameter_drift = False
    return config
