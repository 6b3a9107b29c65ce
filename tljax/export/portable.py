"""A finished run in the formats of others, as bytes."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors.numpy import save

from tljax.core.errors import UserError
from tljax.export.torch_writer import torch_bytes
from tljax.export.torchvision_recipe import recipe
from tljax.inference.classifier import Classifier
from tljax.metrics.accuracy import chose_epoch
from tljax.models import ForwardContext
from tljax.models.layers import plain_operations
from tljax.weights.torch_names import to_torch

PLATFORMS = ("cpu", "cuda")


def in_float32(classifier: Classifier) -> Classifier:
    """The same network, computing in float32 as the exports do."""
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), jax.device_get(classifier.variables))
    return dataclasses.replace(classifier, model=classifier.model.clone(dtype="float32"), variables=variables)


def describe(classifier: Classifier) -> dict[str, Any]:
    """What whoever uses an export has to know: plain values, the same each time.

    Returns:
      Classes; input in words and preprocessing in numbers; temperature and what it was fitted on; network; results on
      test and validation images, the latter with `chose_epoch`, whether it is high by that choice; versions; and, where
      torchvision has this network, the lines of Python that build it there.
    """
    result, how = classifier.result, classifier.preprocessing
    validation = result.get("validation")
    found: dict[str, Any] = {
        "classes": list(classifier.classes),
        "input": f"upright RGB, transparent parts white, shorter side resized to {how.resize} (bilinear, antialiased), "
        f"{how.crop} x {how.crop} cut from the middle, uint8 [batch, {how.crop}, {how.crop}, 3]; stablehlo and onnx "
        "normalize by themselves",
        "preprocessing": {
            "resize": how.resize, "crop": how.crop, "mean": list(how.mean), "std": list(how.std),
            "white": how.white, "float_white": how.float_white,
        },
        "temperature": classifier.temperature,
        "calibration": {name: value for name, value in classifier.fitted.items() if name != "temperature"},
        "model": {"name": result["config"]["model"]["name"], "last_stage": classifier.model.last_stage},
        "test": result.get("test"),
        "validation": validation and validation | {"chose_epoch": chose_epoch(result)},
        "versions": result.get("versions"),
    }  # fmt: skip
    with contextlib.suppress(UserError):
        found["torchvision"] = recipe(classifier.model, found["model"]["name"])
    return found


def make_forward(classifier: Classifier) -> Callable[[Any], Any]:
    """Squares uint8 `[B, crop, crop, 3]` to logits `[B, outputs]`, in operations that any backend has."""

    def forward(squares: jax.Array) -> Any:
        with plain_operations():
            return classifier.model.apply(classifier.variables, classifier.normalize(squares), ForwardContext())

    return forward


def stablehlo_bytes(classifier: Classifier) -> bytes:
    """`jax.export`'s form of squares -> (probabilities, logits), its weights inside, for a batch of any size."""
    forward, side = make_forward(classifier), classifier.preprocessing.crop

    def answer(squares: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = forward(squares)
        scaled = logits / classifier.temperature
        if scaled.shape[1] == 1:
            scaled = jnp.concatenate([jnp.zeros_like(scaled), scaled], axis=1)
        return jax.nn.softmax(scaled, axis=1), logits

    shape = export.symbolic_shape(f"batch, {side}, {side}, 3")
    exported = export.export(jax.jit(answer), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.uint8))
    return bytes(exported.serialize())


def make_bytes(kind: str, classifier: Classifier) -> bytes:
    """The file of 'stablehlo', 'onnx', 'torch' or 'safetensors'; the last two have torchvision's names.

    Args:
      kind: the format.
      classifier: a run, `in_float32`.

    Raises:
      UserError: for a network whose layers torchvision does not have, of the last two.
    """
    if kind == "stablehlo":
        return stablehlo_bytes(classifier)
    about = describe(classifier)
    texts = {name: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for name, v in about.items()}
    if kind == "onnx":
        from tljax.export.onnx_file import make_model  # needs the extra

        how, outputs = classifier.preprocessing, classifier.model.num_classes
        model = make_model(make_forward(classifier), side=how.crop, outputs=outputs,
                           temperature=classifier.temperature, metadata=texts)  # fmt: skip
        return model.SerializeToString()
    if kind == "torch":
        return torch_bytes(to_torch(classifier.variables))
    return save(to_torch(classifier.variables), {"format": "pt"} | texts)
