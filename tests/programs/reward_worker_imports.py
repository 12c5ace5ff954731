"""Imports what a worker process that judges rewards imports; exits with 1 if JAX came with it.

python -m tests.programs.reward_worker_imports
"""

import sys

import staleness_grpo.tasks.components  # noqa: F401
import staleness_grpo.tasks.verifiers  # noqa: F401  imported for what comes with it
import staleness_grpo.training.rewards  # noqa: F401

if __name__ == "__main__":
    sys.exit("jax" in sys.modules)
