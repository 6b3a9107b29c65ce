"""The command that converts weights, both ways."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tljax.models import create_model, variable_shapes
from tljax.weights.torch_file import read_state_dict
from tljax.weights.torch_names import flatten, to_torch
from tljax.weights.weights_file import load_weights, sha256_of

TOOL = Path(__file__).parents[2] / "tools" / "convert_torch_weights.py"


def load_tool() -> Any:
    spec = importlib.util.spec_from_file_location("convert_torch_weights", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


@pytest.fixture(scope="module")
def torch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SqueezeNet 1.1 for 7 classes under torchvision's names."""
    rng = np.random.default_rng(0)
    shapes = variable_shapes(create_model("squeezenet1_1", num_classes=7))
    variables = jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32), shapes)
    path = tmp_path_factory.mktemp("torch") / "squeezenet1_1-seven.safetensors"
    safetensors.numpy.save_file(to_torch(variables), path, {"format": "pt"})
    return path


def run(capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    status = tool.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    status, out, err = run(capsys, *args)
    assert status == 2
    assert not out
    assert err.startswith("tljax: ")
    assert err.count("\n") == 1
    return err


def test_there_and_back(capsys, tmp_path, torch_file):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    status, out, err = run(capsys, "squeezenet1_1", torch_file, ours)
    assert (status, err, out.count("\n")) == (0, "", 1)
    for part in ("squeezenet1_1, 52 arrays, 726,087 parameters", torch_file.name, sha256_of(torch_file)):
        assert part in out
    with safetensors.safe_open(ours, framework="np") as file:
        assert file.metadata() == {
            "format": "tljax",
            "arch": "squeezenet1_1",
            "source": torch_file.name,
            "sha256": sha256_of(torch_file),
        }
    assert run(capsys, "--back", "squeezenet1_1", ours, back)[0] == 0
    first, second = read_state_dict(torch_file), read_state_dict(back)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_nothing_is_overwritten_unasked(capsys, tmp_path, torch_file):
    out = tmp_path / "out"
    out.write_text("precious")
    assert "exists; --force replaces it" in refused(capsys, "squeezenet1_1", torch_file, out)
    assert out.read_text() == "precious"
    assert run(capsys, "squeezenet1_1", torch_file, out, "--force")[0] == 0
    assert "is the file to read" in refused(capsys, "squeezenet1_1", out, out, "--force", "--back")
    assert load_weights(out, "squeezenet1_1")[1]["arch"] == "squeezenet1_1"


def test_wrong_input(capsys, tmp_path, torch_file):
    out, ours = tmp_path / "out", tmp_path / "ours"
    assert "there are resnet18" in refused(capsys, "resnet19", torch_file, out)
    assert "holds squeezenet1_1, but resnet18 was asked for" in refused(capsys, "resnet18", torch_file, out)
    assert "does not exist" in refused(capsys, "resnet18", tmp_path / "absent.pth", out)
    assert "nothing to do" in refused(capsys, "squeezenet1_1", torch_file, out, "--back")
    assert run(capsys, "squeezenet1_1", torch_file, ours)[0] == 0
    assert "already a file of tljax" in refused(capsys, "squeezenet1_1", ours, out)
    assert "but squeezenet1_0 was asked for" in refused(capsys, "squeezenet1_0", ours, out, "--back")
    named = tmp_path / "squeezenet1_1-deadbeef.pth"
    named.write_bytes(torch_file.read_bytes())
    assert "its name says deadbeef" in refused(capsys, "squeezenet1_1", named, out)
    assert "cannot be written" in refused(capsys, "squeezenet1_1", torch_file, ours / "under" / "a_file")
    assert not out.exists()


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            lambda s: {k: v for k, v in s.items() if k != "features.3.squeeze.bias"},
            "missing: params/features_3/squeeze/b",
        ),
        (lambda s: {**s, "extra.weight": np.ones((2, 2), np.float32)}, "unexpected: params/extra/kernel"),
        (
            lambda s: {**s, "features.3.squeeze.bias": np.ones(5, np.float32)},
            "features_3/squeeze/bias is (5,), not (16,)",
        ),
        (lambda s: {**s, "classifier.1.bias": np.ones((7, 1), np.float32)}, "classifier_1/bias is (7, 1), not (1000,)"),
    ],
)
def test_files_that_do_not_fit(capsys, tmp_path, torch_file, change, reason):
    changed = tmp_path / "changed.safetensors"
    safetensors.numpy.save_file({k: np.array(v) for k, v in change(read_state_dict(torch_file)).items()}, changed)
    assert reason in refused(capsys, "squeezenet1_1", changed, tmp_path / "out")


def test_absent_groups_are_named(capsys, tmp_path, torch_file):
    cut = {k: np.array(v) for k, v in read_state_dict(torch_file).items() if not k.startswith("classifier")}
    safetensors.numpy.save_file(cut, tmp_path / "cut")
    status, out, _ = run(capsys, "squeezenet1_1", tmp_path / "cut", tmp_path / "out")
    assert status == 0
    assert out.endswith("; absent: head\n")


def test_as_a_command(tmp_path, torch_file):
    command = [sys.executable, TOOL, "resnet50", torch_file, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("tljax: ")


@pytest.mark.real_data
@pytest.mark.parametrize(
    "arch, name, absent",
    [
        ("squeezenet1_0", "squeezenet1_0-imagenet.pth", ""),
        ("resnet18", "resnet18_to_layer3-imagenet.pth", "absent: layer4"),
    ],
)
def test_real_files_there_and_back(capsys, shared, tmp_path, arch, name, absent):
    source, ours, back = shared / "data" / name, tmp_path / "ours", tmp_path / "back"
    status, out, err = run(capsys, arch, source, ours)
    assert status == 0, err
    assert absent in out
    assert sha256_of(source) in out
    assert run(capsys, arch, ours, back, "--back")[0] == 0
    first, second = read_state_dict(source), read_state_dict(back)
    assert first.keys() == second.keys()
    for key in first:
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(first[key], second[key])
    assert len(list(flatten(load_weights(ours, arch)[0]))) == len([k for k in first if not k.endswith("tracked")])
