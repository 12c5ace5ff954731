"""Settings of every test: strict JAX flags, compiled programs kept on disk, no random examples."""

import gc
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import hypothesis
import jax
import pytest

from staleness_grpo.runtime import compile_cache, compiler_flags

# Nearly all of the suite's time is compilation. These flags halve it, for slower programs.
FAST_COMPILATION = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if jax.__version_info__ < (0, 11):  # later versions refuse the flag
    FAST_COMPILATION.append("--xla_cpu_use_fusion_emitters=false")
# JAX reads the variable when it is first used. Programs that tests start inherit it.
os.environ.setdefault("XLA_FLAGS", " ".join(FAST_COMPILATION))
# The commands do this too, and so find nothing to add when a test calls them.
compiler_flags.prefer_small_programs(is_narrow=True)

ROOT = pathlib.Path(__file__).parents[1]

jax.config.update("jax_numpy_rank_promotion", "raise")  # broadcasting between ranks is written out
compile_cache.enable(ROOT / ".cache" / "jax")

# Hypothesis derives its examples from the test itself, so that a second run repeats a failure.
hypothesis.settings.register_profile(
    "deterministic", derandomize=True, deadline=None, database=None
)
hypothesis.settings.load_profile("deterministic")


# The files that take longest. They start first, so that no worker is left with one of them while
# the others have nothing more to do.
LONGEST = (
    "sweeps/test_program.py",
    "bias/test_exact.py",
    "policy/test_transformer.py",
    "training/test_optimal_baseline.py",
    "policy/test_truncation.py",
    "policy/huggingface/test_transformers.py",
    "experiments/test_law.py",
    "training/test_checkpoint.py",
    "policy/test_own_policy.py",
    "policy/test_logprobs.py",
    "experiments/test_async_train.py",
    "policy/test_sampler.py",
    "bias/test_paired.py",
    "tasks/test_own_task_by_flag.py",
    "training/test_truncated_sampling.py",
    "training/test_reference.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the longest files to the front. The order is otherwise kept."""
    ranks = {ROOT / "tests" / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    """Makes garbage collections rarer, which take a tenth of the time of tracing and compiling.

    Imported modules and collected tests stay to the end, so they need no search.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session")
def models() -> pathlib.Path:
    """Returns the folder of pretrained checkpoints; skips the test if there is none.

    The folder is $STALENESS_GRPO_MODELS, or one beside the repository.
    """
    folder = pathlib.Path(
        os.environ.get("STALENESS_GRPO_MODELS", ROOT.parent / "shared" / "models")
    )
    if not folder.is_dir():
        pytest.skip("no pretrained checkpoints: set STALENESS_GRPO_MODELS to their folder")
    return folder


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a model folder on bytes with its tokenizer, which a module's tests share."""
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    from tests.helpers import byte_model

    folder = tmp_path_factory.mktemp("bytes")
    byte_model.write(folder)
    return folder


@pytest.fixture(scope="session")
def data() -> pathlib.Path:
    """Returns the folder of datasets; skips the test if there is none.

    The folder is $STALENESS_GRPO_DATA, or one beside the repository.
    """
    folder = pathlib.Path(os.environ.get("STALENESS_GRPO_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no datasets: set STALENESS_GRPO_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def run_on_devices() -> Callable[..., str]:
    """Returns a function that runs a program of `tests/programs` on simulated devices.

    The program has a process of its own, because the number of devices is fixed when JAX starts.
    """

    def run(program: str, *arguments: object, num_devices: int = 8) -> str:
        """Runs `python -m tests.programs.PROGRAM ARGUMENTS` and returns what it printed.

        Raises:
          AssertionError: with the program's stderr, if it failed.
        """
        # JAX makes this attribute at run time.
        cache = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(num_devices),
            "JAX_COMPILATION_CACHE_DIR": cache,
        }
        result = subprocess.run(
            [sys.executable, "-m", f"tests.programs.{program}", *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
