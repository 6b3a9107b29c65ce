"""A machine with JAX and little else: no TensorFlow, no TensorBoard, no clu."""

import json

from tests import commands, tiny

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


def test_training_needs_no_tensorflow(tmp_path):
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDE)
    folder = tiny.make_folder(tmp_path / "photos")
    overrides = {"data.source": f"folder:{folder}", "data.split": "50/25/25", "data.resize": 40, "data.size": 32,
                 "model.weights": "None", "model.width": 4, "model.blocks": "(1,1)", "transfer.train": "all",
                 "epochs": 1}  # fmt: skip
    found = commands.run("configs/folder.py", tmp_path / "run", overrides, PYTHONPATH=str(tmp_path / "hide"))
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("TensorBoard is off") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["seen"] == 18
    assert not list((tmp_path / "run").glob("events*"))
