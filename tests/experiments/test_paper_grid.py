"""A map with the few lags of the paper has no fitted rule, but still says what the paper says."""

import numpy as np
import pytest

from experiments.common import claims as common_claims
from experiments.common import cli
from experiments.common.flag_parsing import load_config
from experiments.sweep import analysis, claims, figures, grid, laws
from staleness_grpo.runtime.records import plain, write_json, write_jsonl

BOUND, PATH = 1.6e-6, 3.2e-5  # S eta at the boundary, and t_c eta: arXiv 2607.01083
SPEED = 40.0  # update norm / eta


def drawn(cell, name, bound=BOUND):
    """Returns the line of cells.jsonl of a cell that behaves as the paper says, up to rounding."""
    lag, rate, every = cell.lag.max_lag, cell.optimizer.learning_rate, cell.eval_every
    time = every * round(PATH / rate / every)
    collapse = time if lag * rate > bound and time < cell.steps else None
    num_blocks = cell.steps // every
    down = np.arange(num_blocks) * every >= (collapse or cell.steps)
    traces = {
        "eval_reward": np.where(down, 0.01, np.linspace(0.2, 0.8, num_blocks)),
        "clip_fraction": np.full(num_blocks, min(1.0, 0.1 * lag * rate / BOUND)),
        "drift_from_behavior": np.full(num_blocks, SPEED * lag * rate),
        "update_norm": np.full(num_blocks, SPEED * rate),
    }
    return dict(
        cell=name,
        max_lag=lag,
        learning_rate=rate,
        seed=cell.seed,
        steps=cell.steps,
        steps_run=cell.steps,
        finite=True,
        collapse_step=collapse,
        stayed_down=None if collapse is None else True,
        update_norm=SPEED * rate,
        trace_every=every,
        traces={name: list(values) for name, values in traces.items()},
    )


@pytest.fixture(scope="module")
def result():
    config = load_config(cli.ROOT / "experiments" / "configs" / "paper_map_1b.py")
    maps = {
        map_name: [drawn(cell, name) for name, cell in grid.cells(variant).items()]
        for map_name, variant in grid.variant_configs(config).items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laws, "RESAMPLES", 6)
        summary = analysis.summarize(maps, config)
    return maps, summary


def test_boundary_collapse_times_and_their_ratio(result):
    _, summary = result
    # The boundary is between two rates of the grid: 1e-7 and 2e-7, 5e-8 and 1e-7 or 2e-7.
    for lag, low, high in ((8, 2e-7, 5e-7), (16, 1e-7, 2e-7), (32, 5e-8, 1e-7)):
        assert low < summary["eta_max"][str(lag)] < high
    product = summary["collapse_step_times_eta"]
    # An evaluation every 20 steps finds a collapse after 32 steps at step 40.
    assert product["mean"] == pytest.approx(PATH, rel=0.06) and product["cv_of_runs"] < 0.15
    assert summary["collapse_time"]["eta_exponent"] == pytest.approx(-1, abs=0.15)
    # The median of S eta_max is within a step of the grid of 1.6e-6.
    assert 20 / 2 < summary["scale_free_ratio"] < 20
    assert "rules" not in summary


def test_the_exponents_of_the_collapse_time_where_no_bound_hides_it(monkeypatch):
    monkeypatch.setattr(laws, "RESAMPLES", 6)
    config = load_config(cli.ROOT / "experiments" / "configs" / "paper_map_1b.py")
    records = [drawn(cell, name, bound=0.0) for name, cell in grid.cells(config).items()]
    exponents = analysis.summarize_map(records, (700,))["collapse_time"]
    assert exponents["eta_exponent"] == pytest.approx(-1, abs=0.1)
    assert exponents["s_exponent"] == pytest.approx(0, abs=0.02)


def test_the_constants_of_the_papers_rule(result):
    _, summary = result
    assert summary["g_upd"] == pytest.approx(SPEED)
    assert summary["r_crit"] == pytest.approx(SPEED * PATH, rel=0.1)
    assert summary["r_batch"] > SPEED * BOUND  # the smallest drift at which tokens are clipped


def test_a_map_without_collapses_has_no_laws(result):
    maps, _ = result
    stable = [record | {"collapse_step": None} for record in maps["constant"]]
    summary = analysis.summarize_map(stable, (700,))
    assert "eta_max" not in summary and "collapse_step_times_eta" not in summary


def test_claims_and_figures(result, tmp_path):
    maps, summary = result
    found = claims.claims(summary)
    (ratio,) = [claim for claim in found if claim.name == "scale_free_ratio"]
    assert ratio.measured == summary["scale_free_ratio"]
    assert "R_crit / R_batch" in ratio.note
    left_out = [line.split(":")[0] for line in summary["figures_left_out"]]
    expected = {f"scaling_{name}" for name in ("eta_max", "cosine", "anatomy")}
    assert expected <= set(left_out) and "scaling_collapse_time" not in left_out
    for name, records in maps.items():
        write_jsonl(tmp_path / grid.cells_file(name), plain(records))
    write_json(tmp_path / "summary.json", summary | {"claims": common_claims.records(found)})
    stems = {path.stem for path in figures.draw(tmp_path)}
    assert {"scaling_map", "scaling_usable", "scaling_collapse_time"} <= stems


def test_a_map_that_asked_for_comparisons_and_has_none_says_so(result):
    maps, summary = result
    records = [record | {"paired": {"num_comparisons": 0}} for record in maps["constant"]]
    reasons = analysis.figures_left_out(records, summary)
    assert reasons["paired_bias"] == "No cell has a comparison of gradients at its full lag."
