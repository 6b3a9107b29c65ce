"""Losses against NumPy, and scores that carry their doubt."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tljax.errors import UserError
from tljax.losses import make_loss, outputs, predictions, score, wilson_interval

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.standard_normal((7, 4)).astype(np.float32), RNG.integers(0, 4, 7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_equals_numpy(smoothing):
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    target = np.eye(4)[LABELS] * (1 - smoothing) + smoothing / 4
    losses = make_loss("softmax", label_smoothing=smoothing)(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    assert losses.shape == (7,)
    np.testing.assert_allclose(losses, -(target * log_p).sum(1), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_logit_equals_numpy(smoothing):
    logits, labels = LOGITS[:, :1], LABELS % 2
    p = 1 / (1 + np.exp(-logits[:, 0]))
    target = labels * (1 - smoothing) + smoothing / 2
    losses = make_loss("sigmoid", label_smoothing=smoothing)(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(losses, -(target * np.log(p) + (1 - target) * np.log(1 - p)), rtol=1e-4)
    np.testing.assert_array_equal(predictions(logits), p > 0.5)


def test_losses_of_bfloat16_logits_are_float32():
    assert make_loss("softmax")(jnp.zeros((2, 3), jnp.bfloat16), jnp.zeros(2, jnp.int32)).dtype == jnp.float32


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


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="sigmoid"):
        outputs("sigmoid", 3)
    with pytest.raises(UserError, match="softmax, sigmoid"):
        make_loss("hinge")
    with pytest.raises(UserError, match="label_smoothing"):
        make_loss("softmax", label_smoothing=1.0)
    assert (outputs("sigmoid", 2), outputs("softmax", 5)) == (1, 5)
