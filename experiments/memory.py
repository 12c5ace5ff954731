"""What memory the update of a config takes on its device, by the compiler's own account; nothing is allocated or run.

    python -m experiments.memory --config=experiments/configs/benchmark_llama_1b.py --workdir=DIR

The config has a section `benchmark` with the shape of the batch. On CPU, where bfloat16 products are computed in
float32, the temporary arrays come out larger than on an accelerator.
"""

import pathlib

from ml_collections import ConfigDict

from experiments import cli
from experiments.benchmark import validate


def measure(config: ConfigDict) -> dict:
    """Bytes of the update's arguments (parameters, optimizer state, batch), of its temporaries, and at its peak."""
    import jax
    import jax.numpy as jnp

    from staleness_grpo import learner
    from staleness_grpo.objective.surrogate import SurrogateConfig
    from staleness_grpo.policy.configured import make_policy
    from staleness_grpo.types import Prompts, Responses, Rollout

    shape = config.benchmark
    policy = make_policy(config.policy, shape.vocab_size)
    optimizer = learner.make_optimizer(config.optimizer, config.correction)
    loss_fn = learner.surrogate_loss(
        policy,
        SurrogateConfig(**config.surrogate.to_dict()),
        config.sampler.temperature,
        config.correction,
        config.microbatch_prompts,
    )
    n, g, p, r = config.num_prompts, config.group_size, shape.prompt_length, shape.max_response_length
    array = jax.ShapeDtypeStruct
    rollout = Rollout(
        prompts=Prompts(array((n, p), jnp.int32), array((n, p), bool), array((n,), jnp.int32)),
        responses=Responses(array((n, g, r), jnp.int32), array((n, g, r), bool), array((n, g, r), jnp.float32)),
        rewards_NxG=array((n, g), jnp.float32),
        behavior_version_N=array((n,), jnp.int32),
    )
    state = jax.eval_shape(lambda key: learner.initial_state(optimizer, policy.init(key)), jax.random.key(0))
    update = jax.jit(learner.update_step(loss_fn, optimizer), donate_argnums=0)
    analysis = update.lower(state, rollout).compile().memory_analysis()
    kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return {
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "argument_bytes": analysis.argument_size_in_bytes,
        "temporary_bytes": analysis.temp_size_in_bytes,
        "peak_bytes": kept + analysis.temp_size_in_bytes,
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Compiles and writes summary.json; a finished workdir is left as it is."""
    from staleness_grpo import metrics

    if (workdir / "summary.json").exists():
        print(f"finished already: {workdir / 'summary.json'}")
        return
    metrics.write_run_files(workdir, config)
    summary = measure(config)
    metrics.write_json(workdir / "summary.json", summary)
    for name, value in summary.items():
        print(f"{name:28s} {value}")


if __name__ == "__main__":
    cli.run(main, default_config="experiments/configs/benchmark.py", validate=validate)
