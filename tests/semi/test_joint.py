"""Labeled and unlabeled images in one step: what it learns, resumes, and does on several devices."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import commands, tiny
from tljax.core.errors import UserError
from tljax.data import load
from tljax.report.console import make_console
from tljax.run_dir.checkpoint import saved_steps, saved_variables
from tljax.semi.joint import METHODS
from tljax.train import runs, single_run
from tljax.train.final_eval import pseudo_label_report

QUIET = make_console(quiet=True)


def config_of(photos, method, **settings):
    return tiny.make_config(
        photos, **{"data__labels": "25%", "semi__method": method, "semi__batch_size": 10, "semi__threshold": 0.4,
                   "epochs": 2, "data__stratify": False} | settings,
    )  # fmt: skip


def flat(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


# RandAugment takes longer to compile than all else: all methods have it among the slow tests.
WHOLE = [("mean_teacher", 0), ("flexmatch", 0), *(pytest.param((name, 2), marks=pytest.mark.slow) for name in METHODS)]


@pytest.fixture(scope="module", params=WHOLE, ids=str)
def whole(request, photos, tmp_path_factory):
    """A run of each method: its config, result and workdir."""
    method, ops = request.param
    config, workdir = config_of(photos, method, semi__strong_ops=ops), tmp_path_factory.mktemp(method) / "run"
    return config, single_run.run(config, workdir, console=QUIET), workdir


def assert_the_same_end(*workdirs):
    step = saved_steps(workdirs[0])[-1]
    for one, other in zip(*(flat(saved_variables(workdir, step)) for workdir in workdirs), strict=True):
        assert np.array_equal(one, other)
    results = [json.loads((workdir / "result.json").read_text()) for workdir in workdirs]
    assert results[0]["test"] == results[1]["test"]


def test_each_method_runs_tells_and_never_sees_hidden_labels(whole, tmp_path, monkeypatch):
    config, first, workdir = whole
    assert [row["step"] for row in first["history"]] == [3, 6]  # 27 unlabeled images, 10 at a time
    for row in first["history"]:
        assert 0 <= row["right"] <= row["given"] <= 27
        assert row["known"] == row["given"]
    told = first["unlabelled"]
    sure = sum(bin["images"] for bin in told["confidence"][4:])  # of 0.4 and more
    assert told["unlabelled"] == 27 and told["given"] == (27 if config.semi.method == "mean_teacher" else sure)
    tiny.permute_labels(monkeypatch, config, "unlabeled")
    second = single_run.run(config, tmp_path / "run", console=QUIET)
    assert_the_same_end(workdir, tmp_path / "run")
    counts = [[{k: v for k, v in row.items() if k != "right"} for row in r["history"]] for r in (first, second)]
    assert counts[0] == counts[1]


def test_interrupted_within_an_epoch_it_goes_on_to_the_same_end(whole, tmp_path, monkeypatch):
    config, result, workdir = whole
    tiny.interrupted_after(config, tmp_path / "cut", 5, monkeypatch)
    assert single_run.run(config, tmp_path / "cut", console=QUIET)["history"] == result["history"]
    assert_the_same_end(workdir, tmp_path / "cut")


def test_without_weight_it_is_the_labeled_images_alone(photos, tmp_path):
    """Of the head on frozen statistics: other views in the batch change nothing."""
    settings = {
        "transfer__bn": "eval", "semi__weight": 0.0, "semi__strong_ops": 0, "augment__crop": "center",
        "augment__flip": False,
    }  # fmt: skip
    joint = single_run.run(config_of(photos, "fixmatch", **settings, epochs=4), tmp_path / "joint", console=QUIET)
    del settings["semi__weight"], settings["semi__strong_ops"]
    alone = single_run.run(
        tiny.make_config(photos, data__labels="25%", data__stratify=False, epochs=6, **settings),
        tmp_path / "alone",
        console=QUIET,
    )
    # 12 updates each: 4 passes over 27 by tens, and 6 over 9 by eights.
    assert joint["history"][-1]["step"] == alone["history"][-1]["step"] == 12
    a, b = (saved_variables(tmp_path / name, 12) for name in ("joint", "alone"))
    for one, other in zip(flat(a), flat(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["flexmatch", "meta_pseudo_labels"])
def test_several_devices_are_one(photos, tmp_path, method):
    overrides = commands.TINY | {
        "data.source": f"folder:{photos}", "data.labels": "25%", "transfer.bn": "eval", "epochs": 2,
        "semi.method": method, "semi.batch_size": 10, "semi.threshold": 0.4, "augment.flip": False,
        "semi.strong_ops": 0,
    }  # fmt: skip
    found = []
    for devices in (1, 4):
        done = commands.run("configs/folder.py", tmp_path / str(devices), overrides, devices=devices)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / str(devices) / "result.json").read_text()))
    for one, four in zip(*(result["history"] for result in found), strict=True):
        assert one["train_loss"] == pytest.approx(four["train_loss"], rel=1e-4)
        assert (one["given"], one["right"], one["val_correct"]) == (four["given"], four["right"], four["val_correct"])


@pytest.mark.parametrize("ops", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_kept_views_are_the_views_that_would_be_drawn(photos, tmp_path, ops):
    """With as many views as passes over the labeled images, of which there are more than over the others."""
    settings = {
        "transfer__train": "head", "transfer__allow_fresh_frozen": True, "semi__strong_ops": ops, "semi__weight": 0.0
    }  # fmt: skip
    kept = single_run.run(config_of(photos, "fixmatch", **settings, cache__views=3), tmp_path / "kept", console=QUIET)
    assert kept["features"]["views"] == 3
    assert kept["features"]["splits"] == ["train", *(["strong"] if ops else []), "val"]
    assert kept["history"][0]["given"] > 0
    single_run.run(config_of(photos, "fixmatch", **settings), tmp_path / "drawn", console=QUIET)
    a, b = (saved_variables(tmp_path / name, 6)["params"] for name in ("kept", "drawn"))
    for one, other in zip(flat(a), flat(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_average_is_what_is_tested(photos, tmp_path):
    """With a decay of nothing the average is the network itself."""
    still = {
        "augment__crop": "center", "augment__flip": False, "semi__strong_ops": 0, "transfer__bn": "eval"
    }  # fmt: skip
    single_run.run(config_of(photos, "mean_teacher", semi__decay=0.0, **still), tmp_path / "now", console=QUIET)
    single_run.run(config_of(photos, "mean_teacher", semi__decay=0.999, **still), tmp_path / "slow", console=QUIET)
    lists = [np.load(tmp_path / name / "predictions.npz")["test_logits"] for name in ("now", "slow")]
    assert not np.allclose(*lists)
    last = ocp.PyTreeCheckpointer().restore(tmp_path / "now" / "checkpoints" / "6" / "state")["params"]
    for a, b in zip(flat(last), flat(saved_variables(tmp_path / "now", 6)["params"]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data__labels": "all"}, "needs images without a label"),
        ({"population__lr": (1e-3, 1e-4)}, r"population\.\* do not go together"),
        ({"accumulate": 2}, "does not go with accumulate=2; it takes 1"),
        ({"protocol__augmented_copies": 1}, r"does not go with protocol\.augmented_copies=1"),
        ({"semi__decay": 1.0}, r"semi\.decay=1\.0 is not below 1"),
        ({"semi__weight": -1.0}, r"semi\.weight=-1\.0 is too small"),
        ({"cache__views": 1, "semi__strong_ops": 0}, "there is one; keep 2 or more"),
        ({"data__pseudo": "x.npz"}, "makes its own labels"),
        ({"semi__strong_ops": -1}, "semi.strong_ops=-1 is too small"),
        ({"semi__method": "matchmatch"}, "is not one of none, pseudo_label, mean_teacher, fixmatch"),
    ],
)
def test_what_cannot_be(photos, tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        single_run.run(config_of(photos, **{"method": "fixmatch"}, **settings) if "semi__method" not in settings
                  else config_of(photos, settings["semi__method"]), tmp_path / "run", console=QUIET)  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_epochs_of_so_many_updates_cut_the_same_training_otherwise(photos, tmp_path):
    """Three epochs of two updates are two passes of three over the unlabeled images."""
    settings = {"select": "last", "semi__strong_ops": 0}
    single_run.run(config_of(photos, "fixmatch", **settings), tmp_path / "a", console=QUIET)
    config = config_of(photos, "fixmatch", **settings, epochs=3, epoch_steps=2)
    cut = single_run.run(config, tmp_path / "b", console=QUIET)
    assert [row["step"] for row in cut["history"]] == [2, 4, 6]
    assert_the_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_each_method_takes_images_of_another_folder(photos, tmp_path, method):
    shutil.copytree(photos / "red", tmp_path / "more")
    config = config_of(photos, method, data__labels="all", data__unlabeled=str(tmp_path / "more"), semi__strong_ops=0)
    result = runs.run(config, tmp_path / "run", console=QUIET)
    assert result["unlabelled"]["unlabelled"] == 24
    assert all((row["known"], row["right"]) == (0, 0) for row in result["history"])


@pytest.mark.parametrize("method, threshold, given", [("fixmatch", 0.999, 1), ("mean_teacher", 0.999, 4)])
def test_what_is_told_as_given_was_sure_enough(photos, method, threshold, given):
    config = config_of(photos, method, semi__threshold=threshold)
    data = load.open_data(config.data, seed=0)
    data.splits["unlabeled"] = data.splits["unlabeled"][:4]
    logits = np.array([[9, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
    assert pseudo_label_report(config.semi, data, logits)["given"] == given
