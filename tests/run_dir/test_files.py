"""Files that are whole, whoever writes them; folders of any name; which of them a run may have."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import folder
from tests import tiny
from tljax.core.errors import UserError
from tljax.run_dir import files as folders
from tljax.settings.fields import get_config
from tljax.train import runs

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys
from pathlib import Path
from tljax.run_dir.files import write_whole
for _ in range(300):
    write_whole(Path(sys.argv[1]), sys.argv[2] * 50_000)
"""


def test_two_processes_may_write_one_file(tmp_path):
    """As two commands that share a folder of studies write its tables."""
    path = tmp_path / "table.md"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, letter], cwd=ROOT) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert path.read_text() in ("a" * 50_000, "b" * 50_000)
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_of_arrays_is_refused_whatever_is_in_it(tmp_path):
    path, rng, refused = tmp_path / "arrays.npz", random.Random(0), 0
    folders.write_arrays(path, names=np.array(["a", "b"]), values=np.arange(100.0))
    content = path.read_bytes()
    for _ in range(1000):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            damaged[rng.randrange(len(damaged))] = rng.choice((rng.randrange(256), 0, 255, 127))
        path.write_bytes(damaged)
        try:
            folders.read_arrays(path, "names", "values")
        except UserError:
            refused += 1
    assert refused > 100


def test_what_a_killed_process_left_half_written_is_in_nobodys_way(tmp_path):
    (tmp_path / "config.json.123.part").write_text("{")
    folders.check_free(tmp_path, {})
    folders.claim(tmp_path, {"a": {"b": 1}})
    assert (tmp_path / "config.json").is_file()


@pytest.mark.parametrize(
    "path",
    ["/a*", "/a?", "/a[1]", "/a\\b", "/gs:/x", "/logs:/x", "/gs/run", "/s3/run", "//two", "/a.__lock", "/\udcff"],
)
def test_paths_that_the_checkpoint_library_takes_for_others_are_known(path):
    assert folders.is_misread(Path(path))


@pytest.mark.parametrize("path", ["/model", "/a b", "/~", "/é 🦉", "/a%20b", "/x~", "/gsx/run", "/a/gs", "/d,(1)#;$"])
def test_paths_that_it_takes_as_they_are_stay(path):
    assert not folders.is_misread(Path(path))


def test_a_folder_that_would_be_misread_has_another_name_while_it_is_open(tmp_path):
    folder = tmp_path / "run\\[1]"
    folder.mkdir()
    with folders.literal(folder) as place:
        assert not folders.is_misread(place)
        (place / "file").write_text("here")
    assert (folder / "file").read_text() == "here"
    assert not place.exists()


def test_where_there_is_no_such_name_the_folder_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_OPEN_FOLDERS", tmp_path / "nowhere")
    with pytest.raises(UserError, match="takes for another"):
        folders.check_free(tmp_path / "run[1]", {})
    folders.check_free(tmp_path / "run", {})


@pytest.mark.parametrize("name", ["a link to nothing", "links in a circle", "x" * 300, "file/run"])
def test_folders_that_cannot_be_are_refused_at_once(tmp_path, name):
    (tmp_path / "a link to nothing").symlink_to(tmp_path / "nothing")
    (tmp_path / "links in a circle").symlink_to(tmp_path / "links in a circle")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--workdir=[^\n]*$"):
        folders.check_free(tmp_path / name, {})


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path, monkeypatch):
    """The tests may run as root, whom no mode of a folder stops."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for workdir in (tmp_path, tmp_path / "new" / "run"):
        with pytest.raises(UserError, match="cannot be written to"):
            folders.check_free(workdir, {})


def config_of(source):
    return json.loads(json.dumps(tiny.make_config(source).to_dict()))


def begun(workdir, source, place=None):
    folders.claim(workdir, config_of(source))
    folders.write_arrays(workdir / folders.IMAGES, place=np.array(place or f"folder:{os.path.realpath(source)}"))
    return workdir


@pytest.mark.parametrize("other", ["photos/", "./photos", "link", "../{here}/photos", "{root}/photos"])
def test_one_place_written_in_another_way_is_the_same_run(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    run = begun(tmp_path / "run", "photos")
    other = other.format(here=tmp_path.name, root=tmp_path)
    folders.check_free(run, config_of(other))
    folders.write_json(run / folders.RESULT, {"classes": [], "config": {}, "members": []})
    with pytest.raises(folders.Finished):
        folders.check_free(run, config_of(other))


def test_a_finished_run_is_not_said_to_be_that_of_images_elsewhere(tmp_path, monkeypatch):
    """Of `photos` seen from another folder, too, whose config has the same words."""
    run = begun(tmp_path / "run", "photos", "folder:/elsewhere/photos")
    folders.write_json(run / folders.RESULT, {"classes": [], "config": {}, "members": []})
    folders.check_free(run, config_of("photos"))
    (run / folders.IMAGES).unlink()  # as older versions left it: where the images lie is all there is to compare
    with pytest.raises(UserError, match=r"data\.source"):
        folders.check_free(run, config_of("others"))


def test_images_of_another_kind_are_another_config(tmp_path):
    run, other = begun(tmp_path / "run", "photos"), config_of("photos")
    for source in ("pets:photos", "shapes:tiny", "tfds:cats_vs_dogs"):
        other["data"]["source"] = source
        with pytest.raises(UserError, match=r"data\.source"):
            folders.check_free(run, other)


def test_a_run_notes_where_its_images_lie_now(tmp_path):
    run = begun(tmp_path / "run", "photos")
    folders.claim(run, config_of("elsewhere"))
    assert folders.read_config(run)["data"]["source"] == "folder:elsewhere"


def test_a_home_is_filled_in_and_any_other_tilde_is_a_name(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders.named("~/run") == tmp_path / "run"
    assert folders.named("~nobody-of-that-name/run") == Path("~nobody-of-that-name/run")


def test_a_folder_of_another_run_is_refused_before_anything_is_chosen(tmp_path, capsys):
    config = folder.get_config()
    config.data.source = f"folder:{tmp_path}/nowhere"  # would be refused while choosing
    folders.claim(tmp_path / "run", get_config().to_dict())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("")
    for name, words in (("run", "holds a run of another config"), ("notes", "has files in it but no run")):
        with pytest.raises(UserError, match=words):
            runs.run(config, tmp_path / name)
    assert not capsys.readouterr().out
