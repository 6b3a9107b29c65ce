"""Tables of weights, the cache, and downloads from a server that behaves badly."""

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tljax.core.errors import UserError
from tljax.weights import hub
from tljax.weights.hub import FILES, V1, V2, check_hash, hash_in_name, preprocessing, resolve
from tljax.weights.weights_file import save_weights

CONTENT = bytes(range(256)) * 4096  # 1 MiB
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Server(ThreadingHTTPServer):
    """Serves CONTENT under every name, with the manners it is given.

    Attributes:
      cuts: after how many bytes of each answer in turn the connection is cut; whole answers afterwards.
      ranges: whether Range is honoured.
      lengths: whether Content-Length is sent.
      content: what is served.
      asked: the Range of each request, '' without.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.ranges, self.lengths, self.status, self.content = True, True, 0, CONTENT
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/models"


class Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        asked, content = self.headers.get("Range", ""), self.server.content
        self.server.asked.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0  # type: ignore
        if self.server.status:
            return self.send_error(self.server.status)
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: self.server.cuts.pop(0)] if self.server.cuts else rest)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setitem(FILES["imagenet"], "net", NAME)
    with Server() as running:
        monkeypatch.setenv("TLJAX_WEIGHTS_URL", running.url)
        thread = threading.Thread(target=running.serve_forever, kwargs=dict(poll_interval=0.01))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def folder(server: Server, tmp_path: Path) -> Path:
    """The cache folder, made already."""
    path = tmp_path / "cache" / "weights"
    path.mkdir(parents=True)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_downloads_once(server, folder):
    assert resolve("imagenet", "net") == folder / NAME
    assert (folder / NAME).read_bytes() == CONTENT
    assert resolve("imagenet", "net") == folder / NAME
    assert server.asked == [""]
    assert names(folder) == [NAME]


def test_resumes_within_one_call(server, folder):
    server.cuts = [1000, 300_000]
    assert resolve("imagenet", "net").read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1000-", "bytes=301000-"]


def test_resumes_in_a_later_call(server, folder):
    server.cuts = [1000, 0, 0]
    with pytest.raises(
        UserError, match=f"^cannot download {server.url}/{NAME} .*: fetch it yourself and put it at {folder / NAME}$"
    ):
        resolve("imagenet", "net")
    assert (folder / f"{NAME}.part").read_bytes() == CONTENT[:1000]
    server.cuts = []
    assert resolve("imagenet", "net").read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1000-"
    assert names(folder) == [NAME]


def test_a_server_that_ignores_ranges_starts_over(server, folder):
    server.ranges = False
    (folder / f"{NAME}.part").write_bytes(CONTENT[:5000])
    assert resolve("imagenet", "net").read_bytes() == CONTENT
    assert server.asked == ["bytes=5000-"]


def test_a_server_without_lengths(server, folder):
    server.lengths = False
    assert resolve("imagenet", "net").read_bytes() == CONTENT


def test_a_complete_part_needs_its_name_only(server, folder):
    (folder / f"{NAME}.part").write_bytes(CONTENT)
    assert resolve("imagenet", "net").read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_too_long_starts_over(server, folder):
    (folder / f"{NAME}.part").write_bytes(CONTENT + b"more")
    assert resolve("imagenet", "net").read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", ""]


@pytest.mark.parametrize("part", [b"", b"of another file"])
def test_a_wrong_hash_is_refused_and_deleted(server, folder, part):
    if part:
        (folder / f"{NAME}.part").write_bytes(part)
    else:
        server.content = b"a login page"
    with pytest.raises(UserError, match=f"has the sha256 [0-9a-f]{{8}}..., its name says {hash_in_name(NAME)}"):
        resolve("imagenet", "net")
    assert names(folder) == []


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_server_that_refuses(server, folder, status):
    server.status = status
    with pytest.raises(UserError, match=f"the server says {status} .*put it at {folder / NAME}$"):
        resolve("imagenet", "net")
    assert len(server.asked) == 1


def test_no_server(server, folder):
    with pytest.raises(UserError, match=f"^cannot download http://127.0.0.1:9/{NAME} .*refused.* put it at {folder}"):
        resolve("imagenet", "net", base_url="http://127.0.0.1:9/")


def test_a_cache_that_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot download .*Not a directory"):
        resolve("imagenet", "net")


def test_two_processes_share_one_download(server, folder):
    code = (
        f"from tljax.weights.hub import download; from pathlib import Path; "
        f"download({server.url + '/' + NAME!r}, Path({str(folder / NAME)!r}))"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert (folder / NAME).read_bytes() == CONTENT
    assert server.asked == [""]


def test_torch_s_own_cache_is_used(server, tmp_path):
    path = tmp_path / "torch" / "hub" / "checkpoints" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert resolve("imagenet", "net") == path
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{path} has the sha256"):
        resolve("imagenet", "net")
    assert server.asked == []


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (NAME, "mine.pth", "run-20240131.pth", "net-deadbeef.safetensors"):
        (tmp_path / name).write_bytes(CONTENT)
        assert resolve(f"~/{name}", "resnet18") == tmp_path / name
    (tmp_path / "net-deadbeef.pth").write_bytes(CONTENT)
    with pytest.raises(UserError, match=f"has the sha256 {hash_in_name(NAME)}..., its name says deadbeef"):
        resolve(tmp_path / "net-deadbeef.pth", "resnet18")
    with pytest.raises(UserError, match="'imagnet' is no file that exists, and none of imagenet, imagenet-v2"):
        resolve("imagnet", "resnet18")


@pytest.mark.parametrize("function", [resolve, preprocessing])
def test_weights_that_there_are_not(function):
    with pytest.raises(
        UserError,
        match="no imagenet-v2 weights for resnet18; there are some for resnet50, resnet101, "
        "resnet152, and resnet18 has imagenet",
    ):
        function("imagenet-v2", "resnet18")


def test_every_table_name_carries_a_hash():
    for files in FILES.values():
        for arch, name in files.items():
            assert name == f"{arch}-{hash_in_name(name)}.pth"
            assert len(hash_in_name(name)) == 8


def test_preprocessing(tmp_path):
    assert preprocessing(None, "resnet50") == preprocessing("imagenet", "resnet50") == V1
    assert preprocessing("imagenet-v2", "resnet50") == V2
    assert preprocessing("elsewhere/resnet50-11ad3fa6.pth", "resnet50") == V2
    assert preprocessing("elsewhere/resnet50-0676ba61.pth", "resnet50") == V1
    for source, wanted in (("resnet50-11ad3fa6.pth", V2), ("resnet50-0676ba61.pth", V1)):
        save_weights(tmp_path / "w.safetensors", {"params": {"a": np.zeros(1)}}, {"arch": "resnet50", "source": source})
        assert preprocessing(tmp_path / "w.safetensors", "resnet50") == wanted
    assert (V1.resize, V2.resize, V1.crop, V2.crop) == (256, 232, 224, 224)


def test_hash_of_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        check_hash(tmp_path / "net-deadbeef.pth")


@pytest.mark.peer
def test_tables_are_torchvisions(torchvision):
    models = torchvision.models
    archs = [arch for arch in FILES["imagenet"] if arch != "net"]
    for weights, entry in (("imagenet", "IMAGENET1K_V1"), ("imagenet-v2", "IMAGENET1K_V2")):
        for arch in archs:
            enum = models.get_model_weights(arch)
            assert (entry in enum.__members__) == (arch in FILES[weights])
            if arch in FILES[weights]:
                assert enum[entry].url == hub.URL + FILES[weights][arch]
                preset, ours = enum[entry].transforms(), preprocessing(weights, arch)
                assert [preset.resize_size, preset.crop_size] == [[ours.resize], [ours.crop]]
                assert (tuple(preset.mean), tuple(preset.std)) == (ours.mean, ours.std)
                assert preset.interpolation.value == "bilinear"
                assert preset.antialias


@pytest.mark.parametrize(
    ("classes", "how"),
    [
        ('["a", 1]', '{"resize": "40", "crop": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}'),
        ('{"a": 0}', '{"resize": 40, "crop": 0, "mean": [0, 0, 0], "std": [1, 1, 1]}'),
        ("[" * 100_000, '{"resize": 40, "crop": 32, "mean": [0, 0], "std": [1, 1, 1]}'),
        ("", '{"resize": 40, "crop": 32, "mean": [0, 0, 0], "std": [1, 1, 0]}'),
        ("null", '{"resize": 40, "crop": 32, "mean": [0, 0, NaN], "std": [1, 1, 1]}'),
        ("3", '{"resize": 40, "crop": 32, "mean": [0, 0, true], "std": [1, 1, 1]}'),
    ],
)
def test_what_a_strangers_file_says_of_itself_is_nothing_unless_it_fits(tmp_path, classes, how):
    path = tmp_path / "some.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, path, {"classes": classes, "preprocessing": how})
    assert hub.of_export(path) == (None, None)


@pytest.mark.parametrize("home", ["unknown", "read-only", "missing"])
def test_a_user_without_a_home_has_weights_all_the_same(server, tmp_path, monkeypatch, home):
    """HOME is not set and the system does not know the user, or there is nothing that could be written to."""
    for name in ("TLJAX_CACHE", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    if home == "unknown":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it gives back then
    elif home == "read-only":
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir()
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "home" and access(path, mode))
    else:
        monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        found = resolve("imagenet", "net")
        assert found.read_bytes() == CONTENT
    assert server.asked == [""]
    if home in ("unknown", "read-only"):
        assert found.is_relative_to(tmp_path / "tmp")
