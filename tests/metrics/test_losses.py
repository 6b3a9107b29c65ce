"""Losses against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from tljax.core.errors import UserError
from tljax.metrics.accuracy import predictions
from tljax.metrics.losses import make_loss, outputs

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


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="sigmoid"):
        outputs("sigmoid", 3)
    with pytest.raises(UserError, match="softmax, sigmoid"):
        make_loss("hinge")
    with pytest.raises(UserError, match="label_smoothing"):
        make_loss("softmax", label_smoothing=1.0)
    assert (outputs("sigmoid", 2), outputs("softmax", 5)) == (1, 5)
