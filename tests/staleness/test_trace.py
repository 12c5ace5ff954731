"""A recorded trace is replayed exactly, and lines that cannot be replayed are refused by number."""

import json
import re
from typing import Any

import numpy as np
import pytest

from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime.records import plain
from staleness_grpo.staleness import schedule, trace
from staleness_grpo.staleness.converters.convert import Options, convert
from staleness_grpo.training.loop import train
from tests.helpers.tiny import tiny_config

SIZE = dict(num_steps=2, num_groups=2, max_lag=1)
GOOD = [
    '{"step": 1, "slot": 1, "behavior_version": 0, "time": 3.5}',
    '{"step": 0, "slot": 0, "behavior_version": 0}',
    '{"step": 0, "slot": 1, "behavior_version": 0}',
    '{"step": 1, "slot": 0, "behavior_version": 1}',
]


def written(tmp_path, lines):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_a_file_in_any_order_gives_its_lags(tmp_path):
    later = '{"step": 9, "slot": 0, "behavior_version": 9}'  # the trace is of a longer run
    from_windows = ["\ufeff" + GOOD[0], *GOOD[1:], "", later, ""]
    lags = trace.read(written(tmp_path, from_windows), **SIZE)
    np.testing.assert_array_equal(lags, [[0, 0], [0, 1]])
    replay = trace.Trace(1, 2, lags_IxN=lags)
    np.testing.assert_array_equal(replay.behavior_versions(1), [1, 0])
    np.testing.assert_array_equal(replay.due(0, 2), [[0, 0, 1], [0, 1, 1]])  # steps, slots
    np.testing.assert_array_equal(replay.due(1, 2), [[1], [0]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 5: the line is not JSON"),
        ("[" * 100_000, "line 5: the line is not JSON"),
        ('{"step": 5, "step": 0}', "line 5: the field step is given twice"),
        ("[1]", "line 5: the line is not a JSON object"),
        ('{"step": 1, "slot": 0}', "line 5: behavior_version is 'absent', not an integer"),
        ('{"step": 1.5, "slot": 0, "behavior_version": 0}', "line 5: step is 1.5, not an integer"),
        ('{"step": true, "slot": 0, "behavior_version": 0}', "line 5: step is True"),
        (
            '{"step": 1, "slot": 0, "behavior_version": 2}',
            "line 5: step 1 cannot learn from behavior version 2",
        ),
        (
            '{"step": 1, "slot": 0, "behavior_version": -1}',
            "line 5: step 1 cannot learn from behavior version -1",
        ),
        ('{"step": 2, "slot": 0, "behavior_version": 0}', "line 5: lag 2 is above max_lag=1"),
        ('{"step": 1, "slot": -1, "behavior_version": 0}', "line 5: slot -1 is negative"),
        (
            '{"step": 1, "slot": 0, "behavior_version": 1}',
            "line 5: step 1, slot 0 is given a second time",
        ),
        (
            '{"step": 1, "slot": 2, "behavior_version": 1}',
            "line 5: slot 2 is above 1, the last of num_prompts=2: give all groups, or convert it",
        ),
    ],
)
def test_a_bad_line_is_refused_by_number(tmp_path, line, message):
    with pytest.raises(trace.TraceError, match=f"^{re.escape(message)}"):
        trace.read(written(tmp_path, [*GOOD, line]), **SIZE)


def test_gaps_are_counted_and_the_first_is_named(tmp_path):
    gaps = "^2 gaps; the first is step 0, slot 1: add its line"
    with pytest.raises(trace.TraceError, match=gaps + "; .*--format=trace --num_groups=2"):
        trace.read(written(tmp_path, GOOD[:2]), **SIZE)
    with pytest.raises(trace.TraceError, match="slot 1: add its line$"):
        trace.read(written(tmp_path, GOOD[1:2]), **SIZE)
    from_one = [line.replace('"step": 0', '"step": 2') for line in GOOD]
    with pytest.raises(trace.TraceError, match="step 0, slot 0: .*--first_step=1"):
        trace.read(written(tmp_path, from_one), num_steps=3, num_groups=2, max_lag=2)


def test_a_header_may_stand_in_the_first_line_and_nowhere_else(tmp_path):
    header = '{"header": {"lags": "drawn"}}'
    lags = trace.read(written(tmp_path, ["", header, *GOOD]), **SIZE)
    np.testing.assert_array_equal(lags, [[0, 0], [0, 1]])
    for lines in ([*GOOD[:2], header, *GOOD[2:]], [header, header, *GOOD]):
        with pytest.raises(trace.TraceError, match="line [23]: step is 'absent', not an integer"):
            trace.read(written(tmp_path, lines), **SIZE)


def test_a_replayed_run_is_the_recorded_one(tmp_path):
    """A run with random lags and the replay of its own trace have the same numbers."""
    settings = {"steps": 5, "lag.max_lag": 3, "metrics.lags": True}
    first = tiny_config(**settings, **{"lag.schedule": "uniform"})
    records = [plain(record) for record in train(build_run(first))]
    expected = schedule.make_schedule("uniform", 3, 4, first.seed).lags(np.arange(5))
    np.testing.assert_array_equal([record["lags"] for record in records], expected)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    convert(metrics, Options("run")).write(tmp_path / "trace.jsonl")
    second = tiny_config(
        **settings, **{"lag.schedule": "trace", "lag.trace": str(tmp_path / "trace.jsonl")}
    )
    validation.validate(second, num_devices=1)
    replayed = [plain(record) for record in train(build_run(second))]
    for record in records + replayed:
        del record["time_step"]
    assert replayed == records


def test_config_refuses_a_trace_that_does_not_cover_the_run(tmp_path):
    path = str(written(tmp_path, GOOD))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"lag.schedule": "trace"}, "lag.trace=None: lag.schedule=trace replays a file"),
        ({"lag.trace": path}, f"lag.trace={path}: lag.schedule=constant does not read a trace"),
        (
            {"lag.schedule": "trace", "lag.trace": path},
            f"lag.trace={path}: line 1: lag 1 is above max_lag=0",
        ),
        (
            {"lag.schedule": "trace", "lag.trace": path, "lag.max_lag": 1},
            f"lag.trace={path}: 20 gaps",
        ),
        ({"lag.schedule": "trace", "lag.trace": "absent"}, "lag.trace=absent: "),
        (
            {"lag.schedule": "trace", "lag.trace": path, "lag.start": "synchronous"},
            "lag.start=synchronous",
        ),
    ]
    for overrides, message in refused:
        with pytest.raises(FieldError, match=f"^{re.escape(message)}"):
            validation.validate(tiny_config(**overrides), num_devices=1)
