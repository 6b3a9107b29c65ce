"""Whatever the batch size, the devices, the parts of a batch and what fills the last one: every example counts once."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.data.batches import in_order, num_batches
from tljax.data.labels import HeldOutLabels
from tljax.data.load import Data
from tljax.data.pixels import Pixels
from tljax.data.source import Source
from tljax.distributed.parallel import AXIS, Replicas
from tljax.engine.input_pipeline import Features, InputPipeline, predict_all, repeat
from tljax.engine.steps import make_forward_step, make_train_step
from tljax.metrics.accuracy import score
from tljax.metrics.losses import make_loss
from tljax.models import create_model, variable_shapes
from tljax.run_dir.train_state import TrainState
from tljax.transfer.optimizer import make_optimizer, make_schedule
from tljax.transfer.plan import make_plan
from tljax.transfer.population import Family

CLASSES, CROP = 3, 3
MODEL = create_model("resnet18", num_classes=CLASSES, width=3, blocks=(1,))  # its head takes three numbers
PLAN = make_plan(MODEL, variable_shapes(MODEL), train="head", lr=1.0)
RNG = np.random.default_rng(0)
VARIABLES = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), variable_shapes(MODEL))
KERNEL, BIAS = VARIABLES["params"]["fc"]["kernel"], VARIABLES["params"]["fc"]["bias"]
KEY = jax.random.key(0)
FEW = settings(max_examples=settings().max_examples // 2)


@functools.cache
def make_data(count, soft=False):
    """`count` pictures of 3 to 6 pixels a side, and their labels."""
    rng = np.random.default_rng(count)
    sizes = rng.integers(3, 7, (count, 2)).astype(np.int32)
    ends = np.cumsum([0, *(sizes.prod(axis=1) * 3)])
    pixels = Pixels(rng.integers(0, 256, ends[-1], np.uint8), ends[:-1], sizes)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    targets = rng.dirichlet(np.ones(CLASSES), count).astype(np.float32) if soft else labels
    source = Source("made", tuple(f"{i:03}" for i in range(count)), labels, tuple("abc"), read=None)
    return Data(source, {}, targets, labels, HeldOutLabels(labels, "drawn without labels"), pixels)


def make_feed(data, indices, batch_size, *, training, features=None, copies=0):
    def views(keys, images, sizes):
        return colors(images)

    return InputPipeline(
        data=data, indices=indices, batch_size=min(batch_size, len(indices)), training=training, copies=copies,
        views=views, plain=views, normalize=colors, crop=CROP, seed=3, features=features,
    )  # fmt: skip


def colors(images):
    """The mean of each channel, `[B, 3]`, 0 to 1."""
    return jnp.asarray(images, jnp.float32).mean((1, 2)) / 255


def on(devices, tree):
    return jax.tree.map(lambda x: np.stack([x] * devices), tree)


def softmax(logits):
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return chances / chances.sum(1, keepdims=True)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_rows_reach_every_device_of_every_process_and_come_back_in_order(count, batch_size, local, processes, parts):
    everyone = [Replicas(local * processes, local, process, parts) for process in range(processes)]
    indices = np.random.default_rng(count).permutation(1000)[:count]
    labels = np.arange(1000) % 7
    dealt = [list(in_order(labels, indices, batch_size=batch_size, rows=r.rows(batch_size))) for r in everyone]
    assert {len(batches) for batches in dealt} == {num_batches(count, batch_size)}
    seen = []
    for batches in zip(*dealt, strict=True):
        shards = [r.shard(batch, epoch=5) for r, batch in zip(everyone, batches, strict=True)]
        assert all(shard["epoch"].tolist() == [5] * local for shard in shards)
        over_all = {name: np.concatenate([shard[name] for shard in shards]) for name in ("index", "label", "mask")}
        real = over_all["mask"].sum(axis=1)
        assert np.ptp(real) <= 1 and over_all["mask"].shape[1] % parts == 0
        back = {name: everyone[0].unshard(values) for name, values in over_all.items()}
        rows = min(batch_size, count - len(seen))
        assert back["mask"].tolist() == [1] * rows + [0] * (everyone[0].padded(batch_size) - rows)
        assert not back["index"][rows:].any() and not back["label"][rows:].any()
        assert np.array_equal(back["label"][:rows], labels[back["index"][:rows]])
        seen += back["index"][:rows].tolist()
    assert seen == indices.tolist()


@functools.cache
def forward_on(devices, kept):
    """A forward step that begins at the head, over kept features or mean colors, by number of devices."""
    step = make_forward_step(
        model=MODEL, plan=PLAN, start_stage="head", frozen_prefix_end="head",
        inputs=lambda keys, batch: batch["feature"] if kept else colors(batch["image"]),
    )  # fmt: skip
    return jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None), devices=jax.devices()[:devices])


@pytest.mark.devices
@FEW
@given(st.sampled_from([1, 2, 3, 5, 7, 12, 19]), st.integers(1, 8), st.integers(1, 4), st.booleans(), st.data())
def test_an_evaluation_is_that_of_all_images_at_once(count, batch_size, devices, kept, data):
    """Any of the images in any order; logits come in theirs, and the score is NumPy's."""
    made, rng = make_data(30), np.random.default_rng(data.draw(st.integers(0, 2**32)))
    indices = rng.permutation(30)[:count]
    features = Features(rng.normal(size=(30, 2, 3)).astype(np.float32), rng.permutation(30)) if kept else None
    feed = make_feed(made, indices, batch_size, training=False, features=features)
    view = data.draw(st.integers(0, 5))
    step, replicas = forward_on(devices, kept), Replicas(devices, devices, 0)
    logits = np.concatenate(list(predict_all(step, feed, on(devices, VARIABLES), KEY, replicas, view=view)))
    if features is not None:
        x = features.values[np.argsort(features.images)][indices, view % 2]
    else:
        x = np.stack([center(made.pixels.image(i)).mean((0, 1)) / 255 for i in indices])
    expected = x @ KERNEL + BIAS
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    labels = made.source.labels[indices]
    told = score(logits, labels, make_loss("softmax"))
    assert (told.correct, told.seen) == ((expected.argmax(1) == labels).sum(), count)
    losses = -np.log(softmax(expected)[np.arange(count), labels])
    assert told.loss == pytest.approx(losses.mean(), rel=1e-4, abs=1e-5)


def center(picture):
    top, left = (round((side - CROP) / 2) for side in picture.shape[:2])
    return picture[top : top + CROP, left : left + CROP]


@functools.cache
def train_on(devices, parts):
    """One update of the head at a rate of 1 over kept features; the state is not donated."""
    tx = make_optimizer(PLAN, name="sgd", momentum=0.0)
    step = make_train_step(
        model=MODEL, plan=PLAN, families=[Family.single(tx, make_schedule("constant", steps=1))],
        loss=make_loss("softmax"), inputs=lambda keys, batch: batch["feature"],
        start_stage="head", frozen_prefix_end="head", accumulate=parts,
    )  # fmt: skip
    state = TrainState(step=np.int32(0), **VARIABLES, opt_state=tx.init(VARIABLES["params"]))
    return jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None), devices=jax.devices()[:devices]), on(devices, state)


@pytest.mark.devices
@FEW
@given(
    st.integers(1, 20), st.integers(1, 8), st.integers(1, 4), st.integers(1, 2), st.integers(0, 1), st.booleans(),
    st.integers(0, 2**32),
)  # fmt: skip
def test_training_sums_and_gradients_are_those_of_the_real_examples(
    count, batch_size, devices, parts, copies, soft, seed
):
    """Of every batch of an epoch, with anything finite in the rows that fill it up."""
    data, replicas = make_data(20, soft), Replicas(devices, devices, 0, parts)
    rng = np.random.default_rng(seed)
    indices = rng.permutation(20)[:count]
    features = Features(rng.normal(size=(20, 1, 3)).astype(np.float32), np.arange(20))
    feed = make_feed(data, indices, batch_size, training=True, features=features, copies=copies)
    step, state = train_on(devices, parts)
    seen = []
    for shard in feed.shards(replicas, epoch=seed % 7):
        padding = shard["mask"] == 0
        shard["feature"][padding], shard["label"][padding] = 77, 1
        after, metrics = step(state, shard, KEY)
        rows = shard["index"][shard["mask"] > 0]
        x, label = features.values[rows % 20, 0], data.targets[rows % 20]
        target = label if soft else np.eye(CLASSES)[label]
        logits = x @ KERNEL + BIAS
        chances = softmax(logits)
        by_group = metrics.pop("norms")
        told = {name: float(value[0]) for name, value in metrics.items()}
        assert told["seen"] == len(rows)
        assert told["correct"] == (logits.argmax(1) == target.argmax(1)).sum()
        assert told["loss"] == pytest.approx(-(target * np.log(chances)).sum(), rel=1e-4, abs=1e-5)
        by_logits = (chances - target) / len(rows)
        grads = {"kernel": x.T @ by_logits, "bias": by_logits.sum(0)}
        for name, gradient in grads.items():
            for replica in np.asarray(after.params["fc"][name]):
                np.testing.assert_allclose(replica, VARIABLES["params"]["fc"][name] - gradient, rtol=1e-4, atol=1e-5)
        assert told["grad_norm"] == pytest.approx(
            np.sqrt(sum((g**2).sum() for g in grads.values())), rel=1e-3, abs=1e-6
        )
        assert {name: float(norm[0]) for name, norm in by_group.items()} == {"head": told["grad_norm"]}
        seen += rows.tolist()
    assert sorted(seen) == sorted(i + 20 * c for c in range(1 + copies) for i in indices)


@given(
    st.integers(1, 20), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.integers(0, 30), st.integers(0, 2)
)
def test_batches_go_on_where_they_were_left(count, batch_size, devices, parts, start, copies):
    """From pass to pass, whatever the batch that one begins with."""
    feed = make_feed(make_data(20), np.arange(20)[-count:], batch_size, training=True, copies=copies)
    replicas = Replicas(devices, devices, 0, parts)
    whole = itertools.islice(repeat(feed, replicas), start, start + 5)
    later = itertools.islice(repeat(feed, replicas, start=start), 5)
    for a, b in zip(whole, later, strict=True):
        assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
