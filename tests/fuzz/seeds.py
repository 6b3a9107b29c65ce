"""What a stranger might send: small files of every hostile kind, from which the fuzzer starts.

`VALID` is to be read, `HOSTILE` to be refused.
"""

import io
import pickle
import struct
import tarfile
import zipfile
from typing import Any

import numpy as np
import safetensors.numpy as safetensors_numpy

from tests.fuzz.pickles import BASE, PICKLES, TENSOR
from tests.weights.files import FORMATS, Call, Name, as_tar, legacy_bytes, pickled, rebuild, storage, zip_bytes

SMALL = {"layer1.0.conv1.weight": BASE.reshape(1, 2, 3, 1), "bn1.bias": np.ones(2, np.float16)}


def in_zip(code: bytes, **storages: bytes) -> bytes:
    return zip_bytes(code, storages or {"0": BASE.tobytes()})


ORDERED = Name("collections", "OrderedDict")
PARAMETER = Call(Name("torch._utils", "_rebuild_parameter"), (TENSOR, True, Call(ORDERED, ())))
VALID = {name: write(SMALL) for name, write in FORMATS.items()}
VALID["safetensors of tljax"] = safetensors_numpy.save(
    {"params/conv1/kernel": BASE}, {"format": "tljax", "arch": "resnet18"}
)
VALID["safetensors of no architecture of ours"] = safetensors_numpy.save(
    {"params/conv1/kernel": BASE}, {"format": "tljax", "arch": "\x1b[2J\r\n"}
)
VALID["zip of a training script"] = in_zip(
    pickled(
        {
            "epoch": 3,
            "best": None,
            "other": Call(ORDERED, (), {"_metadata": {"": {"version": 1}}}),
            "model": {"module.w": PARAMETER, "module.turned": rebuild(storage(BASE, "0"), (3, 2), (1, 3))},
            "optimizer": {"state": {0: {"momentum_buffer": TENSOR}}, "param_groups": [{"lr": 1, "params": [0]}]},
        }
    )
)
VALID["legacy with a view"] = legacy_bytes(
    {"w": rebuild((*storage(BASE, "0"), ("1", 2, 3)), (3,), (1,))}, [("0", BASE)]
)


def tensor(**given: Any) -> bytes:
    """A zip of one tensor over BASE, with something wrong."""
    return in_zip(pickled({"w": rebuild(storage(BASE, "0"), **{"shape": (6,), "stride": (1,), **given})}))


def safetensors(header: str | bytes, values: bytes = bytes(24), length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + values


def entry(shape: str, start: int, end: int, kind: str = "F32") -> str:
    return f'{{"dtype":"{kind}","shape":{shape},"data_offsets":[{start},{end}]}}'


def tar(*members: tuple[str, bytes, bytes], **given: Any) -> bytes:
    """Members as (name, content, type), with attributes of TarInfo."""
    out = io.BytesIO()
    for name, content, kind in members:
        info = tarfile.TarInfo(name)
        info.size, info.type = len(content), kind
        for attribute, value in given.items():
            setattr(info, attribute, value)
        out.write(info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE))
    return out.getvalue() + bytes(2 * tarfile.BLOCKSIZE)


def zip_of(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive._didModify, archive.NameToInfo = True, {}  # type: ignore[attr-defined]  # no warning of names twice
            archive.writestr(info, content)
    return out.getvalue()


def with_directory(body: bytes, *entries: tuple[Any, ...], extra: bytes = b"", mode: int = 0) -> bytes:
    """A zip of which only the directory is made.

    Args:
      body: what comes before.
      entries: each as name, where its header is, size, and perhaps a checksum.
      extra: of every entry.
      mode: likewise.
    """
    directory = []
    for name, where, size, *crc in entries:
        numbers = (20, 3, 20, 0, 0, 0, 0, 33, *(crc or [0]), size, size)
        lengths = (len(name), len(extra), 0, 0, 0, mode << 16, where)
        directory += [b"PK\x01\x02", struct.pack("<4B4H3L5H2L", *numbers, *lengths), name.encode(), extra]
    count, size = min(len(entries), 0xFFFF), sum(map(len, directory))
    return body + b"".join(directory) + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, len(body), 0)


TENSORS: dict[str, dict[str, Any]] = {
    "a negative stride": dict(stride=(-1,), offset=5),
    "negative strides of two axes": dict(shape=(2, 3), stride=(-3, -1), offset=5),
    "a negative shape": dict(shape=(-6,)),
    "negative shapes with a positive product": dict(shape=(-2, -3), stride=(3, 1)),
    "a negative offset": dict(offset=-1),
    "an offset behind the end": dict(offset=1),
    "an offset of 2 ** 62": dict(offset=2**62),
    "a stride of 2 ** 62": dict(shape=(2,), stride=(2**62,)),
    "a stride of 0": dict(shape=(2**40,), stride=(0,)),
    "a giant of one number": dict(shape=(2**31, 2**31), stride=(0, 0)),
    "a product of 2 ** 64": dict(shape=(2**32, 2**32), stride=(1, 1)),
    "a product that wraps around to 6": dict(shape=(11, 6 * pow(11, -1, 2**64) % 2**64), stride=(0, 0)),
    "a product of 2 ** 128": dict(shape=(2**32,) * 4, stride=(0,) * 4),
    "rows that overlap": dict(shape=(5, 5), stride=(1, 1)),
    "more strides than axes": dict(stride=(1, 1)),
    "300 axes": dict(shape=(1,) * 300, stride=(1,) * 300),
    "an empty giant": dict(shape=(0, 2**62, 2**62), stride=(1, 1, 1)),
    "integers of 128 bits": dict(shape=(2**120,), stride=(2**120,)),
}
BODY = zip_of(("a", b"N."))[:33]  # one entry, and no directory
ZIPS = {
    "an entry above the folder": zip_of(("../data.pkl", b"cos\nsystem\n.")),
    "an entry of the root": zip_of(("/data.pkl", b"N."), ("/etc/passwd", b"x")),
    "two pickles": zip_of(("a/data.pkl", b"}."), ("b/data.pkl", b"}.")),
    "a name twice": zip_of(("a/data.pkl", b"}."), ("a/data.pkl", b"cos\nsystem\n.")),
    "a storage twice": zip_of(
        ("a/data.pkl", pickled({"w": TENSOR})),
        *(("a/data/0", values) for values in (BASE.tobytes(), bytes(24))),
    ),
    "nothing": zip_of(),
    "a pickle of no bytes": zip_of(("a/data.pkl", b"")),
    "a compressed pickle": zip_of(("a/data.pkl", bytes(60_000)), method=zipfile.ZIP_DEFLATED),
    "LZMA": zip_of(("a/data.pkl", bytes(60_000)), method=zipfile.ZIP_LZMA),
    "a zip in a zip": zip_of(("a/data.pkl", VALID["zip"])),
    "a tar in a zip": zip_of(("a/data.pkl", VALID["tar"])),
    "entries that are one": with_directory(BODY, ("a/data.pkl", 0, 2), ("a/data/0", 0, 2)),
    "an entry that holds the directory": with_directory(BODY, ("a/data.pkl", 0, 80)),
    "an entry before the beginning": with_directory(BODY, ("a/data.pkl", 2**31, 2)),
    "an entry of 4 GB": with_directory(BODY, ("a/data.pkl", 0, 2**32 - 2)),
    "an entry of 2 ** 64 bytes": with_directory(
        BODY, ("a/data.pkl", 0, 2**32 - 1), extra=struct.pack("<HHQQ", 1, 16, 2**64 - 1, 2**64 - 1)
    ),
    "a symbolic link": with_directory(BODY, ("a/data.pkl", 0, 2), mode=0o120777),
    "a directory before the beginning": VALID["zip"][:-6] + struct.pack("<L", 2**32 - 2) + bytes(2),
    "a directory of 4 GB": VALID["zip"][:-10] + struct.pack("<LL", 2**32 - 2, 0) + bytes(2),
    "big-endian": zip_bytes(b"}.", {}, byteorder=b"big"),
}
TARS = {
    "a symbolic link": tar(("storages", b"", tarfile.SYMTYPE), ("pickle", b"N.", b"0"), linkname="/etc/passwd"),
    "a hard link": tar(*((name, b"", tarfile.LNKTYPE) for name in ("storages", "tensors", "pickle"))),
    "a member above the folder": tar(("../../../tmp/hacked", b"x", b"0")),
    "a device": tar(("pickle", b"", tarfile.CHRTYPE), ("storages", b"", tarfile.FIFOTYPE)),
    "a member twice": tar(*((name, b"K\x00.].", b"0") for name in ("storages", "tensors", "pickle", "pickle"))),
    "a hostile pickle": tar(
        ("storages", b"K\x00.].", b"0"), ("tensors", b"K\x00.", b"0"), ("pickle", b"cos\nsystem\n(tR.", b"0")
    ),
    "hostile storages": tar(
        ("storages", b"cos\nsystem\n(tR.", b"0"), ("tensors", b"K\x00.", b"0"), ("pickle", b"}.", b"0")
    ),
    "2 ** 31 storages": tar(
        ("storages", b"J\xff\xff\xff\x7f.", b"0"), ("tensors", b"K\x00.", b"0"), ("pickle", b"}.", b"0")
    ),
    "a name that goes on": tar(*(("long", b"x" * 100, tarfile.GNUTYPE_LONGNAME) for _ in range(20))),
    "a global header": tar(("g", b"11 size=99\n13 path=../x\n", tarfile.XGLTYPE), ("pickle", b"N.", b"0")),
    "a sparse file": tar(("pickle", b"N.", tarfile.GNUTYPE_SPARSE)),
    "a size below 0": tar(("pickle", b"N.", b"0"))[:124] + b"\xff" * 12 + tar(("pickle", b"N.", b"0"))[136:],
    "a wrong checksum": b"x" + VALID["tar"][1:],
    "text as a tensor": as_tar(SMALL).replace(struct.pack("<ii", 4, 0), struct.pack("<ii", -4, 0)),
    "8 axes and no more bytes": as_tar(SMALL).replace(struct.pack("<ii", 1, 0), struct.pack("<ii", 2**31 - 1, 0)),
}
SAFETENSORS = {
    "a header of 2 ** 63 bytes": safetensors("{}", length=2**63),
    "a header of 2 ** 64 - 8 bytes": safetensors("{}", length=2**64 - 8),
    "a header behind the end": safetensors("{}", b"", length=3),
    "a header cut short": safetensors(f'{{"w":{entry("[6]", 0, 24)}}}', length=20),
    "no header": safetensors("{", b""),
    "a header in UTF-16": safetensors('{"w":1}'.encode("utf-16-le")),
    "a header that is no text": safetensors(b'{"\xff\xfe":1}'),
    "tensors that overlap": safetensors(f'{{"a":{entry("[4]", 0, 16)},"b":{entry("[4]", 8, 24)}}}'),
    "tensors that are one": safetensors(f'{{"a":{entry("[6]", 0, 24)},"b":{entry("[6]", 0, 24)}}}'),
    "a hole": safetensors(f'{{"a":{entry("[1]", 0, 4)},"b":{entry("[4]", 8, 24)}}}'),
    "bytes behind the end": safetensors(f'{{"a":{entry("[1]", 0, 4)}}}'),
    "offsets behind the end": safetensors(f'{{"a":{entry("[6]", 8, 32)}}}'),
    "offsets of 2 ** 70": safetensors(f'{{"a":{entry("[6]", 2**70, 2**70 + 24)}}}'),
    "offsets the wrong way": safetensors(f'{{"a":{entry("[-6]", 24, 0)}}}'),
    "offsets below 0": safetensors(f'{{"a":{entry("[6]", -8, 16)}}}'),
    "a shape of another size": safetensors(f'{{"a":{entry("[7]", 0, 24)}}}'),
    "a type of another size": safetensors(f'{{"a":{entry("[6]", 0, 24, "F64")}}}'),
    "a type of no name": safetensors(f'{{"a":{entry("[6]", 0, 24, "F4_X")}}}'),
    "a shape of halves": safetensors(f'{{"a":{entry("[6.0]", 0, 24)}}}'),
    "a shape of infinity": safetensors(f'{{"a":{entry("[Infinity]", 0, 24)}}}'),
    "a shape of 4,300 digits": safetensors(f'{{"a":{entry("[" + "9" * 4300 + "]", 0, 24)}}}'),
    "a number of 4,301 digits": safetensors(f'{{"a":{entry("[" + "9" * 4301 + "]", 0, 24)}}}'),
    "a product of 2 ** 64": safetensors(f'{{"a":{entry(f"[{2**32},{2**32}]", 0, 0)}}}', b""),
    "a shape of 2,000 twos": safetensors(f'{{"a":{entry(str([2] * 2000), 0, 24)}}}'),
    "an empty giant": safetensors(f'{{"a":{entry(f"[0,{2**62},{2**62}]", 0, 0)}}}', b""),
    "a name twice": safetensors(f'{{"a":{entry("[6]", 0, 24)},"a":{entry("[6]", 0, 24)}}}'),
    "a key twice": safetensors('{"a":{"dtype":"F32","dtype":"I32","shape":[6],"data_offsets":[0,24]}}'),
    "no tensors": safetensors("{}", b""),
    "metadata alone": safetensors('{"__metadata__":{"a":"b"}}', b""),
    "metadata that is no text": safetensors(f'{{"__metadata__":{{"a":[1]}},"a":{entry("[6]", 0, 24)}}}'),
    "metadata that is a list": safetensors(f'{{"__metadata__":[],"a":{entry("[6]", 0, 24)}}}'),
    "2,000 brackets": safetensors('{"a":' + "[" * 2000, b""),
    "2,000 braces": safetensors('{"a":' * 2000, b""),
    "a name of control characters": safetensors(f'{{"\\u001b[2J\\r\\n":{entry("[6]", 0, 24)}}}'),
    "a name of one half of a pair": safetensors(f'{{"\\ud800":{entry("[6]", 0, 24)}}}'),
    "a name of 300 characters": safetensors(f'{{"{"w" * 300}":{entry("[6]", 0, 24)}}}'),
}
OTHERS = {
    "a pickle of Python": pickle.dumps({"a": 1}),
    "a magic number of another length": b"\x80\x02\x8a\x11" + b"\xff" * 17 + b".",
    "a legacy version of 2 ** 40 leaves": b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02)" + b"2\x86" * 40 + b".",
    "a legacy file on a big-endian machine": legacy_bytes({}, []).replace(b"\x88", b"\x89", 1),
    "a legacy storage of -1 numbers": legacy_bytes(
        {"w": rebuild((*storage(BASE, "0"), None), (6,), (1,))}, [("0", BASE)]
    ).replace(struct.pack("<q", 6), struct.pack("<q", -1)),
    "a legacy storage of 2 ** 61 numbers": legacy_bytes(
        {"w": rebuild((*storage(BASE, "0"), None), (6,), (1,))}, [("0", BASE)]
    ).replace(struct.pack("<q", 6), struct.pack("<q", 2**61)),
    "a legacy view behind its storage": legacy_bytes(
        {"w": rebuild((*storage(BASE, "0"), ("1", 4, 6)), (6,), (1,))}, [("0", BASE)]
    ),
    "a legacy view before its storage": legacy_bytes(
        {"w": rebuild((*storage(BASE, "0"), ("1", -4, 6)), (6,), (1,))}, [("0", BASE)]
    ),
    "nothing": b"",
    "one byte": b"\x80",
    "zeros": bytes(1000),
    "a web page": b"<!DOCTYPE html>",
    "gzip": b"\x1f\x8b\x08" + bytes(50),
}
HOSTILE: dict[str, bytes] = {
    **{f"zip: pickle: {name}": in_zip(code) for name, code in PICKLES.items()},
    **{f"legacy: first pickle: {name}": b"\x80\x02" + code for name, code in PICKLES.items()},
    **{
        f"legacy: fourth pickle: {name}": legacy_bytes(None, []).replace(b"\x80\x02N.", b"\x80\x02" + code)
        for name, code in PICKLES.items()
    },
    **{f"zip: tensor: {name}": tensor(**given) for name, given in TENSORS.items()},
    **{
        f"legacy: tensor: {name}": legacy_bytes(
            {"w": rebuild((*storage(BASE, "0"), None), **{"shape": (6,), "stride": (1,), **given})}, [("0", BASE)]
        )
        for name, given in TENSORS.items()
    },
    **{f"zip: {name}": content for name, content in ZIPS.items()},
    **{f"tar: {name}": content for name, content in TARS.items()},
    **{f"safetensors: {name}": content for name, content in SAFETENSORS.items()},
    **OTHERS,
}
