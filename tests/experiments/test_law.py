"""The study of the law, on records that are drawn from a known law."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.claims import read as read_claims
from experiments.common.flag_parsing import load_config
from experiments.law import __main__ as study
from experiments.law import settings
from experiments.law.predictions import factors, heldout, probe_runs
from experiments.law.settings import Setting
from experiments.sweep import grid
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime.records import read_json, write_jsonl
from staleness_grpo.scaling import stability
from staleness_grpo.scaling.early_sign import SMALL_MODELS
from staleness_grpo.scaling.prior import of_small_models
from staleness_grpo.staleness.schedule import make_schedule
from tests.helpers.collapses import law, record

CONFIG = cli.ROOT / "experiments" / "configs" / "law.py"
MOMENTA = {"b1_0": 0.0, "b1_97": 0.97}
UNUSED_RULES = ("staleness", "horizon", "max", "product")  # no claim reads them


def small():
    """Returns the study with two momenta, two held-out settings and one intervention."""
    config = load_config(CONFIG)
    kept = {name: config.variants[name] for name in (*MOMENTA, "group_4", "sgd", "dual_clip_3")}
    with config.unlocked():
        config.variants = kept
    config.law.calibration = tuple(MOMENTA)
    config.law.heldout = ("group_4", "sgd")
    config.law.interventions = ("dual_clip_3",)
    return config


def truth(name):
    """Returns the law that a setting's records follow."""
    if name == "dual_clip_3":  # twice the boundary
        return law(0.9, t_inf=300.0 * 2**1.7, cap=1.0)
    if name == "sgd":  # another unit of the learning rate, and no momentum
        return law(0.0, rate=0.02, cap=0.1)
    return law(MOMENTA.get(name, 0.9))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Runs the study on a workdir that has all records already, so that nothing is trained."""
    folder = tmp_path_factory.mktemp("law") / "run"
    folder.mkdir()
    config = small()
    study.validate(config)
    rng = np.random.default_rng(0)
    for name, setting in settings.configs(config).items():
        rows = [
            record(cell, fields, truth(name), rng) for cell, fields in grid.cells(setting).items()
        ]
        if name == "b1_0":  # it learns half as well
            rows = [row | {"final": row["final"] / 2} for row in rows]
        write_jsonl(folder / grid.cells_file(name), rows)
    with pytest.MonkeyPatch.context() as patch:
        for rule in UNUSED_RULES:  # most of the time is that of their fits
            patch.delitem(stability.RULES, rule)
        cli.complete(study.main, study.draw, config, folder)
    return folder


def test_the_study_finds_the_constants(workdir):
    summary = read_json(workdir / "summary.json")
    inside = [
        found[constant]["low"] <= truth(name)[constant] <= found[constant]["high"]
        for name, found in summary["settings"].items()
        for constant in ("s0", "b")
    ]
    # These are 95 % intervals of 12 constants: that three or more miss has a chance of 2 %.
    assert len(inside) == 12 and sum(inside) >= 10
    low, high = summary["momentum"]["slope_interval"]
    assert low < 1 < high and high - low < 1


def test_the_law_that_made_the_records_wins(workdir):
    claims = {claim.name: claim for claim in read_claims(read_json(workdir / "summary.json"))}
    assert claims["saturating_law_wins"].holds
    assert claims["s0_grows_like_the_memory"].holds


def test_boundaries_are_predicted_and_baselines_are_not_favored(workdir):
    heldout = read_json(workdir / "summary.json")["heldout"]
    rows = {(row["setting"], row["max_lag"]): row for row in heldout["rows"]}
    assert set(rows) == {(name, lag) for name in ("group_4", "sgd") for lag in (1, 4, 16, 64)}
    for row in rows.values():
        known = truth(row["setting"])
        exact = known["t_inf"] * (1 + known["s0"] / row["max_lag"]) / row["steps"]
        boundary = min(known["rate"] * exact ** (1 / known["b"]), known["cap"])
        assert row["probe"] == pytest.approx(boundary, rel=0.6)
        if row["measured"] is not None:
            assert row["measured"] == pytest.approx(boundary, rel=0.25)
    assert heldout["factors"]["probe"]["median"] < 1.3
    assert heldout["factors"]["inverse_lag"]["median"] > 2
    # Constants of the reference know nothing of the unit of another optimizer.
    assert rows["sgd", 16]["transfer"] < rows["sgd", 16]["measured"] / 3


def test_the_probe_is_cheap_and_knows_only_its_seed_and_its_steps(workdir):
    config = small()
    study_law = config.law
    setting = settings.read(config, _maps(workdir, config))["group_4"]
    runs = probe_runs(setting, tuple(study_law.probe_lags), study_law.probe_steps)
    assert set(runs.seed) == {20} and runs.step.max() <= 150
    assert set(runs.max_lag) == {0.0, 1.0, 16.0} and len(runs) <= 12
    other = [r for r in setting.records if r["seed"] == 20]
    again = probe_runs(
        Setting(other, 0.9, "adam"), tuple(study_law.probe_lags), study_law.probe_steps
    )
    np.testing.assert_array_equal(runs.step, again.step)


def cells_of(seed, falls):
    """Makes cells of one seed at S = 0, 1, 16 and four rates. `falls` gives the collapse step."""
    return [
        {
            "max_lag": lag,
            "learning_rate": rate,
            "seed": seed,
            "optimizer": "adam",
            "steps": 400,
            "steps_run": 400,
            "finite": True,
            "collapse_step": falls(lag, rate),
            "trace_every": 5,
        }
        for lag in (0, 1, 16)
        for rate in (1e-3, 2e-3, 4e-3, 8e-3)
    ]


def test_the_measured_boundary_has_no_run_of_the_probe():
    """The probe's seed collapses everywhere, the other seed above 3e-3 alone."""
    records = cells_of(0, lambda lag, rate: 20) + cells_of(
        1, lambda lag, rate: 200 if rate > 3e-3 else None
    )
    law_section = ConfigDict(dict(heldout=("x",), probe_lags=(0, 1, 16), probe_steps=150))
    prior = of_small_models()
    found = heldout({"x": Setting(records, 0.9, "adam")}, law_section, prior, 2e-3)
    for row in found["rows"]:
        assert 2e-3 < row["measured"] < 4e-3 and 2e-3 < row["synchronous"] < 4e-3


def test_the_probe_takes_a_later_collapse_for_a_stable_run():
    """Every run collapses at step 200. The probe of 150 steps goes up to the largest rate."""
    setting = Setting(cells_of(0, lambda lag, rate: 200), 0.9, "adam")
    runs = probe_runs(setting, (0, 1, 16), 150)
    assert not runs.collapsed.any() and runs.learning_rate.max() == 8e-3
    longer = probe_runs(setting, (0, 1, 16), 250)
    assert longer.collapsed.all() and longer.learning_rate.min() == 1e-3


@pytest.mark.parametrize(("schedule", "ages"), [("uniform", (8, 0.5)), ("cyclic", (7.5, 0))])
def test_the_mean_age_takes_the_place_of_the_largest_lag(schedule, ages):
    """It is that of the schedule itself, after its start. A lag whose age is 0 has no row."""
    steps = np.arange(64, 64 + 1600)
    for max_lag, age in zip((16, 1), ages, strict=True):
        lags = make_schedule(schedule, max_lag, 64).lags(steps)
        np.testing.assert_allclose(lags.mean(), age, rtol=0.02)
    setting = Setting(cells_of(0, lambda lag, rate: 20), 0.9, "adam", schedule)
    assert set(setting.runs.max_lag) == {0, *ages}
    both = Setting(setting.records + cells_of(1, lambda lag, rate: None), 0.9, "adam", schedule)
    section = ConfigDict(dict(heldout=("x",), probe_lags=(0, 1, 16), probe_steps=150))
    rows = heldout({"x": both}, section, of_small_models(), 2e-3)["rows"]
    assert [row["max_lag"] for row in rows] == ([1, 16] if schedule == "uniform" else [16])


@pytest.mark.parametrize(
    ("field", "value", "named", "hint"),
    [
        ("sweep.seeds", (10,), "law.heldout", "has one seed: give it two or more"),
        ("sweep.max_lags", (1, 4, 16), "law.heldout", "no cells with S = 0: add 0"),
        ("law.heldout", ("b1_0",), None, None),
    ],
)
def test_maps_that_could_not_be_summarized_are_refused_before_they_are_made(
    field, value, named, hint
):
    config = load_config(cli.ROOT / "experiments" / "configs" / "law_rest.py")
    config.update_from_flattened_dict({field: value})
    if named is None:
        return settings.validate(config)
    with pytest.raises(FieldError, match=hint) as error:
        settings.validate(config)
    assert error.value.field in (named, "law.calibration")


def test_interventions_need_the_lag_at_which_they_are_compared():
    config = load_config(cli.ROOT / "experiments" / "configs" / "law.py")
    settings.validate(config)
    config.sweep.max_lags = (0, 1, 4)
    with pytest.raises(FieldError, match="^law.interventions=.* no cells with S = 16"):
        settings.validate(config)


def test_a_study_names_what_takes_the_place_of_the_lag():
    config = load_config(cli.ROOT / "experiments" / "configs" / "law_rest.py")
    settings.validate(config)
    maps = {name: [] for name in settings.configs(config)}
    read = settings.read(config, maps)
    assert read["cyclic"].schedule == "cyclic" and read["wider"].schedule == "constant"
    config.law.age = "largest"
    assert settings.read(config, maps)["cyclic"].schedule == "constant"
    config.law.age = "median"
    with pytest.raises(FieldError, match="law.age=median: choose one of largest, mean"):
        settings.validate(config)


def _maps(workdir, config):
    from staleness_grpo.runtime.records import read_jsonl

    return {name: read_jsonl(workdir / grid.cells_file(name)) for name in settings.configs(config)}


def test_the_best_reward_is_that_of_the_setting_and_of_a_rate_that_lives(workdir):
    rewards = read_json(workdir / "summary.json")["rewards"]
    for name, full in (("reference", 0.9), ("b1_0", 0.45), ("b1_97", 0.9)):
        for lag in ("0", "1", "4"):  # the smallest rate is stable there
            assert rewards[name][lag]["best_final"] == pytest.approx(full)
            assert rewards[name][lag]["learning_rate"] < 2.5e-3


def test_an_intervention_moves_the_boundary_by_its_factor(workdir):
    found = read_json(workdir / "summary.json")["interventions"]["by_name"]["dual_clip_3"]
    assert found["low"] < 2 < found["high"]
    assert found["ratio"] == pytest.approx(2, rel=0.3)


def test_factors_are_at_least_one_whichever_side_is_larger():
    found = factors([0.5, 2.0, 1.0, 4.0])
    assert found["median"] == 2.0 and found["largest"] == 4.0 and found["within_typical"] == 0.25
    assert factors([])["median"] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("law.heldout", ("nothing",)),
        ("law.calibration", ()),
        ("law.probe_steps", 0),
        ("law.probe_lags", ()),
        ("stories", "/no/such/folder"),
    ],
)
def test_a_wrong_field_is_named(field, value):
    config = small()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(FieldError) as error:
        study.validate(config)
    assert error.value.field == field


def test_a_second_call_draws_the_figures_again(workdir):
    paths = {path.name for path in study.draw(workdir)}
    names = ("rule", "momentum", "heldout", "interventions")
    assert paths == {f"law_{name}.png" for name in names}


def test_the_constants_of_the_package_are_those_of_the_record():
    record = read_json(cli.ROOT / "experiments" / "results" / "law" / "summary.json")
    prior = of_small_models()
    np.testing.assert_allclose(prior.mean, record["prior"]["mean"], atol=0.006)
    np.testing.assert_allclose(prior.spread, record["prior"]["spread"], atol=0.006)
    sign = record["signs"]["calibration"]
    assert sign["time"] == pytest.approx(SMALL_MODELS.time, rel=0.002)
    assert sign["slope"] == pytest.approx(SMALL_MODELS.slope, abs=0.006)
    assert sign["sigma"] == pytest.approx(SMALL_MODELS.sigma, abs=0.06)
