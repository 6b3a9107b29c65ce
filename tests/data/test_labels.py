"""Few labels: which images keep theirs, and labels that a network gave to the others."""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tljax.core.errors import UserError
from tljax.data import labels, load
from tljax.data.labels import PseudoLabels, cut_labels
from tljax.data.source import Source
from tljax.report.console import make_console
from tljax.train import single_run
from tljax.train.checks import check

QUIET = make_console(quiet=True)


def make_source(counts=(200, 60, 7)) -> Source:
    where = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    names = tuple(f"{label}/{i:04}" for i, label in enumerate(where))
    return Source("made", names, where, tuple("abc"[: len(counts)]), lambda index: b"")


def of_each(source, chosen):
    return np.bincount(source.labels[chosen], minlength=len(source.classes)).tolist()


def test_a_share_of_each_class_or_of_all_or_a_number_per_class():
    source, everything = make_source(), np.arange(267)
    labeled, unlabeled = cut_labels(source, everything, "10%", seed=0, stratify=True)
    assert of_each(source, labeled) == [20, 6, 1]
    assert np.array_equal(np.union1d(labeled, unlabeled), everything) and len(labeled) + len(unlabeled) == 267
    assert of_each(source, cut_labels(source, everything, "1%", seed=0, stratify=True)[0]) == [2, 1, 1]
    assert of_each(source, cut_labels(source, everything, "4", seed=0, stratify=False)[0]) == [4, 4, 4]
    uniform = [of_each(source, cut_labels(source, everything, "1%", seed=s, stratify=False)[0]) for s in range(40)]
    assert all(sum(counts) == 3 for counts in uniform) and any(counts[2] for counts in uniform)
    assert any(0 in counts[:2] for counts in uniform)  # a class may be left without any


COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=3).filter(any)


@given(COUNTS, st.integers(1, 9999), st.integers(1, 40), st.integers(0, 2**40), st.booleans(), st.data())
def test_labels_kept_are_counted_by_class_and_larger_shares_contain_smaller_ones(
    counts, share, each, seed, stratify, data
):
    """Shares in hundredths of a percent, to the nearest image and at least one, and numbers per class."""
    source = make_source(counts)
    train = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(source), max_size=len(source))))
    sizes = of_each(source, train)
    pools = sizes if stratify else [sum(sizes)]
    of_share = [min(n, max(1, (2 * share * n + 10_000) // 20_000)) for n in pools]
    smaller: dict[str, set[int]] = {"%": set(), "": set()}
    for how, wanted in (
        (f"{share // 200}.{share // 2 % 100:02}%", None),
        (f"{share // 100}.{share % 100:02}%", of_share),
        (str(each), [min(each, n) for n in sizes]),
        (str(each + 1), [min(each + 1, n) for n in sizes]),
    ):
        try:
            labeled, unlabeled = cut_labels(source, train, how, seed=seed, stratify=stratify)
        except UserError:
            assert wanted is None or sum(wanted) == len(train)
            continue
        assert np.array_equal(np.sort(np.concatenate([labeled, unlabeled])), train)
        found = of_each(source, labeled)
        by_class = stratify or not how.endswith("%")
        assert wanted is None or (found if by_class else [sum(found)]) == wanted
        kind = how.lstrip("0123456789.")
        assert smaller[kind] <= set(labeled.tolist())
        smaller[kind] = set(labeled.tolist())


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=2, unique=True), st.booleans())
def test_seeds_differ_in_whose_labels_are_kept(seeds, stratify):
    seed, other = seeds
    source = make_source((60, 60))
    one, again, two = (
        cut_labels(source, np.arange(120), "50%", seed=s, stratify=stratify)[0] for s in (seed, seed, other)
    )
    assert np.array_equal(one, again) and not np.array_equal(one, two)


@given(st.text(max_size=8) | st.from_regex(r"[\d.]*%?", fullmatch=True))
def test_any_text_is_a_form_or_refused_in_one_line(how):
    source = make_source((30, 4))
    with contextlib.suppress(UserError):
        labeled, unlabeled = cut_labels(source, np.arange(34), how, seed=0, stratify=True)
        assert len(labeled) and (len(unlabeled) or how == "all")
        return
    with pytest.raises(UserError, match=r"\A.+\Z"):
        cut_labels(source, np.arange(34), how, seed=0, stratify=True)


@given(COUNTS, st.data(), st.booleans())
def test_each_image_trains_on_its_own_label_or_on_the_one_it_was_given(counts, data, soft):
    source = make_source(counts)
    fates = st.sampled_from(["labeled", "unlabeled", "given", "elsewhere"])
    fate = np.array(data.draw(st.lists(fates, min_size=len(source), max_size=len(source))))
    hidden = np.flatnonzero(np.isin(fate, ["unlabeled", "given"]))
    chosen = np.array(data.draw(st.permutations(np.flatnonzero(fate == "given").tolist())), np.int64)
    known = source.labels.copy()
    known[hidden] = labels.UNLABELED
    rng, classes = np.random.default_rng(0), len(source.classes)
    made = rng.integers(0, classes, len(chosen)).astype(np.int32)
    if soft:
        made = rng.dirichlet(np.ones(classes), len(chosen)).astype(np.float32)
    pseudo = PseudoLabels(np.array([source.names[i] for i in chosen], dtype=str), made)
    labeled = np.flatnonzero(fate == "labeled")
    train_on, targets = labels.give(dataclasses.replace(source, labels=known), labeled, hidden, pseudo)
    assert np.array_equal(train_on, np.flatnonzero(np.isin(fate, ["labeled", "given"])))
    assert np.array_equal(targets[chosen], made)
    own = source.labels[labeled]
    assert np.array_equal(targets[labeled], np.eye(classes)[own] if soft else own)
    assert targets.dtype == (np.float32 if soft else np.int32)


@pytest.mark.parametrize("how", ["none", "0%", "100%", "0", "2.5", "-3", "10 %", ""])
def test_other_forms_are_refused(how):
    with pytest.raises(UserError, match="is not 'all', a share such as '10%', or a number per class"):
        cut_labels(make_source(), np.arange(267), how, seed=0, stratify=True)


def test_no_images_left_without_a_label():
    with pytest.raises(UserError, match="leaves none of the 267 training images unlabeled"):
        cut_labels(make_source(), np.arange(267), "200", seed=0, stratify=True)


def listed(photos, **settings):
    return load.open_data(tiny.make_config(photos, data__labels="25%", **settings).data, seed=0)


def test_labels_are_out_of_reach(photos):
    found = listed(photos)
    assert (found.source.labels[found.splits["unlabeled"]] == labels.UNLABELED).all()
    assert (found.targets[found.splits["train"]] == found.truth[found.splits["train"]]).all()
    assert not set(found.splits["train"]) & set(found.splits["unlabeled"])
    assert len(found.splits["train"]) == 9 and len(found.pool) == 36


def test_pseudo_labels_join_the_labeled(photos, tmp_path):
    before = listed(photos)
    chosen = before.splits["unlabeled"][::2]
    names = np.array([before.source.names[i] for i in chosen])
    PseudoLabels(names, np.full(len(names), 2, np.int32)).save(tmp_path / "hard.npz")
    hard = listed(photos, data__pseudo=str(tmp_path / "hard.npz"))
    assert np.array_equal(hard.splits["train"], np.union1d(before.splits["train"], chosen))
    assert (hard.targets[chosen] == 2).all() and np.array_equal(hard.splits["unlabeled"], before.splits["unlabeled"])
    rows = np.tile(np.array([[0.5, 0.2, 0.3]], np.float32), (len(names), 1))
    PseudoLabels(names, rows).save(tmp_path / "soft.npz")
    soft = listed(photos, data__pseudo=str(tmp_path / "soft.npz"))
    assert np.array_equal(soft.targets[chosen], rows)
    assert np.array_equal(soft.targets[before.splits["train"]].argmax(1), before.targets[before.splits["train"]])
    # A soft target that is certain trains as a hard one does.
    PseudoLabels(names, np.eye(3, dtype=np.float32)[np.full(len(names), 2)]).save(tmp_path / "certain.npz")
    ends = [
        single_run.run(
            tiny.make_config(photos, data__labels="25%", data__pseudo=str(tmp_path / f"{kind}.npz"), epochs=2),
            tmp_path / kind,
            console=QUIET,
        )
        for kind in ("hard", "certain")
    ]
    for a, b in zip(*(end["history"] for end in ends), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5) and a["val_correct"] == b["val_correct"]


@pytest.mark.parametrize(
    ("names", "targets", "words"),
    [
        (["red/000.png", "red/000.png"], np.zeros(2, np.int32), "two labels for one image"),
        (["no.png"], np.zeros(1, np.int32), "'no.png', which is not one of the unlabeled images"),
        (["red/000.png"], np.full(1, 3, np.int32), "a label beyond the 3 classes"),
        (["red/000.png"], np.full((1, 4), 0.25, np.float32), "4 probabilities per image, but there are 3 classes"),
        (["red/000.png"], np.zeros(1, np.float32), "one int, or one row of probabilities, per name"),
        (["red/000.png"], np.zeros(2, np.int32), "one int, or one row of probabilities, per name"),
    ],
)
def test_pseudo_labels_that_do_not_fit(photos, tmp_path, names, targets, words):
    found = listed(photos)
    names = [found.source.names[found.splits["unlabeled"][0]] if name == "red/000.png" else name for name in names]
    PseudoLabels(np.array(names), targets).save(tmp_path / "p.npz")
    with pytest.raises(UserError, match=words):
        listed(photos, data__pseudo=str(tmp_path / "p.npz"))


@pytest.mark.parametrize(
    "targets", [np.array([[np.nan, 0.5, 0.5]]), np.array([[-0.5, 1.0, 0.5]]), np.array([[1.0, 1.0, 1.0]])]
)
def test_rows_that_are_no_probabilities(tmp_path, targets):
    labels.PseudoLabels(np.array(["a"]), targets.astype(np.float32)).save(tmp_path / "p.npz")
    with pytest.raises(UserError, match=r"rows that are no probabilities"):
        labels.PseudoLabels.load(tmp_path / "p.npz")


def test_files_that_are_no_pseudo_labels(photos, tmp_path):
    (tmp_path / "p.npz").write_bytes(b"no zip")
    labels.PseudoLabels(np.array(["a"]), np.array(0)).save(tmp_path / "flat.npz")
    labels.PseudoLabels(np.array(["a"] * 99), np.zeros(99, int)).save(tmp_path / "flipped.npz")
    damaged = bytearray((tmp_path / "flipped.npz").read_bytes())
    damaged[60:80] = bytes(20)
    (tmp_path / "flipped.npz").write_bytes(damaged)
    with pytest.raises(UserError, match=r"holds \(1,\) names and int64 targets of \(\)"):
        listed(photos, data__pseudo=str(tmp_path / "flat.npz"))
    for path in (tmp_path / "flipped.npz", tmp_path / "p.npz", tmp_path / "none.npz", tmp_path):
        with pytest.raises(UserError, match=r"is no file of pseudo-labels"):
            listed(photos, data__pseudo=str(path))
    with pytest.raises(UserError, match=r"labels for unlabeled images, but data\.labels=all"):
        load.open_data(tiny.make_config(photos, data__pseudo="p.npz").data, seed=0)


def test_hidden_labels_change_nothing(photos, tmp_path, monkeypatch):
    """With the labels of unlabeled images permuted, a run gives the same numbers."""
    config = tiny.make_config(photos, data__labels="25%", data__stratify=False, epochs=2)
    first = single_run.run(config, tmp_path / "a", console=QUIET)
    tiny.permute_labels(monkeypatch, config, "unlabeled")
    second = single_run.run(config, tmp_path / "b", console=QUIET)
    assert first["history"] == second["history"] and first["test"] == second["test"]
    for a, b in zip(*(np.load(tmp_path / x / "predictions.npz").values() for x in "ab"), strict=True):
        assert np.array_equal(a, b)


def opened(folder, **settings):
    config = tiny.make_config(folder, **settings)
    return load.open_data(config.data, seed=config.seed)


@pytest.mark.parametrize("how, train, more", [("all", 36, 0), ("25%", 9, 27)])
def test_a_folder_of_unlabeled_images_joins_those_without_a_label(photos, tmp_path, how, train, more):
    shutil.copytree(photos / "red", tmp_path / "more/deep")
    found = opened(photos, data__labels=how, data__unlabeled=str(tmp_path / "more"))
    alone = opened(photos, data__labels=how)
    assert [len(found.splits[name]) for name in ("train", "val", "test", "unlabeled")] == [train, 18, 18, 24 + more]
    for split in ("train", "val", "test"):
        assert np.array_equal(found.splits[split], alone.splits[split])
    added = found.splits["unlabeled"][more:]
    assert (found.truth[added] == labels.UNLABELED).all()
    names = [found.source.names[i] for i in added]
    assert names == [f"unlabeled:more/deep/{i:03}.png" for i in range(24)]
    assert found.source.read(int(added[3])) == (photos / "red/003.png").read_bytes()
    assert found.source.read.stamp(int(added[3]))[0] == len(found.source.read(int(added[3])))
    assert found.source.read.stamp(0) != found.source.read.stamp(int(added[0]))


def test_it_joins_any_source(photos):
    found = opened(
        photos, data__source="shapes:tiny", data__split="official", data__unlabeled=f"{photos}/red,{photos}/blue"
    )
    assert len(found.splits["unlabeled"]) == 48
    data = load.decode_data(tiny.make_config(photos).data, found, resize=40, workdir=None)
    assert data.pixels.held[data.splits["unlabeled"]].all()


@pytest.mark.parametrize(
    "value, words",
    [("nowhere", "there is no folder '.*/photos/nowhere' nor '.*nowhere'"), ("empty", "no images in"),
     ("red,red", "names red twice"), ("{photos}", "is all of '.*photos'")],
)  # fmt: skip
def test_unlabeled_folders_that_cannot_be(photos, tmp_path, value, words, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"data.unlabeled=.*{words}") as caught:
        opened(photos, data__unlabeled=value.format(photos=photos))
    assert "\n" not in str(caught.value)


def test_they_need_a_method(photos):
    with pytest.raises(UserError, match=r"or data\.unlabeled=FOLDER"):
        check(tiny.make_config(photos, semi__method="fixmatch"))
    check(tiny.make_config(photos, semi__method="fixmatch", data__unlabeled="more"))
