"""Files of weights as torchvision distributes them, read without torch: `.pth` in three formats, and safetensors.

The formats, by their first bytes: a zip of a pickle and one uncompressed entry per storage (torch 1.6 and later); five
pickles followed by the storages ("legacy", torch 0.1.12 to 1.5); a tar of `storages`, `tensors` and `pickle` (before).
Layouts follow torch/serialization.py. Arrays are views into the mapped file, so nothing is copied here, and no file
makes more memory than its own size necessary.
"""

import io
import json
import mmap
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tljax.convert import safe_pickle
from tljax.convert.safe_pickle import Global, Parameter, Tensor, shown
from tljax.errors import UserError, one_line

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys that training scripts put a state_dict under
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
# What people save under the name of a weights file by mistake, by its first bytes.
IMPOSTORS = (
    (b"<", "is a web page"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself"),
    (b"\x89HDF", "is an HDF5 file"),
    (b"\x1f\x8b", "is a gzip file; unpack it first"),
)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a torchvision-like file of weights; torch is not needed and nothing in the file is executed.

    A state_dict inside a wrapper such as `{'state_dict': ...}` is unwrapped, the prefix `module.` is dropped.

    Args:
      path: a `.pth`, `.pt` or `.safetensors` file; its first bytes say which, not its name.

    Returns:
      Arrays by name, read-only views into the file, in torch's own layout (OIHW for convolutions).

    Raises:
      UserError: one line that names the file and what is wrong with it.
    """
    return read(path)[0]


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """As `read_state_dict`, with the metadata of a safetensors file; it is empty for the others."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise UserError("is empty")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return parse(data)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever zipfile, tarfile, json and numpy raise for bytes that someone made up
        reason = one_line(error)[:120] or type(error).__name__
        raise UserError(f"{path} is truncated or not a file of weights ({reason})") from error


def parse(data: mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Dispatches on the first bytes."""
    head = data[:512]
    if head[:4] == b"PK\x03\x04":
        return state_dict(*parse_zip(data)), {}
    if head[:1] == b"\x80":
        return state_dict(*parse_legacy(data)), {}
    if head[257:262] == b"ustar":
        return state_dict(*parse_tar(data)), {}
    if head[8:9] == b"{":
        tensors, metadata = parse_safetensors(data)
        return without_prefix(tensors), metadata
    for start, what in IMPOSTORS:
        if head.lstrip().startswith(start):
            raise UserError(f"{what}, not weights")
    raise UserError("is neither a PyTorch file nor safetensors")


class Storages:
    """The storages that a pickle names, and the bytes they stand for once these are found.

    A storage that a tensor refers to is `(key, dtype, first element, number of elements)`.
    """

    def __init__(self):
        self.declared: dict[Any, tuple[np.dtype[Any], int]] = {}  # by key: dtype and number of elements
        self.bytes: dict[Any, np.ndarray] = {}

    def persistent_id(self, saved: Any) -> Any:
        """What a persistent id in torch's pickles stands for."""
        match saved:
            case ("storage", Global() as kind, str() | int() as key, _, int() as numel, *view):
                pass
            case ("module", Global() as kind, *_):
                return kind
            case _:
                raise UserError("names a storage in an unknown way")
        dtype = storage_dtype(kind)
        if self.declared.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise UserError(f"describes its storage {shown(str(key))} in two ways")
        match view:
            case [] | [None]:
                return key, dtype, 0, numel
            case [(_, int() as first, int() as count)]:
                return key, dtype, first, count
        raise UserError("names a part of a storage in an unknown way")

    def add(self, key: Any, data: mmap.mmap, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > len(data):
            raise UserError(f"is truncated (storage {shown(str(key))} ends behind the end of the file)")
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
        if len(shape) != len(stride) or len(shape) > 8 or min((*shape, *stride, tensor.offset), default=0) < 0:
            raise UserError(f"holds {shown(name)} with an impossible shape, stride or offset")
        numel = 1
        for n in shape:  # Python's integers do not overflow
            numel *= n
        if not numel:
            return np.zeros(shape, dtype)
        last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if last >= count or numel > count:  # the second: a stride of 0 makes a giant of one number
            raise UserError(f"holds {shown(name)} of shape {shown(shape)}, which does not fit its storage of {count}")
        flat = raw[first * dtype.itemsize : (first + count) * dtype.itemsize].view(dtype)
        return np.lib.stride_tricks.as_strided(
            flat[tensor.offset :], shape, [s * dtype.itemsize for s in stride], writeable=False
        )


def storage_dtype(kind: Any) -> np.dtype[Any]:
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
    if name not in safe_pickle.STORAGES:
        raise UserError("names a storage of no known type")
    return dtype_of(safe_pickle.STORAGES[name])


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name).newbyteorder("<")


def parse_zip(data: mmap.mmap) -> tuple[Any, Storages]:
    """The zip format: `NAME/data.pkl`, `NAME/data/KEY`, `NAME/byteorder`."""
    archive = zipfile.ZipFile(data)  # type: ignore[arg-type]  # a map can seek, tell and read, which is all it needs
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    if len(pickles) != 1:
        raise UserError("is a zip file, but not one of PyTorch's (it lacks data.pkl)")
    root = pickles[0].removesuffix("data.pkl")

    def where(name: str) -> tuple[int, int]:
        """Start and length of an entry. The local header repeats the name; the extra field there may be longer."""
        entry = entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise UserError(f"holds {shown(name)} compressed or encrypted, which PyTorch never writes")
        header = data[entry.header_offset : entry.header_offset + 30]
        if entry.header_offset < 0 or len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise UserError(f"is damaged ({shown(name)} is not where it should be)")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if start + entry.file_size > len(data):
            raise UserError(f"is truncated ({shown(name)} ends behind the end of the file)")
        with memoryview(data) as view, view[start : start + entry.file_size] as content:
            if entry.CRC and zlib.crc32(content) != entry.CRC:  # torch can be told to write 0 here
                raise UserError(f"is damaged (the checksum of {shown(name)} is wrong)")
        return start, entry.file_size

    def content(name: str) -> bytes:
        start, length = where(name)
        return data[start : start + length]

    if f"{root}byteorder" in entries and content(f"{root}byteorder") != b"little":
        raise UserError("was written on a big-endian machine, which is not supported")
    storages = Storages()
    result = safe_pickle.load(io.BytesIO(content(pickles[0])), storages.persistent_id)
    for key in storages.declared:
        name = f"{root}data/{key}"
        if name in entries:
            storages.add(key, data, *where(name))
    return result, storages


def parse_legacy(data: mmap.mmap) -> tuple[Any, Storages]:
    """The legacy format: magic number, protocol, system, the object, the storages' keys, then each storage."""
    if safe_pickle.load(data) != MAGIC:
        raise UserError("is a pickle, but not one of PyTorch's")
    if (protocol := safe_pickle.load(data)) != PROTOCOL:
        raise UserError(f"has version {shown(protocol)} of PyTorch's legacy format, not {PROTOCOL}")
    system = safe_pickle.load(data)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UserError("was written on a big-endian machine, which is not supported")
    storages = Storages()
    result = safe_pickle.load(data, storages.persistent_id)
    keys = safe_pickle.load(data)
    if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
        raise UserError("holds no list of storages")
    position = data.tell()
    for key in keys:
        if key not in storages.declared:
            raise UserError(f"holds a storage {shown(str(key))} that nothing refers to")
        position = add_storage(storages, key, storages.declared[key][0], data, position)
    return result, storages


def add_storage(storages: Storages, key: Any, dtype: np.dtype[Any], data: mmap.mmap, position: int) -> int:
    """Adds a storage written as its number of elements (int64) and its values; returns where it ends."""
    count = struct.unpack("<q", read_exactly(data, position, 8))[0]
    storages.add(key, data, position + 8, count * dtype.itemsize)
    return position + 8 + count * dtype.itemsize


def read_exactly(data: mmap.mmap, position: int, length: int) -> bytes:
    found = data[position : position + length]
    if len(found) != length:
        raise UserError("is truncated")
    return found


def parse_tar(data: mmap.mmap) -> tuple[Any, Storages]:
    """The tar format: storages and tensors under keys that were addresses once, then a pickle that names those."""
    with tarfile.open(fileobj=data, mode="r:") as archive:  # type: ignore[call-overload]  # as for the zip
        starts = {member.name: member.offset_data for member in archive if member.isreg()}
    if missing := {"storages", "tensors", "pickle"} - starts.keys():
        raise UserError(f"is a tar file, but not one of PyTorch's (it lacks {', '.join(sorted(missing))})")
    storages, found, tensors = Storages(), {}, {}

    def load_at(position: int) -> tuple[Any, int]:
        data.seek(position)
        return safe_pickle.load(data), data.tell()

    count, position = load_at(starts["storages"])
    for _ in range(checked_count(count, data)):
        (key, _, kind), position = load_triple(load_at(position))
        dtype, start = storage_dtype(kind), position
        position = add_storage(storages, key, dtype, data, position)
        found[key] = (key, dtype, 0, (position - start - 8) // dtype.itemsize)
    views, _ = load_at(position)
    for view in views if isinstance(views, list) else ():
        match view:
            case (str() | int() as key, str() | int() as root, int() as first, int() as count) if root in found:
                found[key] = (*found[root][:2], found[root][2] + first, count)
            case _:
                raise UserError("describes a part of a storage in an unknown way")
    count, position = load_at(starts["tensors"])
    for _ in range(checked_count(count, data)):
        (key, storage, _), position = load_triple(load_at(position))
        dims = struct.unpack("<i", read_exactly(data, position, 4))[0]  # and 4 bytes of nothing
        if not 0 <= dims <= 8 or storage not in found:
            raise UserError("holds a tensor with an impossible shape or without a storage")
        numbers = struct.unpack(f"<{2 * dims + 1}q", read_exactly(data, position + 8, 8 * (2 * dims + 1)))
        tensors[key] = Tensor(found[storage], numbers[-1], numbers[:dims], numbers[dims:-1])
        position += 8 + 8 * len(numbers)

    def persistent_id(saved: Any) -> Any:
        match saved:
            case str() | int() if str(saved).isdecimal() and int(saved) in tensors:
                return tensors[int(saved)]
            case (Global() as kind, *_):
                return kind
        raise UserError("names a tensor that it does not hold")

    data.seek(starts["pickle"])
    return safe_pickle.load(data, persistent_id), storages


def checked_count(count: Any, data: mmap.mmap) -> int:
    if not isinstance(count, int) or not 0 <= count <= len(data):
        raise UserError("is damaged (an impossible number of tensors)")
    return count


def load_triple(loaded: tuple[Any, int]) -> tuple[tuple[Any, Any, Any], int]:
    match loaded[0]:
        case (int() as key, str() | int() | None as second, third):
            return (key, second, third), loaded[1]
    raise UserError("is damaged (it describes a storage or tensor in an unknown way)")


def parse_safetensors(data: mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Safetensors, as views: the library's NumPy side copies all values and lacks bfloat16."""
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    if begin > len(data):
        raise UserError("is truncated (its header ends behind the end of the file)")
    header = json.loads(data[8:begin])
    metadata = header.pop("__metadata__", {})
    storages, tensors = Storages(), {}
    for name, entry in header.items():
        match entry:
            case {"dtype": str() as kind, "shape": list() as shape, "data_offsets": [int() as start, int() as end]}:
                pass
            case _:
                raise UserError(f"describes {shown(name)} in an unknown way")
        if kind not in DTYPES:
            raise UserError(f"holds {shown(name)} of type {shown(kind)}, which is not supported")
        dtype, stride = dtype_of(DTYPES[kind]), [1]
        for n in reversed(safe_pickle.integers(shape)):
            stride.insert(0, stride[0] * n)
        numel = stride.pop(0)
        if start < 0 or numel * dtype.itemsize != end - start:
            raise UserError(f"holds {shown(name)} of shape {shown(shape)} in {shown(end - start)} bytes")
        storages.add(name, data, begin + start, end - start)
        tensors[name] = Tensor((name, dtype, 0, numel), 0, tuple(shape), tuple(stride))
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError("has metadata that is not text")
    return {name: storages.array(tensor, name) for name, tensor in tensors.items()}, metadata


def state_dict(result: Any, storages: Storages) -> dict[str, np.ndarray]:
    """The arrays of what was unpickled: a dict of tensors, perhaps in a wrapper."""
    for wrapper in WRAPPERS:
        if isinstance(result, dict) and isinstance(result.get(wrapper), dict):
            result = result[wrapper]
            break
    if not isinstance(result, dict):
        raise UserError(f"holds a {type(result).__name__}, not a state_dict")
    arrays = {}
    for name, value in result.items():
        value = value.data if isinstance(value, Parameter) else value
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"holds a {type(value).__name__} under {shown(name)}, so it is no state_dict of tensors")
        arrays[name] = storages.array(value, name)
    return without_prefix(arrays)


def without_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops the `module.` that DataParallel puts before every name."""
    if not arrays:
        raise UserError("holds no tensors")
    every = all(name.startswith("module.") for name in arrays)
    return {name.removeprefix("module.") if every else name: array for name, array in arrays.items()}
