"""Losses of unlabeled images against a few lines of NumPy, shapes that broadcast wrongly included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.semi import fixmatch, flexmatch, mean_teacher, meta_pseudo_labels


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture(params=[(6, 4), (4, 4), (1, 4), (4, 2)], ids=str)  # B = classes: a wrong axis would go unseen elsewhere
def pair(request):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=request.param).astype(np.float32) * 3 for _ in range(2))


def test_consistency(pair):
    a, b = pair
    wanted = ((softmax(a) - softmax(b)) ** 2).mean(-1)
    np.testing.assert_allclose(mean_teacher.consistency_loss(a, b), wanted, rtol=1e-5, atol=1e-7)
    of_teacher = jax.grad(lambda b: mean_teacher.consistency_loss(jnp.asarray(a), b).sum())(jnp.asarray(b))
    assert not np.asarray(of_teacher).any()


def test_ramp_and_average():
    steps = jnp.arange(0, 30)
    wanted = [np.exp(-5 * (1 - min(s / 20, 1)) ** 2) for s in range(30)]
    np.testing.assert_allclose(mean_teacher.ramp(steps, 20.0), wanted, rtol=1e-5)
    np.testing.assert_allclose(mean_teacher.ramp(steps, 0.0), 1)
    average, values = jnp.zeros(3), np.random.default_rng(0).normal(size=(500, 3))
    for step, value in enumerate(values):
        average = mean_teacher.moving_average(average, jnp.asarray(value), jnp.int32(step), 0.9)
        if step < 8:  # the plain mean of all so far
            np.testing.assert_allclose(average, values[: step + 1].sum(0) / (step + 2), rtol=1e-4)
    weights = 0.1 * 0.9 ** np.arange(500)[::-1]
    np.testing.assert_allclose(average, weights @ values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_fixmatch(pair, threshold):
    weak, strong = pair
    found = softmax(weak)
    given = np.where(found.max(1) >= np.float32(threshold), found.argmax(1), -1)
    assert np.array_equal(fixmatch.pseudo_labels(jnp.asarray(weak), threshold), given)
    wanted = [0 if g < 0 else -np.log(p[g]) for g, p in zip(given, softmax(strong), strict=True)]
    np.testing.assert_allclose(fixmatch.given_loss(jnp.asarray(strong), jnp.asarray(given)), wanted, rtol=1e-4)
    each = np.linspace(0.2, 0.9, weak.shape[1]).astype(np.float32)  # a threshold of its own for each class
    wanted = np.where(found.max(1) >= each[found.argmax(1)], found.argmax(1), -1)
    assert np.array_equal(fixmatch.pseudo_labels(jnp.asarray(weak), jnp.asarray(each)), wanted)


def test_flexmatch_thresholds():
    def by_hand(status, unlabeled, classes, base):
        counts = np.array([(status == c).sum() for c in range(classes)])
        beta = counts / max(counts.max(), unlabeled - counts.sum(), 1)
        return base * beta / (2 - beta)

    rng = np.random.default_rng(0)
    for given in (0, 5, 60, 90):  # before the first, in the warm-up, after it
        status = np.full(120, -1)
        status[rng.choice(120, given, replace=False)] = rng.integers(0, 4, given) % 3
        found = flexmatch.thresholds(jnp.asarray(status), 90, 4, 0.95)
        np.testing.assert_allclose(found, by_hand(status, 90, 4, 0.95), rtol=1e-5)
        assert found[3] == 0
    status = np.repeat([0, 0, 1, 2], 20)
    np.testing.assert_allclose(flexmatch.thresholds(jnp.asarray(status), 80, 3, 0.9), [0.9, 0.3, 0.3], rtol=1e-5)


def test_flexmatch_status():
    status = flexmatch.no_status(6)
    weak = jnp.asarray([[9.0, 0, 0], [0, 0.1, 0], [0, 0, 9], [0, 9, 0]])
    mask = jnp.asarray([1.0, 1, 1, 0])
    status = flexmatch.new_status(status, jnp.asarray([4, 1, 2, 0]), weak, mask, 0.9)
    assert status.tolist() == [-1, -1, 2, -1, 0, -1]  # the unsure one and the one that fills the batch left nothing
    status = flexmatch.new_status(status, jnp.asarray([4, 2, 3, 5]), weak, jnp.ones(4), 0.9)
    assert status.tolist() == [-1, -1, 2, 2, 0, 1]  # an image that is no longer sure keeps what it had


def test_meta_pseudo_labels(pair):
    _, strong = pair
    keys = jax.random.split(jax.random.key(0), 3000)
    each = jax.vmap(lambda key: jax.random.split(key, len(strong)))(keys)
    drawn = np.asarray(jax.vmap(lambda own: meta_pseudo_labels.sampled_labels(own, jnp.asarray(strong)))(each))
    assert drawn.shape == (3000, len(strong))
    shares = (drawn[..., None] == np.arange(strong.shape[1])).mean(0)
    np.testing.assert_allclose(shares, softmax(strong), atol=0.05)
    given = drawn[0]
    wanted = 0.3 * -np.log(softmax(strong)[np.arange(len(given)), given])
    fell = meta_pseudo_labels.feedback(jnp.float32(1.5), jnp.float32(1.2))
    np.testing.assert_allclose(
        meta_pseudo_labels.feedback_loss(jnp.asarray(strong), jnp.asarray(given), fell), wanted, rtol=1e-4
    )
    # What helped becomes more likely: the gradient of a drawn label's logit is negative, and positive after harm.
    row = np.arange(len(given))
    for sign in (1, -1):
        gradient = jax.grad(
            lambda t, sign=sign: meta_pseudo_labels.feedback_loss(t, jnp.asarray(given), jnp.float32(sign)).sum()
        )(jnp.asarray(strong))
        assert (sign * np.asarray(gradient)[row, given] < 0).all()
