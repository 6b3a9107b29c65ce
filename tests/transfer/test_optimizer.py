"""Optimizers by torch's rules, schedules, moments across phases."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tljax.core.errors import UserError
from tljax.engine.steps import combine, partition, update_params
from tljax.models import create_model, init_variables, variable_shapes
from tljax.transfer.optimizer import carry_moments, make_optimizer, make_schedule
from tljax.transfer.plan import BN_MODES, make_plan, merge

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


SMALL = {
    "resnet18": MODEL,
    "squeezenet1_1": create_model("squeezenet1_1", num_classes=2, last_stage="fire2"),
    "mini_xception": create_model("mini_xception", num_classes=2, width=4),
}
ALL_SHAPES = {name: variable_shapes(model) for name, model in SMALL.items()}


def drawn_like(tree, seed):
    """Float64 arrays of as many axes, each two long, without a zero among them: updates take numbers one by one."""
    rng = np.random.default_rng(seed)
    shape = {n: (2,) * n for n in range(5)}
    return jax.tree.map(lambda x: rng.uniform(0.1, 1, shape[x.ndim]) * rng.choice([-1, 1], shape[x.ndim]), tree)


@settings(max_examples=settings().max_examples // 2)
@given(st.data(), st.sampled_from(sorted(SMALL)), st.sampled_from(["adam", "adamw", "sgd"]), st.integers(0, 2**32))
def test_an_update_changes_what_trains_and_nothing_else(data, network, name, seed):
    """Of any selection, batch norm and rates, by any gradient; decay by itself only where it is promised."""
    model, shapes = SMALL[network], ALL_SHAPES[network]
    group, mode = st.sampled_from(model.groups), st.sampled_from(sorted(BN_MODES))
    train = sorted(data.draw(st.sets(group, min_size=1)))
    bn = {"trained": data.draw(mode), "frozen": data.draw(mode)} | data.draw(st.dictionaries(group, mode, max_size=3))
    decay, decay_all = data.draw(st.sampled_from([0.0, 0.1])), data.draw(st.booleans())
    try:
        plan = make_plan(
            model, shapes, train=",".join(train), bn=",".join(map(":".join, bn.items())), lr=0.1, weight_decay=decay,
            lr_decay=data.draw(st.floats(0.5, 2)),
            lr_groups=",".join(f"{g}:{r}" for g, r in data.draw(st.dictionaries(group, st.floats(1e-3, 1))).items()),
        )  # fmt: skip
    except UserError as error:
        assume("trains nothing" not in str(error))
        raise
    with jax.enable_x64(True):
        tx = make_optimizer(plan, name=name, clip=data.draw(st.sampled_from([0.0, 0.5])), decay_all=decay_all)
        variables = {part: drawn_like(shapes[part], seed) for part in ("params", "batch_stats")}
        own, shared = partition(model, plan, variables)
        assert jax.tree.all(jax.tree.map(np.array_equal, combine(own, shared), variables))
        assert {plan.labels[path] for path in own["params"]} == {g.name for g in plan.groups if g.trainable}
        moving = {group for group, mode in plan.modes.items() if mode.update}
        assert {model.group_of(path) for path in own["batch_stats"]} == moving
        assert all(model.group_of(path) not in moving for path in shared["batch_stats"])
        state = tx.init(variables["params"])

        def changed(grads, factor):
            moved, _ = update_params(plan, tx, shared, own["params"], state, grads, jnp.float32(factor))
            assert set(moved) == set(own["params"])
            return {path for path, leaf in moved.items() if not np.array_equal(leaf, own["params"][path])}

        nothing = jax.tree.map(np.zeros_like, own["params"])
        assert changed(drawn_like(own["params"], seed + 1), 1) == set(own["params"])
        assert changed(drawn_like(own["params"], seed + 1), 0) == set()
        decayed = {path for path, leaf in own["params"].items() if decay and (decay_all or leaf.ndim > 1)}
        assert changed(nothing, 1) == decayed


def numpy_schedule(name, t, *, steps, warmup, decay, factor):
    """The factor at update `t`, as the docstring says it."""
    found = min(1, (t + 1) / warmup) if warmup else 1.0
    if name == "step":
        found *= factor ** (t // decay)
    if name == "cosine" and t >= warmup:
        found *= (1 + math.cos(math.pi * min(1, (t - warmup) / max(1, steps - warmup)))) / 2
    return found


@given(
    st.sampled_from(["constant", "step", "cosine"]), st.integers(1, 5000), st.integers(0, 5000), st.integers(1, 1500),
    st.floats(0, 1), st.integers(0, 5000),
)  # fmt: skip
@example("step", 5000, 0, 41, 0.1, 0)  # 41 times the inverse of 41 is less than 1 in float32
def test_schedules(name, steps, warmup, decay, factor, around):
    """Compiled, as they are used; at the ends, at every kind of turning point and one update to either side of it."""
    drops = decay * np.arange(5000 // decay + 1)
    t = np.unique([0, around, warmup, steps - 1, steps, *drops])
    t = np.unique(np.concatenate([t - 1, t, t + 1]).clip(0))
    schedule = make_schedule(name, steps=steps, warmup_steps=warmup, decay_steps=decay, factor=factor)
    found = np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(t, jnp.int32)))
    expected = [numpy_schedule(name, i, steps=steps, warmup=warmup, decay=decay, factor=factor) for i in t.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert (found >= 0).all() and (found <= 1).all()
    before, after = found[t < warmup], found[t >= warmup]
    if name != "step":
        assert (np.diff(before) >= 0).all() and (found[t == warmup - 1] > 1 - 1e-6).all()
    if name == "cosine":
        assert (np.diff(after) <= 0).all() and (found[t >= max(steps, warmup + 1)] < 1e-6).all()


def test_names_that_do_not_exist():
    plan = make_plan(MODEL, VARIABLES, train="head", lr=1e-3)
    with pytest.raises(UserError, match="adamw"):
        make_optimizer(plan, name="lion")
    with pytest.raises(UserError, match="cosine"):
        make_schedule("linear", steps=1)
