"""Tests that the sweep's compiled training is the host-driven loop, step by step."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from staleness_grpo.config.build import build_run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.sweeps import program as cell_program
from staleness_grpo.sweeps import trainings, workers
from staleness_grpo.sweeps.records import CellFile, cell_record
from staleness_grpo.tasks import make_task
from staleness_grpo.training.loop import train
from tests.helpers import bigram
from tests.helpers.pages import described_fields

MAX_LAG = 4
FREEZE_AFTER = 5


def tiny_config(**overrides):
    config = default_config()
    config.update(dict(steps=12, num_prompts=4, group_size=4, eval_every=3))
    config.warm_start.steps = 0
    config.policy.update(
        dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16)
    )
    config.optimizer.learning_rate = 0.02
    # An untrained policy gets some reward on this task. An exact match on sums would give it none.
    config.task = ConfigDict(
        dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8, difficulty=0.7)
    )
    config.update_from_flattened_dict(overrides)
    return config


def small_config(**overrides):
    """Returns `tiny_config` with a policy that compiles sooner."""
    config = tiny_config()
    bigram.put_into(config)
    config.update_from_flattened_dict(overrides)
    return config


@functools.cache
def program(make_config, optimizer):
    config = make_config(**{"optimizer.name": optimizer})
    return jax.jit(cell_program.make_cell_program(config, MAX_LAG, FREEZE_AFTER))


def host_loop(config):
    return list(train(build_run(config)))


@pytest.mark.parametrize(
    ("make_config", "schedule", "max_lag", "optimizer", "learning_rate"),
    [
        (tiny_config, "constant", 3, "adam", 0.02),
        (tiny_config, "cyclic", 4, "adam", 0.02),
        (tiny_config, "constant", 0, "adam", 0.05),
        (small_config, "constant", 4, "sgd", 1.0),
    ],
)
def test_a_cell_is_the_host_driven_loop(make_config, schedule, max_lag, optimizer, learning_rate):
    config = make_config(
        **{
            "lag.schedule": schedule,
            "lag.max_lag": max_lag,
            "optimizer.name": optimizer,
            "optimizer.learning_rate": learning_rate,
            "seed": 5 + max_lag,
        }
    )
    traces = jax.device_get(program(make_config, optimizer)(cell_program.cell_inputs(config)))
    records = host_loop(config)
    assert traces["steps_run"] == len(records) == 12
    assert not traces.keys() & set(cell_program.GUARD_METRICS)  # there is no guard
    for name in (*cell_program.UPDATE_METRICS, *cell_program.DRIFT_METRICS):
        expected = [np.nan if record[name] is None else record[name] for record in records]
        # Float32 sums in another order. Another sampled token would show in `reward`.
        np.testing.assert_allclose(traces[name], expected, rtol=2e-4, atol=2e-5, err_msg=name)
    evaluated = [record["eval_reward"] for record in records if "eval_reward" in record]
    np.testing.assert_allclose(traces["eval_reward"], evaluated, atol=1e-6)
    np.testing.assert_array_equal(
        traces["reward"], np.float32([record["reward"] for record in records])
    )
    assert len(set(evaluated)) > 1  # it learned something
    _is_the_record_of_the_loop(config, traces, records)
    # Both come from the same parts of the batch, whose gradients nearly cancel.
    ceiling = traces["gradient_cosine_ceiling"]
    np.testing.assert_allclose(ceiling[0], records[0]["gradient_cosine_ceiling"], atol=1e-3)
    assert np.isnan(ceiling[1:]).all()


def _is_the_record_of_the_loop(config, traces, records):
    """Asserts that a compiled cell and a training of the loop have the same record."""
    compiled = cell_record("cell", config, traces)
    loop = cell_record("cell", config, trainings.traces_of(records, config))
    assert compiled.keys() == loop.keys()
    assert compiled["traces"].keys() == loop["traces"].keys()
    for name, value in compiled.items():
        if name == "traces":
            for metric, values in value.items():
                atol = 1e-3 if metric == "gradient_cosine_ceiling" else 2e-5
                np.testing.assert_allclose(
                    values, loop["traces"][metric], rtol=2e-4, atol=atol, err_msg=metric
                )
        elif isinstance(value, float):
            assert loop[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
        else:
            assert loop[name] == value, name


def test_a_guard_scales_a_cell_as_it_scales_the_loop():
    guard = {"guard.mode": "scale", "guard.level": 1e-4, "guard.factor": 0.7}
    config = small_config(**guard, **{"lag.max_lag": 3, "optimizer.learning_rate": 0.05})
    cell = jax.jit(cell_program.make_cell_program(config, MAX_LAG, FREEZE_AFTER))
    traces = jax.device_get(cell(cell_program.cell_inputs(config)))
    records = host_loop(config)
    for name in cell_program.GUARD_METRICS:
        expected = [record[name] for record in records]
        # Float32 sums in another order.
        np.testing.assert_allclose(traces[name], expected, rtol=2e-4, atol=1e-9, err_msg=name)
    np.testing.assert_array_equal(
        traces["guard_scale"], np.float32([record["guard_scale"] for record in records])
    )
    assert traces["guard_scale"][0] == 1 and len(set(traces["guard_scale"])) > 2
    _is_the_record_of_the_loop(config, traces, records)


def test_lag_changes_the_outcome_and_only_after_the_first_step():
    traces = [
        jax.device_get(
            program(tiny_config, "adam")(
                cell_program.cell_inputs(tiny_config(**{"lag.max_lag": lag}))
            )
        )
        for lag in (0, 1, 4)
    ]
    assert len({trace["param_norm"][1] for trace in traces}) == 1
    assert len({trace["param_norm"][-1] for trace in traces}) == 3


def test_a_synchronous_start_has_no_drift_before_the_lag():
    config = tiny_config(**{"lag.max_lag": 4, "lag.start": "synchronous"})
    drift = jax.device_get(program(tiny_config, "adam")(cell_program.cell_inputs(config)))[
        "drift_from_behavior"
    ]
    assert (drift[:4] == 0).all() and (drift[4:] > 0).all()


def test_a_collapsed_cell_is_frozen_and_leaves_nan():
    # Most responses get nothing, and huge steps leave the policy with one response to each prompt.
    config = tiny_config(**{"optimizer.learning_rate": 1e3, "seed": 7})
    config.task.difficulty = 0.9
    traces = jax.device_get(program(tiny_config, "adam")(cell_program.cell_inputs(config)))
    reward, steps_run = traces["eval_reward"], int(traces["steps_run"])
    assert reward[0] > 0 and reward[1] == 0 and np.isnan(reward[2:]).all()
    assert steps_run == 6  # more than FREEZE_AFTER steps since the evaluation at step 0
    assert np.isnan(traces["reward"][6:]).all() and np.isfinite(traces["reward"][:6]).all()
    records = host_loop(config)
    ends = trainings.freeze_rule(config, FREEZE_AFTER, floor=0.0)
    assert next(n for n in range(1, 13) if ends(records[:n])) == steps_run
    _is_the_record_of_the_loop(config, traces, records[:steps_run])


def test_a_cell_whose_parameters_overflow_is_frozen():
    config = tiny_config(**{"optimizer.learning_rate": 1e38})
    traces = jax.device_get(program(tiny_config, "adam")(cell_program.cell_inputs(config)))
    assert traces["steps_run"] < 12
    record = cell_record("cell", config, traces)
    assert not record["finite"]
    records = host_loop(config)
    assert records[-1]["collapsed"] and len(records) % config.eval_every  # inside a block
    loop = cell_record("cell", config, trainings.traces_of(records, config))
    for name in ("finite", "steps_run", "first", "peak", "final", "collapse_step"):
        assert loop[name] == pytest.approx(record[name]), name
    # `time_cell` is added by the worker, `method` by the corrections.
    described = described_fields("cells.jsonl of `experiments.sweep`")
    assert {*record, "time_cell", "paired", "method"} == described
    assert set(record["traces"]) <= described_fields("metrics.jsonl of `experiments.train`")


def test_uniform_lags_are_refused():
    with pytest.raises(ValueError, match="constant"):
        cell_program.cell_inputs(tiny_config(**{"lag.schedule": "uniform"}))


@pytest.mark.parametrize(
    "fields",
    [
        dict(name="arithmetic", num_terms=2, num_digits=1),
        dict(name="enumerable", vocab_size=4, max_response_length=3, num_prompts=5),
        dict(name="enumerable", variable_length=False, reward_levels=[0.0, 0.5, 1.0]),
    ],
)
def test_the_traced_judge_gives_the_host_rewards(fields):
    task = make_task(fields)
    rng = np.random.default_rng(0)
    index_N = rng.integers(task.num_prompts, size=40)
    tokens = rng.integers(task.vocab_size, size=(40, 6, task.max_response_length))
    tokens[:, 0] = task.pad_token
    for row, index in enumerate(index_N):
        answer = task.answer(index)
        tokens[row, 0, : len(answer)] = answer
    ended = np.zeros(tokens.shape[:2], bool)
    mask = np.zeros(tokens.shape, bool)
    for position in range(task.max_response_length):
        mask[..., position] = ~ended
        tokens[..., position] = np.where(ended, task.pad_token, tokens[..., position])
        if task.end_token is not None:
            ended |= tokens[..., position] == task.end_token
    expected = task.rewards(index_N, tokens, mask)
    np.testing.assert_array_equal(
        jax.jit(task.judge)(task.answer_key(index_N), tokens, mask), expected
    )
    assert (expected[:, 0] == expected.max()).all() and expected[:, 1:].min() == 0


def small_cells():
    return {
        f"S{lag}-seed{seed}": small_config(**{"lag.max_lag": lag, "seed": seed})
        for lag in (0, 2)
        for seed in (0, 1)
    }


def run_small(cells, chunk_size=1, num_workers=2):
    records = workers.run_cells(
        cells,
        max_lag=MAX_LAG,
        freeze_after=FREEZE_AFTER,
        chunk_size=chunk_size,
        num_workers=num_workers,
    )
    return {
        record.pop("cell"): {k: v for k, v in record.items() if k != "time_cell"}
        for record in records
    }


@pytest.mark.slow
def test_workers_give_what_the_program_gives_in_chunks():
    cells = dict(list(small_cells().items())[:3])  # the second chunk is filled up
    records = run_small(cells, chunk_size=2, num_workers=2)
    assert set(records) == set(cells)
    for name, config in cells.items():
        traces = jax.device_get(program(small_config, "adam")(cell_program.cell_inputs(config)))
        expected = cell_record(name, config, traces)
        assert records[name]["max_lag"] == config.lag.max_lag
        for metric, values in records[name]["traces"].items():
            np.testing.assert_allclose(
                values, expected["traces"][metric], rtol=2e-4, atol=2e-5, err_msg=metric
            )


def test_an_accelerator_trains_the_cells_in_this_process(monkeypatch):
    """Worker processes could not have it, because it belongs to the process that found it."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(workers, "worker_pool", None)
    started = []
    monkeypatch.setattr(workers, "_run_chunk", lambda *args: started.append(args) or [{}])
    cells = small_cells()
    records = workers.run_cells(
        cells, max_lag=MAX_LAG, freeze_after=FREEZE_AFTER, chunk_size=3, num_workers=2
    )
    assert len(list(records)) == 2
    assert [[name for name, _ in chunk] for chunk, *_ in started] == [
        list(cells)[:3],
        list(cells)[3:],
    ]
    assert all(rest == [MAX_LAG, FREEZE_AFTER, 3] for _, *rest in started)


def test_a_record_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "cells.jsonl"
    cells = CellFile(path)
    cells.append({"cell": "b", "peak": 0.5})
    cells.append({"cell": "a", "peak": float("nan")})
    with path.open("ab") as file:
        file.write(b'{"cell": "c", "pea')
    again = CellFile(path)
    assert set(again.records) == {"a", "b"}
    again.append({"cell": "c", "peak": 1.0})
    again.sort(["c", "b"])
    assert list(CellFile(path).records) == ["c", "b", "a"]  # a name that is not asked for stays
    assert CellFile(path).records["a"]["peak"] is None
