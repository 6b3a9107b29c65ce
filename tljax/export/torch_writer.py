"""Writes a `.pth` file as `torch.save` does, without torch: a zip archive of a pickle and the bytes of each tensor."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def torch_bytes(state_dict: Mapping[str, np.ndarray]) -> bytes:
    """The file of a `state_dict`, float32 and int64; `torch.load(..., weights_only=True)` reads it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), data)  # with a date of its own the same bytes each time

        put("data.pkl", _pickled(state_dict))
        put("byteorder", b"little")
        for key, array in enumerate(state_dict.values()):
            put(f"data/{key}", np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        put("version", b"3\n")
    return file.getvalue()


def _pickled(state_dict: Mapping[str, np.ndarray]) -> bytes:
    """In opcodes, since the pickler would want to import what it names."""
    items = b"".join(_plain(name) + _tensor(key, array) for key, (name, array) in enumerate(state_dict.items()))
    return b"\x80\x02" + _call("collections", "OrderedDict") + b"(" + items + b"u."


def _tensor(key: int, array: np.ndarray) -> bytes:
    kind = f"ctorch\n{STORAGES[array.dtype.name]}\n".encode()
    storage = _tuple(_plain("storage"), kind, _plain(str(key)), _plain("cpu"), _plain(array.size)) + b"Q"
    strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
    return _call(
        "torch._utils", "_rebuild_tensor_v2", storage, _plain(0), _plain(array.shape), _plain(strides), _plain(False),
        _call("collections", "OrderedDict"),
    )  # fmt: skip


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + _tuple(*arguments) + b"R"


def _tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def _plain(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]
