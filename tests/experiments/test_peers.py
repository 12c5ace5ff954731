"""The timing of peers runs every library in each round, and reads what their scripts print."""

import json
import subprocess
import sys

import pytest

from experiments.performance.peers import alternate
from tests.conftest import ROOT

SLOW_PEER = """#!{python}
print("words before")
print('{{"step_seconds": [0.4, 0.2, 0.3], "version": "1.16"}}')
"""


def test_rounds_alternate_and_ratios_are_of_medians(tmp_path, monkeypatch, capsys):
    order, times = [], iter([0.3, 0.1, 0.5, 0.2, 0.4, 0.1])

    def ours(checkout, steps, num_sampler_devices=0):
        order.append((checkout == ROOT, num_sampler_devices > 0, steps))
        return next(times)

    interpreter = tmp_path / "python"
    interpreter.write_text(SLOW_PEER.format(python=sys.executable), encoding="utf-8")
    interpreter.chmod(0o755)
    run = alternate.run

    def with_commit(command, *others):
        return "abc\n" if command[0] == "git" else run(command, *others)

    monkeypatch.setattr(alternate, "ours", ours)
    monkeypatch.setattr(alternate, "run", with_commit)
    flags = [f"--workdir={tmp_path}", "--rounds=2", "--steps=3", f"--before={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["alternate.py", *flags, f"--trl={interpreter}"])
    alternate.main()
    assert order == 2 * [(True, False, 3), (True, True, 3), (False, False, 3)]
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["step_seconds"] == {
        "default": [0.3, 0.2],
        "sampler_devices": [0.1, 0.4],
        "before": [0.5, 0.1],
        "trl": [0.3, 0.3],
    }
    medians = {"default": 0.25, "sampler_devices": 0.25, "before": 0.3, "trl": 0.3}
    assert summary["median_step_seconds"] == pytest.approx(medians)
    assert summary["over_sampler_devices"]["trl"] == pytest.approx(1.2)
    assert summary["fastest_and_slowest_round"]["before"] == [0.1, 0.5]
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config == {"rounds": 2, "timed_steps": 3, "before": "abc", "trl": {"version": "1.16"}}
    assert summary["rounds"] == 2 and "round 1: trl 0.3000 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--workdir"),
        (["--workdir=x", "--rounds=0"], "--rounds"),
        (["--workdir=x", "--y"], "--y"),
    ],
)
def test_bad_flags_are_refused(flags, message):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.performance.peers.alternate", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
