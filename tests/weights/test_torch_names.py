"""torchvision's names and ours, and files of both kinds."""

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tljax.core.errors import UserError
from tljax.models import create_model, variable_shapes
from tljax.weights import weights_file
from tljax.weights.hub import FILES
from tljax.weights.torch_file import read_state_dict
from tljax.weights.torch_names import LEAVES, flatten, from_torch, to_torch, torch_name
from tljax.weights.weights_file import likely_archs, load_weights, save_weights


def small_variables() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "params": {
            "conv1": {"kernel": rng.random((7, 7, 3, 4), np.float32)},
            "bn1": {"scale": rng.random(4, np.float32), "bias": rng.random(4, np.float32)},
            "layer1_0": {"downsample_0": {"kernel": rng.random((1, 1, 4, 8), np.float32)}},
            "features_12": {"squeeze": {"bias": rng.random(2).astype(ml_dtypes.bfloat16)}},
            "fc": {"kernel": rng.random((8, 5), np.float32), "bias": rng.random(5, np.float32)},
        },
        "batch_stats": {"bn1": {"mean": rng.random(4, np.float32), "var": rng.random(4, np.float32)}},
    }


def assert_same(a: Any, b: Any) -> None:
    a, b = dict(flatten(a)), dict(flatten(b))
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype
        np.testing.assert_array_equal(a[path], b[path])


def abstract(arch: str) -> Any:
    return variable_shapes(create_model(arch))


def names_of(arch: str) -> dict[str, tuple[int, ...]]:
    """Shapes by torchvision's names, from our model, by the table read the other way."""
    rows = {(collection, ours, ndim): (torch, axes) for collection, ours, torch, ndim, axes in LEAVES}
    shapes = {}
    for path, leaf in flatten(abstract(arch)):
        torch, axes = rows[path[0], path[-1], leaf.ndim]
        shape = [0] * leaf.ndim
        for here, there in enumerate(axes):
            shape[there] = leaf.shape[here]
        shapes[f"{torch_name(path[1:-1])}.{torch}"] = tuple(shape)
    return shapes


def test_names_and_layouts():
    found = from_torch(
        {
            "layer2.0.conv1.weight": np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5),
            "fc.weight": np.arange(6).reshape(2, 3),
            "layer1.0.downsample.1.running_mean": np.zeros(3),
            "layer1.0.downsample.1.running_var": np.ones(3),
            "layer1.0.downsample.1.weight": np.full(3, 2.0),
            "layer1.0.downsample.1.num_batches_tracked": np.array(4),
            "features.3.expand1x1.bias": np.zeros(2),
            "classifier.1.bias": np.zeros(1),
        }
    )
    assert found["params"]["layer2_0"]["conv1"]["kernel"].shape == (4, 5, 3, 2)
    assert found["params"]["layer2_0"]["conv1"]["kernel"][1, 2, 0, 1] == 1 * 60 + 0 * 20 + 1 * 5 + 2
    np.testing.assert_array_equal(found["params"]["fc"]["kernel"], [[0, 3], [1, 4], [2, 5]])
    assert found["params"]["features_3"]["expand1x1"].keys() == found["params"]["classifier_1"].keys() == {"bias"}
    assert found["params"]["layer1_0"]["downsample_1"].keys() == {"scale"}
    assert found["batch_stats"] == {"layer1_0": {"downsample_1": found["batch_stats"]["layer1_0"]["downsample_1"]}}


def test_round_trip():
    variables = small_variables()
    state = to_torch(variables)
    assert "layer1.0.downsample.0.weight" in state
    assert "features.12.squeeze.bias" in state
    assert state["bn1.num_batches_tracked"].shape == ()
    assert state["bn1.num_batches_tracked"].dtype == np.int64
    assert all(a.flags.c_contiguous for a in state.values())
    assert_same(from_torch(state), variables)


def test_what_fits_no_rule_is_kept_for_the_report():
    found = from_torch(
        {
            "cls_token": np.zeros((1, 1, 4)),
            "blocks.0.attn.q.weight": np.zeros((2, 2, 2)),
            "scale": np.zeros(()),
            "": np.zeros(1),
        }
    )
    assert {path for path, _ in flatten(found)} == {
        ("params", "cls_token"),
        ("params", "scale"),
        ("params", ""),
        ("params", "blocks_0", "attn", "q", "weight"),
    }


@pytest.mark.parametrize("names", [("a.0.weight", "a_0.weight"), ("a", "a.b"), ("a.b", "a")])
def test_names_in_each_others_way(names):
    with pytest.raises(UserError):
        from_torch({name: np.zeros((2, 2)) for name in names})


def test_what_torchvision_lacks():
    with pytest.raises(UserError, match=r"params/fc/kernel of shape .* has no counterpart"):
        to_torch({"params": {"fc": {"kernel": np.zeros((2, 2, 2))}}, "batch_stats": {}})


@pytest.mark.parametrize("arch", FILES["imagenet"])
def test_every_leaf_of_every_model_has_a_name_and_comes_back(arch):
    names = names_of(arch)
    found = from_torch({name: np.broadcast_to(np.float32(0), shape) for name, shape in names.items()})
    assert {p: a.shape for p, a in flatten(found)} == {p: a.shape for p, a in flatten(abstract(arch))}


@pytest.mark.real_data
@pytest.mark.parametrize("arch", FILES["imagenet"])
def test_names_are_those_of_the_reference(shared, arch):
    with np.load(shared / "reference" / f"{arch}.npz") as reference:
        names = {key.partition("/")[2] for key in reference.files if key.startswith(("grad_norm/", "stats/"))}
    assert names_of(arch).keys() == names


@pytest.mark.peer
@pytest.mark.parametrize("arch", FILES["imagenet"])
def test_names_and_shapes_are_torchvisions(arch, torchvision):
    models = torchvision.models
    wanted = {
        k: tuple(v.shape)
        for k, v in getattr(models, arch)().state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    assert names_of(arch) == wanted


@pytest.mark.parametrize("arch", FILES["imagenet"])
def test_architectures_are_told_apart(arch):
    names = names_of(arch)
    arrays: Any = {name: SimpleNamespace(shape=shape) for name, shape in names.items()}
    assert likely_archs(arrays) == [arch]
    cut = {name: a for name, a in arrays.items() if not name.startswith(("layer3", "layer4"))}
    assert arch in likely_archs(cut)


def test_our_files(tmp_path):
    path, variables = tmp_path / "deep" / "w.safetensors", small_variables()
    metadata = {"arch": "resnet18", "source": "x.pth", "sha256": "ab", "classes": "[1, 2]"}
    save_weights(path, variables, metadata)
    found, about = load_weights(path, "resnet18")
    assert_same(found, variables)
    assert about == {"format": "tljax", **metadata}
    with safetensors.safe_open(path, framework="np") as file:  # by the library's own reader
        assert "params/layer1_0/downsample_0/kernel" in set(file.keys())
        np.testing.assert_array_equal(file.get_tensor("params/fc/kernel"), variables["params"]["fc"]["kernel"])
    with pytest.raises(UserError, match=r"w\.safetensors holds resnet18, but resnet34 was asked for"):
        load_weights(path, "resnet34")
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_layouts_survive_a_file(tmp_path):
    """The safetensors library writes what lies in memory, in whatever order that is."""
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save_weights(tmp_path / "w", {"params": {"fc": {"kernel": turned, "x": np.float32(3)}}}, {"arch": "a"})
    found = load_weights(tmp_path / "w", "a")[0]["params"]["fc"]
    np.testing.assert_array_equal(found["kernel"], turned)
    assert found["x"].shape == ()


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "w.safetensors"
    save_weights(path, small_variables(), {"arch": "resnet18"})
    before = path.read_bytes()
    monkeypatch.setattr(weights_file.safetensors.numpy, "save_file", full)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        save_weights(path, small_variables(), {"arch": "resnet34"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keys", [["fc.weight"], ["opt_state/m"], ["params"], ["params/a", "params/a/b"]])
def test_a_file_of_ours_with_other_keys(tmp_path, keys):
    safetensors.numpy.save_file({k: np.zeros(2) for k in keys}, tmp_path / "w", {"format": "tljax", "arch": "resnet18"})
    with pytest.raises(UserError, match=f"{tmp_path / 'w'}: "):
        load_weights(tmp_path / "w", "resnet18")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_torchvision_names_in_safetensors(tmp_path, prefix):
    state = {prefix + name: array for name, array in to_torch(small_variables()).items()}
    safetensors.numpy.save_file(state, tmp_path / "w", {"format": "pt"})
    found, metadata = load_weights(tmp_path / "w", "resnet18")
    assert_same(found, small_variables())
    assert metadata == {}


@pytest.mark.real_data
def test_real_files_of_another_architecture(shared):
    path = shared / "data" / "resnet18_to_layer3-imagenet.pth"
    with pytest.raises(UserError, match=r"imagenet\.pth holds resnet18, but squeezenet1_1 was asked for"):
        load_weights(path, "squeezenet1_1")
    assert load_weights(path, "resnet18")[0]["params"]["fc"]["kernel"].shape == (512, 1000)
    np.testing.assert_array_equal(
        load_weights(path, "resnet18")[0]["params"]["conv1"]["kernel"],
        read_state_dict(path)["conv1.weight"].transpose(2, 3, 1, 0),
    )
