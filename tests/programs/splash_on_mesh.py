"""Compares the decoder's gradients by Splash attention on 8 devices with those by XLA on one.

    python -m tests.programs.splash_on_mesh

Printed is a JSON list with a pair [largest difference, largest number] for the value and for the
gradient of each parameter.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.runtime import mesh as mesh_lib

CONFIG = TransformerConfig(
    vocab_size=16,
    num_layers=1,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=16,
)


def compare() -> list[list[float]]:
    """Evaluates a function of the logits of 4 groups, and its gradients, in both ways."""
    rng = np.random.default_rng(0)
    prompts, responses = rng.integers(0, 16, (4, 5)), rng.integers(0, 16, (4, 2, 6))
    mask = np.arange(5) >= rng.integers(0, 5, (4, 1))
    params = jax.jit(Policy(CONFIG).init)(jax.random.key(0))

    def evaluate(attention: str, mesh: Mesh) -> list[np.ndarray]:
        policy = Policy(dataclasses.replace(CONFIG, attention=attention))

        def total(params):
            return jnp.sum(jnp.sin(policy.response_logits(params, prompts, mask, responses)))

        sharded = jax.device_put(params, mesh_lib.parameter_shardings(params, mesh))
        with jax.set_mesh(mesh):
            compiled = jax.jit(jax.value_and_grad(total)).lower(sharded).compile()
            return [np.asarray(x) for x in jax.tree.leaves(compiled(sharded))]

    expected = evaluate("xla", mesh_lib.make_mesh())
    ours = evaluate("splash", mesh_lib.make_mesh(data=2, fsdp=2, tensor=2))
    return [
        [float(np.abs(a - b).max()), float(np.abs(a).max())]
        for a, b in zip(expected, ours, strict=True)
    ]


if __name__ == "__main__":
    print(json.dumps(compare()))
