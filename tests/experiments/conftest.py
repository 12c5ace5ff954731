"""Figures of these tests are drawn in full, and saved coarsely."""

import pathlib
from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest

from experiments.common import style

COARSE_DPI = 40


def _save_coarsely(figure: plt.Figure, path: pathlib.Path) -> pathlib.Path:
    """Does what `style.save` does, with fewer pixels and nothing in its PDF.

    The fonts of a PDF take more time than all the rest. `common/test_style.py` saves one in full.
    """
    png = path.with_name(path.name + ".png")
    figure.savefig(png, dpi=COARSE_DPI)
    path.with_name(path.name + ".pdf").write_bytes(b"%PDF")
    plt.close(figure)
    return png


@pytest.fixture(autouse=True, scope="session")
def coarse_figures() -> Iterator[None]:
    """Makes every experiment save its figures coarsely."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", _save_coarsely)
        yield
