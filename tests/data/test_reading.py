"""One reading of a picture: whichever way it comes, in training and after, the network sees the same pixels."""

import ast
import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tljax
from tests import tiny
from tests.commands import environment
from tests.data import odd_pictures
from tljax.data import load as loading
from tljax.data import reading
from tljax.data.decode import Levels, decode
from tljax.data.folder import open_folder
from tljax.data.pixels import decode_all, find_levels
from tljax.export import __main__ as export_command
from tljax.export import portable
from tljax.inference import batch_predict
from tljax.inference.classifier import load
from tljax.report.console import make_console
from tljax.train import single_run
from tljax.weights.hub import Preprocessing

ODD = odd_pictures.make()
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def classifier(finished):
    return load(finished)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    for name, odd in ODD.items():
        (folder / name).write_bytes(odd.data)
    return folder


@contextlib.contextmanager
def ways(odd, path):
    """All forms in which Python code has a picture."""
    with Image.open(path) as unread, Image.open(io.BytesIO(odd.data)) as of_bytes:
        yield {
            "path": path,
            "bytes": odd.data,
            "Pillow, not read yet": unread,
            "Pillow of bytes": of_bytes,
            "array": odd.pixels,
        }


@pytest.mark.parametrize("name", ODD)
def test_the_network_sees_the_same_pixels_whichever_way_a_picture_comes(classifier, files, name):
    expected = classifier.see(ODD[name].data)
    with ways(ODD[name], files / name) as forms:
        for way, picture in forms.items():
            if isinstance(picture, Path):
                (found,) = batch_predict.find_pictures([str(picture)], bytes)
                picture = found.read()
            np.testing.assert_array_equal(classifier.see(picture), expected, err_msg=way)
    source = dataclasses.replace(two_classes(files), read=lambda i: ODD[name].data)
    decoded = decode_all(source, np.array([0]), short_side=classifier.preprocessing.resize).image(0)
    square = np.zeros_like(expected)
    reading.put_central_square(decoded, square)
    np.testing.assert_array_equal(square, expected)


def two_classes(folder):
    names = sorted(path.name for path in folder.iterdir())
    return loading.Source("odd", tuple(names), np.zeros(len(names), np.int32), ("a", "b"), lambda i: b"")


@pytest.mark.parametrize("name", ODD)
def test_an_export_reads_as_the_run_does(classifier, files, name):
    how = dataclasses.asdict(classifier.preprocessing)
    with ways(ODD[name], files / name) as forms:
        for way, picture in forms.items():
            np.testing.assert_array_equal(reading.see(picture, how), classifier.see(ODD[name].data), err_msg=way)


def test_predict_says_the_same_of_all_forms(finished, files):
    run = tljax.load(finished)
    for name in ("turned 6 JPEG", "alpha", "palette, transparent entry", "CMYK", "16 bits", "gray and alpha, turned"):
        with ways(ODD[name], files / name) as forms:
            answers = tljax.predict(run, list(forms.values()))
        first = dict(answers[0].best)
        for answer in answers:
            assert dict(answer.best) == pytest.approx(first, abs=1e-5), name


def test_transparent_is_white_and_the_gray_scale_is_whole():
    half = np.full((4, 4, 2), 100, np.uint8)
    half[:2, :, 1], half[2:, :, 1] = 0, 255
    seen = decode(half, short_side=4)
    assert (seen[0] == 255).all() and (seen[3] == 100).all()
    for pixels in (np.linspace(0, 65535, 16).astype(np.uint16), np.linspace(0, 1, 16), np.linspace(0, 255, 16)):
        seen = decode(pixels.reshape(4, 4), short_side=4)
        assert (seen.min(), seen.max()) == (0, 255)


def test_a_pillow_image_stays_open_and_as_it_was(files):
    with Image.open(files / "turned 6 JPEG") as image:
        decode(image, short_side=16)
        assert image.size == (64, 50) and image.getexif()[odd_pictures.ORIENTATION] == 6
        assert image.getpixel((3, 3)) is not None


@pytest.mark.parametrize(
    "kind,arguments", [("onnx", "onnxruntime.InferenceSession"), ("stablehlo", "export.deserialize")]
)
def test_what_the_documents_show_says_what_the_run_says(finished, files, tmp_path, kind, arguments):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    pytest.importorskip("flatbuffers")
    out = tmp_path / "out"
    export_command.export(finished, [kind], out, images=[str(files / "gray")], tell=lambda line: None)
    page = (ROOT / "docs/howto/export.md").read_text(encoding="utf-8")
    (shown,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if arguments in block]
    (out / "ask.py").write_text(shown, encoding="utf-8")
    names = ["turned 6 JPEG", "alpha", "palette, transparent entry", "CMYK", "16 bits", "gray and alpha", "long"]
    done = subprocess.run([sys.executable, "ask.py", *(str(files / name) for name in names)], cwd=out,
                          capture_output=True, text=True, check=True, env=environment())  # fmt: skip
    answers = batch_predict.ask(
        load(finished), batch_predict.find_pictures([str(files / name) for name in names], bytes)
    )
    for line, answer in zip(done.stdout.splitlines(), answers, strict=True):
        cls, share = answer.best[0]
        assert line == f"{answer.name} {cls} {share:.1%}"


def test_the_reading_of_an_export_needs_pillow_and_numpy_alone():
    needed = set()
    for node in ast.walk(ast.parse(export_command.READING.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            needed |= {one.name.split(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            needed.add(str(node.module).split(".")[0])
    assert needed - set(sys.stdlib_module_names) == {"numpy", "PIL"}


# What is white


def scans(root, bits=12, *, float_of=None, kind="png"):
    """Gray scans that use so many bits of 16."""
    rng = np.random.default_rng(0)
    for c, name in enumerate(tiny.CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 2**bits - 2**bits // 4, (40, 48)) + c * 2**bits // 8
            pixels[0, 0] = 2**bits - 1 if i % 2 else 0
            pixels = pixels.astype(np.uint16) if float_of is None else (pixels / float_of).astype(np.float32)
            Image.fromarray(pixels).save(root / name / f"{i:03}.{kind}")
    return root


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_white_is_the_largest_value_of_the_training_images_rounded_up(tmp_path, bits, kind):
    config = tiny.make_config(scans(tmp_path / "scans", bits, kind=kind))
    data = loading.decode_data(config.data, loading.open_data(config.data, seed=0), resize=40, workdir=None)
    assert data.pixels.levels == Levels(2**bits - 1)
    assert not data.pixels.flat
    assert all(data.pixels.image(int(i)).max() > 180 for i in np.flatnonzero(data.pixels.held))


@pytest.mark.parametrize("largest,white", [(1.0, 1.0), (255.0, 255.0), (4000.0, 4095.0), (0.2, 1.0)])
def test_floats_of_a_set_are_scaled_alike(tmp_path, largest, white):
    config = tiny.make_config(scans(tmp_path / "scans", 12, float_of=4095 / largest, kind="tif"))
    source = open_folder(config.data.source.removeprefix("folder:"))
    assert find_levels(source, np.arange(len(source))) == Levels(float_white=white)


def test_only_training_images_say_what_is_white(tmp_path):
    for split, bits in (("train", 10), ("val", 12), ("test", 16)):
        scans(tmp_path / "scans" / split, bits)
    config = tiny.make_config(tmp_path / "scans", data__split="official")
    data = loading.decode_data(config.data, loading.open_data(config.data, seed=0), resize=40, workdir=None)
    assert data.pixels.levels.white == 1023


def test_a_decoded_file_is_not_taken_for_another_white(tmp_path):
    source, everything = open_folder(scans(tmp_path / "scans")), np.arange(72)
    how = {"short_side": 20, "memory_bytes": 100, "spill": tmp_path / "kept"}
    bright = decode_all(source, everything, levels=Levels(4095), **how)
    dark = decode_all(source, everything, **how)
    again = decode_all(source, everything, **how)
    assert bright.image(0).mean() > 8 * dark.image(0).mean()
    assert len(dark.flat) == len(again.flat) == 72
    assert again.levels == Levels()


def test_pictures_of_8_bits_are_not_read_twice(photos, monkeypatch):
    source, read = open_folder(photos), []
    counted = dataclasses.replace(source, read=CountedFiles(source.read, read))
    assert find_levels(counted, np.arange(len(source))) == Levels()
    assert not read


class CountedFiles:
    def __init__(self, files, read):
        self.files, self.read, self.head = files, read, files.head

    def __call__(self, index):
        self.read.append(index)
        return self.files(index)


@pytest.mark.parametrize("kind", ["gif", "tiff", "webp", "png"])
def test_files_of_several_pictures_are_named(tmp_path, kind):
    for name in "ab":
        (tmp_path / name).mkdir()
    pages = [Image.new("RGB", (24, 20), (shade, 9, 9)) for shade in (0, 90, 180)]
    pages[0].save(tmp_path / "a" / f"three.{kind}", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "b" / f"one.{kind}")
    (tmp_path / "a" / f"damaged.{kind}").write_bytes((tmp_path / "a" / f"three.{kind}").read_bytes()[:40])
    source = open_folder(tmp_path)
    for how in ({}, {"memory_bytes": 10, "spill": tmp_path / "kept"}, {"memory_bytes": 10, "spill": tmp_path / "kept"}):
        found = decode_all(source, np.arange(len(source)), short_side=20, **how)
        assert found.paged == (f"a/three.{kind}",)
        assert found.image(source.names.index(f"a/three.{kind}")).max() < 20
        assert [name for name, _ in found.skipped] == [f"a/damaged.{kind}"]


def test_a_run_says_what_is_white_once_and_everything_after_uses_it(tmp_path, capsys):
    folder = scans(tmp_path / "scans")
    Image.new("L", (48, 40), 90).save(folder / "red" / "empty.png")
    slices = [Image.fromarray(np.full((40, 48), shade, np.uint16)) for shade in (900, 3000)]
    slices[0].save(folder / "red" / "stack.tif", save_all=True, append_images=slices[1:])
    config = tiny.make_config(folder, epochs=1)
    result = single_run.run(config, tmp_path / "run", console=make_console())
    told = capsys.readouterr().out
    assert told.count("images of more than 8 bits use 12 of them: 4,095 is white") == 1
    flat = ["red/empty.png", "red/stack.tif"]
    assert "warning: 2 images of next to no contrast: 'red/empty.png', 'red/stack.tif'" in told
    assert "warning: 1 image of several pages or frames, the first of which is read: 'red/stack.tif'" in told
    assert (result["preprocessing"]["white"], result["low_contrast"]["files"]) == (4095, flat)
    assert result["several_pictures"] == {"count": 1, "files": ["red/stack.tif"]}
    classifier, path = load(tmp_path / "run"), folder / "red" / "001.png"
    seen = classifier.see(path.read_bytes())
    assert seen.mean() > 80
    about = json.loads(json.dumps(portable.describe(classifier)))
    np.testing.assert_array_equal(reading.see(path, about["preprocessing"]), seen)
    (folder / "red" / "empty.png").unlink()
    found = tljax.evaluate(tmp_path / "run", folder)  # the very pixels of training
    with np.load(tmp_path / "run" / "predictions.npz") as kept:
        own = dict(zip(kept["test_names"].tolist(), kept["test_logits"].argmax(1).tolist(), strict=True))
    for name, predicted in zip(found.names, found.predicted.tolist(), strict=True):
        assert own.get(name, predicted) == predicted


def test_a_run_of_before_is_read_as_it_was(finished, tmp_path):
    result = json.loads((finished / "result.json").read_text())
    for name in Levels._fields:
        del result["preprocessing"][name]
    assert Levels(Preprocessing(**result["preprocessing"]).white) == Levels()
    for name in ("16 bits", "32 bits"):
        seen = reading.see(ODD[name].data, result["preprocessing"])
        np.testing.assert_array_equal(seen, reading.see(ODD["gray"].data, result["preprocessing"]))


@pytest.mark.parametrize("most, white, words", [
    (5.0, None, "floats up to 5, neither from 0 to 1 nor from 0 to 255"), (300.0, None, "floats up to 300, neither"),
    (1.5, None, "neither"), (1.5, 1.0, "more than the run's white, 1"), (70000.0, 65535.0, "more than the run's white"),
])  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floats_beyond_white_are_refused(most, white, words, channels):
    pixels = np.full((40, 40, channels), 0.5)
    pixels[3, 4, 0] = most
    with pytest.raises(reading.Unreadable, match=words):
        reading.from_array(pixels, float_white=white)


@pytest.mark.parametrize("most, white, scale", [(1.0, None, 1), (1.0005, None, 1), (0.3, None, 1), (200.0, None, 255),
                                                (255.0, None, 255), (1.0005, 1.0, 1), (200.0, 255.0, 255)])  # fmt: skip
def test_floats_up_to_white_are_read(most, white, scale):
    pixels = np.full((40, 40, 3), most)
    seen = np.asarray(reading.from_array(pixels, float_white=white))
    assert (seen == min(255, round(most * 255 / scale))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_floats_that_are_no_pixels_are_refused(finished, value):
    pixels = np.full((40, 40, 3), 0.5, np.float32)
    pixels[3, 4, 1] = value
    (answer,) = tljax.predict(finished, pixels)
    assert "below 0 or not finite" in answer.reason
