"""A folder of images as a source: classes from folder names, or from file names by a regular expression."""

import collections
import dataclasses
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tljax.core.errors import UserError, counted, few, shown
from tljax.data.layout import FIELDS, Folder, Layout, is_split_name, says_no_class, understand, understand_classes
from tljax.data.source import Joined, Source
from tljax.run_dir.files import wrote

# What systems leave behind in folders; files whose names begin with a dot, and such folders, are ignored as well.
_CLUTTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "icon\r", "lost+found",
            "system volume information"}  # fmt: skip
_HIDDEN_FOLDERS = {".git", ".svn", ".hg", ".dvc", ".cache", ".venv", ".idea", ".vscode", ".ipynb_checkpoints", ".trash",
                   ".trashes", ".thumbnails", ".thumbs", ".appledouble", ".spotlight-v100", ".fseventsd",
                   ".picasaoriginals", ".documentrevisions-v100", ".temporaryitems",
                   ".tmp.driveupload"}  # fmt: skip
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".tif",
                   ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".avif", ".heic", ".heif", ".hif",
                   ".jxl"}  # fmt: skip
# Any other suffix may be part of a name ("Mr. Smith", "frame.0001"): such a file is tried, and skipped if no image.
_OTHER_SUFFIXES = {".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".htm",
                   ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z",
                   ".rar", ".py", ".ipynb", ".m", ".mat", ".npy", ".npz", ".pkl", ".pth", ".pt", ".h5", ".parquet",
                   ".db", ".log", ".ini", ".sh", ".bat", ".exe", ".mp3", ".wav", ".mp4", ".mov", ".avi", ".mkv",
                   ".webm", ".aae", ".xmp", ".svg", ".psd", ".eps", ".lnk", ".url", ".bak", ".tmp",
                   ".part"}  # fmt: skip
LARGEST_FILE = 1 << 30  # bytes
RUN = "the folder of a run"
ASK = "for pictures without labels use predict"


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

    def stamp(self, index: int) -> tuple[int, int, int]:
        """Size in bytes, and in nanoseconds the times of the last change of what is in it and of what it is called;
        zeros where the file is gone."""
        try:
            status = os.stat(self._paths[index])
        except OSError:
            return 0, 0, 0
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def open_folder(
    path: str | os.PathLike[str], *, label: str = "folder", named: Mapping[str, str] | None = None,
    unlabeled: str = "",
) -> Source:  # fmt: skip
    """Lists a folder of images; nothing in it is opened or changed.

    Layouts, by `label`:

    * `'folder'`: `path/CLASS/...`; `path/SPLIT/CLASS/...` or `path/CLASS/SPLIT/...` with the splits official. Names of
      splits may be `train`, `training_set`, `seg_train`, `valid`, `dev`, `holdout`, ... (see `layout`), `train` among
      them.
      Images may lie deeper inside a class folder, as with torchvision's ImageFolder.
    * `'regex:PATTERN'`: the first group of PATTERN, searched in the file name (suffix included), is the class, as in
      fastai's `from_name_re`; files may lie at any depth, and folders named as splits are still splits.

    Hidden files, what systems leave behind (`__MACOSX`, `Thumbs.db`) and folders of runs are ignored. What cannot be an
    image, or has no class, is named in `skipped` with the reason; whether the rest can be decoded shows when it is
    decoded. What may be meant otherwise is in `notes`.

    Args:
      path: the folder.
      label: see above.
      named: by split, its folder, relative to `path` or not, or several with commas between. `'.'` is all that is in
        no other one; as `train` alone, all of it with classes for first folders. What is not named is as the folder
        has it.
      unlabeled: folders of images without labels, which `add_unlabeled` takes; those in `path` are left out.

    Raises:
      UserError: no such folder, no images, fewer than two classes, classes in `val` or `test` that `train` lacks,
        classes whose names are the same to a reader, folders that can be read in two ways, or a regular expression that
        does not compile, has no group, or matches no file name.
    """
    pattern = _pattern(label)
    files, skipped, splits_of = _list(path, named or {}, unlabeled)
    layout = understand(Folder.of(files), path=str(path), by_folder=pattern is None, named=splits_of)
    rows = _rows(files, layout, pattern, skipped)
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

    notes = [*layout.notes, *_check_twins({cls for _, cls, _ in rows})]
    trained = {cls for _, cls, split in rows if split in (None, "train")}
    for name, cls, split in rows:
        if cls not in trained:
            raise UserError(f"class {cls!r} is in {split} ({name!r}) but has no images in train, which needs some")
    classes = tuple(sorted(trained))
    if len(trained) < 2:
        inner, where = [], next(name for name, _, split in rows if split in (None, "train")).split("/")
        if pattern is None:  # one folder too high: all/{cat,dog}
            rest = layout.read("/".join(where))[2]  # type: ignore[index]
            where = where[: len(where) - rest.count("/")]
            below = Folder.of(files).at("/".join(where))
            while below and len(below.folders) == 1:
                where.append(next(iter(below.folders)))
                below = below.folders[where[-1]]
            inner = sorted(below.folders) if below else []
        inside = shown("/".join(where))
        meant = f"data.train={inside}" if layout.places else f"folder:{os.path.join(path, inside)}"
        hint = f"is {meant} meant, with {len(inner)} folders in it?" if inner else "there must be at least two"
        raise UserError(f"only one class, {classes[0]!r}, in {str(path)!r}; {hint}")

    if pattern is None and (empty := _without_images(skipped, layout, {cls for _, cls, _ in rows})):
        notes.append(f"no images in {few(empty, 4)}: no {'class' if len(empty) == 1 else 'classes'}")
    for cls in classes:
        if is_split_name(cls) and not any(repr(cls) in note for note in notes):
            notes.append(f"taken for a class: {cls!r}")
    return _source(path, files, rows, classes, skipped, notes)


def open_labeled(
    path: str | os.PathLike[str], classes: Sequence[str], *, label: str = "folder",
    named: Mapping[str, str] | None = None,
) -> Source:  # fmt: skip
    """Lists a folder of labeled images that a network is asked about, not trained on.

    It is read as `open_folder` reads it. Where that has a question, or finds none of the classes, their names say which
    folders are classes: one class will do, and `test/CLASS/...` alone. Its classes may be others than those known.

    Args:
      path: the folder.
      classes: the names that the network knows.
      label: as of `open_folder`.
      named: as of `open_folder`.

    Raises:
      UserError: no such folder, no images, none with a label, or a regular expression that does not compile or has no
        group.
    """
    pattern = _pattern(label)
    files, skipped, splits_of = _list(path, named or {})
    tree, rows, layout, left = Folder.of(files), [], Layout(), list[tuple[str, str]]()

    def read(found: Layout, by: re.Pattern[str] | None) -> bool:
        """Takes what a layout gives, if there is a known class in it, or nothing yet."""
        nonlocal rows, layout, left
        passed: list[tuple[str, str]] = []
        given = _rows(files, found, by, passed)
        known = any(cls in classes for _, cls, _ in given)
        if known or not rows:
            rows, layout, left = given, found, passed
        return known

    try:
        known = read(understand(tree, path=str(path), by_folder=pattern is None, named=splits_of), pattern)
    except UserError:  # which split is for training does not matter here
        known = read(Layout(), pattern)
    if not known and (found := understand_classes(tree, classes)):
        known = read(found, None)
    if not known and all(says_no_class(cls) for _, cls, _ in rows):
        why = "are in no class folders" if pattern is None else f"have names that {label!r} matches in none"
        here, hint = Path(path).resolve(), "put them in CLASS/..."
        if here.name in classes:
            hint = f"give {str(here.parent)!r}, where {here.name!r} is a class"
        raise UserError(f"no labels in {str(path)!r}: its {counted(len(files), 'image')} {why}; {ASK}, or {hint}")
    return _source(path, files, rows, tuple(sorted({cls for _, cls, _ in rows})), [*skipped, *left], layout.notes)


def _list(
    path: str | os.PathLike[str], named: Mapping[str, str], unlabeled: str = ""
) -> tuple[dict[str, str], list[tuple[str, str]], dict[str, str]]:
    """{name: path} of what may be images, (name, reason) of what is passed over, and {folder: split} as `named`."""
    root = existing_folder(path)
    if wrote(root):
        raise UserError(f"{str(path)!r} is the folder of a run of tljax, whose pictures are no data; name the images'")
    files, skipped = list_images(root)
    for place in unlabeled_folders(root, unlabeled):
        inside = _inside(root, place)
        if inside == ".":
            raise UserError(f"data.unlabeled={unlabeled} is all of {str(path)!r}; name a folder in it, or another one")
        files = {name: file for name, file in files.items() if not name.startswith(f"{printable(inside)}/")}
    splits_of = _named_folders(root, named, files, skipped)
    if not files:
        passed = f" ({len(skipped)} passed over, such as {skipped[0][0]!r}: {skipped[0][1]})" if skipped else ""
        raise UserError(f"no images in {str(path)!r}{passed}; give a folder with one folder of images per class")
    return files, skipped, splits_of


def _source(
    path: str | os.PathLike[str], files: Mapping[str, str], rows: Sequence[tuple[str, str, str | None]],
    classes: tuple[str, ...], skipped: Iterable[tuple[str, str]], notes: Iterable[str],
) -> Source:  # fmt: skip
    place = {cls: i for i, cls in enumerate(classes)}
    splits = {}
    for split in FIELDS:
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
        notes=tuple(notes),
    )


def _rows(
    files: Iterable[str], layout: Layout, pattern: re.Pattern[str] | None, skipped: list[tuple[str, str]]
) -> list[tuple[str, str, str | None]]:
    """(name, class, split) of images, sorted; what has none goes to `skipped`."""
    rows: list[tuple[str, str, str | None]] = []
    for name in sorted(files):
        found = layout.read(name)
        if found is None:
            skipped.append((name, "outside of the folders " + ", ".join(sorted(layout.places)[:6])))
            continue
        split, cls, rest = found
        parts = rest.split("/")
        if pattern is None:
            cls, reason = cls or (parts[0] if len(parts) > 1 else ""), "not in a class folder"
        else:
            match = pattern.search(parts[-1])
            cls, reason = (match.group(1) or "") if match else "", "its name gives no class by the regular expression"
        if cls:
            rows.append((name, cls, split))
        else:
            skipped.append((name, reason))
    return rows


def _named_folders(
    root: Path, named: Mapping[str, str], files: dict[str, str], skipped: list[tuple[str, str]]
) -> dict[str, str]:
    """{folder: split} as the user named them; images of folders that lie elsewhere are added to `files`."""
    found: dict[str, str] = {}
    for split, value in named.items():
        whole = (root / os.path.expanduser(value)).is_dir()  # its name may have a comma in it
        for text in filter(None, [value] if whole else map(str.strip, value.split(","))):
            field, place = f"data.{FIELDS[split]}={text}", root / os.path.expanduser(text)
            if not place.is_dir():
                raise UserError(f"{field}: there is no folder {str(place)!r}; it is looked for from {str(root)!r}")
            inside = _inside(root, place)
            if inside.split("/")[0] == "..":
                inside = f"{split}:{printable(place.resolve().name)}"
                while inside in found:
                    inside += "'"
                more, passed = list_images(place)
                files.update({f"{inside}/{name}": path for name, path in more.items()})
                skipped += [(f"{inside}/{name}", reason) for name, reason in passed]
            name = printable(inside)
            if name in found:
                raise UserError(f"{field}: that folder is data.{FIELDS[found[name]]}, too; an image is in one split")
            if name != "." and not any(image.startswith(f"{name}/") for image in files):
                raise UserError(f"{field}: no images in that folder")
            found[name] = split
    return found


def _inside(root: Path, place: Path) -> str:
    """A folder by its path from another one."""
    return os.path.relpath(os.path.abspath(place), os.path.abspath(root)).replace(os.sep, "/")


def unlabeled_folders(root: Path | None, value: str) -> list[Path]:
    """The folders that `data.unlabeled` names.

    Args:
      root: the folder of the labeled images, where they lie in one; what lies in it comes first.
      value: one folder, or several with commas between.

    Raises:
      UserError: for a folder that is not there, or that is there twice.
    """
    found: list[Path] = []
    bases = [Path()] if root is None else [root, Path()]
    whole = any((base / os.path.expanduser(value)).is_dir() for base in bases)  # its name may have a comma in it
    for text in filter(None, [value] if whole else map(str.strip, value.split(","))):
        places = [base / os.path.expanduser(text) for base in bases]
        there = list({place.resolve(): place for place in places if place.is_dir()}.values())
        looked = " nor ".join(repr(str(place.absolute())) for place in places)
        if not there:
            raise UserError(f"data.unlabeled={text}: there is no folder {looked}")
        if len(there) > 1:
            raise UserError(
                f"data.unlabeled={text} may be {' or '.join(str(one.resolve()) for one in there)}; say which"
            )
        if there[0].resolve() in [place.resolve() for place in found]:
            raise UserError(f"data.unlabeled={value} names {text} twice")
        found += there
    return found


def add_unlabeled(source: Source, value: str) -> tuple[Source, np.ndarray]:
    """A source with images behind its own that have no label.

    Args:
      source: the labeled ones.
      value: as `data.unlabeled` has it.

    Returns:
      The source, whose new labels are -1, and the indices of the new images.

    Raises:
      UserError: for a folder that is not there, has no images, or has labeled ones.
    """
    kind, _, where = source.spec.partition(":")
    root = Path(where).expanduser() if kind == "folder" else None
    files, skipped = {}, list(source.skipped)
    for place in unlabeled_folders(root, value):
        prefix = f"unlabeled:{printable(place.resolve().name)}"
        while any(name.startswith(f"{prefix}/") for name in files):
            prefix += "'"
        more, passed = list_images(place)
        if not more:
            raise UserError(f"data.unlabeled={value}: no images in {str(place)!r}")
        files |= {f"{prefix}/{name}": path for name, path in sorted(more.items())}
        skipped += [(f"{prefix}/{name}", reason) for name, reason in passed]
    count = len(source)
    labels = np.concatenate([source.labels, np.full(len(files), -1, np.int32)])
    boxes = source.boxes
    if boxes is not None:
        boxes = np.concatenate([boxes, np.full((len(files), 4), np.nan, np.float32)])
    read = Joined(source.read, count, Files(list(files.values())))
    joined = dataclasses.replace(
        source, names=(*source.names, *files), labels=labels, read=read, boxes=boxes, skipped=tuple(skipped),
        narrow=False,
    )  # fmt: skip
    return joined, np.arange(count, count + len(files))


def _check_twins(classes: Iterable[str]) -> list[str]:
    """Raises UserError for classes whose names a reader cannot tell apart; (a, A) may be letters, and is a note."""
    alike: dict[str, list[str]] = collections.defaultdict(list)
    for name in sorted(classes):
        visible = "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if unicodedata.category(c) != "Cf")
        alike[unicodedata.normalize("NFKC", " ".join(visible.split()))].append(name)
    notes = []
    for names in alike.values():
        if len(names) < 2:
            continue
        if all(len(name) == 1 for name in names):
            notes.append(f"classes {', '.join(names)} differ in case alone")
            continue
        forms = {unicodedata.normalize("NFC", name) for name in names}
        how = "in their Unicode form alone" if len(forms) == 1 else "in case, spaces or Unicode form alone"
        shown = " and ".join(map(ascii if len(forms) == 1 else repr, names[:3]))
        raise UserError(f"classes {shown} differ {how}; give one folder, or one name, to one class")
    return notes


def _without_images(skipped: Iterable[tuple[str, str]], layout: Layout, classes: set[str]) -> list[str]:
    """Folders that would be classes, but for having no image."""
    found = set()
    for name, reason in skipped:
        if reason in (RUN, "a folder, not an image", "not in a class folder", "a hidden folder"):
            continue
        parts = (name + "/." if reason == "an empty folder" else name).split("/")
        read = layout.read("/".join(parts))
        if read and not read[1] and "/" in read[2]:
            found.add(read[2].split("/")[0])
    return sorted(found - classes)


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
    names: set[str] = set()
    pending = [(os.fspath(root), "", frozenset([_identity(os.stat(root))]))]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            with os.scandir(folder) as listing:
                found = [e for e in listing if e.name.lower() not in _CLUTTER]
        except OSError as error:
            skipped.append((prefix.rstrip("/"), f"cannot be read: {error.strerror}"))
            continue
        if prefix and wrote(Path(folder), {entry.name for entry in found}):
            skipped.append((prefix.rstrip("/"), RUN))
            continue
        entries = [entry for entry in found if not entry.name.startswith(".")]
        for entry in found:
            if entry.name.startswith(".") and entry.name.lower() not in _HIDDEN_FOLDERS and _is_folder(entry):
                skipped.append((prefix + printable(entry.name), "a hidden folder"))
        if not entries and prefix:
            skipped.append((prefix.rstrip("/"), "an empty folder"))
        for entry in entries:
            name = prefix + printable(entry.name)
            if name in names:  # one of them in bytes that are no UTF-8
                skipped.append((name, "written like another name beside it"))
                continue
            names.add(name)
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


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
