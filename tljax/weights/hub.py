"""torchvision's ImageNet weights: which there are, how images are prepared for them, and how they get here.

Sources of the tables: torchvision 0.28, the weight enums of models/resnet.py and models/squeezenet.py.
"""

import contextlib
import dataclasses
import json
import os
import re
import ssl
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tljax.core.errors import UserError, one_line
from tljax.weights import torch_file
from tljax.weights.weights_file import FORMAT, sha256_of

URL = "https://download.pytorch.org/models/"
URL_VARIABLE = "TLJAX_WEIGHTS_URL"  # a mirror in place of URL
CACHE_VARIABLE = "TLJAX_CACHE"  # in place of ~/.cache/tljax
ATTEMPTS = 5
TIMEOUT = 30  # seconds without a byte
BLOCK = 1 << 20

# File names by architecture: torchvision's IMAGENET1K_V1 and V2. The 8 hex digits begin the file's sha256.
FILES: dict[str, dict[str, str]] = {
    "imagenet": {
        "resnet18": "resnet18-f37072fd.pth",
        "resnet34": "resnet34-b627a593.pth",
        "resnet50": "resnet50-0676ba61.pth",
        "resnet101": "resnet101-63fe2227.pth",
        "resnet152": "resnet152-394f9c45.pth",
        "squeezenet1_0": "squeezenet1_0-b66bff10.pth",
        "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
    },
    "imagenet-v2": {
        "resnet50": "resnet50-11ad3fa6.pth",
        "resnet101": "resnet101-cd907fc2.pth",
        "resnet152": "resnet152-f82ba261.pth",
    },
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images were prepared when the weights were evaluated: bilinear, antialiased, center crop.

    Attributes:
      resize: pixels of the shorter side.
      crop: pixels of the square cut from the middle.
      mean: per channel, RGB, of values in 0 to 1.
      std: likewise.
      white: of values of more than 8 bits, what becomes white.
      float_white: of values that are floats; None where each picture is to say (see `tljax/data/reading.py`).
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    white: int = 65535
    float_white: float | None = None


V1, V2 = Preprocessing(), Preprocessing(resize=232)


def preprocessing(weights: str | os.PathLike[str] | None, arch: str) -> Preprocessing:
    """The preprocessing that belongs to weights: that of the run whose export they are; else V1's, also for fresh
    weights, unless V2 shows in the name or the file.

    Args:
      weights: 'imagenet', 'imagenet-v2', None, or a path: of a torchvision file by its name, of a converted one, whose
        metadata names its source, or of an export as safetensors, whose metadata has its own.
      arch: the architecture.

    Raises:
      UserError: for a converted file that cannot be read, and V2 weights of an architecture without them.
    """
    if weights is None or str(weights) == "imagenet":
        return V1
    if str(weights) == "imagenet-v2":
        file_name(str(weights), arch)
        return V2
    path = Path(os.path.expanduser(weights))
    source = path.name
    if own := of_export(path)[1]:
        return own
    if path.is_file() and path.suffix == ".safetensors":
        metadata = torch_file.read(path)[1]
        source = metadata.get("source", "") if metadata.get("format") == FORMAT else source
    return V2 if source in FILES["imagenet-v2"].values() else V1


def of_export(path: Path) -> tuple[tuple[str, ...] | None, Preprocessing | None]:
    """Classes and preprocessing that an export of a finished run says in its metadata; None for what a file, which may
    come from anybody, does not say.

    Raises:
      UserError: for a .safetensors file that cannot be read.
    """
    if not (path.is_file() and path.suffix == ".safetensors"):
        return None, None
    metadata = torch_file.read(path)[1]

    def said(name: str) -> Any:
        try:
            return json.loads(metadata.get(name, "null"))
        except (ValueError, RecursionError):
            return None

    names, how = said("classes"), said("preprocessing")
    classes = tuple(names) if isinstance(names, list) and all(isinstance(one, str) for one in names) else None
    if not isinstance(how, dict):
        return classes, None
    sides: list[Any] = [how.get("resize"), how.get("crop")]
    shades: list[Any] = [how.get("mean"), how.get("std")]
    if not all(type(side) is int and 0 < side < 1 << 15 for side in sides):
        return classes, None
    if not all(isinstance(three, list) and len(three) == 3 for three in shades):
        return classes, None
    if not all(type(one) in (int, float) and 0 <= one <= 1 for three in shades for one in three) or not all(shades[1]):
        return classes, None
    return classes, Preprocessing(*sides, *map(tuple, shades))


def file_name(weights: str, arch: str) -> str:
    """torchvision's file of 'imagenet' or 'imagenet-v2' weights.

    Raises:
      UserError: when there are none for the architecture.
    """
    if arch not in FILES[weights]:
        raise UserError(
            f"there are no {weights} weights for {arch}; there are some for {', '.join(FILES[weights])}"
            + (f", and {arch} has imagenet" if arch in FILES["imagenet"] else "")
        )
    return FILES[weights][arch]


def folders() -> list[Path]:
    """Where weights are looked for."""
    return [folder for folder in (*_caches(), torch_cache_folder()) if folder]


def cache_folder() -> Path:
    """Where downloads are kept: `weights` in $TLJAX_CACHE or ~/.cache/tljax; for a user without a home, or whose home
    takes no file, among the system's temporary files."""
    return next((folder for folder in _caches() if _is_writable(folder)), _caches()[0])


def _caches() -> list[Path]:
    """Where downloads may be, the usual place first."""
    if named := os.environ.get(CACHE_VARIABLE):
        return [Path(os.path.expanduser(named)) / "weights"]
    home, user = _home(), os.getuid() if hasattr(os, "getuid") else "cache"
    temporary = Path(tempfile.gettempdir()) / f"tljax-{user}" / "weights"
    return [*([home / ".cache" / "tljax" / "weights"] if home else []), temporary]


def _home() -> Path | None:
    """The user's home; None without HOME for a user whom the system does not know."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def _is_writable(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that exists, takes files."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return os.access(there, os.W_OK | os.X_OK)


def torch_cache_folder() -> Path | None:
    """Where torch.hub keeps its downloads; None for a user without a home."""
    home, cache = _home(), os.environ.get("XDG_CACHE_HOME")
    named = os.environ.get("TORCH_HOME") or (cache and os.path.join(cache, "torch"))
    usual = Path(os.path.expanduser(named)) if named else home and home / ".cache" / "torch"
    return usual and usual / "hub" / "checkpoints"


def resolve(weights: str | os.PathLike[str], arch: str, *, base_url: str | None = None) -> Path:
    """The local file of weights, downloaded if need be, its hash checked.

    Args:
      weights: 'imagenet' (V1), 'imagenet-v2', or a path.
      arch: the architecture.
      base_url: in place of $TLJAX_WEIGHTS_URL or torchvision's.

    Returns:
      An existing file. A torchvision file name carries the beginning of its sha256; such files match it.

    Raises:
      UserError: no such weights, a wrong hash, or a download that failed: then it says which file to put where.
    """
    if str(weights) not in FILES:
        path = Path(os.path.expanduser(weights))
        if not path.is_file():
            raise UserError(f"model.weights={str(weights)!r} is no file that exists, and none of {', '.join(FILES)}")
        check_hash(path)
        return path
    name = file_name(str(weights), arch)
    for folder in folders():
        if (folder / name).is_file():
            check_hash(folder / name)
            return folder / name
    base = base_url or os.environ.get(URL_VARIABLE) or URL
    return download(f"{base.rstrip('/')}/{name}", cache_folder() / name)


def hash_in_name(name: str) -> str:
    """The beginning of the sha256 in a file name such as `resnet18-f37072fd.pth`; empty if there is none.

    Eight digits without a letter are a date more likely than a hash, and none of torchvision's in `FILES` is so.
    """
    found = re.search(r"-([0-9a-f]{8,64})\.(pth|pt)$", name)
    return found[1] if found and not found[1].isdecimal() else ""


def check_hash(path: Path, name: str = "") -> None:
    """Compares the file's sha256 with the beginning in its name.

    Raises:
      UserError: naming both.
    """
    expected = hash_in_name(name or path.name)
    if expected and not (found := sha256_of(path)).startswith(expected):
        raise UserError(
            f"{path} has the sha256 {found[: max(8, len(expected))]}..., its name says {expected}: "
            "it is damaged or not what it is called; delete it and fetch it again"
        )


def download(url: str, target: Path) -> Path:
    """Fetches a file into `target`, going on where an earlier attempt stopped.

    Bytes are gathered in `NAME.part`; only a complete file with the right hash gets its name.

    Raises:
      UserError: one sentence that says what to fetch and where to put it; a wrong hash names both.
    """
    part = target.with_name(target.name + ".part")
    reason = "nothing came"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock")):
            if target.is_file():  # another process was faster
                return target
            logging.info("downloading %s to %s", url, target)
            for _ in range(ATTEMPTS):
                before = size_of(part)
                try:
                    complete = fetch(url, part)
                except urllib.error.HTTPError as error:
                    reason = f"the server says {error.code} {error.reason}"
                    break
                except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
                    complete, reason = False, str(getattr(error, "reason", error)) or type(error).__name__
                if complete:
                    accept(part, target)
                    return target
                if size_of(part) == before:  # no progress, so another attempt would bring none either
                    break
                reason = f"it broke off after {size_of(part)} bytes, which the next run goes on from"
    except OSError as error:
        reason = f"{error.filename or target}: {error.strerror or error}"
    raise UserError(f"cannot download {url} ({one_line(reason)}): fetch it yourself and put it at {target}")


def accept(part: Path, target: Path) -> None:
    """Gives a complete download its name, or refuses and deletes it."""
    try:
        check_hash(part, target.name)
    except UserError:
        found = sha256_of(part)
        part.unlink()
        raise UserError(
            f"the download of {target.name} has the sha256 {found[:8]}..., its name says "
            f"{hash_in_name(target.name)}: it was refused and deleted"
        ) from None
    part.replace(target)


def fetch(url: str, part: Path) -> bool:
    """One request for what `part` lacks; whether it is complete now."""
    have = size_of(part)
    headers = {"User-Agent": "tljax", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # What we have is all there is, or it is of another file.
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if total and int(total[1]) == have:
            return True
        part.unlink()
        return fetch(url, part)
    with response:
        start, total = 0, None
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            start, total = (int(found[1]), found[2]) if found else (-1, None)
        if start not in (0, have):
            raise HTTPException("the server answers with another range than was asked for")
        length = response.headers.get("Content-Length")
        total = int(total) if total and total != "*" else start + int(length) if length else None
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            copy(response, file, name=part.name.removesuffix(".part"), start=start, total=total)
            return total is None or file.tell() == total


def copy(response: IO[bytes], file: IO[bytes], *, name: str, start: int, total: int | None) -> None:
    """Copies block by block, with a progress bar where someone watches."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(name, total=total, completed=start)
        while block := response.read(BLOCK):
            file.write(block)
            progress.advance(task, len(block))


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process at a time in, so that two runs on a machine do not write into one download."""
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl  # absent there, and with it the protection

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
