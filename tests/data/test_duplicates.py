"""Test images that are in train, too: the same pixels, or nearly the same picture."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from tests import tiny
from tljax.data import duplicates, load
from tljax.report.console import make_console, print_duplicates
from tljax.settings.fields import get_config
from tljax.train import single_run


def picture(seed, side=96):
    """A smooth picture, as different from others as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((side + 16, side), Image.Resampling.BICUBIC)


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def open_pictures(root, **settings):
    config = get_config().data
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
    "gray": lambda i: i.convert("L"),
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


def test_unlabeled_images_count_as_seen_and_have_no_label_to_contradict(root):
    whole, few = open_pictures(root), open_pictures(root, labels="20%")
    assert len(few.splits["train"]) == 8
    found = [duplicates.find(data).copies["test"]["train"].of for data in (whole, few)]
    assert np.array_equal(*found)


def test_a_run_tells_its_accuracy_without_them(root, tmp_path, capsys):
    config = tiny.make_config(root, data__split="official", data__val=0.2, data__resize=64, epochs=1)
    result = single_run.run(config, tmp_path / "run")
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
    before, after = capsys.readouterr().out.split("epoch   1")
    assert "nearly the same as one in train; such as" in before
    assert "test accuracy may be too high by them; it will be told without them, too" in before
    assert f"test accuracy without {len(copies)} that are or may be in train, too: " in after
    assert "nearly" not in after and "such as" not in after  # said once


def fruit(rng):
    image = Image.new("RGB", (64, 64), (255, 255, 255))
    x, y, radius = (int(base + rng.integers(-3, 4)) for base in (32, 32, 25))
    color = tuple(int(v) for v in rng.integers(20, 236, 3))
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return image


def digit(rng):
    image = Image.new("L", (112, 112))
    corners = [(x + int(rng.integers(-6, 7)), y + int(rng.integers(-6, 7))) for y in (24, 56, 88) for x in (38, 74)]
    ImageDraw.Draw(image).line([corners[k] for k in (0, 1, 3, 2, 4, 5)], fill=255, width=int(rng.integers(8, 14)))
    return image.resize((28, 28), Image.Resampling.BOX)


def page(rng):
    image = Image.new("L", (180, 240), 255)
    for y in range(20, 215, 10):
        for x in range(20, 160, 14):
            ImageDraw.Draw(image).rectangle((x, y, x + int(rng.integers(3, 12)), y + 4), fill=int(rng.integers(0, 60)))
    return image


def scan(rng):
    """Like an X-ray of a chest."""
    image, near = Image.new("L", (128, 128), 20), lambda base, by=4: int(base + rng.integers(-by, by + 1))
    draw = ImageDraw.Draw(image)
    draw.ellipse((near(15), near(10), near(113), near(125)), fill=near(150, 15))
    for x in (25, 65):
        draw.ellipse((near(x), near(30), near(x + 30), near(100)), fill=near(60, 12))
    draw.rectangle((near(61, 2), 15, near(67, 2), 120), fill=near(180, 15))
    return image.filter(ImageFilter.GaussianBlur(2))


@pytest.mark.parametrize("kind", [fruit, digit, page, scan])
def test_pictures_of_one_layout_are_no_copies(tmp_path, capsys, kind):
    rng = np.random.default_rng(0)
    for split, count in (("train", 120), ("test", 40)):
        for i in range(count):
            save(kind(rng), tmp_path / split / "ab"[i % 2] / f"{i:03}.png")
    data = open_pictures(tmp_path)
    found = duplicates.find(data)
    copies = found.copies["test"]["train"]
    assert (copies.any & ~copies.exact).sum() <= 1
    print_duplicates(make_console(), found.as_dict(data.source.names), before=True)
    said = " ".join(capsys.readouterr().out.split())
    told = f"{copies.layout} of 40 test images have the layout of others in train" in said
    assert told == (copies.layout > 1)


@pytest.mark.parametrize("kind", [digit, page, scan])
def test_copies_among_pictures_of_one_layout_are_found(tmp_path, kind):
    rng = np.random.default_rng(1)
    for i in range(60):
        image = kind(rng)
        save(image, tmp_path / "train" / "ab"[i % 2] / f"{i:03}.png")
        if i < 10:
            save(image, tmp_path / "test" / "ab"[i % 2] / f"{i:03}.jpg", quality=75)
    data = open_pictures(tmp_path)
    found = duplicates.find(data).copies["test"]["train"]
    names = [[data.source.names[i][-7:-4] for i in pair] for pair in zip(found.images, found.of, strict=True)]
    assert found.any.all() and all(copy == name for copy, name in names)


@pytest.mark.real_data
def test_cartoons_that_were_sold_twice(shared):
    """35 pairs, which were looked at: one drawing each but for a guitar; none of two classes."""
    config = get_config().data
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
