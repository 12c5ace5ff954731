"""Lengths have the mean, correlation and limit that were asked for; bad files are refused."""

import math

import numpy as np
import pytest

from staleness_grpo.errors import FieldError
from staleness_grpo.pipeline.lengths import BLOCK, Lengths, read_lengths


def lengths(distribution="lognormal", **fields):
    defaults = dict(mean=200.0, sigma=0.8, correlation=0.0, limit=10**6)
    return Lengths(distribution, **defaults | fields)


def drawn(model, group_size=4, num_groups=4000):
    draw = model.sampler(group_size, seed=0)
    return np.array([draw(number) for number in range(num_groups)])


def test_a_lognormal_has_its_mean_and_sigma():
    values = drawn(lengths())
    # 16,000 draws: the standard error of the mean is 200 sqrt(exp(0.64) - 1) / 126 = 1.5.
    assert values.mean() == pytest.approx(200, abs=6)
    assert np.log(values).std() == pytest.approx(0.8, abs=0.02)


def test_a_geometric_has_the_probabilities_of_trials_until_success():
    values = drawn(lengths("geometric", mean=4.0))
    for length in (1, 2, 5):
        expected = 0.25 * 0.75 ** (length - 1)
        assert np.mean(values == length) == pytest.approx(expected, abs=0.015)
    assert set(drawn(lengths("geometric", mean=1.0), num_groups=50).flat) == {1}


def test_the_limit_cuts_and_constants_are_constant():
    values = drawn(lengths(limit=300))
    share = 0.5 * math.erfc((math.log(300 / 200) + 0.32) / 0.8 / math.sqrt(2))
    assert np.mean(values == 300) == pytest.approx(share, abs=0.015) and values.max() == 300
    assert set(drawn(lengths("constant"), num_groups=50).flat) == {200}


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_lengths_of_a_group_share_the_correlation_of_their_normal_numbers(correlation):
    logs = np.log(drawn(lengths(correlation=correlation, mean=5000.0)))
    measured = np.corrcoef(logs[:, 0], logs[:, 1])[0, 1]
    assert measured == pytest.approx(correlation, abs=0.04)  # three standard errors at 0


def test_recorded_lengths_are_drawn_equally_often(tmp_path):
    path = tmp_path / "lengths.jsonl"
    path.write_text('7\n\n{"length": 9.0}\n{"step": 1, "lengths": [7, 30]}\n')
    assert read_lengths(path).tolist() == [7, 9, 7, 30]
    values = drawn(lengths("file", path=str(path)))
    shares = [np.mean(values == length) for length in (7, 9, 30)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.02)


def test_a_text_beside_a_length_may_hold_any_line_end_of_unicode(tmp_path):
    path = tmp_path / "lengths"
    path.write_text('{"text": "a\u2028b\x85c", "length": 3}\r\n5\n', encoding="utf-8")
    assert read_lengths(path).tolist() == [3, 5]


def test_a_group_has_the_same_lengths_whenever_it_is_asked_for():
    draw, again = lengths().sampler(4, 3), lengths().sampler(4, 3)
    late = again(5 * BLOCK + 1)
    assert again(0) == draw(0) and draw(5 * BLOCK + 1) == late
    assert lengths().sampler(4, 4)(0) != draw(0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "has no lengths"),
        ("12\n0\n", "line 2 is no length"),
        ("12\nx\n", "line 2 is no length"),
        ("1.5\n", "line 1 is no length"),
        ("true\n", "line 1 is no length"),
        ("Infinity\n", "line 1 is no length"),
        ('{"tokens": 3}\n', "line 1 is no length"),
        ("12\n40\n", "40 tokens, above limit=20"),
    ],
)
def test_a_file_without_usable_lengths_is_refused(tmp_path, content, reason):
    path = tmp_path / "lengths"
    path.write_text(content)
    with pytest.raises(FieldError, match=reason) as error:
        lengths("file", path=str(path), limit=20)
    assert error.value.field == "path"


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("distribution", dict(distribution="normal")),
        ("mean", dict(mean=0.5)),
        ("mean", dict(mean=20.0, limit=10)),
        ("mean", dict(mean=math.nan)),
        ("sigma", dict(sigma=-1.0)),
        ("sigma", dict(sigma=math.inf)),
        ("correlation", dict(correlation=1.5)),
        ("limit", dict(limit=0)),
        ("path", dict(distribution="file")),
        ("path", dict(path="x")),
        ("path", dict(distribution="file", path="/no/such/file")),
    ],
)
def test_a_distribution_that_cannot_be_drawn_is_refused(field, fields):
    with pytest.raises(FieldError) as error:
        lengths(**fields)
    assert error.value.field == field
