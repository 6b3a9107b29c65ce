"""What goes on inside a finished run's network: filters, named maps before and after their activation, features."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from tljax.inference.classifier import Classifier
from tljax.models import ForwardContext, Network, variable_shapes

Path = tuple[str, ...]


class Layer(NamedTuple):
    """A place in a network whose maps can be seen.

    Attributes:
      before: where its maps before the activation lie among the intermediates; None where no activation ends it.
      after: where those after it do.
      shape: `(h, w, channels)` for the run's squares.
    """

    before: Path | None
    after: Path
    shape: tuple[int, int, int]


def first_kernel(model: Network, params: Any) -> np.ndarray:
    """The filters of the first convolution, float32 `[H, W, 3, filters]`."""
    flat: Any = flatten_dict(params)
    (kernel,) = (v for path, v in flat.items() if v.ndim == 4 and model.group_of(path) == model.groups[0])
    return np.asarray(kernel, np.float32)


def layers(model: Network, side: int) -> dict[str, Layer]:
    """The layers of a network by name, in order: each stage with maps, and each block of a stage that has several.

    A stage that ends with an activation, or with a block that does, is seen around it (before any pooling behind);
    another one has its output alone.

    Args:
      model: the network.
      side: of the squares it sees, pixels.
    """
    square = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    sown = jax.eval_shape(
        lambda v, x: model.apply(v, x, ForwardContext(), stop_stage="head", mutable=["intermediates"])[1],
        variable_shapes(model),
        square,
    )
    flat = {path: leaves[0].shape for path, leaves in _flatten(sown["intermediates"]).items()}
    found: dict[str, Layer] = {}
    for stage in model.stages:
        if stage == "head" or len(flat[stage,]) != 4:
            continue
        own = [path[:-1] for path in flat if path[1:] == ("before_relu",) and model.group_of(path) == stage]
        pairs = [((*path, "before_relu"), (*path, "out")) for path in sorted(own, key=_by_number)]
        if (f"{stage}_relu",) in flat:
            pairs = [((f"{stage}_before_relu",), (f"{stage}_relu",))]
        if len(pairs) > 1:
            found |= {after[0]: Layer(before, after, flat[after][1:]) for before, after in pairs}
        before, after = pairs[-1] if pairs else (None, (stage,))
        found[stage] = Layer(before, after, flat[after][1:])
    return found


def maps_of(
    classifier: Classifier, square: np.ndarray, chosen: Mapping[str, Layer]
) -> dict[str, tuple[np.ndarray | None, np.ndarray]]:
    """Maps before (or None) and after the activation of some layers over one square, float32 `[h, w, channels]`."""

    @jax.jit
    def run(variables: Any, squares: jax.Array) -> Any:
        apply = classifier.model.apply
        _, sown = apply(
            variables, classifier.normalize(squares), ForwardContext(), stop_stage="head", mutable=["intermediates"]
        )
        flat = _flatten(sown["intermediates"])
        return {
            name: tuple(None if path is None else flat[path][0][0].astype(jnp.float32) for path in layer[:2])
            for name, layer in chosen.items()
        }

    found = jax.tree.map(np.asarray, run(classifier.variables, square[None]))
    return {name: found[name] for name in chosen}


def make_features(classifier: Classifier) -> Callable[[np.ndarray], np.ndarray]:
    """Makes squares uint8 `[B, crop, crop, 3]` -> what the head is given, maps averaged: float32 `[B, D]`."""

    @jax.jit
    def run(variables: Any, squares: jax.Array) -> jax.Array:
        x: Any = classifier.model.apply(variables, classifier.normalize(squares), ForwardContext(), stop_stage="head")
        x = x.astype(jnp.float32)
        return x.mean((1, 2)) if x.ndim == 4 else x

    variables = jax.device_put(classifier.variables)
    return lambda squares: np.asarray(run(variables, squares))


def nearest(asked: np.ndarray, known: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `known` that point the same way most nearly.

    Args:
      asked: `[Q, D]`.
      known: `[N, D]`.
      count: how many per row of `asked`, at most N.

    Returns:
      Their rows, int `[Q, count]`, the nearest first, and the cosines, float64 `[Q, count]`; 0 with a row of zeros.
    """
    one, other = (_unit(rows) for rows in (asked, known))
    cosines = one @ other.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(cosines, order, axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def _flatten(sown: Any) -> dict[Path, tuple[Any, ...]]:
    flat: Any = flatten_dict(sown)
    return flat


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part or -1), part) for part in re.findall(r"\d*", "".join(path))]
