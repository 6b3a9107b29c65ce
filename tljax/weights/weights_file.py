"""Files of weights of ours, and one way to load those and torchvision's alike.

Ours is safetensors with keys such as `params/layer2_0/conv1/kernel`, our layouts, and metadata that says what it is.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tljax.core.errors import UserError
from tljax.weights import torch_file
from tljax.weights.safe_pickle import shown
from tljax.weights.torch_names import flatten, from_torch, nest

FORMAT = "tljax"

# Blocks per layer, and whether a block is a bottleneck.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
SQUEEZENETS = {(96, 3, 7, 7): "squeezenet1_0", (64, 3, 3, 3): "squeezenet1_1"}  # by the shape of features.0.weight


def save_weights(path: str | os.PathLike[str], variables: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes variables to a file of ours, at once or not at all.

    Args:
      path: the file, by convention `.safetensors`; replaced if it exists.
      variables: `{'params': ..., 'batch_stats': ...}`.
      metadata: text by name. `arch` is needed; `source` (a file name) and `sha256` (of that file) say where the
        weights came from.

    Raises:
      UserError: when the file cannot be written.
    """
    if "arch" not in metadata:
        raise ValueError("metadata lacks arch")
    write_safetensors(path, {"/".join(p): np.asarray(a) for p, a in flatten(variables)}, {"format": FORMAT, **metadata})


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file through a temporary one beside it.

    Raises:
      UserError: when the file cannot be written.
    """
    path, temporary = Path(path), None
    # The library writes whatever lies at the array's address, so order matters; ascontiguousarray loses 0 axes.
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
        safetensors.numpy.save_file(contiguous, temporary, dict(metadata))
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # a temporary file is private, what comes of it is not
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def load_weights(path: str | os.PathLike[str], arch: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Loads a file of ours, a torch file, or safetensors with torchvision's names.

    Whether it holds what the model needs is the merge's question; here only another architecture is refused.

    Args:
      path: the file.
      arch: the architecture that the config asks for, a key of `tljax.models.MODELS`.

    Returns:
      Variables (read-only views into the file) and the metadata of a file of ours, else `{}`.

    Raises:
      UserError: one line that names the file and the reason.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"{os.fspath(path)} is not a regular file")  # a pipe would be waited for
    arrays, metadata = torch_file.read(path)
    try:
        if metadata.get("format") == FORMAT:
            held = [metadata.get("arch", "an unnamed network")]
            variables = from_keys(arrays)
        else:
            held, metadata = likely_archs(arrays), {}
            variables = from_torch(arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if held and arch not in held:
        raise UserError(
            f"{path} holds {' or '.join(map(shown, held))}, but {arch} was asked for: "
            f"set model.name={shown(held[0])}, or give weights of {arch}"
        )
    return variables, metadata


def from_keys(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variables of a file of ours."""
    flat = {tuple(key.split("/")): array for key, array in arrays.items()}
    for path in flat:
        if len(path) < 2 or path[0] not in ("params", "batch_stats"):
            raise UserError(f"{shown('/'.join(path))} is neither in params/ nor in batch_stats/")
    return nest(flat)


def likely_archs(state_dict: Mapping[str, np.ndarray]) -> list[str]:
    """The architectures that a torchvision `state_dict`, perhaps cut short, can be part of; empty if none is known."""
    if "features.0.weight" in state_dict and any(".squeeze." in name for name in state_dict):
        arch = SQUEEZENETS.get(state_dict["features.0.weight"].shape)
        return [arch] if arch else []
    layers: dict[str, set[str]] = {}
    for name in state_dict:
        layer, _, rest = name.partition(".")
        if layer in ("layer1", "layer2", "layer3", "layer4"):
            layers.setdefault(layer, set()).add(rest.partition(".")[0])
    bottleneck = any(name.endswith(".conv3.weight") for name in state_dict)
    return [
        arch
        for arch, (blocks, deep) in RESNETS.items()
        if layers
        and deep == bottleneck
        and all(len(found) == blocks[int(layer[-1]) - 1] for layer, found in layers.items())
    ]


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, in hex.

    Raises:
      UserError: when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
