"""Mutations that know the formats, so that the fuzzer gets past lengths and checksums to what they protect.

A file is taken apart into parts (a zip's entries, a tar's members, a pickle's instructions, a header and values), one
part is mutated, and all is put together with lengths and checksums that are right; mostly.
"""

import io
import pickletools
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable

from tests.fuzz.pickles import PICKLES
from tests.fuzz.seeds import VALID, tar, zip_of

Change = Callable[[bytes], bytes]  # of bytes without a structure

NUMBERS = (
    0,
    1,
    2,
    5,
    6,
    7,
    8,
    9,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**63,
)
WORDS = [
    *(bytes([code]) for code in range(256)),
    *(
        b"\x8a" + bytes([len(d := n.to_bytes(9, "little", signed=True))]) + d
        for n in (*NUMBERS, *(-n for n in NUMBERS))
    ),
    *(f"ctorch\n{kind}Storage\n".encode() for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Byte", "Bool")),
    *(f"ctorch._utils\n_rebuild_{what}\n".encode() for what in ("tensor", "tensor_v2", "parameter")),
    b"ccollections\nOrderedDict\n)R",
    b"ctorch.nn.parameter\nParameter\n",
    b"ctorch\nSize\n",
    b"cos\nsystem\n",
    *(
        b"X" + struct.pack("<I", len(w)) + w
        for w in (b"storage", b"module", b"0", b"1", b"cpu", b"state_dict", b"w", b"a.b")
    ),
]
NAMES = ("a/data.pkl", "archive/data.pkl", "data.pkl", "archive/data/0", "../data.pkl", "archive/byteorder", "", "/")
MEMBERS = ("storages", "tensors", "pickle", "../pickle", "sys_info", "")
JSON = (
    *('"dtype"', '"shape"', '"data_offsets"', '"__metadata__"', '"F32"', '"BF16"', '"BOOL"', "[]", "{}", "[0]", "[6]"),
    *(
        "[1,2,3]",
        "null",
        "true",
        "-1",
        "1e5",
        "NaN",
        '"\\ud800"',
        ",",
        ":",
        "[",
        "]",
        "{",
        "}",
        '"',
        str(2**63),
        str(2**64),
    ),
)


def mutate(content: bytes, rng: random.Random, change: Change) -> bytes:
    """One mutation of a file in any of the formats; of its bytes as they are, where it is broken already."""
    if rng.random() < 0.2:  # most files that the fuzzer comes by are broken, and what is read of one ends there
        content = rng.choice(list(VALID.values()))
    if rng.random() < 0.1:
        return change(content)
    try:
        if content[:4] == b"PK\x03\x04":
            return of_zip(content, rng, change)
        if content[8:9] == b"{":
            return of_safetensors(content, rng, change)
        if content[257:262] == b"ustar":
            return of_tar(content, rng, change)
        if content[:1] == b"\x80":
            return of_pickles(content, rng, change)
    except Exception:  # the standard library's readers raise anything
        pass
    return change(content)


def of_zip(content: bytes, rng: random.Random, change: Change) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist() if entry.file_size < 1 << 16]
    place = next((i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl")), 0)
    if rng.random() < 0.3:
        place = rng.randrange(len(entries))
    name, inner = entries[place]
    match rng.randrange(12):
        case 0:
            entries[place] = (rng.choice(NAMES), inner)
        case 1:
            entries.insert(rng.randrange(len(entries) + 1), (name, inner))
        case 2:
            del entries[place]
        case 3:
            rng.shuffle(entries)
        case _ if name.endswith("data.pkl"):
            entries[place] = (name, of_pickles(inner, rng, change))
        case _:
            entries[place] = (name, change(inner))
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED
    made = zip_of(*entries, method=method)
    return change(made) if rng.random() < 0.05 else made


def of_tar(content: bytes, rng: random.Random, change: Change) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        entries = [(m.name, content[m.offset_data : m.offset_data + m.size], m.type) for m in archive.getmembers()]
    place = rng.randrange(len(entries))
    name, inner, kind = entries[place]
    match rng.randrange(10):
        case 0:
            entries[place] = (rng.choice(MEMBERS), inner, kind)
        case 1:
            entries[place] = (name, inner, bytes([rng.choice(b"0123456789xgLKSD\0")]))
        case 2:
            entries.insert(rng.randrange(len(entries) + 1), entries[place])
        case _:
            entries[place] = (name, of_pickles(inner, rng, change), kind)
    return tar(*entries)


def of_safetensors(content: bytes, rng: random.Random, change: Change) -> bytes:
    length = struct.unpack("<Q", content[:8])[0]
    header, values = content[8 : 8 + length], content[8 + length :]
    match rng.randrange(8):
        case 0:
            return struct.pack("<Q", rng.choice((*NUMBERS, length + 1, length - 1)) % 2**64) + header + values
        case 1:
            values = change(values)
        case 2 | 3:
            header = change(header)
        case _:
            pieces = [piece for piece in split_json(header) if piece]
            replace_one(pieces, [word.encode() for word in JSON], rng, change)
            header = b"".join(pieces)
    return struct.pack("<Q", len(header)) + header + values


def split_json(header: bytes) -> list[bytes]:
    pieces, current = [], b""
    for byte in header:
        if byte in b'{}[]:,"':
            pieces += [current, bytes([byte])]
            current = b""
        else:
            current += bytes([byte])
    return [*pieces, current]


def of_pickles(content: bytes, rng: random.Random, change: Change) -> bytes:
    """Of one pickle, or of one of several in a row; what follows the last one is a part as well."""
    pickles, rest = [], content
    while rest and len(pickles) < 50:
        pieces, end = instructions(rest)
        if not end:
            break
        pickles.append(pieces)
        rest = rest[end:]
    place = rng.randrange(len(pickles) + bool(rest))
    if place == len(pickles):
        rest = change(rest)
    elif rng.random() < 0.05:
        pickles[place] = [rng.choice(list(PICKLES.values()))]
    else:
        replace_one(pickles[place], WORDS, rng, change)
    return b"".join(map(b"".join, pickles)) + rest


def instructions(code: bytes) -> tuple[list[bytes], int]:
    """The instructions of the first pickle in `code`, and where it ends; 0 if it does not."""
    stream, places = io.BytesIO(code), []
    try:
        for _, _, position in pickletools.genops(stream):
            places.append(position)
    except Exception:  # an unknown instruction
        return [], 0
    return [code[a:b] for a, b in zip(places, [*places[1:], stream.tell()], strict=True)], stream.tell()


def replace_one(pieces: list[bytes], words: list[bytes], rng: random.Random, change: Change) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(pieces)) if pieces else 0
        match rng.randrange(8) if pieces else 0:
            case 0 | 1:
                pieces.insert(place, rng.choice(words))
            case 2 | 3:
                pieces[place] = rng.choice(words)
            case 4:
                del pieces[place]
            case 5:
                other = rng.randrange(len(pieces))
                pieces[place], pieces[other] = pieces[other], pieces[place]
            case 6:
                end = place + rng.randrange(1, 10)
                pieces[place:place] = pieces[place:end] * rng.choice((1, 1, 2, 10, 50))
            case _:
                pieces[place] = change(pieces[place])
