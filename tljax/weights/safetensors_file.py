"""Safetensors, read as views: the library's NumPy side copies all values and lacks bfloat16.

What the library refuses is refused here: names that occur twice, tensors that overlap, bytes that belong to none.
"""

import json
import mmap
import struct
from typing import Any

import numpy as np

from tljax.core.errors import UserError
from tljax.weights.safe_pickle import LARGEST, Tensor, integers, shown
from tljax.weights.storages import Storages, check_names, dtype_of, without_prefix

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def parse_safetensors(data: mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays by name, and the metadata."""
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    if begin > len(data):
        raise UserError("is truncated (its header ends behind the end of the file)")
    if begin - 8 > LARGEST:
        raise UserError(f"has a header of {begin - 8} bytes, more than {LARGEST}")
    header = json.loads(data[8:begin].decode(), object_pairs_hook=without_twins)
    metadata = header.pop("__metadata__", {})
    check_names(header)
    storages, tensors, spans = Storages(), {}, []
    for name, entry in header.items():
        match entry:
            case {"dtype": str() as kind, "shape": list() as shape, "data_offsets": [int() as start, int() as end]}:
                pass
            case _:
                raise UserError(f"describes {shown(name)} in an unknown way")
        if kind not in DTYPES:
            raise UserError(f"holds {shown(name)} of type {shown(kind)}, which is not supported")
        dtype, stride = dtype_of(DTYPES[kind]), [1]
        for n in reversed(integers(shape)):
            stride.insert(0, stride[0] * n)
        numel = stride.pop(0)
        if start < 0 or numel * dtype.itemsize != end - start:
            raise UserError(f"holds {shown(name)} of shape {shown(shape)} in {shown(end - start)} bytes")
        storages.add(name, data, begin + start, end - start)
        spans.append((start, end, name))
        tensors[name] = Tensor((name, dtype, 0, numel), 0, tuple(shape), tuple(stride))
    reached = 0
    for start, end, name in sorted(spans):
        if start != reached:
            raise UserError(f"holds {shown(name)} from byte {start} on, where {reached} is expected")
        reached = end
    if begin + reached != len(data):
        raise UserError(f"holds {len(data) - begin - reached} bytes that belong to no tensor")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError("has metadata that is not text")
    return without_prefix({name: storages.array(tensor, name) for name, tensor in tensors.items()}), metadata


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) != len(pairs):
        raise UserError("has a header in which a name occurs twice")
    return made
