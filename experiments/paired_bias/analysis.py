"""Computes the numbers of summary.json from cells.jsonl: the cells, and the law of the bias."""

from typing import Any

import numpy as np

from staleness_grpo.scaling.alarms import CLIP_LEVEL
from staleness_grpo.scaling.bootstrap import value_interval

RESAMPLES = 1000
MIN_CELLS = 4  # a slope of fewer cells is not fitted
# The record fields that the bias is fitted against, with their labels.
ABSCISSAE = {"s_eta": "S eta", "drift": "drift from the behavior policy"}


def summarize(cells: list[dict]) -> dict[str, Any]:
    """Returns summary.json without the claims.

    Returns:
      A dictionary with the keys:

      - `by_cell`: the records without the evaluations.
      - `slopes`: `slope` by abscissa. An abscissa that no cell recorded is left out.
      - `figures_left_out`: sentences that say which figures or slopes are missing, and why.
    """
    slopes = {
        name: slope(cells, name)
        for name in ABSCISSAE
        if any(cell[name] is not None for cell in cells)
    }
    return {
        "by_cell": [
            {key: value for key, value in cell.items() if key not in ("eval_steps", "eval_rewards")}
            for cell in cells
        ],
        "slopes": slopes,
        "figures_left_out": left_out(slopes),
    }


def left_out(slopes: dict[str, dict]) -> list[str]:
    """Returns a sentence for each panel or slope that cannot be made from the records."""
    sentences = []
    for name, label in ABSCISSAE.items():
        if name not in slopes:
            sentences.append(
                f"paired_bias: The panel against {label} is empty: it is not recorded."
            )
        elif slopes[name]["unclipped"] is None:
            sentences.append(
                f"slope against {label}: It needs {MIN_CELLS} cells with lag > 0, a clip fraction "
                f"below {CLIP_LEVEL:g} and a positive estimate."
            )
    return sentences


def slope(cells: list[dict], abscissa: str) -> dict[str, dict | None]:
    """Fits d log(bias norm) / d log(abscissa) by least squares, over cells with lag > 0.

    The interval is a bootstrap over cells.

    The slope can be biased. Where the bias is small compared with the noise, some estimates are 0
    and have no logarithm. These cells are left out and counted in `num_left_out`. Other cells there
    have estimates that are too large, and these are kept. If such cells have the smallest
    abscissae, the slope is biased towards 0.

    Returns:
      Two fits. Each is None if it has fewer than MIN_CELLS cells:

      - `all`: over all cells with a positive estimate.
      - `unclipped`: over the cells among them with a clip fraction below CLIP_LEVEL.
    """
    compared = [cell for cell in cells if cell["bias_norm"] is not None]
    stale = [
        cell
        for cell in compared
        if cell["max_lag"] > 0 and cell["bias_norm"] >= 0 and cell[abscissa]
    ]
    unclipped = [cell for cell in stale if cell["clip_fraction"] < CLIP_LEVEL]
    return {"all": _fit(stale, abscissa), "unclipped": _fit(unclipped, abscissa)}


def _fit(stale: list[dict], abscissa: str) -> dict[str, Any] | None:
    cells = [cell for cell in stale if cell["bias_norm"] > 0]
    if len(cells) < MIN_CELLS:
        return None
    x = np.log([cell[abscissa] for cell in cells])
    y = np.log([cell["bias_norm"] for cell in cells])

    def slopes(resamples: np.ndarray, axis: int) -> np.ndarray:
        """Fits the slope of each resample, which is a row of indices of cells.

        The slope is NaN if all cells of a resample have the same abscissa.
        """
        del axis
        return np.array(
            [
                np.polyfit(x[rows], y[rows], 1)[0] if len(np.unique(x[rows])) > 1 else np.nan
                for rows in resamples
            ]
        )

    fitted = np.polyval(np.polyfit(x, y, 1), x)
    return {
        "slope": float(np.polyfit(x, y, 1)[0]),
        "interval": list(
            value_interval(np.arange(len(x)), np.random.default_rng(0), RESAMPLES, slopes)
        ),
        "r_squared": float(1 - np.sum((y - fitted) ** 2) / np.sum((y - y.mean()) ** 2)),
        "n": len(cells),
        "num_left_out": len(stale) - len(cells),
    }
