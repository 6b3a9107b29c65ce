"""The study that trains nothing: a picture in a network."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tljax.models.imagenet import class_names
from tljax.study import __main__ as command
from tljax.study.look import look
from tljax.study.seed002 import SAMOYED


def test_the_thousand_names():
    names = class_names()
    assert len(names) == 1000
    assert (names[0], names[258], names[999]) == ("tench", "Samoyed", "toilet tissue")


@pytest.mark.peer
def test_they_are_torchvisions():
    (folder,) = importlib.util.find_spec("torchvision").submodule_search_locations
    found: dict[str, list[str]] = {}
    exec((Path(folder) / "models/_meta.py").read_text(), found)  # to import all of it takes its compiled operators
    assert list(class_names()) == found["_IMAGENET_CATEGORIES"]


@pytest.mark.real_data
def test_a_real_dog(shared, tmp_path, capsys):
    """An American bulldog is no class of ImageNet; all five answers are dogs, and the activation cuts at zero."""
    picture = shared / "data/oxford_pets_3breeds/images/american_bulldog_10.jpg"
    weights = str(shared / "data/squeezenet1_0-imagenet.pth")
    seen = look(SAMOYED, picture, weights)
    assert seen.best[0][0] == "American Staffordshire terrier"
    assert all(151 <= class_names().index(name) <= 268 for name, _ in seen.best)  # the dogs among the classes
    assert seen.kernel.shape == (7, 7, 3, 96)
    assert seen.before.shape == (109, 109, 96)
    assert seen.before.min() < 0
    np.testing.assert_array_equal(seen.after, np.maximum(seen.before, 0))
    given = ["--folder", str(tmp_path), "--data", f"samoyed={picture}", "--set", f"model.weights={weights}"]
    assert command.main(["run", "002-table1", *given]) == 0
    folder = tmp_path / "full/002-table1"
    assert {path.name for path in folder.iterdir()} == {
        "after.png", "before.png", "filters.png", "report.html", "result.json", "table.md",
    }  # fmt: skip
    assert "| 1 | Samoyed | 95.04 % | American Staffordshire terrier |" in (folder / "table.md").read_text()
    told = json.loads((folder / "result.json").read_text())["first layer"]
    assert told == {
        "filters": 96,
        "largest": float(np.abs(seen.before).max()),
        "zeros": float(np.mean(seen.after == 0)),
    }


def test_what_it_needs(tmp_path, capsys):
    (tmp_path / "no.jpg").write_text("text")
    for given, words in (
        ([], "002-table1 needs a picture: --data samoyed=FILE"),
        (["--data", f"samoyed={tmp_path}/none.jpg", "--set", "model.weights=None"], "No such file"),
        (["--data", f"samoyed={tmp_path}/no.jpg", "--set", "model.weights=None"], "cannot be read as a picture"),
    ):
        assert command.main(["run", "002-table1", "--folder", str(tmp_path), *given]) == 2
        assert words in capsys.readouterr().err
