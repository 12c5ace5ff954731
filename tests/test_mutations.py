"""Each mutation of one line of the code must fail a test: the tests would notice such a mistake."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# name -> (file of the package or of the repository, line as it is, line as it must not be, tests
# that notice)
MUTATIONS = {
    "keys that fill up an axis have a weight": (
        "policy/attention.py",
        "jnp.pad(own_mask, ((0, 0),) * 3 + ((0, extra),))",
        "jnp.pad(own_mask, ((0, 0),) * 3 + ((0, extra),), constant_values=True)",
        "policy/test_filled_keys.py",
    ),
    "the ratio upside down": (
        "objective/tokens.py",
        "return self.policy_logprobs - self.behavior_logprobs",
        "return self.behavior_logprobs - self.policy_logprobs",
        "objective/test_surrogate.py",
    ),
    "a gradient through the advantages": (
        "objective/surrogate.py",
        "advantages = jax.lax.stop_gradient(advantages)[..., None]",
        "advantages = advantages[..., None]",
        "objective/test_surrogate.py",
    ),
    "masked places reach the sums": (
        "objective/surrogate.py",
        "jnp.where(mask, logprobs, 0.0)",
        "logprobs",
        "objective/test_surrogate.py",
    ),
    "joined responses that see each other": (
        "policy/joined.py",
        "related = (owner[None] == -1) | (owner[None] == owner[:, None])",
        "related = (owner[None] >= -1) & (owner[:, None] >= -1)",
        "policy/test_transformer.py",
    ),
    "one lag too few": (
        "staleness/schedule.py",
        "return np.minimum(steps_Ix1, self.max_lag)",
        "return np.minimum(steps_Ix1, max(self.max_lag - 1, 0))",
        "staleness/test_schedule.py",
    ),
    "a generator that runs one step too far ahead": (
        "staleness/admission.py",
        "oldest = max(step - max_lag, 0)",
        "oldest = max(step - max_lag - 1, 0)",
        "staleness/test_admission.py",
    ),
    "the slot has no part in the noise": (
        "policy/sampler.py",
        "jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, step), slot), member)",
        "jax.random.fold_in(jax.random.fold_in(key, step), member)",
        "policy/test_sampler.py",
    ),
    "new weights are used and not recorded": (
        "training/in_flight.py",
        "self._changes.append(trace.Change(self.position, version))",
        "pass",
        "training/test_in_flight.py",
    ),
    "new weights read the old cache": (
        "training/in_flight.py",
        "if self._recompute:",
        "if False:",
        "training/test_in_flight.py",
    ),
    "a replay changes weights one version late": (
        "training/in_flight.py",
        "change.version == step for change",
        "change.version == step - 1 for change",
        "training/test_in_flight.py",
    ),
    "the last token is read twice": (
        "policy/sampler.py",
        "jax.lax.fori_loop(0, unfinished.position - 1, read_token",
        "jax.lax.fori_loop(0, unfinished.position, read_token",
        "training/test_in_flight.py",
    ),
    "weights are dropped that a call still needs": (
        "training/asynchronous.py",
        "else admitted, *self._later])",
        "else admitted])",
        "training/test_in_flight.py",
    ),
    "a sketch that loses half of the square": (
        "training/drift.py",
        "/ math.sqrt(size)",
        "/ math.sqrt(2 * size)",
        "training/test_drift.py",
    ),
    "a resumed run starts one step late": (
        "training/run.py",
        'self.state, self.step = arrays["state"], step',
        'self.state, self.step = arrays["state"], step + 1',
        "training/test_checkpoint.py",
    ),
    "a group is paired with itself": (
        "bias/paired.py",
        "gram_XxUxJxJ * (1 - np.eye(num_groups))",
        "gram_XxUxJxJ * np.ones((num_groups, num_groups))",
        "bias/test_paired.py",
    ),
    "the bias with the opposite sign": (
        "bias/exact.py",
        "return pull_back(stale - fresh)[0]",
        "return pull_back(fresh - stale)[0]",
        "bias/test_exact.py",
    ),
    "the buffer trusts the version": (
        "staleness/ring_buffer.py",
        "if wrong_N.any():",
        "if False:",
        "staleness/test_ring_buffer.py",
    ),
    "a rule is fitted to the fold that it is judged on": (
        "scaling/stability.py",
        "cells[(fold != label) & is_stale]",
        "cells[(fold == label) & is_stale]",
        "scaling/test_held_out.py",
    ),
    "a rule is fitted to all folds": (
        "scaling/stability.py",
        "cells[(fold != label) & is_stale]",
        "cells[is_stale]",
        "scaling/test_held_out.py",
    ),
    "an alarm's threshold is chosen on the half that it is judged on": (
        "scaling/alarms.py",
        "largest_values[~collapsed & (half_of_run != judged_half)]",
        "largest_values[~collapsed & (half_of_run == judged_half)]",
        "scaling/test_held_out.py",
    ),
    "an alarm's halves are dealt out by row": (
        "scaling/alarms.py",
        "half_of_run = np.searchsorted(np.unique(seeds), seeds) //",
        "half_of_run = np.arange(len(seeds)) //",
        "scaling/test_held_out.py",
    ),
    "a sweep's halves are dealt out by row": (
        "experiments/sweep/laws.py",
        "return np.searchsorted(labels, seeds) // max(len(labels) // 2, 1) % 2",
        "return np.arange(len(seeds)) % 2",
        "experiments/test_held_out.py",
    ),
    "the held-out likelihood is that of the fit": (
        "experiments/sweep/laws.py",
        '"held_out_log_likelihood": held_out.log_likelihood,',
        '"held_out_log_likelihood": fit.log_likelihood,',
        "experiments/test_held_out.py",
    ),
    "the best rule is that of the best fit": (
        "experiments/sweep/laws.py",
        'by_rule[name]["held_out_log_likelihood"])',
        'by_rule[name]["log_likelihood"])',
        "experiments/test_held_out.py",
    ),
    "the bootstrap draws rows": (
        "scaling/bootstrap.py",
        "labels = np.unique(groups)",
        "labels = groups = np.arange(len(groups))",
        "scaling/test_bootstrap.py",
    ),
    "the interval of the boundary's slope resamples cells": (
        "experiments/sweep/laws.py",
        "group_interval(in_range.seed, statistic, RESAMPLES)",
        "group_interval(np.arange(len(in_range)), statistic, RESAMPLES)",
        "experiments/test_seed_intervals.py",
    ),
    "the interval of the collapse time resamples runs": (
        "experiments/sweep/laws.py",
        'group_interval(np.array([r["seed"] for r in stale]), exponents, RESAMPLES)',
        "group_interval(np.arange(len(stale)), exponents, RESAMPLES)",
        "experiments/test_seed_intervals.py",
    ),
    "the intervals of the constants resample runs": (
        "experiments/sweep/laws.py",
        "group_interval(seeds, median, RESAMPLES)",
        "group_interval(np.arange(len(seeds)), median, RESAMPLES)",
        "experiments/test_seed_intervals.py",
    ),
    "a seed that is drawn twice counts once": (
        "experiments/corrections/analysis.py",
        "np.concatenate([np.flatnonzero(cells.seed == seed) for seed in draw])",
        "np.flatnonzero(np.isin(cells.seed, draw))",
        "experiments/test_seed_intervals.py",
    ),
    "the cost of lag compares different seeds": (
        "experiments/reproduce/contrast.py",
        "interval(final[0] - final[lag])",
        "interval(final[0] - final[lag][::-1])",
        "experiments/test_seed_intervals.py",
    ),
    "the interval of the law's end resamples pairs of problem and lag": (
        "experiments/bias/law.py",
        "bootstrap.interval(steps_of_draw)",
        "bootstrap.interval(grid_steps)",
        "experiments/test_problem_intervals.py",
    ),
}


def source(root: pathlib.Path, file: str) -> pathlib.Path:
    return root / ("" if file.startswith("experiments/") else "staleness_grpo") / file


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_line_of_a_mutation_is_there_once(name):
    file, line, _, tests = MUTATIONS[name]
    count = source(ROOT, file).read_text().count(line)
    assert count == 1, f"{file} has {count} lines {line!r}: adapt the mutation"
    assert (ROOT / "tests" / tests).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_fails_a_test(name, tmp_path):
    file, line, mutated, tests = MUTATIONS[name]
    for folder in ("staleness_grpo", "experiments", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("results"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = source(tmp_path, file)
    text = path.read_text()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", f"tests/{tests}"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    path.write_text(text.replace(line, mutated))
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    # 1: tests ran and some failed. Anything else would be an error of this test.
    assert result.returncode == 1, result.stdout[-2000:] + result.stderr[-2000:]
