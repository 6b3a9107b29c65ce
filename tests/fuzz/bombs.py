"""Files of a few megabytes, each of which takes hours or gigabytes of a reader that is careless in one place."""

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

from tests.fuzz.pickles import BASE, TENSOR
from tests.fuzz.seeds import entry, in_zip, safetensors, tar, with_directory, zip_of
from tests.weights.files import Name, legacy_bytes, pickled, rebuild, storage

PRIME = 2**61 - 1  # whose multiples all have the hash 0
FUNCTION, FLOATS = "torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage"


def colliding(n: int) -> list[bytes]:
    """LONG1 of numbers that have one hash."""
    return [b"\x8a\x0c" + (i * PRIME).to_bytes(12, "little") for i in range(n)]


def one_list_as_every_shape() -> bytes:
    numbers = b"](" + b"K\x01" * 20_000 + b"eq\x00"
    return in_zip(numbers + f"c{FUNCTION}\nq\x01".encode() + b"h\x01(NK\x00h\x00h\x00tR" * 20_000 + b".")


def one_tuple_as_every_call() -> bytes:
    numbers = b"(" + b"K\x01" * 100_000 + b"tq\x00"
    return in_zip(numbers + f"c{FUNCTION}\nq\x01".encode() + b"h\x01h\x00R0" * 60_000 + b".")


def one_list_as_every_size() -> bytes:
    numbers = b"](" + b"K\x01" * 50_000 + b"e\x85q\x00"
    return in_zip(numbers + b"ctorch\nSize\nq\x01" + b"h\x01h\x00R" * 50_000 + b".")


def keys_that_collide() -> bytes:
    return in_zip(b"}(" + b"N".join(colliding(100_000)) + b"Nu.")


def storages_that_collide() -> bytes:
    shared = b"X\x07\x00\x00\x00storageq\x00" + f"c{FLOATS}\nq\x01".encode() + b"X\x03\x00\x00\x00cpuq\x02"
    return in_zip(shared + b"".join(b"(h\x00h\x01" + key + b"h\x02K\x06tQ0" for key in colliding(50_000)) + b".")


def tensors_of_a_tar_that_collide() -> bytes:
    kind = Name("torch", "FloatStorage")
    storages = pickled(1) + pickled((0, "cpu", kind)) + struct.pack("<q", 6) + BASE.tobytes() + pickled([])
    tail = b"K\x00" + f"c{FLOATS}\nt.".encode() + struct.pack("<iiq", 0, 0, 0)
    tensors = pickled(50_000) + b"".join(b"(" + key + tail for key in colliding(50_000))
    return tar(("storages", storages, b"0"), ("tensors", tensors, b"0"), ("pickle", b"}.", b"0"))


def entries_over_one_another() -> bytes:
    count, values = 30_000, bytes(1 << 22)
    shared = b"X\x07\x00\x00\x00storageq\x00" + f"c{FLOATS}\nq\x01".encode() + b"X\x03\x00\x00\x00cpuq\x02"
    code = shared + b"".join(b"(h\x00h\x01X\x05\x00\x00\x00%05dh\x02K\x06tQ0" % i for i in range(count)) + b"."
    body = zip_of(("a", code), ("b", values))
    second = body.index(b"PK\x03\x04", 4)
    body = body[: second + 31 + len(values)]
    checksum = zlib.crc32(values)
    names = ((f"a/data/{i:05d}", second, len(values), checksum) for i in range(count))
    return with_directory(body, ("a/data.pkl", 0, len(code)), *names)


def extra_fields_of_nothing() -> bytes:
    extra = b"\xfe\xca\x00\x00" * 16_383
    return with_directory(zip_of(("a", b"N."))[:33], *((f"{i:03d}", 0, 2) for i in range(20)), extra=extra)


def headers_that_are_copied() -> bytes:
    records = b"".join(b"14 k%06d=v\n" % i for i in range(50_000))
    member = ("m", b"12 mtime=1.5\n", tarfile.XHDTYPE), ("m", b"", b"0")
    return tar(("g", records, tarfile.XGLTYPE), *(member * 1000))


def deep_names() -> bytes:
    names = {f"{i:04d}" + ".a" * 125: TENSOR for i in range(1000)}
    return in_zip(pickled(names))


def giant_integers() -> bytes:
    return safetensors(f'{{"w":{entry("[" + ",".join(["9" * 4000] * 300) + "]", 0, 24)}}}')


BOMBS: dict[str, Callable[[], bytes]] = {
    "a shape of 300,000 twos": lambda: safetensors(f'{{"w":{entry("[" + "2," * 300_000 + "2]", 0, 24)}}}'),
    "a shape of giant integers": giant_integers,
    "lists in JSON": lambda: safetensors('{"w":[' + "[]," * 300_000 + "0]}"),
    "dicts in JSON": lambda: safetensors('{"w":[' + '{"":0},' * 200_000 + "0]}"),
    "metadata of 100,000 words": lambda: safetensors(
        '{"__metadata__":{' + ",".join(f'"{i:x}":""' for i in range(100_000)) + f'}},"w":{entry("[6]", 0, 24)}}}'
    ),
    "a header of 9 MB": lambda: safetensors("{" + " " * 9_000_000 + "}", b""),
    "one list as every shape": one_list_as_every_shape,
    "one tuple as the arguments of every call": one_tuple_as_every_call,
    "one list as every size": one_list_as_every_size,
    "keys that collide": keys_that_collide,
    "storages that collide": storages_that_collide,
    "tensors of a tar that collide": tensors_of_a_tar_that_collide,
    "entries over one another": entries_over_one_another,
    "extra fields of nothing": extra_fields_of_nothing,
    "30,000 entries": lambda: with_directory(b"PK\x03\x04", *((f"{i:05x}", 0, 0) for i in range(30_000))),
    "an archive of 100 MB in 100 kB": lambda: zip_of(("a/data.pkl", bytes(10**8)), method=zipfile.ZIP_DEFLATED),
    "headers that are copied": headers_that_are_copied,
    "a chain of long names": lambda: tar(*(("n", b"x" * 500, tarfile.GNUTYPE_LONGNAME) for _ in range(2000))),
    "2,000 members": lambda: tar(*((f"{i:050d}", b"", b"0") for i in range(2000))),
    "30,000 tensors": lambda: in_zip(
        pickled({"w": TENSOR})[:-2]
        + b"q\x00"
        + b"".join(b"X\x05\x00\x00\x00%05dh\x00" % i for i in range(30_000))
        + b"u."
    ),
    "1,000 tensors under 126 modules": deep_names,
    "a tuple of 300,000 tuples": lambda: in_zip(b")" + b"\x85" * 300_000 + b"."),
    "a list of 200,000 lists": lambda: in_zip(b"]" * 200_000 + b"a" * 199_999 + b"."),
    "a dict of 100,000 dicts": lambda: in_zip(b"}K\x00" * 100_000 + b"}" + b"s" * 100_000 + b"."),
    "a parameter of 100,000 parameters": lambda: in_zip(
        b"ctorch.nn.parameter\nParameter\nq\x00" + b"h\x00" * 100_000 + b")" + b"R\x85" * 100_000 + b"."
    ),
    "200,000 lists": lambda: in_zip(b"]" * 200_000 + b"."),
    "dicts of one item": lambda: in_zip(b"}NNs" * 50_000 + b"."),
    "200,000 places in the memo": lambda: in_zip(b"N" + b"\x94" * 200_000 + b"."),
    "100,000 tensors, none with a name": lambda: in_zip(
        f"c{FUNCTION}\nq\x00".encode() + b"(NK\x00))tq\x01" + b"h\x00h\x01R" * 100_000 + b"."
    ),
    "text four bytes wide": lambda: in_zip(
        b"X" + struct.pack("<I", 1_000_000) + "\U0001f600".encode() + b"\xff" * 999_996 + b"."
    ),
    "a global of 1 MB": lambda: in_zip(b"c" + "\U0001f600".encode() + b"\xff" * 1_000_000 + b"\nx\n."),
    "a pickle of 9 MB": lambda: in_zip(b"}X" + struct.pack("<I", 9_000_000) + bytes(9_000_000) + b"Ns."),
    "a legacy pickle of 9 MB": lambda: legacy_bytes({"w": "x" * 9_000_000}, []),
    "2,000 views of one storage": lambda: in_zip(
        pickled({f"{i:04d}": rebuild(storage(BASE, "0"), (6,), (1,)) for i in range(2000)})
    ),
}
