"""Settings of every test: strict JAX flags, compiled programs kept on disk, hypothesis without chance."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

# Before JAX starts: nearly all of the suite's time is compilation, which this makes two to three times faster.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from staleness_grpo import compile_cache  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]

jax.config.update("jax_numpy_rank_promotion", "raise")  # broadcasting between ranks is written out
compile_cache.enable(ROOT / ".cache" / "jax")

# Examples derived from the test itself: a failure is the code's, and a second run sees it again.
hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def models() -> pathlib.Path:
    """The folder of pretrained checkpoints: $STALENESS_GRPO_MODELS, or one beside the repository. Skips without."""
    folder = pathlib.Path(os.environ.get("STALENESS_GRPO_MODELS", ROOT.parent / "shared" / "models"))
    if not folder.is_dir():
        pytest.skip("no pretrained checkpoints: set STALENESS_GRPO_MODELS to their folder")
    return folder


@pytest.fixture(scope="session")
def data() -> pathlib.Path:
    """The folder of datasets: $STALENESS_GRPO_DATA, or one beside the repository. Skips without."""
    folder = pathlib.Path(os.environ.get("STALENESS_GRPO_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no datasets: set STALENESS_GRPO_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def run_on_devices() -> Callable[..., str]:
    """Runs Python code on simulated devices: in its own process, as their number is fixed at start-up."""

    def run(code: str, num_devices: int = 8) -> str:
        """Returns what the code printed; raises AssertionError with its stderr if it failed."""
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(num_devices),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        }
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
