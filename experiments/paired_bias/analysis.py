"""Turns the records of the trainings into summary.json: the cells, and the law of the bias."""

from typing import Any

import numpy as np

from experiments.sweep.laws import CLIP_LEVEL
from staleness_grpo.scaling.bootstrap import value_interval

RESAMPLES = 1000
MIN_CELLS = 4  # for a slope
ABSCISSAE = {"s_eta": "S eta", "drift": "drift from the behavior policy"}


def summarize(cells: list[dict]) -> dict[str, Any]:
    """Returns all of summary.json but the claims.

    `by_cell` has the cells side by side, `slopes` what they say of the law by abscissa.
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
    """Returns a sentence for each figure or slope that the records cannot carry."""
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
    """Returns d log(bias norm) / d log(abscissa) over stale cells with a positive estimate.

    `all` is over all of them, `unclipped` over those with a clip fraction below CLIP_LEVEL. Each is
    by least squares, with a bootstrap over cells, and None for fewer than MIN_CELLS.

    An estimate that came out as 0 has no logarithm. Where the bias is small beside the noise, such
    cells are left out (`num_left_out`), while the ones beside them that came out too large stay. So
    the slope is biased, towards 0 if that is at the small end.
    """
    stale = [
        cell for cell in cells if cell["max_lag"] > 0 and cell["bias_norm"] >= 0 and cell[abscissa]
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
        """Fits each resample, a row of cell numbers; NaN where all cells are at one abscissa."""
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
