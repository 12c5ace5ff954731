"""What memory a config's programs take on each device, by the compiler's own account; nothing is allocated or run.

    python -m experiments.memory --workdir=DIR [--config.topology=v5p:2x2x1 --config.mesh.fsdp=4]

The config has a section `benchmark` with the shape of the batch, and `topology`: a slice of TPUs, by the name that
libtpu has for it, whose compiler runs without a TPU (`pip install 'jax[tpu]'`). Unset, it is this machine's devices.
On a CPU bfloat16 products are computed in float32 and rematerialisation is undone: temporary arrays come out larger.
"""

import importlib.util
import os
import pathlib

from ml_collections import ConfigDict

from experiments import cli
from staleness_grpo.config import ConfigError

NO_MEMORY = "RESOURCE_EXHAUSTED"  # in the message of a compiler that knows its device's memory


def compile_for(topology: str | None) -> list:
    """The devices to compile for: those of a slice of TPUs that need not be there, or this machine's.

    Raises:
      ConfigError: if libtpu is not installed, or knows no such slice.
    """
    if topology is None:
        import jax

        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("topology", topology, "pip install 'jax[tpu]', whose compiler needs no TPU, or leave it out")
    # Or libtpu asks the network what machine this is, and complains that none answers.
    for name, value in (
        ("SKIP_MDS_QUERY", "1"),
        ("ACCELERATOR_TYPE", "v5litepod-1"),
        ("WORKER_HOSTNAMES", "localhost"),
    ):
        os.environ.setdefault(f"TPU_{name}", value)
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is used, so several may compile at once
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # or JAX looks for a TPU to run on, since libtpu is installed
    jax.config.update("jax_enable_compilation_cache", False)  # cannot be read back without a TPU
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # JaxRuntimeError or NotImplementedError, as libtpu words it
        reason = str(error).splitlines()[0]
        raise ConfigError("topology", topology, f"{reason}: give one like v5p:2x2x1, v5e:2x4 or v6e:4x4") from error


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot be compiled. Raises ConfigError."""
    from experiments.benchmark import validate_for

    devices = compile_for(config.topology)
    validate_for(config, len(devices), devices[0].platform)


def programs(config: ConfigDict, mesh) -> tuple[dict, dict]:
    """The learner state, sharded and abstract, and the lowered programs of a learner step by name.

    `update` and `sampling` are always among them, `paired_gram` if the config compares gradients, `proximal_logprobs`
    if a batch is learned from in several updates.
    """
    import jax
    import jax.numpy as jnp

    from staleness_grpo import learner
    from staleness_grpo import mesh as mesh_lib
    from staleness_grpo.loss import surrogate_loss
    from staleness_grpo.objective.surrogate import SurrogateConfig
    from staleness_grpo.policy.configured import make_policy
    from staleness_grpo.policy.sampler import sample
    from staleness_grpo.types import Prompts, Responses, Rollout

    shape, temperature = config.benchmark, config.sampler.temperature
    policy = make_policy(config.policy, shape.vocab_size)
    optimizer = learner.make_optimizer(config.optimizer, config.correction)
    surrogate = SurrogateConfig(**config.surrogate.to_dict())
    loss_fn = surrogate_loss(policy, surrogate, temperature, config.correction, config.microbatch_prompts)
    n, g, p, r = config.num_prompts, config.group_size, shape.prompt_length, shape.max_response_length
    minibatch, several_updates = n // config.updates_per_batch, config.updates_per_batch > 1

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh_lib.batch_sharding(mesh))

    prompts = Prompts(array((n, p), jnp.int32), array((n, p), bool), array((n,), jnp.int32))

    def rollout(n, proximal_logprobs=None):
        return Rollout(
            prompts=jax.tree.map(lambda leaf: array((n, *leaf.shape[1:]), leaf.dtype), prompts),
            responses=Responses(array((n, g, r), jnp.int32), array((n, g, r), bool), array((n, g, r), jnp.float32)),
            rewards_NxG=array((n, g), jnp.float32),
            behavior_version_N=array((n,), jnp.int32),
            proximal_logprobs_NxGxR=proximal_logprobs,
        )

    batch = rollout(minibatch, array((minibatch, g, r), jnp.float32) if several_updates else None)
    state = jax.eval_shape(lambda key: learner.initial_state(optimizer, policy.init(key)), jax.random.key(0))
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        mesh_lib.parameter_shardings(state, mesh),
    )
    with jax.set_mesh(mesh):
        lowered = {
            "update": learner.make_update(loss_fn, optimizer, state, mesh).lower(state, batch),
            "sampling": sample.lower(
                policy,
                state.params,
                prompts,
                jax.eval_shape(lambda: jax.random.key(0)),
                array((n,), jnp.int32),
                array((n,), jnp.int32),
                temperature,
                group_size=g,
                max_length=r,
                end_token=0,
                pad_token=0,
            ),
        }
        if config.metrics.paired_every:
            blocks = config.metrics.paired_blocks or n
            paired_gram = learner.make_paired_gram(
                policy, surrogate, temperature, config.correction, config.microbatch_prompts, blocks
            )
            lowered["paired_gram"] = paired_gram.lower(state.params, batch, batch)
        if several_updates:
            scorer = learner.make_scorer(policy, temperature)
            lowered["proximal_logprobs"] = scorer.lower(state.params, rollout(minibatch))
    return state, lowered


def bytes_per_device(tree) -> int:
    """Of abstract arrays with shardings, on the fullest device."""
    import math

    import jax

    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def parameter_copies(config: ConfigDict) -> dict[str, int]:
    """The most copies of the parameters that training keeps beside its state while a program runs, by its name.

    They are the proximal policy and, for `metrics.parameter_drift`, the first version and all in flight. The oldest of
    these goes once the drift is measured, before an update.
    """
    import numpy as np

    from staleness_grpo import train

    before, after, versions = 0, 0, set()
    if config.metrics.parameter_drift:
        schedule = train.lag_schedule(config)
        for step in range(config.steps):
            if np.any(schedule.due(step, config.steps)[0] > step):
                versions.add(step)
            before = max(before, 1 + len(versions))
            versions = {version for version in versions if version > step - config.lag.max_lag}
            after = max(after, 1 + len(versions))
    proximal = int(config.updates_per_batch > 1)
    return dict(
        sampling=before + proximal, proximal_logprobs=before + proximal,
        update=after + proximal, paired_gram=after + proximal,
    )  # fmt: skip


def measure(config: ConfigDict) -> dict:
    """Bytes on each device: of the learner state, and for each program of a step of its temporaries and at its peak.

    The peak counts the whole learner state and the copies of parameters beside it, which stay while a program runs, the
    program's other arguments, its results and temporaries, and its code. Of a program that the compiler knows not to
    fit there is its reason alone.
    """
    import jax

    from staleness_grpo import mesh as mesh_lib

    devices = compile_for(config.topology)
    mesh = mesh_lib.make_mesh(**config.mesh.to_dict(), devices=devices)
    state, lowered = programs(config, mesh)
    state_bytes, params_bytes = bytes_per_device(state), bytes_per_device(state.params)
    summary = {
        "device": devices[0].device_kind,
        "num_devices": mesh.size,
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "state_bytes": state_bytes,
        "programs": {},
    }
    copies = parameter_copies(config)
    for name, program in lowered.items():
        try:
            analysis = program.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if NO_MEMORY not in str(error):
                raise
            summary["programs"][name] = {"refused": str(error).splitlines()[0]}
            continue
        kept = state_bytes + copies[name] * params_bytes
        resident = kept - (state_bytes if name == "update" else params_bytes)  # beside the program's arguments
        results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        parts = (analysis.argument_size_in_bytes, results, analysis.temp_size_in_bytes)
        summary["programs"][name] = {
            "temporary_bytes": analysis.temp_size_in_bytes,
            "code_bytes": analysis.generated_code_size_in_bytes,
            "peak_bytes": resident + sum(parts) + analysis.generated_code_size_in_bytes,
        }
    return summary


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Compiles and writes summary.json; a finished workdir is left as it is."""
    from staleness_grpo import metrics

    if (workdir / "summary.json").exists():
        print(f"finished already: {workdir / 'summary.json'}")
        return
    metrics.write_run_files(workdir, config)
    summary = measure(config)
    metrics.write_json(workdir / "summary.json", summary)
    print(
        f"{summary['num_devices']} x {summary['device']}, learner state {summary['state_bytes'] / 1e9:.1f} GB on each"
    )
    for name, found in summary["programs"].items():
        account = found["refused"] if "refused" in found else f"{found['peak_bytes'] / 1e9:.1f} GB at its peak"
        print(f"{name:12s} {account}")


if __name__ == "__main__":
    cli.run(main, default_config="experiments/configs/memory_llama_1b.py", validate=validate, mesh_may_differ=False)
