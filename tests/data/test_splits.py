"""Splits: what each form promises, for any classes, sizes and seeds."""

import contextlib
import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tljax.core.errors import UserError
from tljax.data.folder import open_folder
from tljax.data.labels import cut_labels
from tljax.data.source import Source
from tljax.data.splits import make_splits


def listed(counts, splits=None):
    """A source of `counts[class]` images."""
    images = sorted((f"{cls}/{i:04}.jpg", cls) for cls, count in counts.items() for i in range(count))
    classes = tuple(sorted(counts))
    labels = np.array([classes.index(cls) for _, cls in images], np.int32)
    names = tuple(name for name, _ in images)
    return Source(spec="folder:x", names=names, labels=labels, classes=classes, read=None, splits=splits or {})


def named(source, parts):
    """The images of parts by name and class: what is left when indices change."""
    return {
        part: {(source.names[i], source.classes[source.labels[i]]) for i in members} for part, members in parts.items()
    }


def of_each(source, members):
    return np.bincount(source.labels[members], minlength=len(source.classes)).tolist()


# Any names: surrogate escapes stand for bytes of file names that are no UTF-8.
CLASS = st.text(st.characters(exclude_characters="/"), min_size=1, max_size=4)
COUNTS = st.dictionaries(CLASS, st.integers(0, 40), min_size=1, max_size=6).filter(lambda counts: any(counts.values()))
SEED = st.integers(0, 2**40)


@st.composite
def cuts(draw):
    """(text, what it asks for): shares of val and test, in percent or as fractions."""
    percent = sorted(draw(st.lists(st.integers(0, 99), min_size=2, max_size=2)))
    test, val = percent[0], percent[1] - percent[0]
    numbers = (100 - val - test, val, test) if test or draw(st.booleans()) else (100 - val, val)
    text = "/".join(str(n) if draw(st.booleans()) else f" {n}.0" for n in numbers)
    if draw(st.booleans()):
        text = "/".join(f"{n / 100:.2f}" for n in numbers)
    return text, {"val": Fraction(val, 100), "test": Fraction(test, 100)}


@st.composite
def sources(draw, *, official=False):
    """Sources of any classes and sizes; `official` ones with splits of their own, `train` among them."""
    source = listed(draw(COUNTS))
    if not official:
        return source
    names = draw(st.sampled_from([("train",), ("train", "test"), ("train", "val"), ("train", "val", "test")]))
    whose = draw(st.lists(st.sampled_from(names), min_size=len(source), max_size=len(source)))
    splits = {name: np.array([i for i, own in enumerate(whose) if own == name], np.int64) for name in names}
    return dataclasses.replace(source, splits=splits)


def attempt(source, **options):
    """The parts, or None where they are refused, in one line."""
    with contextlib.suppress(UserError):
        return make_splits(source, **options)
    with pytest.raises(UserError, match=r"\A.+\Z"):
        make_splits(source, **options)


def check_parts(source, found, expected, *, stratify):
    """`expected` has the images per part and group: of each class, or of all together."""
    if found is None:
        assert not all(sum(counts) for counts in expected.values())
        return
    together = np.concatenate(list(found.values()))
    assert np.array_equal(np.sort(together), np.arange(len(source)))
    assert set(found) == set(expected)
    for part, members in found.items():
        assert members.size and members.dtype == np.int64 and np.array_equal(members, np.unique(members))
        assert groups(source, members, stratify=stratify) == expected[part]


def groups(source, members, *, stratify):
    """Images per class, or the number of all."""
    counts = of_each(source, members)
    return counts if stratify else [sum(counts)]


@given(sources(), cuts(), st.sampled_from([0, 1, 5, 50, 99]), SEED, st.booleans())
def test_shares_are_floors_and_train_has_the_rest(source, cut, percent, seed, stratify):
    """Of each class, or of all images; nothing is left out, nothing comes twice."""
    text, shares = cut
    found = attempt(source, split=text, val=percent / 100, seed=seed, stratify=stratify)
    sizes = groups(source, np.arange(len(source)), stratify=stratify)
    expected = {part: [int(share * n) for n in sizes] for part, share in shares.items() if share}
    train = [n - sum(taken) for n, *taken in zip(sizes, *expected.values(), strict=True)]
    if percent and "val" not in expected:
        expected["val"] = [int(Fraction(percent, 100) * n) for n in train]
        train = [n - m for n, m in zip(train, expected["val"], strict=True)]
    check_parts(source, found, {"train": train, **expected}, stratify=stratify)


@given(sources(), st.integers(1, 9999), SEED, st.booleans(), st.booleans())
def test_what_is_held_out_is_rounded_to_the_nearest_image(source, share, seed, stratify, swapped):
    """In hundredths of a percent."""
    text = f"holdout:{share // 100}.{share % 100:02}" + ":swapped" * swapped
    found = attempt(source, split=text, seed=seed, stratify=stratify)
    sizes = groups(source, np.arange(len(source)), stratify=stratify)
    held = [(2 * share * n + 10_000) // 20_000 for n in sizes]
    rest = [n - m for n, m in zip(sizes, held, strict=True)]
    expected = {"train": held, "test": rest} if swapped else {"train": rest, "test": held}
    check_parts(source, found, expected, stratify=stratify)


@given(sources(official=True), st.sampled_from([0, 1, 20, 50, 99]), SEED, st.booleans())
def test_official_splits_stay_and_only_train_gives_to_validation(source, percent, seed, stratify):
    found = attempt(source, val=percent / 100, seed=seed, stratify=stratify)
    expected = {part: groups(source, members, stratify=stratify) for part, members in source.splits.items()}
    if percent and "val" not in expected:
        expected["val"] = [int(Fraction(percent, 100) * n) for n in expected["train"]]
        expected["train"] = [n - m for n, m in zip(expected["train"], expected["val"], strict=True)]
    check_parts(source, found, expected, stratify=stratify)
    for part in {"val", "test"} & set(source.splits) if found else ():
        assert np.array_equal(found[part], source.splits[part])


@given(sources(official=True), st.integers(2, 7), SEED, st.booleans())
def test_folds_partition_everything_but_the_official_test_split(source, count, seed, stratify):
    test = source.splits.get("test", np.zeros(0, np.int64))
    pool = np.setdiff1d(np.arange(len(source)), test)
    sizes = groups(source, pool, stratify=stratify)
    assume(max(sizes) > 1)  # else one fold may hold everything
    held = []
    for fold in range(count):
        found = attempt(source, split=f"kfold:{count}:{fold}", seed=seed, stratify=stratify)
        if found is None:  # fewer images than folds
            continue
        held.append(found["val"])
        assert np.array_equal(found.get("test", test), test)
        assert np.array_equal(np.sort(np.concatenate([found["train"], found["val"]])), pool)
        for n, m in zip(sizes, groups(source, found["val"], stratify=stratify), strict=True):
            assert m in (n // count, -(-n // count))
    assert np.array_equal(np.sort(np.concatenate(held)), pool)


FORMS = st.one_of(
    cuts().map(lambda cut: cut[0]),
    st.sampled_from(["official", "kfold:2:0", "kfold:4:1", "holdout:20", "holdout:50:swapped"]),
)


@given(sources(official=True), sources(official=True), FORMS, st.integers(0, 4), SEED, st.randoms())
def test_another_class_moves_no_image(source, others, split, per_class, seed, random):
    """Nor does another order of the classes and names."""
    more = [cls for cls in others.classes if cls not in source.classes]
    options = {"split": split, "val": 0.2, "per_class": per_class, "seed": seed}
    images = [(source, i) for i in range(len(source))]
    images += [(others, i) for i in range(len(others)) if others.classes[others.labels[i]] in more]
    random.shuffle(images)
    classes = [*source.classes, *more]
    random.shuffle(classes)
    official = {
        part: np.array([at for at, (own, i) in enumerate(images) if i in own.splits.get(part, ())], np.int64)
        for part in {**source.splits, **others.splits}
    }
    wider = Source(
        spec="folder:x",
        names=tuple(own.names[i] for own, i in images),
        labels=np.array([classes.index(own.classes[own.labels[i]]) for own, i in images], np.int32),
        classes=tuple(classes),
        read=None,
        splits=official,
    )
    assume(("val" in source.splits) == ("val" in official) or split != "official")
    found, again = attempt(source, **options), attempt(wider, **options)
    assume(found is not None and again is not None)
    again = named(wider, again)
    for part, images in named(source, found).items():
        assert images == {(name, cls) for name, cls in again[part] if cls in source.classes}


@given(sources(official=True), FORMS, st.integers(1, 41), SEED, st.booleans())
def test_few_per_class_are_nested_and_leave_the_other_parts_alone(source, split, few, seed, stratify):
    options = {"split": split, "val": 0.2, "seed": seed, "stratify": stratify}
    whole = attempt(source, **options)
    one, two = (attempt(source, per_class=n, **options) for n in (few, few + 1))
    assert (one is None) == (two is None) == (whole is None or 0 in of_each(source, whole["train"]))
    if one is not None:
        assert set(one["train"]) <= set(two["train"]) <= set(whole["train"])
        assert of_each(source, one["train"]) == [min(few, n) for n in of_each(source, whole["train"])]
        assert all(np.array_equal(one[part], whole[part]) for part in whole if part != "train")


TWO = st.lists(CLASS, min_size=2, max_size=2, unique_by=lambda name: name.encode("utf-8", "backslashreplace"))
SEEDS = st.lists(SEED, min_size=2, max_size=2, unique=True)


@given(TWO, SEEDS)
def test_a_split_is_its_seeds_and_each_class_is_drawn_by_itself(classes, seeds):
    """Of 60 images half may be taken in 10^17 ways."""
    seed, other = seeds
    source = listed(dict.fromkeys(classes, 60))
    for split in ("50/50", "kfold:2:0", "holdout:50"):
        for stratify in (True, False):
            first, again, others = (
                make_splits(source, split=split, seed=s, stratify=stratify)["train"] for s in (seed, seed, other)
            )
            assert np.array_equal(first, again) and not np.array_equal(first, others)
            if stratify:
                a, b = ({int(source.names[i][-8:-4]) for i in first if source.labels[i] == c} for c in (0, 1))
                assert a != b and not (split == "kfold:2:0" and a.isdisjoint(b))
    # What is cut from train, and which labels are kept of it, is drawn apart from each other.
    source = dataclasses.replace(source, splits={"train": np.arange(120)})
    half = make_splits(source, val=0.5, seed=seed)["val"]
    few = make_splits(source, per_class=30, seed=seed)["train"]
    labeled = cut_labels(source, np.arange(120), "50%", seed=seed, stratify=True)[0]
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations((half, few, labeled), 2))


ALMOST = st.from_regex(r"(kfold|holdout):[\d:.a-z]*|[\d./ ]+", fullmatch=True)


@given(
    sources(official=True), st.text(max_size=12) | ALMOST, st.floats(), st.integers(-1, 3), st.integers(-1, 2**70)
)  # fmt: skip
def test_whatever_is_asked_for_is_done_or_refused_in_one_line(source, split, val, per_class, seed):
    found = attempt(source, split=split, val=val, per_class=per_class, seed=seed)
    assert found is None or all(len(members) for members in found.values())


def test_shares_are_exact_where_floats_are_not():
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert len(make_splits(listed({"a": 100, "b": 100}), split="0.71/0.29")["val"]) == 58
    source = listed({"a": 100, "b": 100}, {"train": np.arange(200)})
    assert len(make_splits(source, split="official", val=0.29)["val"]) == 58


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "has no official splits; use data.split='70/20/10'"),
        ({"split": "70/20"}, "sums to 90; the shares must sum to 100"),
        ({"split": "0.5/0.4"}, r"sums to 0.9"),
        ({"split": "0/100"}, "leaves train empty"),
        ({"split": "80/20/-0"}, "is unknown; use 'official'"),
        ({"split": "1e999999999/20"}, "is unknown"),
        ({"split": "random"}, "is unknown"),
        ({"split": "100"}, "is unknown"),
        ({"split": "kfold:5:5"}, "I from 0 to K-1"),
        ({"split": "kfold:1:0"}, "K of at least 2"),
        ({"split": "kfold:x"}, "takes K"),
        (
            {"split": "95/5"},
            r"leaves val empty: the largest of 2 classes has 10 images, 20 in all \(train 20, val 0\)",
        ),
        ({"split": "90/5/5"}, r"leaves val empty: .* 20 in all \(train 20, val 0, test 0\)"),
        (
            {"split": "75/20/5"},
            r"leaves test empty: .* 20 in all \(train 16, val 4, test 0\); give test a larger",
        ),
        ({"split": "80/20", "val": 1.5}, "val 1.5 is no fraction"),
        ({"split": "80/20", "val": float("nan")}, "val nan is no fraction"),
        ({"split": "80/20", "per_class": -1}, "per_class -1 is negative"),
        ({"split": "80/20", "seed": -1}, "seed -1 is negative"),
    ],
)
def test_bad_options_get_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        make_splits(listed({"a": 10, "b": 10}), **options)
    assert "\n" not in str(caught.value)


def test_a_class_without_training_images_is_named():
    source = listed({"a": 5, "b": 5}, {"train": np.arange(0, 5), "test": np.arange(5, 10)})
    with pytest.raises(UserError, match="class 'b' has no training images"):
        make_splits(source, per_class=2)


@pytest.mark.real_data
def test_pacs_cartoon_has_466_validation_images(shared):
    source = open_folder(shared / "data" / "pacs_cartoon")
    parts = make_splits(source, split="80/20")
    assert {name: len(members) for name, members in parts.items()} == {"train": 1878, "val": 466}


def test_few_shot_swaps_the_cut():
    """Counts of PACS cartoon: a tenth of each class, to the nearest image, is 236 of 2,344."""
    counts = {"dog": 389, "elephant": 457, "giraffe": 346, "guitar": 135, "horse": 324, "house": 288, "person": 405}
    source = listed(counts)
    full = make_splits(source, split="holdout:10", val=0.2)
    few = make_splits(source, split="holdout:10:swapped", val=0.2)
    assert len(full["test"]) == 236
    assert len(full["train"]) + len(full["val"]) == 2108
    np.testing.assert_array_equal(np.sort(np.concatenate([few["train"], few["val"]])), full["test"])
    assert len(few["test"]) == 2108


@pytest.mark.parametrize("split", ["holdout:", "holdout:0", "holdout:100", "holdout:10:swap", "holdout:x"])
def test_a_holdout_that_is_none_is_refused(split):
    with pytest.raises(UserError, match="holdout"):
        make_splits(listed({"a": 20, "b": 20}), split=split)
