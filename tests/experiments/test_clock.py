"""Trainings in simulated pipelines: records, summary, figures, a second call, and refusals."""

import contextlib

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.clock import __main__ as clock
from experiments.clock import analysis, figures, measure
from experiments.common import cli
from experiments.common.flag_parsing import load_config
from experiments.pipeline.grid import Cell, make_cell
from staleness_grpo.errors import FieldError
from staleness_grpo.pipeline.rules import RULES
from staleness_grpo.runtime.records import read_json, read_jsonl
from staleness_grpo.tasks import make_task
from staleness_grpo.training.loop import train
from staleness_grpo.training.rollouts import TRAINING
from staleness_grpo.training.run import assemble_run
from staleness_grpo.training.simulated import SimulatedPipeline
from tests.helpers import bigram
from tests.helpers.pages import described_fields

CONFIG = cli.ROOT / "experiments" / "configs" / "clock.py"


def tiny(**fields):
    """Returns short trainings of a bigram table, in which the slowest groups are dropped."""
    config = load_config(CONFIG)
    config.update(dict(steps=60, num_prompts=4, group_size=2))
    config.lag.max_lag = 8
    bigram.put_into(config)
    config.task.num_prompts = 4
    config.clock.update(dict(seeds=(0, 1), buffers=("synchronous", "drop"), max_lags=(1,)))
    config.clock.update(dict(limits=(9,), seconds=60.0))
    config.clock.cluster.update(dict(num_groups=4, group_size=2, step_seconds=2.0))
    config.clock.cluster.update(dict(publish_seconds=0.5))
    config.clock.cluster.engines.update(dict(count=1, slots=8))
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clock") / "run"
    config = tiny()
    clock.validate(config)
    cli.complete(clock.main, clock.draw, config, folder)
    return folder


def test_every_training_has_a_record_until_its_time_is_over(workdir):
    records = read_jsonl(workdir / "cells.jsonl")
    named = [(record["buffer"], record["seed"]) for record in records]
    assert named == [(b, s) for b in ("synchronous", "colocated", "drop") for s in (0, 1)]
    for record in records:
        assert set(record) == described_fields("cells.jsonl of `experiments.clock`")
        assert record["times"] == sorted(record["times"]) and record["times"][0] == 0
        assert 60 - 8 * record["seconds_per_step"] < record["times"][-1] <= 60
        assert len(record["eval_reward"]) == len(record["times"])
    assert {r["lag_max"] for r in records if r["buffer"] != "drop"} == {0}


def test_only_a_rule_that_drops_slow_groups_does_not_train_all_that_it_generates(workdir):
    for record in read_jsonl(workdir / "cells.jsonl"):
        shares = record["trained_by_prompt"]
        if record["buffer"] == "drop":
            assert record["discarded_tokens"] > 0 and min(shares) < 1
        else:
            assert record["discarded_tokens"] == 0 and shares == [1.0] * 4


def test_the_summary_compares_rewards_at_the_same_time(workdir):
    records, summary = read_jsonl(workdir / "cells.jsonl"), read_json(workdir / "summary.json")
    assert summary["seconds"] == min(record["times"][-1] for record in records)
    rows = [record for record in records if record["buffer"] == "drop"]
    at_end = [np.interp(summary["seconds"], r["times"], r["eval_reward"]) for r in rows]
    numbers = summary["by_rule"]["drop"]["1"]
    assert numbers["reward_at"]["1"] == pytest.approx(np.mean(at_end))
    low, high = numbers["reward_interval"]["1"]
    assert low == pytest.approx(min(at_end)) and high == pytest.approx(max(at_end))
    assert {path.stem for path in workdir.glob("*.png")} == {"clock_reward", "clock_prompts"}


def test_a_second_call_trains_nothing_and_a_broken_off_one_goes_on(workdir, tmp_path, capsys):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    cli.complete(clock.main, cli.draw_nothing, tiny(), workdir)
    assert "finished already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    lines = (workdir / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:30])
    clock.main(tiny(), tmp_path)
    assert (tmp_path / "cells.jsonl").read_bytes() == b"".join(lines)


def test_shares_are_of_the_prompts_that_were_answered():
    config = tiny()
    config.seed = 1
    cell = Cell("drop", 1, limit=9, seed=1)
    task = make_task(config.task, None)
    with contextlib.closing(assemble_run(config, task)) as run:
        trained, update = [], run.update

        def recorded(state, batch):
            trained.extend(np.asarray(batch.prompts.index_N).tolist())
            return update(state, batch)

        run.update = recorded
        source = SimulatedPipeline(run, *make_cell(config.clock, cell))
        for _ in train(run, source=source):
            if run.step == 12:
                break
        result = source.result()
        shares = measure.trained_shares(run.generator, result, task.num_prompts)
        discarded = [group.number for group in result.groups if group.is_discarded]
        lost = [run.generator.prompts(TRAINING, *np.divmod([n], 4)).index_N[0] for n in discarded]
    assert len(set(trained)) > 1 and discarded
    counts = [np.bincount(index, minlength=4) for index in (trained, lost)]
    assert shares == pytest.approx(counts[0] / (counts[0] + counts[1]))


def test_a_training_that_collapsed_does_not_end_the_comparison():
    def cell(buffer, times, collapsed):
        numbers = dict.fromkeys(measure.SIMULATED, 1.0)
        fields = {"buffer": buffer, "max_lag": 1, "seed": 0, "learner_steps": 9}
        rewards = [0.5] * len(times)
        return fields | numbers | {"collapsed": collapsed, "times": times, "eval_reward": rewards}

    summary = analysis.summarize(
        [cell("drop", [0.0, 50.0], False), cell("bounded", [0.0, 5.0], True)]
    )
    assert summary["seconds"] == 50.0
    assert summary["by_rule"]["bounded"]["1"]["reward_at"]["1"] == 0.5
    assert summary["by_rule"]["bounded"]["1"]["collapsed"] == 1


def test_every_rule_is_drawn(workdir):
    cells, summary = read_jsonl(workdir / "cells.jsonl"), read_json(workdir / "summary.json")
    names = list(RULES)  # more than there are colors
    drop = [record for record in cells if record["buffer"] == "drop"]
    many = [record | {"buffer": name} for name in names for record in drop]
    figure = figures.reward_figure(many, analysis.summarize(many) | {"seconds": 9.0})
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == names
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(names)
    plt.close(figure)
    assert summary["num_cells"] == len(cells)


def test_the_reward_lies_on_the_line_between_two_evaluations():
    cell = {"times": [0.0, 10.0, 30.0], "eval_reward": [0.0, 0.5, 0.9]}
    assert [analysis.reward(cell, t) for t in (5, 20, 99)] == pytest.approx([0.25, 0.7, 0.9])


def test_steps_that_end_before_the_time_are_refused(tmp_path):
    with pytest.raises(FieldError, match="give more steps") as error:
        clock.main(tiny(steps=5), tmp_path)
    assert error.value.field == "steps"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clock.seconds", 0.0),
        ("clock.seeds", ()),
        ("clock.buffers", ("newest",)),
        ("clock.max_lags", (-1,)),
        ("clock.limits", (9, 17)),
        ("clock.cluster.num_groups", 5),
        ("clock.cluster.group_size", 3),
        ("clock.cluster.engines.count", 0),
        ("clock.cluster.in_flight", "continue"),
        ("sampler.batch_prompts", 2),
        ("lag.schedule", "cyclic"),
        ("metrics.parameter_drift", True),
        ("eval_every", 0),
    ],
)
def test_a_config_that_cannot_run_is_refused(field, value):
    with pytest.raises(FieldError) as error:
        clock.validate(tiny(**{field: value}))
    assert error.value.field == field
