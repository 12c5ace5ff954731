"""Refuses configs that cannot be run, or would not mean what they say.

A rule about one section stands with the code that owns the section, and is called here. What stands
here itself spans sections: the batch against the mesh, the lag against the run's length, the task
against the policy.
"""

import importlib.util
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config, describe_type, field_value
from staleness_grpo.config.model_validation import check_policy, check_task
from staleness_grpo.errors import FieldError, require, require_at_least

# Fields of no section, and of sections that the loop alone reads. All are whole numbers.
AT_LEAST = {
    "seed": 0,
    "steps": 1,
    "num_prompts": 1,
    "group_size": 2,  # a response is judged against the others of its group
    "updates_per_batch": 1,
    "microbatch_prompts": 0,
    "eval_every": 0,
}
SECTIONS_AT_LEAST = {
    "metrics": {"paired_every": 0, "paired_blocks": 0},
    "checkpoint": {"save_every": 1, "keep": 1},
    "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
}
LARGEST_SEED = 2**31 - 1


def validate(config: ConfigDict, num_devices: int, platform: str | None = None) -> None:
    """Refuses what cannot be run, or would not mean what it says.

    Args:
      config: a config with at least the fields of `default_config()`; the fields of `task` are the
        task's own.
      num_devices: devices that a mesh can be made of.
      platform: JAX's name for the platform of the devices; by default that which JAX runs on.

    Raises:
      FieldError: naming the first field found wrong, with its value.
    """
    validate_without_task(config, num_devices, platform)
    _refuse_here(config, "", lambda: check_task(config))


def validate_without_task(
    config: ConfigDict, num_devices: int, platform: str | None = None
) -> None:
    """Does what `validate` does, apart from what depends on the task's tokens.

    It is for programs that bring tokens of their own.
    """
    _check_types(config, default_config())
    _refuse_here(config, "", lambda: require_at_least(config, AT_LEAST))
    for section, bounds in SECTIONS_AT_LEAST.items():
        _refuse_here(config, section, partial(require_at_least, config[section], bounds))
    _check_sections(config)
    for check in (_check_batch, _check_comparisons, _check_trace, _check_saving):
        _refuse_here(config, "", partial(check, config))
    _refuse_here(config, "", lambda: _check_mesh(config, num_devices))
    _refuse_here(config, "", lambda: check_policy(config, platform))


def _refuse_here(config: ConfigDict, section: str, check: Callable[[], None]) -> None:
    """Runs a check; what it raises is named from the top of the config, with its value."""
    try:
        check()
    except FieldError as error:
        located = error.below(section) if section else error
        raise located.with_value(lambda field: field_value(config, field)) from error


def _check_types(config: ConfigDict, expected: ConfigDict, prefix: str = "") -> None:
    """Refuses missing fields, values of another type than the default's, and floats not finite.

    An int will do for a float.
    """
    for name, default_value in expected.items():
        field = prefix + name
        if name not in config:
            hint = f"the field is missing; the default is {default_value}"
            raise FieldError(field, hint, None)
        value = config[name]
        if field == "task":
            continue
        if isinstance(default_value, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise FieldError(field, f"give fields: {', '.join(default_value)}", value)
            _check_types(value, default_value, f"{field}.")
            continue
        if default_value is None and value is None:
            continue  # unset, as by default
        kind = expected.get_type(name)
        accepted = (float, int) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise FieldError(field, f"give {describe_type(kind, default_value)}", value)
        if isinstance(value, float) and not math.isfinite(value):
            raise FieldError(field, "give a finite number", value)


def _check_sections(config: ConfigDict) -> None:
    """Has the owner of each section refuse what the section cannot hold."""
    # Imported here: these bring in JAX, which a command needs only once its flags are in order.
    from staleness_grpo.objective.corrections.settings import check_correction
    from staleness_grpo.objective.surrogate import SurrogateConfig
    from staleness_grpo.policy.configured import check_fields
    from staleness_grpo.policy.sampler import check_sampler
    from staleness_grpo.staleness.schedule import check_lag
    from staleness_grpo.training.learner import check_optimizer
    from staleness_grpo.training.rewards import check_rewards
    from staleness_grpo.training.warm_start import check_warm_start

    owners: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "lag": check_lag,
        "surrogate": lambda fields: SurrogateConfig(**fields),
        "optimizer": check_optimizer,
        "policy": check_fields,
        "warm_start": check_warm_start,
        "sampler": check_sampler,
        "rewards": check_rewards,
    }
    for section, check in owners.items():
        _refuse_here(config, section, partial(check, config[section].to_dict()))
    surrogate = default_config().surrogate
    _refuse_here(
        config, "", lambda: check_correction(config.correction, config.surrogate, surrogate)
    )


def _check_batch(config: ConfigDict) -> None:
    """Refuses batches that do not divide, lags that cannot occur, and seeds that are too large."""
    updates, max_lag = config.updates_per_batch, config.lag.max_lag
    require(config.seed <= LARGEST_SEED, "seed", f"give a number <= {LARGEST_SEED}")
    require(
        config.num_prompts % updates == 0,
        "updates_per_batch",
        "the batch does not divide into minibatches: "
        f"give a divisor of num_prompts={config.num_prompts}",
    )
    require(
        max_lag >= updates - 1,
        "lag.max_lag",
        f"the last of updates_per_batch={updates} learns from rollouts {updates - 1} updates old: "
        "give at least that",
    )
    hint = f"give a lag below the run's steps={config.steps}"
    require(max_lag < config.steps, "lag.max_lag", hint)


def _check_comparisons(config: ConfigDict) -> None:
    """Refuses comparisons with fresh rollouts that the batch cannot be cut for."""
    from staleness_grpo.bias.paired import FEWEST_BLOCKS

    blocks = config.metrics.paired_blocks
    require(
        blocks == 0 or (blocks >= FEWEST_BLOCKS and config.num_prompts % blocks == 0),
        "metrics.paired_blocks",
        f"give 0, or a divisor of num_prompts={config.num_prompts} that is {FEWEST_BLOCKS} or more",
    )
    if not config.metrics.paired_every:
        return
    hint = f"metrics.paired_every compares groups: give {FEWEST_BLOCKS} or more"
    require(config.num_prompts >= FEWEST_BLOCKS, "num_prompts", hint)
    updates = config.updates_per_batch
    hint = f"it compares a batch as a whole: give 0, or updates_per_batch=1 in place of {updates}"
    require(updates == 1, "metrics.paired_every", hint)


def _check_trace(config: ConfigDict) -> None:
    """Refuses a trace that is not replayed, cannot be read, or does not cover the run."""
    from staleness_grpo.staleness import trace

    lag = config.lag
    if lag.schedule != "trace":
        hint = f"lag.schedule={lag.schedule} does not read it: leave it out"
        require(lag.trace is None, "lag.trace", hint)
        return
    hint = "lag.schedule=trace takes one update per batch: give 1"
    require(config.updates_per_batch == 1, "updates_per_batch", hint)
    size = dict(num_steps=config.steps, num_groups=config.num_prompts, max_lag=lag.max_lag)
    try:
        trace.read(lag.trace, **size)
    except (OSError, trace.TraceError) as error:
        raise FieldError("lag.trace", f"{error}: fix the file, or give another") from error


def _check_mesh(config: ConfigDict, num_devices: int) -> None:
    """Refuses a mesh that the devices cannot make, or over which the batch does not divide."""
    mesh = config.mesh
    needed = mesh.data * mesh.fsdp * mesh.tensor
    largest = max(("data", "fsdp", "tensor"), key=lambda axis: mesh[axis])
    require(
        needed <= num_devices,
        f"mesh.{largest}",
        f"data * fsdp * tensor is {needed}: make it at most {num_devices}, the devices there are",
    )
    _check_processes(config, needed, f"mesh.{largest}", num_devices)
    shards, minibatch = mesh.data * mesh.fsdp, config.num_prompts // config.updates_per_batch
    require(
        minibatch % shards == 0,
        "num_prompts",
        "a minibatch does not divide over the mesh: give a multiple of "
        f"updates_per_batch * mesh.data * mesh.fsdp = {config.updates_per_batch * shards}",
    )
    microbatch = config.microbatch_prompts
    require(
        microbatch == 0 or (minibatch % microbatch == microbatch % shards == 0),
        "microbatch_prompts",
        "give 0, or a divisor of num_prompts / updates_per_batch and a multiple of "
        f"mesh.data * mesh.fsdp = {shards}",
    )
    block = config.num_prompts // (config.metrics.paired_blocks or config.num_prompts)
    require(
        config.metrics.paired_every == 0 or block % shards == 0,
        "metrics.paired_blocks",
        f"a block has {block} groups, which do not divide over the mesh: make "
        f"num_prompts={config.num_prompts} / metrics.paired_blocks a multiple of "
        f"mesh.data * mesh.fsdp = {shards}",
    )


def _check_processes(config: ConfigDict, needed: int, field: str, num_devices: int) -> None:
    """Refuses a mesh that leaves devices of several processes out, or splits a response."""
    import jax

    count = jax.process_count()
    if count == 1:
        return
    hint = f"{count} processes have {num_devices} devices: make data * fsdp * tensor as many"
    require(needed == num_devices, field, hint)
    local = jax.local_device_count()
    hint = f"give a divisor of the {local} devices of a process: no response may be split over two"
    require(local % config.mesh.tensor == 0, "mesh.tensor", hint)


def _check_saving(config: ConfigDict) -> None:
    """Refuses at the start what would keep the policy from being written at the end."""
    if not config.save_policy:
        return
    both = config.policy.qkv_bias and config.policy.qk_norm
    hint = (
        "no known architecture has policy.qkv_bias and policy.qk_norm: give False, or one of them"
    )
    require(not both, "save_policy", hint)
    installed = importlib.util.find_spec("safetensors") is not None
    require(installed, "save_policy", "pip install safetensors, of the extra hf, or give False")
