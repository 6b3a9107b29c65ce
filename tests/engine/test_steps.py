"""The step: pure, exact about what is frozen, and the same on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.data.augment import make_normalize
from tljax.distributed import parallel
from tljax.distributed.parallel import AXIS, Replicas
from tljax.engine.steps import make_forward_step, make_train_step
from tljax.metrics.losses import make_loss
from tljax.models import create_model, init_variables
from tljax.run_dir.train_state import TrainState
from tljax.transfer.optimizer import make_optimizer, make_schedule
from tljax.transfer.plan import make_plan, merge, prefix_end
from tljax.transfer.population import Family

SIDE = 32
NORMALIZE = make_normalize((0.5,) * 3, (0.25,) * 3)


def build(
    *,
    arch="resnet18",
    train="layer2,head",
    bn="",
    name="adam",
    lr=1e-3,
    lr_groups="",
    weight_decay=0.0,
    dtype="float32",
    axis=None,
    accumulate=1,
    clip=0.0,
    cross=False,
    blocks=(1, 1),
    kept=False,
    schedule=make_schedule("constant", steps=1),
    first_step=0,
):
    """A step, its state and its plan, on a small network and whole pictures."""
    options = {"width": 8, "blocks": blocks} if "resnet" in arch else {}
    model = create_model(arch, num_classes=4, dtype=dtype, **options)
    variables = init_variables(model, jax.random.key(0))
    plan = make_plan(model, variables, train=train, bn=bn, lr=lr, lr_groups=lr_groups, weight_decay=weight_decay)
    tx = make_optimizer(plan, name=name, clip=clip)
    step = make_train_step(
        model=model,
        plan=plan,
        families=[Family.single(tx, schedule)],
        first_step=first_step,
        loss=make_loss("softmax"),
        inputs=lambda keys, batch: batch["feature"] if kept else NORMALIZE(batch["image"]).astype(dtype),
        start_stage=prefix_end(model, plan) if kept else None,
        frozen_prefix_end=prefix_end(model, plan),
        accumulate=accumulate,
        cross_replica_bn=cross,
        axis=axis,
    )
    # Statistics that are nobody's default, -0.0 among the parameters: whatever should stay has to stay exactly.
    stats = jax.tree.map(lambda x: x + 0.125, variables["batch_stats"])
    params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(-0.0), variables["params"])
    state = TrainState(step=jnp.int32(0), params=params, batch_stats=stats, opt_state=tx.init(params))
    return step, state, plan, model


def make_batch(count=8, padding=0, seed=0):
    rng = np.random.default_rng(seed)
    rows = count + padding
    return {
        "image": rng.integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8),
        "size": np.full((rows, 2), SIDE, np.int32),
        "label": rng.integers(0, 4, rows).astype(np.int32),
        "index": np.arange(rows, dtype=np.int32),
        "mask": (np.arange(rows) < count).astype(np.float32),
    }


def train(step, state, batches, key=None):
    key = jax.random.key(0) if key is None else key
    run = jax.jit(step)
    for epoch, batch in enumerate(batches):
        state, metrics = run(state, {**batch, "epoch": np.int32(epoch)}, key)
    return state, metrics


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)


def test_what_is_frozen_stays_bit_for_bit():
    step, state, plan, _ = build()
    after, _ = train(step, state, [make_batch(seed=s) for s in range(3)])
    trainable, frozen = plan.split(state.params)
    assert bits(plan.split(after.params)[1]) == bits(frozen)
    assert all(
        a != b for a, b in zip(bits(plan.split(after.params)[0]).values(), bits(trainable).values(), strict=True)
    )
    for name in ("bn1", "layer1_0"):
        assert bits(after.batch_stats[name]) == bits(state.batch_stats[name])
    assert bits(after.batch_stats["layer2_0"]) != bits(state.batch_stats["layer2_0"])


def test_a_phases_schedule_begins_at_the_phases_first_step():
    schedule, found = make_schedule("cosine", steps=2), []
    for first in (0, 30):
        step, state, _, _ = build(name="sgd", schedule=schedule, first_step=first)
        after, _ = train(step, state.replace(step=jnp.int32(first)), [make_batch()])
        found.append(bits(after.params))
        assert found[-1] != bits(state.params)
    assert found[0] == found[1]


def test_torchs_frozen_parameters_still_move_their_statistics():
    step, state, plan, _ = build(bn="torch_frozen_params", train="head")
    after, _ = train(step, state, [make_batch()])
    assert bits(plan.split(after.params)[1]) == bits(plan.split(state.params)[1])
    moved = jax.tree.map(
        lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), after.batch_stats, state.batch_stats
    )
    assert all(jax.tree.leaves(moved))


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_head_only_costs_a_forward_pass_and_the_head():
    step, state, _, model = build(train="head", blocks=(1, 1, 1))
    batch = {**make_batch(32), "epoch": np.int32(0)}
    images = jnp.zeros((32, SIDE, SIDE, 3))
    forward = flops(lambda v, x: model.apply(v, x), state.variables, images)
    features = jnp.zeros((32, 32))
    head = flops(lambda w, x: jax.grad(lambda w: (x @ w).sum())(w), jnp.zeros((32, 4)), features)
    whole = flops(step, state, batch, jax.random.key(0))
    assert whole == pytest.approx(forward + head, rel=0.05)
    everything = flops(
        build(train="all", blocks=(1, 1, 1))[0], build(train="all", blocks=(1, 1, 1))[1], batch, jax.random.key(0)
    )
    assert everything > 2.5 * forward


@pytest.mark.parametrize(("train", "blocks"), [("head", (1, 1)), ("layer2,head", (1, 1)), ("layer3,head", (1, 1, 1))])
def test_a_step_over_kept_features_costs_no_prefix(train, blocks):
    step, state, plan, model = build(train=train, blocks=blocks)
    batch, key, end = {**make_batch(32), "epoch": np.int32(0)}, jax.random.key(0), prefix_end(model, plan)
    prefix = functools.partial(model.apply, stop_stage=end)
    images = NORMALIZE(batch["image"])
    over_features = build(train=train, blocks=blocks, kept=True)[0]
    whole, kept = (
        flops(step, state, batch, key),
        flops(over_features, state, batch | {"feature": prefix(state.variables, images)}, key),
    )
    assert whole - kept == pytest.approx(flops(prefix, state.variables, images), rel=0.05)


def test_members_of_a_population_cost_their_heads_alone():
    members, key = 10, jax.random.key(0)
    batch = {**make_batch(32), "epoch": np.int32(0)}
    step, state, plan, model = build(train="head", blocks=(1, 1, 1))
    many = make_train_step(
        model=model,
        plan=plan,
        families=[
            Family(
                lambda rate: make_optimizer(plan, name="adam"),
                jnp.ones(members),
                (make_schedule("constant", steps=1),) * members,
            )
        ],
        loss=make_loss("softmax"),
        inputs=lambda keys, batch: NORMALIZE(batch["image"]),
        frozen_prefix_end=prefix_end(model, plan),
        member_map="vmap",
        axis=None,
    )

    def stacked(tree):
        return jax.tree.map(lambda x: jnp.stack([x] * members), tree)

    trainable, frozen = plan.split(state.params)
    population = state.replace(params=merge(stacked(trainable), frozen), opt_state=(stacked(state.opt_state),))
    one, ten = flops(step, state, batch, key), flops(many, population, batch, key)
    prefix = flops(functools.partial(model.apply, stop_stage="head"), state.variables, NORMALIZE(batch["image"]))
    ceiling = members * one / (prefix + members * (one - prefix))
    assert members * one / ten >= 0.9 * ceiling
    assert ceiling > 5


def test_training_the_last_stage_takes_at_most_half_the_memory_of_training_everything():
    needed = []
    for train in ("layer3,head", "all"):
        step, state, _, _ = build(train=train, blocks=(1, 1, 1))
        batch = {**make_batch(64), "epoch": np.int32(0)}
        found = jax.jit(step, donate_argnums=0).lower(state, batch, jax.random.key(0)).compile().memory_analysis()
        needed.append(found.temp_size_in_bytes)
    assert needed[0] <= 0.5 * needed[1]


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_clipping_does_not_bring_back_the_backward_pass(clip):
    step, state, _, _ = build(train="head", clip=clip)
    batch = {**make_batch(32), "epoch": np.int32(0)}
    plain, plain_state, _, _ = build(train="head")
    cost = flops(step, state, batch, jax.random.key(0))
    assert cost == pytest.approx(flops(plain, plain_state, batch, jax.random.key(0)), rel=0.02)


def test_doubling_one_groups_rate_doubles_exactly_that_groups_first_update():
    updates = []
    for layer2 in (0.5, 1.0):
        step, state, plan, _ = build(name="sgd", lr_groups=f"layer2:{layer2},head:0.25")
        trainable, frozen = plan.split(state.params)
        zeros = merge({path: jnp.zeros_like(x) for path, x in trainable.items()}, frozen)
        after, _ = train(step, state.replace(params=zeros), [make_batch()])  # from zero, so no sum is rounded
        updates.append(plan.split(after.params)[0])
    assert any(np.any(np.asarray(x)) for x in updates[0].values())
    for path, update in updates[0].items():
        factor = {"layer2": 2, "head": 1}[plan.labels[path]]
        np.testing.assert_array_equal(updates[1][path], factor * update)


def test_same_inputs_give_bit_equal_outputs_and_leak_nothing():
    step, state, _, _ = build(arch="squeezenet1_1", train="head,fire9")
    batch = {**make_batch(), "epoch": np.int32(0)}
    with jax.checking_leaks():
        first = jax.jit(step)(state, batch, jax.random.key(3))
    second = jax.jit(step)(state, batch, jax.random.key(3))
    assert bits(first) == bits(second)
    other = jax.jit(step)(state, batch, jax.random.key(4))
    assert bits(first[0].params) != bits(other[0].params)  # dropout drew anew


def test_padding_changes_nothing(x64):
    step, state, _, _ = build(train="all", dtype="float64", name="sgd")
    batch = make_batch(6, padding=2)
    whole = {k: v[:6] for k, v in batch.items()}
    after, metrics = train(step, state, [whole])
    padded, padded_metrics = train(step, state, [batch])
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert float(padded_metrics["seen"]) == 6
    np.testing.assert_allclose(metrics["loss"], padded_metrics["loss"], rtol=1e-12)


def test_accumulated_gradients_are_those_of_the_whole_batch(x64):
    """With statistics held; batch norm over parts sees parts."""
    results = []
    for accumulate in (1, 3):
        step, state, _, _ = build(train="all", bn="running+affine", dtype="float64", accumulate=accumulate)
        results.append(train(step, state, [make_batch(10, padding=2)]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def run_on(devices, batches, *, dtype, name):
    """Five updates of a global batch on some of the devices."""
    step, state, _, _ = build(
        train="layer2,head", bn="batch+update+affine", dtype=dtype, name=name, lr=1e-2, axis=AXIS, cross=True
    )
    replicas = Replicas(devices, devices, 0)
    run = jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None), devices=jax.devices()[:devices])
    state = jax.tree.map(lambda x: jnp.stack([x] * devices), state)
    for epoch, batch in enumerate(batches):
        rows = replicas.rows(len(batch["mask"]))
        state, metrics = run(
            state, replicas.shard({k: v[rows] for k, v in batch.items()}, epoch=epoch), jax.random.key(0)
        )
    for leaf in jax.tree.leaves(state):
        np.testing.assert_array_equal(leaf, np.stack([leaf[0]] * devices))  # replicas agree bit for bit
    return jax.tree.map(lambda x: np.asarray(x[0]), (state.params, state.batch_stats, metrics))


def check_devices(*, dtype, name):
    batches = [make_batch(16, seed=s) for s in range(4)] + [make_batch(13, padding=3, seed=9)]
    one = run_on(1, batches, dtype=dtype, name=name)
    for devices in (2, 4):
        many = run_on(devices, batches, dtype=dtype, name=name)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.devices
def test_sgd_on_1_2_and_4_devices_is_the_same():
    check_devices(dtype="float32", name="sgd")


@pytest.mark.devices
def test_adam_on_1_2_and_4_devices_is_the_same(x64):
    check_devices(dtype="float64", name="adam")


@pytest.mark.devices
def test_batch_norm_per_replica_averages_statistics_by_examples(x64):
    step, state, _, _ = build(train="all", dtype="float64", axis=AXIS, bn="batch+update+affine,stem:eval")
    replicas, batch = Replicas(4, 4, 0), make_batch(6, padding=2)
    rows = replicas.rows(8)
    sharded = replicas.shard({k: v[rows] for k, v in batch.items()}, epoch=0)
    np.testing.assert_array_equal(sharded["mask"].sum(1), [2, 2, 1, 1])
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 4), state)
    after, _ = parallel.train_step(step)(stacked, sharded, jax.random.key(0))
    alone, alone_state, _, _ = build(train="all", dtype="float64", bn="batch+update+affine,stem:eval")
    shares = [
        jax.jit(alone)(alone_state, {k: v[d] for k, v in sharded.items()}, jax.random.key(0))[0] for d in range(4)
    ]
    expected = jax.tree.map(lambda *s: np.average(s, axis=0, weights=[2, 2, 1, 1]), *[s.batch_stats for s in shares])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-10), after.batch_stats, expected)
    assert bits(jax.tree.map(lambda x: x[0], after.batch_stats["bn1"])) == bits(state.batch_stats["bn1"])


def test_rows_are_dealt_out_so_that_padding_is_shared():
    replicas = [Replicas(4, 2, process) for process in (0, 1)]
    batch = np.arange(8)
    shards = np.concatenate([r.shard({"x": batch[r.rows(8)]})["x"] for r in replicas])
    np.testing.assert_array_equal(shards, [[0, 4], [1, 5], [2, 6], [3, 7]])
    np.testing.assert_array_equal(replicas[0].unshard(shards), batch)
    assert Replicas(4, 4, 0).padded(6) == 8
    assert Replicas(4, 4, 0, parts=3).padded(6) == 12


def test_evaluation_uses_running_statistics_alone():
    _, state, plan, model = build()
    step = make_forward_step(model=model, plan=plan, inputs=lambda keys, batch: NORMALIZE(batch["image"]), axis=None)
    batch, key = {**make_batch(), "epoch": np.int32(0)}, jax.random.key(0)
    part = {k: v[:2] if np.ndim(v) else v for k, v in batch.items()}
    evaluate = jax.jit(step)
    np.testing.assert_allclose(
        evaluate(state.variables, batch, key)[:2], evaluate(state.variables, part, key), rtol=1e-5
    )
