import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.data.folder import open_folder
from tljax.data.source import Source
from tljax.data.splits import make_splits
from tljax.errors import UserError


def listed(counts, splits=None):
    """A source of `counts[class]` images."""
    classes = tuple(sorted(counts))
    names = [f"{cls}/{i:04}.jpg" for cls in classes for i in range(counts[cls])]
    labels = np.array([classes.index(name.split("/")[0]) for name in names], np.int32)
    return Source(spec="folder:x", names=tuple(names), labels=labels, classes=classes, read=None, splits=splits or {})


def names_of(source, indices):
    return {source.names[i] for i in indices}


COUNTS = st.dictionaries(st.sampled_from(["ant", "bee", "cat", "dög", "eel"]), st.integers(10, 40), min_size=2)


@settings(max_examples=40, deadline=None)
@given(
    COUNTS,
    st.sampled_from(["70/20/10", "0.7/0.2/0.1", "80/20", "kfold:5:3", "holdout:10"]),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_splits_are_disjoint_complete_sorted_and_repeatable(counts, split, seed, stratify):
    source = listed(counts)
    parts = make_splits(source, split=split, seed=seed, stratify=stratify)
    together = np.concatenate(list(parts.values()))
    assert np.array_equal(np.sort(together), np.arange(len(source)))
    for members in parts.values():
        assert members.dtype == np.int64
        assert np.array_equal(members, np.sort(members))
        assert members.size
    again = make_splits(source, split=split, seed=seed, stratify=stratify)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(0, 2**32), st.sampled_from(["70/20/10", "kfold:4:1", "holdout:20", "official"]))
def test_another_class_moves_no_image(counts, seed, split):
    def parts_of(counts):
        source = listed(counts)
        if split == "official":
            source = Source(**{**vars(source), "splits": {"train": np.arange(len(source))}})
        parts = make_splits(source, split=split, val=0.2, per_class=3, seed=seed)
        return {name: names_of(source, members) for name, members in parts.items()}

    without = parts_of(counts)
    with_more = parts_of({**counts, "aardvark": 17, "zebra": 23})
    for name in without:
        assert without[name] == {x for x in with_more[name] if not x.startswith(("aardvark", "zebra"))}


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(0, 2**32))
def test_every_class_gives_the_floor_of_its_share(counts, seed):
    source = listed(counts)
    parts = make_splits(source, split="70/20/10", seed=seed)
    for label, cls in enumerate(source.classes):
        of_class = {name: int((source.labels[members] == label).sum()) for name, members in parts.items()}
        assert of_class["val"] == counts[cls] * 2 // 10
        assert of_class["test"] == counts[cls] // 10


def test_shares_are_exact_where_floats_are_not():
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert len(make_splits(listed({"a": 100, "b": 100}), split="0.71/0.29")["val"]) == 58
    source = listed({"a": 100, "b": 100}, {"train": np.arange(200)})
    assert len(make_splits(source, split="official", val=0.29)["val"]) == 58


def test_folds_partition_everything_but_the_official_test_split():
    source = listed({"a": 11, "b": 12, "c": 3}, {"train": np.arange(0, 20), "test": np.arange(20, 26)})
    folds = [make_splits(source, split=f"kfold:4:{fold}") for fold in range(4)]
    assert np.array_equal(np.sort(np.concatenate([fold["val"] for fold in folds])), np.arange(20))
    for fold in folds:
        assert np.array_equal(fold["test"], np.arange(20, 26))
        assert np.array_equal(np.sort(np.concatenate([fold["train"], fold["val"]])), np.arange(20))
        assert 4 <= len(fold["val"]) <= 6


def test_official_splits_and_a_validation_part_cut_from_train():
    official = {"train": np.arange(0, 60), "test": np.arange(60, 80)}
    source = listed({"a": 40, "b": 40}, official)
    assert sorted(make_splits(source)) == ["test", "train"]
    parts = make_splits(source, val=0.25)
    assert np.array_equal(parts["test"], official["test"])
    assert np.array_equal(np.sort(np.concatenate([parts["train"], parts["val"]])), official["train"])
    assert np.bincount(source.labels[parts["val"]]).tolist() == [10, 5]
    with_val = listed({"a": 40, "b": 40}, {"train": np.arange(0, 60), "val": np.arange(60, 80)})
    assert np.array_equal(make_splits(with_val, val=0.25)["val"], np.arange(60, 80))


def test_few_per_class_are_nested_and_leave_the_other_parts_alone():
    source = listed({"a": 30, "b": 30, "c": 4})
    whole = make_splits(source, split="80/20", seed=3, stratify=False)
    five = make_splits(source, split="80/20", seed=3, stratify=False, per_class=5)
    two = make_splits(source, split="80/20", seed=3, stratify=False, per_class=2)
    assert np.array_equal(whole["val"], five["val"])
    assert set(two["train"]) < set(five["train"]) < set(whole["train"])
    assert np.bincount(source.labels[two["train"]]).tolist() == [2, 2, 2]
    assert np.bincount(source.labels[five["train"]])[2] <= 4


def test_seeds_differ():
    source = listed({"a": 30, "b": 30})
    assert not np.array_equal(make_splits(source, split="80/20", seed=0)["val"],
                              make_splits(source, split="80/20", seed=1)["val"])  # fmt: skip


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
        ({"split": "95/5"}, "leaves val empty: the largest of 2 classes has 10 images"),
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
