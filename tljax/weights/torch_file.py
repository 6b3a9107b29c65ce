"""Files of weights as torchvision distributes them, read without torch: `.pth` in three formats, and safetensors.

The formats, by their first bytes: a zip of a pickle and one uncompressed entry per storage (torch 1.6 and later); five
pickles followed by the storages ("legacy", torch 0.1.12 to 1.5); a tar of `storages`, `tensors` and `pickle` (before).
Layouts follow torch/serialization.py. Arrays are views into the mapped file, so no value is copied here. Reading a file
of n bytes takes at most 256 n + 1 MiB of memory, whatever is in it, and time in proportion to n; a file of real weights
takes a fraction of n. tests/fuzz holds it to that.
"""

import bisect
import io
import mmap
import os
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tljax.core.errors import UserError, one_line
from tljax.weights import safe_pickle
from tljax.weights.safe_pickle import LARGEST, Global, Parameter, Tensor, shown
from tljax.weights.safetensors_file import parse_safetensors
from tljax.weights.storages import Storages, check_names, storage_dtype, without_prefix

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys that training scripts put a state_dict under
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
        reason = shown(one_line(error)) or type(error).__name__
        raise UserError(f"{path} is truncated or not a file of weights ({reason})") from error


def parse(data: mmap.mmap) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Dispatches on the first bytes."""
    head = data[:512]
    if head[:4] == b"PK\x03\x04":
        return state_dict(*parse_zip(data)), {}
    if head[8:9] == b"{":  # before the next: the length of one header in 32 begins as a pickle does
        return parse_safetensors(data)
    if head[:1] == b"\x80":
        return state_dict(*parse_legacy(data)), {}
    if head[257:262] == b"ustar":
        return state_dict(*parse_tar(data)), {}
    for start, what in IMPOSTORS:
        if head.lstrip().startswith(start):
            raise UserError(f"{what}, not weights")
    raise UserError("is neither a PyTorch file nor safetensors")


class Window:
    """What zipfile reads of a map, its directory of a bounded size: one entry's 65,535 bytes of nothing take 40 ms."""

    def __init__(self, data: mmap.mmap):
        self.data, self.seek, self.tell = data, data.seek, data.tell

    def read(self, n: int | None = None) -> bytes:
        if n is not None and n > LARGEST:
            raise UserError(f"is a zip file with a directory of {n} bytes, more than {LARGEST}")
        return self.data.read(n)


def parse_zip(data: mmap.mmap) -> tuple[Any, Storages]:
    """The zip format: `NAME/data.pkl`, `NAME/data/KEY`, `NAME/byteorder`."""
    archive = zipfile.ZipFile(Window(data))  # type: ignore[arg-type]  # seek, tell and read are all it needs
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise UserError("is damaged (two entries of the zip file have one name)")
    begins = sorted(entry.header_offset for entry in entries.values())
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
        following = bisect.bisect_left(begins, entry.header_offset) + 1
        if start + entry.file_size > len(data):
            raise UserError(f"is truncated ({shown(name)} ends behind the end of the file)")
        if following < len(begins) and start + entry.file_size > begins[following]:  # many such, and the sums never end
            raise UserError(f"is damaged ({shown(name)} overlaps another entry of the zip file)")
        with memoryview(data) as view, view[start : start + entry.file_size] as content:
            if entry.CRC and zlib.crc32(content) != entry.CRC:  # torch can be told to write 0 here
                raise UserError(f"is damaged (the checksum of {shown(name)} is wrong)")
        return start, entry.file_size

    def content(name: str) -> bytes:
        start, length = where(name)
        if length > LARGEST:
            raise UserError(f"holds {shown(name)} of {length} bytes, more than {LARGEST}")
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
    if safe_pickle.load(data) != PROTOCOL:
        raise UserError(f"has another version of PyTorch's legacy format than {PROTOCOL}")
    system = safe_pickle.load(data)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UserError("was written on a big-endian machine, which is not supported")
    storages = Storages()
    result = safe_pickle.load(data, storages.persistent_id)
    keys = safe_pickle.load(data)
    if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
        raise UserError("holds no list of storages")
    position = data.tell()
    for key in map(str, keys):
        if key not in storages.declared:
            raise UserError(f"holds a storage {shown(key)} that nothing refers to")
        position = add_storage(storages, key, storages.declared[key][0], data, position)
    return result, storages


def add_storage(storages: Storages, key: str, dtype: np.dtype[Any], data: mmap.mmap, position: int) -> int:
    """Adds a storage written as its number of elements (int64) and its values; returns where it ends."""
    count = struct.unpack("<q", read_exactly(data, position, 8))[0]
    storages.add(key, data, position + 8, count * dtype.itemsize)
    return position + 8 + count * dtype.itemsize


def read_exactly(data: mmap.mmap, position: int, length: int) -> bytes:
    found = data[position : position + length]
    if len(found) != length:
        raise UserError("is truncated")
    return found


def members(data: mmap.mmap) -> dict[str, int]:
    """Where the content of each regular file in a tar begins.

    TarFile itself follows extended headers: each copies all that the global ones said, and a chain of them recurses.
    Here they are members like any other, and torch needs none of them.
    """
    starts, position = {}, 0
    while (header := data[position : position + tarfile.BLOCKSIZE]).strip(b"\0"):
        member = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
        position += tarfile.BLOCKSIZE
        if member.size < 0 or position + member.size > len(data):
            raise UserError(f"is truncated ({shown(member.name)} ends behind the end of the file)")
        if member.isreg() and starts.setdefault(member.name, position) != position:
            raise UserError(f"is damaged (it holds {shown(member.name)} twice)")
        position += -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return starts


def parse_tar(data: mmap.mmap) -> tuple[Any, Storages]:
    """The tar format: storages and tensors under keys that were addresses once, then a pickle that names those."""
    starts = members(data)
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
            case (str() | int() as key, str() | int() as root, int() as first, int() as count) if str(root) in found:
                key, dtype, begin, _ = found[str(root)]
                found[str(key)] = (key, dtype, begin + first, count)
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
            case str() | int() if str(saved) in tensors:
                return tensors[str(saved)]
            case (Global() as kind, *_):
                return kind
        raise UserError("names a tensor that it does not hold")

    data.seek(starts["pickle"])
    return safe_pickle.load(data, persistent_id), storages


def checked_count(count: Any, data: mmap.mmap) -> int:
    if not isinstance(count, int) or not 0 <= count <= len(data):
        raise UserError("is damaged (an impossible number of tensors)")
    return count


def load_triple(loaded: tuple[Any, int]) -> tuple[tuple[str, str, Any], int]:
    match loaded[0]:
        case (int() as key, str() | int() | None as second, third):
            return (str(key), str(second), third), loaded[1]
    raise UserError("is damaged (it describes a storage or tensor in an unknown way)")


def state_dict(result: Any, storages: Storages) -> dict[str, np.ndarray]:
    """The arrays of what was unpickled: a dict of tensors, perhaps in a wrapper."""
    for wrapper in WRAPPERS:
        if isinstance(result, dict) and isinstance(result.get(wrapper), dict):
            result = result[wrapper]
            break
    if not isinstance(result, dict):
        raise UserError(f"holds a {type(result).__name__}, not a state_dict")
    check_names(result)
    arrays = {}
    for name, value in result.items():
        value = value.data if isinstance(value, Parameter) else value
        if not isinstance(value, Tensor):
            raise UserError(f"holds a {type(value).__name__} under {shown(name)}, so it is no state_dict of tensors")
        arrays[name] = storages.array(value, name)
    return without_prefix(arrays)
