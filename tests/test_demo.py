"""The demo, as `make demo` runs it."""

import json

import pytest
from PIL import Image

from tests import commands

pytestmark = pytest.mark.slow


def test_last_stage_and_head_beats_scratch_and_nothing_is_easy(tmp_path):
    found = commands.run("configs/demo.py", tmp_path / "run", {}, quick=False)
    assert found.returncode == 0, found.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "run" / "result.json").read_text())["rows"]}
    assert list(rows) == ["head only", "last stage + head", "everything", "from scratch"]
    assert rows["last stage + head"]["interval95"][0] > rows["from scratch"]["interval95"][1]
    assert max(row["accuracy"] for row in rows.values()) < 0.98
    assert rows["head only"]["trained_parameters"] < rows["last stage + head"]["trained_parameters"]
    assert "95% interval" in found.stdout
    assert str(tmp_path / "run" / "demo.png") in found.stdout
    with Image.open(tmp_path / "run" / "demo.png") as picture:
        assert picture.width > 500
    again = commands.run("configs/demo.py", tmp_path / "run", {}, quick=False)
    assert again.returncode == 2
    assert "finished" in again.stderr
