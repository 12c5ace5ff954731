# mypy: ignore-errors
# The line above: Tunix is installed in an environment of its own, where no type is checked.
"""Times a GRPO step of Tunix at the shape of our benchmark.

    python -m venv VENV
    VENV/bin/pip install -r requirements-tunix.txt
    VENV/bin/python tunix_step.py --steps=20 --warm_up=3 [--threads=2]

The output is one JSON object. Its field `step_seconds` has one number per timed step.

- A step is all that `GRPOLearner` does between two consecutive calls of the reward function. That
  is the rest of one step (rewards, advantages, update, metrics) and the start of the next
  (prompts, their tokens, sampling). So each part is counted once.
- The rollout engine is "vanilla", Tunix' own sampler in JAX.
- Shape, tokenizer, and what all scripts do alike: `shape.py`.
- The script fails if an array of parameters is the same after training, or is not the sampler's.
"""

import argparse
import json
import os
import tempfile
import time

import shape


def make_model():
    """Returns a Llama decoder of the benchmark's shape, with random float32 parameters."""
    import jax
    from flax import nnx
    from tunix.models.llama3 import model as llama3

    config = llama3.ModelConfig(
        num_layers=2,
        vocab_size=shape.VOCAB_SIZE,
        embed_dim=128,
        hidden_dim=512,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        rope_theta=10_000,
        norm_eps=1e-5,
        weight_tying=False,
    )
    model = llama3.Llama3(config, rngs=nnx.Rngs(0))
    # Tunix expects a checkpoint, and starts the feed-forward layers at 0. They would stay there.
    keys = iter(jax.random.split(jax.random.key(1), 3 * config.num_layers))
    for layer in model.layers:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            linear.kernel[...] = 0.02 * jax.random.normal(next(keys), linear.kernel.shape)
    return model


def share_of_small_tokens(completions: list[str]) -> list[float]:
    """Returns the share of each response's tokens that are below V / 2, as our benchmark does."""
    assert len(completions) == shape.NUM_PROMPTS * shape.GROUP_SIZE, len(completions)
    tokens_of_each = [text.split() for text in completions]
    assert {len(tokens) for tokens in tokens_of_each} == {shape.RESPONSE_LENGTH}
    return [
        sum(int(token) < shape.VOCAB_SIZE // 2 for token in tokens) / shape.RESPONSE_LENGTH
        for tokens in tokens_of_each
    ]


def make_batches(num_steps: int) -> list[dict]:
    """Returns the random prompts of each step."""
    import numpy as np

    size = (num_steps, shape.NUM_PROMPTS, shape.PROMPT_LENGTH)
    numbers = np.random.default_rng(0).integers(shape.VOCAB_SIZE, size=size)
    prompts = [[" ".join(map(str, row)) for row in rows] for rows in numbers]
    tokenizer = shape.make_tokenizer()
    lengths = {len(tokenizer.encode(prompt)) for batch in prompts for prompt in batch}
    assert lengths == {shape.PROMPT_LENGTH}, lengths
    return [{"prompts": np.array(batch)} for batch in prompts]


def make_learner(num_steps: int, reward_function):
    """Returns a learner that takes `num_steps` steps."""
    import jax
    import numpy as np
    import optax
    from tunix.rl import rl_cluster
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.rollout import base_rollout

    # The actor and the sampler have the same mesh, so that Tunix lets them share the parameters.
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=make_model(),
        reference=None,  # there is no penalty
        tokenizer=shape.make_tokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adamw(1e-6, weight_decay=0.0),
                max_steps=num_steps,
                eval_every_n_steps=num_steps + 1,
                # A step samples once, and learns once from all responses together.
                mini_batch_size=shape.NUM_PROMPTS,
                train_micro_batch_size=shape.NUM_PROMPTS,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_prompt_length=shape.PROMPT_LENGTH,
                max_tokens_to_generate=shape.RESPONSE_LENGTH,
                # Attention goes over the whole cache, so it has no free place.
                kv_cache_size=shape.PROMPT_LENGTH + shape.RESPONSE_LENGTH,
                # With these the sampler sorts nothing.
                temperature=1.0,
                top_p=1.0,
                top_k=None,
            ),
        ),
    )
    return grpo_learner.GRPOLearner(
        rl_cluster=cluster,
        algo_config=grpo_learner.GRPOConfig(
            num_generations=shape.GROUP_SIZE, num_iterations=1, beta=0.0, epsilon=0.2
        ),
        reward_fns=reward_function,
    )


def parameters_by_name(model) -> dict:
    """Returns copies of a model's parameters, by name."""
    import jax
    import numpy as np
    from flax import nnx

    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def measure(steps: int, warm_up: int, threads: int) -> dict:
    """Trains for `warm_up + steps` steps and one more, and returns what the script prints."""
    from importlib import metadata

    import jax
    import numpy as np

    calls = []

    def reward_function(prompts, completions, **others):
        calls.append(time.perf_counter())
        return share_of_small_tokens(completions)

    num_steps = warm_up + steps + 1
    learner = make_learner(num_steps, reward_function)
    cluster = learner.rl_cluster
    before = parameters_by_name(cluster.actor_trainer.model)
    learner.train(make_batches(num_steps))
    after = parameters_by_name(cluster.actor_trainer.model)
    of_the_sampler = parameters_by_name(cluster.rollout.model())
    for name, parameter in after.items():
        assert not np.array_equal(before[name], parameter), f"{name} did not change"
        assert np.array_equal(of_the_sampler[name], parameter), f"{name} is not the sampler's"
    assert len(calls) == num_steps, len(calls)
    timed = calls[warm_up:]
    return {
        "library": "tunix",
        "version": metadata.version("google-tunix"),
        "jax": jax.__version__,
        "threads": threads,
        "step_seconds": [end - start for start, end in zip(timed, timed[1:], strict=False)],
        "num_parameters": sum(parameter.size for parameter in after.values()),
        "tokens_per_step": shape.NUM_PROMPTS * shape.GROUP_SIZE * shape.RESPONSE_LENGTH,
    }


def main() -> None:
    """Reads the flags, measures, and prints one line of JSON."""
    parser = argparse.ArgumentParser(description="Times a GRPO step of Tunix.")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warm_up", type=int, default=3, help="steps before them, at least 1")
    cpus = sorted(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=len(cpus), help="CPUs that XLA may use")
    flags = parser.parse_args()
    if flags.steps < 1 or flags.warm_up < 1:
        parser.error("give --steps and --warm_up of at least 1")
    if not 1 <= flags.threads <= len(cpus):
        parser.error(f"give --threads from 1 to {len(cpus)}, the number of CPUs")
    # XLA has no flag for the number of threads. It takes one for each CPU that the process may use.
    os.sched_setaffinity(0, cpus[: flags.threads])
    with tempfile.TemporaryDirectory() as folder:
        # The libraries read these when they are imported.
        os.environ.update(JAX_PLATFORMS="cpu", HF_HOME=folder, HF_HUB_OFFLINE="1")
        print(json.dumps(measure(flags.steps, flags.warm_up, flags.threads)), flush=True)


if __name__ == "__main__":
    main()
