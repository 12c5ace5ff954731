"""Reads from the cells of the bias experiment the law, where it ends, and how tight the bound is.

The bound is that of the bias by a Lipschitz constant times the displacement.
"""

import itertools
import pathlib
from typing import Any

import numpy as np

from experiments.bias.claim_kinds import Bootstrap
from experiments.bias.grid import GRADIENTS, OPTIMIZERS, SCHEDULES
from staleness_grpo.runtime.records import read_jsonl
from staleness_grpo.scaling.power_laws import PowerLaw, fit_power_law

# A cell is off the line when its bias differs from the fitted law by more than this share. It lies
# between the curvature within the clip range (ratios up to 1.2) and the jump at the first clipped
# token.
OFF_THE_LINE = 0.25
CELLS = "cells.jsonl"
AXES = ("gradient", "optimizer", "schedule", "draw", "max_lag", "learning_rate")


class CellTable:
    """Holds records as columns: cells["bias"] is an array over the cells."""

    def __init__(self, records: list[dict[str, Any]]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return np.array([record[name] for record in self.records])
        except KeyError:
            raise KeyError(f"a cell has no {name!r}: {CELLS} is incomplete") from None

    def where(self, **values: Any) -> "CellTable":
        """Returns the cells with these values.

        Raises:
          KeyError: if there is none.
        """
        chosen = [
            record
            for record in self.records
            if all(record.get(name) == value for name, value in values.items())
        ]
        if not chosen:
            raise KeyError(f"no cell has {values}: {CELLS} is incomplete")
        return CellTable(chosen)

    def keep(self, mask: np.ndarray) -> "CellTable":
        """Returns the cells where mask [n] is true."""
        return CellTable([record for record, kept in zip(self.records, mask, strict=True) if kept])


def read_cells(workdir: pathlib.Path) -> CellTable:
    """Reads the cells of a workdir.

    Raises:
      FileNotFoundError: there are none.
      KeyError: the grid has a gap.
    """
    path = workdir / CELLS
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run python -m experiments.bias first")
    cells = CellTable(read_jsonl(path))
    recorded = set(zip(*(cells[name] for name in AXES), strict=True))
    for gradient, optimizer in itertools.product(GRADIENTS, OPTIMIZERS):
        curves = cells.where(gradient=gradient, optimizer=optimizer)
        draws, max_lags = (np.unique(cells[name]).tolist() for name in ("draw", "max_lag"))
        rates = np.unique(curves["learning_rate"]).tolist()
        grid = itertools.product([gradient], [optimizer], SCHEDULES, draws, max_lags, rates)
        for place in grid:
            if place not in recorded:
                missing = dict(zip(AXES, place, strict=True))
                raise KeyError(f"no cell has {missing}: {CELLS} is incomplete")
    return cells


def clip_free(cells: CellTable) -> CellTable:
    """Returns the range of the law: cells with lag whose measured steps clip no token."""
    return cells.keep((cells["clip_fraction"] == 0) & (cells["displacement"] > 0))


def fit(cells: CellTable, abscissa: str) -> PowerLaw:
    """Fits the bias of clip-free cells against an abscissa, with one constant for each draw."""
    kept = clip_free(cells)
    return fit_power_law(kept[abscissa], kept["bias"], kept["draw"])


def slope_summary(cells: CellTable, abscissa: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """Returns the mean slope over draws with its interval, and how well the law fits."""
    law = fit(cells, abscissa)
    return {
        "slope": float(law.slopes.mean()),
        "slope_ci": bootstrap.interval(law.slopes),
        "slope_sd_over_draws": float(law.slopes.std(ddof=1)),
        "r_squared": float(law.r_squared),
        "num_draws": len(law.groups),
        "num_cells": law.num_points,
    }


def gain(cells: CellTable) -> np.ndarray:
    """Returns bias / (eta rms(age)) of each draw, which is the law with slope 1.

    It is the geometric mean over the draw's clip-free cells.
    """
    kept = clip_free(cells)
    ratio = np.log(kept["bias"] / kept["eta_rms_age"])
    return np.exp([ratio[kept["draw"] == draw].mean() for draw in np.unique(kept["draw"])])


def range_ends(cells: CellTable) -> list[dict[str, Any]]:
    """Returns the learning rates of the first clipped and of the first off-line cell.

    There is one entry for each draw and lag that reaches both.

    Raises:
      ValueError: no draw and lag does.
    """
    law = fit(cells, "eta_rms_age")
    cells = cells.keep(cells["eta_rms_age"] > 0)
    draw, lag, rate = cells["draw"], cells["max_lag"], cells["learning_rate"]
    off_line = np.abs(cells["bias"] / law.predict(cells["eta_rms_age"], draw) - 1) > OFF_THE_LINE
    clipped = cells["clip_fraction"] > 0
    ends = []
    for d in np.unique(draw):
        for s in np.unique(lag):
            here = (draw == d) & (lag == s)
            if np.any(off_line & here) and np.any(clipped & here):
                first_off, first_clipped = (
                    float(rate[event & here].min()) for event in (off_line, clipped)
                )
                ends.append(
                    {
                        "draw": int(d),
                        "max_lag": int(s),
                        "off_line": first_off,
                        "clipped": first_clipped,
                    }
                )
    if not ends:
        raise ValueError(
            "no cell leaves the linear range by clipping: raise sgd.highest_learning_rate and "
            "adam.highest_learning_rate"
        )
    return ends


def linear_range(cells: CellTable, bootstrap: Bootstrap) -> dict[str, Any]:
    """Returns where the law ends, in S * eta, and how far that is from the first clipped token.

    The distance is in steps of the learning-rate grid.
    """
    ends = range_ends(cells)
    rates = np.unique(cells["learning_rate"])
    step = rates[1] / rates[0]
    draws = sorted({end["draw"] for end in ends})

    def by_draw(name: str) -> np.ndarray:
        return np.array(
            [min(end[name] * end["max_lag"] for end in ends if end["draw"] == d) for d in draws]
        )

    last_linear = by_draw("off_line") / step
    grid_steps = np.array([np.log(end["off_line"] / end["clipped"]) / np.log(step) for end in ends])
    steps_of_draw = np.array([grid_steps[[end["draw"] == d for end in ends]].mean() for d in draws])
    return {
        "max_s_eta_linear": float(np.median(last_linear)),
        "max_s_eta_linear_ci": bootstrap.interval(last_linear, np.median),
        "max_s_eta_clip_free": float(np.median(by_draw("clipped") / step)),
        "grid_ratio": float(step),
        # Grid steps by which the bias leaves the line later (+) or earlier (-) than the first token
        # is clipped.
        "end_minus_clip_in_grid_steps": float(steps_of_draw.mean()),
        "end_minus_clip_ci": bootstrap.interval(steps_of_draw),
        "share_within_one_step": float(np.mean(np.abs(grid_steps) < 1.5)),
        "share_before_clip": float(np.mean(grid_steps < -0.5)),
        "num_pairs": len(ends),
    }


def lipschitz_tightness(cells: CellTable) -> dict[str, Any]:
    """Returns ||bias|| / (sigma_max(d_phi H) * displacement), before and after clipping.

    It is taken at the last measured step.

    Raises:
      ValueError: no cell lies before clipping, or none after it.
    """
    cells = cells.keep(np.array([value is not None for value in cells["smoothness"]]))
    tightness = cells["last_bias"] / (
        cells["smoothness"].astype(float) * cells["last_displacement"]
    )
    result = {}
    for name, kept in (
        ("before_clipping", cells["clip_fraction"] == 0),
        ("after_clipping", cells["clip_fraction"] > 0),
    ):
        values = tightness[kept]
        if not len(values):
            raise ValueError(
                f"no cell lies {name.replace('_', ' ')}: widen the range of learning rates, "
                "lowest_learning_rate to highest_learning_rate of sgd and adam"
            )
        result[name] = {
            "min": float(values.min()),
            "median": float(np.median(values)),
            "max": float(values.max()),
            "share_above_one": float(np.mean(values > 1)),
            "num_cells": len(values),
        }
    return result


def summarize(cells: CellTable, bootstrap: Bootstrap) -> dict[str, Any]:
    """Summarizes one optimizer and schedule; `cells` are all of theirs, exact and sampled."""
    exact, sampled = cells.where(gradient="exact"), cells.where(gradient="sampled")
    return {
        **slope_summary(exact, "eta_rms_age", bootstrap),
        "abscissa": "eta_rms_age",
        "gain": float(np.exp(np.log(gain(exact)).mean())),
        **linear_range(exact, bootstrap),
        "lipschitz_tightness": lipschitz_tightness(exact),
        "against_s_eta": slope_summary(exact, "s_eta", bootstrap),
        "against_displacement": slope_summary(exact, "displacement", bootstrap),
        "sampled": {
            "against_eta_rms_age": slope_summary(sampled, "eta_rms_age", bootstrap),
            "against_displacement": slope_summary(sampled, "displacement", bootstrap),
        },
    }
