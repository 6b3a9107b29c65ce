"""A teacher and its students: what each is given, where they go on, what the record says."""

import json
import shutil

import numpy as np
import pytest

from tests import tiny
from tljax.core.errors import UserError
from tljax.core.signals import Interrupted
from tljax.data import labels, load
from tljax.report import insides, plots
from tljax.report.console import make_console
from tljax.train import runs, self_training, single_run, trainer

QUIET = make_console(quiet=True)


def config_of(photos, **settings):
    return tiny.make_config(
        photos, data__labels="25%", semi__method="pseudo_label", semi__rounds=2, semi__select="top", epochs=2,
        **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(photos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    return runs.run(config_of(photos, semi__teacher_epochs=3, pictures=True), workdir, console=QUIET), workdir


def test_the_record(done, photos):
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
    listed = load.open_data(config_of(photos).data, seed=0)
    given = labels.PseudoLabels.load(workdir / "labels-2.npz")
    truth = dict(zip(listed.source.names, listed.truth, strict=True))
    assert third["labels"]["right"] == sum(truth[n] == t for n, t in zip(given.names, given.targets, strict=True))
    assert json.loads((workdir / "result.json").read_text())["rounds"] == json.loads(json.dumps(result["rounds"]))
    for a, b in zip(*(np.load(f / "predictions.npz").values() for f in (workdir, workdir / "round-2")), strict=True):
        assert np.array_equal(a, b)
    before, after = (np.load(workdir / f"round-{number}/predictions.npz") for number in (1, 2))
    assert np.array_equal(before["test_names"], after["test_names"])
    wrong = [(a["test_logits"].argmax(1) != a["test_labels"]) for a in (before, after)]
    passed = third["teacher"]
    assert first["teacher"] is None and passed["mistakes"] == wrong[0].sum()
    assert passed["mended"] == (wrong[0] & ~wrong[1]).sum() and passed["new"] == (~wrong[0] & wrong[1]).sum()


def test_the_curves_join_no_two_networks_and_say_whose_best_epoch_is_marked(done):
    result, workdir = done
    (best,) = [row for row in result["history"] if row["step"] == result["best_step"]]
    figure = plots.curves(result["history"], best)
    assert (workdir / "curves.png").read_bytes() == insides.png(figure)
    for ax in figure.axes:
        begins = {text.get_text(): text.xy[0] for text in ax.texts}
        assert begins == {"teacher": 0.5, "student 1": 3.5, "student 2": 5.5}
        drawn = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"]
        assert drawn == 2 * [[1, 2, 3], [4, 5], [6, 7]]
        words = [text.get_text() for text in ax.get_legend().get_texts()]
        assert words == ["training (augmented)", "validation", f"best epoch of student 2, {best['epoch']}"]
        assert best["epoch"] in (6, 7)


def test_the_curves_of_a_single_run_are_whole_and_without_words_of_rounds(done):
    result = json.loads((done[1] / "round-0/result.json").read_text())
    for ax in plots.curves(result["history"], result["history"][1]).axes:
        assert not ax.texts
        assert [list(line.get_xdata()) for line in ax.lines] == [[1, 2, 3], [1, 2, 3], [2, 2]]
        assert ax.get_legend().get_texts()[-1].get_text() == "best epoch, 2"


def test_the_teacher_is_the_run_that_has_the_labels_alone(done, photos, tmp_path):
    alone = single_run.run(tiny.make_config(photos, data__labels="25%", epochs=3), tmp_path / "alone", console=QUIET)
    assert alone["test"] == done[0]["rounds"][0]["test"]
    assert [row["train_loss"] for row in alone["history"]] == [r["train_loss"] for r in done[0]["history"][:3]]


def test_a_student_is_the_run_that_has_the_teachers_labels(done, photos, tmp_path):
    """Its pseudo-labels are the teacher's clean answers, and nothing else of the teacher reaches it."""
    _, workdir = done
    with np.load(workdir / "round-0" / "predictions.npz") as answers:
        logits, names = answers["unlabeled_logits"], answers["unlabeled_names"]
        assert "unlabeled_labels" not in answers
    given = labels.PseudoLabels.load(workdir / "labels-1.npz")
    exp = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    confidence = (exp / exp.sum(1, keepdims=True)).max(1)
    best = np.sort(np.argsort(-confidence, kind="stable")[:14])
    assert given.names.tolist() == names[best].tolist()
    assert given.targets.tolist() == logits[best].argmax(1).tolist()


def test_finished_is_finished_and_interrupted_goes_on(done, photos, tmp_path, monkeypatch):
    result, workdir = done
    with pytest.raises(UserError, match="holds this run, finished"):
        runs.run(config_of(photos, semi__teacher_epochs=3, pictures=True), workdir, console=QUIET)
    run, calls = single_run.run, []

    def stopping(config, where, **options):
        calls.append(where.name)
        if len(calls) == 2:
            raise Interrupted(15, 0)
        return run(config, where, **options)

    monkeypatch.setattr(self_training.single_run, "run", stopping)
    config = config_of(photos, semi__teacher_epochs=3)
    with pytest.raises(Interrupted):
        runs.run(config, tmp_path / "run", console=QUIET)
    again = runs.run(config, tmp_path / "run", console=QUIET)
    assert calls == ["round-0", "round-1", "round-1", "round-2"]
    for name in ("test", "validation", "history"):
        assert again[name] == result[name]
    with pytest.raises(UserError, match="holds a run of another config"):
        runs.run(config_of(photos, semi__teacher_epochs=1), tmp_path / "run", console=QUIET)


def test_soft_calibrated_warm_students(photos, tmp_path):
    config = config_of(
        photos, semi__targets="soft", semi__calibrate=True, semi__start="teacher", semi__teacher_noise=False
    )
    result = runs.run(config, tmp_path / "run", console=QUIET)
    given = labels.PseudoLabels.load(tmp_path / "run" / "labels-2.npz")
    assert given.targets.shape == (27, 3)
    np.testing.assert_allclose(given.targets.sum(axis=1), 1, rtol=1e-6)
    given = result["rounds"][1]["labels"]
    assert given["fit_images"] > 0 and bool(given["raw"]) == (given["temperature"] == 1)
    own = json.loads((tmp_path / "run" / "round-1" / "config.json").read_text())
    assert own["model"]["weights"] == str(tmp_path / "run" / "round-0") and own["transfer"]["fresh"] == ""
    teacher = json.loads((tmp_path / "run" / "round-0" / "config.json").read_text())
    assert teacher["augment"]["crop"] == "center" and not teacher["augment"]["flip"]


def test_a_warm_student_starts_as_its_teacher(photos, tmp_path):
    config = config_of(photos, semi__start="teacher", optimizer__lr=1e-12, transfer__bn="eval")
    runs.run(config, tmp_path / "run", console=QUIET)
    first, last = (np.load(tmp_path / "run" / f"round-{r}" / "predictions.npz")["test_logits"] for r in (0, 2))
    np.testing.assert_allclose(first, last, rtol=1e-5)


def test_all_rounds_see_the_same_procedural_pictures(tmp_path):
    config = config_of(tmp_path, data__source="shapes:tiny", seed=3)
    own = [self_training.config_of(config, number, tmp_path) for number in range(3)]
    assert len({one.seed for one in own}) == 3
    assert {one.data.shapes_seed for one in own} == {3}
    plain, config.data.shapes_seed = load.open_data(config.data, seed=3).source, 3
    assert np.array_equal(plain.read(0), load.open_data(config.data, seed=own[1].seed).source.read(0))


def test_images_that_outgrow_the_memory_lie_beside_the_rounds(photos, tmp_path):
    result = runs.run(config_of(photos, data__memory_gb=1e-9), tmp_path / "run", console=QUIET)
    assert len(result["rounds"]) == 3
    assert [path.parent.name for path in (tmp_path / "run").rglob("pixels.u8")] == ["run"]


def stopped_in_round(number, config, workdir, monkeypatch):
    """Runs until a round would begin."""
    run = single_run.run

    def stopping(own, where, **options):
        if where.name == f"round-{number}":
            raise Interrupted(15, 0)
        return run(own, where, **options)

    with monkeypatch.context() as patch:
        patch.setattr(self_training.single_run, "run", stopping)
        with pytest.raises(Interrupted):
            runs.run(config, workdir, console=QUIET)


@pytest.mark.slow
def test_a_folder_that_was_moved_goes_on_and_serves_as_weights(photos, tmp_path, monkeypatch):
    config, killed = config_of(photos, semi__start="teacher"), []
    undisturbed = runs.run(config, tmp_path / "whole", console=QUIET)
    real = trainer.Trainer.train_epoch

    def killed_in_round_1(self, *args):
        if self.workdir.name == "round-1" and self.step and not killed:
            killed.append(self.step)
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_epoch", killed_in_round_1)
        with pytest.raises(KeyboardInterrupt):
            runs.run(config, tmp_path / "here", console=QUIET)
    assert killed
    (tmp_path / "here").rename(tmp_path / "there")
    again = runs.run(config, tmp_path / "there", console=QUIET)
    assert again["test"] == undisturbed["test"]
    assert again["history"] == undisturbed["history"]
    weights = str(tmp_path / "there")
    more = tiny.make_config(
        photos, model__weights=weights, transfer__fresh="", optimizer__lr=1e-12, transfer__bn="eval", epochs=1
    )
    assert single_run.run(more, tmp_path / "more", console=QUIET)["test"] == again["test"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("predictions.npz", b"PK", r"predictions\.npz is missing or damaged .*remove .*result\.json"),
        ("result.json", b"{}", r"result\.json is damaged: it has no classes"),
        ("result.json", b"{", r"result\.json is damaged"),
    ],
)
def test_a_round_that_was_damaged_is_named(photos, tmp_path, monkeypatch, name, content, words):
    config = config_of(photos)
    stopped_in_round(1, config, tmp_path / "run", monkeypatch)
    (tmp_path / "run" / "round-0" / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        runs.run(config, tmp_path / "run", console=QUIET)


def test_a_teacher_without_checkpoints_is_named(photos, tmp_path, monkeypatch):
    config = config_of(photos, semi__start="teacher")
    stopped_in_round(1, config, tmp_path / "run", monkeypatch)
    shutil.rmtree(tmp_path / "run" / "round-0" / "checkpoints")
    with pytest.raises(UserError, match=r"the checkpoint .*round-0/checkpoints/\d+ is missing or damaged"):
        runs.run(config, tmp_path / "run", console=QUIET)


def test_a_teacher_that_diverged_labels_nothing(photos, tmp_path):
    config = config_of(photos, optimizer__lr=1e30, optimizer__name="sgd", stop_at_nan=False)
    with pytest.raises(UserError, match=r"round 0 answers with numbers that are not finite"):
        runs.run(config, tmp_path / "run", console=QUIET)


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
        ({"model__outputs": 5}, r"does not go with model\.outputs=5"),
        ({"cache__views": 4, "semi__teacher_noise": False}, r"this plan has none"),  # of students
        ({"transfer__phases": "all@3", "semi__teacher_epochs": 3}, "covers 3 epochs, but epochs=2"),
    ],
)
def test_what_cannot_be(photos, tmp_path, settings, words):
    config = config_of(photos)
    for name, value in settings.items():
        part, field = name.split("__")
        config[part][field] = value
    with pytest.raises(UserError, match=words):
        runs.run(config, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_teacher_labels_images_of_another_folder(photos, tmp_path):
    config = tiny.make_config(
        photos, data__unlabeled=str(photos / "red"), data__train=".", semi__method="pseudo_label", epochs=1
    )
    result = runs.run(config, tmp_path / "run", console=QUIET)
    labels = result["rounds"][1]["labels"]
    assert (labels["unlabelled"], labels["given"], labels["known"], labels["right"]) == (24, 24, 0, 0)
