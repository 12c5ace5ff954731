"""A random one-layer policy on single bytes, saved as a model folder with its tokenizer."""

import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.transformer import Policy
from tests.helpers import byte_tokenizer

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"


def write(folder: pathlib.Path) -> None:
    """Writes the policy, its tokenizer and a chat template into the folder."""
    config = TransformerConfig(
        vocab_size=264, num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16
    )
    policy = Policy(config)
    huggingface.save(folder, policy, jax.jit(policy.init)(jax.random.key(0)))
    byte_tokenizer.write(folder, TEMPLATE)


def text_config(folder: pathlib.Path, **task: Any) -> ConfigDict:
    """Returns the config of a short training of the policy on a task of stories."""
    config = default_config()
    config.update(dict(steps=8, num_prompts=4, group_size=4, eval_every=4))
    config.warm_start.steps = 0
    config.policy.checkpoint = str(folder)
    config.task = ConfigDict(dict(name="stories", rule="dialogue", max_response_length=6) | task)
    return config


def problems_file(folder: pathlib.Path, *lines: dict[str, Any] | str) -> pathlib.Path:
    """Writes problems.jsonl with these lines, texts as they are and others as JSON."""
    path = folder / "problems.jsonl"
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    )
    return path
