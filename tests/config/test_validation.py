"""Each contradiction is refused in one line that names the flag, the value and a hint."""

import re
import sys

import jax
import pytest
from ml_collections import ConfigDict

from staleness_grpo.config import validation
from staleness_grpo.config.defaults import default_config, field_value
from staleness_grpo.errors import FieldError, FlagError

ENUMERABLE = ConfigDict(dict(name="enumerable", vocab_size=3, max_response_length=2))


def refusal(overrides, num_devices=1):
    """Returns the line with which the default config with these overrides is refused."""
    config = default_config()
    for flag, value in overrides.items():
        *sections, name = flag.split(".")
        section = field_value(config, ".".join(sections)) if sections else config
        section.unlock()
        with section.ignore_type():
            section[name] = value
    with pytest.raises(FieldError) as error:
        validation.validate(config, num_devices)
    return str(FlagError.of_field(error.value))


@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_default_is_valid(num_devices):
    validation.validate(default_config(), num_devices)


@pytest.mark.parametrize(
    "overrides",
    [
        {"lag.max_lag": 299, "steps": 300},
        {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1, "optimizer.decay_norms": False},
        {"reference.kl": 0.1, "reference.estimator": "k2"},
        {"guard.mode": "warn", "guard.level": 2},
        {"guard.mode": "scale", "guard.level": 1e-3, "guard.factor": 0.9},
        {"surrogate.clip_low": 1.0, "surrogate.clip_high": 3},
        {"correction.name": "token_tis", "correction.cap": 5, "surrogate.clip_low": 0.1},
        {"correction.name": "gspo", "correction.clip_low": 0.2, "correction.update_rule": "gac"},
        {"correction.name": "clip_higher", "surrogate.length_normalization": "tokens"},
        {"task": ENUMERABLE, "warm_start.steps": 0},
        {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
        {"metrics.paired_every": 1, "metrics.paired_blocks": 16, "mesh.fsdp": 2, "mesh.tensor": 4},
    ],
)
def test_unusual_but_sound_configs_are_accepted(overrides):
    config = default_config()
    config.update_from_flattened_dict(
        {flag: value for flag, value in overrides.items() if flag != "task"}
    )
    config.task = overrides.get("task", config.task)
    validation.validate(config, num_devices=8)


AT_LEAST = {
    "seed": 0,
    "steps": 1,
    "num_prompts": 1,
    "group_size": 2,
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
    "metrics.samples_every": 0,
    "metrics.num_samples": 1,
    "lag.max_lag": 0,
    "optimizer.warmup_steps": 0,
    "checkpoint.save_every": 1,
    "checkpoint.keep": 1,
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
}
POSITIVE = (
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
    "guard.level",
)
NOT_NEGATIVE = (
    "optimizer.max_grad_norm",
    "optimizer.weight_decay",
    "optimizer.b1",
    "optimizer.b2",
    "warm_start.fraction_correct",
    "warm_start.fraction_no_carry",
    "warm_start.fraction_difference",
)
BELOW_BOUND = [(field, bound - 1) for field, bound in AT_LEAST.items()]
NOT_POSITIVE = [(field, value) for field in POSITIVE for value in (0.0, -1.0)]
NEGATIVE = [(field, -0.5) for field in NOT_NEGATIVE]
UNKNOWN = [
    (flag, "telepathy")
    for flag in (
        "policy.attention",
        "lag.schedule",
        "lag.start",
        "surrogate.length_normalization",
        "correction.name",
        "correction.update_rule",
        "optimizer.name",
        "guard.mode",
        "policy.dtype",
        "policy.param_dtype",
        "task.name",
    )
]
WRONG_TYPE = [
    ("steps", 1.5),
    ("steps", "many"),
    ("steps", True),
    ("surrogate.normalize_std", 1),
    ("optimizer.learning_rate", "fast"),
    ("optimizer.name", 3),
    ("lag", 3),
    ("task", "arithmetic"),
    ("correction.cap", "high"),
]
NOT_FINITE = [
    ("optimizer.learning_rate", float("nan")),
    ("optimizer.learning_rate", float("inf")),
    ("surrogate.clip_high", float("inf")),
    ("optimizer.max_grad_norm", float("nan")),
    ("guard.level", float("inf")),
    ("warm_start.fraction_correct", float("nan")),
]
OUT_OF_RANGE = [
    ("lag.max_lag", 300),  # the default run has 300 steps
    ("updates_per_batch", 0),
    ("updates_per_batch", 3),  # of 64 prompts
    ("microbatch_prompts", 3),
    ("policy.vocab_chunks", 5),  # of 14 tokens
    ("lag.max_lag", 1000),
    ("surrogate.clip_low", 1.1),
    ("optimizer.b1", 1.0),
    ("optimizer.b2", 1.5),
    ("optimizer.weight_decay", 0.1),  # adam ignores it
    ("optimizer.decay_norms", False),  # adam has no weight decay
    ("guard.factor", 1.0),
    ("guard.factor", 0.0),
    ("warm_start.fraction_correct", 0.5),  # 1.2 in all
    ("warm_start.fraction_no_carry", 1.5),
    ("policy.head_dim", 7),
    ("policy.num_kv_heads", 3),  # of 4 heads
    ("policy.dtype", "float64"),  # without x64
    ("seed", 2**31),
    ("mesh.tensor", 2),  # 1 device
    ("sampler.devices", 2),
    ("sampler.devices", -1),
    ("correction.cap", -1.0),
    ("correction.quantile", 1.5),
    ("correction.tau_positive", 0.0),
    ("correction.cap", 2.0),  # grpo_clip has no cap
    ("correction.ess_power", 1.0),  # no correction of the update is chosen
]


@pytest.mark.parametrize(
    ("flag", "value"),
    BELOW_BOUND + NOT_POSITIVE + NEGATIVE + UNKNOWN + WRONG_TYPE + NOT_FINITE + OUT_OF_RANGE,
)
def test_bad_values_are_refused_by_flag_name(flag, value):
    message = refusal({flag: value})
    assert message.startswith(f"--config.{flag}={value}: ")
    assert "\n" not in message
    assert len(message) > len(f"--config.{flag}={value}: ") + 5  # and says what to do


@pytest.mark.parametrize(
    ("overrides", "named", "hint"),
    [
        ({"num_prompts": 6, "mesh.data": 2, "mesh.fsdp": 2}, "num_prompts=6", "multiple of .* = 4"),
        ({"mesh.data": 16}, "mesh.data=16", "at most 8"),
        (
            {"metrics.paired_every": 1, "mesh.fsdp": 2},
            "metrics.paired_blocks=0",
            "block of 1 groups .* multiple of .* = 2",
        ),
        (
            {"metrics.paired_every": 9, "metrics.paired_blocks": 16, "mesh.data": 8},
            "metrics.paired_blocks=16",
            "4 .*8",
        ),
        ({"metrics.paired_every": 1, "num_prompts": 2}, "num_prompts=2", "4 or more"),
        ({"metrics.paired_blocks": 2}, "metrics.paired_blocks=2", "4 or more"),
        (
            {"metrics.samples_every": 1, "metrics.num_samples": 9, "num_prompts": 8},
            "metrics.num_samples=9",
            "has 8 groups: give at most 8",
        ),
        ({"sinks.wandb_project": ""}, "sinks.wandb_project=", "give a name"),
        (
            {"num_prompts": 8, "updates_per_batch": 4, "lag.max_lag": 3, "mesh.data": 4},
            "num_prompts=8",
            "of .* = 16",
        ),
        ({"updates_per_batch": 4, "lag.max_lag": 2}, "lag.max_lag=2", "3 updates old"),
        ({"mesh.tensor": 8}, "policy.num_heads=4", "multiple of mesh.tensor=8"),
        (
            {"correction.name": "dual_clip", "correction.cap": 1.0},
            "correction.cap=1.0",
            "a number > 1",
        ),
        (
            {"policy.num_heads": 8, "mesh.tensor": 8},
            "policy.num_kv_heads=4",
            "multiple of mesh.tensor=8",
        ),
        ({"guard.level": 0.2}, "guard.level=0.2", "guard.mode=off .* choose warn or scale$"),
        ({"guard.factor": 0.2}, "guard.factor=0.2", "guard.mode=off .* choose scale$"),
        (
            {"guard.mode": "warn", "guard.factor": 0.2},
            "guard.factor=0.2",
            "guard.mode=warn makes no use of it: leave it out, or choose scale$",
        ),
        ({"guard.mode": "scale", "guard.factor": 1.5}, "guard.factor=1.5", "below 1$"),
        ({"task": ENUMERABLE}, "warm_start.steps=2000", "give 0"),
        ({"task.num_terms": 9}, "task.num_terms=9", "num_terms in 2..4"),
        ({"task.num_digits": 0}, "task.num_digits=0", "num_digits >= 1"),
        (
            {"task.name": "jsonl"},
            "task.name=jsonl",
            "needs the fields path, verifier, .* and has no field num_digits or num_terms: "
            "set or remove them; its fields are path, verifier, ",
        ),
        ({"correction.clip_low": 0.1}, "correction.clip_low=0.1", "set surrogate.clip_low"),
        (
            {"correction.name": "token_mis", "correction.ratio_low": 6.0},
            "correction.ratio_low=6.0",
            "no ratio would be in the range: give a number <= ratio_high=5",
        ),
        (
            {
                "correction.name": "mu_grpo",
                "correction.veto_low": 1.5,
                "correction.veto_high": 1.25,
            },
            "correction.veto_low=1.5",
            "give a number <= veto_high=1.25",
        ),
        (
            {"correction.name": "gspo", "correction.cap": 2.0},
            "correction.cap=2.0",
            "gspo read clip_low, clip_high",
        ),
        (
            {"correction.name": "gspo", "surrogate.clip_high": 0.3},
            "surrogate.clip_high=0.3",
            "correction.clip_high",
        ),
        (
            {"correction.name": "none", "surrogate.clip_high": 0.3},
            "surrogate.clip_high=0.3",
            "keep the default value",
        ),
        (
            {"correction.name": "dr_grpo"},
            "surrogate.length_normalization=response",
            "constant: give constant",
        ),
        (
            {"correction.name": "dr_grpo", "surrogate.length_normalization": "constant"},
            "surrogate.normalize_std=True",
            "False: give False",
        ),
        (
            {"policy.attention": "splash"},
            "policy.attention=splash",
            "for a TPU, .* platform cpu: choose xla",
        ),
        (
            {"policy.attention": "cudnn", "policy.dtype": "bfloat16"},
            "policy.attention=cudnn",
            "for a GPU, .* platform cpu: choose xla",
        ),
        (
            {"policy.param_dtype": "bfloat16"},
            "policy.param_dtype=bfloat16",
            "one of float32, float64",
        ),
        ({"policy.dtype": "float16"}, "policy.dtype=float16", "one of bfloat16, float32, float64"),
        (
            {"save_policy": True, "policy.qkv_bias": True, "policy.qk_norm": True},
            "save_policy=True",
            "policy.qkv_bias and policy.qk_norm: give",
        ),
        (
            {"task.num_words": 9},
            "task.name=arithmetic",
            "arithmetic has no field num_words: .* fields are num_terms, num_digits",
        ),
    ],
)
def test_contradictions_between_flags(overrides, named, hint):
    message = refusal(overrides, num_devices=8)
    assert message.startswith(f"--config.{named}")
    assert re.search(hint, message)


def test_a_kernel_for_tpus_is_taken_by_tpus():
    config = default_config()
    config.policy.attention = "splash"
    validation.validate(config, 1, "tpu")
    config.policy.dtype = config.policy.param_dtype = "float64"
    with (
        jax.enable_x64(True),
        pytest.raises(FieldError, match="dtype=float64: .* float32 or bfloat16"),
    ):
        validation.validate(config, 1, "tpu")


def test_the_package_that_saving_needs_is_missed_at_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "pip install safetensors" in refusal({"save_policy": True})


def test_a_missing_field_is_named():
    config = default_config()
    del config.lag.max_lag
    with pytest.raises(FieldError, match=r"^lag\.max_lag=None: the field is missing"):
        validation.validate(config, 1)
