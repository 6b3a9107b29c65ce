import threading

import numpy as np
import pytest

from tljax.data.batches import eval_batches, num_batches, padded_shape_of, prefetch, train_batches
from tljax.data.pixels import Pixels

SIZES = np.array([[8, 12], [10, 8], [8, 8], [9, 8], [8, 11], [16, 8], [8, 9]], np.int32)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0])


@pytest.fixture
def pixels():
    """Seven images; every pixel of image i is at least 1."""
    rng = np.random.default_rng(0)
    buffer = rng.integers(1, 256, int((SIZES.prod(axis=1) * 3).sum()), np.uint8)
    ends = np.cumsum(SIZES.prod(axis=1) * 3)
    return Pixels(buffer, np.concatenate([[0], ends[:-1]]), SIZES)


def train(pixels, **options):
    return list(train_batches(pixels, LABELS, np.arange(7), **{"batch_size": 3, "seed": 1, "epoch": 0, **options}))


def equal(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in zip(one, other, strict=True)
    )


def test_every_image_once_whole_and_at_the_top_left(pixels):
    batches = train(pixels)
    assert len(batches) == num_batches(7, 3) == 3
    seen = []
    for batch in batches:
        assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
            "image": ((3, 16, 12, 3), "uint8"), "size": ((3, 2), "int32"), "label": ((3,), "int32"),
            "index": ((3,), "int32"), "mask": ((3,), "float32"),
        }  # fmt: skip
        for row in np.flatnonzero(batch["mask"]):
            index, (height, width) = int(batch["index"][row]), batch["size"][row]
            assert (height, width) == tuple(SIZES[index])
            assert batch["label"][row] == LABELS[index]
            picture = batch["image"][row]
            assert np.array_equal(picture[:height, :width], pixels.image(index))
            assert not picture[height:].any()
            assert not picture[:, width:].any()
            seen.append(index)
    assert sorted(seen) == list(range(7))


def test_the_last_batch_is_filled_with_harmless_rows(pixels):
    last = train(pixels)[-1]
    assert last["mask"].tolist() == [1, 0, 0]
    assert not last["image"][1:].any()
    assert not last["label"][1:].any()
    assert not last["index"][1:].any()
    assert (last["size"][1:] == (16, 12)).all()


def test_a_batch_is_a_function_of_seed_epoch_and_its_number(pixels):
    batches = train(pixels)
    assert equal(batches, train(pixels))
    assert equal(batches[1:], train(pixels, start=1))
    assert train(pixels, start=3) == []
    order = [batch["index"].tolist() for batch in batches]
    assert order != [batch["index"].tolist() for batch in train(pixels, epoch=1)]
    assert order != [batch["index"].tolist() for batch in train(pixels, seed=2)]


def test_the_canvas_is_of_the_split_or_as_given(pixels):
    assert padded_shape_of(pixels, np.array([0, 1, 2])) == (10, 12)
    batch = next(train_batches(pixels, LABELS, np.array([0, 1]), batch_size=2, seed=0, epoch=0, canvas=(20, 20)))
    assert batch["image"].shape == (2, 20, 20, 3)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_one_global_batch(pixels, count):
    whole = train(pixels, batch_size=4)
    parts = [train(pixels, batch_size=4, rows=slice(i, None, count)) for i in range(count)]
    for number, batch in enumerate(whole):
        for name, values in batch.items():
            joined = np.stack([part[number][name] for part in parts], axis=1).reshape(values.shape)
            assert np.array_equal(joined, values)


def test_rows_may_be_an_index_array(pixels):
    whole, part = train(pixels), train(pixels, rows=np.array([2, 0, 3]))
    for a, b in zip(whole, part, strict=True):
        assert all(np.array_equal(a[name][[2, 0]], b[name][:2]) for name in a)
        assert b["mask"][2] == 0
        assert not b["image"][2].any()


def torch_center_crop(image, crop):
    """torchvision.transforms.functional.center_crop, line by line."""
    height, width = image.shape[:2]
    if crop > width or crop > height:
        left, top = ((crop - side) // 2 if crop > side else 0 for side in (width, height))
        right, bottom = ((crop - side + 1) // 2 if crop > side else 0 for side in (width, height))
        image = np.pad(image, ((top, bottom), (left, right), (0, 0)))
        height, width = image.shape[:2]
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    return image[top : top + crop, left : left + crop]


@pytest.mark.parametrize("crop", [5, 6, 7, 8, 9, 11, 17])
def test_evaluation_crops_the_center_as_torchvision_does(pixels, crop):
    indices = np.array([6, 0, 1, 2, 3, 4, 5])
    batches = list(eval_batches(pixels, LABELS, indices, batch_size=4, crop=crop))
    images = np.concatenate([batch["image"] for batch in batches])
    for row, index in enumerate(indices):
        assert np.array_equal(images[row], torch_center_crop(pixels.image(index), crop))
    assert np.concatenate([batch["index"] for batch in batches])[:7].tolist() == indices.tolist()
    assert np.concatenate([batch["mask"] for batch in batches]).tolist() == [1] * 7 + [0]
    assert all((batch["size"] == crop).all() for batch in batches)
    part = list(eval_batches(pixels, LABELS, indices, batch_size=4, crop=crop, rows=slice(1, None, 2)))
    assert all(np.array_equal(a["image"][1::2], b["image"]) for a, b in zip(batches, part, strict=True))


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 2, 10])
def test_prefetch_changes_nothing(pixels, depth):
    assert equal(list(prefetch(iter(train(pixels)), depth)), train(pixels))
    assert list(prefetch(iter([]), depth)) == []
    assert prefetch_threads() == []


def test_prefetch_works_ahead_but_not_without_bound():
    made = []
    full = threading.Event()

    def numbers():
        for i in range(100):
            made.append(i)
            if i == 3:
                full.set()
            yield i

    ahead = prefetch(numbers(), depth=2)
    assert next(ahead) == 0
    assert full.wait(10)  # 1 and 2 are ready, 3 waits for room
    assert len(made) == 4
    assert list(ahead) == list(range(1, 100))


def test_prefetch_forwards_exceptions_in_their_place():
    def failing():
        yield 1
        raise KeyError("here")

    ahead = prefetch(failing())
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="here"):
        next(ahead)
    assert prefetch_threads() == []


def test_prefetch_ends_its_thread_when_the_consumer_stops():
    closed = threading.Event()

    def repeat():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ahead = prefetch(repeat(), depth=1)
    assert next(ahead) == 1
    ahead.close()
    assert closed.is_set()
    assert prefetch_threads() == []
