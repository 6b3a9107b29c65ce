"""Accuracy by counts, its intervals, and by class."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tljax.metrics.accuracy import by_class, score, wilson_interval
from tljax.metrics.losses import make_loss


def test_score_counts():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]] * 9
    found = score(logits, np.array([0, 1, 2, 0]), make_loss("softmax"))
    assert (found.correct, found.seen, found.accuracy) == (3, 4, 0.75)
    assert found.loss == pytest.approx(9 / 4, abs=0.01)
    assert found.as_dict()["interval95"] == list(wilson_interval(3, 4))


@pytest.mark.parametrize(
    "correct,seen,low,high", [(81, 263, 0.2553, 0.3662), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1)]
)
def test_wilson_interval_by_published_examples(correct, seen, low, high):
    """Newcombe 1998, Table I (81/263), and the closed form at the edges."""
    np.testing.assert_allclose(wilson_interval(correct, seen), (low, high), atol=5e-5)


@given(st.integers(1, 10**7), st.data(), st.floats(0, 5), st.integers(2, 50))
def test_an_interval_holds_its_proportion_and_narrows_with_more_images(seen, data, z, times):
    """It is the set of chances that are within z deviations of what was seen, and the same for what is not right."""
    correct = data.draw(st.integers(0, seen) | st.sampled_from([0, seen]))
    low, high = wilson_interval(correct, seen, z=z)
    assert 0 <= low <= correct / seen <= high <= 1
    for end in (low, high):
        deviation = math.sqrt(end * (1 - end) / seen)
        assert abs(end - correct / seen) == pytest.approx(z * deviation, rel=1e-5, abs=1e-7)
    assert wilson_interval(seen - correct, seen, z=z) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    narrower = wilson_interval(times * correct, times * seen)
    wide = wilson_interval(correct, seen)
    assert narrower[1] - narrower[0] < wide[1] - wide[0]
    assert wilson_interval(correct, seen, z=z + 0.1)[1] >= high


def test_by_class_counts_each_true_class():
    logits = np.eye(3)[[0, 0, 1, 2, 2, 0]]
    found = by_class(logits, np.array([0, 0, 0, 2, 2, 2]), ("x", "y", "z"))
    assert {name: (one["correct"], one["seen"]) for name, one in found.items()} == {
        "x": (2, 3),
        "y": (0, 0),
        "z": (2, 3),
    }
    assert found["y"]["accuracy"] is None and found["x"]["interval95"] == list(wilson_interval(2, 3))
