"""Tensors as views into the bytes of a file, whatever format describes them, every number of it checked."""

import math
import mmap
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tljax.core.errors import UserError
from tljax.weights import safe_pickle
from tljax.weights.safe_pickle import Global, Tensor, shown

MOST = 10_000  # tensors; a ResNet-152 has 932


class Storages:
    """The storages that a pickle names, and the bytes they stand for once these are found.

    A storage that a tensor refers to is `(key, dtype, first element, number of elements)`.
    """

    def __init__(self):
        # Keys that are numbers become text, whose hashes no file can choose.
        self.declared: dict[str, tuple[np.dtype[Any], int]] = {}  # by key: dtype and number of elements
        self.bytes: dict[str, np.ndarray] = {}

    def persistent_id(self, saved: Any) -> Any:
        """What a persistent id in torch's pickles stands for."""
        match saved:
            case ("storage", Global() as kind, str() | int() as key, _, int() as numel, *view):
                pass
            case ("module", Global() as kind, *_):
                return kind
            case _:
                raise UserError("names a storage in an unknown way")
        dtype, key = storage_dtype(kind), str(key)
        if self.declared.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise UserError(f"describes its storage {shown(key)} in two ways")
        match view:
            case [] | [None]:
                return key, dtype, 0, numel
            case [(_, int() as first, int() as count)]:
                return key, dtype, first, count
        raise UserError("names a part of a storage in an unknown way")

    def add(self, key: str, data: mmap.mmap, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > len(data):
            raise UserError(f"is truncated (storage {shown(key)} ends behind the end of the file)")
        self.bytes[key] = np.frombuffer(data, np.uint8, length, start)

    def array(self, tensor: Tensor, name: str) -> np.ndarray:
        """The tensor as a read-only view, every index of it checked against the storage."""
        match tensor.storage:
            case (key, np.dtype() as dtype, int() as first, int() as count):
                pass
            case _:
                raise UserError(f"holds {shown(name)} without a storage")
        if key not in self.bytes:
            raise UserError(f"is truncated (the storage of {shown(name)} is missing)")
        raw, shape, stride = self.bytes[key], tensor.shape, tensor.stride
        if first < 0 or count < 0 or (first + count) * dtype.itemsize > len(raw):
            raise UserError(
                f"is truncated (the storage of {shown(name)} holds {len(raw)} bytes, not "
                f"{(first + count) * dtype.itemsize})"
            )
        if len(shape) != len(stride) or min((*shape, *stride, tensor.offset), default=0) < 0:
            raise UserError(f"holds {shown(name)} with an impossible shape, stride or offset")
        numel = math.prod(shape)  # Python's integers do not overflow
        last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if numel and (last >= count or numel > count):  # the second: a stride of 0 makes a giant of one number
            raise UserError(f"holds {shown(name)} of shape {shown(shape)}, which does not fit its storage of {count}")
        flat = raw[first * dtype.itemsize : (first + count) * dtype.itemsize].view(dtype)
        return np.lib.stride_tricks.as_strided(
            flat[tensor.offset :],
            shape,
            [step * dtype.itemsize if n > 1 else 0 for n, step in zip(shape, stride, strict=True)],
            writeable=False,
        )


def storage_dtype(kind: Any) -> np.dtype[Any]:
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
    if name not in safe_pickle.STORAGES:
        raise UserError("names a storage of no known type")
    return dtype_of(safe_pickle.STORAGES[name])


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name).newbyteorder("<")


def check_names(names: Mapping[Any, Any]) -> None:
    """Names become paths, lines of a terminal and of a result; so many of such a length cannot become much."""
    if len(names) > MOST:
        raise UserError(f"holds {len(names)} tensors, more than {MOST}")
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"holds something under {shown(name)}, so it is no state_dict of tensors")
        if not name.isprintable() or len(name) > 255:
            raise UserError(f"holds {shown(name)}, which is no name of a tensor")


def without_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops the `module.` that DataParallel puts before every name."""
    if not arrays:
        raise UserError("holds no tensors")
    every = all(name.startswith("module.") for name in arrays)
    return {name.removeprefix("module.") if every else name: array for name, array in arrays.items()}
