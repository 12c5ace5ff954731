"""Makes and checks a policy of one's own, and describes it, so that records say what was run."""

import functools
import hashlib
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from staleness_grpo.errors import FieldError, require
from staleness_grpo.policy.base import AnyPolicy
from staleness_grpo.policy.numerics import PARAM_DTYPES
from staleness_grpo.runtime import importing
from staleness_grpo.runtime.mesh import AXES, parameter_spec
from staleness_grpo.types import PyTree

VOCAB_SIZE = "vocab_size"  # the argument of the constructor that the task gives
METHODS = ("init", "apply", "prefill", "empty_cache", "decode", "response_hidden", "unembed")
INTERFACE = "staleness_grpo/policy/base.py"
# Largest difference of equal logits, as a part of the largest logit plus 1. It is some hundred
# roundings of the type.
TOLERANCES = {"bfloat16": 0.2, "float32": 1e-3, "float64": 1e-10}
NUM_PROMPTS, GROUP_SIZE, PROMPT_LENGTH, RESPONSE_LENGTH = 2, 3, 4, 5  # of the checks


def policy_fields(name: str) -> dict[str, inspect.Parameter]:
    """Returns the fields that `config.policy.arguments` may have for a class of one's own.

    Raises:
      FieldError: there is no such class, or its constructor does not take `vocab_size`.
    """
    hint = "name a class of your own as package.module:Class or path/to/file.py:Class"
    require(":" in name, "name", hint, name)
    fields = dict(inspect.signature(importing.load(name)).parameters)
    hint = f"its constructor has no argument {VOCAB_SIZE}: add it, the task gives it"
    require(VOCAB_SIZE in fields, "name", hint, name)
    del fields[VOCAB_SIZE]
    return fields


def make(name: str, arguments: Mapping[str, Any], vocab_size: int) -> AnyPolicy:
    """Returns the policy of a class of one's own.

    Args:
      name: `config.policy.name`.
      arguments: `config.policy.arguments`. An entry that is None is left out.
      vocab_size: V, the number of tokens of the task.

    Raises:
      FieldError: the class cannot be imported, or does not accept the arguments.
    """
    given = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in arguments.items()
        if value is not None
    }
    fields = policy_fields(name)
    takes_any = any(field.kind is inspect.Parameter.VAR_KEYWORD for field in fields.values())
    unknown = [] if takes_any else [field for field in given if field not in fields]
    known = f"its arguments are {', '.join(fields) or 'none'}"
    hint = f"it has no argument {' or '.join(unknown)}: {known}"
    require(not unknown, "name", hint, name)
    missing = [
        field
        for field, parameter in fields.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        and field not in given
    ]
    hint = f"it needs {' and '.join(missing)}: set policy.arguments.{', '.join(missing[:1])}"
    require(not missing, "name", hint, name)
    try:
        policy: AnyPolicy = importing.load(name)(vocab_size=vocab_size, **given)
    except FieldError as error:
        raise error.below("arguments") from error
    except (TypeError, ValueError) as error:  # the class explains what is wrong
        raise FieldError("name", f"it refuses policy.arguments: {error}", name) from error
    return policy


def code_digest(name: str) -> str:
    """Returns a hash of the code of a class of one's own: of its module and those of its bases.

    Installed libraries are left out, because environment.json has their versions.
    """
    made_by = importing.load(name)
    kinds = inspect.getmro(made_by) if inspect.isclass(made_by) else (made_by,)
    sources = {}
    for module_name in {made_by.__module__, *(kind.__module__ for kind in kinds)}:
        file = getattr(sys.modules[module_name], "__file__", None)
        is_own = module_name == made_by.__module__ or "site-packages" not in str(file)
        if file is not None and is_own and module_name not in sys.stdlib_module_names:
            sources[module_name] = pathlib.Path(file).read_bytes()
    return hashlib.sha256(b"".join(sources[key] for key in sorted(sources))).hexdigest()[:16]


def fingerprint(fields: Mapping[str, Any]) -> str | None:
    """Returns what identifies the code of the policy in `config.policy`; None for the decoder."""
    name = fields.get("name")
    return None if name is None else code_digest(name)


def describe(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns class, arguments and code of the policy in `config.policy`; None for the decoder."""
    code = fingerprint(fields)
    if code is None:
        return None
    return {"name": fields["name"], "arguments": dict(fields["arguments"]), "code": code}


def check_interface(policy: Any) -> None:
    """Checks that a policy has the interface in `policy.base`, and that its logits agree.

    Raises:
      FieldError: the field `name`, with what the class lacks, or which method does what wrong.
    """
    name = type(policy).__name__
    lacking = [member for member in ("dtype", *METHODS) if not hasattr(policy, member)]
    hint = f"this class lacks {', '.join(lacking)}: see {INTERFACE}"
    require(not lacking, "name", hint, name)
    for method in METHODS:
        require(callable(getattr(policy, method)), "name", f"its {method} is no method", name)
    hint = f"its dtype is {policy.dtype!r}: give one of {', '.join(TOLERANCES)}"
    require(policy.dtype in TOLERANCES, "name", hint, name)
    # JAX adds this attribute at run time.
    x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    hint = "its dtype is float64: set JAX_ENABLE_X64=1 in the environment, or give float32"
    require(policy.dtype != "float64" or x64, "name", hint, name)
    try:
        hash(policy)
    except TypeError as error:
        hint = f"it cannot be hashed ({error}): make it a dataclass with frozen=True"
        raise FieldError("name", hint, name) from error
    check_shapes(policy)
    check_agreement(policy)


def _called(policy: Any, method: str, function: Callable, *args: Any) -> Any:
    """Returns the shapes of what a method gives. Raises FieldError if the method fails."""
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:  # the method is a program, and can raise any error
        reason = (str(error).splitlines() or [""])[0]
        hint = f"its {method} fails with {type(error).__name__}: {reason}: see {INTERFACE}"
        raise FieldError("name", hint, type(policy).__name__) from error


def _require_shape(policy: Any, method: str, array: Any, shape: tuple[int, ...]) -> None:
    found = getattr(array, "shape", None)
    hint = f"its {method} gives the shape {found}: give {shape}, see {INTERFACE}"
    require(found == shape, "name", hint, type(policy).__name__)


def check_shapes(policy: Any) -> None:
    """Checks the shapes of what each method gives, without computing anything.

    Raises:
      FieldError: the field `name`, with the first method that fails or gives another shape.
    """
    n, g, p, r = NUM_PROMPTS, GROUP_SIZE, PROMPT_LENGTH, RESPONSE_LENGTH

    def tokens(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    name, mask = type(policy).__name__, jax.ShapeDtypeStruct((n, p), bool)
    params = _called(policy, "init", lambda: policy.init(jax.random.key(0)))
    mesh = AbstractMesh((1, 1, 1), AXES)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        try:
            parameter_spec(path, leaf.shape, mesh)
        except ValueError as error:
            raise FieldError("name", f"its parameter {error}", name) from error
        place = jax.tree_util.keystr(path)
        hint = f"its parameter {place} has the type {leaf.dtype}: give {' or '.join(PARAM_DTYPES)}"
        require(str(leaf.dtype) in PARAM_DTYPES, "name", hint, name)
    logits = _called(policy, "apply", policy.apply, params, tokens(n, p))
    vocab_size = getattr(logits, "shape", (0,))[-1]
    _require_shape(policy, "apply", logits, (n, p, getattr(policy, VOCAB_SIZE, vocab_size)))

    def pair(method: str, result: Any) -> Any:
        is_pair = isinstance(result, tuple) and len(result) == 2
        require(is_pair, "name", f"its {method} gives no pair: see {INTERFACE}", name)
        return result

    prefilled = _called(policy, "prefill", policy.prefill, params, tokens(n, p), mask)
    hidden, prefix = pair("prefill", prefilled)
    size = getattr(hidden, "shape", (0,))[-1]
    _require_shape(policy, "prefill", hidden, (n, size))
    cache = _called(policy, "empty_cache", lambda: policy.empty_cache(n, g, r))
    decoded = _called(
        policy, "decode", policy.decode, params, tokens(n, g), tokens(), cache, prefix, mask
    )
    hidden, new_cache = pair("decode", decoded)
    _require_shape(policy, "decode", hidden, (n, g, size))
    old, new = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), c) for c in (cache, new_cache))
    hint = "its decode gives a cache of other shapes or types than empty_cache: give the same"
    require(old == new, "name", hint, name)
    responses = tokens(n, g, r)
    states = _called(
        policy, "response_hidden", policy.response_hidden, params, tokens(n, p), mask, responses
    )
    _require_shape(policy, "response_hidden", states, (n, g, r, size))
    logits = _called(policy, "unembed", policy.unembed, params, states)
    _require_shape(policy, "unembed", logits, (n, g, r, vocab_size))


@functools.lru_cache(maxsize=16)
def check_agreement(policy: Any) -> None:
    """Checks that the three ways to the logits agree, on a small batch with padding.

    If they did not, the sampler would record log-probabilities of another policy than the loss
    computes. The run would then show a bias that has nothing to do with staleness. The check draws
    parameters once, so it needs memory for two copies of them.

    Raises:
      FieldError: the field `name`, with the two ways that disagree.
    """
    rng = np.random.default_rng(0)
    n, g, p, r = NUM_PROMPTS, GROUP_SIZE, PROMPT_LENGTH, RESPONSE_LENGTH
    with jax.default_matmul_precision("highest"):
        params = jax.jit(policy.init)(jax.random.key(0))
        params = jax.tree.map(lambda leaf: _moved(leaf, rng).astype(policy.dtype), params)
        vocab_size = jax.eval_shape(policy.apply, params, jnp.zeros((1, 1), jnp.int32)).shape[-1]
        prompts_NxP = rng.integers(0, vocab_size, (n, p)).astype(np.int32)
        tokens_NxGxR = rng.integers(0, vocab_size, (n, g, r)).astype(np.int32)
        mask_NxP = np.arange(p)[None] >= np.arange(n)[:, None]  # prompt n has n padded places
        applied = []
        for row in range(n):
            prompts = np.tile(prompts_NxP[row, row:], (g, 1))
            sequences = np.concatenate([prompts, tokens_NxGxR[row, :, :-1]], axis=1)
            applied.append(jax.jit(policy.apply)(params, sequences)[:, -r:])

        @jax.jit
        def by_response(params: PyTree) -> jax.Array:
            hidden = policy.response_hidden(params, prompts_NxP, mask_NxP, tokens_NxGxR)
            return policy.unembed(params, hidden)

        @jax.jit
        def by_decoding(params: PyTree) -> jax.Array:
            hidden, prefix = policy.prefill(params, prompts_NxP, mask_NxP)
            states = [jnp.broadcast_to(hidden[:, None], (n, g, hidden.shape[-1]))]
            cache = policy.empty_cache(n, g, r - 1)
            for index in range(r - 1):
                hidden, cache = policy.decode(
                    params, tokens_NxGxR[..., index], jnp.int32(index), cache, prefix, mask_NxP
                )
                states.append(hidden)
            return policy.unembed(params, jnp.stack(states, axis=2))

        expected = np.asarray(by_response(params), np.float64)
        others = {"apply": np.stack(applied), "prefill and decode": by_decoding(params)}
    are_finite = bool(np.isfinite(expected).all())
    require(are_finite, "name", "its logits are not finite: correct init", type(policy).__name__)
    scale = 1 + np.abs(expected).max()
    for way, logits in others.items():
        difference = np.abs(np.asarray(logits, np.float64) - expected).max()
        hint = (
            f"its response_hidden and its {way} give logits that differ by up to {difference:.2g}: "
            "make them the same causal policy"
        )
        agree = difference <= TOLERANCES[policy.dtype] * scale
        require(bool(agree), "name", hint, type(policy).__name__)


def _moved(leaf: jax.Array, rng: np.random.Generator) -> jax.Array:
    """Returns a parameter with noise, because a policy may start with equal logits."""
    return leaf + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype)
