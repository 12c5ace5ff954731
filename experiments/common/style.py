"""Sets the look that all figures share, and saves them."""

import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, on any machine; before pyplot
import matplotlib.pyplot as plt  # noqa: E402

# Okabe and Ito's palette (2008), which people of all kinds of color vision can tell apart; yellow
# is left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

SETTINGS: Any = {  # Any: matplotlib's type lists every key
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "savefig.dpi": 160,
    "pdf.fonttype": 42,  # text stays text
}


def context() -> Any:
    """Returns a context manager under which figures are drawn."""
    return plt.rc_context(SETTINGS)


def save(figure: plt.Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes `path`.png and `path`.pdf, closes the figure, and returns the PNG's path."""
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_name(path.name + suffix))
    plt.close(figure)
    return path.with_name(path.name + ".png")
