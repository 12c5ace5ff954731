"""A figure is saved as PNG and PDF: the same bytes each time, and text that stays text."""

import matplotlib.pyplot as plt
from matplotlib.image import imread

from experiments.common import style

SAVE = style.save  # before the tests of experiments replace it


def saved(path):
    with style.context():
        figure, axes = plt.subplots(figsize=(2, 1), layout="constrained")
        axes.plot([1, 2], label="a line")
        axes.legend()
        png = SAVE(figure, path)
    assert not plt.fignum_exists(figure.number)
    return png, path.with_name(path.name + ".pdf")


def test_a_figure_is_the_same_bytes_each_time(tmp_path):
    first, second = saved(tmp_path / "one.panel"), saved(tmp_path / "two")
    assert first[0] == tmp_path / "one.panel.png"
    for path, again in zip(first, second, strict=True):
        assert path.read_bytes() == again.read_bytes()
    assert imread(first[0]).shape[:2] == (160, 320)
    assert first[1].read_bytes().startswith(b"%PDF") and b"CIDFontType2" in first[1].read_bytes()
