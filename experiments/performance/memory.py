"""Reports the memory that a config's programs take on each device, by the compiler's own account.

    python -m experiments.memory --workdir=DIR [--config.topology=v5p:2x2x1 --config.mesh.fsdp=4]

Nothing is allocated or run. The config has a section `benchmark` with the shape of the batch, and
`topology`: a slice of TPUs, by the name that libtpu has for it. Its compiler runs without a TPU
(`pip install 'jax[tpu]'`). Unset, the programs are compiled for this machine's devices. A CPU
computes bfloat16 products in float32 and undoes rematerialization, so that temporary arrays come
out larger there.
"""

import importlib.util
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from experiments.common import cli
from staleness_grpo.errors import FieldError

if TYPE_CHECKING:  # a mistyped flag should not wait for JAX
    from jax.sharding import Mesh

    from staleness_grpo.types import LearnerState, PyTree, Rollout

NO_MEMORY = "RESOURCE_EXHAUSTED"  # in the message of a compiler that knows its device's memory
TPU_VARIABLES = {
    # Without these libtpu asks the network what machine this is, and complains that none answers.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # No chip is used, so several processes may compile at once.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def compile_for(topology: str | None) -> list:
    """Returns the devices to compile for: a slice of TPUs, or this machine's.

    The slice need not be there.

    Raises:
      FieldError: libtpu is not installed, or knows no such slice.
    """
    if topology is None:
        import jax

        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        hint = "pip install 'jax[tpu]', whose compiler needs no TPU, or leave it out"
        raise FieldError("topology", hint, topology)
    for name, value in TPU_VARIABLES.items():
        os.environ.setdefault(name, value)
    import jax
    from jax.experimental import topologies

    # With libtpu installed JAX would look for a TPU to run on.
    jax.config.update("jax_platforms", "cpu")
    # A program for a TPU cannot be read back from the cache without one.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # JaxRuntimeError or NotImplementedError, as libtpu words it
        reason = str(error).splitlines()[0]
        hint = f"{reason}: give one like v5p:2x2x1, v5e:2x4 or v6e:4x4"
        raise FieldError("topology", hint, topology) from error


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot be compiled. Raises FieldError."""
    from experiments.performance.random_tokens import validate_for

    devices = compile_for(config.topology)
    validate_for(config, len(devices), devices[0].platform)


def lowered_programs(config: ConfigDict, mesh: "Mesh") -> tuple["LearnerState", dict[str, Any]]:
    """Returns the abstract learner state, sharded, and a learner step's lowered programs by name.

    `update` and `sampling` are always among them. `paired_gram` is there if the config compares
    gradients, and `proximal_logprobs` if it learns from a batch in several updates.
    """
    import jax

    from experiments.performance.random_tokens import RandomTokens
    from staleness_grpo.policy.sampler import sample
    from staleness_grpo.training.learner import abstract_state
    from staleness_grpo.training.programs import make_programs

    # Responses may end early, as those of a language model do.
    programs = make_programs(config, RandomTokens(**config.benchmark, end_token=0))
    updates = config.updates_per_batch
    whole = abstract_rollout(config, mesh, config.num_prompts)
    batch = abstract_rollout(config, mesh, config.num_prompts // updates, proximal=updates > 1)
    state = abstract_state(programs.policy, programs.make_optimizer(None), mesh)
    key, index_N = jax.eval_shape(lambda: jax.random.key(0)), whole.prompts.index_N
    paired_gram: Any = programs.paired_gram  # jitted, or None
    proximal_logprobs: Any = programs.proximal_logprobs
    with jax.set_mesh(mesh):
        arguments, limits = programs.sampling(
            state.params, whole.prompts, key, index_N, index_N, config.group_size
        )
        lowered: dict[str, Any] = {
            "update": programs.compiled_update(state, mesh).lower(state, batch),
            "sampling": sample.lower(*arguments, **limits),
        }
        if paired_gram is not None:
            lowered["paired_gram"] = paired_gram.lower(state.params, batch, batch)
        if proximal_logprobs is not None:
            unscored = abstract_rollout(config, mesh, config.num_prompts // updates)
            lowered["proximal_logprobs"] = proximal_logprobs.lower(state.params, unscored)
    return state, lowered


def abstract_rollout(
    config: ConfigDict, mesh: "Mesh", num_prompts: int, proximal: bool = False
) -> "Rollout":
    """Returns the shapes of a rollout of `num_prompts` groups, sharded over the mesh.

    Args:
      config: its section `benchmark` has the sizes.
      mesh: the mesh.
      num_prompts: groups, N of a batch or of a minibatch.
      proximal: whether it has the log-probabilities of a proximal policy.
    """
    import jax
    import jax.numpy as jnp

    from staleness_grpo.runtime import mesh as mesh_lib
    from staleness_grpo.types import Prompts, Responses, Rollout

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh_lib.batch_sharding(mesh))

    n, g = num_prompts, config.group_size
    p, r = config.benchmark.prompt_length, config.benchmark.max_response_length
    return Rollout(
        prompts=Prompts(array((n, p), jnp.int32), array((n, p), bool), array((n,), jnp.int32)),
        responses=Responses(
            array((n, g, r), jnp.int32), array((n, g, r), bool), array((n, g, r), jnp.float32)
        ),
        rewards_NxG=array((n, g), jnp.float32),
        behavior_version_N=array((n,), jnp.int32),
        proximal_logprobs_NxGxR=array((n, g, r), jnp.float32) if proximal else None,
    )


def bytes_per_device(tree: "PyTree") -> int:
    """Returns the bytes of abstract arrays with shardings on the fullest device."""
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def parameter_copies(config: ConfigDict) -> dict[str, int]:
    """Returns, for each program, the most copies of the parameters beside the state while it runs.

    They are the proximal policy and, for `metrics.parameter_drift`, the first version and all in
    flight. The oldest of these goes once the drift is measured, before an update.
    """
    import numpy as np

    from staleness_grpo.training.run import lag_schedule

    before, after = 0, 0  # the update
    versions: set[int] = set()
    if config.metrics.parameter_drift:
        schedule = lag_schedule(config)
        for step in range(config.steps):
            if np.any(schedule.due(step, config.steps)[0] > step):
                versions.add(step)
            before = max(before, 1 + len(versions))
            versions = {version for version in versions if version > step - config.lag.max_lag}
            after = max(after, 1 + len(versions))
    proximal = int(config.updates_per_batch > 1)
    return dict(
        sampling=before + proximal,
        proximal_logprobs=before + proximal,
        update=after + proximal,
        paired_gram=after + proximal,
    )


def measure(config: ConfigDict) -> dict:
    """Returns the bytes on each device of the learner state, and of each program of a step.

    A program has the bytes of its temporaries, of its code, and of everything at its peak. The peak
    counts the learner state and the copies of parameters beside it, which stay while a program
    runs. It also counts the program's other arguments, its results, temporaries and code. A program
    that the compiler knows not to fit has the compiler's reason instead, under `refused`.
    """
    import jax

    from staleness_grpo.runtime import mesh as mesh_lib

    devices = compile_for(config.topology)
    mesh = mesh_lib.make_mesh(**config.mesh.to_dict(), devices=devices)
    state, lowered = lowered_programs(config, mesh)
    state_bytes, params_bytes = bytes_per_device(state), bytes_per_device(state.params)
    programs: dict[str, dict] = {}
    copies = parameter_copies(config)
    for name, program in lowered.items():
        try:
            analysis = program.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if NO_MEMORY not in str(error):
                raise
            programs[name] = {"refused": str(error).splitlines()[0]}
            continue
        kept = state_bytes + copies[name] * params_bytes
        # Arguments of the program are counted once, as its arguments.
        resident = kept - (state_bytes if name == "update" else params_bytes)
        results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        parts = (analysis.argument_size_in_bytes, results, analysis.temp_size_in_bytes)
        programs[name] = {
            "temporary_bytes": analysis.temp_size_in_bytes,
            "code_bytes": analysis.generated_code_size_in_bytes,
            "peak_bytes": resident + sum(parts) + analysis.generated_code_size_in_bytes,
        }
    return {
        "device": devices[0].device_kind,
        "num_devices": mesh.size,
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "state_bytes": state_bytes,
        "programs": programs,
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Compiles and writes summary.json."""
    from experiments.common.workdir import SUMMARY, write_run_files
    from staleness_grpo.runtime.records import write_json

    write_run_files(workdir, config)
    summary = measure(config) | {"claims": []}
    write_json(workdir / SUMMARY, summary)
    state_gigabytes = summary["state_bytes"] / 1e9
    print(
        f"{summary['num_devices']} x {summary['device']}, "
        f"learner state {state_gigabytes:.1f} GB on each"
    )
    for name, program in summary["programs"].items():
        if "refused" in program:
            print(f"{name:12s} {program['refused']}")
        else:
            print(f"{name:12s} {program['peak_bytes'] / 1e9:.1f} GB at its peak")


def command() -> None:
    """Runs the report from the command line."""
    cli.run(
        main,
        cli.draw_nothing,
        default_config="experiments/configs/memory_llama_1b.py",
        validate=validate,
        mesh_may_differ=False,
    )
