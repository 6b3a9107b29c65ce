import os

import numpy as np
import pytest
from PIL import Image

from tljax.core.errors import UserError
from tljax.data.decode import decode
from tljax.data.folder import open_folder


def picture(path, color=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), color).save(path, "PNG")


def tree(root, *names):
    for name in names:
        picture(root / name)
    return root


def test_classes_are_the_folders_and_indices_follow_the_names(tmp_path):
    source = open_folder(tree(tmp_path, "dog/b.png", "cat/2.jpg", "cat/deep/er/1.JPG", "dog/a.png"))
    assert source.names == ("cat/2.jpg", "cat/deep/er/1.JPG", "dog/a.png", "dog/b.png")
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.labels.dtype == np.int32
    assert source.splits == {}
    assert source.boxes is None
    assert source.skipped == ()
    assert source.spec == f"folder:{tmp_path}"
    assert decode(source.read(3), short_side=8).shape == (8, 12, 3)


@pytest.mark.parametrize("train, val, test", [("train", "val", "test"), ("Training", "validation", "testing")])
def test_official_splits_in_their_spellings(tmp_path, train, val, test):
    names = [f"{split}/{cls}/{i}.png" for split in (train, val, test) for cls in "ab" for i in range(2)]
    source = open_folder(tree(tmp_path, *names))
    assert {name: [source.names[i] for i in members] for name, members in source.splits.items()} == {
        "train": [f"{train}/{x}" for x in ("a/0.png", "a/1.png", "b/0.png", "b/1.png")],
        "val": [f"{val}/{x}" for x in ("a/0.png", "a/1.png", "b/0.png", "b/1.png")],
        "test": [f"{test}/{x}" for x in ("a/0.png", "a/1.png", "b/0.png", "b/1.png")],
    }
    assert source.classes == ("a", "b")


def test_train_and_val_alone_make_no_test_split(tmp_path):
    source = open_folder(tree(tmp_path, "train/a/1.png", "train/b/1.png", "valid/b/2.png", "unlabeled/9.png"))
    assert sorted(source.splits) == ["train", "val"]
    assert source.skipped == (("unlabeled/9.png", "outside of the folders train, valid"),)


def test_a_class_may_be_called_train(tmp_path):
    source = open_folder(tree(tmp_path, "bus/1.png", "car/1.png", "train/1.png"))
    assert source.classes == ("bus", "car", "train")
    assert not source.splits


def test_labels_from_file_names_flat_nested_and_within_splits(tmp_path):
    flat = tree(tmp_path / "flat", "great_pyrenees_12.jpg", "pug_1.jpg", "sub/pug_2.jpg", "readme_.jpg")
    source = open_folder(flat, label=r"regex:^(.+)_\d+")
    assert source.classes == ("great_pyrenees", "pug")
    assert source.names == ("great_pyrenees_12.jpg", "pug_1.jpg", "sub/pug_2.jpg")
    assert source.skipped == (("readme_.jpg", "its name gives no class by the regular expression"),)

    split = tree(tmp_path / "split", "train/pug_1.jpg", "train/cat_1.jpg", "test/x/pug_2.jpg")
    source = open_folder(split, label=r"regex:^(.+)_\d+\.jpg$")
    assert source.classes == ("cat", "pug")
    assert {name: members.tolist() for name, members in source.splits.items()} == {"train": [1, 2], "test": [0]}


def test_what_is_no_image_is_passed_over_and_named(tmp_path):
    tree(tmp_path, "a/1.png", "b/1.png", "loose.png", "a/no_suffix", "a/frame.0001", "a/Mr. Smith")
    for hidden in (".DS_Store", "a/._1.png", "__MACOSX/a/1.png", "a/Thumbs.db", "a/.git/x.png"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hidden).write_bytes(b"?")
    (tmp_path / "a/notes.TXT").write_text("?")
    (tmp_path / "a/folder.jpg").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    os.mkfifo(tmp_path / "a/pipe.png")
    source = open_folder(tmp_path)
    assert source.names == ("a/1.png", "a/Mr. Smith", "a/frame.0001", "a/no_suffix", "b/1.png", "c/1.png")
    assert dict(source.skipped) == {
        "a/folder.jpg": "a folder, not an image",
        "a/gone.png": "a broken link",
        "a/loop": "a link to a folder around it",
        "a/notes.TXT": "not an image (.txt)",
        "a/pipe.png": "not a regular file",
        "empty": "an empty folder",
        "loose.png": "not in a class folder",
    }


def test_odd_names_are_read_and_can_be_recorded(tmp_path):
    odd = ['it\'s "so"', "new\nline", "ünï 猫", "sp ace", "100%", "semi;colon $HOME `x`", "back\\slash", "-rf"]
    for name in odd:
        picture(tmp_path / name / f"{name}.png")
    raw = os.fsencode(tmp_path) + b"/latin\xe9"
    os.mkdir(raw)
    with open(raw + b"/caf\xe9.png", "wb") as file:
        file.write((tmp_path / "sp ace" / "sp ace.png").read_bytes())
    source = open_folder(tmp_path)
    assert source.classes == tuple(sorted([*odd, "latin\\xe9"]))
    for index, name in enumerate(source.names):
        name.encode("utf-8")
        assert decode(source.read(index), short_side=8).shape == (8, 12, 3)


def test_the_folder_is_not_changed(tmp_path):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(tmp_path.rglob("*"))}

    tree(tmp_path, "a/1.png", "b/1.png", "b/bad.txt")
    before = state()
    source = open_folder(tmp_path)
    source.read(0)
    assert state() == before


@pytest.mark.parametrize(
    "names, label, message",
    [
        ([], "folder", "no images in"),
        (["a/1.txt"], "folder", "no images in .* 'a/1.txt': not an image"),
        (["1.png", "2.png"], "folder", "no class folders; put them in CLASS"),
        (["a/1.png"], "folder", "only one class, 'a'"),
        (["all/a/1.png", "all/b/1.png"], "folder", "only one class, 'all', .*; is folder:.*all meant"),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], "folder", "class 'c' is in val .* no images in train"),
        (["val/a/1.png", "test/a/1.png"], "folder", "has test, val but no train"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], "folder", "two folders for one split"),
        (["a/1.png", "b/1.png"], "regex:^(z+)_", "matches none of the 2 file names in .*, such as '1.png'"),
        (["a/1.png", "b/1.png"], "regex:^(.+", "is no regular expression"),
        (["a/1.png", "b/1.png"], "regex:^.+", "has no group"),
        (["a/1.png", "b/1.png"], "breed", "'breed' is unknown for a folder; use 'folder' or 'regex:PATTERN'"),
    ],
)
def test_bad_folders_get_one_line(tmp_path, names, label, message):
    tree(tmp_path, *names)
    with pytest.raises(UserError, match=message) as caught:
        open_folder(tmp_path, label=label)
    assert "\n" not in str(caught.value)


def test_missing_folders_and_files_in_their_place(tmp_path):
    picture(tmp_path / "x.zip")
    with pytest.raises(UserError, match="no such folder"):
        open_folder(tmp_path / "no\nwhere")
    with pytest.raises(UserError, match="is a file, not a folder"):
        open_folder(tmp_path / "x.zip")
    with pytest.raises(UserError, match="cannot read the folder"):
        open_folder("nul\0byte")


def test_a_file_that_vanished_is_an_oserror(tmp_path):
    source = open_folder(tree(tmp_path, "a/1.png", "b/1.png"))
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(OSError):
        source.read(0)


@pytest.mark.real_data
def test_pacs_cartoon(shared):
    source = open_folder(shared / "data" / "pacs_cartoon")
    assert source.classes == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert np.bincount(source.labels).tolist() == [389, 457, 346, 135, 324, 288, 405]
    assert source.skipped == ()
