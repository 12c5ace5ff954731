"""Checks that a config can be run, and that every field it sets has an effect.

A rule about one section is defined by the code that owns the section, and is called here. Rules
about several sections are defined here: batch and mesh, lag and length of the run, task and policy.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config, describe_type, field_value
from staleness_grpo.config.model_validation import check_policy, check_task
from staleness_grpo.errors import FieldError, counted, require, require_at_least, require_local

# Smallest values of the fields outside sections, and of the sections that only the training loop
# reads. All are whole numbers.
AT_LEAST = {
    "seed": 0,
    "steps": 1,
    "num_prompts": 1,
    "group_size": 2,  # a response is compared with the others of its group
    "updates_per_batch": 1,
    "microbatch_prompts": 0,
    "eval_every": 0,
    "save_policy_every": 0,
}
SECTIONS_AT_LEAST = {
    "metrics": {"paired_every": 0, "paired_blocks": 0, "samples_every": 0, "num_samples": 1},
    "checkpoint": {"save_every": 1, "keep": 1},
    "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
}
LARGEST_SEED = 2**31 - 1


def validate(
    config: ConfigDict, num_devices: int, platform: str | None = None, task: Any = None
) -> None:
    """Raises FieldError if a config cannot be run, or sets a field that would have no effect.

    Args:
      config: a config with at least the fields of `default_config()`. The section `task` may have
        other fields, which the task defines.
      num_devices: number of devices from which a mesh can be made.
      platform: JAX's name for the platform of the devices; None for the platform JAX runs on.
      task: a task that replaces the one that `config.task` names.

    Raises:
      FieldError: naming the first wrong field, with its value.
    """
    validate_without_task(config, num_devices, platform)
    _refuse_here(config, "", lambda: check_task(config, task))


@functools.cache
def _defaults() -> ConfigDict:
    """Returns the default config, to read. A sweep makes a thousand checks against it."""
    return default_config()


def validate_without_task(
    config: ConfigDict, num_devices: int, platform: str | None = None
) -> None:
    """Makes the checks of `validate`, except those of the task and its tokens.

    Programs that bring their own tokens use this function.
    """
    _check_types(config, _defaults())
    _refuse_here(config, "", lambda: require_at_least(config, AT_LEAST))
    for section, bounds in SECTIONS_AT_LEAST.items():
        _refuse_here(config, section, functools.partial(require_at_least, config[section], bounds))
    _check_sections(config)
    for check in (_check_batch, _check_comparisons, _check_samples, _check_trace, _check_saving):
        _refuse_here(config, "", functools.partial(check, config))
    _refuse_here(config, "", lambda: _check_mesh(config, num_devices))
    _refuse_here(config, "", lambda: check_policy(config, platform))


def _refuse_here(config: ConfigDict, section: str, check: Callable[[], None]) -> None:
    """Runs a check, and completes a FieldError with the section's name and the field's value."""
    try:
        check()
    except FieldError as error:
        located = error.below(section) if section else error
        raise located.with_value(lambda field: field_value(config, field)) from error


def _check_types(config: ConfigDict, expected: ConfigDict, prefix: str = "") -> None:
    """Refuses missing fields, values of a wrong type, and floats that are not finite.

    The type of the default value is the right one. A float field also accepts an int.
    """
    for name, default_value in expected.items():
        field = prefix + name
        if name not in config:
            hint = f"the field is missing: add it, its default is {default_value}"
            raise FieldError(field, hint, None)
        value = config[name]
        if field == "task":
            continue
        if isinstance(default_value, ConfigDict):
            if not isinstance(value, ConfigDict):
                hint = f"give a section with the fields {', '.join(default_value)}"
                raise FieldError(field, hint, value)
            _check_types(value, default_value, f"{field}.")
            continue
        if default_value is None and value is None:
            continue  # unset, as by default
        expected_type = expected.get_type(name)
        accepted = (float, int) if expected_type is float else expected_type
        is_wrong_bool = isinstance(value, bool) and expected_type is not bool
        if not isinstance(value, accepted) or is_wrong_bool:
            raise FieldError(field, f"give {describe_type(expected_type, default_value)}", value)
        if isinstance(value, float) and not math.isfinite(value):
            raise FieldError(field, "give a finite number", value)


def _check_sections(config: ConfigDict) -> None:
    """Runs the check of each section, which the section's owner defines."""
    # These modules import JAX, which is slow. Imported here, they do not delay a message about a
    # wrong flag.
    from staleness_grpo.objective.corrections.settings import check_correction
    from staleness_grpo.objective.reference_kl import check_reference
    from staleness_grpo.objective.surrogate import SurrogateConfig
    from staleness_grpo.policy.configured import check_fields
    from staleness_grpo.policy.sampler import check_sampler
    from staleness_grpo.policy.truncation import check_chunks
    from staleness_grpo.runtime.sinks import check_sinks
    from staleness_grpo.staleness.schedule import check_lag
    from staleness_grpo.training.drift import check_drift
    from staleness_grpo.training.guard import check_guard
    from staleness_grpo.training.heldout import check_heldout
    from staleness_grpo.training.learner import check_optimizer
    from staleness_grpo.training.rewards import check_rewards
    from staleness_grpo.training.warm_start import check_warm_start

    section_checks: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "lag": check_lag,
        "surrogate": lambda fields: SurrogateConfig(**fields),
        "reference": check_reference,
        "heldout": check_heldout,
        "optimizer": check_optimizer,
        "metrics": check_drift,
        "guard": lambda fields: check_guard(fields, _defaults().guard),
        "policy": check_fields,
        "warm_start": check_warm_start,
        "sampler": check_sampler,
        "rewards": check_rewards,
        "sinks": check_sinks,
    }
    for section, check in section_checks.items():
        _refuse_here(config, section, functools.partial(check, config[section].to_dict()))
    surrogate = _defaults().surrogate
    _refuse_here(
        config, "", lambda: check_correction(config.correction, config.surrogate, surrogate)
    )
    _refuse_here(config, "", functools.partial(check_chunks, config))
    _refuse_here(config, "", functools.partial(_check_entropy_bonus, config))


def _check_entropy_bonus(config: ConfigDict) -> None:
    """Refuses a bonus for an entropy that has no gradient."""
    from staleness_grpo.policy.truncation import learner_truncates

    bonus = config.entropy_bonus
    require(bonus >= 0, "entropy_bonus", "give a number >= 0")
    hint = "it needs all logits of a token at once: give 0, or policy.vocab_chunks=1"
    require(bonus == 0 or config.policy.vocab_chunks == 1, "entropy_bonus", hint)
    hint = "a truncated entropy has no gradient: give 0, or sampler.learner_distribution=full"
    require(bonus == 0 or not learner_truncates(config.sampler), "entropy_bonus", hint)


def _check_batch(config: ConfigDict) -> None:
    """Refuses seeds that are too large, batches that do not divide, and impossible lags."""
    updates, max_lag = config.updates_per_batch, config.lag.max_lag
    require(config.seed <= LARGEST_SEED, "seed", f"give a number <= {LARGEST_SEED}")
    require(
        config.num_prompts % updates == 0,
        "updates_per_batch",
        "the batch cannot be cut into equal minibatches: "
        f"give a divisor of num_prompts={config.num_prompts}",
    )
    require(
        max_lag >= updates - 1,
        "lag.max_lag",
        f"with updates_per_batch={updates}, the last update learns from rollouts that are "
        f"{updates - 1} updates old: give at least {updates - 1}",
    )
    hint = f"give a lag below the run's steps={config.steps}"
    require(max_lag < config.steps, "lag.max_lag", hint)


def _check_comparisons(config: ConfigDict) -> None:
    """Refuses comparisons with fresh rollouts if the batch cannot be cut into enough blocks."""
    from staleness_grpo.bias.paired import FEWEST_BLOCKS

    blocks = config.metrics.paired_blocks
    require(
        blocks == 0 or (blocks >= FEWEST_BLOCKS and config.num_prompts % blocks == 0),
        "metrics.paired_blocks",
        f"give 0, or a divisor of num_prompts={config.num_prompts} that is {FEWEST_BLOCKS} or more",
    )
    if not config.metrics.paired_every:
        return
    hint = f"metrics.paired_every needs several groups: give {FEWEST_BLOCKS} or more"
    require(config.num_prompts >= FEWEST_BLOCKS, "num_prompts", hint)
    updates = config.updates_per_batch
    hint = f"comparisons need whole batches: give 0, or updates_per_batch=1 in place of {updates}"
    require(updates == 1, "metrics.paired_every", hint)
    # Another batch shape rounds otherwise, and the bias at lag 0 would no longer be exactly 0.
    hint = "comparisons sample whole batches: give metrics.paired_every=0, or leave it unset"
    require(config.sampler.batch_prompts is None, "sampler.batch_prompts", hint)


def _check_samples(config: ConfigDict) -> None:
    """Refuses more samples of a step than the step has groups."""
    num_groups = config.num_prompts // config.updates_per_batch
    require(
        config.metrics.samples_every == 0 or config.metrics.num_samples <= num_groups,
        "metrics.num_samples",
        f"a learner step has {num_groups} groups: give at most {num_groups}",
    )


def _check_trace(config: ConfigDict) -> None:
    """Refuses a trace file that is unused, unreadable, or too short for the run."""
    from staleness_grpo.staleness import trace
    from staleness_grpo.staleness.admission import CONTINUE, FINISH, IN_FLIGHT, RECOMPUTE

    lag = config.lag
    if lag.schedule != "trace":
        hint = f"lag.schedule={lag.schedule} does not read a trace: leave the flag out"
        require(lag.trace is None, "lag.trace", hint)
        return
    hint = "lag.schedule=trace needs one update per batch: give 1"
    require(config.updates_per_batch == 1, "updates_per_batch", hint)
    in_flight = config.get("asynchronous", {}).get("in_flight", FINISH)
    hint = f"choose one of {', '.join(IN_FLIGHT)}"
    require(in_flight in IN_FLIGHT, "asynchronous.in_flight", hint, in_flight)
    size = dict(num_steps=config.steps, num_groups=config.num_prompts, max_lag=lag.max_lag)
    try:
        require_local(lag.trace, "lag.trace")
        lags_IxN = trace.read(lag.trace, **size)
        at_once = config.sampler.batch_prompts or config.num_prompts
        changes = trace.read_changes(lag.trace, lags_IxN, at_once)
        if in_flight != FINISH:
            trace.check_calls(lags_IxN, at_once)
    except (OSError, trace.TraceError) as error:
        raise FieldError("lag.trace", f"{error}: fix the file, or give another file") from error
    hint = (
        "weights change within its groups: give the flags of the run that made it, among them "
        f"asynchronous.in_flight={CONTINUE} or {RECOMPUTE}"
    )
    require(not changes or in_flight != FINISH, "lag.trace", hint)


def _check_mesh(config: ConfigDict, num_devices: int) -> None:
    """Refuses a mesh with too many devices, or one that cannot split the batch evenly."""
    mesh = config.mesh
    needed = mesh.data * mesh.fsdp * mesh.tensor
    largest = max(("data", "fsdp", "tensor"), key=lambda axis: mesh[axis])
    require(
        needed <= num_devices,
        f"mesh.{largest}",
        f"data * fsdp * tensor is {needed}, and this machine has {counted(num_devices, 'device')}: "
        f"make the product at most {num_devices}",
    )
    _check_processes(config, needed, f"mesh.{largest}", num_devices)
    shards, minibatch = mesh.data * mesh.fsdp, config.num_prompts // config.updates_per_batch
    require(
        minibatch % shards == 0,
        "num_prompts",
        "the mesh cannot split a minibatch evenly: give a multiple of "
        f"updates_per_batch * mesh.data * mesh.fsdp = {config.updates_per_batch * shards}",
    )
    at_once = config.sampler.batch_prompts
    require(
        at_once is None or (at_once > 0 and config.num_prompts % at_once == at_once % shards == 0),
        "sampler.batch_prompts",
        f"leave it unset, or give a divisor of num_prompts={config.num_prompts} that is a multiple "
        f"of mesh.data * mesh.fsdp = {shards}",
    )
    _check_sampling_devices(config, num_devices)
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
        f"the mesh cannot split a block of {block} groups evenly: make "
        f"num_prompts={config.num_prompts} / metrics.paired_blocks a multiple of "
        f"mesh.data * mesh.fsdp = {shards}",
    )


def _check_sampling_devices(config: ConfigDict, num_devices: int) -> None:
    """Refuses devices of the sampler that are not there, or cannot split a batch evenly."""
    import jax

    count, at_once = config.sampler.devices, config.sampler.batch_prompts or config.num_prompts
    if count is None:
        return
    hint = f"leave it unset, or give a divisor of the {at_once} groups that are sampled at once"
    require(count >= 1 and at_once % count == 0, "sampler.devices", hint)
    hint = f"this machine has {counted(num_devices, 'device')}: give at most {num_devices}"
    require(count <= num_devices, "sampler.devices", hint)
    hint = "several processes sample on their mesh: leave it unset"
    require(jax.process_count() == 1, "sampler.devices", hint)


def _check_processes(config: ConfigDict, needed: int, field: str, num_devices: int) -> None:
    """Refuses a mesh of several processes that omits devices, or splits a response over two."""
    import jax

    count = jax.process_count()
    if count == 1:
        return
    hint = f"{count} processes must use all {num_devices} devices: make data * fsdp * tensor equal"
    require(needed == num_devices, field, hint)
    local = jax.local_device_count()
    hint = f"two processes cannot share a response: give a divisor of a process's {local} devices"
    require(local % config.mesh.tensor == 0, "mesh.tensor", hint)


def _check_saving(config: ConfigDict) -> None:
    """Refuses at the start a policy that could not be saved at the end."""
    if not config.save_policy and not config.save_policy_every:
        return
    field = "save_policy" if config.save_policy else "save_policy_every"
    hint = "a policy of one's own has no model folder: leave it out, its checkpoints are kept"
    require(config.policy.name is None, field, hint)
    both = config.policy.qkv_bias and config.policy.qk_norm
    hint = (
        "no known architecture has both policy.qkv_bias and policy.qk_norm: "
        "give False, or set only one of the two"
    )
    require(not both, field, hint)
    installed = importlib.util.find_spec("safetensors") is not None
    hint = "safetensors is not installed: pip install safetensors (or the extra hf), or give False"
    require(installed, field, hint)
