"""Defines the colors and settings that all figures share, and saves figures."""

import pathlib
from typing import Any

import matplotlib

# Agg opens no window, so it works on any machine. It must be chosen before pyplot is imported.
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# The palette of Okabe and Ito (2008) without its yellow. People with color blindness can tell these
# colors apart too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

SETTINGS: Any = {  # Any, because matplotlib types each key as a literal
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
    "pdf.fonttype": 42,  # TrueType: text in a PDF stays text
}


def context() -> Any:
    """Returns a context manager that applies SETTINGS to the figures drawn inside it."""
    return plt.rc_context(SETTINGS)


def save(figure: plt.Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes `path`.png and `path`.pdf, closes the figure, and returns the path of the PNG."""
    for suffix in (".png", ".pdf"):
        # Without a date, the same figure is the same bytes.
        metadata = {"CreationDate": None} if suffix == ".pdf" else None
        figure.savefig(path.with_name(path.name + suffix), metadata=metadata)
    plt.close(figure)
    return path.with_name(path.name + ".png")
