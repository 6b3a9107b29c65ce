"""Selections and temperature against a few lines of NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tljax.errors import UserError
from tljax.semi import labelling


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(200, 5)) * 3


def test_probabilities(logits):
    scaled = logits / 2.0
    wanted = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(labelling.log_probabilities(logits, 2.0)), wanted, rtol=1e-12)
    one = np.exp(labelling.log_probabilities(logits[:, :1].astype(np.float32)))
    np.testing.assert_allclose(one[:, 1], 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-6)
    np.testing.assert_allclose(one.sum(axis=1), 1)


def test_the_temperature_is_the_one_that_labels_were_drawn_with():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 5)) * 2
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in chances])
    assert labelling.fit_temperature(logits, labels).temperature == pytest.approx(1.0, abs=0.03)
    found = labelling.fit_temperature(3 * logits, labels)  # three times too sure
    assert found.temperature == pytest.approx(3.0, abs=0.1)
    assert found.fit_mistakes == (logits.argmax(1) != labels).sum() and found.fit_images == 20_000 and not found.raw
    assert labelling.fit_temperature(logits / 2, labels).temperature == pytest.approx(0.5, abs=0.02)  # too unsure


@pytest.mark.parametrize("count", [1, 2, 24, 300])
@pytest.mark.parametrize("sure", [0.01, 1.0, 30.0])
def test_images_that_are_all_right_sharpen_nothing(count, sure):
    """24 of them gave 0.05, the bound, and wrong answers to others more than 99%."""
    labels = np.random.default_rng(count).integers(0, 3, count)
    for logits in (sure * np.eye(3)[labels], sure * (2 * (labels % 2) - 1.0)[:, None]):
        known = labels if logits.shape[1] > 1 else labels % 2
        found = labelling.fit_temperature(logits, known)
        assert found == labelling.Temperature(1.0, count, 0, found.raw)
        assert f"all {count} validation images are right" in found.raw


def test_few_images_leave_the_logits_nearer_to_what_they_are():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4000, 3)) * 2
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    moved = [np.mean([abs(np.log(labelling.fit_temperature(4 * logits[i : i + n], labels[i : i + n]).temperature))
                      for i in range(0, 40 * n, n)]) for n in (5, 20, 100)]  # fmt: skip
    assert moved[0] < moved[1] < moved[2] < np.log(4) * 1.05
    lone = labelling.fit_temperature(logits[:1], (labels[:1] + 1) % 3)
    assert (lone.temperature, lone.fit_mistakes) == (1.0, 1) and lone.raw


@given(st.integers(1, 30), st.integers(1, 4), st.floats(1e-3, 1e4), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_temperature_is_one_or_helps_what_it_was_fitted_on(images, outputs, scale, seed, right):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, outputs)) * scale
    answers = labelling.log_probabilities(logits).argmax(1)
    labels = np.where(rng.random(images) < right, answers, rng.integers(0, max(outputs, 2), images))
    found, rows = labelling.fit_temperature(logits, labels), np.arange(images)
    assert (found.fit_images, found.fit_mistakes) == (images, (answers != labels).sum())
    assert bool(found.raw) == (found.temperature == 1.0)
    assert 1 / 20 <= found.temperature <= 20

    def loss(temperature):
        return -labelling.log_probabilities(logits, temperature)[rows, labels].sum()

    assert loss(found.temperature) <= loss(1.0)
    order = rng.permutation(images)
    again = labelling.fit_temperature(logits[order], labels[order])
    assert again.temperature == pytest.approx(found.temperature, rel=1e-4)


def test_selections(logits):
    found = labelling.log_probabilities(logits)
    confidence, predicted = np.exp(found).max(axis=1), found.argmax(axis=1)
    assert np.array_equal(labelling.select(found, "all"), np.arange(200))
    assert np.array_equal(labelling.select(found, "threshold", threshold=0.8), np.flatnonzero(confidence >= 0.8))
    assert set(labelling.select(found, "top", share=0.25)) == set(np.argsort(confidence)[-50:])
    each = labelling.select(found, "top_per_class", share=0.5)
    assert np.array_equal(each, np.sort(each)) and len(set(each)) == len(each)
    for c in range(5):
        mine = np.flatnonzero(predicted == c)
        best = mine[np.argsort(confidence[mine])[::-1][: int(len(mine) / 2 + 0.5)]]
        assert set(each[predicted[each] == c]) == set(best)
    with pytest.raises(UserError, match=r"semi\.select='best' is not one of all, threshold, top, top_per_class"):
        labelling.select(found, "best")


def test_equal_confidence_is_drawn_and_a_class_may_be_absent():
    """The order of files is that of their classes; whoever comes first must not be surest."""
    found = np.log(np.tile([[0.5, 0.3, 0.2]], (60, 1)))
    drawn = [labelling.select(found, how, share=0.5, seed=seed) for how in ("top", "top_per_class") for seed in (0, 1)]
    assert [len(rows) for rows in drawn] == [30] * 4
    assert drawn[0].tolist() == drawn[2].tolist() != drawn[1].tolist()
    for rows in drawn:
        assert 8 <= (rows < 30).sum() <= 22
    assert labelling.select(found, "threshold", threshold=0.9).tolist() == []
    assert labelling.select(found[:0], "top", share=0.5).tolist() == []


def test_the_surest_are_told_apart_where_their_probability_is_one():
    gaps = np.random.default_rng(0).permutation(np.linspace(30.0, 300.0, 40))
    logits = gaps[:, None] * np.eye(3)[np.arange(40) % 3]
    found = labelling.log_probabilities(logits, 0.05)
    assert (np.exp(found.max(axis=1)) == 1).all()
    assert set(labelling.select(found, "top", share=0.25)) == set(np.argsort(gaps)[-10:])


def test_what_is_passed_on(logits):
    truth = np.random.default_rng(1).integers(0, 5, 200)
    student = np.where(np.arange(200)[:, None] % 2, logits, logits[::-1])
    t, s = logits.argmax(1), student.argmax(1)
    pairs = list(zip(t, s, truth, strict=True))
    assert labelling.passed_on(logits, student, truth) == {
        "mistakes": sum(a != y for a, _, y in pairs),
        "repeated": sum(a == b != y for a, b, y in pairs),
        "mended": sum(a != y == b for a, b, y in pairs),
        "new": sum(a == y != b for a, b, y in pairs),
    }
    one = labelling.passed_on(
        np.array([[-1.0], [-1.0], [2.0], [2.0]]), np.array([[1.0], [-1.0], [3.0], [-9.0]]), np.array([1, 1, 1, 1])
    )
    assert one == {"mistakes": 2, "repeated": 1, "mended": 1, "new": 1}  # of one logit


def test_what_is_told(logits):
    found = labelling.log_probabilities(logits)
    truth = np.where(np.arange(200) % 3 == 0, found.argmax(1), (found.argmax(1) + 1) % 5)
    chosen = labelling.select(found, "top", share=0.3)
    told = labelling.tell(found, chosen, truth, tuple("abcde"))
    assert told["unlabelled"] == 200 and told["given"] == 60
    assert told["right"] == int((chosen % 3 == 0).sum()) == sum(c["right"] for c in told["by_class"].values())
    assert sum(c["given"] for c in told["by_class"].values()) == 60
    assert sum(c["images"] for c in told["by_class"].values()) == 200
    bins = told["confidence"]
    assert [b["from"] for b in bins] == [i / 10 for i in range(10)] and sum(b["images"] for b in bins) == 200
    assert sum(b["given"] for b in bins) == 60 and sum(b["right"] for b in bins) == int(
        (truth == found.argmax(1)).sum()
    )
    certain = labelling.tell(
        np.log(np.maximum(np.eye(5), 1e-300))[[0, 1]], np.array([0]), np.array([0, 1]), tuple("abcde")
    )
    assert certain["confidence"][-1] == {"from": 0.9, "images": 2, "given": 1, "right": 2}
