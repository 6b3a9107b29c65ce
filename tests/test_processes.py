"""Several devices and several processes end where one device ends."""

import json

import numpy as np
import pytest

from tests import commands, tiny
from tljax.checkpoint import saved_steps, saved_variables

pytestmark = pytest.mark.slow

OVERRIDES = {
    "data.split": "50/25/25", "data.resize": 40, "data.size": 32, "model.weights": "None", "model.width": 4,
    "model.blocks": "(1,1)", "transfer.train": "all", "epochs": 2, "batch_size": 10, "optimizer.name": "sgd",
    "optimizer.lr": 0.01, "cross_replica_bn": True, "accumulate": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    tiny.make_folder(root / "photos")
    overrides = {"data.source": f"folder:{root / 'photos'}", **OVERRIDES}
    found = commands.run("configs/folder.py", root / "run", overrides)
    assert found.returncode == 0, found.stderr
    return root / "run", overrides


def check_same(ours, theirs):
    results = [json.loads((workdir / "result.json").read_text()) for workdir in (ours, theirs)]
    for a, b in zip(*(r["history"] for r in results), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)
    assert saved_steps(ours) == saved_steps(theirs)
    ours, theirs = (saved_variables(w, saved_steps(w)[-1])["params"] for w in (ours, theirs))
    np.testing.assert_allclose(ours["conv1"]["kernel"], theirs["conv1"]["kernel"], atol=1e-4)
    return results[0]


def test_four_devices(alone, tmp_path):
    workdir, overrides = alone
    found = commands.run("configs/folder.py", tmp_path / "run", overrides, devices=4)
    assert found.returncode == 0, found.stderr
    assert check_same(tmp_path / "run", workdir)["device"]["count"] == 4


def test_two_processes_of_two_devices(alone, tmp_path):
    workdir, overrides = alone
    found = commands.run_processes("configs/folder.py", tmp_path / "run", overrides, processes=2, devices=2)
    assert [status for status, _, _ in found] == [0, 0], found
    assert "test accuracy" in found[0][1]
    assert "epoch" not in found[1][1]  # one process speaks
    result = check_same(tmp_path / "run", workdir)
    assert (result["device"]["processes"], result["device"]["count"]) == (2, 4)


def test_a_mistake_ends_every_process_with_its_line(alone, tmp_path):
    _, overrides = alone
    found = commands.run_processes(
        "configs/folder.py", tmp_path / "run", {**overrides, "transfer.train": "layer9"}, processes=2
    )
    for status, _, err in found:
        assert status == 2
        assert "layer9" in err
        assert "Traceback" not in err


def test_a_teacher_and_its_student_over_two_processes(alone, tmp_path):
    _, overrides = alone
    few = {**overrides, "data.labels": "25%", "semi.method": "pseudo_label"}
    one = commands.run("configs/folder.py", tmp_path / "one", few)
    assert one.returncode == 0, one.stderr
    found = commands.run_processes("configs/folder.py", tmp_path / "two", few, processes=2, devices=1)
    assert [status for status, _, _ in found] == [0, 0], found
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
    assert one["rounds"][1]["labels"] == two["rounds"][1]["labels"]
