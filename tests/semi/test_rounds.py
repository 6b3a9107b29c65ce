"""A teacher and its students: what each is given, where they go on, what the record says."""

import json

import numpy as np
import pytest

from tests import tiny
from tljax import runs, train
from tljax.data import labels, load
from tljax.errors import UserError
from tljax.interrupt import Interrupted
from tljax.report.console import make_console
from tljax.semi import rounds

QUIET = make_console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_folder(tmp_path_factory.mktemp("data") / "photos")


def config_of(folder, **settings):
    return tiny.make_config(
        folder, data__labels="25%", semi__method="pseudo_label", semi__rounds=2, semi__select="top", epochs=2,
        **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    return runs.run(config_of(folder, semi__teacher_epochs=3), workdir, console=QUIET), workdir


def test_the_record(done, folder):
    result, workdir = done
    assert [row["epoch"] for row in result["history"]] == [*range(1, 8)]
    assert [row["round"] for row in result["history"]] == [0, 0, 0, 1, 1, 2, 2]
    first, second, third = result["rounds"]
    assert first["labels"] is None and first["images"] == 9
    assert (second["labels"]["given"], third["labels"]["given"]) == (14, 27)  # half of 27, then all
    assert (second["images"], third["images"]) == (9 + 14, 9 + 27)
    assert result["test"] == third["test"] and result["history"][-1]["step"] == sum(
        one["updates"] for one in result["rounds"]
    )
    listed = load.open_data(config_of(folder).data, seed=0)
    given = labels.PseudoLabels.load(workdir / "labels-2.npz")
    truth = dict(zip(listed.source.names, listed.truth, strict=True))
    assert third["labels"]["right"] == sum(truth[n] == t for n, t in zip(given.names, given.targets, strict=True))
    assert json.loads((workdir / "result.json").read_text())["rounds"] == json.loads(json.dumps(result["rounds"]))
    for a, b in zip(*(np.load(f / "predictions.npz").values() for f in (workdir, workdir / "round-2")), strict=True):
        assert np.array_equal(a, b)
    assert (workdir / "curves.png").is_file()


def test_the_teacher_is_the_run_that_has_the_labels_alone(done, folder, tmp_path):
    alone = train.run(tiny.make_config(folder, data__labels="25%", epochs=3), tmp_path / "alone", console=QUIET)
    assert alone["test"] == done[0]["rounds"][0]["test"]
    assert [row["train_loss"] for row in alone["history"]] == [r["train_loss"] for r in done[0]["history"][:3]]


def test_a_student_is_the_run_that_has_the_teachers_labels(done, folder, tmp_path):
    """Its pseudo-labels are the teacher's clean answers, and nothing else of the teacher reaches it."""
    _, workdir = done
    with np.load(workdir / "round-0" / "predictions.npz") as answers:
        logits, names = answers["unlabelled_logits"], answers["unlabelled_names"]
        assert "unlabelled_labels" not in answers
    given = labels.PseudoLabels.load(workdir / "labels-1.npz")
    exp = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    confidence = (exp / exp.sum(1, keepdims=True)).max(1)
    best = np.sort(np.argsort(-confidence, kind="stable")[:14])
    assert given.names.tolist() == names[best].tolist()
    assert given.targets.tolist() == logits[best].argmax(1).tolist()


def test_finished_is_finished_and_interrupted_goes_on(done, folder, tmp_path, monkeypatch):
    result, workdir = done
    with pytest.raises(UserError, match="holds this run, finished"):
        runs.run(config_of(folder, semi__teacher_epochs=3), workdir, console=QUIET)
    run, calls = train.run, []

    def stopping(config, where, **options):
        calls.append(where.name)
        if len(calls) == 2:
            raise Interrupted(15, 0)
        return run(config, where, **options)

    monkeypatch.setattr(rounds.train, "run", stopping)
    config = config_of(folder, semi__teacher_epochs=3)
    with pytest.raises(Interrupted):
        runs.run(config, tmp_path / "run", console=QUIET)
    again = runs.run(config, tmp_path / "run", console=QUIET)
    assert calls == ["round-0", "round-1", "round-1", "round-2"]
    for name in ("test", "validation", "history"):
        assert again[name] == result[name]
    with pytest.raises(UserError, match="holds a run of another config"):
        runs.run(config_of(folder, semi__teacher_epochs=1), tmp_path / "run", console=QUIET)


def test_soft_calibrated_warm_students(folder, tmp_path):
    config = config_of(
        folder, semi__targets="soft", semi__calibrate=True, semi__start="teacher", semi__teacher_noise=False
    )
    result = runs.run(config, tmp_path / "run", console=QUIET)
    given = labels.PseudoLabels.load(tmp_path / "run" / "labels-2.npz")
    assert given.targets.shape == (27, 3)
    np.testing.assert_allclose(given.targets.sum(axis=1), 1, rtol=1e-6)
    assert result["rounds"][1]["labels"]["temperature"] != 1
    own = json.loads((tmp_path / "run" / "round-1" / "config.json").read_text())
    assert own["model"]["weights"] == str(tmp_path / "run" / "round-0") and own["transfer"]["fresh"] == ""
    teacher = json.loads((tmp_path / "run" / "round-0" / "config.json").read_text())
    assert teacher["augment"]["crop"] == "center" and not teacher["augment"]["flip"]


def test_a_warm_student_starts_as_its_teacher(folder, tmp_path):
    config = config_of(folder, semi__start="teacher", optimizer__lr=1e-12, transfer__bn="eval")
    runs.run(config, tmp_path / "run", console=QUIET)
    first, last = (np.load(tmp_path / "run" / f"round-{r}" / "predictions.npz")["test_logits"] for r in (0, 2))
    np.testing.assert_allclose(first, last, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data__labels": "all"}, "needs images without a label"),
        ({"data__pseudo": "x.npz"}, "makes its own labels"),
        ({"population__lr": (1e-3, 1e-4)}, r"population\.\* do not go together"),
        ({"semi__select": "best"}, r"semi\.select='best' is not one of all, threshold"),
        ({"semi__share": 0.0}, r"semi\.share=0\.0 is not in 0 < x <= 1"),
        ({"semi__calibrate": True, "data__split": "50/0/50", "data__val": 0.0}, "there are none"),
        ({"data__source": "folder:/nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be(folder, tmp_path, settings, words):
    config = config_of(folder)
    for name, value in settings.items():
        part, field = name.split("__")
        config[part][field] = value
    with pytest.raises(UserError, match=words):
        runs.run(config, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()
