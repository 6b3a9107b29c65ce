"""What folders are taken for: public data sets' layouts, names of splits, classes with such names, and questions."""

import itertools
import json
import shutil
import unicodedata

import pytest
from PIL import Image

from tests import tiny
from tljax import api
from tljax.core.errors import UserError
from tljax.data import load
from tljax.data.folder import open_folder

CLASSES, CLIPS = ["cat", "dog"], ["clip1", "clip2"]


def files(*parts):
    """Two pictures in each folder of a product of names."""
    lists = [[part] if isinstance(part, str) else part for part in parts]
    return [f"{'/'.join(names)}/{i}.png" for names in itertools.product(*lists) for i in "12"]


def tree(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"?")  # listing opens nothing
    return root


def read(root, names, **options):
    source = open_folder(tree(root, names), **options)
    return source, {split: len(members) for split, members in source.splits.items()}


UNDERSTOOD = {
    "Kaggle's cats and dogs": (files(["training_set/training_set", "test_set/test_set"], CLASSES), "train test"),
    "train_set valid_set": (files(["train_set", "valid_set"], CLASSES), "train val"),
    "Intel's scenes": (files(["seg_train/seg_train", "seg_test/seg_test"], CLASSES) + files("seg_pred/seg_pred"),
                       "train test"),
    "train2 val2": (files(["train2", "val2"], CLASSES), "train val"),
    "case and separators": (files(["Train Data", "DEV-data", "TEST_DATA"], CLASSES), "train val test"),
    "eval": (files(["train", "Eval"], CLASSES), "train val"),
    "dev and holdout": (files(["TRAIN", "dev", "hold-out"], CLASSES), "train val test"),
    "names in one word": (files(["trainset", "ValImages", "testset"], CLASSES), "train val test"),
    "a data set's name": (files(["cats_v_dogs_train", "cats_v_dogs_test"], CLASSES), "train test"),
    "Food-11": (files(["training", "validation", "evaluation"], CLASSES), "train val test"),
    "fruits-360": (files("fruits-360", ["Training", "Test"], CLASSES)
                   + files("fruits-360/test-multiple_fruits") + files("fruits-360/papers"), "train test"),
    "chest_xray": (files(["train", "val", "test"], CLASSES) + files("chest_xray", ["train", "val", "test"], CLASSES),
                   "train val test"),
    "monkeys": (files(["training/training", "validation/validation"], CLASSES), "train val"),
    "folders around it": (files("archive/real_vs_fake", ["train", "valid"], CLASSES), "train val"),
    "train/images": (files(["train/images", "test/images"], CLASSES), "train test"),
    "CLASS/train": (files(CLASSES, ["train", "test"]), "train test"),
    "CLASS/CLASS_train": (files("cat", ["cat_train", "cat_val"]) + files("dog", ["dog_train", "dog_val"]), "train val"),
    "short": (files(["tr", "te"], CLASSES), "train test"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_layouts_of_public_data_sets_are_understood(tmp_path, name):
    names, splits = UNDERSTOOD[name]
    source, found = read(tmp_path, names)
    assert source.classes == ("cat", "dog")
    assert found == dict.fromkeys(splits.split(), 4)
    assert len(source) + len(source.skipped) == len(names)
    assert bool(source.skipped) == any("left out" in note for note in source.notes)


@pytest.mark.parametrize(
    "names, note",
    [
        (files(["bus", "car", "train"]), "taken for a class: 'train'"),
        (files(["bus", "car", "train"], CLIPS), "say data.train=train data.test=FOLDER if not"),
        (files(["bus", "car", "train"], ["front", "back"]), "the 3 classes have the same folders in them"),
    ],
)
def test_a_class_called_train_is_a_class_and_said_to_be_one(tmp_path, names, note):
    source, found = read(tmp_path, names)
    assert source.classes == ("bus", "car", "train")
    assert not found and len(source) == len(names)
    assert note in "\n".join(source.notes)


def test_classes_of_official_splits_may_be_called_train(tmp_path):
    source, found = read(tmp_path, files(["train", "test"], ["bus", "car", "train"], CLIPS))
    assert source.classes == ("bus", "car", "train")
    assert found == {"train": 12, "test": 12} and source.notes == ("taken for a class: 'train'",)


def test_names_with_a_split_in_them_are_no_splits_if_they_do_not_agree(tmp_path):
    source, found = read(tmp_path, files(["train_station", "test_tube", "valid_ticket"]))
    assert source.classes == ("test_tube", "train_station", "valid_ticket")
    assert not found and not source.notes


@pytest.mark.parametrize(
    "names, question",
    [
        (files(["train", "test"]), "no class folders"),
        (files(["train", "test", "bus"]), "no class folders in 'train'.*data.train=. if all"),
        (
            files(["train", "test", "bus"], CLIPS),
            "'bus' with the same folders in it; say data.train=train data.test=test",
        ),
        (files(["train_1", "train_2", "test"], CLASSES), "two folders for one split.*data.train=train_1,train_2"),
        (files(["cat_train", "cat_test", "dog_train", "dog_test"]), "class and split in one name"),
        (files(["photos", "test"], CLASSES), "data.train=FOLDER data.test=test if they are splits"),
        (files(["train", "vaild"], CLASSES), "data.train=train data.test=FOLDER if they are splits"),
        (files(CLASSES) + files("test", CLASSES), r"data.test=test \(the rest is then train\)"),
        (
            files("train", CLASSES) + files("unlabelled"),
            "say data.unlabeled=unlabelled data.train=train if the images",
        ),
        (files("train", CLASSES) + files("rest"), "say data.train=train data.test=FOLDER to leave those out"),
        (files("labeled", CLASSES) + files("unlabeled"), "say data.unlabeled=unlabeled data.train=labeled if the"),
        (
            files(["Labelled_Images", "un-labelled images"], CLASSES),
            "say data.unlabeled=un-labelled images data.train=L",
        ),
        (files("labelled", CLASSES) + files("extra"), "say data.unlabeled=extra data.train=labelled if the images of"),
        (
            files([*CLASSES, "unlabeled2017"]),
            "say data.unlabeled=unlabeled2017 if the images of 'unlabeled2017' have no",
        ),
        (files("all", ["NoLabels", *CLASSES]), "say data.unlabeled=all/NoLabels if"),
        (files("cat", ["train", "test"]) + files("dog"), "test, train in 'cat', and none of them in 'dog'"),
        (files(["amazon", "webcam"], ["train", "test"], CLASSES), "is folder:.*amazon meant"),
        (files("fruits", ["Training", "Test"], CLASSES) + files("papers"), "is folder:.*fruits meant"),
        (files("a/a", ["train", "test"], CLASSES) + files("test/test"), "is folder:.*a/a meant"),
        (files("simpsons/simpsons", CLASSES) + files("kaggle_testset"), "is folder:.*simpsons/simpsons meant"),
        (files(["images", "segmentations"], CLASSES), "is folder:.*images meant"),
        (files("a/a", CLASSES) + files("b"), "is folder:.*a/a meant"),
        (files("all/of/it", CLASSES), "only one class, 'all', .*is folder:.*all/of/it meant"),
        (
            files(["train_old", "train_new", "test"], CLASSES),
            "data.train=train_new,train_old data.test=test if they are",
        ),
        (files(["fold1", "fold2", "fold3"], CLASSES), "data.train=FOLDER data.test=FOLDER if they are splits"),
        (files(["rps-test-set", "rps-validation"], CLASSES), "no train; .* data.validation=rps-validation"),
    ],
)
def test_what_can_be_read_in_two_ways_is_a_question_with_its_answer(tmp_path, names, question):
    with pytest.raises(UserError, match=question) as caught:
        read(tmp_path, names)
    assert "\n" not in str(caught.value)


def test_folders_can_be_named_one_by_one(tmp_path):
    names = files(["alpha", "beta/beta", "gamma, delta"], CLASSES)
    named = {"train": "alpha, beta", "test": "gamma, delta"}
    source, found = read(tmp_path / "data", names, named=named)
    assert source.classes == ("cat", "dog") and found == {"train": 8, "test": 4} and not source.skipped
    elsewhere = tree(tmp_path / "alpha", files(CLASSES))
    source = open_folder(tmp_path / "data", named={"train": "alpha", "val": str(elsewhere)})
    assert {split: len(members) for split, members in source.splits.items()} == {"train": 4, "val": 4}
    assert source.names[source.splits["val"][0]] == "val:alpha/cat/1.png"
    assert len(set(source.names)) == len(source.names)
    assert all(source.read(i) == b"?" for i in range(len(source)))


def test_a_named_folder_has_class_folders_in_it(tmp_path):
    names = files(["p", "q"], CLASSES)
    with pytest.raises(UserError, match=r"data.test names 'q/cat' of '.*', which has 2 images and no class folders"):
        read(tmp_path, names, named={"train": "p", "test": "q/cat"})


def test_what_is_not_named_is_as_the_folder_has_it(tmp_path):
    nested = files(CLASSES) + files("test", CLASSES)
    for named in ({"test": "test"}, {"train": ".", "test": "test"}):
        source, found = read(tmp_path / "nested", nested, named=named)
        assert source.classes == ("cat", "dog") and found == {"train": 4, "test": 4}
    source, found = read(tmp_path / "all", files(["train", "test", "bus"], CLIPS), named={"train": "."})
    assert source.classes == ("bus", "test", "train") and not found and len(source) == 12
    source, found = read(tmp_path / "other", files(["pictures", "test", "more"], CLASSES), named={"train": "pictures"})
    assert found == {"train": 4, "test": 4} and "left out" in source.notes[1]


@pytest.mark.parametrize(
    "named, message",
    [
        ({"train": "a", "test": "c"}, "data.test=c: there is no folder"),
        ({"train": "a", "val": "a/../a"}, "data.validation=a/../a: that folder is data.train, too"),
        ({"train": "a", "test": "empty"}, "data.test=empty: no images"),
    ],
)
def test_named_folders_that_cannot_be(tmp_path, named, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        read(tmp_path, files(["a", "b"], CLASSES), named=named)


def test_named_folders_are_those_of_a_folder():
    config = tiny.make_config("x", data__source="shapes:target", data__test="holdout")
    with pytest.raises(UserError, match=r"data\.test=holdout names a folder of folder:PATH; shapes:target has"):
        load.open_data(config.data, seed=0)


@pytest.mark.parametrize(
    "one, other, how",
    [
        ("Cat", "cat", "in case, spaces"),
        ("cat ", "cat", "in case, spaces"),
        ("big  cat", "big cat", "in case, spaces"),
        ("cat\u200b", "cat", "in case, spaces"),
        (
            unicodedata.normalize("NFC", "chaton gâté"),
            unicodedata.normalize("NFD", "chaton gâté"),
            "their Unicode form",
        ),
    ],
)
@pytest.mark.parametrize("split", [False, True])
def test_classes_that_nobody_can_tell_apart_are_named(tmp_path, one, other, how, split):
    names = files("train", [one, "dog"]) + files("test", [other, "dog"]) if split else files([one, other, "dog"])
    with pytest.raises(UserError, match=f"differ .*{how}") as caught:
        read(tmp_path, names)
    assert repr(one) in str(caught.value) or ascii(one) in str(caught.value)


def test_letters_may_differ_in_case(tmp_path):
    source, _ = read(tmp_path, files(["a", "A", "b"]))
    assert source.classes == ("A", "a", "b") and source.notes == ("classes A, a differ in case alone",)


def test_folders_without_images_are_named(tmp_path):
    (tmp_path / "owl").mkdir()
    (tmp_path / ".eel").mkdir()
    source, _ = read(tmp_path, [*files(CLASSES), "cow/notes.txt", "ant/film.mp4"])
    assert source.notes == ("no images in 'ant', 'cow', 'owl': no classes",)
    assert (".eel", "a hidden folder") in source.skipped


def test_what_a_run_wrote_is_no_data(tmp_path, photos, finished):
    """Finished, stopped, damaged, a part of a population: on folder:. its pictures would be a class."""
    shutil.copytree(photos, tmp_path / "d")
    shutil.copytree(finished, tmp_path / "d" / "runs" / "first")
    parts = {"stopped": ("config.json", "augmented.png", "checkpoints"), "member": ("result.json", "curves.png"),
             "damaged": ("metrics.csv", "curves.png", "predictions.npz")}  # fmt: skip
    for name, kept in parts.items():
        (tmp_path / "d" / name).mkdir()
        for part in kept:
            at = finished / part
            (shutil.copytree if at.is_dir() else shutil.copy)(at, tmp_path / "d" / name / part)
    source = open_folder(tmp_path / "d")
    assert source.classes == tiny.CLASSES and len(source) == 72
    assert dict(source.skipped) == dict.fromkeys(("runs/first", "stopped", "member", "damaged"), "the folder of a run")
    with pytest.raises(UserError, match="is the folder of a run of tljax"):
        open_folder(finished)


def test_files_of_other_programs_are_not_taken_for_a_run(tmp_path):
    for cls in CLASSES:
        (tmp_path / cls).mkdir()
        (tmp_path / cls / "config.json").write_text(json.dumps({"model": {"name": "bert"}}))
        (tmp_path / cls / "result.json").write_text(json.dumps({"rows": []}))
    assert len(read(tmp_path, files(CLASSES))[0]) == 4


def picture_tree(root, counts):
    """Pictures by folder and number."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (12, 12), (20 * i, 0, 0)).save(root / folder / f"{i}.png")
    return root


def test_a_class_whose_files_cannot_be_read_is_refused_by_name(tmp_path):
    root = picture_tree(tmp_path, {"train/cat": 4, "train/dog": 4, "train/owl": 2, "test/cat": 2, "test/owl": 2})
    for i in range(2):
        (root / f"train/owl/{i}.png").write_bytes((root / f"train/owl/{i}.png").read_bytes()[:40])
    config = tiny.make_config(root, data__split="official", data__val=0.0).data
    listed = load.open_data(config, seed=0)
    with pytest.raises(
        UserError, match=r"class 'owl' without a training image .* none of the 2 files .*train/owl/0\.png"
    ):
        load.decode_data(config, listed, resize=12, workdir=None)


def test_a_class_that_a_split_leaves_nothing_to_train_on_is_refused_by_name(tmp_path):
    root = picture_tree(tmp_path, {"cat": 20, "owl": 2})
    with pytest.raises(UserError, match="class 'owl' without a training image"):
        load.open_data(tiny.make_config(root, data__split="holdout:10:swapped", data__val=0.0).data, seed=0)


def test_classes_without_test_images_are_named_before_training(tmp_path):
    root = picture_tree(tmp_path, {"train/cat": 5, "train/dog": 4, "train/owl": 5, "test/dog": 2})
    config = tiny.make_config(root, data__split="official", data__val=0.25)
    outlook = api.plan(config)
    assert outlook.counts == {"train": (4, 3, 4), "val": (1, 1, 1), "test": (0, 2, 0)}
    assert "test has 2 images for 3 classes and none of 'cat', 'owl': the test says nothing of them" in str(outlook)
    assert [line.split() for line in str(outlook).splitlines() if line.strip()[:3] in CLASSES] == [
        ["cat", "4", "1", "0"], ["dog", "3", "1", "2"]
    ]  # fmt: skip
    assert "owl" in outlook._repr_html_()
    assert load.open_data(config.data, seed=0).sealed.as_dict()["read"] == 0


def test_of_many_classes_the_smallest_and_the_largest_are_told(tmp_path):
    root = picture_tree(tmp_path, {f"class{i:02}": 4 + i % 5 for i in range(25)})
    words = str(api.plan(tiny.make_config(root, data__split="50/25/25")))
    assert "25 classes; images: train 90" in words
    assert (
        "the smallest class is class00 (train 2, val 1, test 1), the largest class04 (train 4, val 2, test 2)" in words
    )


def test_an_accuracy_names_the_classes_that_it_says_nothing_of(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["without_images"] == {} and result["notes"] == []
    result["without_images"] = {"test": ["red"]}
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    assert "no test images of 'red'" in str(api.load(tmp_path / "run"))
    found = api.evaluate(finished)
    assert found.unseen == () and "no images of" not in str(found)


@pytest.mark.parametrize(
    "names, options, splits, left",
    [
        (files("labeled", CLASSES) + files("unlabeled"), {"unlabeled": "unlabeled"}, {}, 4),
        (files("labeled", CLASSES) + files("unlabeled"), {"unlabeled": "unlabeled", "named": {"train": "labeled"}},
         {"train": 4}, 4),
        (files("labeled", ["train", "test"], CLASSES) + files("extra"), {"unlabeled": "extra"},
         {"train": 4, "test": 4}, 8),
        (files(CLASSES) + files("unlabeled/deep"), {"unlabeled": "unlabeled"}, {}, 4),
        (files("labeled", CLASSES), {}, {}, 4),
        (files(["train", "test"], CLASSES) + files("unlabeled"), {}, {"train": 4, "test": 4}, 8),
    ],
)  # fmt: skip
def test_folders_of_images_without_labels_are_no_classes(tmp_path, names, options, splits, left):
    source, found = read(tmp_path, names, **options)
    assert (source.classes, found, len(source)) == (("cat", "dog"), splits, left)
    notes = [] if options or splits == {} else ["left out, since they are in no split: 'unlabeled' (2 images); "
                                                "data.unlabeled=unlabeled takes it"]  # fmt: skip
    assert list(source.notes) == notes


def test_a_class_may_be_called_unlabeled(tmp_path):
    source, _ = read(tmp_path, files([*CLASSES, "unlabeled"]), named={"train": "."})
    assert source.classes == ("cat", "dog", "unlabeled")
