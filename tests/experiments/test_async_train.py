"""The asynchronous experiment: it goes on after kills, is replayed, and refuses bad input."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.async_train import measure, validation
from experiments.train import __main__ as train
from staleness_grpo.config.defaults import field_value
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import read_jsonl, write_jsonl
from staleness_grpo.staleness.trace import Change
from staleness_grpo.training.calls import list_calls
from tests.helpers import killing
from tests.helpers.pages import described_fields
from tests.helpers.tiny import asynchronous_config

RUN = {"steps": 14, "checkpoint.save_every": 3, "task.max_response_length": 6}


def start(workdir, in_flight):
    fields = RUN | {"asynchronous.in_flight": in_flight}
    return killing.start(workdir, fields, program="async_train_tiny", JAX_NUM_CPU_DEVICES="2")


def without_times(records):
    return [{k: v for k, v in record.items() if not k.startswith("time")} for record in records]


@pytest.fixture(scope="module")
def killed(tmp_path_factory, request):
    """A workdir of a run that was killed, then preempted, then ended; and its trace at the kill."""
    workdir, in_flight = tmp_path_factory.mktemp("killed"), request.param
    process = start(workdir, in_flight)
    assert killing.kill_after(process, workdir, records=8, sleep=0.01)
    assert killing.end(process)[0] == -signal.SIGKILL
    calls = list_calls(asynchronous_config(**RUN))
    trace, _ = measure.read_calls(workdir / "trace.jsonl", calls)
    process = start(workdir, in_flight)
    killing.kill_after(process, workdir, killing.num_records(workdir) + 1, 0, signal.SIGTERM)
    assert killing.end(process)[0] == 75
    code, errors = killing.end(start(workdir, in_flight))
    assert code == 0, errors
    return workdir, trace, in_flight


with_and_without_changes = pytest.mark.parametrize("killed", ["finish", "continue"], indirect=True)


@pytest.mark.slow
@with_and_without_changes
def test_a_killed_run_is_replayed_to_the_byte(killed, tmp_path):
    config = asynchronous_config(**RUN | {"asynchronous.in_flight": killed[2]})
    config.lag.schedule, config.lag.trace = "trace", str(killed[0] / "trace.jsonl")
    train.main(config, tmp_path)
    (live, live_arrays), (replay, replay_arrays) = map(killing.ending, (killed[0], tmp_path))
    assert live == replay
    state = [name for name in live_arrays if name.startswith("['state']")]
    for part in ("params", ".mu", ".nu", "previous_gradient"):
        assert any(part in name for name in state)
    for name in state:
        assert live_arrays[name] == replay_arrays[name]


@pytest.mark.slow
@with_and_without_changes
def test_what_was_in_flight_is_generated_again_by_the_same_versions(killed):
    workdir, at_the_kill, in_flight = killed
    calls = list_calls(asynchronous_config(**RUN))
    versions, _ = measure.read_calls(workdir / "trace.jsonl", calls)
    assert len(versions) == len(calls)
    assert any(len(changes) > 1 for changes in versions) is (in_flight == "continue")
    assert versions[: len(at_the_kill)] == at_the_kill
    # So the steps that the kill made undone have the same records when they are made again.
    lost = read_jsonl(workdir / "metrics.interrupted-1.jsonl")
    records = read_jsonl(workdir / "metrics.jsonl")
    assert lost and len(records) == 14
    made_again = records[lost[0]["step"] : lost[-1]["step"] + 1]
    assert without_times(made_again) == without_times(lost)


def test_the_summary_counts_lags_and_the_page_has_its_fields(tmp_path):
    code, errors = killing.end(start(tmp_path, "continue"))
    assert code == 0, errors
    summary = json.loads((tmp_path / "summary.json").read_text())
    records = read_jsonl(tmp_path / "metrics.jsonl")
    groups = np.sum([record["lag_histogram"] for record in records], axis=0)
    assert summary["lag_histogram"] == groups.tolist() and sum(groups) == 14 * 4
    assert summary["lag_mean"] == np.mean([record["lag_mean"] for record in records])
    assert 0 < summary["waiting_share"] < 1 and 0 < summary["generation_share"]
    added = {"time_waiting", "time_generation", "token_lag_mean", "in_flight_share"}
    assert added == described_fields("metrics.jsonl of `experiments.async_train`")
    assert added < set(records[0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:12],  # a part of what the checkpoint counts on
        lambda lines: [line | {"behavior_version": 0} for line in lines],
        lambda lines: [line | {"slot": 0} for line in lines],
    ],
)
def test_a_trace_that_is_not_of_the_checkpoint_is_refused(damage, tmp_path):
    calls = list_calls(asynchronous_config(**RUN))
    lines = [
        {"step": step, "slot": slot, "behavior_version": max(step - 1, 0)}
        for step, slots in calls
        for slot in slots
    ]
    write_jsonl(tmp_path / "trace.jsonl", damage(lines))
    run = RestoredAtStepSix()
    with pytest.raises(FlagError, match="trace.jsonl does not belong to the checkpoint of step 6"):
        measure.check_versions(run, tmp_path, read(tmp_path, calls))
    write_jsonl(tmp_path / "trace.jsonl", lines)
    measure.check_versions(run, tmp_path, read(tmp_path, calls))


def test_a_trace_that_lacks_a_change_of_the_checkpoint_is_refused(tmp_path):
    calls = list_calls(asynchronous_config(**RUN))
    given = [[Change(0, max(step - 1, 0))] for step, _ in calls]
    run = RestoredAtStepSix()
    run.buffer = HeldInParts  # its groups of slots 2 and 3 changed to version 6 at position 1
    with pytest.raises(FlagError, match="trace.jsonl does not belong to the checkpoint of step 6"):
        measure.check_versions(run, tmp_path, given)
    given[13].append(Change(1, 6))
    measure.check_versions(run, tmp_path, given)
    given[13][1] = Change(2, 6)
    with pytest.raises(FlagError, match="does not belong"):
        measure.check_versions(run, tmp_path, given)


def read(workdir, calls):
    return measure.read_calls(workdir / "trace.jsonl", calls)[0]


def test_lines_that_a_kill_left_incomplete_are_not_read(tmp_path):
    """Two calls of two groups, the first with a change; the trace is cut after each line."""
    calls = list_calls(asynchronous_config(**RUN))[:2]

    def pair(slot, version, **position):
        group = {"step": 0, "behavior_version": version} | position
        return [group | {"slot": slot + i} for i in range(2)]

    lines = pair(0, 0) + pair(0, 3, position=2) + pair(2, 3)
    path = tmp_path / "trace.jsonl"
    first, changed = [Change(0, 0)], [Change(0, 0), Change(2, 3)]
    whole = [[], [first], [changed], [changed, [Change(0, 3)]]]
    for num_lines in range(7):
        write_jsonl(path, lines[:num_lines])
        calls_read = num_lines // 2
        assert measure.read_calls(path, calls) == (whole[calls_read], 2 * calls_read)
    for damaged in (pair(0, 3, position=2), pair(0, 0) + pair(2, 3, position=2)):
        write_jsonl(path, damaged)
        assert measure.read_calls(path, calls)[1] == 2 * (len(damaged) > 2)


class RestoredAtStepSix:
    """What `check_versions` reads of a run that is restored with the groups of step 6."""

    config, step = asynchronous_config(**RUN), 6

    class buffer:  # noqa: N801  an attribute of a run
        @staticmethod
        def unread():
            rollout = SimpleNamespace(token_version_NxR=None)
            return np.full(4, 6), np.arange(4), np.full(4, 5), rollout


class HeldInParts:
    @staticmethod
    def unread():
        versions = np.array([[5, 5, 5]] * 2 + [[5, 6, 6]] * 2)
        rollout = SimpleNamespace(token_version_NxR=versions)
        return np.full(4, 6), np.arange(4), np.full(4, 5), rollout


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"asynchronous.admission": "fifo"}, "asynchronous.admission=fifo: choose one of bounded"),
        ({"asynchronous.admission": "one_step_off"}, "asynchronous.admission=one_step_off: its"),
        ({"asynchronous.in_flight": "drain"}, "asynchronous.in_flight=drain: choose one of finish"),
        ({"asynchronous.look_every": 0}, "asynchronous.look_every=0: give a number >= 1"),
        (
            {"asynchronous.admission": "in_order", "asynchronous.in_flight": "continue"},
            "asynchronous.in_flight=continue: admission=in_order binds a group to one version",
        ),
        ({"asynchronous.generator_devices": -1}, "asynchronous.generator_devices=-1: give a"),
        ({}, "asynchronous.generator_devices=0: learner and generator need 1 \\+ 1 devices, but"),
        ({"lag.max_lag": -1}, "lag.max_lag=-1: give a number >= 0"),
        ({"lag.schedule": "uniform"}, "lag.schedule=uniform: the timing of the run decides"),
        ({"lag.start": "synchronous"}, "lag.start=synchronous: the timing of the run decides"),
        ({"updates_per_batch": 2}, "updates_per_batch=2: an asynchronous run makes one update"),
        (
            {"sampler.batch_prompts": 3},
            "sampler.batch_prompts=3: leave it unset, or give a divisor",
        ),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(overrides, line):
    config = asynchronous_config(**overrides)
    with pytest.raises(FieldError, match=f"^{line}"):
        try:
            validation.validate(config)  # this process has one device
        except FieldError as error:
            located = error.with_value(lambda field: field_value(config, field))
            raise located from error


def test_one_device_is_refused_in_one_line_before_anything_is_touched(tmp_path):
    command = ["-m", "experiments.async_train", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=killing.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("--config.asynchronous.generator_devices=0: learner and generator need")
