"""A rehearsal compiles what the run needs, changes no bit of it, and ends when the run does."""

import chex
import jax
import pytest

from staleness_grpo.config.defaults import default_config
from staleness_grpo.runtime.records import plain
from staleness_grpo.tasks import make_task
from staleness_grpo.training import rehearsal
from staleness_grpo.training.loop import train
from staleness_grpo.training.run import assemble_run


def config_of(**fields):
    config = default_config()
    config.update(dict(steps=4, num_prompts=4, group_size=2, eval_every=2))
    config.task.num_digits = 1
    config.warm_start.update(dict(steps=12, batch_size=8))
    config.policy.update(
        dict(num_layers=1, d_model=8, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=8)
    )
    config.update_from_flattened_dict(fields)
    return config


def trained(config, task, is_rehearsed):
    """Returns the records, the parameters, and the names of programs compiled after the start."""
    compiled = []

    def listen(event, duration, fun_name="", **kwargs):
        if event.endswith("backend_compile_duration"):
            compiled.append(fun_name)

    if is_rehearsed:
        with rehearsal.rehearsed(config, task):
            run = assemble_run(config, task)
    else:
        run = assemble_run(config, task)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        records = [plain(record) for record in train(run)]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    for record in records:
        del record["time_step"]
    return records, jax.device_get(run.state.params), compiled


def test_nothing_is_left_to_compile_and_no_bit_changes(tmp_path, monkeypatch):
    config, task = config_of(seed=3), make_task(config_of().task, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    monkeypatch.setattr(rehearsal, "usable_cores", lambda: {0, 1})
    assert rehearsal.pays(config, task)
    records, params, compiled = trained(config, task, is_rehearsed=True)
    assert not {"jit(sample)", "jit(update)", "jit(ceiling)"} & set(compiled), compiled
    assert not rehearsal.pays(config, task)  # the warm start is there now
    jax.clear_caches()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    expected, expected_params, compiled = trained(config, task, is_rehearsed=False)
    assert {"jit(sample)", "jit(update)", "jit(ceiling)"} <= set(compiled)
    assert records == expected
    chex.assert_trees_all_equal(params, expected_params)


def test_it_ends_with_an_error_of_the_run_and_hides_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rehearsal, "usable_cores", lambda: {0, 1})
    started = []

    def broken(config, task, params):
        started.append(params)
        raise ValueError("of the rehearsal alone")

    monkeypatch.setattr(rehearsal, "assemble_run", broken)
    config, task = config_of(), make_task(config_of().task, None)
    with rehearsal.rehearsed(config, task):
        pass
    with pytest.raises(KeyError, match="of the run"), rehearsal.rehearsed(config, task):
        raise KeyError("of the run")
    assert len(started) == 2


def test_it_is_left_out_where_it_does_not_pay(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task = make_task(config_of().task, None)
    for cores, fields in (({0, 1}, {"warm_start.steps": 0}), ({0, 1}, {"mesh.data": 2}), ({0}, {})):
        monkeypatch.setattr(rehearsal, "usable_cores", lambda cores=cores: cores)
        assert not rehearsal.pays(config_of(**fields), task)
