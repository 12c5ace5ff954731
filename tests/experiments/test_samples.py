"""samples.jsonl of a training is the same to the byte, whether broken off in between or not."""

import shutil
import signal

import pytest

from experiments.common import cli
from experiments.train.__main__ import draw, main
from staleness_grpo.runtime.records import read_jsonl
from tests.helpers import killing
from tests.helpers.pages import described_fields
from tests.helpers.tiny import tiny_config

FLIGHT = {
    "steps": 8,
    "lag.max_lag": 3,
    "lag.schedule": "uniform",
    "checkpoint.save_every": 2,
    "checkpoint.keep": 3,
}
SAMPLED = FLIGHT | {"metrics.samples_every": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    main(tiny_config(**SAMPLED), workdir)
    return workdir


def samples(workdir):
    return (workdir / "samples.jsonl").read_bytes()


def test_the_page_has_every_field_of_a_sample(finished):
    records = read_jsonl(finished / "samples.jsonl")
    assert [(r["step"], r["slot"]) for r in records] == [(s, n) for s in range(8) for n in range(2)]
    for record in records:
        assert set(record) == described_fields("samples.jsonl of `experiments.train`")
    metrics = read_jsonl(finished / "metrics.jsonl")
    assert not any("samples" in record for record in metrics)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_samples(finished, tmp_path):
    process = killing.start(tmp_path, SAMPLED)
    killing.kill_after(process, tmp_path, records=4, sleep=0.0)
    assert killing.end(process)[0] == -signal.SIGKILL
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "slo')  # a part of a record
    main(tiny_config(**SAMPLED), tmp_path)
    assert samples(tmp_path) == samples(finished)
    assert killing.ending(tmp_path) == killing.ending(finished)


def test_samples_after_the_checkpoint_are_moved_and_the_resume_is_announced(
    finished, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step_00000008")
    before = read_jsonl(run / "samples.jsonl")
    main(tiny_config(**SAMPLED), run)
    assert samples(run) == samples(finished)
    assert read_jsonl(run / "samples.interrupted-1.jsonl") == before[12:]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"records: {run / 'metrics.jsonl'}; to watch them: python -m ")
    assert second == f"resuming from step 6: {run / 'checkpoints' / 'step_00000006'}"


@pytest.mark.slow
def test_samples_may_be_turned_on_for_the_rest_of_a_run(finished, tmp_path):
    main(tiny_config(**FLIGHT), tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()
    (tmp_path / "summary.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000008")
    cli.execute(main, draw, tiny_config(**SAMPLED), str(tmp_path), lambda config: None)
    assert read_jsonl(tmp_path / "samples.jsonl") == [
        record for record in read_jsonl(finished / "samples.jsonl") if record["step"] >= 6
    ]
