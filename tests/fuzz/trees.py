"""Random folders of images, each trained on for one step or refused; `make fuzz-data` runs it.

hypothesis draws the trees: depth, names, splits, broken files, links, empty folders, Unicode. Of each tree must hold:
no traceback, a refusal is one line, and, unless it is said, no class is called as a split, no image is in two splits,
and no class is without images. The last line says what was tried and what was lost, which is printed as the files of
its tree, and the exit status is 1.
"""

import argparse
import collections
import hashlib
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
# Runs with as many classes have the same program, which is compiled once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[2] / "build" / "compiled"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from tljax.core.xla_flags import compile_quickly, forget_programs

compile_quickly()

import numpy as np  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from PIL import Image  # noqa: E402

from tests import tiny  # noqa: E402
from tljax.core.errors import UserError  # noqa: E402
from tljax.data import load  # noqa: E402
from tljax.data.decode import Unreadable, decode  # noqa: E402
from tljax.data.folder import Files  # noqa: E402
from tljax.data.layout import is_split_name  # noqa: E402
from tljax.report.console import make_console  # noqa: E402
from tljax.train import runs  # noqa: E402

SIDE = 16
NAMES = """train training training_set train_set seg_train train2 Train_Data TRAIN tr val valid valid_set dev Eval
    validation-2 test testing test_set seg_test holdout hold-out TestSet te"""
SPLITS = NAMES.split()
CLASSES = ("cat", "dog", "owl", "Cat", "cat ", "caf\u00e9", "cafe\u0301", "猫", "a", "A", "train station", "clip1",
           "clip2", ".hidden")  # fmt: skip
WRAPS = ("data", "images", "archive", "all")
KINDS = ("picture", "picture", "picture", "picture", "same", "cut", "empty", "text", "txt", "heic", "link", "gone")

Tree = Mapping[str, tuple[str, int]]
"""By path, the kind of a file and a number that it is drawn by; the kind 'folder' is one without files."""


@st.composite
def trees(draw: Any) -> dict[str, tuple[str, int]]:
    """A layout that somebody might mean, then anything done to it."""
    text = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=5).filter(
        lambda name: name not in (".", "..")
    )
    usual = st.lists(st.sampled_from(CLASSES[:3]), min_size=2, max_size=3, unique=True)
    names = draw(usual | st.lists(st.sampled_from(CLASSES) | text, min_size=1, max_size=4, unique=True))
    odd = st.integers(0, 5).map(lambda n: n == 0)  # most trees are odd in one way or two, else all would be refused
    names += [draw(st.sampled_from(SPLITS))] if draw(odd) else []
    kinds = [[name for name in SPLITS if name.lower().startswith(kind)] for kind in ("tr", ("va", "dev"), ("te", "ho"))]
    usual_splits = st.tuples(*(st.sampled_from(kind) for kind in kinds)).map(list)
    splits = draw(usual_splits if not draw(odd) else st.lists(st.sampled_from(SPLITS), max_size=3, unique=True))
    order = draw(st.sampled_from(["class", "split/class", "split/class", "split/split/class", "class/split", "both"]))
    wrap = draw(st.sampled_from(["", "", "", *[f"{name}/" for name in WRAPS]]))
    folders = []
    for cls in names:
        for split in splits or [""]:
            folders.append({
                "class": cls, "split/class": f"{split}/{cls}", "split/split/class": f"{split}/{split}/{cls}",
                "class/split": f"{cls}/{split}", "both": draw(st.sampled_from([cls, f"{split}/{cls}"])),
            }[order].strip("/") or cls)  # fmt: skip
    folders += [draw(st.sampled_from([*WRAPS, *SPLITS, *CLASSES]))] if draw(odd) else []
    clips, holes = draw(odd), draw(odd)
    found: dict[str, tuple[str, int]] = {}
    for folder in dict.fromkeys(folders):
        if holes and draw(odd):
            found[wrap + folder] = "folder", 0
            continue
        broken = holes and draw(odd)  # all of its files
        for i in range(draw(st.integers(1, 3) if holes else st.integers(3, 8))):
            kind = draw(st.sampled_from(KINDS[5:] if broken else KINDS))
            inner = f"clip{1 + i % 2}/" if clips else ""
            suffix = "txt" if kind == "txt" else "png"
            found[f"{wrap}{folder}/{inner}{i}.{suffix}"] = kind, draw(st.integers(0, 999))
    return found


def make(root: Path, tree: Tree) -> None:
    """Writes a tree; what the file system does not take is left out."""
    rng, whole = np.random.default_rng(0), []
    for path, (kind, number) in tree.items():
        at = root / path
        try:
            (at if kind == "folder" else at.parent).mkdir(parents=True, exist_ok=True)
            if kind in ("picture", "cut", "same"):
                draws = np.random.default_rng(0 if kind == "same" else number)
                Image.fromarray(draws.integers(0, 255, (SIDE, SIDE + 2, 3), np.uint8)).save(at)
                if kind == "cut":
                    at.write_bytes(at.read_bytes()[: 20 + number % 100])
                else:
                    whole.append(at)
            elif kind == "link" and whole:
                at.symlink_to(whole[rng.integers(len(whole))])
            elif kind == "gone":
                at.symlink_to("nowhere.png")
            elif kind != "folder":
                at.write_bytes({"empty": b"", "heic": b"\0\0\0\x18ftypheic" + bytes(90)}.get(kind, b"text " * 9))
        except (OSError, ValueError):
            continue


def readable(file: str) -> bytes | None:
    """A digest of the picture in a file, or None."""
    try:
        return hashlib.sha256(decode(Files([file])(0), short_side=SIDE).tobytes()).digest()
    except (OSError, Unreadable):
        return None


def attempt(tree: Tree) -> tuple[str, list[str]]:
    """'trained' or 'refused', and what is wrong with that."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        root.mkdir()
        make(root, tree)
        config = tiny.make_config(
            root, data__split="auto", data__resize=SIDE, data__size=SIDE, data__val=0.2, epochs=1, epoch_steps=1,
            batch_size=2, model__width=2, model__blocks=(1,), cache__features="off",
        )  # fmt: skip
        console = make_console()
        try:
            with console.capture() as captured:
                result = runs.run(config, Path(folder) / "run", console=console)
        except UserError as error:
            return "refused", [] if str(error).isprintable() else [f"a refusal that is no line: {str(error)!r}"]
        except Exception:
            return "trained", [traceback.format_exc()]
        listed = load.open_data(config.data, seed=config.seed)
        return "trained", losses(root, listed, result, " ".join(captured.get().split()))


def losses(root: Path, listed: load.DatasetIndex, result: Mapping[str, Any], said: str) -> list[str]:
    """What a run that ended did not say."""
    found, skipped = [], {name for name, _ in result["skipped"]["files"]}
    names, classes = listed.source.names, result["classes"]
    for name in classes:
        if is_split_name(name) and repr(name) not in " ".join(listed.notes):
            found.append(f"{name!r} is a class, and nothing says so")
    for split in ("validation", "test"):
        shares = (result["by_class"].get(split) or {}).items()
        silent = [name for name, share in shares if not share["seen"] and name not in result["without_images"][split]]
        if silent:
            found.append(f"{silent} have no {split} images, and nothing says so")
        if result["without_images"].get(split) and f"no {split} images of" not in said:
            found.append(f"the {split} accuracy does not say what it says nothing of: {said[-400:]}")
    where = collections.defaultdict(set)
    for split, members in listed.splits.items():
        for i in members:
            if names[i] not in skipped and (digest := readable(os.path.join(root, names[i]))):
                where[digest].add(split)
    if any(len(splits) > 1 for splits in where.values()) and not re.search(r" images? (is|are) in ", said):
        found.append(f"a picture in {max(where.values(), key=len)}, and nothing says so")
    counts = np.bincount(listed.truth[[i for i in listed.pool if names[i] not in skipped]], minlength=len(classes))
    if not counts.all():
        found.append(f"a class without a training image: {[classes[i] for i in np.flatnonzero(counts == 0)]}")
    for folder in {path.parent for path in root.rglob("*.png")}:  # every folder with pictures is used, or named
        inside = [f"{folder.relative_to(root)}/{path.name}" for path in folder.glob("*.png") if readable(str(path))]
        left = [name for name in inside if name not in names]
        if left and not any(name == gone or name.startswith(f"{gone}/") for name in left for gone in skipped):
            found.append(f"{left[:3]} are neither used nor skipped")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=int)
    seconds, began = parser.parse_args().seconds, time.monotonic()
    ends: collections.Counter[str] = collections.Counter()
    lost: dict[str, Tree] = {}

    @settings(max_examples=200, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(trees())
    def some(tree: Tree) -> None:
        if time.monotonic() - began > seconds:
            return
        end, wrong = attempt(tree)
        ends[end] += 1
        for words in wrong:
            ends["lost"] += 1
            lost.setdefault(words[-300:], tree)

    while time.monotonic() - began < seconds:
        some()
        forget_programs()
    for words, tree in lost.items():
        print(f"lost: {words}\n  {dict(tree)!a}")
    print(
        f"fuzz-data: {ends['trained'] + ends['refused']:,} trees in {time.monotonic() - began:.0f} s "
        f"({ends['trained']:,} trained, {ends['refused']:,} refused), lost {ends['lost']:,}"
    )
    return int(ends["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
