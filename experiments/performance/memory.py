"""Reports how much memory a config's programs need on each device, according to the compiler.

    python -m experiments.memory --workdir=DIR [--config.topology=v5p:2x2x1 --config.mesh.fsdp=4]

The programs are compiled, but not run, and no array is allocated. The config has two fields more
than a training:

- `benchmark`: a section with the shape of the batch.
- `topology`: libtpu's name of a slice of TPUs. The compiler of libtpu runs without a TPU
  (`pip install 'jax[tpu]'`). If `topology` is unset, the programs are compiled for the devices of
  this machine.

Temporary arrays are larger on a CPU, which computes bfloat16 products in float32 and undoes
rematerialization.
"""

import dataclasses
import importlib.util
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from experiments.common import cli
from staleness_grpo.errors import FieldError, require

if TYPE_CHECKING:  # importing JAX is slow, and an error in a flag should appear at once
    from jax.sharding import Mesh

    from staleness_grpo.types import LearnerState, PyTree, Rollout

# Part of the compiler's message for a program that does not fit into the device's memory.
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
TPU_VARIABLES = {
    # Without these, libtpu asks the network which machine this is, and warns if nothing answers.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Several processes may compile at the same time, since none of them uses a chip.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def target_devices(topology: str | None) -> list:
    """Returns the devices to compile for.

    They are the devices of a slice of TPUs, which this machine does not need to have. Without a
    topology they are the devices of this machine.

    Raises:
      FieldError: if libtpu is not installed, or does not know the topology.
    """
    if topology is None:
        import jax

        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        hint = "pip install 'jax[tpu]', whose compiler needs no TPU, or leave topology unset"
        raise FieldError("topology", hint, topology)
    for name, value in TPU_VARIABLES.items():
        os.environ.setdefault(name, value)
    import jax
    from jax.experimental import topologies

    # With libtpu installed, JAX would otherwise look for a TPU to run on.
    jax.config.update("jax_platforms", "cpu")
    # A program that was compiled for a TPU cannot be loaded from the cache without a TPU.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # JaxRuntimeError or NotImplementedError
        reason = str(error).splitlines()[0]
        hint = f"{reason}: give a topology such as v5p:2x2x1, v5e:2x4 or v6e:4x4"
        raise FieldError("topology", hint, topology) from error


def validate(config: ConfigDict) -> None:
    """Raises FieldError if the config's programs cannot be compiled."""
    from experiments.performance.random_tokens import validate_for

    hint = "the report knows one mesh, which samples too: leave it unset"
    require(config.sampler.devices is None, "sampler.devices", hint)
    devices = target_devices(config.topology)
    validate_for(config, len(devices), devices[0].platform)


def lowered_programs(config: ConfigDict, mesh: "Mesh") -> tuple["LearnerState", dict[str, Any]]:
    """Lowers the programs of a learner step.

    Returns:
      (state, programs): the abstract learner state with its shardings, and the lowered programs by
      name:

      - `update` and `sampling`.
      - `paired_gram`, if the config compares gradients.
      - `proximal_logprobs`, if the config takes several updates per batch.
      - `reference_logprobs`, if the config has a penalty.
    """
    import jax

    from experiments.performance.random_tokens import RandomTokens
    from staleness_grpo.policy.sampler import sample
    from staleness_grpo.training.learner import abstract_state
    from staleness_grpo.training.programs import make_programs

    # The end token lets responses end early, as the responses of a language model do.
    programs = make_programs(config, RandomTokens(**config.benchmark, end_token=0))
    updates, at_once = config.updates_per_batch, config.sampler.batch_prompts
    sampled = abstract_rollout(config, mesh, config.num_prompts if at_once is None else at_once)
    minibatch = abstract_rollout(config, mesh, config.num_prompts // updates, proximal=updates > 1)
    state = abstract_state(programs.policy, programs.make_optimizer(None), mesh)
    key, index_N = jax.eval_shape(lambda: jax.random.key(0)), sampled.prompts.index_N
    paired_gram: Any = programs.paired_gram  # a jitted function, or None
    scorers: dict[str, Any] = {
        "proximal_logprobs": programs.proximal_logprobs,
        "reference_logprobs": programs.reference_logprobs,
    }
    with jax.set_mesh(mesh):
        arguments, limits = programs.sampling(
            state.params, sampled.prompts, key, index_N, index_N, config.group_size
        )
        lowered: dict[str, Any] = {
            "update": programs.compiled_update(state, mesh).lower(state, minibatch),
            "sampling": sample.lower(*arguments, **limits),
        }
        if paired_gram is not None:
            lowered["paired_gram"] = paired_gram.lower(state.params, minibatch, minibatch)
        for name, scorer in scorers.items():
            if scorer is not None:
                unscored = abstract_rollout(config, mesh, config.num_prompts // updates)
                unscored = dataclasses.replace(unscored, reference_logprobs_NxGxR=None)
                lowered[name] = scorer.lower(state.params, unscored)
    return state, lowered


def abstract_rollout(
    config: ConfigDict, mesh: "Mesh", num_prompts: int, proximal: bool = False
) -> "Rollout":
    """Returns a rollout of abstract arrays, sharded over the mesh.

    Args:
      config: gives the group size, and the lengths in its section `benchmark`.
      mesh: the mesh.
      num_prompts: N, the groups of a batch or of a minibatch.
      proximal: whether the rollout has log-probabilities of a proximal policy.
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
        reference_logprobs_NxGxR=array((n, g, r), jnp.float32) if config.reference.kl else None,
    )


def bytes_per_device(tree: "PyTree") -> int:
    """Returns the bytes of abstract, sharded arrays on the device that holds the most of them."""
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def parameter_copies(config: ConfigDict) -> dict[str, int]:
    """Returns how many copies of the parameters are kept in addition to the learner state.

    The number is the largest during the training, and differs by program. The copies are:

    - the proximal policy, if there are several updates per batch.
    - the reference policy, if there is a penalty.
    - the first version and all versions in flight, with `metrics.parameter_drift`. The oldest
      version in flight is dropped once its drift is measured, which is before an update. With
      `metrics.drift_sketch` the versions in flight are sketches, which `sketch_bytes` counts.
    """
    import numpy as np

    from staleness_grpo.training.run import lag_schedule

    during_sampling, during_update = 0, 0
    versions: set[int] = set()
    if config.metrics.parameter_drift:
        schedule = lag_schedule(config)
        for step in range(config.steps):
            is_kept = np.any(schedule.due(step, config.steps)[0] > step)
            if is_kept and not config.metrics.drift_sketch:
                versions.add(step)
            during_sampling = max(during_sampling, 1 + len(versions))
            versions = {version for version in versions if version > step - config.lag.max_lag}
            during_update = max(during_update, 1 + len(versions))
    others = int(config.updates_per_batch > 1) + int(config.reference.kl > 0)
    return dict(
        sampling=during_sampling + others,
        proximal_logprobs=during_sampling + others,
        reference_logprobs=during_sampling + others,
        update=during_update + others,
        paired_gram=during_update + others,
    )


def sketch_bytes(config: ConfigDict, params: Any) -> int:
    """Returns the bytes of the sketches of S + 1 versions, which every device has.

    Args:
      config: the config.
      params: the parameters, or their shapes and dtypes.
    """
    import jax

    from staleness_grpo.training.drift import sketch

    metrics = config.metrics
    if not (metrics.parameter_drift and metrics.drift_sketch):
        return 0
    kept = jax.eval_shape(lambda params: sketch(params, metrics.drift_sketch), params)
    of_version = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    return (config.lag.max_lag + 1) * of_version


def measure(config: ConfigDict) -> dict:
    """Returns the bytes on each device that the learner state and each program of a step need.

    A program has the fields `temporary_bytes`, `code_bytes` and `peak_bytes`. The peak counts what
    is in memory while the program runs:

    - the learner state, and the copies and sketches of the parameters.
    - the program's other arguments, its results, its temporary arrays and its code.

    If the compiler finds that a program does not fit, the program has only the field `refused` with
    the compiler's reason.
    """
    import jax

    from staleness_grpo.runtime import mesh as mesh_lib
    from staleness_grpo.training.drift import sketch_size

    devices = target_devices(config.topology)
    mesh = mesh_lib.make_mesh(**config.mesh.to_dict(), devices=devices)
    state, lowered = lowered_programs(config, mesh)
    state_bytes, params_bytes = bytes_per_device(state), bytes_per_device(state.params)
    programs: dict[str, dict] = {}
    config = config.copy_and_resolve_references()
    asked = config.metrics.drift_sketch
    config.metrics.drift_sketch = sketch_size(asked, state.params, config.lag.max_lag)
    copies, of_sketches = parameter_copies(config), sketch_bytes(config, state.params)
    for name, program in lowered.items():
        try:
            analysis = program.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if OUT_OF_MEMORY not in str(error):
                raise
            programs[name] = {"refused": str(error).splitlines()[0]}
            continue
        kept_bytes = state_bytes + copies[name] * params_bytes + of_sketches
        # State or parameters that are arguments of the program are counted as its arguments below.
        resident_bytes = kept_bytes - (state_bytes if name == "update" else params_bytes)
        result_bytes = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        program_bytes = (
            analysis.argument_size_in_bytes
            + result_bytes
            + analysis.temp_size_in_bytes
            + analysis.generated_code_size_in_bytes
        )
        programs[name] = {
            "temporary_bytes": analysis.temp_size_in_bytes,
            "code_bytes": analysis.generated_code_size_in_bytes,
            "peak_bytes": resident_bytes + program_bytes,
        }
    return {
        "device": devices[0].device_kind,
        "num_devices": mesh.size,
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "state_bytes": state_bytes,
        "programs": programs,
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Compiles the programs, and writes summary.json."""
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
