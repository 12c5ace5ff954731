"""Fits the law of the bias to the cells of the bias experiment.

The law is a power law without clipped tokens: ||bias|| = gain * abscissa^slope. The module also
finds where the law ends, and how tight the Lipschitz bound is. This bound on the bias is a
Lipschitz constant times the displacement.
"""

import itertools
import pathlib
from typing import Any

import numpy as np

from experiments.bias.axes import GRADIENT_KINDS, OPTIMIZER_LABELS, SCHEDULES
from experiments.bias.claim_kinds import Bootstrap
from staleness_grpo.runtime.records import read_jsonl
from staleness_grpo.scaling.power_laws import PowerLaw, fit_power_law

# A cell is off the line if its bias differs from the fitted law by more than this share. The value
# is larger than the curvature within the clip range (where ratios go up to 1.2), and smaller than
# the jump at the first clipped token.
OFF_THE_LINE = 0.25
CELLS_FILE = "cells.jsonl"
CELL_FIELDS = ("gradient", "optimizer", "schedule", "draw", "max_lag", "learning_rate")


class CellTable:
    """Holds records as a table of columns: cells["bias"] is an array with the bias of each cell."""

    def __init__(self, records: list[dict[str, Any]]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return np.array([record[name] for record in self.records])
        except KeyError:
            raise KeyError(f"a cell has no {name!r}: {CELLS_FILE} is incomplete") from None

    def where(self, **values: Any) -> "CellTable":
        """Returns the cells whose fields have these values.

        Raises:
          KeyError: no cell has them.
        """
        chosen = [
            record
            for record in self.records
            if all(record.get(name) == value for name, value in values.items())
        ]
        if not chosen:
            raise KeyError(f"no cell has {values}: {CELLS_FILE} is incomplete")
        return CellTable(chosen)

    def keep(self, mask: np.ndarray) -> "CellTable":
        """Returns the cells where the mask [n] is true."""
        return CellTable(
            [record for record, is_kept in zip(self.records, mask, strict=True) if is_kept]
        )


def read_cells(workdir: pathlib.Path) -> CellTable:
    """Reads the cells of a workdir and checks that the grid is complete.

    Raises:
      FileNotFoundError: there is no cells.jsonl.
      KeyError: a cell of the grid is missing.
    """
    path = workdir / CELLS_FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run python -m experiments.bias first")
    cells = CellTable(read_jsonl(path))
    recorded = set(zip(*(cells[name] for name in CELL_FIELDS), strict=True))
    for gradient, optimizer in itertools.product(GRADIENT_KINDS, OPTIMIZER_LABELS):
        curves = cells.where(gradient=gradient, optimizer=optimizer)
        draws, max_lags = (np.unique(cells[name]).tolist() for name in ("draw", "max_lag"))
        rates = np.unique(curves["learning_rate"]).tolist()
        grid = itertools.product([gradient], [optimizer], SCHEDULES, draws, max_lags, rates)
        for place in grid:
            if place not in recorded:
                missing = dict(zip(CELL_FIELDS, place, strict=True))
                raise KeyError(f"no cell has {missing}: {CELLS_FILE} is incomplete")
    return cells


def clip_free(cells: CellTable) -> CellTable:
    """Returns the cells that the law is about: those with lag and without clipped tokens."""
    return cells.keep((cells["clip_fraction"] == 0) & (cells["displacement"] > 0))


def fit(cells: CellTable, abscissa: str) -> PowerLaw:
    """Fits a power law to the bias of the clip-free cells.

    Each draw has its own slope and constant.

    Args:
      cells: the cells; those with clipped tokens are ignored.
      abscissa: the field that is the x-value of a cell.
    """
    free = clip_free(cells)
    return fit_power_law(free[abscissa], free["bias"], free["draw"])


def slope_summary(cells: CellTable, abscissa: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """Returns the mean slope over draws, its interval, and numbers on how well the law fits."""
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
    """Returns the gain of each draw, which is the constant of the law with slope 1.

    The gain is the geometric mean of bias / (eta rms(age)) over the draw's clip-free cells.
    """
    free = clip_free(cells)
    log_ratio = np.log(free["bias"] / free["eta_rms_age"])
    return np.exp([log_ratio[free["draw"] == draw].mean() for draw in np.unique(free["draw"])])


def range_ends(cells: CellTable) -> list[dict[str, Any]]:
    """Returns, for each draw and lag, the learning rates at which clipping starts and the law ends.

    `clipped` is the lowest learning rate with clipped tokens. `off_line` is the lowest learning
    rate whose cell is off the line (OFF_THE_LINE). A draw and lag that lacks one is left out.

    Raises:
      ValueError: no draw and lag has both.
    """
    law = fit(cells, "eta_rms_age")
    cells = cells.keep(cells["eta_rms_age"] > 0)
    draw, lag, rate = cells["draw"], cells["max_lag"], cells["learning_rate"]
    off_line = np.abs(cells["bias"] / law.predict(cells["eta_rms_age"], draw) - 1) > OFF_THE_LINE
    clipped = cells["clip_fraction"] > 0
    ends = []
    for one_draw in np.unique(draw):
        for one_lag in np.unique(lag):
            curve = (draw == one_draw) & (lag == one_lag)
            if np.any(off_line & curve) and np.any(clipped & curve):
                first_off, first_clipped = (
                    float(rate[event & curve].min()) for event in (off_line, clipped)
                )
                ends.append(
                    {
                        "draw": int(one_draw),
                        "max_lag": int(one_lag),
                        "off_line": first_off,
                        "clipped": first_clipped,
                    }
                )
    if not ends:
        raise ValueError(
            "for no draw and lag do the learning rates reach both clipped tokens and the end of "
            "the law: raise sgd.highest_learning_rate and adam.highest_learning_rate"
        )
    return ends


def linear_range(cells: CellTable, bootstrap: Bootstrap) -> dict[str, Any]:
    """Returns the S * eta at which the law ends, and its distance from the first clipped token.

    The unit of the distance is one step of the learning-rate grid.
    """
    ends = range_ends(cells)
    rates = np.unique(cells["learning_rate"])
    step = rates[1] / rates[0]
    draws = sorted({end["draw"] for end in ends})

    def smallest_s_eta(name: str) -> np.ndarray:
        """Returns the smallest S * eta of an event ('off_line' or 'clipped') in each draw."""
        return np.array(
            [min(end[name] * end["max_lag"] for end in ends if end["draw"] == d) for d in draws]
        )

    last_linear = smallest_s_eta("off_line") / step
    grid_steps = np.array([np.log(end["off_line"] / end["clipped"]) / np.log(step) for end in ends])
    steps_of_draw = np.array([grid_steps[[end["draw"] == d for end in ends]].mean() for d in draws])
    return {
        "max_s_eta_linear": float(np.median(last_linear)),
        "max_s_eta_linear_ci": bootstrap.interval(last_linear, np.median),
        "max_s_eta_clip_free": float(np.median(smallest_s_eta("clipped") / step)),
        "grid_ratio": float(step),
        # The number of grid steps from the first clipped token to the end of the law. It is
        # negative if the law ends first.
        "end_minus_clip_in_grid_steps": float(steps_of_draw.mean()),
        "end_minus_clip_ci": bootstrap.interval(steps_of_draw),
        "share_within_one_step": float(np.mean(np.abs(grid_steps) < 1.5)),
        "share_before_clip": float(np.mean(grid_steps < -0.5)),
        "num_pairs": len(ends),
    }


def lipschitz_tightness(cells: CellTable) -> dict[str, Any]:
    """Returns statistics of the ratio ||bias|| / (sigma_max(d_phi H) * displacement).

    The ratio is taken at the last measured step. Cells without clipped tokens (`before_clipping`)
    and cells with clipped tokens (`after_clipping`) are summarized apart.

    Raises:
      ValueError: one of the two groups has no cell.
    """
    cells = cells.keep(np.array([value is not None for value in cells["smoothness"]]))
    tightness = cells["last_bias"] / (
        cells["smoothness"].astype(float) * cells["last_displacement"]
    )
    result = {}
    for name, in_group in (
        ("before_clipping", cells["clip_fraction"] == 0),
        ("after_clipping", cells["clip_fraction"] > 0),
    ):
        values = tightness[in_group]
        if not len(values):
            raise ValueError(
                f"there is no cell {name.replace('_', ' ')}: lower lowest_learning_rate or raise "
                "highest_learning_rate of sgd and adam"
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
    """Returns the law of one optimizer and schedule, and where it ends.

    Args:
      cells: all cells of the optimizer and schedule, with exact and with sampled gradients.
      bootstrap: makes the intervals.
    """
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
