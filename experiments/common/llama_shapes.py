"""Defines the shapes of Llama 3.2 models and the training settings for policies of that size.

The shapes are from the model cards.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config

LLAMA_32_1B = dict(
    num_layers=16,
    d_model=2048,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    d_ff=8192,
    rope_theta=5e5,
    norm_epsilon=1e-5,
    tie_embeddings=True,
)

LLAMA_32_3B = LLAMA_32_1B | dict(num_layers=28, d_model=3072, num_heads=24, head_dim=128)


def large_model_config() -> ConfigDict:
    """Returns the default config with settings for a policy of a billion parameters or more.

    - Matrix products are computed in bfloat16, log-probabilities in float32.
    - The master weights are kept in float32.
    - Attention weights are rematerialized.
    - No copies of the parameters are kept for metrics.
    """
    config = default_config()
    config.update(dict(eval_every=0))
    config.policy.update(dict(dtype="bfloat16", remat="attention", vocab_chunks=16))
    config.optimizer.update(dict(name="adamw", learning_rate=1e-6, max_grad_norm=1.0))
    config.metrics.parameter_drift = False
    return config
