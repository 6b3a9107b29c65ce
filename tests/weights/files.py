"""Files of weights in all four formats, made by hand: torch is not needed, and every byte can be wrong."""

import io
import struct
import tarfile
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors.numpy

KINDS = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
}


class Name(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Name
    args: tuple[Any, ...]
    state: Any = None


class Persistent(NamedTuple):
    id: Any


def pickled(value: Any) -> bytes:
    """A pickle in protocol 2, as torch writes it, with names that need not exist."""
    return b"\x80\x02" + opcodes(value) + b"."


def opcodes(value: Any) -> bytes:
    match value:
        case Name():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            made = opcodes(value.function) + opcodes(value.args) + b"R"
            return made if value.state is None else made + opcodes(value.state) + b"b"
        case Persistent():
            return opcodes(value.id) + b"Q"
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(digits)]) + digits
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
    raise TypeError(value)


def steps(array: np.ndarray) -> tuple[int, ...]:
    return tuple(s // array.itemsize for s in array.strides)


def storage(array: np.ndarray, key: str, *, numel: int | None = None) -> tuple[Any, ...]:
    kind = Name("torch", KINDS[array.dtype.name] + "Storage")
    return ("storage", kind, key, "cpu", array.size if numel is None else numel)


def rebuild(where: Any, shape: Any, stride: Any, offset: Any = 0) -> Call:
    return Call(
        Name("torch._utils", "_rebuild_tensor_v2"),
        (Persistent(where), offset, tuple(shape), tuple(stride), False, Call(Name("collections", "OrderedDict"), ())),
    )


def zip_bytes(
    pickle_bytes: bytes, storages: dict[str, bytes], *, method: int = zipfile.ZIP_STORED, byteorder: bytes = b"little"
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", byteorder)
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values)
    return out.getvalue()


def as_zip(arrays: dict[str, np.ndarray]) -> bytes:
    keys = {name: str(i) for i, name in enumerate(arrays)}
    tree = {name: rebuild(storage(a, keys[name]), a.shape, steps(a)) for name, a in arrays.items()}
    return zip_bytes(pickled(tree), {keys[name]: a.tobytes() for name, a in arrays.items()})


def legacy_bytes(value: Any, storages: list[tuple[str, np.ndarray]]) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickled(v) for v in (0x1950A86A20F9469CFC6C, 1001, system, value, [key for key, _ in storages])]
    return b"".join(parts + [struct.pack("<q", a.size) + a.tobytes() for _, a in storages])


def as_legacy(arrays: dict[str, np.ndarray]) -> bytes:
    tree = {name: rebuild((*storage(a, name), None), a.shape, steps(a)) for name, a in arrays.items()}
    return legacy_bytes(tree, list(arrays.items()))


def as_tar(arrays: dict[str, np.ndarray]) -> bytes:
    """Keys are addresses: of storages from 1000, of tensors from 2000."""
    kinds = [Name("torch", KINDS[a.dtype.name] + "Storage") for a in arrays.values()]
    storages = (
        pickled(len(arrays))
        + b"".join(
            pickled((1000 + i, "cpu", kind)) + struct.pack("<q", a.size) + a.tobytes()
            for i, (a, kind) in enumerate(zip(arrays.values(), kinds, strict=True))
        )
        + pickled([])
    )
    tensors = pickled(len(arrays)) + b"".join(
        pickled((2000 + i, 1000 + i, kind))
        + struct.pack("<ii", a.ndim, 0)
        + struct.pack(f"<{2 * a.ndim + 1}q", *a.shape, *steps(a), 0)
        for i, (a, kind) in enumerate(zip(arrays.values(), kinds, strict=True))
    )
    tree = {name: Persistent(str(2000 + i)) for i, name in enumerate(arrays)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (
            ("sys_info", pickled({})),
            ("pickle", pickled(tree)),
            ("storages", storages),
            ("tensors", tensors),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def as_safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    return safetensors.numpy.save(arrays, {"format": "pt"})


FORMATS = {"zip": as_zip, "legacy": as_legacy, "tar": as_tar, "safetensors": as_safetensors}


def example() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        f"layer1.0.{name}": (rng.standard_normal((3, 2, 5)) * 50).astype(
            ml_dtypes.bfloat16 if name == "bfloat16" else name
        )
        for name in KINDS
    }
    return {**arrays, "bn1.num_batches_tracked": np.array(7), "fc.bias": np.ones(4, np.float32)}
