"""The official Oxford-IIIT Pet folder, as its two archives unpack (https://www.robots.ox.ac.uk/~vgg/data/pets/)."""

import os
import re
from pathlib import Path

import numpy as np

from tljax.core.errors import UserError
from tljax.data.folder import Files, existing_folder
from tljax.data.source import Source

_SPECIES = ("cat", "dog")
# "Abyssinian_100 1 1 1": image, class 1-37, species 1 cat or 2 dog, breed within the species.
_LINE = re.compile(r"([^\s/\\]+_[^\s/\\]+)\s+(\d{1,4})\s+([12])\s+\d+\s*")
_TAG = r"<{0}>\s*(\d{{1,6}}(?:\.\d{{1,6}})?)\s*</{0}>"


def open_pets(path: str | os.PathLike[str], *, label: str = "breed") -> Source:
    """Lists an Oxford-IIIT Pet folder: `images/`, `annotations/{trainval,test}.txt` and, where there, `xmls/`.

    Args:
      path: the folder that holds `images` and `annotations`.
      label: `'breed'`: the classes that occur, in the order of the official class ids, named by what stands before the
        last underscore of the file name; or `'species'`: cat, dog.

    Returns:
      A source with the official splits, `train` (trainval.txt) and `test`; `boxes` holds the head boxes, in fractions
      of width and height as in TFDS (the test part of the official folder has none). Images that are listed but absent,
      or present but in no list, are named in `skipped`.

    Raises:
      UserError: not such a folder, an unreadable line in a list, an image in both lists, fewer than two classes.
    """
    if label not in ("breed", "species"):
        raise UserError(f"label {label!r} is unknown for Oxford-IIIT Pet; use 'breed' or 'species'")
    root = existing_folder(path)
    annotations = root / "annotations"
    parts = [(split, annotations / f"{file}.txt") for split, file in (("train", "trainval"), ("test", "test"))]
    for _, file in [("", root / "images"), *parts]:
        if not file.exists():
            raise UserError(
                f"{str(path)!r} is no Oxford-IIIT Pet folder: no {file.relative_to(root)} in it; unpack "
                "images.tar.gz and annotations.tar.gz there"
            )

    present = {file for file in os.listdir(root / "images") if file.endswith(".jpg") and not file.startswith(".")}
    listed: dict[str, tuple[str, int, int]] = {}  # file -> split, class id, species
    for split, file in parts:
        for name, class_id, species in _read_list(file):
            if f"{name}.jpg" in listed:
                raise UserError(f"{name} is listed twice in {annotations}/trainval.txt and test.txt; keep one")
            listed[f"{name}.jpg"] = split, class_id, species
    skipped = [(f"images/{file}", "listed, but there is no such file") for file in listed.keys() - present]
    skipped += [(f"images/{file}", "in neither trainval.txt nor test.txt") for file in present - listed.keys()]
    files = sorted(listed.keys() & present)
    if not files:
        raise UserError(f"none of the {len(listed)} listed images is in {str(root / 'images')!r}; unpack images.tar.gz")

    if label == "species":
        classes = _SPECIES
        labels = [listed[file][2] - 1 for file in files]
    else:
        breeds = [file.rpartition("_")[0] for file in files]
        first_id: dict[str, int] = {}
        for file, breed in zip(files, breeds, strict=True):
            first_id[breed] = min(first_id.get(breed, 1 << 30), listed[file][1])
        classes = tuple(sorted(first_id, key=lambda breed: (first_id[breed], breed)))
        labels = [classes.index(breed) for breed in breeds]
    if len(set(labels)) < 2:
        raise UserError(f"only one {label} in {str(path)!r}, {classes[labels[0]]!r}; there must be at least two")

    splits = {
        split: np.array([i for i, file in enumerate(files) if listed[file][0] == split], np.int64) for split, _ in parts
    }
    return Source(
        spec=f"pets:{os.fspath(path)}",
        names=tuple(f"images/{file}" for file in files),
        labels=np.array(labels, np.int32),
        classes=classes,
        read=Files([root / "images" / file for file in files]),
        splits={split: members for split, members in splits.items() if members.size},
        boxes=_boxes(annotations / "xmls", files),
        skipped=tuple(sorted(skipped)),
    )


def _read_list(file: Path) -> list[tuple[str, int, int]]:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {str(file)!r}: {getattr(error, 'strerror', None) or 'not text'}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise UserError(
                f'{file}, line {number}: {line[:60]!r} is not "NAME class-id species breed-id" with '
                "species 1 (cat) or 2 (dog)"
            )
        rows.append((match[1], int(match[2]), int(match[3])))
    return rows


def _boxes(folder: Path, files: list[str]) -> np.ndarray | None:
    """Head boxes (ymin, xmin, ymax, xmax) as fractions, float32 `[N, 4]`, NaN where unknown; None without any."""
    boxes = np.full((len(files), 4), np.nan, np.float32)
    for row, file in enumerate(files):
        try:
            text = (folder / file).with_suffix(".xml").read_bytes()[:65536].decode("utf-8", "replace")
        except OSError:
            continue
        # Seven numbers of a fixed form are wanted: searching for them expands no entities and runs in linear time.
        found = {tag: re.search(_TAG.format(tag), text) for tag in ("width", "height", "ymin", "xmin", "ymax", "xmax")}
        value = {tag: float(match[1]) for tag, match in found.items() if match}
        if len(value) == 6 and value["width"] > 0 and value["height"] > 0:
            box = [
                value["ymin"] / value["height"],
                value["xmin"] / value["width"],
                value["ymax"] / value["height"],
                value["xmax"] / value["width"],
            ]
            if box[0] < box[2] <= 1 and box[1] < box[3] <= 1:
                boxes[row] = box
    return None if np.isnan(boxes).all() else boxes
