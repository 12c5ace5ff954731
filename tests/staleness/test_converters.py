"""Records of trainers give back the exact lags, and all that cannot be converted is refused."""

import json
import re

import numpy as np
import pytest

from staleness_grpo.errors import FieldError
from staleness_grpo.staleness import schedule, trace
from staleness_grpo.staleness.converters.convert import Options, convert
from staleness_grpo.staleness.converters.formats import FORMATS, recognized
from staleness_grpo.staleness.trace import TraceError
from tests.helpers import trainer_logs
from tests.helpers.trainer_logs import json_lines, prime_rl_record, tinker_record

ONE = {"updates_per_version": 1}


def lags(path, name, tmp_path, **options):
    """Returns the lags of a converted file, read back from the trace, and the header."""
    conversion = convert(path, Options(name, **options))
    target = tmp_path / "converted.jsonl"
    conversion.write(target)
    size = dict(num_steps=len(conversion.lags), num_groups=len(conversion.lags[0]), max_lag=99)
    return trace.read(target, **size).tolist(), conversion.header


def versions_of(seed, num_steps=6, num_groups=4):
    """Returns the versions [I, N] of a schedule with random lags."""
    lags_IxN = schedule.make_schedule("uniform", 3, num_groups, seed).lags(np.arange(num_steps))
    return (np.arange(num_steps)[:, None] - lags_IxN).tolist()


@pytest.mark.parametrize("name", trainer_logs.RECORDED)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_in_the_form_of_each_trainer_gives_back_its_lags(tmp_path, name, seed):
    versions = versions_of(seed, num_steps=12)  # names such as step_10 do not sort as text
    path = trainer_logs.RECORDED[name](tmp_path / "logs", versions)
    options = ONE if FORMATS[name].in_versions else {}
    found, header = lags(path, name, tmp_path, **options)
    assert found == [[step - v for v in row] for step, row in enumerate(versions)]
    assert header["lags"] == "recorded" and header["format"] == name
    assert name in recognized(path)


def test_every_format_that_records_versions_is_tested_above():
    assert set(trainer_logs.RECORDED) == {n for n, f in FORMATS.items() if f.table is None}


@pytest.mark.parametrize("name", ["tinker", "verl", "miles"])
def test_a_step_of_several_updates_becomes_as_many_learner_steps(tmp_path, name):
    """Update k of step t has made 2 t + k updates before; version v has made 2 v."""
    versions = versions_of(0)
    path = trainer_logs.RECORDED[name](tmp_path / "logs", versions)
    found, _ = lags(path, name, tmp_path, updates_per_version=2)
    expected = []
    for step, row in enumerate(versions):
        expected.append([2 * step - 2 * version for version in row[:2]])
        expected.append([2 * step + 1 - 2 * version for version in row[2:]])
    assert found == expected


def test_weights_that_are_published_every_third_step(tmp_path):
    """At step t, t updates were made. Version v has made 3 v of them."""
    versions = [[0, 0], [0, 0], [0, 0], [1, 0], [1, 1], [0, 1], [2, 1]]
    path = trainer_logs.miles(tmp_path / "logs", versions)
    options = dict(updates_per_version=3, steps_per_version=3)
    found, _ = lags(path, "miles", tmp_path, **options)
    assert found == [[0, 0], [1, 1], [2, 2], [0, 3], [1, 1], [5, 2], [0, 3]]
    newer = trainer_logs.miles(tmp_path / "newer", [*versions[:2], [1, 0]])
    with pytest.raises(TraceError, match="step 2 has version 1, and learned from 2"):
        convert(newer, Options("miles", **options))  # as miles counts versions, from 1


def test_spans_of_versions_are_counted_and_either_end_may_count(tmp_path):
    folder = tmp_path / "rollouts"
    first = [prime_rl_record("a", 0, 0, "g"), prime_rl_record("b", 0, 0, "g")]
    second = [prime_rl_record("c", 0, 1, "h"), prime_rl_record("d", 1, 1, "h")]
    json_lines(folder / "step_1/train/effective/traces.jsonl", first)
    json_lines(folder / "step_2/train/effective/traces.jsonl", second)
    for span, lag in (("oldest", 1), ("newest", 0)):
        found, header = lags(folder, "prime_rl", tmp_path, span=span)
        assert found == [[0], [lag]]
        what = f"groups of several versions, of which the {span} counts"
        assert header["counts"] == {"samples read": 4, what: 1}


@pytest.mark.parametrize(("span", "lag"), [("oldest", 2), ("newest", 1)])
def test_the_oldest_sample_of_a_group_counts_wherever_it_stands(tmp_path, span, lag):
    """Each sample lists the versions of its calls. At rollout 2 the version is 3."""
    fresh = [
        {"rollout_id": r, "group_index": r, "index": 0, "weight_versions": [str(r + 1)]}
        for r in (0, 1)
    ]
    for calls in (["1", "2"], ["2"]), (["2"], ["1", "1"]), (["1"], ["1", "2"]):
        mixed = [
            {"rollout_id": 2, "group_index": 2, "index": member, "weight_versions": versions}
            for member, versions in enumerate(calls)
        ]
        path = json_lines(tmp_path / "x.jsonl", fresh + mixed)
        assert lags(path, "miles", tmp_path, span=span, **ONE)[0] == [[0], [0], [lag]]


def test_prime_rl_leaves_out_frozen_policies_and_knows_older_shapes(tmp_path):
    """Older lines are one trace each. Others name the object `metadata` in place of `work`."""
    frozen = prime_rl_record("z", None, None, "f")
    evaluated = prime_rl_record("e", 0, 0, "e")
    evaluated["run"]["work"]["type"] = "eval"
    flat = {"id": "a", "info": {"policy_version": 0, "group_id": "g"}, "rewards": {}}
    metadata = {"type": "train", "step": 1, "policy": {"start": 0, "end": 0}}
    other = {"id": "m", "run": {"type": "train", "metadata": metadata}, "traces": []}
    path = tmp_path / "step_1" / "traces.jsonl"
    json_lines(path, [frozen, flat, flat | {"id": "b"}, other, evaluated])
    found, header = lags(path, "prime_rl", tmp_path)
    assert found == [[0, 0]]  # a group of two traces, and an episode
    assert header["counts"] == {
        "episodes of frozen policies left out": 1,
        "episodes of evaluations left out": 1,
        "samples read": 3,
    }


def test_different_numbers_of_groups_are_refused_or_refilled_and_counted(tmp_path):
    samples = [(0, 0)] + [(1, v) for v in (1, 1, 0, 0, 0, 1)] + [(2, 2), (2, 0)]
    records = [{"step": step, "version": version} for step, version in samples]
    path = json_lines(tmp_path / "x.jsonl", records)
    message = "x.jsonl line 2: step 0 has 1 groups, and step 1 has 6: give --num_groups"
    with pytest.raises(TraceError, match=f"^{message}"):
        convert(path, Options("versions"))
    found, header = lags(path, "versions", tmp_path, num_groups=3)
    assert found == [[0, 0, 0], [0, 1, 1], [0, 0, 2]]  # groups 0, 2, 4 of six; 0, 0, 1 of two
    counts = {"samples read": 9, "groups left out": 3, "groups repeated": 3}
    assert header["counts"] == counts


def test_a_restart_is_refused_or_its_later_records_count(tmp_path):
    """The run goes back from step 3 to step 2, and at the end repeats step 3."""
    steps = [(0, 0), (1, 1), (2, 2), (3, 3), (2, 0), (3, 1), (3, 2)]
    records = [tinker_record(step, 0, 0, version) for step, version in steps]
    path = json_lines(tmp_path / "x.jsonl", records)
    with pytest.raises(TraceError, match="line 5: step 2 comes after step 3: give --restarts"):
        convert(path, Options("tinker", **ONE))
    found, header = lags(path, "tinker", tmp_path, restarts="replace", **ONE)
    assert found == [[0], [0], [2], [1]]
    older = "steps with only older versions than the step before (counted anew?)"
    counts = {"samples read": 7, "restarts": 2, "steps replaced by later records of them": 3}
    assert header["counts"] == counts | {older: 1}


def test_samples_without_a_group_survive_a_restart_one_by_one(tmp_path):
    records = [{"step": s, "version": 0} for s in (0, 0, 1, 1, 0, 0, 1, 1)]
    path = json_lines(tmp_path / "x.jsonl", records)
    found, _ = lags(path, "versions", tmp_path, restarts="replace")
    assert found == [[0, 0], [1, 1]]


def test_holes_are_refused_or_filled_and_counted(tmp_path):
    records = [{"step": s, "age": a} for s, a in [(0, 0), (1, 1), (4, 3)]]
    path = json_lines(tmp_path / "x.jsonl", records)
    with pytest.raises(TraceError, match="^2 steps have no record, the first is step 2: "):
        convert(path, Options("ages"))
    found, header = lags(path, "ages", tmp_path, holes="previous")
    assert found == [[0], [1], [1], [1], [3]]
    assert header["counts"]["steps without a record, filled with the lags before them"] == 2


def test_a_hole_of_several_updates_gets_the_lags_of_each(tmp_path):
    """Steps make two updates. Step 2 gets the lags of the updates 2 and 3 for its own, 4 and 5."""
    records = [
        tinker_record(step, group, 0, version)
        for step, versions in [(0, (0, 0)), (1, (0, 1)), (3, (2, 3))]
        for group, version in enumerate(versions)
    ]
    path = json_lines(tmp_path / "x.jsonl", records)
    options = dict(updates_per_version=2, holes="previous")
    found, _ = lags(path, "tinker", tmp_path, **options)
    assert found == [[0], [1], [2], [1], [2], [1], [2], [1]]


def test_a_part_of_a_run_has_versions_from_before_it(tmp_path):
    records = [{"step": s, "version": v} for s, v in [(7, 5), (8, 6), (9, 8)]]
    path = json_lines(tmp_path / "x.jsonl", records)
    with pytest.raises(TraceError, match="7 steps have no record, .* give --first_step"):
        convert(path, Options("versions"))
    start = dict(first_step=7, first_version=7)
    with pytest.raises(TraceError, match="line 1: step 7 learned from a version before"):
        convert(path, Options("versions", **start))
    found, header = lags(path, "versions", tmp_path, early="clip", **start)
    assert found == [[0], [1], [1]]
    assert header["counts"]["lags cut to the first version"] == 2


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("versions", [], "no record has version, as lines of step and version have"),
        ("versions", [{"step": 0}], "line 1: the field version is absent"),
        ("versions", [{"step": 0.5, "version": 0}], "line 1: step is 0.5, not an integer"),
        ("versions", [{"step": True, "version": 0}], "line 1: step is True, not a number"),
        ("versions", [{"step": 0, "version": float("inf")}], "line 1: version is inf, not a"),
        ("versions", [{"step": 0, "version": float("nan")}], "the field version is absent"),
        ("versions", [{"step": 0, "version": 1}], "step 0 has version 0, and learned from 1"),
        ("ages", [{"step": 0, "age": -1}], "step 0 has version 0, and learned from 1"),
        ("ages", [{"step": 5, "age": 0}], "the first record is of step 5: give --first_step"),
        ("ages", [{"step": 0, "age": 1}], "step 0 learned from a version before the first step"),
        ("run", [{"step": 0, "lags": 1}], "the field lags is not a list of integers"),
        ("trace", [{"step": 0, "slot": 1, "behavior_version": 0}], "step 0 has a gap: slot 0"),
        (
            "trace",
            [{"step": 0, "slot": 0, "behavior_version": 0}] * 2,
            "line 2: step 0, slot 0 is given a second time",
        ),
        (
            "trace",
            [{"step": 0, "slot": 0, "behavior_version": 0, "position": [1]}],
            "position is [1], not a number",
        ),
        (
            "verl",
            [{"step": 1, "uid": [1], "min_global_steps": 0, "max_global_steps": 0}],
            "line 1: uid is [1]: give a whole number or a text",
        ),
        ("prime_rl", [prime_rl_record("a", 0, 0, {"id": 1})], "id is {'id': 1}: give a whole"),
        ("tinker", [tinker_record(0, 0, 0, None)], "the field sampling_client_step is absent"),
        ("tinker", [tinker_record(0, 0, 0, 0) | {"schema_version": 2}], "schema_version is 2"),
        ("tinker", [tinker_record(-1, 0, 0, 0)], "step -1 comes before the first step, 0"),
        ("prime_rl", [prime_rl_record("a", 0, 0, "g")], "no folder step_N above the file"),
        ("prime_rl", [{"id": "a", "traces": []}], "the field run.work.policy is absent"),
        ("miles", [{"rollout_id": 0, "weight_versions": []}], "weight_versions is [], not a"),
        (
            "miles",
            [{"rollout_id": 0, "weight_versions": ["2", "1"]}],
            "weight_versions [2, 1] go backwards",
        ),
        ("miles", [{"rollout_id": 0, "samples": 3}], "the field samples is not a list"),
        (
            "verl",
            [{"step": 1, "min_global_steps": 1, "max_global_steps": 0}],
            "the versions go backwards, from 1 to 0",
        ),
        (
            "verl",
            [{"step": 1, "min_global_steps": 0, "max_global_steps": 1}],
            "step 1 has version 0, and learned from 1",
        ),
        (
            "tinker",
            [{"step": 1, "min_global_steps": 0, "max_global_steps": 0}],
            "the field iteration is absent; it looks like format=verl",
        ),
    ],
)
def test_a_record_that_cannot_be_converted_is_refused(tmp_path, name, records, message):
    path = json_lines(tmp_path / "x.jsonl", records)
    options = ONE if FORMATS[name].in_versions else {}
    with pytest.raises(TraceError, match=re.escape(message)):
        convert(path, Options(name, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(format="telepathy"), "format=telepathy: choose one of trace, run, "),
        (dict(format="miles"), "updates_per_version=: format=miles counts weight versions: give"),
        (dict(format="prime_rl", **ONE), "updates_per_version=1: format=prime_rl counts opt"),
        (dict(format="prime_rl", steps_per_version=2), "steps_per_version=2: format=prime_rl"),
        (dict(format="miles", updates_per_version=0), "updates_per_version=0: give a number >= 1"),
        (
            dict(format="miles", updates_per_version=3, steps_per_version=2),
            "steps_per_version=2: 2 must divide updates_per_version=3",
        ),
        (dict(format="ages", first_version=1), "first_version=1: format=ages gives lags"),
        (dict(format="skyrl_metrics"), "num_groups=: format=skyrl_metrics has no groups: give"),
        (dict(format="ages", span="middle"), "span=middle: choose one of oldest, newest"),
    ],
)
def test_options_that_do_not_fit_the_format_are_refused(options, message):
    with pytest.raises(FieldError, match=f"^{re.escape(message)}"):
        Options(**options)


def test_updates_that_do_not_divide_the_groups_are_refused(tmp_path):
    path = trainer_logs.tinker(tmp_path / "logs", versions_of(0, num_groups=3))
    with pytest.raises(FieldError, match="^num_groups=: a step makes 2 updates, .* its 3 groups"):
        convert(path, Options("tinker", updates_per_version=2))
    found, header = lags(path, "tinker", tmp_path, updates_per_version=2, num_groups=2)
    assert len(found) == 12 and len(found[0]) == 2
    assert header["counts"]["groups repeated"] == 6


def test_tables_and_empty_folders(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("\ufeffstep,version,reward\r\n0.0,0.0,\r\n1.0,0.0,nan\r\n")
    assert lags(table, "versions", tmp_path)[0] == [[0], [1]]
    table.write_text("step,version\n0,0\n1\n")
    with pytest.raises(TraceError, match="table.csv line 3: the row has not the 2 cells"):
        convert(table, Options("versions"))
    table.write_text("step,step\n0,0\n")
    with pytest.raises(TraceError, match="line 1: the header names a column twice"):
        convert(table, Options("versions"))
    table.write_bytes(b"PK\x03\x04\0\0")
    with pytest.raises(TraceError, match="table.csv: the file is not text"):
        convert(table, Options("versions"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TraceError, match=r"^the folder has no .*effective/traces.jsonl: give one"):
        convert(tmp_path / "empty", Options("prime_rl"))


def test_a_trace_with_a_header_is_read_and_converted_again(tmp_path):
    path = trainer_logs.trace(tmp_path, versions_of(0))
    first = convert(path, Options("trace"))
    first.write(tmp_path / "first.jsonl")
    header = json.loads((tmp_path / "first.jsonl").read_text().splitlines()[0])
    assert header == {"header": first.header}
    assert convert(tmp_path / "first.jsonl", Options("trace")).lags == first.lags


@pytest.mark.parametrize(("span", "lag"), [("oldest", 2), ("newest", 0)])
def test_a_trace_with_changes_in_flight_becomes_one_without(tmp_path, span, lag):
    starts = [{"step": step, "slot": 0, "behavior_version": 0} for step in range(3)]
    changes = [
        {"step": 2, "slot": 0, "behavior_version": version, "position": 8 * version}
        for version in (1, 2)
    ]
    path = json_lines(tmp_path / "live.jsonl", starts + changes)
    found, header = lags(path, "trace", tmp_path, span=span)
    assert found == [[0], [1], [lag]]
    assert header["counts"][f"groups of several versions, of which the {span} counts"] == 1
