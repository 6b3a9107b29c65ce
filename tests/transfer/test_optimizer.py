"""Optimizers by torch's rules, schedules, moments across phases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.errors import UserError
from tljax.models import create_model, init_variables
from tljax.transfer.optimizer import carry_moments, make_optimizer, make_schedule
from tljax.transfer.plan import make_plan, merge

MODEL = create_model("resnet18", num_classes=5, width=8, blocks=(1,))
VARIABLES = init_variables(MODEL, jax.random.key(0))
KERNEL, BIAS = ("fc", "kernel"), ("fc", "bias")


def numpy_steps(name, p, grads, *, lr, decay):
    """A few updates of one array by torch's documented formulas."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        if name == "adamw":
            p = p - lr * decay * p
        else:
            g = g + decay * p
        if name == "sgd":
            m = g if t == 1 else 0.9 * m + g
            p = p - lr * m
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            p = p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_updates_equal_torchs_formulas(name, decay_all, x64):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), VARIABLES["params"])
    plan = make_plan(MODEL, VARIABLES, train="head", lr=1e-2, weight_decay=0.1)
    tx = make_optimizer(plan, name=name, decay_all=decay_all)
    rng = np.random.default_rng(0)
    all_grads = [jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), params) for _ in range(4)]
    state, now = tx.init(params), params
    for grads in all_grads:
        updates, state = tx.update(grads, state, now)
        now = jax.tree.map(jnp.add, now, updates)
    for path, decay in ((KERNEL, 0.1), (BIAS, 0.1 if decay_all else 0.0)):
        start = np.asarray(params[path[0]][path[1]])
        grads = [np.asarray(g[path[0]][path[1]]) for g in all_grads]
        expected = numpy_steps(name, start, grads, lr=1e-2, decay=decay)
        np.testing.assert_allclose(now[path[0]][path[1]], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(now["conv1"]["kernel"], params["conv1"]["kernel"])


def test_moments_exist_for_what_trains_alone():
    plan = make_plan(MODEL, VARIABLES, train="head", lr=1e-3)
    state = make_optimizer(plan, name="adam").init(VARIABLES["params"])
    sizes = sorted(x.size for x in jax.tree.leaves(state) if x.ndim)
    assert sizes == sorted([5 * 8, 5] * 2)


def test_clipping_sees_what_trains_alone():
    plan = make_plan(MODEL, VARIABLES, train="head", lr=1.0)
    tx = make_optimizer(plan, name="sgd", clip=1.0)
    params = VARIABLES["params"]
    trainable, frozen = plan.split(jax.tree.map(jnp.ones_like, params))
    grads = merge({p: 3 * x for p, x in trainable.items()}, {p: jnp.zeros_like(x) for p, x in frozen.items()})
    updates, _ = tx.update(grads, tx.init(params), params)
    norm = np.sqrt(sum(float((u**2).sum()) for u in plan.split(updates)[0].values()))
    assert norm == pytest.approx(1.0, rel=1e-5)


def test_moments_of_what_goes_on_training_are_carried():
    first = make_plan(MODEL, VARIABLES, train="head", lr=1e-3)
    second = make_plan(MODEL, VARIABLES, train="head,layer1", lr=1e-3)
    params = VARIABLES["params"]
    tx, later = make_optimizer(first, name="adam"), make_optimizer(second, name="adam")
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    carried = carry_moments(state, later.init(params))
    assert jax.tree.structure(carried) == jax.tree.structure(later.init(params))
    adam = carried[-1].inner_states["head"].inner_state[0]
    np.testing.assert_allclose(adam.mu["fc"]["bias"], 0.1, rtol=1e-6)
    assert int(adam.count) == 1
    assert int(carried[-1].inner_states["layer1"].inner_state[0].count) == 0


@pytest.mark.parametrize(
    "name,options,expected",
    [
        ("constant", {}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ("step", {"decay_steps": 3, "factor": 0.1}, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ("cosine", {}, [(1 + np.cos(np.pi * t / 8)) / 2 for t in range(8)]),
        ("cosine", {"warmup_steps": 4}, [0.25, 0.5, 0.75, 1, *[(1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)]]),
    ],
)
def test_schedules(name, options, expected):
    schedule = make_schedule(name, steps=8, **options)
    np.testing.assert_allclose([schedule(jnp.int32(t)) for t in range(8)], expected, atol=1e-6)


def test_names_that_do_not_exist():
    plan = make_plan(MODEL, VARIABLES, train="head", lr=1e-3)
    with pytest.raises(UserError, match="adamw"):
        make_optimizer(plan, name="lion")
    with pytest.raises(UserError, match="cosine"):
        make_schedule("linear", steps=1)
