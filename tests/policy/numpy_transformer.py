"""Computes the decoder in plain float64 NumPy, one sequence and one head at a time.

It is written from the Llama and Qwen papers, and shares no code with the policy.
"""

from typing import Any

import numpy as np

from staleness_grpo.policy.architecture import TransformerConfig


def rms_norm(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    """Returns x / rms(x) * scale."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def rope_frequencies(config: TransformerConfig) -> np.ndarray:
    """Returns the angle per position of each feature pair [H/2], by the formulas of Llama 3.1."""
    frequencies = []
    for i in range(config.head_dim // 2):
        frequency = config.rope_theta ** (-2 * i / config.head_dim)
        if (scaling := config.rope_scaling) is not None:
            wavelength = 2 * np.pi / frequency
            if wavelength > scaling.original_max_position / scaling.low_freq_factor:
                frequency /= scaling.factor
            elif wavelength >= scaling.original_max_position / scaling.high_freq_factor:
                smooth = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
                    scaling.high_freq_factor - scaling.low_freq_factor
                )
                frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
        frequencies.append(frequency)
    return np.array(frequencies)


def rope(x: np.ndarray, config: TransformerConfig) -> np.ndarray:
    """Turns the pairs (x_i, x_{i + H/2}) of x [T, H] by position * frequency_i."""
    half = config.head_dim // 2
    turned = np.empty_like(x)
    for t in range(len(x)):
        angle = t * rope_frequencies(config)
        turned[t, :half] = x[t, :half] * np.cos(angle) - x[t, half:] * np.sin(angle)
        turned[t, half:] = x[t, half:] * np.cos(angle) + x[t, :half] * np.sin(angle)
    return turned


def logits(config: TransformerConfig, params: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Returns the logits [T, V] of one sequence."""
    x = np.asarray(params["embedding"], np.float64)[np.asarray(tokens)]
    length = len(tokens)
    for i in range(config.num_layers):
        attention = params[f"layer_{i}_attention"]
        h = rms_norm(x, params[f"layer_{i}_attention_norm"]["scale"], config.norm_epsilon)
        outputs = []
        for head in range(config.num_heads):
            kv_head = head // (config.num_heads // config.num_kv_heads)
            q = h @ attention["query"]["kernel"][:, head]
            k = h @ attention["key"]["kernel"][:, kv_head]
            v = h @ attention["value"]["kernel"][:, kv_head]
            if config.qkv_bias:
                q = q + attention["query"]["bias"][head]
                k = k + attention["key"]["bias"][kv_head]
                v = v + attention["value"]["bias"][kv_head]
            if config.qk_norm:
                q = rms_norm(q, attention["query_norm"]["scale"], config.norm_epsilon)
                k = rms_norm(k, attention["key_norm"]["scale"], config.norm_epsilon)
            q, k = rope(q, config), rope(k, config)
            out = np.zeros_like(v)
            for t in range(length):
                scores = np.array([q[t] @ k[s] / np.sqrt(config.head_dim) for s in range(t + 1)])
                weights = np.exp(scores - scores.max())
                out[t] = (weights / weights.sum()) @ v[: t + 1]
            outputs.append(out @ attention["out"]["kernel"][head])
        x = x + sum(outputs)
        h = rms_norm(x, params[f"layer_{i}_mlp_norm"]["scale"], config.norm_epsilon)
        mlp = params[f"layer_{i}_mlp"]
        gate = h @ mlp["gate"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ mlp["up"]["kernel"])) @ mlp["down"]["kernel"]
    x = rms_norm(x, params["final_norm"]["scale"], config.norm_epsilon)
    head = params["embedding"].T if config.tie_embeddings else params["head"]
    return x @ head
