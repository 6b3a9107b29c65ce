"""Selections against a few lines of NumPy."""

import numpy as np
import pytest

from tljax.core.errors import UserError
from tljax.metrics.calibration import log_probabilities
from tljax.semi import pseudo_labels


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(200, 5)) * 3


def test_selections(logits):
    found = log_probabilities(logits)
    confidence, predicted = np.exp(found).max(axis=1), found.argmax(axis=1)
    assert np.array_equal(pseudo_labels.select(found, "all"), np.arange(200))
    assert np.array_equal(pseudo_labels.select(found, "threshold", threshold=0.8), np.flatnonzero(confidence >= 0.8))
    assert set(pseudo_labels.select(found, "top", share=0.25)) == set(np.argsort(confidence)[-50:])
    each = pseudo_labels.select(found, "top_per_class", share=0.5)
    assert np.array_equal(each, np.sort(each)) and len(set(each)) == len(each)
    for c in range(5):
        mine = np.flatnonzero(predicted == c)
        best = mine[np.argsort(confidence[mine])[::-1][: int(len(mine) / 2 + 0.5)]]
        assert set(each[predicted[each] == c]) == set(best)
    with pytest.raises(UserError, match=r"semi\.select='best' is not one of all, threshold, top, top_per_class"):
        pseudo_labels.select(found, "best")


def test_equal_confidence_is_drawn_and_a_class_may_be_absent():
    """The order of files is that of their classes; whoever comes first must not be surest."""
    found = np.log(np.tile([[0.5, 0.3, 0.2]], (60, 1)))
    drawn = [
        pseudo_labels.select(found, how, share=0.5, seed=seed) for how in ("top", "top_per_class") for seed in (0, 1)
    ]
    assert [len(rows) for rows in drawn] == [30] * 4
    assert drawn[0].tolist() == drawn[2].tolist() != drawn[1].tolist()
    for rows in drawn:
        assert 8 <= (rows < 30).sum() <= 22
    assert pseudo_labels.select(found, "threshold", threshold=0.9).tolist() == []
    assert pseudo_labels.select(found[:0], "top", share=0.5).tolist() == []


def test_the_surest_are_told_apart_where_their_probability_is_one():
    gaps = np.random.default_rng(0).permutation(np.linspace(30.0, 300.0, 40))
    logits = gaps[:, None] * np.eye(3)[np.arange(40) % 3]
    found = log_probabilities(logits, 0.05)
    assert (np.exp(found.max(axis=1)) == 1).all()
    assert set(pseudo_labels.select(found, "top", share=0.25)) == set(np.argsort(gaps)[-10:])


def test_what_is_passed_on(logits):
    truth = np.random.default_rng(1).integers(0, 5, 200)
    student = np.where(np.arange(200)[:, None] % 2, logits, logits[::-1])
    t, s = logits.argmax(1), student.argmax(1)
    pairs = list(zip(t, s, truth, strict=True))
    assert pseudo_labels.passed_on(logits, student, truth) == {
        "mistakes": sum(a != y for a, _, y in pairs),
        "repeated": sum(a == b != y for a, b, y in pairs),
        "mended": sum(a != y == b for a, b, y in pairs),
        "new": sum(a == y != b for a, b, y in pairs),
    }
    one = pseudo_labels.passed_on(
        np.array([[-1.0], [-1.0], [2.0], [2.0]]), np.array([[1.0], [-1.0], [3.0], [-9.0]]), np.array([1, 1, 1, 1])
    )
    assert one == {"mistakes": 2, "repeated": 1, "mended": 1, "new": 1}  # of one logit


def test_what_is_told(logits):
    found = log_probabilities(logits)
    truth = np.where(np.arange(200) % 3 == 0, found.argmax(1), (found.argmax(1) + 1) % 5)
    chosen = pseudo_labels.select(found, "top", share=0.3)
    told = pseudo_labels.tell(found, chosen, truth, tuple("abcde"))
    assert told["unlabelled"] == 200 and told["given"] == 60
    assert told["right"] == int((chosen % 3 == 0).sum()) == sum(c["right"] for c in told["by_class"].values())
    assert sum(c["given"] for c in told["by_class"].values()) == 60
    assert sum(c["images"] for c in told["by_class"].values()) == 200
    bins = told["confidence"]
    assert [b["from"] for b in bins] == [i / 10 for i in range(10)] and sum(b["images"] for b in bins) == 200
    assert sum(b["given"] for b in bins) == 60 and sum(b["right"] for b in bins) == int(
        (truth == found.argmax(1)).sum()
    )
    certain = pseudo_labels.tell(
        np.log(np.maximum(np.eye(5), 1e-300))[[0, 1]], np.array([0]), np.array([0, 1]), tuple("abcde")
    )
    assert certain["confidence"][-1] == {"from": 0.9, "images": 2, "given": 1, "right": 2}
