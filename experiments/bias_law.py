"""What the cells of the bias experiment say: the law, where it ends, and how tight the Lipschitz bound is."""

import numpy as np

from staleness_grpo.scaling.fits import PowerLaw, bootstrap_interval, fit_power_law

# A cell is off the line when its bias differs from the fitted law by more than this. Curvature within the clip range
# (ratios up to 1.2) reaches 10-20 %; the jump at the first clipped token is mostly a factor of 1.5 to 6.
OFF_THE_LINE = 0.25


class Cells:
    """Records as columns: cells["bias"] is an array over the cells."""

    def __init__(self, records: list[dict]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.array([record[name] for record in self.records])

    def where(self, **values) -> "Cells":
        """The cells with these values. Raises ValueError if there is none."""
        found = [r for r in self.records if all(r[name] == value for name, value in values.items())]
        if not found:
            raise ValueError(f"no cell has {values}: cells.jsonl is incomplete")
        return Cells(found)

    def keep(self, mask: np.ndarray) -> "Cells":
        """The cells where mask [n] is true."""
        return Cells([record for record, kept in zip(self.records, mask, strict=True) if kept])


def clip_free(cells: Cells) -> Cells:
    """Cells with lag and without a clipped token in any measured step: the range of the law."""
    return cells.keep((cells["clip_fraction"] == 0) & (cells["displacement"] > 0))


def fit(cells: Cells, abscissa: str) -> PowerLaw:
    """The bias of clip-free cells against an abscissa, one constant for each draw."""
    kept = clip_free(cells)
    return fit_power_law(kept[abscissa], kept["bias"], kept["draw"])


def slope_summary(cells: Cells, abscissa: str, rng: np.random.Generator, num_resamples: int) -> dict:
    """Mean slope over draws with its interval, and how well the law fits."""
    law = fit(cells, abscissa)
    return {
        "slope": float(law.slopes.mean()),
        "slope_ci": bootstrap_interval(law.slopes, rng, num_resamples),
        "slope_sd_over_draws": float(law.slopes.std(ddof=1)),
        "r_squared": law.r_squared,
        "num_draws": len(law.groups),
        "num_cells": law.num_points,
    }


def gain(cells: Cells) -> np.ndarray:
    """bias / (eta rms(age)) of each draw: geometric mean over its clip-free cells, i.e. the law with slope 1."""
    kept = clip_free(cells)
    ratio = np.log(kept["bias"] / kept["eta_rms_age"])
    return np.exp([ratio[kept["draw"] == draw].mean() for draw in np.unique(kept["draw"])])


def range_ends(cells: Cells) -> list[dict]:
    """For each draw and lag that reaches both: the learning rates of the first clipped and first off-line cell."""
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
                first_off, first_clipped = (float(rate[event & here].min()) for event in (off_line, clipped))
                ends.append({"draw": int(d), "max_lag": int(s), "off_line": first_off, "clipped": first_clipped})
    if not ends:
        raise ValueError("no cell leaves the linear range by clipping: raise the highest learning rate")
    return ends


def linear_range(cells: Cells, rng: np.random.Generator, num_resamples: int) -> dict:
    """Where the law ends, in S * eta, and where the first token is clipped, in units of the learning-rate grid."""
    ends = range_ends(cells)
    rates = np.unique(cells["learning_rate"])
    step = rates[1] / rates[0]
    draws = sorted({end["draw"] for end in ends})

    def by_draw(name):
        return np.array([min(end[name] * end["max_lag"] for end in ends if end["draw"] == d) for d in draws])

    last_linear = by_draw("off_line") / step
    grid_steps = np.array([np.log(end["off_line"] / end["clipped"]) / np.log(step) for end in ends])
    steps_of_draw = np.array([grid_steps[[end["draw"] == d for end in ends]].mean() for d in draws])
    return {
        "max_s_eta_linear": float(np.median(last_linear)),
        "max_s_eta_linear_ci": bootstrap_interval(last_linear, rng, num_resamples, np.median),
        "max_s_eta_clip_free": float(np.median(by_draw("clipped") / step)),
        "grid_ratio": float(step),
        # Grid steps by which the bias leaves the line later (+) or earlier (-) than the first token is clipped.
        "end_minus_clip_in_grid_steps": float(steps_of_draw.mean()),
        "end_minus_clip_ci": bootstrap_interval(steps_of_draw, rng, num_resamples),
        "share_within_one_step": float(np.mean(np.abs(grid_steps) < 1.5)),
        "share_before_clip": float(np.mean(grid_steps < -0.5)),
        "num_pairs": len(ends),
    }


def lipschitz_tightness(cells: Cells) -> dict:
    """||bias|| / (sigma_max(d_phi H) * displacement) at the last measured step, before and after clipping."""
    cells = cells.keep([value is not None for value in cells["smoothness"]])
    tightness = cells["last_bias"] / (cells["smoothness"].astype(float) * cells["last_displacement"])
    result = {}
    for name, kept in (
        ("before_clipping", cells["clip_fraction"] == 0),
        ("after_clipping", cells["clip_fraction"] > 0),
    ):
        values = tightness[kept]
        if not len(values):
            raise ValueError(f"no cell lies {name.replace('_', ' ')}: widen the learning rates")
        result[name] = {
            "min": float(values.min()),
            "median": float(np.median(values)),
            "max": float(values.max()),
            "share_above_one": float(np.mean(values > 1)),
            "num_cells": len(values),
        }
    return result


def summarize(cells: Cells, rng: np.random.Generator, num_resamples: int) -> dict:
    """The summary of one optimizer and schedule; `cells` are all of theirs, exact and sampled."""
    exact, sampled = cells.where(gradient="exact"), cells.where(gradient="sampled")
    return {
        **slope_summary(exact, "eta_rms_age", rng, num_resamples),
        "abscissa": "eta_rms_age",
        "gain": float(np.exp(np.log(gain(exact)).mean())),
        **linear_range(exact, rng, num_resamples),
        "lipschitz_tightness": lipschitz_tightness(exact),
        "against_s_eta": slope_summary(exact, "s_eta", rng, num_resamples),
        "against_displacement": slope_summary(exact, "displacement", rng, num_resamples),
        "sampled": {
            "against_eta_rms_age": slope_summary(sampled, "eta_rms_age", rng, num_resamples),
            "against_displacement": slope_summary(sampled, "displacement", rng, num_resamples),
        },
    }
