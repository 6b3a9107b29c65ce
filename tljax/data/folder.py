"""A folder of images as a source: classes from folder names, or from file names by a regular expression."""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tljax.data.source import Source
from tljax.errors import UserError

_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# What systems leave behind in folders; names that begin with a dot are ignored as well.
_CLUTTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "icon\r", "lost+found",
            "system volume information"}  # fmt: skip
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".tif",
                   ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".avif", ".heic", ".heif"}  # fmt: skip
# Any other suffix may be part of a name ("Mr. Smith", "frame.0001"): such a file is tried, and skipped if no image.
_OTHER_SUFFIXES = {".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".htm",
                   ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z",
                   ".rar", ".py", ".ipynb", ".m", ".mat", ".npy", ".npz", ".pkl", ".pth", ".pt", ".h5", ".parquet",
                   ".db", ".log", ".ini", ".sh", ".bat", ".exe", ".mp3", ".wav", ".mp4", ".mov", ".avi", ".mkv",
                   ".webm", ".aae", ".xmp", ".svg", ".psd", ".eps", ".lnk", ".url", ".bak", ".tmp",
                   ".part"}  # fmt: skip
LARGEST_FILE = 1 << 30  # bytes


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file; of a named pipe it does not wait for somebody to write."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class Files:
    """Reads encoded images from disk by index; what `Source.read` is for files.

    `stamp` lets a cache of decoded images notice that a file has changed.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self._paths = tuple(os.fspath(path) for path in paths)

    def __call__(self, index: int) -> bytes:
        """The bytes of one file. Raises OSError where it cannot be read, is no regular file or larger than 1 GiB."""
        return self._read(index, -1)

    def head(self, index: int) -> bytes:
        """Its first bytes, 32 at most. Raises OSError likewise."""
        return self._read(index, 32)

    def _read(self, index: int, size: int) -> bytes:
        with open(self._paths[index], "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a regular file")
            if status.st_size > LARGEST_FILE:
                raise OSError("larger than 1 GiB")
            return file.read(size)

    def stamp(self, index: int) -> tuple[int, int]:
        """Size in bytes and time of last change in nanoseconds; zeros where the file is gone."""
        try:
            status = os.stat(self._paths[index])
        except OSError:
            return 0, 0
        return status.st_size, status.st_mtime_ns


def open_folder(path: str | os.PathLike[str], *, label: str = "folder") -> Source:
    """Lists a folder of images; nothing in it is opened or changed.

    Layouts, by `label`:

    * `'folder'`: `path/CLASS/...`, or `path/{train,val,test}/CLASS/...` with the splits official (`train` is needed;
      `training`, `valid`, `validation` and `testing` are understood). Images may lie deeper inside a class folder, as
      with torchvision's ImageFolder.
    * `'regex:PATTERN'`: the first group of PATTERN, searched in the file name (suffix included), is the class, as in
      fastai's `from_name_re`; files may lie at any depth, and `train`, `val` and `test` folders are still splits.

    Hidden files and what systems leave behind (`__MACOSX`, `Thumbs.db`) are ignored. What cannot be an image, or has no
    class, is named in `skipped` with the reason; whether the rest can be decoded shows when it is decoded.

    Raises:
      UserError: no such folder, no images, fewer than two classes, classes in `val` or `test` that `train` lacks, or a
        regular expression that does not compile, has no group, or matches no file name.
    """
    root = existing_folder(path)
    pattern = _pattern(label)
    files, skipped = list_images(root)
    if not files:
        passed = f" ({len(skipped)} passed over, such as {skipped[0][0]!r}: {skipped[0][1]})" if skipped else ""
        raise UserError(f"no images in {str(path)!r}{passed}; give a folder with one folder of images per class")
    layout = _split_folders(files, by_folder=pattern is None, path=path)

    rows: list[tuple[str, str, str | None]] = []  # name, class, split
    for name in sorted(files):
        parts, split = name.split("/"), None
        if layout:
            split = layout.get(parts[0]) if len(parts) > 1 else None
            if split is None:
                skipped.append((name, "outside of the folders " + ", ".join(sorted(layout))))
                continue
            parts = parts[1:]
        if pattern is None:
            cls = parts[0] if len(parts) > 1 else ""
            reason = "not in a class folder"
        else:
            match = pattern.search(parts[-1])
            cls = (match.group(1) or "") if match else ""
            reason = "its name gives no class by the regular expression"
        if cls:
            rows.append((name, cls, split))
        else:
            skipped.append((name, reason))
    if not rows:
        if pattern is not None:
            raise UserError(
                f"{label!r} matches none of the {len(files)} file names in {str(path)!r}, such as "
                f"{min(files).split('/')[-1]!r}; its first group must be the class"
            )
        raise UserError(
            f"the images in {str(path)!r} are in no class folders; put them in CLASS/..., or give "
            r"data.label='regex:^(.+)_\d+' to take the class from file names"
        )

    trained = {cls for _, cls, split in rows if split in (None, "train")}
    for name, cls, split in rows:
        if cls not in trained:
            raise UserError(f"class {cls!r} is in {split} ({name!r}) but has no images in train, which needs some")
    classes = tuple(sorted(trained))
    if len(trained) < 2:
        inner = set()
        if pattern is None and not layout:  # one folder too high: all/{cat,dog}
            inner = {name.split("/")[1] for name in files if name.count("/") > 1}
        hint = (
            f"is folder:{os.path.join(path, classes[0])} meant, with {len(inner)} folders in it?"
            if len(inner) > 1
            else "there must be at least two"
        )
        raise UserError(f"only one class, {classes[0]!r}, in {str(path)!r}; {hint}")

    place = {cls: i for i, cls in enumerate(classes)}
    splits = {}
    for split in ("train", "val", "test"):
        members = np.array([i for i, row in enumerate(rows) if row[2] == split], np.int64)
        if members.size:
            splits[split] = members
    return Source(
        spec=f"folder:{os.fspath(path)}",
        names=tuple(name for name, _, _ in rows),
        labels=np.array([place[cls] for _, cls, _ in rows], np.int32),
        classes=classes,
        read=Files([files[name] for name, _, _ in rows]),
        splits=splits,
        skipped=tuple(sorted(skipped)),
    )


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """`path` with `~` filled in. Raises UserError where it is not a folder that can be read."""
    try:
        root = Path(path).expanduser()
        with os.scandir(root):
            return root
    except NotADirectoryError:
        raise UserError(f"{str(path)!r} is a file, not a folder; unpack it if it is an archive") from None
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"no such folder: {str(path)!r} (looked from {os.getcwd()!r})") from None
        raise UserError(f"cannot read the folder {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None


def _pattern(label: str) -> re.Pattern[str] | None:
    if label == "folder":
        return None
    if not label.startswith("regex:"):
        raise UserError(f"label {label!r} is unknown for a folder; use 'folder' or 'regex:PATTERN'")
    try:
        pattern = re.compile(label.removeprefix("regex:"))
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{label!r} is no regular expression: {error}") from None
    if not pattern.groups:
        raise UserError(rf"{label!r} has no group; put the class in round brackets, as in 'regex:^(.+)_\d+'")
    return pattern


def printable(name: str) -> str:
    """File names need not be UTF-8; what a record or a terminal cannot hold is written as `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def list_images(root: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """All files below a folder that may be images, {name: path}, and (name, reason) of what was passed over."""
    files: dict[str, str] = {}
    skipped: list[tuple[str, str]] = []
    pending = [(os.fspath(root), "", frozenset([_identity(os.stat(root))]))]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            with os.scandir(folder) as listing:
                entries = [e for e in listing if not e.name.startswith(".") and e.name.lower() not in _CLUTTER]
        except OSError as error:
            skipped.append((prefix.rstrip("/"), f"cannot be read: {error.strerror}"))
            continue
        if not entries and prefix:
            skipped.append((prefix.rstrip("/"), "an empty folder"))
        for entry in entries:
            name = prefix + printable(entry.name)
            suffix = os.path.splitext(entry.name)[1].lower()
            try:
                status = os.stat(entry.path)
            except OSError as error:
                skipped.append((name, "a broken link" if entry.is_symlink() else f"cannot be read: {error.strerror}"))
                continue
            if stat.S_ISDIR(status.st_mode):
                identity = _identity(status)
                if suffix in _IMAGE_SUFFIXES:
                    skipped.append((name, "a folder, not an image"))
                elif identity in above:
                    skipped.append((name, "a link to a folder around it"))
                else:
                    pending.append((entry.path, name + "/", above | {identity}))
            elif not stat.S_ISREG(status.st_mode):
                skipped.append((name, "not a regular file"))  # reading a pipe would wait for ever
            elif suffix in _OTHER_SUFFIXES:
                skipped.append((name, f"not an image ({suffix})"))
            else:
                files[name] = entry.path
    return files, skipped


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _split_folders(names: dict[str, str], *, by_folder: bool, path: str | os.PathLike[str]) -> dict[str, str]:
    """{folder: split} where the top folders are splits, else {}."""
    tops = {name.split("/")[0] for name in names if "/" in name}
    found = {top: _SPLIT_NAMES[top.lower()] for top in tops if top.lower() in _SPLIT_NAMES}
    if "train" not in found.values():
        if by_folder and found and len(found) == len(tops):
            raise UserError(f"{str(path)!r} has {', '.join(sorted(found))} but no train; add train/CLASS/...")
        return {}
    # `train` may be a class beside `bus` and `car`; it is a split if it holds class folders.
    deep = any(found.get(name.split("/")[0]) == "train" and name.count("/") > 1 for name in names)
    if by_folder and len(found) < len(tops) and not deep:
        return {}
    if len(set(found.values())) < len(found):
        several = ", ".join(sorted(found))
        raise UserError(f"{str(path)!r} has two folders for one split among {several}; keep one of each")
    return found
