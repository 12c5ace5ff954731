"""The update of a Llama-3.2-1B: does it fit the device?"""

import pytest

from experiments import cli, memory


@pytest.mark.slow
def test_the_1b_shape_with_8_responses_of_1024_tokens_fits_80_gb():
    """Compiled for CPU with abstract arrays: a minute, and hardly any memory."""
    summary = memory.measure(cli.load_config(cli.ROOT / "experiments/configs/benchmark_llama_1b.py"))
    assert summary["num_params"] == 1_235_814_400  # as the model card counts, embeddings once
    assert summary["argument_bytes"] >= 4 * 4 * summary["num_params"]  # parameters, two moments, last gradient
    assert summary["peak_bytes"] < 80e9
