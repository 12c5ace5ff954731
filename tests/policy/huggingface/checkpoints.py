"""Writes small model folders for the tests."""

import json
import pathlib
from typing import Any

from staleness_grpo.policy import huggingface
from staleness_grpo.policy.architecture import RopeScaling, TransformerConfig
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.types import PyTree
from tests.policy.examples import random_params

SMALL = TransformerConfig(
    vocab_size=12,
    num_layers=2,
    d_model=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    d_ff=10,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16),
    norm_epsilon=1e-6,
    rope_theta=5e5,
)


def write_checkpoint(
    folder: pathlib.Path, config: TransformerConfig = SMALL, **fields: Any
) -> PyTree:
    """Saves a random policy, puts `fields` into its config.json, and returns the parameters."""
    policy = Policy(config)
    params = random_params(policy)
    huggingface.save(folder, policy, params)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | fields))
    return params
