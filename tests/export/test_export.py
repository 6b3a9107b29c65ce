"""A finished run in the formats of others: each says, in its own runtime, what the run says."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console

from tests import tiny
from tljax.core.errors import UserError
from tljax.export import __main__ as export_command
from tljax.export import parity, portable
from tljax.export.torch_writer import torch_bytes
from tljax.export.torchvision_recipe import recipe
from tljax.inference import classifier as classifiers
from tljax.inference.classifier import Classifier, load
from tljax.models import create_model, variable_shapes
from tljax.report.console import make_console
from tljax.train.setup import prepare
from tljax.weights.hub import Preprocessing
from tljax.weights.initial import find_weights
from tljax.weights.torch_file import read_state_dict
from tljax.weights.torch_names import to_torch

QUIET = make_console(quiet=True)
ROOT = Path(__file__).resolve().parents[2]

NETWORKS = {
    "resnet18": dict(name="resnet18", width=4),
    "resnet18 cut": dict(name="resnet18", width=4, last_stage="layer2"),
    "resnet50": dict(name="resnet50", width=4, blocks=(1, 2)),
    "squeezenet1_0": dict(name="squeezenet1_0"),
    "squeezenet1_1 cut": dict(name="squeezenet1_1", last_stage="fire4"),
    "mini_xception": dict(name="mini_xception", width=8),
    "bfloat16": dict(name="resnet18", width=4, blocks=(1,), dtype="bfloat16"),
}
TORCHVISION = {
    "resnet18": dict(name="resnet18"),
    "resnet18 to layer3": dict(name="resnet18", last_stage="layer3"),
    "resnet18 to stem": dict(name="resnet18", last_stage="stem"),
    "resnet50 of few blocks": dict(name="resnet50", blocks=(1, 2)),
    "squeezenet1_0": dict(name="squeezenet1_0"),
    "squeezenet1_0 to fire4": dict(name="squeezenet1_0", last_stage="fire4"),
    "squeezenet1_1 to stem": dict(name="squeezenet1_1", last_stage="stem"),
    "squeezenet1_1 to fire6": dict(name="squeezenet1_1", last_stage="fire6"),
}


def untrained(*, outputs=3, side=65, **options):
    """A network of random numbers, its running statistics too, that says something of every picture."""
    name = options.pop("name")
    model, rng = create_model(name, num_classes=outputs, **options), np.random.default_rng(0)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("kernel", "depthwise"):
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        return (rng.uniform(0.5, 2, leaf.shape) if kind in ("scale", "var") else rng.normal(0, 0.3, leaf.shape)).astype(
            np.float32
        )

    variables = jax.tree_util.tree_map_with_path(draw, variable_shapes(model))
    how = Preprocessing(resize=side, crop=side)
    classes = tuple(f"class {i}" for i in range(max(2, outputs)))
    result = {"config": {"model": {"name": name}}}
    return portable.in_float32(Classifier(Path("none"), model, variables, classes, how, {"temperature": 1.7}, result))


def noise(classifier, count):
    side = classifier.preprocessing.crop
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def answers(classifier, squares):
    return classifier.probabilities(np.asarray(classifier.forward(squares)))


def run_onnx(data, squares):
    session = pytest.importorskip("onnxruntime").InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(["probabilities", "logits"], {"image": squares})


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS.keys())
def test_onnx_says_of_any_batch_what_each_network_says(options):
    pytest.importorskip("onnx")
    classifier = untrained(**options)
    data = portable.make_bytes("onnx", classifier)
    for count in (1, 5):
        squares = noise(classifier, count)
        probabilities, logits = run_onnx(data, squares)
        expected = np.asarray(classifier.forward(squares))
        assert np.ptp(expected) > 1e-2
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_allclose(probabilities, classifier.probabilities(expected), atol=1e-4)


@pytest.mark.parametrize("name", ["resnet50", "squeezenet1_0", "mini_xception"])
def test_so_does_stablehlo_which_holds_both_platforms(name):
    classifier = untrained(**NETWORKS[name])
    exported = jax.export.deserialize(bytearray(portable.stablehlo_bytes(classifier)))
    assert exported.platforms == ("cpu", "cuda")
    for count in (1, 5):
        probabilities, logits = jax.jit(exported.call)(noise(classifier, count))
        assert logits.shape == (count, 3)
        np.testing.assert_allclose(probabilities, answers(classifier, noise(classifier, count)), atol=1e-4)


def test_of_one_logit_both_classes_have_a_probability():
    classifier = untrained(outputs=1, side=32, **NETWORKS["resnet18 cut"])
    squares = noise(classifier, 3)
    expected = answers(classifier, squares)
    assert expected.shape == (3, 2)
    exported = jax.export.deserialize(bytearray(portable.stablehlo_bytes(classifier)))
    np.testing.assert_allclose(jax.jit(exported.call)(squares)[0], expected, atol=1e-4)
    pytest.importorskip("onnx")
    np.testing.assert_allclose(run_onnx(portable.make_bytes("onnx", classifier), squares)[0], expected, atol=1e-4)


def test_a_run_is_exported_in_all_formats_and_each_is_asked_about_its_test_images(finished, tmp_path):
    pytest.importorskip("onnxruntime")
    told, kinds = [], ["stablehlo", "onnx", "safetensors"]
    export_command.export(finished, kinds, tmp_path / "out", tell=told.append)
    names = ["metadata.json", "model.onnx", "model.safetensors", "model.stablehlo", "reading.py"]
    assert sorted(os.listdir(tmp_path / "out")) == names
    assert told[0] == "tried on 18 test images of the run, in batches of 16 and one by one"
    for line, kind, who in zip(told[1:], kinds, ("a fresh JAX process", "onnxruntime", "tljax"), strict=True):
        assert line.startswith(f"{kind}: {tmp_path}/out/model.{kind}, ")
        assert f"by {who}: probabilities differ by at most " in line
        assert line.endswith("same first class for 18 of 18")
    with pytest.raises(UserError, match=r"model\.onnx exists; give another --out, or --overwrite"):
        export_command.export(finished, ["onnx"], tmp_path / "out")
    export_command.export(finished, ["onnx"], tmp_path / "out", overwrite=True, tell=told.append)
    about = json.loads((tmp_path / "out/metadata.json").read_text())
    result = json.loads((finished / "result.json").read_text())
    assert about["classes"] == list(tiny.CLASSES)
    assert about["preprocessing"] == result["preprocessing"]
    assert (tmp_path / "out/reading.py").read_text() == export_command.READING.read_text()
    assert about["temperature"] == load(finished).temperature
    assert about["calibration"]["fit_images"] == 18 and about["validation"]["chose_epoch"] is True
    import onnx

    held = {one.key: one.value for one in onnx.load(tmp_path / "out/model.onnx").metadata_props}
    assert json.loads(held["classes"]) == list(tiny.CLASSES)
    assert json.loads(held["preprocessing"]) == about["preprocessing"]
    with safetensors.safe_open(tmp_path / "out/model.safetensors", "np") as file:
        assert json.loads(file.metadata()["classes"]) == list(tiny.CLASSES)
        assert "layer1.0.bn1.running_var" in file.keys()  # noqa: SIM118


def test_an_export_that_says_something_else_is_removed_and_the_old_one_stays(finished, tmp_path, monkeypatch):
    (tmp_path / "model.stablehlo").write_bytes(b"the old one")
    real = portable.make_forward

    def wrong(classifier):
        return lambda squares: real(classifier)(squares) * 1.5

    monkeypatch.setattr(portable, "make_forward", wrong)
    with pytest.raises(UserError, match=r"model\.stablehlo is removed: by a fresh JAX process probabilities differ by"):
        export_command.export(finished, ["stablehlo"], tmp_path, overwrite=True, tell=QUIET.print)
    assert os.listdir(tmp_path) == ["model.stablehlo"]
    assert (tmp_path / "model.stablehlo").read_bytes() == b"the old one"


def test_a_file_that_its_runtime_cannot_run_is_removed(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "make_bytes", lambda kind, classifier: b"no program")
    with pytest.raises(UserError, match=r"a fresh JAX process cannot run the model\.stablehlo made here"):
        export_command.export(finished, ["stablehlo"], tmp_path, tell=QUIET.print)
    assert not os.listdir(tmp_path)


def test_numbers_that_are_not_finite_are_no_parity():
    ours = {"batch0": np.full((2, 3), 1 / 3)}
    assert parity.compare(ours, ours).good
    assert not parity.compare({"batch0": np.full((2, 3), np.nan)}, ours).good
    assert not parity.compare({"batch0": np.full((2, 4), 1 / 4)}, ours).good
    assert not parity.compare({"batch0": ours["batch0"] + 2e-3}, ours).good


def test_without_the_runs_images_others_are_taken_and_said(finished, photos, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    result = json.loads((moved / "result.json").read_text())
    result["config"]["data"]["source"] = "folder:/nowhere"
    (moved / "result.json").write_text(json.dumps(result))
    classifier = load(moved)
    squares, what = export_command.see_pictures(classifier, [])
    assert squares.shape == (export_command.PICTURES, 32, 32, 3)
    assert what.startswith("procedural pictures (") and "/nowhere" in what and what.endswith("--images names others)")
    squares, what = export_command.see_pictures(classifier, [str(photos / "red/000.png")])
    assert (len(squares), what) == (2, "pictures given")
    np.testing.assert_array_equal(squares[1], squares[0][:, ::-1])
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(UserError, match="--images: none of 1 picture can be read"):
        export_command.see_pictures(classifier, [str(tmp_path / "broken.png")])


def test_what_cannot_be_done_is_refused_before_anything_is_written(finished, tmp_path, monkeypatch):
    def refused(kinds, words):
        with pytest.raises(UserError, match=words):
            export_command.export(finished, kinds, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused(["safetensors", "torch"], r"torchvision's resnet18 begins with 64 channels, not model.width=4")
    lacking = parity.RUNTIMES["onnx"]._replace(needs=("absent_module",))
    monkeypatch.setitem(parity.RUNTIMES, "onnx", lacking)
    refused(["safetensors", "onnx"], r"--to onnx needs absent_module: pip install -e '\.\[export\]'")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out=.*/file/out cannot be a folder: .*/file is a file"):
        export_command.export(finished, ["stablehlo"], tmp_path / "file" / "out")
    classifier = untrained(**NETWORKS["mini_xception"])
    with pytest.raises(UserError, match="torchvision has no mini_xception; export it --to onnx or stablehlo"):
        export_command.check(["torch"], classifier, tmp_path, "", overwrite=False)
    with pytest.raises(UserError, match="has no counterpart in torchvision"):
        export_command.check(["safetensors"], classifier, tmp_path, "", overwrite=False)
    (tmp_path / "metadata.json").write_text("another run's")
    with pytest.raises(UserError, match=r"metadata\.json is of something else"):
        export_command.check(["stablehlo"], untrained(**NETWORKS["resnet18"]), tmp_path, "this run's", overwrite=False)


def test_mistakes_are_one_line(finished, capsys, tmp_path):
    for arguments, words in (
        ([str(finished), "--to", "onnx,tflite"], "--to tflite is not one of stablehlo, onnx, torch, safetensors"),
        ([str(finished), "--to", ","], "--to names no format"),
    ):
        assert export_command.main(arguments) == 2
        assert capsys.readouterr().err.startswith(f"tljax: {words}")
    command = [sys.executable, "-m", "tljax.export", str(tmp_path), "--to", "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not the folder of a finished run" in done.stderr
    assert export_command.formats_of(["onnx", "torch, onnx"]) == ["onnx", "torch"]


def test_a_torch_file_is_written_without_torch(tmp_path):
    classifier = untrained(name="resnet18", last_stage="layer1")
    expected = to_torch(classifier.variables)
    (tmp_path / "model.pth").write_bytes(torch_bytes(expected))
    found = read_state_dict(tmp_path / "model.pth")
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.peer
@pytest.mark.parametrize("options", TORCHVISION.values(), ids=TORCHVISION.keys())
def test_torchvision_loads_it_strictly_and_says_the_same(torchvision, tmp_path, options):
    import torch

    classifier, names = untrained(**options), {}
    (tmp_path / "model.pth").write_bytes(portable.make_bytes("torch", classifier))
    exec("\n".join(recipe(classifier.model, options["name"])), names)
    model = names["model"]
    model.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    model.eval()
    squares, how = noise(classifier, 2), classifier.preprocessing
    x = (squares.astype(np.float32) / 255 - np.float32(how.mean)) / np.float32(how.std)
    with torch.no_grad():
        logits = model(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    expected = np.asarray(classifier.forward(squares))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.peer
def test_a_network_that_torchvision_has_is_run_by_it(torchvision, tmp_path, monkeypatch):
    monkeypatch.setattr(classifiers, "load", lambda workdir: untrained(name="resnet18", last_stage="layer2"))
    told = []
    export_command.export(tmp_path, ["torch"], tmp_path / "out", tell=told.append)
    assert "by torchvision: probabilities differ by at most" in told[1]
    assert told[1].endswith("same first class for 64 of 64")


def test_where_torch_is_absent_the_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(classifiers, "load", lambda workdir: untrained(name="resnet18", last_stage="layer1"))
    monkeypatch.setitem(parity.RUNTIMES, "torch", parity.RUNTIMES["torch"]._replace(needs=("absent_module",)))
    told = []
    export_command.export(tmp_path, ["torch"], tmp_path / "out", tell=told.append)
    assert "by tljax: probabilities differ by at most 0.0e+00" in told[1]
    assert told[2].startswith(
        "torch: not run by torchvision, since absent_module cannot be imported; make .venv/peer, then"
    )
    about = json.loads((tmp_path / "out/metadata.json").read_text())
    assert about["torchvision"][-1] == "model.fc = torch.nn.Linear(64, 3)"


def test_a_run_that_begins_from_an_export_keeps_its_classes_and_preprocessing(finished, photos, tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(portable.make_bytes("safetensors", load(finished)))
    found = find_weights(str(weights), "resnet18")
    assert (found.resize, found.crop) == (40, 32)
    others = shutil.copytree(photos, tmp_path / "others")
    (others / "green").rename(others / "zebra")  # as many, and in another order
    options = {"model__weights": str(weights), "transfer__fresh": "", "transfer__train": "head"}
    with pytest.raises(UserError, match=r"tells apart blue, green, red, .*, not the classes of"):
        prepare(tiny.make_config(others, **options), tmp_path, make_console())
    bare = tmp_path / "bare.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(weights), bare)
    for path, said in ((weights, False), (bare, True)):
        console = Console(record=True, width=1000, file=io.StringIO())
        prepare(tiny.make_config(photos, **options | {"model__weights": str(path)}), tmp_path, console)
        assert ("are taken for 'blue', 'green', 'red' in this order" in console.export_text()) == said
