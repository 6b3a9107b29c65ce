"""A run: what it leaves behind, that it resumes exactly, and what it refuses."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests import commands, tiny
from tljax import inspect
from tljax.core import xla_flags
from tljax.core.errors import UserError
from tljax.distributed import parallel
from tljax.report.console import make_console
from tljax.run_dir import files as folders
from tljax.run_dir.checkpoint import Checkpoints, saved_steps, saved_variables
from tljax.train import single_run, trainer
from tljax.train.best_epoch import chosen_row

QUIET = make_console(quiet=True)


@pytest.fixture
def whole(finished, photos):
    """The finished run, its config and its result."""
    return finished, tiny.make_config(photos, pictures=True), json.loads((finished / "result.json").read_text())


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_record_of_a_run(whole):
    workdir, _, result = whole
    for split in ("test", "validation"):
        r = result[split]
        assert r["seen"] == 18
        assert r["accuracy"] == r["correct"] / r["seen"]
        assert r["interval95"][0] <= r["accuracy"] <= r["interval95"][1]
    assert result["train"]["images_per_second"] > 0
    assert result["seconds"] > 0
    assert result["skipped"] == {"count": 0, "files": []}
    assert result["config"]["optimizer"]["lr"] == 3e-3
    assert result["versions"]["jax"] == jax.__version__
    assert result["device"]["count"] == jax.device_count()
    for picture in ("augmented.png", "curves.png"):
        with Image.open(workdir / picture) as image:
            assert image.width > 300


def test_metrics_have_a_row_per_epoch(whole):
    workdir, _, result = whole
    rows = list(csv.DictReader((workdir / "metrics.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    best = max(rows, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert result["validation"]["best_epoch"] == int(best["epoch"])
    assert result["validation"]["correct"] == int(best["val_correct"])


def epochs(*pairs):
    return [{"epoch": i + 1, "val_accuracy": a, "val_loss": loss} for i, (a, loss) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("select", "history", "chosen"),
    [
        ("validation", epochs((0.5, 0.1), (0.9, 0.4), (0.9, 0.3), (0.9, 0.35)), 3),
        ("validation", epochs((0.9, 0.3), (0.9, 0.3)), 1),  # nothing tells them apart
        ("validation", epochs((0.9, np.nan), (0.9, 5.0), (0.9, np.inf)), 2),
        ("validation", epochs((0.9, None), (0.9, 5.0)), 2),  # as a file has it
        ("validation", epochs((0.9, np.nan), (0.8, 0.1)), 1),
        ("test", epochs((0.9, 0.4), (0.9, 0.3)), 2),
        ("loss", epochs((0.5, 0.1), (0.9, 0.4), (0.9, 0.3)), 1),
        ("loss", epochs((0.5, 0.2), (0.6, 0.2), (0.6, 0.2)), 2),
        ("loss", epochs((0.5, np.nan), (0.6, np.inf), (0.1, 9.0)), 3),
        ("last", epochs((0.9, 0.1), (0.1, 0.9)), 2),
        ("validation", epochs((None, None), (None, None)), 2),
    ],
)
def test_ties_of_accuracy_go_to_the_lower_loss_then_to_the_earlier_epoch(select, history, chosen):
    assert chosen_row(history, select)["epoch"] == chosen


def test_the_epoch_of_the_lowest_loss_can_be_asked_for(photos, tmp_path):
    options = {"select": "loss", "optimizer__lr": 3e-2, "epochs": 4}
    result = single_run.run(tiny.make_config(photos, **options), tmp_path / "run", console=QUIET)
    losses = [row["val_loss"] for row in result["history"]]
    assert result["best_step"] == 5 * (1 + int(np.argmin(losses)))
    assert result["validation"]["loss"] == pytest.approx(min(losses), rel=1e-5)
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / "halves" / split)
    options = {"data__split": "official", "data__val": 0.0, "select": "loss"}
    with pytest.raises(UserError, match="select='loss' chooses the epoch by validation images, and there are none"):
        single_run.run(tiny.make_config(tmp_path / "halves", **options), tmp_path / "none", console=QUIET)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("axes", [{}, pytest.param({"population__lr": (3e-3, 1e-3)}, marks=pytest.mark.slow)])
def test_a_run_that_an_older_version_began_keeps_the_best_epoch_that_it_kept(photos, tmp_path, axes, monkeypatch):
    """Its parameters are there, those of a later epoch of equal accuracy are not."""
    config, save = tiny.make_config(photos, epochs=4, **axes), Checkpoints.save

    def older(self, state, record, *, best):
        save(self, state, {name: value for name, value in record.items() if name != "best"}, best=best)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", older)
        patch.setattr(
            trainer, "chosen_row", lambda rows, _: max(rows, key=lambda row: (row["val_accuracy"], -row["step"]))
        )
        tiny.interrupted_after(config, tmp_path / "run", 16, monkeypatch)
    result = single_run.run(config, tmp_path / "run", console=QUIET)
    for folder in (tmp_path / "run" / "members").iterdir() if axes else [tmp_path / "run"]:
        result = json.loads((folder / "result.json").read_text())
        first = max(result["history"][:3], key=lambda row: (row["val_accuracy"], -row["step"]))
        tie = chosen_row(result["history"][:3])
        if folder.name in ("run", "000"):
            assert tie["step"] != first["step"] and tie["val_accuracy"] == first["val_accuracy"]
        best = chosen_row([first, result["history"][3]])
        assert result["best_step"] == best["step"]
        assert result["validation"]["loss"] == pytest.approx(best["val_loss"], rel=1e-5)  # the network is that epoch's


def test_predictions_are_kept_by_name(whole):
    workdir, _, result = whole
    kept = np.load(workdir / "predictions.npz")
    assert kept["test_names"].shape == (18,)
    assert int((kept["test_logits"].argmax(1) == kept["test_labels"]).sum()) == result["test"]["correct"]


def test_checkpoints_of_the_best_epoch_and_the_last(whole):
    workdir, _, result = whole
    steps = saved_steps(workdir)
    assert result["best_step"] in steps
    assert steps[-1] == result["history"][-1]["step"]


def test_what_is_returned_is_what_is_written_and_tensorboard_is_told(photos, tmp_path):
    result = single_run.run(tiny.make_config(photos, epochs=1, trackers=("tensorboard",)), tmp_path, console=QUIET)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_inspect_shows_moments_for_trained_groups_alone(photos, tmp_path, capsys):
    single_run.run(
        tiny.make_config(photos, epochs=1, transfer__train="layer2,head", transfer__allow_fresh_frozen=True),
        tmp_path / "run",
        console=QUIET,
    )
    assert inspect.main([str(tmp_path / "run"), "--leaves"]) == 0
    out = capsys.readouterr().out
    _, rows, arrays = inspect.inspect(tmp_path / "run")
    moments = {row["group"]: row["moments"] for row in rows}
    assert moments["stem"] == moments["layer1"] == "-"
    assert int(moments["head"].replace(",", "")) == 2 * 27
    assert "params/fc/kernel" in out
    assert {row["type"] for row in arrays if row["array"].startswith("params/")} == {"float32"}


@pytest.mark.parametrize(
    "steps", [3, pytest.param(5, marks=pytest.mark.slow), pytest.param(11, marks=pytest.mark.slow)]
)  # within an epoch of 5 steps, on its last, after the best
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(whole, tmp_path, steps, monkeypatch):
    workdir, config, result = whole
    tiny.interrupted_after(config, tmp_path / "run", steps, monkeypatch)
    assert saved_steps(tmp_path / "run")[-1] == steps
    again = single_run.run(config, tmp_path / "run", console=QUIET)
    assert again["history"] == result["history"]
    assert again["test"] == result["test"]
    for step in (result["best_step"], result["history"][-1]["step"]):
        same(saved_variables(tmp_path / "run", step), saved_variables(workdir, step))


def test_epochs_of_so_many_updates_cut_the_same_training_otherwise(whole, photos, tmp_path, monkeypatch):
    """Five epochs of three updates are three passes of five; a run that stops within one goes on there."""
    workdir, _, _ = whole
    config = tiny.make_config(photos, epochs=5, epoch_steps=3)
    tiny.interrupted_after(config, tmp_path, 7, monkeypatch)
    cut = single_run.run(config, tmp_path, console=QUIET)
    assert [row["step"] for row in cut["history"]] == [3, 6, 9, 12, 15]
    same(saved_variables(workdir, 15), saved_variables(tmp_path, 15))


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(whole, tmp_path, monkeypatch, capsys):
    _, config, result = whole
    tiny.interrupted_after(config, tmp_path / "run", 12, monkeypatch)
    for file in (tmp_path / "run" / "checkpoints" / "12" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = single_run.run(config, tmp_path / "run")
    assert "the checkpoint of step 12 cannot be read" in capsys.readouterr().out
    assert again["history"] == result["history"]


def test_images_that_changed_since_the_run_began_are_refused(tmp_path, monkeypatch):
    photos = tiny.make_folder(tmp_path / "photos")
    config = tiny.make_config(photos)
    tiny.interrupted_after(config, tmp_path / "run", 3, monkeypatch)
    next((photos / "red").iterdir()).unlink()
    with pytest.raises(UserError, match="have changed since this run began"):
        single_run.run(config, tmp_path / "run", console=QUIET)
    (photos / "red").rename(photos / "scarlet")
    shutil.copytree(photos / "blue", photos / "azure")  # a class more: the head has another shape
    with pytest.raises(UserError, match="have changed since this run began"):
        single_run.run(config, tmp_path / "run", console=QUIET)
    assert saved_steps(tmp_path / "run") == [3]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped, its config and its photos."""
    root = tmp_path_factory.mktemp("stopped")
    photos = tiny.make_folder(root / "photos")
    config = tiny.make_config(photos)
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupted_after(config, root / "run", 3, patch)
    return root


def moved(root, to):
    """The run and its photos elsewhere, and the config that says so."""
    shutil.copytree(root, to)
    return tiny.make_config(to / "photos")


def swap(one, other):
    one.rename(one.with_name("held"))
    other.rename(one)
    one.with_name("held").rename(other)


def test_other_pictures_under_the_same_names_are_refused_by_name(stopped, tmp_path):
    config = moved(stopped, tmp_path / "new")
    red = sorted((tmp_path / "new/photos/red").iterdir())
    for one, other in zip(red[:4], red[4:8], strict=True):
        swap(one, other)
    with pytest.raises(
        UserError, match=r"same names: 'red/000\.png', 'red/001\.png', 'red/002\.png' and 5 more\); put them back"
    ):
        single_run.run(config, tmp_path / "new/run", console=QUIET)
    assert saved_steps(tmp_path / "new/run") == [3]


def test_images_that_moved_and_are_the_same_go_on(stopped, whole, tmp_path):
    """Copied to another folder with new times, and listed in another order by the disk."""
    config = moved(stopped, tmp_path / "new")
    for path in (tmp_path / "new/photos").rglob("*.png"):
        os.utime(path, (0, 0))
    again = single_run.run(config, tmp_path / "new/run", console=QUIET)
    assert again["history"] == whole[2]["history"]
    assert folders.read_config(tmp_path / "new/run")["data"]["source"] == f"folder:{tmp_path}/new/photos"


def test_a_finished_run_is_that_of_images_elsewhere_if_they_are_the_same(finished, photos, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(photos, tmp_path / "photos")
    config = tiny.make_config(tmp_path / "photos", pictures=True)
    with pytest.raises(folders.Finished):
        single_run.run(config, tmp_path / "run", console=QUIET)
    swap(tmp_path / "photos/red/000.png", tmp_path / "photos/blue/000.png")
    (tmp_path / "photos/red/001.png").unlink()
    shutil.copy(photos / "red/001.png", tmp_path / "photos/red/new.png")
    with pytest.raises(UserError, match=r"blue/000\.png', 'red/000\.png'; gone: 'red/001\.png'; new: 'red/new\.png'"):
        single_run.run(config, tmp_path / "run", console=QUIET)
    assert json.loads((tmp_path / "run/result.json").read_text()) == json.loads((finished / "result.json").read_text())


def test_a_run_that_an_older_version_began_goes_on_and_says_what_is_not_known(stopped, tmp_path, capsys, monkeypatch):
    config = moved(stopped, tmp_path / "new")
    (tmp_path / "new/run/images.npz").unlink()
    whole = Checkpoints._whole

    def older(self, step):
        found = whole(self, step)
        found["record"].pop("content", None)
        return found

    monkeypatch.setattr(Checkpoints, "_whole", older)
    single_run.run(config, tmp_path / "new/run")
    assert "an older version began this run and did not keep what is in its images" in " ".join(
        capsys.readouterr().out.split()
    )


def test_what_a_checkpoint_says_of_content_counts_without_the_list(stopped, tmp_path):
    config = moved(stopped, tmp_path / "new")
    (tmp_path / "new/run/images.npz").unlink()
    swap(*sorted((tmp_path / "new/photos/red").iterdir())[:2])
    with pytest.raises(UserError, match="have changed since this run began"):
        single_run.run(config, tmp_path / "new/run", console=QUIET)


def test_a_folder_in_use_is_refused(photos, tmp_path):
    with (
        folders.locked(tmp_path / "run"),
        pytest.raises(UserError, match="in use by another run"),
    ):
        single_run.run(tiny.make_config(photos, epochs=1), tmp_path / "run", console=QUIET)


def test_somebody_elses_config_is_not_overwritten(photos, tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 768}')
    with pytest.raises(UserError, match="not the config of a run"):
        single_run.run(tiny.make_config(photos), tmp_path, overwrite=True, console=QUIET)
    assert (tmp_path / "config.json").exists()


def test_a_batch_larger_than_the_data_is_the_data(photos, tmp_path):
    result = single_run.run(tiny.make_config(photos, batch_size=500, epochs=2), tmp_path / "run", console=QUIET)
    assert [row["step"] for row in result["history"]] == [1, 2]
    assert result["train"]["images_per_second"] > 0


@pytest.mark.parametrize("limit, value", [("MANY_MAPPINGS", 0), ("MUCH_MEMORY", -(1 << 50))])
def test_programs_of_earlier_runs_do_not_fill_the_process(photos, tmp_path, monkeypatch, limit, value):
    monkeypatch.setattr(xla_flags, limit, value)
    earlier = jax.jit(lambda x: x + 1)
    earlier(1.0)
    kept = [earlier._cache_size()]
    result = single_run.run(tiny.make_config(photos), tmp_path / "run", console=QUIET)
    kept.append(earlier._cache_size())
    assert kept == [1, 0]
    assert result["history"][-1]["epoch"] == 3


def test_the_rate_of_an_epoch_is_what_the_schedule_made_of_it(photos, tmp_path):
    overrides = {"schedule__name": "step", "schedule__step_epochs": 1.0, "optimizer__lr": 0.5}
    result = single_run.run(tiny.make_config(photos, **overrides), tmp_path / "run", console=QUIET)
    assert [row["lr"] for row in result["history"]] == pytest.approx([0.5, 0.05, 0.005])


PHASES = {"transfer__phases": "layer2,head@1; all@2@1e-4", "transfer__allow_fresh_frozen": True}


@pytest.fixture(scope="module")
def phased(once):
    """The result of a run in two phases."""
    config = tiny.make_config(once("photos", tiny.make_folder), **PHASES)
    return folders.read_result(once("phased", lambda folder: single_run.run(config, folder, console=QUIET)))


def test_phases_have_their_rates_and_resume_between(phased, photos, tmp_path, monkeypatch):
    assert [row["lr"] for row in phased["history"]] == pytest.approx([3e-3, 1e-4, 1e-4])
    config = tiny.make_config(photos, **PHASES)
    tiny.interrupted_after(config, tmp_path / "cut", 5, monkeypatch)  # at the end of the first phase
    assert single_run.run(config, tmp_path / "cut", console=QUIET)["history"] == phased["history"]


def test_phases_carry_moments(phased, photos, tmp_path):
    fresh = single_run.run(
        tiny.make_config(photos, **PHASES, transfer__moments="fresh"), tmp_path / "fresh", console=QUIET
    )
    assert fresh["history"][0] == phased["history"][0]
    assert fresh["history"][1] != phased["history"][1]


def test_another_config_is_refused_with_the_difference(whole, photos):
    workdir, _, _ = whole
    with pytest.raises(UserError, match=r"epochs: 3 there, 4 now") as caught:
        single_run.run(tiny.make_config(photos, epochs=4), workdir, console=QUIET)
    assert "--overwrite" in str(caught.value)


def test_a_finished_run_is_not_overwritten_unless_told_to(whole, tmp_path, photos):
    workdir, config, _ = whole
    before = (workdir / "result.json").read_bytes()
    with pytest.raises(UserError, match="finished"):
        single_run.run(config, workdir, console=QUIET)
    assert (workdir / "result.json").read_bytes() == before
    short = tiny.make_config(photos, epochs=1)
    single_run.run(short, tmp_path / "run", console=QUIET)
    again = single_run.run(tiny.make_config(photos, epochs=1, seed=1), tmp_path / "run", overwrite=True, console=QUIET)
    assert again["config"]["seed"] == 1


def test_somebody_elses_folder_is_left_alone(photos, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="no run"):
            single_run.run(tiny.make_config(photos), tmp_path, overwrite=overwrite, console=QUIET)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_run_that_cannot_begin_leaves_no_folder(photos, tmp_path):
    for overrides in ({"transfer__train": "layer9"}, {"data__source": f"folder:{tmp_path}/nowhere"}):
        with pytest.raises(UserError):
            single_run.run(tiny.make_config(photos, **overrides), tmp_path / "run", console=QUIET)
        assert not (tmp_path / "run").exists()


def test_overwriting_by_a_run_that_cannot_begin_loses_nothing(whole, photos):
    workdir, _, _ = whole
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="nowhere"):
        single_run.run(tiny.make_config(photos, data__source="folder:nowhere"), workdir, overwrite=True, console=QUIET)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_images_that_outgrow_the_memory_lie_in_the_folder_and_are_found_again(whole, photos, tmp_path, monkeypatch):
    config = tiny.make_config(photos, data__memory_gb=1e-7)
    tiny.interrupted_after(config, tmp_path / "run", 3, monkeypatch)
    spilled = tmp_path / "run" / "pixels.u8"
    before = spilled.stat().st_mtime_ns
    again = single_run.run(config, tmp_path / "run", console=QUIET)
    assert spilled.stat().st_mtime_ns == before
    assert again["history"] == whole[2]["history"]


def test_a_folder_with_train_and_val_has_no_test_numbers(tmp_path):
    for split in ("train", "val"):
        tiny.make_folder(tmp_path / "photos" / split, per_class=8)
    result = single_run.run(
        tiny.make_config(tmp_path / "photos", data__split="official", epochs=1), tmp_path / "run", console=QUIET
    )
    assert result["test"] is None
    assert result["validation"]["seen"] == 24


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    tiny.make_folder(tmp_path / "photos" / "train", per_class=8)
    config = tiny.make_config(tmp_path / "photos", data__split="official", data__val=0.0, epochs=2)
    result = single_run.run(config, tmp_path / "run", console=QUIET)
    assert result["validation"] is None
    assert result["best_step"] == result["history"][-1]["step"]


def test_files_that_cannot_be_read_are_named_and_left_out(photos, tmp_path):
    tiny.make_folder(tmp_path / "photos", per_class=8)
    (tmp_path / "photos" / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (tmp_path / "photos" / "red" / "empty.png").touch()
    result = single_run.run(tiny.make_config(tmp_path / "photos", epochs=1), tmp_path / "run", console=QUIET)
    assert {Path(name).name for name, _ in result["skipped"]["files"]} == {"broken.jpg", "empty.png"}
    assert result["skipped"]["count"] == 2


def test_one_logit(one_logit):
    assert np.load(one_logit / "predictions.npz")["test_logits"].shape == (12, 1)
    assert json.loads((one_logit / "result.json").read_text())["test"]["accuracy"] > 0.6


def test_a_finished_run_serves_as_weights(whole, photos, tmp_path):
    workdir, _, result = whole
    config = tiny.make_config(photos, model__weights=str(workdir), transfer__train="head", epochs=1)
    again = single_run.run(config, tmp_path / "run", console=QUIET)
    theirs = saved_variables(workdir, result["best_step"])
    ours = saved_variables(tmp_path / "run", again["best_step"])
    same(ours["params"]["layer2_0"], theirs["params"]["layer2_0"])
    assert (ours["params"]["fc"]["kernel"] != theirs["params"]["fc"]["kernel"]).any()
    with pytest.raises(UserError, match=r"wrong shape|missing"):
        single_run.run(
            tiny.make_config(photos, model__weights=str(workdir), model__width=8), tmp_path / "two", console=QUIET
        )


@pytest.mark.parametrize("resumed", [False, True])
def test_its_steps_are_traced_once(photos, tmp_path, monkeypatch, resumed):
    """Training's, and the one that evaluates both validation and test."""
    config = tiny.make_config(photos, epochs=2)
    if resumed:
        tiny.interrupted_after(config, tmp_path / "run", 3, monkeypatch)
    traced = []

    def watch(name):
        def counted(step):
            return real(lambda *arguments: (traced.append(name), step(*arguments))[1])

        real = getattr(parallel, name)
        monkeypatch.setattr(parallel, name, counted)

    watch("train_step")
    watch("eval_step")
    single_run.run(config, tmp_path / "run", console=QUIET)
    assert sorted(traced) == ["eval_step", "train_step"]


@pytest.mark.slow
def test_ctrl_c_saves_and_says_so(photos, tmp_path):
    """The real command in its own process, the signal at a moment of its own."""
    overrides = commands.TINY | {"data.source": f"folder:{photos}", "epochs": 10000}
    process = commands.start("configs/folder.py", tmp_path / "run", overrides)
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "SIGINT: saved at step" in err
    assert "Traceback" not in err
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.record(checkpoints.steps()[-1])["histories"][0]
    checkpoints.close()
