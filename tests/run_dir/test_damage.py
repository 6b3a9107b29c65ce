"""Checkpoints that were damaged, disks that are full: what can be used is, and what was there stays."""

import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import JsonCheckpointHandler

from tests import tiny
from tljax import inspect
from tljax.core.errors import UserError
from tljax.report.console import make_console
from tljax.run_dir import checkpoint
from tljax.run_dir.checkpoint import Checkpoints, saved_steps, saved_tree, saved_variables
from tljax.run_dir.train_state import TrainState
from tljax.train import single_run

QUIET = make_console(quiet=True)
# What TensorStore still reads of a damaged checkpoint ends when Orbax has closed its event loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_at(step):
    rng = np.random.default_rng(step)
    params = {"fc": {"kernel": rng.normal(size=(300, 70)).astype(np.float32), "bias": np.full(7, np.float32(step))}}
    moments = {"head": (rng.normal(size=(300, 70)), np.int32(step))}
    return TrainState(step=np.int32(step), params=params, batch_stats={}, opt_state=moments)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of steps 5 and 10."""
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir)
    for step in (5, 10):
        checkpoints.save(state_at(step), {"losses": [0.1 * step] * 20}, best=5)
    checkpoints.close()
    return workdir


def newest(workdir):
    """The state and record that are found, and what was told of others."""
    told: list[str] = []
    checkpoints = Checkpoints(workdir)
    try:
        found = checkpoints.newest(lambda record: state_at(0), told.append)
    finally:
        checkpoints.close()
    return found, told


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file, at):
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0b100
    file.write_bytes(data)


DAMAGES = {
    "missing": Path.unlink,
    "truncated": cut,
    "empty": lambda file: file.write_bytes(b""),
    **{f"a bit flipped at {at:.0%}": (lambda file, at=at: flip(file, at)) for at in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_becomes_of_a_file_a_checkpoint_is_what_was_written_or_told_and_the_one_before_it_used(
    saved, tmp_path, damage
):
    files = sorted(p.relative_to(saved) for p in (saved / "checkpoints" / "10").rglob("*") if p.is_file())
    assert len(files) > 5
    fallen_back = 0
    for number, file in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        DAMAGES[damage](workdir / file)
        found, told = newest(workdir)
        assert found is not None
        step = int(found[0].step)
        jax.tree.map(np.testing.assert_array_equal, found[0], state_at(step))
        assert found[1] == {"losses": [0.1 * step] * 20}
        assert step == (5 if told else 10)
        if told:
            fallen_back += 1
            assert told[0].startswith("the checkpoint of step 10 cannot be read")
            assert not (workdir / "checkpoints" / "10").exists()
    assert fallen_back


@pytest.mark.parametrize("name", ["run[1]", "back\\slash", "gs:/run", "a**b", "x.__lock", "\udcff", "run*", "é 🦉 "])
def test_a_checkpoint_lies_in_a_folder_of_any_name(tmp_path, name):
    """Some are patterns or addresses to Orbax, and a neighbor's files would do for a pattern."""
    workdir = tmp_path / name
    for folder in (tmp_path / "run1", workdir):
        checkpoints = Checkpoints(folder)
        checkpoints.save(state_at(5), {}, best=None)
        checkpoints.wait()
        checkpoints.close()
    found, told = newest(workdir)
    jax.tree.map(np.testing.assert_array_equal, found[0], state_at(5))
    assert told == []
    jax.tree.map(np.testing.assert_array_equal, saved_variables(workdir, 5)["params"], state_at(5).params)
    assert saved_tree(workdir, 5)["params"]["fc"].keys() == {"kernel", "bias"}


@pytest.mark.parametrize("lost", ["manifest.ocdbt", "ocdbt.process_*"])
def test_a_checkpoint_that_is_not_there_is_not_told_to_be(tmp_path, monkeypatch, lost):
    """As on a disk that says yes and keeps nothing."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(5), {}, best=None)
    checkpoints.wait()
    checkpoints.save(state_at(10), {}, best=None)
    wait = checkpoints._manager.wait_until_finished

    def losing():
        wait()
        for path in (tmp_path / "checkpoints/10/state").glob(lost):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", losing)
    with pytest.raises(UserError, match=r"^the checkpoint of step 10 was written under .*, but cannot be read back"):
        checkpoints.wait()
    monkeypatch.undo()
    found, _ = newest(tmp_path)
    assert int(found[0].step) == 5


def test_the_next_checkpoint_is_not_begun_before_the_last_one_was_seen(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(5), {}, best=None)
    checkpoints._manager.wait_until_finished()
    next((tmp_path / "checkpoints/5/state").glob("manifest*")).unlink()
    with pytest.raises(UserError, match=r"step 5 .* 5 of its arrays are not there"):
        checkpoints.save(state_at(10), {}, best=None)
    assert saved_steps(tmp_path) == [5]


def test_a_value_that_changed_without_a_trace_is_found(saved, tmp_path):
    """As a disk, or a copy, may do it: everything that Orbax looks at is in order."""
    shutil.copytree(saved, tmp_path / "run")
    other = state_at(10).replace(params=state_at(11).params)
    checkpoints = Checkpoints(tmp_path / "other")
    checkpoints.save(other, {}, best=None)
    checkpoints.close()
    shutil.rmtree(tmp_path / "run/checkpoints/10/state")
    shutil.copytree(tmp_path / "other/checkpoints/10/state", tmp_path / "run/checkpoints/10/state")
    with pytest.raises(UserError, match="its params are not what was written"):
        saved_variables(tmp_path / "run", 10)
    found, told = newest(tmp_path / "run")
    assert int(found[0].step) == 5
    assert "its params are not what was written" in told[0]


def test_where_none_can_be_read_all_stay(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file():
            cut(file)
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match="no checkpoint of this run can be read; all are left as they are"):
        newest(tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_a_record_is_what_it_was_when_it_was_saved_however_slow_the_disk(tmp_path, monkeypatch):
    gone_on, save = threading.Event(), JsonCheckpointHandler._save_fn

    async def slow(self, value, directory):
        assert gone_on.wait(60)
        await save(self, value, directory)

    monkeypatch.setattr(JsonCheckpointHandler, "_save_fn", slow)
    checkpoints, record = Checkpoints(tmp_path), {"histories": [[{"epoch": 1}]]}
    checkpoints.save(state_at(5), record, best=None)
    record["histories"][0].append({"epoch": 2})
    gone_on.set()
    checkpoints.close()
    found, told = newest(tmp_path)
    assert (found[1], told) == ({"histories": [[{"epoch": 1}]]}, [])


def test_other_versions_are_told(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "run")
    here = checkpoint.versions.versions()
    monkeypatch.setattr(checkpoint.versions, "versions", lambda: here | {"optax": "9.9.9"})
    found, told = newest(tmp_path / "run")
    assert int(found[0].step) == 10
    assert told == [
        "the checkpoint of step 10 is by other versions, so numbers may differ in their last digits: "
        f"optax {here['optax']}, here 9.9.9"
    ]
    for step in (5, 10):
        cut(next((tmp_path / "run/checkpoints" / str(step) / "state").glob("manifest*")))
    told.clear()
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(UserError):
        checkpoints.newest(lambda record: state_at(0), told.append)
    checkpoints.close()
    assert all(f"cannot be read (optax {here['optax']}, here 9.9.9)" in line for line in told)


def test_a_damaged_best_checkpoint_is_one_line(tmp_path, monkeypatch):
    photos = tiny.make_folder(tmp_path / "photos")
    config = tiny.make_config(
        photos, optimizer__lr=1e-30, transfer__bn="all:eval", epochs=6
    )  # the first epoch is the best
    tiny.interrupted_after(config, tmp_path / "run", 25, monkeypatch)
    assert saved_steps(tmp_path / "run") == [5, 20, 25]
    for file in (tmp_path / "run/checkpoints/5/state").rglob("*"):
        if file.is_file():
            cut(file)
    with pytest.raises(
        UserError,
        match=r"checkpoints/5 is missing or damaged: .*; epoch 1, the best, cannot be tested without it",
    ):
        single_run.run(config, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run/result.json").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path, monkeypatch):
    photos = tiny.make_folder(tmp_path / "photos")
    config, other = (tiny.make_config(photos, optimizer__lr=lr) for lr in (3e-3, 1e-2))
    tiny.interrupted_after(config, tmp_path / "run", 3, monkeypatch)
    tiny.interrupted_after(other, tmp_path / "other", 7, monkeypatch)
    shutil.copytree(tmp_path / "other/checkpoints/7", tmp_path / "run/checkpoints/7")
    with pytest.raises(UserError, match="are of a run of another config"):
        single_run.run(config, tmp_path / "run", console=QUIET)


def test_decoded_images_that_were_damaged_are_decoded_again(tmp_path, monkeypatch):
    config = tiny.make_config(tiny.make_folder(tmp_path / "photos"), data__memory_gb=1e-7)
    whole = single_run.run(config, tmp_path / "whole", console=QUIET)
    tiny.interrupted_after(config, tmp_path / "cut", 3, monkeypatch)
    flip(tmp_path / "cut" / "pixels.u8", 0.3)
    assert single_run.run(config, tmp_path / "cut", console=QUIET)["history"] == whole["history"]


def test_a_best_checkpoint_that_is_gone_is_told_when_the_run_goes_on(tmp_path, monkeypatch, capsys):
    photos = tiny.make_folder(tmp_path / "photos")
    config = tiny.make_config(photos, optimizer__lr=1e-30, transfer__bn="all:eval", epochs=4)
    tiny.interrupted_after(config, tmp_path / "run", 15, monkeypatch)
    shutil.rmtree(tmp_path / "run/checkpoints/5")
    with pytest.raises(UserError, match="cannot be tested without it"):
        single_run.run(config, tmp_path / "run")
    assert "the checkpoint of epoch 1, the best so far, is gone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("result.json", "{}"),
        ("result.json", '{"classes": null}'),
        ("result.json", ""),
        ("config.json", '{"model": {}}'),
    ],
)
def test_files_that_were_edited_are_one_line(tmp_path, file, content):
    config = tiny.make_config(tiny.make_folder(tmp_path / "photos"), epochs=1)
    single_run.run(config, tmp_path / "run", console=QUIET)
    (tmp_path / "run" / file).write_text(content)
    config.model.weights = str(tmp_path / "run")
    with pytest.raises(UserError, match=r"is damaged|is not the config of a run"):
        single_run.run(config, tmp_path / "other", console=QUIET)
    with pytest.raises(UserError, match=r"is damaged|is not the config of a run"):
        inspect.show(tmp_path / "run", None, every_array=False)
