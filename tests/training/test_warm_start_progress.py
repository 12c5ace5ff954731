"""A warm start shows how far it is, on a terminal alone."""

import io
import sys

import pytest

from staleness_grpo.config.defaults import default_config
from staleness_grpo.policy.configured import make_policy
from staleness_grpo.runtime.preemption import Stopped
from staleness_grpo.tasks.arithmetic import ArithmeticTask
from staleness_grpo.training import warm_start as warm_start_lib
from tests.helpers import bigram

TASK = ArithmeticTask(num_terms=2, num_digits=1)


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self):
        """Says so."""
        return True


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Returns a function that makes a warm start of 20 steps, and returns what stderr got."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")
    config = default_config()
    bigram.put_into(config)
    config.task.num_digits = 1
    config.warm_start.update(dict(steps=20, batch_size=4))

    def start(stream, must_stop=lambda: False):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            policy = make_policy(config.policy, TASK.vocab_size)
            try:
                warm_start_lib.warm_start(policy, TASK, config, must_stop)
            except Stopped:
                return f"stopped {stream.getvalue()}"
        return stream.getvalue()

    return start


def test_a_terminal_sees_every_step_counted_and_the_cache_needs_none(started):
    shown = started(Terminal())
    assert "warm start" in shown and "20/20" in shown and "21/20" not in shown
    assert started(Terminal()) == ""  # the second call reads the result of the first


def test_a_file_gets_no_bar(started):
    assert started(io.StringIO()) == ""


def test_the_bar_of_a_stopped_warm_start_is_not_full(started):
    shown = started(Terminal(), must_stop=lambda: True)
    assert shown.startswith("stopped ") and "/20" in shown and "20/20" not in shown
    # The cursor is shown again: the bar has ended.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
