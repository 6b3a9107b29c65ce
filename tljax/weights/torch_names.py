"""torchvision's names and layouts, and ours: a table of leaves and one loop each way.

The rule for modules: an integer in torchvision's name is glued to the component before it, so `layer2.0.conv1` is
`layer2_0/conv1`. It can be undone for every name of our models, hence no direction needs a list of names, and a file
that holds too little, too much or the wrong thing converts like any other: it is in `tljax.weights.merge` that it has
to match the model, exactly.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tljax.core.errors import UserError

Path = tuple[str, ...]

# Collection, our leaf, torch's leaf, number of axes, torch's axes in our order (kernels are HWIO here, OIHW there).
LEAVES = (
    ("params", "kernel", "weight", 4, (2, 3, 1, 0)),
    ("params", "kernel", "weight", 2, (1, 0)),
    ("params", "scale", "weight", 1, (0,)),
    ("params", "bias", "bias", 1, (0,)),
    ("batch_stats", "mean", "running_mean", 1, (0,)),
    ("batch_stats", "var", "running_var", 1, (0,)),
)
TO_OURS = {(torch, ndim): (collection, ours, axes) for collection, ours, torch, ndim, axes in LEAVES}
TO_TORCH = {
    (collection, ours, ndim): (torch, tuple(np.argsort(axes).tolist()))
    for collection, ours, torch, ndim, axes in LEAVES
}
COUNTER = "num_batches_tracked"  # torch counts the updates of each batch norm and uses the count nowhere by default


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our variables of a torchvision `state_dict`, complete or not.

    Arrays are views. Names and shapes that fit no rule keep their last component, and so show up as unexpected in the
    merge.

    Args:
      state_dict: arrays by torchvision's names.

    Returns:
      `{'params': {...}, 'batch_stats': {...}}`.

    Raises:
      UserError: two names that would be one leaf, or a leaf that another one lies under.
    """
    flat: dict[Path, np.ndarray] = {}
    for name, array in state_dict.items():
        module, _, leaf = name.rpartition(".")
        if leaf == COUNTER:
            continue
        collection, ours, axes = TO_OURS.get((leaf, array.ndim), ("params", leaf, tuple(range(array.ndim))))
        path = (collection, *(re.sub(r"\.(\d+)(?=\.|$)", r"_\1", module).split(".") if module else ()), ours)
        if path in flat:
            raise UserError(f"two arrays would be {'/'.join(path)}")
        flat[path] = array.transpose(axes)
    return nest(flat)


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The torchvision `state_dict` of our variables, the inverse of `from_torch`.

    Args:
      variables: `{'params': ..., 'batch_stats': ...}`.

    Returns:
      Contiguous arrays by torchvision's names, with `num_batches_tracked` 0 for each batch norm.

    Raises:
      UserError: a leaf that torchvision has no counterpart for.
    """
    state_dict = {}
    for path, array in flatten(variables):
        array = np.asarray(array)
        if (path[0], path[-1], array.ndim) not in TO_TORCH:
            raise UserError(f"{'/'.join(path)} of shape {array.shape} has no counterpart in torchvision")
        leaf, axes = TO_TORCH[path[0], path[-1], array.ndim]
        module = torch_name(path[1:-1])
        state_dict[f"{module}.{leaf}"] = np.array(array.transpose(axes), order="C")
        if leaf == "running_mean":
            state_dict[f"{module}.{COUNTER}"] = np.zeros((), np.int64)
    return state_dict


def torch_name(module: Path) -> str:
    """`('layer2_0', 'conv1')` to `layer2.0.conv1`."""
    return ".".join(re.sub(r"_(\d+)$", r".\1", component) for component in module)


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The leaves of nested dicts with their paths, in the dicts' order."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def nest(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; both collections are there even when empty.

    Raises:
      UserError: when a leaf lies under another leaf.
    """
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for path, value in flat.items():
        node = tree
        for component in path[:-1]:
            node = node.setdefault(component, {})
            if not isinstance(node, dict):
                raise UserError(f"{'/'.join(path)} lies under an array")
        if path[-1] in node:
            raise UserError(f"{'/'.join(path)} is both an array and a module")
        node[path[-1]] = value
    return tree
