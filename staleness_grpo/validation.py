"""What a config must be to be run: contradictions are refused by flag name, in one line with a mend."""

import importlib.util
import math

from ml_collections import ConfigDict

from staleness_grpo.config import ConfigError, default, field, of_type
from staleness_grpo.objective.corrections.settings import contradictions

# Lower bounds, included. Everything here is an int.
_AT_LEAST = {
    "seed": 0,
    "steps": 1,
    "num_prompts": 1,
    "group_size": 2,  # a response is judged against the others of its group
    "updates_per_batch": 1,
    "microbatch_prompts": 0,
    "eval_every": 0,
    "policy.num_layers": 1,
    "policy.d_model": 1,
    "policy.num_heads": 1,
    "policy.num_kv_heads": 1,
    "policy.head_dim": 2,
    "policy.d_ff": 1,
    "policy.vocab_chunks": 1,
    "warm_start.steps": 0,
    "warm_start.batch_size": 1,
    "warm_start.seed": 0,
    "rewards.num_workers": 1,
    "metrics.paired_every": 0,
    "metrics.paired_blocks": 0,
    "lag.max_lag": 0,
    "optimizer.warmup_steps": 0,
    "checkpoint.save_every": 1,
    "checkpoint.keep": 1,
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
}
_POSITIVE = (
    "policy.rope_theta",
    "policy.norm_epsilon",
    "warm_start.learning_rate",
    "sampler.temperature",
    "rewards.time_limit",
    "surrogate.clip_low",
    "surrogate.clip_high",
    "surrogate.std_epsilon",
    "optimizer.learning_rate",
    "optimizer.epsilon",
)
_NOT_NEGATIVE = ("optimizer.max_grad_norm", "optimizer.weight_decay")
_BELOW_ONE = ("optimizer.b1", "optimizer.b2")  # and not negative
_FRACTIONS = ("warm_start.fraction_correct", "warm_start.fraction_no_carry", "warm_start.fraction_difference")
# No float16: gradients of single tokens, about 1 / (tokens of the batch), are below its smallest normal number. And
# parameters of 8 bits would not move: an Adam step of 1e-6 rounds to nothing, and so does a moment's decay by 0.999.
_DTYPES = ("bfloat16", "float32", "float64")
_PARAM_DTYPES = ("float32", "float64")
_LARGEST_SEED = 2**31 - 1


def validate(config: ConfigDict, num_devices: int, platform: str | None = None) -> None:
    """Refuses what cannot be run, or would not mean what it says.

    Args:
      config: a config with at least the fields of `default()`; the fields of `task` are the task's own.
      num_devices: devices that a mesh can be made of.
      platform: that of the devices, by JAX's name for it; by default of those that JAX runs on.

    Raises:
      ConfigError: naming the first field found wrong.
    """
    validate_without_task(config, num_devices, platform)
    _check_task(config)


def validate_without_task(config: ConfigDict, num_devices: int, platform: str | None = None) -> None:
    """`validate`, but for what depends on the task's tokens: for programs that have tokens of their own."""
    _check_types(config, default())
    _check_ranges(config)
    _check_names(config)
    _check_combinations(config)
    _check_trace(config)
    _check_correction(config)
    _check_mesh(config, num_devices)
    _check_attention(config, platform)
    _check_checkpoint(config)
    _check_saving(config)


def _require(condition: bool, config: ConfigDict, flag: str, mend: str) -> None:
    if not condition:
        raise ConfigError(flag, field(config, flag), mend)


def _check_types(config: ConfigDict, expected: ConfigDict, prefix: str = "") -> None:
    """Every field is there, of the default's type; an int will do for a float. No float is NaN or infinite."""
    for name, default_value in expected.items():
        flag = prefix + name
        if name not in config:
            raise ConfigError(flag, None, f"the field is missing; the default is {default_value}")
        value = config[name]
        if flag == "task":
            continue
        if isinstance(default_value, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise ConfigError(flag, value, f"give fields: {', '.join(default_value)}")
            _check_types(value, default_value, f"{flag}.")
            continue
        if default_value is None and value is None:
            continue  # unset, as by default
        kind = expected.get_type(name)
        accepted = (float, int) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(flag, value, f"give {of_type(kind, default_value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(flag, value, "give a finite number")


def _check_ranges(config: ConfigDict) -> None:
    for flag, bound in _AT_LEAST.items():
        _require(field(config, flag) >= bound, config, flag, f"give a number >= {bound}")
    for flag in _POSITIVE:
        _require(field(config, flag) > 0, config, flag, "give a number > 0")
    for flag in _NOT_NEGATIVE:
        _require(field(config, flag) >= 0, config, flag, "give a number >= 0")
    for flag in _BELOW_ONE:
        _require(0 <= field(config, flag) < 1, config, flag, "give a number in [0, 1)")
    for flag in _FRACTIONS:
        _require(0 <= field(config, flag) <= 1, config, flag, "give a fraction in [0, 1]")
    for flag in ("seed", "warm_start.seed"):
        _require(field(config, flag) <= _LARGEST_SEED, config, flag, f"give a number <= {_LARGEST_SEED}")
    _require(config.surrogate.clip_low <= 1, config, "surrogate.clip_low", "give a number <= 1: ratios are >= 0")


def _check_names(config: ConfigDict) -> None:
    # Imported here: these bring in JAX, which a command needs only once its flags and folders are in order.
    from staleness_grpo.learner import OPTIMIZERS
    from staleness_grpo.objective.corrections.registry import CORRECTIONS
    from staleness_grpo.objective.surrogate import LENGTH_NORMALIZATIONS
    from staleness_grpo.objective.update_corrections import UPDATE_CORRECTIONS
    from staleness_grpo.policy.transformer import ATTENTION, REMAT
    from staleness_grpo.staleness.schedule import SCHEDULES, STARTS

    choices = {
        "lag.schedule": (*SCHEDULES, "trace"),
        "lag.start": STARTS,
        "surrogate.length_normalization": LENGTH_NORMALIZATIONS,
        "correction.name": tuple(CORRECTIONS),
        "correction.update_rule": (None, *UPDATE_CORRECTIONS),
        "optimizer.name": OPTIMIZERS,
        "policy.dtype": _DTYPES,
        "policy.param_dtype": _PARAM_DTYPES,
        "policy.attention": ATTENTION,
        "policy.remat": REMAT,
    }
    for flag, names in choices.items():
        _require(field(config, flag) in names, config, flag, f"choose one of {', '.join(filter(None, names))}")


def _check_combinations(config: ConfigDict) -> None:
    from staleness_grpo.bias.paired import FEWEST_BLOCKS

    updates = config.updates_per_batch
    _require(
        config.num_prompts % updates == 0,
        config,
        "updates_per_batch",
        f"the batch does not divide into minibatches: give a divisor of num_prompts={config.num_prompts}",
    )
    _require(
        config.lag.max_lag >= updates - 1,
        config,
        "lag.max_lag",
        f"the last of updates_per_batch={updates} learns from rollouts {updates - 1} updates old: give at least that",
    )
    _require(
        config.lag.max_lag < config.steps, config, "lag.max_lag", f"give a lag below the run's steps={config.steps}"
    )
    _require(
        config.optimizer.weight_decay == 0 or config.optimizer.name == "adamw",
        config,
        "optimizer.weight_decay",
        f"optimizer.name={config.optimizer.name} ignores it: give 0, or optimizer.name=adamw",
    )
    blocks = config.metrics.paired_blocks
    _require(
        blocks == 0 or (blocks >= FEWEST_BLOCKS and config.num_prompts % blocks == 0),
        config,
        "metrics.paired_blocks",
        f"give 0, or a divisor of num_prompts={config.num_prompts} that is {FEWEST_BLOCKS} or more",
    )
    _require(
        config.metrics.paired_every == 0 or config.num_prompts >= FEWEST_BLOCKS,
        config,
        "num_prompts",
        f"too few groups to compare, with metrics.paired_every: give {FEWEST_BLOCKS} or more",
    )
    _require(
        config.metrics.paired_every == 0 or updates == 1,
        config,
        "metrics.paired_every",
        f"a batch is compared as a whole: give 0, or updates_per_batch=1 in place of {updates}",
    )
    total = sum(field(config, flag) for flag in _FRACTIONS)
    _require(
        abs(total - 1) < 1e-6,
        config,
        _FRACTIONS[0],
        f"with {_FRACTIONS[1]} and {_FRACTIONS[2]} it sums to {total:g}: make that 1",
    )
    policy = config.policy
    _require(policy.head_dim % 2 == 0, config, "policy.head_dim", "rotary positions turn pairs: give an even number")
    _require(
        policy.num_heads % policy.num_kv_heads == 0,
        config,
        "policy.num_heads",
        f"give a multiple of policy.num_kv_heads={policy.num_kv_heads}",
    )
    import jax

    for flag in ("policy.dtype", "policy.param_dtype"):
        _require(
            field(config, flag) != "float64" or jax.config.jax_enable_x64,
            config,
            flag,
            "set JAX_ENABLE_X64=1 in the environment, or give float32",
        )


def _check_trace(config: ConfigDict) -> None:
    """A trace is given when it is replayed, can be read, and covers the run within max_lag."""
    from staleness_grpo.staleness import trace

    lag, replays = config.lag, config.lag.schedule == "trace"
    _require(replays or lag.trace is None, config, "lag.trace", f"lag.schedule={lag.schedule} does not read it")
    if not replays:
        return
    _require(lag.trace is not None, config, "lag.trace", "lag.schedule=trace replays a file: name it")
    mend = "the file says the start too: leave it at initial_policy"
    _require(lag.start == "initial_policy", config, "lag.start", mend)
    _require(config.updates_per_batch == 1, config, "updates_per_batch", "lag.schedule=trace takes one update: give 1")
    size = dict(num_steps=config.steps, num_groups=config.num_prompts, max_lag=lag.max_lag)
    try:
        trace.read(lag.trace, **size)
    except (OSError, trace.TraceError) as error:
        raise ConfigError("lag.trace", lag.trace, f"{error}: mend the file, or give another") from error


def _check_correction(config: ConfigDict) -> None:
    for flag, mend in contradictions(config.correction, config.surrogate, default().surrogate):
        raise ConfigError(flag, field(config, flag), mend)


def _check_attention(config: ConfigDict, platform: str | None) -> None:
    if config.policy.attention != "splash":
        return
    import jax

    from staleness_grpo.policy import splash

    platform = platform or jax.default_backend()
    mend = f"this kernel is for TPUs, and the devices are of platform {platform}: choose xla"
    _require(platform == "tpu", config, "policy.attention", mend)
    mend = f"policy.attention=splash computes in {' or '.join(splash.DTYPES)}: choose one, or policy.attention=xla"
    _require(config.policy.dtype in splash.DTYPES, config, "policy.dtype", mend)


def _check_mesh(config: ConfigDict, num_devices: int) -> None:
    mesh = config.mesh
    needed = mesh.data * mesh.fsdp * mesh.tensor
    largest = max(("data", "fsdp", "tensor"), key=lambda axis: mesh[axis])
    _require(
        needed <= num_devices,
        config,
        f"mesh.{largest}",
        f"data * fsdp * tensor is {needed}: make that at most {num_devices}, the devices there are",
    )
    import jax

    if jax.process_count() > 1:
        mend = f"{jax.process_count()} processes have {num_devices} devices: make data * fsdp * tensor as many"
        _require(needed == num_devices, config, f"mesh.{largest}", mend)
        local = jax.local_device_count()
        mend = f"give a divisor of the {local} devices of a process, so that no response is split over two"
        _require(local % mesh.tensor == 0, config, "mesh.tensor", mend)
    shards = mesh.data * mesh.fsdp
    _require(
        config.num_prompts // config.updates_per_batch % shards == 0,
        config,
        "num_prompts",
        f"a minibatch does not divide over the mesh: give a multiple of updates_per_batch * mesh.data * mesh.fsdp = "
        f"{config.updates_per_batch * shards}",
    )
    microbatch = config.microbatch_prompts
    _require(
        microbatch == 0 or (config.num_prompts // config.updates_per_batch % microbatch == microbatch % shards == 0),
        config,
        "microbatch_prompts",
        f"give 0, or a divisor of num_prompts / updates_per_batch and a multiple of mesh.data * mesh.fsdp = {shards}",
    )
    block = config.num_prompts // (config.metrics.paired_blocks or config.num_prompts)
    _require(
        config.metrics.paired_every == 0 or block % shards == 0,
        config,
        "metrics.paired_blocks",
        f"a block has {block} of the groups, which do not divide over the mesh: make num_prompts={config.num_prompts} "
        f"/ metrics.paired_blocks a multiple of mesh.data * mesh.fsdp = {shards}",
    )
    if config.policy.checkpoint is None:
        for flag in ("policy.num_heads", "policy.num_kv_heads"):
            divides = field(config, flag) % mesh.tensor == 0
            _require(divides, config, flag, f"give a multiple of mesh.tensor={mesh.tensor}")


def _check_checkpoint(config: ConfigDict) -> None:
    """The checkpoint can be loaded and sharded, and no flag asks for another shape than it has."""
    checkpoint = config.policy.checkpoint
    if checkpoint is None:
        return
    from staleness_grpo.policy import huggingface
    from staleness_grpo.policy.configured import RUN_FIELDS, make_policy

    try:
        architecture = make_policy({**config.policy, "vocab_chunks": 1}, 0).config
        huggingface.check_tensors(checkpoint, architecture)
    except ValueError as error:
        raise ConfigError("policy.checkpoint", checkpoint, str(error)) from error
    except ModuleNotFoundError as error:
        raise ConfigError("policy.checkpoint", checkpoint, f"pip install {error.name}, of the extra hf") from error
    for name, standard in default().policy.items():
        flag, value = f"policy.{name}", config.policy[name]
        if name not in ("checkpoint", *RUN_FIELDS) and value != standard:
            given = getattr(architecture, name)
            _require(value == given, config, flag, f"policy.checkpoint has {given}: leave the flag out")
    divides = architecture.vocab_size % config.policy.vocab_chunks == 0
    mend = f"give a divisor of the checkpoint's vocabulary {architecture.vocab_size}"
    _require(divides, config, "policy.vocab_chunks", mend)
    heads, tensor = architecture.num_kv_heads, config.mesh.tensor
    _require(heads % tensor == 0, config, "mesh.tensor", f"give a divisor of the checkpoint's {heads} key/value heads")


def _check_saving(config: ConfigDict) -> None:
    """What writing the policy needs is there now, and not missed at the end of the run."""
    both = config.policy.qkv_bias and config.policy.qk_norm
    mend = "no known architecture has policy.qkv_bias and policy.qk_norm: give False, or one of them"
    _require(not (config.save_policy and both), config, "save_policy", mend)
    installed = importlib.util.find_spec("safetensors") is not None
    mend = "pip install safetensors, of the extra hf, or give False"
    _require(installed or not config.save_policy, config, "save_policy", mend)


def _check_task(config: ConfigDict) -> None:
    from staleness_grpo.policy.huggingface_config import CheckpointError, max_positions
    from staleness_grpo.tasks import TEXT_TASKS, TaskError, another_config, make_task

    if not isinstance(config.task, ConfigDict) or "name" not in config.task:
        raise ConfigError("task", config.task, "give fields, among them name")
    try:
        task = make_task(config.task, config.policy.checkpoint)
    except TaskError as error:
        raise ConfigError(f"task.{error.field}", config.task.get(error.field), error.mend) from error
    except CheckpointError as error:
        raise ConfigError("policy.checkpoint", config.policy.checkpoint, str(error)) from error
    except ModuleNotFoundError as error:
        raise ConfigError("task.name", config.task.name, f"pip install {error.name}, of the extra hf") from error
    except (TypeError, ValueError) as error:  # the task's own words on its own fields
        raise ConfigError("task", dict(config.task), str(error)) from error
    if config.policy.checkpoint is not None:
        from staleness_grpo.policy.configured import make_policy

        known = make_policy(config.policy, task.vocab_size).config.vocab_size
        mend = f"the task has {task.vocab_size} tokens, the checkpoint {known}: give one with as many"
        _require(task.vocab_size <= known, config, "policy.checkpoint", mend)
        text = config.task.name in TEXT_TASKS
        mend = f"its tokens are its own {task.vocab_size}, and not the checkpoint's {known}: {another_config('jsonl')}"
        _require(text or task.vocab_size == known, config, "task.name", mend)
        ends = task.end_token if isinstance(task.end_token, tuple) else (task.end_token or 0,)
        mend = f"the stop and pad tokens {ends}, {task.pad_token} are not all among its {known}: mend generation_config"
        _require(all(0 <= token < known for token in (*ends, task.pad_token)), config, "policy.checkpoint", mend)
        prompt, response = task.prompt_length, task.max_response_length
        positions = max_positions(config.policy.checkpoint)
        if positions is not None and prompt + response > positions:
            mend = f"with a prompt's {prompt} tokens it is beyond the checkpoint's {positions} positions"
            raise ConfigError("task.max_response_length", response, f"{mend}: make both together at most that")
        return
    vocab_size, chunks = task.vocab_size, config.policy.vocab_chunks
    _require(vocab_size % chunks == 0, config, "policy.vocab_chunks", f"give a divisor of the vocabulary {vocab_size}")
    _require(
        config.warm_start.steps == 0 or hasattr(task, "corpus_batch"),
        config,
        "warm_start.steps",
        f"the task {config.task.name} has no corpus to start from: give 0",
    )
