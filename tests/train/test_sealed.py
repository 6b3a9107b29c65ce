"""Labels of the test are read when it is tested, and a run that had others is the same run until then."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import tiny
from tljax.data import load
from tljax.data.labels import UNLABELED
from tljax.report.console import make_console
from tljax.train import runs, single_run

QUIET = make_console(quiet=True)
FINAL = {"the final test": 1}
TIMES = {"seconds", "first_step", "clocks", "features"}


def settings_of(name):
    few = {"data__labels": "25%", "semi__batch_size": 10, "semi__threshold": 0.4}
    return {"data__stratify": False, "epochs": 2} | {
        "single": {},
        "population": {"population__lr": (1e-3, 1e-2), "population__seed": (0, 1)},
        "kept features": {"transfer__train": "head", "transfer__allow_fresh_frozen": True,
                          "data__normalize": "dataset"},
        "joint": {"semi__method": "fixmatch", **few},
        "rounds": {"semi__method": "pseudo_label", "semi__rounds": 2, "semi__calibrate": True,
                   "semi__select": "threshold", "pictures": True, **few},
    }[name]  # fmt: skip


def saved(workdir):
    """All that every checkpoint below a folder holds, but for times."""
    found = {}
    for state in sorted(workdir.rglob("checkpoints/*/state")):
        where = str(state.parent.relative_to(workdir))
        found[where] = jax.tree.leaves(ocp.PyTreeCheckpointer().restore(state.absolute()))
        record = json.loads((state.parent / "record" / "metadata").read_text())["record"]
        found[f"{where} record"] = [json.dumps({k: v for k, v in record.items() if k not in TIMES})]
    return found


@pytest.mark.parametrize(
    "name", tiny.quick_first(("single", "population", "kept features", "joint", "rounds"), "single", "population")
)
def test_other_test_labels_change_the_test_alone(photos, tmp_path, monkeypatch, name):
    config = tiny.make_config(photos, **settings_of(name))
    first = runs.run(config, tmp_path / "a", console=QUIET)
    tiny.permute_labels(monkeypatch, config, "test")
    second = runs.run(config, tmp_path / "b", console=QUIET)
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert a.keys() == b.keys() and len(a) >= 2
    for where, leaves in a.items():
        for one, other in zip(leaves, b[where], strict=True):
            assert np.array_equal(one, other), where
    files = [sorted(p.relative_to(w) for p in w.rglob("predictions.npz")) for w in (tmp_path / "a", tmp_path / "b")]
    assert files[0] == files[1]
    for file in files[0]:
        one, other = (np.load(w / file) for w in (tmp_path / "a", tmp_path / "b"))
        changed = {key for key in one if not np.array_equal(one[key], other[key])}
        assert changed == {"test_labels"}
    for file in (tmp_path / "a").rglob("labels-*.npz"):
        assert np.array_equal(np.load(file)["targets"], np.load(tmp_path / "b" / file.name)["targets"])
    alike = {"best_step", "history", "validation", "unlabelled", "best_member", "plan", "preprocessing", "test_labels"}
    for key in alike & first.keys():
        assert first[key] == second[key], key
    for key in ("calibration", "by_class"):
        if key in first:
            assert first[key]["validation"] == second[key]["validation"]
    assert first["test_labels"]["split"] == "drawn without labels"
    if name != "rounds":
        assert first["test_labels"]["by"] == FINAL and first["test_labels"]["read"] == 1
        return
    assert first["test_labels"]["read"] == 5 and first["test_labels"]["by"]["the final test"] == 3
    for number in range(3):
        own = json.loads((tmp_path / "a" / f"round-{number}" / "result.json").read_text())
        assert own["test_labels"]["by"] == FINAL
    drawn = [tmp_path / "a" / where / "calibration.png" for where in ("", "round-2")]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()


@pytest.mark.slow
def test_rounds_need_no_test(photos, tmp_path):
    config = tiny.make_config(photos, **settings_of("rounds") | {"epochs": 1, "data__split": "70/30"})
    result = runs.run(config, tmp_path / "run", console=QUIET)
    assert result["test"] is None and result["rounds"][2]["teacher"] is None
    assert result["test_labels"]["read"] == 0


def test_looking_at_the_test_every_epoch_is_counted_also_when_interrupted(photos, tmp_path, monkeypatch):
    config = tiny.make_config(photos, select="test", epochs=3)
    monkeypatch.setattr(
        single_run, "run", lambda *args, run=single_run.run, **options: run(*args, **options, look_at_test=True)
    )
    whole = single_run.run(config, tmp_path / "whole", console=QUIET)
    assert whole["test_labels"]["read"] == 4 and whole["test_labels"]["by"].pop("the final test") == 1
    assert list(whole["test_labels"]["by"].values()) == [3]
    assert whole["best_by_test"]["flag"]
    tiny.interrupted_after(config, tmp_path / "cut", 8, monkeypatch)
    again = single_run.run(config, tmp_path / "cut", console=QUIET)
    assert again["test_labels"]["read"] == 4
    for key in ("test", "calibration", "by_class", "duplicates", "best_by_test"):
        assert again[key] == whole[key]


@pytest.mark.parametrize("labels", ["all", "25%"])
def test_the_labels_of_the_test_are_in_no_array_that_training_gets(photos, labels):
    listed = load.open_data(tiny.make_config(photos, data__labels=labels).data, seed=0)
    for array in (listed.source.labels, listed.targets, listed.truth):
        assert (array[listed.splits["test"]] == UNLABELED).all()
        assert (array[listed.splits["val"]] != UNLABELED).all()


def test_the_record_says_what_drawing_the_test_knew(photos, tmp_path):
    def told(where, **settings):
        return load.open_data(tiny.make_config(where, **settings).data, seed=0).sealed.as_dict()["split"]

    assert told(photos) == "drawn class by class, knowing every image's class"
    assert told(photos, data__split="holdout:25") == "drawn class by class, knowing every image's class"
    assert told(photos, data__stratify=False) == "drawn without labels"
    for split in ("train", "test"):
        tiny.make_folder(tmp_path / "photos" / split, per_class=8)
    for split in ("official", "auto", "kfold:4:1"):
        assert told(tmp_path / "photos", data__split=split) == "the source's own"
