"""Batch norm's three switches against a few lines of NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tljax.models.layers import BatchNorm, BatchNormMode, ForwardContext

SWITCHES = list(itertools.product([False, True], repeat=3))
SHAPE = (6, 5, 4, 3)


def numpy_batch_norm(x, scale, bias, mean, var, *, use_batch, update):
    """torch's arithmetic: (output, running mean, running variance)."""
    n = x[..., 0].size
    batch_mean, batch_var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    used_mean, used_var = (batch_mean, batch_var) if use_batch else (mean, var)
    y = (x - used_mean) / np.sqrt(used_var + 1e-5) * scale + bias
    if update:
        mean, var = 0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var * n / (n - 1)
    return y, mean, var


@pytest.fixture
def example(x64):
    rng = np.random.default_rng(0)
    x = 2 * rng.standard_normal(SHAPE) + 1
    scale, bias, mean = rng.standard_normal((3, 3))
    var = rng.uniform(0.5, 2, 3)
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
    return x, jax.tree.map(jnp.asarray, variables)


def apply(variables, x, mode, forward=ForwardContext()):
    y, changed = BatchNorm("float64").apply(variables, jnp.asarray(x), mode, forward, mutable=["batch_stats"])
    return y, changed["batch_stats"]


@pytest.mark.parametrize("use_batch,update,train_affine", SWITCHES)
def test_every_combination_equals_numpy(example, use_batch, update, train_affine):
    x, variables = example
    y, stats = apply(variables, x, BatchNormMode(use_batch, update, train_affine))
    p, s = (jax.tree.map(np.asarray, variables[name]) for name in ("params", "batch_stats"))
    expected = numpy_batch_norm(x, p["scale"], p["bias"], s["mean"], s["var"], use_batch=use_batch, update=update)
    for ours, theirs in zip((y, stats["mean"], stats["var"]), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    if not update:
        np.testing.assert_array_equal(stats["var"], s["var"])


@given(
    st.lists(st.booleans(), min_size=SHAPE[0], max_size=SHAPE[0]), st.sampled_from(SWITCHES), st.floats(-1e6, 1e6),
    st.integers(0, 2**32),
)  # fmt: skip
def test_statistics_are_of_real_examples_whatever_the_others_hold(mask, switches, filling, seed):
    """And where none is real they stay."""
    rng, mask, mode = np.random.default_rng(seed), np.array(mask), BatchNormMode(*switches)
    x = np.where(mask[:, None, None, None], rng.normal(1, 2, SHAPE), filling)
    scale, bias, mean = rng.standard_normal((3, 3))
    var = rng.uniform(0.5, 2, 3)
    with jax.enable_x64(True):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
        y, stats = apply(
            jax.tree.map(jnp.asarray, variables), x, mode, ForwardContext(mask=jnp.asarray(mask, jnp.float64))
        )
    if not mask.any():
        expected = y[mask], mean, var
    else:
        expected = numpy_batch_norm(
            x[mask], scale, bias, mean, var, use_batch=mode.use_batch, update=mode.update
        )  # fmt: skip
    for ours, theirs in zip((y[mask], stats["mean"], stats["var"]), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.devices
def test_statistics_across_replicas_equal_those_of_the_whole_batch(example):
    x, variables = example
    mode = BatchNormMode(True, True, True)
    y, stats = apply(variables, x, mode)
    mask = jnp.ones(8).at[6:].set(0)  # three replicas are full, the fourth is padding alone
    padded = np.concatenate([x, np.ones_like(x[:2])]).reshape(4, 2, *SHAPE[1:])
    y_r, stats_r = jax.pmap(
        lambda x, mask: apply(variables, x, mode, ForwardContext(mask=mask, axis_name="r")), axis_name="r"
    )(padded, mask.reshape(4, 2))
    np.testing.assert_allclose(y_r.reshape(8, *SHAPE[1:])[:6], y, rtol=1e-10, atol=1e-12)
    for replica in range(4):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[replica], b, rtol=1e-12), stats_r, stats)  # noqa: B023


def test_bfloat16_keeps_statistics_in_float32():
    x = jax.random.normal(jax.random.key(0), SHAPE, jnp.bfloat16) + 100
    layer = BatchNorm("bfloat16")
    variables = layer.init(jax.random.key(0), x, BatchNormMode(True, True, True), ForwardContext())
    y, changed = layer.apply(variables, x, BatchNormMode(True, True, True), ForwardContext(), mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert changed["batch_stats"]["mean"].dtype == jnp.float32
    expected = np.asarray(x, np.float64).var((0, 1, 2)) * 120 / 119 * 0.1 + 0.9
    np.testing.assert_allclose(changed["batch_stats"]["var"], expected, rtol=1e-5)
