"""Reading torch's files without torch, whatever is in them."""

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.weights.files import (
    FORMATS,
    KINDS,
    Call,
    Name,
    as_zip,
    example,
    legacy_bytes,
    pickled,
    rebuild,
    storage,
    zip_bytes,
)
from tljax.core.errors import UserError
from tljax.weights.torch_file import read_state_dict


def write(folder: Path, content: bytes, name: str = "weights.pth") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refusal(folder: Path, content: bytes) -> str:
    """The reason a file is refused for, checked to be one line that names it."""
    path = write(folder, content)
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert message.isprintable()
    assert len(message) < 400
    return message.removeprefix(f"{path} ")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])  # the name says nothing
@pytest.mark.parametrize("kind", FORMATS)
def test_reads_each_format(tmp_path, kind, name):
    arrays = example()
    found = read_state_dict(write(tmp_path, FORMATS[kind](arrays), name))
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype
        assert found[key].shape == array.shape
        np.testing.assert_array_equal(found[key], array)
        assert not found[key].flags.writeable


def test_reads_safetensors_of_any_length_of_header(tmp_path):
    """A length of 128 begins with the byte that a pickle begins with."""
    values = np.arange(6, dtype=np.float32)
    for length in range(64, 640, 8):
        header = b'{"w":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'.ljust(length)
        content = struct.pack("<Q", length) + header + values.tobytes()
        np.testing.assert_array_equal(read_state_dict(write(tmp_path, content))["w"], values)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_truncation_is_refused(tmp_path, kind):
    content = FORMATS[kind]({"w": np.arange(6.0, dtype=np.float32), "b": np.ones(2, np.float32)})
    if kind == "tar":  # what follows the last member's bytes is padding
        content = content[: content.rindex(struct.pack("<qqq", 2, 1, 0)) + 24]
    for length in range(len(content)):
        refusal(tmp_path, content[:length])


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_are_refused_or_read(tmp_path, kind):
    content, rng = FORMATS[kind]({"w": np.arange(6.0, dtype=np.float32), "b": np.ones(2, np.float32)}), random.Random(0)
    path, lines = tmp_path / "x.pth", []
    for _ in range(1500):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            damaged[rng.randrange(len(damaged))] = rng.choice((rng.randrange(256), 0, 255, 127))
        path.write_bytes(damaged)
        try:
            found = read_state_dict(path)
        except UserError as refused:
            lines.append(str(refused))
        else:
            assert sum(a.nbytes for a in found.values()) <= len(content)
    assert len(lines) > 100
    assert all(line.isprintable() for line in lines)


def test_views_offsets_and_transposes(tmp_path):
    base = np.arange(12, dtype=np.float32)
    tree = {
        "all": rebuild(storage(base, "0"), (3, 4), (4, 1)),
        "turned": rebuild(storage(base, "0"), (4, 3), (1, 4)),
        "part": rebuild(storage(base, "0"), (2, 2), (4, 2), 3),
        "none": rebuild(storage(base, "0"), (0, 5), (5, 1)),
        "scalar": rebuild(storage(base, "0"), (), (), 11),
    }
    found = read_state_dict(write(tmp_path, zip_bytes(pickled(tree), {"0": base.tobytes()})))
    np.testing.assert_array_equal(found["all"], base.reshape(3, 4))
    np.testing.assert_array_equal(found["turned"], base.reshape(3, 4).T)
    np.testing.assert_array_equal(found["part"], [[3, 5], [7, 9]])
    assert found["none"].shape == (0, 5)
    assert found["scalar"].shape == ()
    assert found["scalar"] == 11
    assert np.shares_memory(found["all"], found["part"])  # nothing was copied


def test_legacy_view_of_a_storage(tmp_path):
    base = np.arange(12, dtype=np.float32)
    tree = {"w": rebuild((*storage(base, "0"), ("1", 4, 6)), (2, 3), (3, 1))}
    found = read_state_dict(write(tmp_path, legacy_bytes(tree, [("0", base)])))
    np.testing.assert_array_equal(found["w"], base[4:10].reshape(2, 3))


def test_wrappers_prefixes_and_old_parameters(tmp_path):
    base = np.arange(4, dtype=np.float32)
    tensor = rebuild(storage(base, "0"), (2, 2), (2, 1))
    parameter = Name("torch.nn.parameter", "Parameter")
    ways = [
        Call(Name("torch._utils", "_rebuild_parameter"), (tensor, True, {})),
        Call(parameter, (tensor,), (True, False, {})),
        Call(parameter, (), (tensor, None, {}, True, False)),
        rebuild(storage(base, "0"), (2, 2), (2, 1)),
    ]
    for i, way in enumerate(ways):
        inner = Call(Name("collections", "OrderedDict"), (), {"_metadata": {}})
        for tree in ({"module.w": way}, {"epoch": 3, "state_dict": {"module.w": way}}, {"model": {"w": way}}):
            found = read_state_dict(write(tmp_path, zip_bytes(pickled(tree), {"0": base.tobytes()}), f"{i}.pth"))
            np.testing.assert_array_equal(found["w"], base.reshape(2, 2))
        assert "holds no tensors" in refusal(tmp_path, zip_bytes(pickled(inner), {}))


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (dict(shape=(5,), stride=(1,)), "does not fit its storage of 4"),
        (dict(shape=(2, 2), stride=(3, 1)), "does not fit its storage of 4"),
        (dict(shape=(4,), stride=(1,), offset=1), "does not fit its storage of 4"),
        (dict(shape=(2,), stride=(2**62,)), "does not fit its storage of 4"),
        (dict(shape=(2**40, 2**40), stride=(0, 0)), "does not fit its storage of 4"),  # a giant of one stored number
        (dict(shape=(4,), stride=(-1,), offset=3), "impossible shape, stride or offset"),
        (dict(shape=(-4,), stride=(1,)), "impossible shape, stride or offset"),
        (dict(shape=(4,), stride=(1,), offset=-1), "impossible shape, stride or offset"),
        (dict(shape=(4,), stride=(1, 1)), "impossible shape, stride or offset"),
        (dict(shape=(1,) * 9, stride=(1,) * 9), "9 axes"),
        (dict(shape=("4",), stride=(1,)), "not made of integers"),
        (dict(shape=(0, 2**62, 2**62), stride=(1, 1, 1)), "truncated or not a file of weights"),
    ],
)
def test_impossible_tensors_are_refused(tmp_path, arguments, reason):
    base = np.arange(4, dtype=np.float32)
    tree = {"w": rebuild(storage(base, "0"), **arguments)}
    assert reason in refusal(tmp_path, zip_bytes(pickled(tree), {"0": base.tobytes()}))


@pytest.mark.parametrize("numel", [3, 5, 2**60, -1])
def test_a_storage_of_another_size_than_said(tmp_path, numel):
    base = np.arange(4, dtype=np.float32)
    tree = {"w": rebuild(storage(base, "0", numel=numel), (4,), (1,))}
    assert "storage" in refusal(tmp_path, zip_bytes(pickled(tree), {"0": base.tobytes()}))


def test_odd_zip_files(tmp_path):
    base = np.arange(4, dtype=np.float32)
    tree = pickled({"w": rebuild(storage(base, "0"), (4,), (1,))})
    assert "compressed" in refusal(tmp_path, zip_bytes(tree, {"0": base.tobytes()}, method=zipfile.ZIP_DEFLATED))
    assert "big-endian" in refusal(tmp_path, zip_bytes(tree, {"0": base.tobytes()}, byteorder=b"big"))
    assert "the storage of w is missing" in refusal(tmp_path, zip_bytes(tree, {}))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("word/document.xml", "hello")
    assert "lacks data.pkl" in refusal(tmp_path, out.getvalue())
    whole = bytearray(zip_bytes(tree, {"0": base.tobytes()}))
    whole[whole.index(base.tobytes())] ^= 1
    assert "checksum" in refusal(tmp_path, bytes(whole))
    central, local = whole.rindex(b"PK\x01\x02"), whole.rindex(b"PK\x03\x04")  # torch can be told not to compute it
    whole[central + 16 : central + 20] = whole[local + 14 : local + 18] = bytes(4)
    assert read_state_dict(write(tmp_path, bytes(whole)))["w"].shape == (4,)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"some text", "neither a PyTorch file nor safetensors"),
        (pickle.dumps({"a": 1}), "not one of PyTorch's"),
        (b"\x80\x02]q\x00.", "not one of PyTorch's"),
        (struct.pack("<Q", 2**63) + b"{}", "truncated"),
        (struct.pack("<Q", 2) + b"{}", "holds no tensors"),
        (struct.pack("<Q", 100_001) + b"{" + b'"a":[' * 20_000, "truncated or not a file of weights"),
        (struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995, "truncated or not a file of weights"),
    ],
)
def test_other_files(tmp_path, content, reason):
    assert reason in refusal(tmp_path, content)


@pytest.mark.parametrize(
    "entry, reason",
    [
        ('{"dtype":"F32","shape":[2],"data_offsets":[0,4]}', "shape [2] in 4 bytes"),
        ('{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}', "storage"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}', "shape [1]"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[4,8]}', "truncated"),
        ('{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}', "F8_E4M3"),
        ('{"dtype":"F32","shape":[1]}', "unknown way"),
        ('{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}', "not made of integers"),
    ],
)
def test_hostile_safetensors(tmp_path, entry, reason):
    header = f'{{"w":{entry}}}'.encode()
    assert reason in refusal(tmp_path, struct.pack("<Q", len(header)) + header + bytes(4))


HOSTILE = {
    "posix.system": Call(Name("posix", "system"), ("touch hacked",)),
    "builtins.eval": Call(Name("builtins", "eval"), ("open('hacked', 'w')",)),
    "builtins.getattr": Call(Name("builtins", "getattr"), (Name("os", "system"), "x")),
    "torch.load": Call(Name("torch", "load"), ("x",)),
    "torch._utils._rebuild_tensor_v2.__globals__": Name("torch._utils", "_rebuild_tensor_v2.__globals__"),
    "collections.OrderedDict.fromkeys": Call(Name("collections", "OrderedDict.fromkeys"), ("x",)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ["zip", "legacy", "first pickle", "nested"])
def test_hostile_calls_are_refused_by_name_and_do_nothing(tmp_path, monkeypatch, name, form):
    monkeypatch.chdir(tmp_path)
    payload = HOSTILE[name]
    content = {
        "zip": lambda: zip_bytes(pickled({"w": payload}), {}),
        "legacy": lambda: legacy_bytes(payload, []),
        "first pickle": lambda: pickled(payload),
        "nested": lambda: zip_bytes(pickled({"state_dict": [({"w": (payload,)},)]}), {}),
    }[form]()
    assert f"asks to call {name}, which is refused" in refusal(tmp_path, content)
    assert os.listdir(tmp_path) == ["weights.pth"]


def test_pickles_by_python_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self):
            return os.system, ("touch hacked",)

    for protocol in range(6):
        reason = refusal(tmp_path, zip_bytes(pickle.dumps({"w": Evil()}, protocol), {}))
        assert "which is refused" in reason if protocol > 1 else "no file of weights needs" in reason
    assert os.listdir(tmp_path) == ["weights.pth"]


@pytest.mark.parametrize(
    "code, reason",
    [
        (b"\x80\x02r\x00\x00\x00\x00.", "stack runs empty"),
        (b"}r\xff\xff\xff\x7f.", "as number 2147483647"),  # a memo of 2**31 entries in an unpickler that indexes
        (b"X\xff\xff\xff\xffab", "truncated"),
        (b"\x8d" + b"\xff" * 8, "truncated"),
        (b"\x8b\xff\xff\xff\x7f", "integer"),
        (b"(.", "a mark where"),
        (b")" + b"\x85" * 200_000 + b".", "not a state_dict"),
        (b"}" + b")" + b"\x85" * 200_000 + b"Ns.", "key that is a tuple"),  # whose hash would overflow the C stack
        (b"}(K\x01u.", "no dict"),
        (b"}K\x01K\x02u.", "stack runs empty"),
        (b"K\x01K\x02K\x03s.", "no dict"),
        (b"K\x01K\x02a.", "no list"),
        (b"h\x05.", "never stored"),
        (b"ccollections\nOrderedDict\n}b.", "set the state"),
        (b"K\x01)R.", "asks to call a int"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "with 0 arguments"),
        (b"ctorch\nFloatStorage\n)R.", "asks to call torch.FloatStorage"),
        (b"K\x01K\x02\x93.", "without a name"),
        (b"ccollections\nOrderedDict\n" + b"(]t" + b"R.", "unusual way"),
        (b"N" * 1_000_001, "more than"),
        (b"Nc" + b"a" * 5000 + b"\nb\n.", "aaa..."),
        (b"c\xff\x00\n\x1b[31m\n.", r"\x1b[31m"),
        (b"i.", "instruction"),
        (b"K\x01Q.", "unknown way"),
        (b"K\x01.", "holds a int, not a state_dict"),
        (b"}X\x01\x00\x00\x00wK\x01s.", "under w"),
    ],
)
def test_hostile_instructions(tmp_path, code, reason):
    assert reason in refusal(tmp_path, zip_bytes(code, {}))


def test_a_wrapper_inside_itself(tmp_path):
    assert "no state_dict of tensors" in refusal(tmp_path, zip_bytes(b"}q\x00X\x05\x00\x00\x00modelh\x00s.", {}))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_state_dict(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_state_dict(tmp_path)


def test_reading_imports_no_torch(tmp_path):
    path = write(tmp_path, as_zip(example()))
    code = (
        "import sys; sys.modules['torch'] = None; from tljax.weights.torch_file import read_state_dict; "
        f"print(len(read_state_dict({str(path)!r})), 'tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(len(example())), "False", "False"]


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name, count, numbers",
    [("squeezenet1_0-imagenet.pth", 52, 1_248_424), ("resnet18_to_layer3-imagenet.pth", 92, 3_300_279)],
)
def test_real_files(shared, tmp_path, name, count, numbers):
    path = shared / "data" / name
    arrays = read_state_dict(path)
    assert (len(arrays), sum(a.size for a in arrays.values())) == (count, numbers)
    assert all(np.isfinite(a).all() for a in arrays.values())
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 100_000, 5000, 60, 3):
        refusal(tmp_path, content[:length])
    damaged = bytearray(content)
    largest = max(arrays.values(), key=lambda a: a.size)
    damaged[content.index(largest.tobytes()) + 5000] ^= 1
    assert "checksum" in refusal(tmp_path, bytes(damaged))


@pytest.mark.peer
@pytest.mark.parametrize("modern", [True, False])
def test_files_by_torch_itself(tmp_path, modern):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = net.state_dict()
    base = torch.arange(24.0)
    state.update({f"x.{kind}": torch.tensor([0, 1, 5, 3]).to(getattr(torch, kind)) for kind in KINDS})
    state.update({"turned": base.reshape(4, 6).T, "part": base[3:9].reshape(2, 3)[:, 1:], "scalar": torch.tensor(2.5)})
    ways = {
        "plain": state,
        "wrapped": {"state_dict": state, "epoch": 3, "loss": 0.1},
        "parameters": dict(net.named_parameters()),
        "dropped": {f"module.{k}": v for k, v in state.items()},
    }
    for name, value in ways.items():
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=modern)
        found = read_state_dict(tmp_path / name)
        wanted = value if name == "parameters" else state
        assert list(found) == list(wanted)
        for key, tensor in wanted.items():
            assert found[key].dtype.name == str(tensor.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(found[key].astype(np.float64), tensor.detach().double().numpy())
    torch.save(net, tmp_path / "module", _use_new_zipfile_serialization=modern)
    with pytest.raises(UserError, match=r"asks to call torch\.nn\.modules\.container\.Sequential"):
        read_state_dict(tmp_path / "module")


@pytest.mark.peer
def test_torch_reads_our_imitations(tmp_path):
    """So the hand-made files above are what torch would accept."""
    torch = pytest.importorskip("torch")
    arrays = {k: v for k, v in example().items() if v.dtype.name != "bfloat16"}
    for kind in ("zip", "legacy", "tar"):
        path = write(tmp_path, FORMATS[kind](arrays))
        found = torch.load(path, weights_only=kind != "tar")
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key].numpy(), array)
