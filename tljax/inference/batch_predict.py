"""What a finished run says of many pictures: finding them, and answers batch by batch while others are decoded."""

import glob
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from tljax.core.errors import UserError, one_line
from tljax.data.folder import LARGEST_FILE, Files, list_images, printable
from tljax.data.reading import Unreadable

if TYPE_CHECKING:
    from tljax.inference.classifier import Classifier


class Picture(NamedTuple):
    """A picture to ask about.

    Attributes:
      name: what it is called in the answers.
      read: gives its bytes, its pixels, or a Pillow image; may raise OSError.
      reason: why it cannot be one, where that is known already.
    """

    name: str
    read: Callable[[], bytes | np.ndarray | Image.Image]
    reason: str = ""


class Answer(NamedTuple):
    """What a run says of a picture.

    Attributes:
      name: the picture's.
      best: (class, probability), the most probable first; empty where there is a reason.
      reason: why the picture cannot be read.
    """

    name: str
    best: tuple[tuple[str, float], ...] = ()
    reason: str = ""


def find_pictures(names: Sequence[str], stdin: Callable[[], bytes]) -> list[Picture]:
    """The pictures that the command line names, in its order; those of a folder sorted.

    Args:
      names: files, folders, patterns, or `-`.
      stdin: what standard input holds, for `-`.

    Raises:
      UserError: for a pattern that matches nothing, or nothing to do.
    """
    found: list[Picture] = []
    for name in names:
        if name == "-":
            found += _from_stdin(stdin())
        elif os.path.isdir(name):
            files, skipped = list_images(Path(name))
            here = [Picture(printable(path), _reader(path)) for path in files.values()]
            there = [Picture(os.path.join(name, part), bytes, reason) for part, reason in skipped]
            found += sorted([*here, *there], key=lambda picture: picture.name)
        elif not os.path.lexists(name) and glob.has_magic(name):
            matches = sorted(path for path in glob.glob(name, recursive=True) if not os.path.isdir(path))
            if not matches:
                raise UserError(f"{name!r} matches no file")
            found += [Picture(printable(path), _reader(path)) for path in matches]
        else:
            found.append(Picture(printable(name), _reader(name)))
    if not found:
        where = ", ".join("standard input" if name == "-" else name for name in names)
        raise UserError(f"no pictures in {where or 'nothing'}; name files, folders or patterns")
    return found


def _reader(path: str) -> Callable[[], bytes]:
    files = Files([path])
    return lambda: files(0)


def read_stdin() -> bytes:
    """What standard input holds. Raises UserError above 1 GiB."""
    data = sys.stdin.buffer.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise UserError("standard input has more than 1 GiB, which neither a picture nor names of pictures have")
    return data


def _from_stdin(data: bytes) -> list[Picture]:
    """Names, a line each or with zero bytes between them, unless it is a picture."""
    if _is_picture(data):
        return [Picture("-", lambda: data)]
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # what PowerShell writes
        data = data.decode("utf-16", "replace").encode("utf-8", "replace")
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    names = [os.fsdecode(line) for line in lines if line.strip()]
    return [Picture(printable(name), _reader(name)) for name in names]


def _is_picture(data: bytes) -> bool:
    """Whether bytes are those of a picture, rather than names: every image format has zero bytes, JPEG at times late,
    and other control characters beside them; a list may have zero bytes, and UTF-16 has."""
    if data[:2] == b"\xff\xd8":
        return True
    if b"\0" not in data[:65536] or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return False
    return bool(re.search(rb"[\x01-\x08\x0e-\x1f\x7f]", data[:65536]))


def ask(
    classifier: "Classifier",
    pictures: Sequence[Picture],
    *,
    batch_size: int = 32,
    top: int = 5,
    flips: bool = False,
    workers: int | None = None,
) -> Iterator[Answer]:
    """Answers, in order. Threads decode some batches ahead of the network.

    Args:
      classifier: a finished run.
      pictures: what to ask about; only those of a few batches are in memory.
      batch_size: pictures that go through the network together.
      top: classes per answer.
      flips: whether each picture is also seen mirrored, and the probabilities of both averaged.
      workers: decoding threads; None for one per core.
    """
    names = (picture.name for picture in pictures)
    found = logits_of(classifier, pictures, batch_size=batch_size, flips=flips, workers=workers)
    for name, views in zip(names, found, strict=True):
        if isinstance(views, str):
            yield Answer(name, reason=views)
            continue
        yield Answer(name, classifier.best(classifier.probabilities(views).mean(axis=0), top))


def see(classifier: "Classifier", picture: Picture) -> np.ndarray | str:
    """What the network is shown of a picture, or why it cannot be read."""
    if picture.reason:
        return picture.reason
    try:
        return classifier.see(picture.read())
    except Unreadable as error:
        return error.reason
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        return getattr(error, "strerror", None) or one_line(error)


def logits_of(
    classifier: "Classifier", pictures: Sequence[Picture], *, batch_size: int = 32, flips: bool = False,
    workers: int | None = None,
) -> Iterator[np.ndarray | str]:  # fmt: skip
    """What `ask` answers from: of each picture the logits `[views, outputs]`, or why it cannot be read."""
    size = min(batch_size, 1 << (len(pictures) - 1).bit_length())

    def start(squares: list[np.ndarray]) -> list[Any]:
        rows = np.stack([*squares, *[np.zeros_like(squares[0])] * (size - len(squares))])
        return [classifier.forward(view) for view in ((rows, rows[:, :, ::-1]) if flips else (rows,))]

    def finish(seen: list[np.ndarray | str], running: list[Any]) -> Iterator[np.ndarray | str]:
        rows = iter(np.stack([np.asarray(logits) for logits in running], axis=1) if running else ())
        yield from (one if isinstance(one, str) else next(rows) for one in seen)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        batches = [pictures[i : i + size] for i in range(0, len(pictures), size)]
        decoding = [[pool.submit(see, classifier, picture) for picture in batch] for batch in batches[:2]]
        waiting: list[Any] = []
        for number in range(len(batches)):
            seen = [future.result() for future in decoding.pop(0)]
            if number + 2 < len(batches):
                decoding.append([pool.submit(see, classifier, picture) for picture in batches[number + 2]])
            squares = [one for one in seen if not isinstance(one, str)]
            running = start(squares) if squares else []
            if waiting:
                yield from finish(*waiting)
            waiting = [seen, running]
        if waiting:
            yield from finish(*waiting)
