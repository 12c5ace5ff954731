"""What a sweep reports as held out is of whole seeds, and no fit has seen them.

The seeds of the two halves have boundaries far apart, as in `tests.scaling.test_held_out`. A half
that sees one row of the other half's seeds knows both boundaries.
"""

import numpy as np
import pytest

from experiments.sweep import analysis, claims, laws
from staleness_grpo.scaling import stability

RATES = 2.0 ** np.arange(-12, -2)
LAGS = (1, 2, 4, 16, 64)
LOW_SEEDS, HIGH_SEEDS = (3, 5), (8, 13)


def contradicting_records():
    """Returns records that collapse from the second rate on, or for HIGH_SEEDS only at the last."""
    return [
        dict(
            max_lag=lag,
            learning_rate=float(rate),
            seed=seed,
            steps=100,
            collapse_step=50 if place >= (1 if seed in LOW_SEEDS else 9) else None,
        )
        for seed in (*LOW_SEEDS, *HIGH_SEEDS)
        for lag in LAGS
        for place, rate in enumerate(RATES)
    ]


def contradicting_cells():
    return stability.at_horizons(contradicting_records(), (100,))


@pytest.fixture
def two_rules(monkeypatch):
    """Leaves two rules with at most two parameters, because a fit of all rules takes long."""
    rules = {name: stability.RULES[name] for name in ("horizon", "min")}
    monkeypatch.setattr(stability, "RULES", rules)


@pytest.mark.parametrize("num_seeds", [2, 3, 4, 5, 6])
def test_a_half_of_the_seeds_has_all_rows_of_its_seeds(num_seeds):
    rng = np.random.default_rng(num_seeds)
    labels = rng.choice(100, num_seeds, replace=False)
    # A seed may have many more rows than another, in any order.
    seeds = rng.permutation(np.repeat(labels, 1 + rng.integers(40, size=num_seeds)))
    half = laws.seed_halves(seeds)
    half_of_seed = {label: set(half[seeds == label]) for label in labels}
    assert all(len(halves) == 1 for halves in half_of_seed.values())
    sizes = [sum(halves == {i} for halves in half_of_seed.values()) for i in (0, 1)]
    assert sum(sizes) == num_seeds and abs(sizes[0] - sizes[1]) <= 1


def test_held_out_rules_are_no_better_than_chance_where_seeds_contradict(two_rules):
    cells = contradicting_cells()
    # The order of the rows says nothing about their seeds.
    mixed = cells[np.random.default_rng(0).permutation(len(cells))]
    for rule in laws.rules(mixed).values():
        # Of the nine rates with one outcome, the other half's boundary has one right.
        chance = (1 / 9 + 1) / 2
        assert rule["held_out_balanced_accuracy"] == pytest.approx(chance, rel=1e-12)
        assert rule["held_out_balanced_accuracy_stale"] == pytest.approx(chance, rel=1e-12)
        # A boundary of infinite width gives each cell a chance of 1/2. A fit is no worse on its own
        # cells.
        assert rule["log_likelihood"] > -len(cells) * np.log(2)
        assert rule["held_out_log_likelihood"] < 1000 * rule["log_likelihood"]


def test_a_map_is_fitted_only_if_either_half_of_its_seeds_has_both_outcomes():
    """Checks that outcomes of the other half's seeds do not count."""
    cells = contradicting_cells()
    assert analysis.can_be_fitted(cells)
    one_sided = cells[~np.isin(cells.seed, HIGH_SEEDS) | (cells.learning_rate < RATES[9])]
    assert one_sided.collapsed.any() and not one_sided.collapsed.all()
    assert not analysis.can_be_fitted(one_sided)


def test_the_best_rule_and_the_claims_take_the_held_out_numbers():
    """Checks with a rule that wins in its fit and loses on held-out seeds."""

    def rule(fitted, held_out, accuracy):
        return {
            "log_likelihood": fitted,
            "held_out_log_likelihood": held_out,
            "held_out_balanced_accuracy": accuracy,
            "held_out_balanced_accuracy_stale": accuracy - 0.125,
            "n": 40,
        }

    rules = {"min": rule(-1.0, -300.0, 0.6), "product": rule(-90.0, -100.0, 0.75)}
    assert laws.best_rule(rules) == "product"
    slope = {"slope": 0.0, "interval": [0.0, 0.0], "num_seeds": 4, "n": 40}
    time = {"num_seeds": 4, "n": 40, "n_censored": 0}
    for name in ("eta_exponent", "s_exponent"):
        time |= {name: 0.0, f"{name}_interval": [0.0, 0.0]}
    summary = {
        "horizons": (100,),
        "num_seeds": 4,
        "num_cells": 40,
        "rules": rules,
        "eta_max_slope": {"falling": slope, "flat": slope},
        "collapse_step_times_eta": slope | {"cv_of_runs": 0.0, "cv_interval": [0.0, 0.0]},
        "collapse_time": time,
    }
    found = {claim.name: claim for claim in claims.map_claims(summary)}
    assert found["smaller_bound_is_best"].measured == -200.0
    assert found["smaller_bound_is_best"].holds is False
    classified = found["boundary_classifies_other_seeds"]
    assert classified.measured == 0.75 and "Without S = 0 it is 0.625." in classified.note
