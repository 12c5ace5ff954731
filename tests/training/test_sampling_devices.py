"""A sampler with devices of its own gives the rollouts that the learner's devices would give."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from staleness_grpo.bias.paired import estimate
from staleness_grpo.config import validation
from staleness_grpo.errors import FieldError
from tests.helpers.tiny import tiny_config

CASES = {
    "lag": {"lag.max_lag": 2, "eval_every": 3},
    "minibatches": {"updates_per_batch": 2, "lag.max_lag": 1, "correction.name": "decoupled_ppo"},
    "paired": {"metrics.paired_every": 2, "metrics.samples_every": 2},
    "held out": {"heldout.every": 2, "heldout.fraction": 0.5, "sampler.batch_prompts": 2},
}


@pytest.fixture(scope="module", params=list(CASES))
def both(request, run_on_devices):
    printed = run_on_devices("sampling_devices", json.dumps(CASES[request.param]), num_devices=2)
    return json.loads(printed.splitlines()[-1])


def test_only_the_sampler_uses_both_devices(both):
    alone, split = both
    assert alone["sampled_by"] == [1] and split["sampled_by"] == [2]
    assert alone["state_on"] == split["state_on"] == [0]


def test_records_and_parameters_are_the_same_up_to_rounding(both):
    alone, split = both
    by_step = {record["step"]: record for record in alone["records"]}
    # The record of the step before the snapshot was still to come.
    assert [record["step"] for record in split["records"]] == [0, 1, 3, 4, 5]
    for other in split["records"]:
        one = by_step[other["step"]]
        assert one.keys() == other.keys()
        for name in ("train_reward", "eval_reward", "heldout_reward", "lag_mean"):
            assert one.get(name) == other.get(name)
        # A clipped token can differ where a ratio is at the bound, the norm of a gradient cannot.
        assert_allclose(one["grad_norm"], other["grad_norm"], rtol=1e-4)
    for one, other in zip(alone["params"], split["params"], strict=True):
        assert_allclose(np.array(one), np.array(other), atol=1e-5)


def test_a_batch_without_lag_still_has_no_bias(run_on_devices):
    overrides = {"metrics.paired_every": 1, "num_prompts": 8}
    printed = run_on_devices("sampling_devices", json.dumps(overrides), num_devices=2)
    for run in json.loads(printed.splitlines()[-1]):
        gram = np.array([record["paired_gram"] for record in run["records"]])
        found = estimate(gram)
        assert np.abs(gram).max() > 0 and found.bias_norm == 0
        assert found.bias_norm_interval == (0, 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sampler.devices": 3}, "sampler.devices=3: leave it unset, or give a divisor of the 4"),
        ({"sampler.devices": 4, "sampler.batch_prompts": 2}, "sampler.devices=4: leave it unset"),
        ({"sampler.devices": 4}, "sampler.devices=4: this machine has 2 devices: give at most 2"),
    ],
)
def test_devices_that_cannot_split_a_batch_are_refused(overrides, message):
    with pytest.raises(FieldError, match=message):
        validation.validate(tiny_config(**overrides), num_devices=2)
