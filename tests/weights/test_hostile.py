"""Files of strangers: read exactly, or refused in one line; nothing else happens, whatever is in them."""

import io
import json
import math
import os
import pickle
import random
import socket
import struct
import subprocess
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from numpy.lib.stride_tricks import as_strided

from tests.fuzz import watch
from tests.fuzz.bombs import BOMBS
from tests.fuzz.mutate import mutate
from tests.fuzz.pickles import PICKLES
from tests.fuzz.seeds import HOSTILE, VALID
from tests.weights.files import FORMATS, KINDS, pickled, rebuild, storage, zip_bytes
from tljax.core.errors import UserError
from tljax.weights.torch_file import read_state_dict
from tljax.weights.weights_file import load_weights

TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I8": "int8", "BOOL": "bool"}
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda name: name.isprintable() and not name.startswith(("module.", "__"))
)


def contents(kind: str, shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    """Any bits at all; of truths, those that NumPy has."""
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    size = int(np.prod(shape)) * dtype.itemsize
    return st.binary(min_size=size, max_size=size).map(
        lambda bits: np.frombuffer(bytes(b % 2 for b in bits) if kind == "bool" else bits, dtype).reshape(shape)
    )


ARRAYS = st.tuples(st.sampled_from(list(KINDS)), array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)).flatmap(
    lambda given: contents(*given)
)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "weights.pth"


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> watch.Watch:
    folder = tmp_path_factory.mktemp("watched")
    return watch.Watch(folder, read_state_dict, lambda path: load_weights(path, "resnet18"))


def read(path: Path, content: bytes) -> dict[str, np.ndarray]:
    path.write_bytes(content)
    return read_state_dict(path)


@pytest.mark.parametrize("kind", FORMATS)
@given(tensors=st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=4))
def test_what_was_written_is_what_is_read_to_the_last_bit(path, kind, tensors):
    found = read(path, FORMATS[kind](tensors))
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
        assert not found[name].flags.writeable


@given(
    count=st.integers(0, 30),
    axes=st.lists(st.tuples(st.integers(-2, 6), st.integers(-3, 12)), max_size=4),
    offset=st.integers(-2, 12),
    huge=st.sampled_from([0, 0, 0, 2**31, 2**62, 2**63 - 1, 2**64]),
    place=st.integers(0, 8),
)
def test_a_view_is_read_where_every_index_lies_in_its_storage_and_refused_elsewhere(
    path, count, axes, offset, huge, place
):
    base = np.arange(count, dtype=np.float32)
    numbers = [offset, *(n for n, _ in axes), *(step for _, step in axes)]
    if huge:
        numbers[place % len(numbers)] = huge
    offset, shape, stride = numbers[0], numbers[1 : 1 + len(axes)], numbers[1 + len(axes) :]
    content = zip_bytes(pickled({"w": rebuild(storage(base, "0"), shape, stride, offset)}), {"0": base.tobytes()})
    numel = math.prod(shape)
    if min(numbers) >= 0 and max(numbers) < 2**63 and 0 < numel <= count:
        places = [offset + sum(i * n for i, n in zip(at, stride, strict=True)) for at in np.ndindex(*shape)]
        if max(places) < count:
            np.testing.assert_array_equal(read(path, content)["w"], base[places].reshape(shape))
            return
    try:
        found = read(path, content)["w"]
    except UserError:
        return
    assert found.size == 0 and min(numbers) >= 0


@given(
    tensors=st.dictionaries(NAMES, ARRAYS.filter(lambda a: a.dtype.name in TYPES.values()), min_size=1, max_size=3),
    place=st.tuples(st.integers(0, 2), st.sampled_from(["dtype", "shape", "data_offsets", "none"]), st.integers(0, 3)),
    value=st.one_of(st.integers(-3, 40), st.sampled_from([*TYPES, "F4", None, 2**63, 2**64, 1.0, "1", [], {}])),
    tail=st.sampled_from([b"", b"", b"x"]),
)
def test_safetensors_are_read_as_the_library_reads_them_and_refused_where_it_refuses(path, tensors, place, value, tail):
    content = safetensors.numpy.save(tensors)
    length = struct.unpack("<Q", content[:8])[0]
    header, values = json.loads(content[8 : 8 + length]), content[8 + length :]
    index, field, axis = place
    entry = header[list(header)[index % len(header)]]
    if field == "dtype":
        entry[field] = value
    elif field != "none" and axis < len(entry[field]):
        entry[field][axis] = value
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + values + tail
    try:
        wanted = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError):  # the last is NumPy's, of a shape beyond it
        with pytest.raises(UserError):
            read(path, content)
        return
    found = read(path, content)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_every_hostile_kind_is_refused_in_one_line_and_does_nothing(watched):
    outcomes = {name: watched.attempt(content) for name, content in HOSTILE.items()}
    assert {name: o.losses for name, o in outcomes.items() if o.losses} == {}
    assert [name for name, o in outcomes.items() if o.arrays is not None] == []


def test_what_hostile_files_are_made_from_is_read(watched):
    outcomes = {name: watched.attempt(content) for name, content in VALID.items()}
    assert {name: o.losses for name, o in outcomes.items() if o.losses} == {}
    assert [name for name, o in outcomes.items() if o.arrays is None] == []


@given(
    content=st.sampled_from([*VALID.values(), *HOSTILE.values()]), seed=st.integers(0, 2**32), times=st.integers(1, 4)
)
@settings(max_examples=500)
def test_any_mutation_is_read_or_refused_in_one_line_and_does_nothing(watched, content, seed, times):
    rng = random.Random(seed)

    def change(part: bytes) -> bytes:
        place = rng.randrange(len(part) + 1)
        return part[:place] + rng.randbytes(rng.choice((0, 1, 1, 8))) + part[place + rng.choice((0, 1, 1, 8)) :]

    for _ in range(times):
        content = mutate(content, rng, change)
    assert watched.attempt(content).losses == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_no_bomb_goes_off(watched, name):
    """Memory and processor time stay in proportion to the file's size."""
    assert watched.attempt(BOMBS[name]()).losses == ()


def unpickle(path: Path):
    with path.open("rb") as file:
        return pickle.load(file)


@pytest.mark.parametrize("name", [name for name, code in PICKLES.items() if b"system" in code and b"Q." not in code])
def test_the_watch_sees_and_stops_a_reader_that_unpickles(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    losses = watch.Watch(tmp_path / "in", unpickle).attempt(PICKLES[name]).losses
    assert "pickle.find_class" in losses[0]
    assert os.listdir(tmp_path) == ["in"]


def extract(path: Path):
    with zipfile.ZipFile(path) as archive:
        archive.extractall(path.parent / "out")


def swallow(path: Path):
    try:
        os.system("touch hacked")
    except BaseException:
        raise UserError(f"{path} is bad") from None


def spin(path: Path):
    began = time.thread_time()
    while time.thread_time() - began < 0.1:
        pass


def outside(path: Path):
    array = read_state_dict(path)["bn1.bias"]
    return {"w": as_strided(array, (2,), (8,), writeable=False)}


@pytest.mark.parametrize(
    "reader, loss",
    [
        (lambda path: os.system("touch hacked"), "os.system"),
        (lambda path: subprocess.run(["touch", "hacked"]), "subprocess.Popen"),
        (lambda path: os.execv("/bin/true", ["true"]), "os.exec"),
        (lambda path: os.remove(path), "os.remove"),
        (lambda path: (path.parent / "hacked").write_text("x"), "open"),
        (lambda path: Path("/dev/null").read_bytes(), "open"),
        (lambda path: path.open("r+b"), "open"),
        (lambda path: io.FileIO(0, closefd=False), "open"),
        (lambda path: os.listdir("/"), "os.listdir"),
        (lambda path: socket.socket(), "socket.__new__"),
        (lambda path: __import__("pydoc_data.topics"), "import"),
        (lambda path: eval("1 + 1"), "compile"),
        (extract, "os.mkdir"),
        (swallow, "os.system"),
        (lambda path: bytearray(10_000_000), "bytes of memory"),
        (lambda path: np.ones(10_000_000), "bytes of memory"),
        (lambda path: int("x"), "ValueError instead of UserError"),
        (lambda path: exec("raise SystemExit", {}), "compile"),
        (lambda path: (_ for _ in ()).throw(SystemExit()), "SystemExit instead of UserError"),
        (lambda path: (_ for _ in ()).throw(UserError("is bad")), "no line about the file"),
        (lambda path: (_ for _ in ()).throw(UserError(f"{path} {'x' * 500}")), "characters"),
        (lambda path: {"w": np.zeros(3)}, "can be written to"),
        (lambda path: {"w": np.frombuffer(bytes(8))}, "outside of the file"),
        (outside, "outside of the file"),
        (spin, "s of processor time"),
    ],
)
def test_the_watch_sees_whatever_else_a_reader_may_not_do(tmp_path, monkeypatch, reader, loss):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watch, "SECONDS", 0.05)
    (tmp_path / "in").mkdir()
    found = watch.Watch(tmp_path / "in", reader).attempt(VALID["zip"])
    assert found.arrays is None or "file" in loss
    assert any(loss in said for said in found.losses), found.losses
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == ["weights.pth"]
