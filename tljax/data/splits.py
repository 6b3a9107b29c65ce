"""Which images are for training, validation and test: a function of the source's names and a seed."""

import re
import zlib
from fractions import Fraction

import numpy as np

from tljax.core.errors import UserError, counted
from tljax.data.source import Source

# Separate streams, so that a part cut from train and k images per class are drawn independently of the first split.
_SPLIT, _VAL, _FEW = range(3)
_FORMS = (
    "use 'official', percentages such as '70/20/10' or '80/20' (train/val/test or train/val), 'kfold:5:0', or "
    "'holdout:10'"
)


def make_splits(
    source: Source,
    *,
    split: str = "official",
    val: float = 0.0,
    per_class: int = 0,
    seed: int = 0,
    stratify: bool = True,
) -> dict[str, np.ndarray]:
    """Divides the images of a source.

    Each class is permuted by a generator of its own, seeded by (seed, crc32 of the class name): adding or removing a
    class moves no image of the others. Every part but train takes floor(fraction x images of the class), train takes
    the rest.

    Args:
      source: what to divide.
      split: `'official'`: the source's own splits; `'A/B/C'` or `'A/B'`: train/val/test or train/val as percentages or
        fractions of all images, official splits pooled; `'kfold:K:I'`: fold I (0 to K-1) of all images is `val`, the
        other folds `train`; an official test split stays out of the folds and is `test`; `'holdout:P'`: P percent of
        each class, to the nearest image, are `test`; `'holdout:P:swapped'`: the same cut with those images as `train`
        and all others as `test`, for few labels.
      val: the fraction of train that becomes `val` where `split` gives none; 0 for no validation part.
      per_class: training images kept per class (all where a class has fewer), taken after `val` is cut, larger numbers
        containing smaller ones; 0 for all.
      seed: not negative.
      stratify: divide class by class; otherwise all images together, so that class shares vary by chance.

    Returns:
      Sorted, disjoint int64 indices by `train` and, where they exist, `val` and `test`.

    Raises:
      UserError: a split that is no such form or does not sum to 100% (or 1), official splits that do not exist, a part
        left without images, a class without training images where `per_class` asks for some.
    """
    if seed < 0:
        raise UserError(f"seed {seed} is negative; use 0 or more")
    if per_class < 0:
        raise UserError(f"per_class {per_class} is negative; use 0 for all images, or the number to keep per class")
    if not 0 <= val < 1:
        raise UserError(f"val {val} is no fraction of the training images; use 0 (none) or one below 1, such as 0.2")

    everything = np.arange(len(source))
    if split == "official":
        parts = {name: np.sort(np.asarray(members, np.int64)) for name, members in source.splits.items()}
        if "train" not in parts:
            raise UserError(f"{source.spec} has no official splits; use data.split='70/20/10'")
    elif split.startswith("kfold:"):
        parts = _fold(source, split, seed=seed, stratify=stratify)
    elif split.startswith("holdout:"):
        parts = _hold_out(source, split, seed=seed, stratify=stratify)
    else:
        parts = _cut(source, everything, _fractions(split), purpose=_SPLIT, seed=seed, stratify=stratify)

    if val > 0 and "val" not in parts:
        share = {"val": Fraction(str(float(val)))}
        parts |= _cut(source, parts["train"], share, purpose=_VAL, seed=seed, stratify=stratify)
    if per_class:
        parts["train"] = _few(source, parts["train"], per_class, seed=seed, stratify=stratify)

    for name, members in parts.items():
        if not members.size:
            pool = np.concatenate(list(parts.values()))
            most = int(np.bincount(source.labels[pool], minlength=1).max())
            got = ", ".join(f"{part} {len(of_part):,}" for part, of_part in parts.items())
            raise UserError(
                f"split {split!r} leaves {name} empty: the largest of {counted(len(source.classes), 'class')} has "
                f"{counted(most, 'image')}, {len(pool):,} in all ({got}); give {name} a larger share, or more "
                "images per class"
            )
    return parts


def _fractions(split: str) -> dict[str, Fraction]:
    """'70/20/10' -> {'val': 1/5, 'test': 1/10}; exact, because floor(0.1 * 30) of floats would be 2 for some n."""
    words = [word.strip() for word in split.split("/")]
    if len(words) not in (2, 3) or not all(re.fullmatch(r"\d{1,9}(\.\d{0,9})?|\.\d{1,9}", word) for word in words):
        raise UserError(f"split {split!r} is unknown; {_FORMS}")
    numbers = [Fraction(word) for word in words]
    total = sum(numbers)
    if total not in (1, 100):
        raise UserError(f"split {split!r} sums to {float(total):g}; the shares must sum to 100 (or to 1)")
    if not numbers[0]:
        raise UserError(f"split {split!r} leaves train empty; its first number is the share of train")
    return {name: number / total for name, number in zip(("val", "test"), numbers[1:], strict=False) if number}


def permuted(
    source: Source, pool: np.ndarray, *, purpose: int, seed: int, stratify: bool
) -> list[tuple[int, np.ndarray]]:
    """(crc32 of the class name, permuted indices) for each class of `pool`; one group for all if not `stratify`."""
    pool = np.array(sorted(pool.tolist(), key=lambda i: source.names[i]), np.int64)
    if stratify:
        members = [(name, pool[source.labels[pool] == label]) for label, name in enumerate(source.classes)]
    else:
        members = [("", pool)]
    groups = []
    for name, indices in members:
        crc = zlib.crc32(name.encode("utf-8", "backslashreplace"))
        groups.append((crc, np.random.default_rng([seed, crc, purpose]).permutation(indices)))
    return groups


def _cut(
    source: Source, pool: np.ndarray, shares: dict[str, Fraction], *, purpose: int, seed: int, stratify: bool
) -> dict[str, np.ndarray]:
    """`pool` divided into `shares` and, as the rest, `train`."""
    taken: dict[str, list[np.ndarray]] = {name: [] for name in ("train", *shares)}
    for _, order in permuted(source, pool, purpose=purpose, seed=seed, stratify=stratify):
        at = 0
        for name, share in shares.items():
            count = int(share * len(order))
            taken[name].append(order[at : at + count])
            at += count
        taken["train"].append(order[at:])
    return {name: np.sort(np.concatenate(members)) for name, members in taken.items()}


def _fold(source: Source, split: str, *, seed: int, stratify: bool) -> dict[str, np.ndarray]:
    match = re.fullmatch(r"kfold:(\d{1,6}):(\d{1,6})", split)
    count, fold = (int(match[1]), int(match[2])) if match else (0, 0)
    if count < 2 or fold >= count:
        raise UserError(f"split {split!r} is unknown; 'kfold:K:I' takes K of at least 2, I from 0 to K-1, as kfold:5:0")
    test = np.sort(np.asarray(source.splits.get("test", np.zeros(0)), np.int64))
    pool = np.setdiff1d(np.arange(len(source)), test)
    held: list[np.ndarray] = []
    for crc, order in permuted(source, pool, purpose=_SPLIT, seed=seed, stratify=stratify):
        # Starting each class at another fold keeps folds of many small classes the same size.
        held.append(order[(np.arange(len(order)) + crc) % count == fold])
    validation = np.sort(np.concatenate(held))
    parts = {"train": np.setdiff1d(pool, validation), "val": validation}
    return parts | ({"test": test} if test.size else {})


def _hold_out(source: Source, split: str, *, seed: int, stratify: bool) -> dict[str, np.ndarray]:
    match = re.fullmatch(r"holdout:(\d{1,2}(?:\.\d{1,9})?)(:swapped)?", split)
    share = Fraction(match[1]) / 100 if match else Fraction(0)
    if not match or not share:
        raise UserError(
            f"split {split!r} is unknown; 'holdout:P' and 'holdout:P:swapped' take a percentage, as holdout:10"
        )
    groups = permuted(source, np.arange(len(source)), purpose=_SPLIT, seed=seed, stratify=stratify)
    cuts = [(order, int(share * len(order) + Fraction(1, 2))) for _, order in groups]
    few = np.sort(np.concatenate([order[:count] for order, count in cuts]))
    rest = np.sort(np.concatenate([order[count:] for order, count in cuts]))
    return {"train": few, "test": rest} if match[2] else {"train": rest, "test": few}


def _few(source: Source, train: np.ndarray, count: int, *, seed: int, stratify: bool) -> np.ndarray:
    del stratify  # "k per class" is about classes, however the rest was divided
    kept = [order[:count] for _, order in permuted(source, train, purpose=_FEW, seed=seed, stratify=True)]
    for name, members in zip(source.classes, kept, strict=True):
        if not members.size:
            raise UserError(
                f"class {name!r} has no training images, so {count} per class cannot be kept; give train a "
                "larger share or leave the class out"
            )
    return np.sort(np.concatenate(kept))
