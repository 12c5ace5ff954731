"""A run may be given more steps, and its file of problems may be moved."""

import functools
import shutil

import pytest
from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.workdir import check_same_config
from experiments.train.__main__ import draw, main
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import plain, read_json, write_json
from tests.helpers import killing
from tests.helpers.tiny import tiny_config

SAVES = {"eval_every": 4, "checkpoint.save_every": 2, "checkpoint.keep": 9}
LAG = {"lag.max_lag": 3, "lag.schedule": "uniform"}


def run(workdir, config):
    cli.execute(main, draw, config, str(workdir), lambda config: None, steps_may_grow=True)


def ends_alike(workdir, whole):
    return killing.ending(workdir) == killing.ending(whole)


@pytest.mark.slow
def test_a_finished_synchronous_run_goes_on_from_its_end(tmp_path, capsys):
    run(tmp_path / "whole", tiny_config(**SAVES, steps=12))
    run(tmp_path / "run", tiny_config(**SAVES, steps=8))
    first = (tmp_path / "run" / "summary.json").read_bytes()
    capsys.readouterr()
    run(tmp_path / "run", tiny_config(**SAVES, steps=12))
    assert "finished already" not in capsys.readouterr().out
    assert ends_alike(tmp_path / "run", tmp_path / "whole")
    assert not (tmp_path / "run" / "metrics.interrupted-1.jsonl").exists()  # nothing was repeated
    assert (tmp_path / "run" / "summary_8_steps.json").read_bytes() == first
    assert read_json(tmp_path / "run" / "config_8_steps.json")["steps"] == 8
    assert read_json(tmp_path / "run" / "config.json")["steps"] == 12
    with pytest.raises(FlagError, match="steps is 12 in the folder, 8 in this call"):
        run(tmp_path / "run", tiny_config(**SAVES, steps=8))


def test_with_lag_it_goes_on_before_the_rollouts_that_the_shorter_run_did_not_need(tmp_path):
    run(tmp_path / "whole", tiny_config(**SAVES, **LAG, steps=12))
    run(tmp_path / "run", tiny_config(**SAVES, **LAG, steps=8))
    longer = tiny_config(**SAVES, **LAG, steps=12)
    reason = "step 8 cannot be used: its run ends at step 8, and with lags up to 3 .* up to step 5"
    with pytest.raises(FlagError, match=f"{reason}: .*fallback to go on from step 4$"):
        run(tmp_path / "run", longer)
    longer.checkpoint.fallback = True
    run(tmp_path / "run", longer)
    assert ends_alike(tmp_path / "run", tmp_path / "whole")


def test_a_run_whose_learning_rate_falls_to_its_end_says_why_it_cannot_be_longer(tmp_path):
    falling = {"optimizer.decay": "linear"}
    check = functools.partial(check_same_config, tmp_path, steps_may_grow=True)
    write_json(tmp_path / "config.json", plain(tiny_config(**falling, steps=4).to_dict()))
    reason = (
        "steps is 4 in the folder, 6 in this call, and the learning rate falls to 0 at the last one"
    )
    with pytest.raises(FlagError, match=reason):
        check(tiny_config(**falling, steps=6))
    falling["optimizer.decay_steps"] = 4
    write_json(tmp_path / "config.json", plain(tiny_config(**falling, steps=4).to_dict()))
    check(tiny_config(**falling, steps=6))


@pytest.mark.slow
def test_a_moved_file_of_problems_is_the_same_and_a_changed_one_is_not(tmp_path):
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    from tests.helpers import byte_model

    byte_model.write(tmp_path)
    lines = [{"prompt": prompt, "answer": "2"} for prompt in ("1+1?", "4/2?")]
    path = byte_model.problems_file(tmp_path, *lines)
    config = byte_model.text_config(tmp_path)
    fields = dict(name="jsonl", path=str(path), verifier="number", max_response_length=6)
    config.task = ConfigDict(fields)
    config.steps, config.eval_every = 2, 0
    run(tmp_path / "run", config)
    (tmp_path / "run" / "summary.json").unlink()
    shutil.move(path, tmp_path / "moved.jsonl")
    config.task.path = str(tmp_path / "moved.jsonl")
    run(tmp_path / "run", config)
    assert (tmp_path / "run" / "summary.json").exists()
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "moved.jsonl").write_text('{"prompt": "3?", "answer": "3"}')
    with pytest.raises(FieldError, match="were made with other problems"):
        run(tmp_path / "run", config)
