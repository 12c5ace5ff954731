"""Computes summary.json from the records of the bias experiment."""

import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.bias import law, law_claims
from experiments.bias.claim_kinds import Bootstrap
from experiments.common import claims
from staleness_grpo.runtime.records import read_json


def summarize(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of summary.json. They depend on the config and the records only.

    Returns:
      The law of each optimizer and schedule, and the list of claims.

    Raises:
      FileNotFoundError: cells.jsonl or identities.json is missing.
      KeyError: a cell or a measurement at fixed policies is missing.
    """
    cells = law.read_cells(workdir)
    fixed_policies = claims.read({claims.KEY: read_json(workdir / "identities.json")})
    brute_force_error = {claim.name: claim.measured for claim in fixed_policies}[
        "exact_against_all_groups"
    ]
    bootstrap = Bootstrap(np.random.default_rng([config.seed, 1]), config.num_resamples)
    laws: dict[str, dict[str, Any]] = {}
    for optimizer in np.unique(cells["optimizer"]):
        for schedule in np.unique(cells["schedule"]):
            chosen = cells.where(optimizer=optimizer, schedule=schedule)
            laws.setdefault(str(optimizer), {})[str(schedule)] = {
                **law.summarize(chosen, bootstrap),
                "exact_vs_bruteforce_error": brute_force_error,
            }
    measured = law_claims.law_claims(cells, laws, bootstrap) + fixed_policies
    return {**laws, claims.KEY: claims.records(measured)}
