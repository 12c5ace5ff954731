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
      KeyError: a cell is missing.
    """
    cells = law.read_cells(workdir)
    identities = [claims.Claim(**fields) for fields in read_json(workdir / "identities.json")]
    # One number for all laws: the exact H is checked once, at fixed policies.
    error = next(c.measured for c in identities if c.name == "exact_against_all_groups")
    bootstrap = Bootstrap(np.random.default_rng([config.seed, 1]), config.num_resamples)
    laws: dict[str, dict[str, Any]] = {}
    for optimizer in np.unique(cells["optimizer"]):
        for schedule in np.unique(cells["schedule"]):
            chosen = cells.where(optimizer=optimizer, schedule=schedule)
            laws.setdefault(str(optimizer), {})[str(schedule)] = {
                **law.summarize(chosen, bootstrap),
                "exact_vs_bruteforce_error": error,
            }
    measured = law_claims.law_claims(cells, laws, bootstrap) + identities
    return {**laws, claims.KEY: claims.records(measured)}
