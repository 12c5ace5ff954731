"""Records are plain JSON and never written over; a progress bar is for terminals."""

import io
import json
import resource
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.workdir import write_run_files
from staleness_grpo.config.defaults import default_config
from staleness_grpo.runtime.progress import Progress
from staleness_grpo.runtime.records import (
    Appender,
    DamagedFileError,
    plain,
    read_json,
    read_jsonl,
    write_json,
)


def test_plain_is_json():
    record = {
        "a": np.float32(1.5),
        "b": jnp.arange(3),
        "c": float("nan"),
        "d": [np.int64(2), (np.inf,)],
        "e": None,
    }
    expected = {"a": 1.5, "b": [0, 1, 2], "c": None, "d": [2, [None]], "e": None}
    assert json.loads(json.dumps(plain(record))) == expected


def test_records_of_a_broken_run_are_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for run in range(3):
        with Appender(path, num_kept=0) as records:
            records.append({"run": run})
            assert read_jsonl(path) == [{"run": run}]  # on disk before the file is closed
    kept = [read_jsonl(tmp_path / f"metrics.interrupted-{number}.jsonl") for number in (1, 2)]
    assert kept == [[{"run": 0}], [{"run": 1}]]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", []),
        (b'{"a": 1}\n', [{"a": 1}]),
        (b'{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),  # complete but for its newline
        (b'{"a": 1}\n{"a": ', [{"a": 1}]),
        (b'{"a"', []),
    ],
)
def test_a_file_that_a_kill_left_goes_on_after_its_last_complete_record(tmp_path, content, kept):
    path = tmp_path / "cells.jsonl"
    path.write_bytes(content)
    assert read_jsonl(path) == kept
    with Appender(path) as file:
        file.append({"b": 3})
    assert read_jsonl(path) == [*kept, {"b": 3}]
    assert path.read_bytes().count(b"\n") == len(kept) + 1


def test_a_damaged_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2,}\n{"a": 3}\n')
    with pytest.raises(DamagedFileError, match=f"^{path} line 2 is not JSON"):
        read_jsonl(path)
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(DamagedFileError, match=f"^{path} line 2 is not a JSON object"):
        read_jsonl(path)
    path.write_text('{"a": 1,}')
    with pytest.raises(DamagedFileError, match=f"^{path} is not JSON"):
        read_json(path)


def test_appends_that_fail_leave_whole_records(tmp_path):
    path = tmp_path / "cells.jsonl"
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Appender(path) as file:
        file.append({"a": 1})
        # The file may grow by 4 bytes, so a part of each record is written before the error.
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 4, unlimited[1]))
        try:
            for _ in range(2):
                with pytest.raises(OSError):
                    file.append({"b": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        file.append({"c": 3})
    assert path.read_bytes() == b'{"a": 1}\n{"c": 3}\n'


def test_json_is_replaced_whole(tmp_path):
    write_json(tmp_path / "summary.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "summary.json", {"a": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 1}


def test_run_files(tmp_path):
    config = default_config()
    write_run_files(tmp_path / "run", config)
    config.steps = 7
    write_run_files(tmp_path / "run", config)  # does not replace the files
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 300
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert set(environment["versions"]) >= {"jax", "flax", "numpy"} and environment["devices"]


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self):
        """Says so."""
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), True), (io.StringIO(), False)])
def test_progress_is_for_terminals(monkeypatch, stream, shown):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("learner steps", 2) as progress:
        progress.advance("lag 3")
        progress.advance("lag 4")
    assert ("2/2" in stream.getvalue()) == shown
    assert bool(stream.getvalue()) == shown
