"""Test images that are in train, too: the same pixels, or nearly the same picture."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from configs import common
from tests import tiny
from tljax import train
from tljax.data import duplicates, load


def picture(seed, side=96):
    """A smooth picture, as different from others as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((side + 16, side), Image.Resampling.BICUBIC)


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def open_pictures(root, **settings):
    config = common.get_config().data
    config.source, config.split, config.val = f"folder:{root}", "official", 0.0
    for name, value in settings.items():
        config[name] = value
    return load.decode_data(config, load.open_data(config, seed=0), resize=64, workdir=None)


CHANGED = {
    "jpeg": lambda i: i,
    "half": lambda i: i.resize((i.width // 2, i.height // 2)),
    "cut": lambda i: i.crop((1, 1, i.width - 1, i.height - 1)),
    "mirrored": lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "darker": lambda i: ImageEnhance.Brightness(i).enhance(0.8),
    "grey": lambda i: i.convert("L"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Forty pictures in train; in the test six of them changed, two saved again without loss, thirty others."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for seed in range(40):
        save(picture(seed), root / "train" / "ab"[seed % 2] / f"{seed:03}.png")
    for seed, (name, change) in enumerate(CHANGED.items()):
        save(change(picture(seed)), root / "test" / "a" / f"{name}.jpg", quality=50)
    for seed, suffix in ((10, "bmp"), (11, "tif")):
        save(picture(seed), root / "test" / "b" / f"again.{suffix}")
    for seed in range(100, 130):
        save(picture(seed), root / "test" / "ab"[seed % 2] / f"{seed}.png")
    return root


def test_copies_are_found_however_they_were_saved_and_strangers_are_not(root):
    data = open_pictures(root)
    found = duplicates.find(data).copies["test"]["train"]
    names = data.source.names
    copies = {
        names[i].split("/")[-1]: names[j].split("/")[-1] for i, j in zip(found.images, found.of, strict=True) if j >= 0
    }
    assert copies == {f"{name}.jpg": f"{seed:03}.png" for seed, name in enumerate(CHANGED)} | {
        "again.bmp": "010.png", "again.tif": "011.png"
    }  # fmt: skip
    assert {names[i].split("/")[-1] for i in found.images[found.exact]} == {"again.bmp", "again.tif"}
    told = found.as_dict(names)
    assert (told["images"], told["exact"], told["near"]) == (38, 2, 6)
    assert told["examples"][0] == ["test/b/again.bmp", "train/a/010.png", "exact"]
    assert all(0 <= bits <= duplicates.BITS for *_, bits in told["examples"][2:])


def test_blocks_of_pairs_find_what_all_at_once_find(root, monkeypatch):
    data = open_pictures(root)
    whole = duplicates.find(data).copies["test"]["train"]
    monkeypatch.setattr(duplicates, "_BLOCK", 100)
    parts = duplicates.find(data).copies["test"]["train"]
    for name in ("of", "exact", "bits"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def test_empty_pages_are_the_same_by_their_pixels_alone(tmp_path):
    for split, shades in (("train", (0, 255, 90)), ("test", (255, 40))):
        for name in "ab":
            for shade in shades:
                save(Image.new("RGB", (80, 70), (shade,) * 3), tmp_path / split / name / f"{shade}.png")
    found = duplicates.find(open_pictures(tmp_path))
    told = found.copies["test"]["train"]
    assert (told.exact.sum(), told.any.sum()) == (2, 2)
    assert len(found.contradictions) == 6  # each shade is in both classes


def test_unlabelled_images_count_as_seen_and_have_no_label_to_contradict(root):
    whole, few = open_pictures(root), open_pictures(root, labels="20%")
    assert len(few.splits["train"]) == 8
    found = [duplicates.find(data).copies["test"]["train"].of for data in (whole, few)]
    assert np.array_equal(*found)


def test_a_run_tells_its_accuracy_without_them(root, tmp_path, capsys):
    config = tiny.make_config(root, data__split="official", data__val=0.2, data__resize=64, epochs=1)
    result = train.run(config, tmp_path / "run")
    told = result["duplicates"]
    in_train, in_val = told["test"]["train"], told["test"]["validation"]
    assert in_train["exact"] + in_train["near"] + in_val["exact"] + in_val["near"] == 8
    file = np.load(tmp_path / "run" / "predictions.npz")
    copies = {name for name, *_ in in_train["examples"]}
    rest = np.array([name not in copies for name in file["test_names"]])
    right = file["test_logits"].argmax(1) == file["test_labels"]
    without = told["without"]["test"]
    assert (without["correct"], without["seen"]) == (right[rest].sum(), rest.sum())
    assert told["without"]["validation"] is None  # none of them is in train
    words, printed = f"{len(copies)} of 38 test images are in train, too (", capsys.readouterr().out
    before, after = printed.split("epoch   1")
    assert words in before and "test accuracy may be too high by them; it will be told without them, too" in before
    assert words in after and "accuracy without them" in after and "will be" not in after


@pytest.mark.real_data
def test_cartoons_that_were_sold_twice(shared):
    """35 pairs, which were looked at: one drawing each but for a guitar; none of two classes."""
    config = common.get_config().data
    config.source, config.split = f"folder:{shared / 'data' / 'pacs_cartoon'}", "50/50"
    data = load.decode_data(config, load.open_data(config, seed=0), resize=256, workdir=None)
    prints, everyone = duplicates.prints_of(data.pixels), np.arange(len(data.source))
    pairs = set()
    for i in everyone:
        found = duplicates.copies(prints, everyone[i : i + 1], everyone[i + 1 :]) if i + 1 < len(everyone) else None
        if found is not None and found.of[0] >= 0:
            pairs.add((data.source.names[i], data.source.names[found.of[0]]))
    assert 30 <= len(pairs) <= 36
    assert ("elephant/pic_001.jpg", "elephant/pic_004.jpg") in pairs  # mirrored
    assert all(a.split("/")[0] == b.split("/")[0] for a, b in pairs)
