"""Loads and saves policies as model folders in the Hugging Face layout.

The main functions are `load(folder, dtype=...) -> (policy, params)` and
`save(folder, policy, params)`.
"""

from staleness_grpo.policy.huggingface.config import ModelFolderError, read_config
from staleness_grpo.policy.huggingface.folder import check_tensors, load, load_params, save
from staleness_grpo.policy.huggingface.weights import weights_digest

__all__ = [
    "ModelFolderError",
    "check_tensors",
    "load",
    "load_params",
    "read_config",
    "save",
    "weights_digest",
]
