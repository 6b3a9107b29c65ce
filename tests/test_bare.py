"""A machine with JAX and little else: no TensorFlow, no TensorBoard, no clu."""

import json

import pytest

from tests import commands

# Found first by Python, hides the packages from every import and from find_spec alike.
HIDE = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] in ("tensorflow", "tensorboard", "clu", "tensorflow_datasets")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


@pytest.mark.slow
def test_training_needs_no_tensorflow(photos, tmp_path):
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDE)
    overrides = commands.TINY | {
        "data.source": f"folder:{photos}",
        "epochs": 1,
        "pictures": True,
        "trackers": "('tensorboard',)",
    }
    found = commands.run("configs/folder.py", tmp_path / "run", overrides, PYTHONPATH=str(tmp_path / "hide"))
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("TensorBoard is off") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["seen"] == 18
    assert not list((tmp_path / "run").glob("events*"))
