"""What reports do differently: the epoch that is tested, outputs nobody needs, normalization, boxes."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from tljax.core.errors import UserError
from tljax.core.rng import example_keys
from tljax.data import load
from tljax.report.console import make_console
from tljax.train import single_run
from tljax.train.setup import prepare

QUIET = make_console(quiet=True)


def test_augmented_copies_stand_beside_plain_images(photos):
    """An epoch has every image plain and its copies, each with a key of its own."""
    config = tiny.make_config(photos, protocol__augmented_copies=2, augment__crop="random_resized", batch_size=10)
    experiment, _ = prepare(config, None, QUIET)
    feed = experiment.feed("train", training=True)
    count, images = len(experiment.data.splits["train"]), len(experiment.data.source.names)
    assert feed.count == 3 * count
    assert experiment.steps_per_epoch == -(-3 * count // 10)
    batches = list(feed.batches(epoch=1))
    seen = np.concatenate([b["index"][b["mask"] > 0] for b in batches])
    assert sorted(seen) == sorted(c * images + i for c in range(3) for i in experiment.data.splits["train"])
    batch = next(b for b in batches if (b["index"] < images).any() and (b["index"] >= images).any())
    np.testing.assert_array_equal(batch["label"], experiment.data.source.labels[batch["index"] % images])
    keys = example_keys(jax.random.key(0), 1, batch["index"])
    found = np.asarray(feed.inputs(keys, batch | {"epoch": 1}))
    plain = np.asarray(feed.plain(keys, batch["image"], batch["size"]))
    first = batch["index"] < images
    np.testing.assert_array_equal(found[first], plain[first])
    assert all((a != b).any() for a, b in zip(found[~first], plain[~first], strict=True))


def test_a_run_with_copies_counts_them(photos, tmp_path):
    config = tiny.make_config(photos, protocol__augmented_copies=1, epochs=2, transfer__train="head",
                              transfer__fresh="all", transfer__allow_fresh_frozen=True)  # fmt: skip
    result = single_run.run(config, tmp_path / "run", console=QUIET)
    assert result["best_step"] in (9, 18)  # 36 images twice, in batches of 8
    assert (result["features"] or {}).get("splits", ["val"]) == ["val"]


@pytest.mark.parametrize("population", [(), (1e-4, 3e-3)])
def test_the_last_epoch_may_be_the_one_that_is_tested(photos, tmp_path, population):
    """The test is that of a run whose best epoch is its last: one without validation."""
    options = {"population__lr": population, "epochs": 2}
    last = single_run.run(tiny.make_config(photos, select="last", **options), tmp_path / "last", console=QUIET)
    ends = last["members"] if population else [last]
    for m, result in enumerate(ends):
        assert result["best_step"] == 2 * 5
        assert result["validation"]["best_epoch"] == 2
        where = tmp_path / "last" / f"members/{m:03}" if population else tmp_path / "last"
        found = np.load(where / "predictions.npz")
        assert (found["test_logits"].argmax(-1) == found["test_labels"]).sum() == result["test"]["correct"]
        assert result["validation"]["accuracy"] == result["validation"]["last_epoch"]["accuracy"]


def test_choosing_by_the_test_images_is_for_studies_alone_and_flagged(photos, tmp_path):
    config = tiny.make_config(photos, select="test", optimizer__lr=1e-2)
    with pytest.raises(UserError, match="select='test' would choose the epoch by the images it is tested on"):
        single_run.run(config, tmp_path / "run", console=QUIET)
    result = single_run.run(config, tmp_path / "run", console=QUIET, look_at_test=True)
    by_epoch = [row["test_correct"] for row in result["history"]]
    flagged = result["best_by_test"]
    assert flagged["correct"] == max(by_epoch)
    assert flagged["epoch"] == 1 + int(np.argmax(by_epoch))
    assert flagged["flag"]
    honest = result["history"][result["validation"]["best_epoch"] - 1]
    assert result["test"]["correct"] == honest["test_correct"]


def test_a_head_with_more_outputs_than_classes(photos, tmp_path):
    config = tiny.make_config(photos, model__outputs=1000, epochs=1)
    result = single_run.run(config, tmp_path / "run", console=QUIET)
    assert np.load(tmp_path / "run" / "predictions.npz")["test_logits"].shape == (18, 1000)
    assert result["plan"][0][-1]["parameters"] == 1000 * 9  # 8 channels and a bias
    with pytest.raises(UserError, match=r"model.outputs=2 does not fit loss.name=softmax on 3 classes; it needs 3"):
        single_run.run(tiny.make_config(photos, model__outputs=2), tmp_path / "few", console=QUIET)


def test_normalizing_by_the_training_images(photos, tmp_path):
    config = tiny.make_config(photos, data__normalize="dataset", epochs=1)
    found = single_run.run(config, tmp_path / "run", console=QUIET)["preprocessing"]
    assert found["mean"] != [0.485, 0.456, 0.406]
    assert 0.3 < min(found["mean"]) <= max(found["mean"]) < 0.5  # noise of 0 to 199 of 255, and tints
    assert 0.2 < min(found["std"]) <= max(found["std"]) < 0.26
    given = tiny.make_config(photos, data__normalize="dataset", data__mean=(0.5, 0.5, 0.5), epochs=1)
    assert single_run.run(given, tmp_path / "given", console=QUIET)["preprocessing"]["mean"] == [0.5, 0.5, 0.5]


def test_only_training_images_are_cut_to_their_boxes(photos):
    config = tiny.make_config(photos).data
    listed = load.open_data(config, seed=0)
    source, splits = listed.source, listed.splits
    boxes = np.tile(np.array([0, 0, 0.5, 1], np.float32), (len(source), 1))
    boxes[splits["train"][0]] = np.nan
    boxed = dataclasses.replace(listed, source=dataclasses.replace(source, boxes=boxes))
    whole = load.decode_data(config, boxed, resize=20, workdir=None).pixels
    config.boxes = True
    pixels = load.decode_data(config, boxed, resize=20, workdir=None).pixels
    for split, members in splits.items():
        for index in members:
            cut = split == "train" and index != splits["train"][0]
            assert (pixels.image(index).shape != whole.image(index).shape) == cut
    with pytest.raises(UserError, match=r"data.boxes=True, but folder:.* knows no boxes"):
        load.decode_data(config, listed, resize=20, workdir=None)


def test_a_class_with_fewer_images_than_are_asked_for_is_named(photos):
    def notes(per_class):
        config = tiny.make_config(photos, data__per_class=per_class)  # of 12 that train
        return load.open_data(config.data, seed=0).notes

    assert notes(12) == []
    (note,) = notes(13)
    assert note.startswith("data.per_class=13, but 'blue', 'green', 'red' have fewer images to train on (the least 12)")
