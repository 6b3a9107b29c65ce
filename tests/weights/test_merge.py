"""The strict merge: every leaf is accounted for, and the refusal helps."""

import json
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from tljax.core.errors import UserError
from tljax.models import create_model, variable_shapes
from tljax.weights.merge import compare, merge_pretrained
from tljax.weights.torch_file import read_state_dict
from tljax.weights.torch_names import flatten, from_torch


def group_of(path: tuple[str, ...]) -> str:
    top = path[0].partition("_")[0]
    return {"conv1": "stem", "bn1": "stem", "fc": "head"}.get(top, top)


def variables(value: float, *, layers: int = 2, classes: int = 3, dtype: Any = np.float32) -> dict[str, Any]:
    def full(*shape: int) -> np.ndarray:
        return np.full(shape, value, dtype)

    def norm(names: tuple[str, str]) -> dict[str, Any]:
        return {name: full(4) for name in names}

    blocks = [f"layer{i}_{j}" for i in range(1, layers + 1) for j in range(2)]
    return {
        "params": {
            "conv1": {"kernel": full(3, 3, 3, 4)},
            "bn1": norm(("scale", "bias")),
            **{b: {"conv1": {"kernel": full(3, 3, 4, 4)}, "bn1": norm(("scale", "bias"))} for b in blocks},
            "fc": {"kernel": full(4, classes), "bias": full(classes)},
        },
        "batch_stats": {"bn1": norm(("mean", "var")), **{b: {"bn1": norm(("mean", "var"))} for b in blocks}},
    }


def merge(init: Any, loaded: Any, *, fresh: Any = (), **kwargs: Any) -> dict[str, Any]:
    return merge_pretrained(init, loaded, fresh=fresh, group_of=group_of, **kwargs)


def refusal(init: Any, loaded: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        merge(init, loaded, source="x.pth", **kwargs)
    message = str(caught.value)
    assert message.startswith("x.pth does not fit the model: missing: ")
    assert message.isprintable()
    assert len(message) < 900
    return message


def without(tree: dict[str, Any], *starts: str) -> dict[str, Any]:
    return {
        collection: {k: v for k, v in part.items() if not k.startswith(starts)} for collection, part in tree.items()
    }


def test_everything_is_loaded():
    merged = merge(variables(0), variables(1))
    assert all((leaf == 1).all() for _, leaf in flatten(merged))
    assert jax.tree.structure(merged) == jax.tree.structure(variables(0))


def test_fresh_groups_stay_and_all_else_is_loaded():
    merged = merge(variables(0, classes=5), variables(1, classes=1000), fresh=["head", "layer2"])
    for path, leaf in flatten(merged):
        assert (leaf == (0 if group_of(path[1:]) in ("head", "layer2") else 1)).all(), path


@pytest.mark.parametrize("kind", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_types_become_the_models(kind):
    for _, leaf in flatten(merge(variables(0), variables(0.5, dtype=kind))):
        assert leaf.dtype == np.float32
        assert (leaf == 0.5).all()
    for _, leaf in flatten(merge(variables(0, dtype=ml_dtypes.bfloat16), variables(0.5, dtype=kind))):
        assert leaf.dtype == ml_dtypes.bfloat16
        assert (leaf == 0.5).all()


def test_what_is_loaded_is_a_copy():
    """A donated step may write into it, and the file is mapped."""
    memory = np.zeros(1024 + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4  # where jax would share the memory
    loaded = variables(1)
    loaded["params"]["bn1"]["bias"] = memory[start : start + 4]
    merged = merge(variables(0), loaded)
    memory[:] = 9
    assert (merged["params"]["bn1"]["bias"] == 0).all()


def test_missing():
    message = refusal(variables(0), without(variables(1), "layer2"), fresh=["head"])
    assert "missing: layer2 (10 arrays); unexpected: none; wrong shape: none; " in message
    assert "deliberately not loaded: params/fc/bias, params/fc/kernel. " in message
    assert message.endswith("Say transfer.fresh=head,layer2 to start layer2 fresh")
    loaded = variables(1)
    del loaded["batch_stats"]["layer1_0"]["bn1"]["var"]
    assert "missing: batch_stats/layer1_0/bn1/var; unexpected: none" in refusal(variables(0), loaded)


def test_wrong_shape():
    message = refusal(variables(0, classes=5), variables(1))
    assert "missing: none; unexpected: none; wrong shape: params/fc/bias is (3,), not (5,), " in message
    assert message.endswith("Say transfer.fresh=head to start head fresh")


def test_a_shape_that_would_broadcast():
    loaded = variables(1)
    loaded["params"]["bn1"]["bias"] = np.ones(1, np.float32)
    assert "wrong shape: params/bn1/bias is (1,), not (4,);" in refusal(variables(0), loaded)


def test_integers_are_no_weights():
    loaded = variables(1)
    loaded["params"]["bn1"]["bias"] = np.ones(4, np.int64)
    assert "params/bn1/bias holds int64" in refusal(variables(0), loaded)


def test_unexpected():
    message = refusal(variables(0), variables(1, layers=3))
    assert "missing: none; unexpected: layer3 (10 arrays); wrong shape: none; " in message
    assert message.endswith("These look like weights of another architecture")
    loaded = variables(1)
    loaded["params"]["layer1_0"]["conv1"]["bias"] = np.ones(4, np.float32)
    assert "unexpected: params/layer1_0/conv1/bias;" in refusal(variables(0), loaded)


def test_leftovers_of_a_cut_model_are_unused():
    init, loaded = variables(0), variables(1, layers=4, classes=7)
    merged = merge(init, loaded, fresh=["head"], unused_groups=["layer3", "layer4"])
    assert {p for p, _ in flatten(merged)} == {p for p, _ in flatten(init)}
    refusal(init, loaded, fresh=["head"], unused_groups=["layer4"])


def test_a_fresh_group_may_have_other_leaves():
    loaded = variables(1)
    loaded["params"]["fc_1"] = {"kernel": np.ones((2, 2), np.float32)}
    merge(variables(0), loaded, fresh=["head", "layer2"])
    refusal(variables(0), loaded)


def test_nothing_fits():
    message = refusal(
        variables(0), from_torch({f"block{i}\n\x1b[31m{'x' * 200}.weight": np.ones((2, 2)) for i in range(2000)})
    )
    assert "stem (5 arrays)" in message
    assert "and 1994 more" in message
    assert message.endswith("These look like weights of another architecture")
    assert refusal(variables(0), {"params": {}, "batch_stats": {}}).endswith("another architecture")


def test_fresh_groups_that_there_are_not():
    with pytest.raises(UserError, match=r"fresh=head,layer9 names layer9, which .* stem, layer1, layer2, head"):
        merge(variables(0), variables(1), fresh=["head", "layer9"])


def test_report_for_the_record():
    report = compare(
        jax.eval_shape(lambda: variables(0)),
        variables(1, layers=3),
        fresh=["head"],
        group_of=group_of,
        unused_groups=["layer3"],
    )
    assert report.fits
    assert report.fresh == (("params", "fc", "bias"), ("params", "fc", "kernel"))
    assert json.loads(json.dumps(report.as_dict())) == {
        "loaded": {"layer1": 10, "layer2": 10, "stem": 5},
        "fresh": {"head": 2},
        "unused": {"head": 2, "layer3": 10},
    }


@pytest.mark.real_data
@pytest.mark.parametrize(
    "last_stage, fresh, unused", [(None, ["layer4", "head"], []), ("layer3", ["head"], ["layer4"])]
)
def test_the_real_resnet18_without_layer4(shared, last_stage, fresh, unused):
    loaded = from_torch(read_state_dict(shared / "data" / "resnet18_to_layer3-imagenet.pth"))
    model = create_model("resnet18", num_classes=3, last_stage=last_stage)
    init = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), variable_shapes(model))
    merged = merge_pretrained(init, loaded, fresh=fresh, group_of=model.group_of, unused_groups=unused)
    for path, leaf in flatten(merged):
        source = init if model.group_of(path[1:]) in fresh else loaded
        np.testing.assert_array_equal(leaf, dict(flatten(source))[path])


@pytest.mark.real_data
def test_the_real_resnet18_needs_its_layer4_named_fresh(shared):
    loaded = from_torch(read_state_dict(shared / "data" / "resnet18_to_layer3-imagenet.pth"))
    model = create_model("resnet18", num_classes=3)
    init = variable_shapes(model)
    with pytest.raises(
        UserError,
        match=r"missing: layer4 \(25 arrays\); .*Say transfer.fresh=head,layer4 to start "
        "layer4 fresh$",
    ):
        merge_pretrained(init, loaded, fresh=["head"], group_of=model.group_of)
