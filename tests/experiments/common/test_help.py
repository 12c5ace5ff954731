"""Help lists every flag and every field of the config."""

import subprocess
import sys

import pytest

from experiments.common import cli, help
from staleness_grpo.config.defaults import default_config


@pytest.mark.parametrize("flag", ["--help", "--helpfull", "-h"])
def test_help_lists_every_flag_and_every_field(flag):
    words = ["-m", "experiments.train", flag, "--config=experiments/configs/bias.py"]
    if flag != "--helpfull":
        words.pop()
    done = subprocess.run(
        [sys.executable, *words], cwd=cli.ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "Trains one policy by asynchronous GRPO and records every learner step."
    for name in ("config", "workdir", "coordinator", "heartbeat"):
        assert any(line.startswith(f"  --{name}  ") for line in lines), name
    if flag == "--helpfull":  # of the config that is given
        assert any(line.startswith("  --config.task.vocab_size=") for line in lines)
        return
    at = lines.index("  --config.lag.max_lag=0")
    assert lines[at + 1] == "      S, the largest lag, in optimizer updates"
    num_fields = sum(line.startswith("  --config.") for line in lines)
    assert num_fields == len(dict(help.fields(default_config())))
