"""Compiles the programs of an update for 8 devices, and counts shapes of arrays in them.

    python -m tests.programs.partitioned_shapes

The policy has 2 layers, 16 features, and 48 feed-forward features, a number that nothing else has.
Its parameters are split over `fsdp`. Printed is one JSON object, with pairs [own, whole]: how many
arrays have the size that a device needs for its own groups, and how many that of the whole batch.
"""

import json
import re
from typing import Any

import jax

from staleness_grpo.config.defaults import default_config
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.training import learner
from staleness_grpo.training.diagnostics import make_paired_gram
from staleness_grpo.training.loss import logprobs_function, logprobs_loss, surrogate_loss
from tests.policy.examples import random_rollout


def count_shapes() -> dict:
    """Counts arrays of own and of whole size in an update and in a comparison of gradients."""
    mesh = mesh_lib.make_mesh(fsdp=8)
    policy = Policy(
        TransformerConfig(
            vocab_size=16,
            num_layers=2,
            d_model=16,
            num_heads=2,
            num_kv_heads=2,
            head_dim=8,
            d_ff=48,
        )
    )
    optimizer = learner.make_optimizer(default_config().optimizer, num_steps=1)
    state = learner.init_state(policy, optimizer, mesh, jax.random.key(0))

    # Features of the feed-forward layer [N, 1, T, 48], with N = 1 on each device and 8 in all. T is
    # the length of a prompt and its two responses, without the last token of each.
    batch = jax.device_put(random_rollout(8, 2, 6), mesh_lib.batch_sharding(mesh))
    loss = surrogate_loss(policy, SurrogateConfig(), 1.0)
    with jax.set_mesh(mesh):
        update = learner.compile_update(learner.update_step(loss, optimizer), state, mesh)
        program = update.lower(state, batch).compile().as_text()
    length = batch.prompts.tokens_NxP.shape[1] + 2 * 5
    shapes = [rf"\[{n},1,{length},48\]|\[{n * length},48\]" for n in (1, 8)]
    activations = [len(re.findall(shape, program)) for shape in shapes]

    # Gradients of 4 blocks [4, E, 48], with E = 16 cut into 8 parts, or not.
    batch = jax.device_put(random_rollout(32, 2, 6), mesh_lib.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        paired_gram: Any = make_paired_gram(
            logprobs_function(policy, 1.0), logprobs_loss(SurrogateConfig()), num_blocks=4
        )
        program = paired_gram.lower(state.params, batch, batch).compile().as_text()
        loss = surrogate_loss(policy, SurrogateConfig(), 1.0, None, microbatch_prompts=8)
        gradient = jax.jit(jax.grad(lambda params, batch: loss(params, batch)[0]))
        accumulating = gradient.lower(state.params, batch).compile().as_text() or ""
    blocks = [len(re.findall(rf"\[4,{n},48\]", program)) for n in (2, 16)]

    # A loop over microbatches carries the gradient [E / 8, 48] that it adds to.
    loops = re.findall(r"[^\n]* while\(", accumulating)
    accumulated = sum("f32[2,48]" in loop for loop in loops)
    return {"activations": activations, "blocks": blocks, "accumulated": accumulated}


if __name__ == "__main__":
    print(json.dumps(count_shapes()))
