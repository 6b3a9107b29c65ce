"""tljax from Python: the lines that a notebook needs, and what they say of mistakes."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import tljax
from tests import tiny
from tljax.core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"split": "50/25/25", "train": "all", "model": {"weights": "None", "width": 4, "blocks": (1, 1)}, "epochs": 2,
         "batch_size": 8, "lr": 3e-3}  # fmt: skip
SIZE = {"resize": 40, "size": 32}


@pytest.fixture(scope="module")
def config(photos):
    return tljax.config({"source": f"folder:{photos}", **SIZE}, select="validation", **SMALL)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    return tljax.fit(config, tmp_path_factory.mktemp("run") / "photos", quiet=True)


@pytest.fixture(scope="module")
def population(config, tmp_path_factory):
    own = config.copy_and_resolve_references()
    own.population.lr = (1e-6, 1e-2)
    return tljax.fit(own, tmp_path_factory.mktemp("run") / "population", quiet=True)


def test_fields_are_named_by_their_last_word_their_part_or_both():
    made = tljax.config("pets:there", lr=1, train="head,layer4", weights=None, model="resnet34", seed=3, batch_size=7,
                        optimizer={"name": "sgd", "momentum": 0.5}, population={"lr": [1e-3, 1e-4]})  # fmt: skip
    assert (made.data.source, made.optimizer.lr, made.transfer.train) == ("pets:there", 1.0, "head,layer4")
    assert (made.model.name, made.model.weights) == ("resnet34", None)
    assert (made.seed, made.transfer.seed, made.batch_size, made.semi.batch_size) == (3, None, 7, 32)
    assert (made.optimizer.name, made.optimizer.momentum) == ("sgd", 0.5)
    assert made.population.lr == (1e-3, 1e-4)
    assert made.is_locked


def test_a_folder_that_exists_needs_no_word_before_it(photos):
    for given in (photos, str(photos), f"folder:{photos}"):
        assert tljax.config(given).data.source == f"folder:{photos}"


def test_a_config_begins_with_the_defaults_of_a_file(tmp_path):
    from configs import folder, pets_ft

    assert tljax.config("folder:photos").to_dict() == folder.get_config().to_dict()
    assert tljax.config(base="pets_ft").to_dict() == pets_ft.get_config().to_dict()
    (tmp_path / "own.py").write_text("from tljax.settings import fields\n\ndef get_config():\n"
                                     "    c = fields.get_config()\n    c.epochs = 77\n    return c\n")  # fmt: skip
    assert tljax.config(base=tmp_path / "own.py").epochs == 77


@pytest.mark.parametrize(
    "given,words",
    [
        ({"trian": "head"}, "did you mean transfer.train"),
        ({"learning": 1e-3}, "not a field of a config"),
        ({"optimizer": {"lrr": 1e-3}}, "did you mean optimizer.lr"),
        ({"epochs": 1.5}, "epochs=1.5 does not fit; it takes a value such as 10"),
        ({"population": {"lr": 1e-3}}, "population.lr=0.001 does not fit; it takes values in brackets, such as (0.1"),
        ({"memory_gb": 1}, "say cache={'memory_gb': ...} or data={'memory_gb': ...}"),
        ({"base": "foldr"}, "there are common, demo, folder"),
        ({"base": ConfigDict({"a": "x" * 3000})}, "there are common, demo, folder"),
        ({"base": "x\0"}, "there are common, demo, folder"),
        ({"lr": 10**400}, "optimizer.lr=1000"),
        ({"lr": 10**5000}, "optimizer.lr=a value of type int does not fit"),
        ({"lr_decay": -(10**400)}, "does not fit; it takes a value such as 1.0"),
        ({"unlabeled": 3}, "data.unlabeled=3 does not fit; it takes text"),
        ({"lr": Path("x")}, "optimizer.lr='x' does not fit"),
        ({"data.sise": 32}, "data.sise is not a field of a config; did you mean"),
        ({"optimizer": {"a.b": 1}}, "optimizer.a.b is not a field"),
        ({"x" * 3000: 1}, "is not a field"),
    ],
)
def test_a_wrong_field_is_one_line_with_the_nearest_ones(given, words):
    with pytest.raises(UserError) as caught:
        tljax.config("folder:photos", **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_fields_may_have_dotted_names_and_text_may_be_a_path():
    made = tljax.config("pets:there", **{"data.size": 32, "optimizer.name": "sgd", "population.lr": (1e-3, 1e-4)},
                        unlabeled=Path("more"), weights=Path("old.npz"))  # fmt: skip
    assert (made.data.size, made.optimizer.name, made.population.lr) == (32, "sgd", (1e-3, 1e-4))
    assert (made.data.unlabeled, made.model.weights) == ("more", "old.npz")


def test_the_plan_is_what_the_run_then_has_and_nothing_is_written(config, run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = tljax.plan(config)
    assert not list(tmp_path.iterdir())
    assert [plan.as_rows() for plan in found.plans] == run.result["plan"]
    assert found.trainable == run.result["train"]["trainable_parameters"]
    assert found.images == {"train": 36, "val": 18, "test": 18}
    assert found.classes == tiny.CLASSES
    for shown in (str(found), found._repr_html_()):
        assert all(word in shown for word in ("stem", "batch+update+affine", "36", "3 classes"))
    rows = 1 + len(found.plans[0].groups) + 1 + len(found.classes)
    assert found._repr_html_().count("<tr>") == rows


def test_the_plan_tells_mistakes_as_training_does(config):
    wrong = config.copy_and_resolve_references()
    wrong.transfer.train = "head,layer9"
    with pytest.raises(UserError, match="layer9"):
        tljax.plan(wrong)
    wrong = config.copy_and_resolve_references()
    wrong.model.weights = "nowhere.pth"
    with pytest.raises(UserError, match=r"weights='nowhere\.pth' is no file that exists"):
        tljax.plan(wrong)
    wrong.model.weights = "imagenet"  # is not downloaded to look at a plan
    assert tljax.plan(wrong).classes == tiny.CLASSES
    for other in ("folder:photos", None):
        with pytest.raises(UserError, match="make one by tljax"):
            tljax.plan(other)
        with pytest.raises(UserError, match="make one by tljax"):
            tljax.fit(other, "nowhere")


def test_a_run_that_is_finished_is_loaded_and_another_is_refused(config, run):
    before = {path: path.stat().st_mtime_ns for path in run.workdir.rglob("*") if path.is_file()}
    again = tljax.fit(config, str(run.workdir), quiet=True)
    assert again.result == run.result == tljax.load(run.workdir).result
    assert before == {path: path.stat().st_mtime_ns for path in run.workdir.rglob("*") if path.is_file()}
    other = config.copy_and_resolve_references()
    other.epochs = 3
    with pytest.raises(UserError, match="epochs: 2 there, 3 now"):
        tljax.fit(other, run.workdir, quiet=True)


def test_a_run_that_was_stopped_goes_on(config, run, tmp_path, monkeypatch):
    tiny.interrupted_after(config, tmp_path / "run", 7, monkeypatch)
    with pytest.raises(UserError, match="not the folder of a finished run"):
        tljax.load(tmp_path / "run")
    assert tljax.fit(config, tmp_path / "run", quiet=True).result["test"] == run.result["test"]


def test_a_run_tells_what_it_does_unless_it_is_to_be_quiet(config, tmp_path, capsys):
    tljax.fit(config, tmp_path / "told")
    assert "epoch   2" in capsys.readouterr().out
    tljax.fit(config, tmp_path / "quiet", quiet=True)
    assert capsys.readouterr().out == ""


def test_evaluate_gives_what_the_run_found_in_its_test(run):
    found = tljax.evaluate(run)
    assert (found.correct, found.seen) == (run.result["test"]["correct"], 18)
    assert list(found.interval95) == run.result["test"]["interval95"]
    assert found.by_class == run.result["by_class"]["test"]
    assert found.calibration == run.result["calibration"]["test"]
    assert found.confusion.sum() == 18 and np.trace(found.confusion) == found.correct
    assert "of 18" in str(found) and "chose" not in str(found)
    chose = run.evaluate(split="val")
    assert chose.correct == run.result["validation"]["correct"]
    assert chose.chose_epoch == 18 and "(these images chose the epoch)" in str(chose)
    assert "validation (these images chose the epoch)" in str(run)


def test_images_that_chose_the_epoch_are_counted_wherever_they_are_named_from(run, photos):
    whole = tljax.evaluate(run, photos)
    assert whole.chose_epoch == 18 and "(18 of these images chose the epoch)" in str(whole)
    own = run.result["config"]["data"]["source"]
    assert tljax.evaluate(run, f"{own}/").chose_epoch == 18


def test_other_images_are_evaluated_as_the_runs_own_were(run, photos, tmp_path):
    own = tljax.evaluate(run)
    for name in own.names:
        there = tmp_path / "other" / name
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes((photos / name).read_bytes())
    (tmp_path / "other/red/broken.png").write_bytes(b"no picture")
    again = tljax.evaluate(run.workdir, tmp_path / "other", batch_size=5)
    assert (again.correct, again.seen, again.by_class) == (own.correct, own.seen, own.by_class)
    assert again.names == own.names
    assert again.calibration and own.calibration
    assert again.calibration["ece"] == pytest.approx(own.calibration["ece"], abs=1e-3)
    assert again.calibration["scaled"]["ece"] == pytest.approx(own.calibration["scaled"]["ece"], abs=1e-3)
    assert [name for name, _ in again.skipped] == ["red/broken.png"]


def test_a_picture_under_two_labels_is_said(run, photos, tmp_path):
    picture = next((photos / "red").iterdir()).read_bytes()
    for name in ("red", "green"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.png").write_bytes(picture)
    said = str(tljax.evaluate(run, tmp_path))
    assert said.endswith("1 picture lies under two labels, such as 'green/same.png' and 'red/same.png'")


def test_some_of_the_classes_in_another_order_will_do(run, tmp_path):
    for name, color in (("red", (220, 90, 90)), ("green", (90, 220, 90))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (48, 40), color).save(tmp_path / name / "a.png")
    found = tljax.evaluate(run, f"folder:{tmp_path}")
    assert [tiny.CLASSES[label] for label in found.labels] == ["green", "red"]
    assert found.by_class["blue"]["seen"] == 0


def lay(root, photos, *places, images=2):
    """Folders with the first pictures of a class each, as 'test/red' or 'purple=red'; `root`."""
    for place in places:
        folder, _, cls = place.partition("=")
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in sorted((photos / (cls or folder.split("/")[-1])).iterdir())[:images]:
            shutil.copy(file, root / folder)
    return root


@pytest.mark.parametrize(
    "places, seen, split",
    [
        (["red"], 2, None),
        (["test/red"], 2, "test"),
        (["test/red", "test/blue"], 4, "test"),
        (["val/red", "test/blue"], 2, "test"),
        (["data/images/red"], 2, None),
        (["old/red", "new/red", "new/blue"], 6, None),
        (["train/red", "train/blue", "test/green=red"], 2, "test"),  # green is in test alone
    ],
)
def test_a_class_or_a_split_alone_will_do(run, photos, tmp_path, places, seen, split):
    found = tljax.evaluate(run, lay(tmp_path, photos, *places), split=split)
    assert found.seen == seen and not found.unknown
    assert {tiny.CLASSES[label] for label in found.labels} | set(found.unseen) == set(tiny.CLASSES)
    assert f"no images of {', '.join(map(repr, found.unseen))}" in str(found)


def test_images_of_classes_that_the_run_does_not_know_are_counted_apart(run, photos, tmp_path):
    root = lay(tmp_path, photos, "test/red", "test/purple=blue", "test/Blue=blue")
    found, alone = tljax.evaluate(run, root), tljax.evaluate(run, lay(tmp_path / "alone", photos, "red"))
    assert (found.correct, found.seen, found.by_class) == (alone.correct, alone.seen, alone.by_class)
    assert found.unknown == {"Blue": 2, "purple": 2}
    words = "no class of the run, left out: 'Blue' (2 images), 'purple' (2 images); is 'blue' meant by 'Blue'?"
    assert str(found).endswith(words) and "skipped" not in str(found)


@pytest.mark.parametrize(
    "places, message",
    [
        (["Red=red", "Blue=blue"], "has 'Blue', 'Red': none is a class of .* is 'blue' meant by 'Blue'.* use predict"),
        ([".=red"], "no labels in .*: its 2 images are in no class folders; .* use predict"),
        (["test=red"], "no labels in .* use predict"),
        (["train=red", "test/images=blue"], "no labels in .* use predict"),
        (["2024/01=red"], "none is a class of .* use predict"),
    ],
)
def test_images_without_a_label_that_the_run_knows_are_refused(run, photos, tmp_path, places, message):
    with pytest.raises(UserError, match=message) as error:
        tljax.evaluate(run, lay(tmp_path, photos, *places))
    assert "\n" not in str(error.value)


def test_a_picture_or_a_split_that_is_not_there_is_refused(run, photos, tmp_path):
    for images in (photos / "red/000.png", [photos / "red"]):
        with pytest.raises(UserError, match="use predict"):
            tljax.evaluate(run, images)
    with pytest.raises(UserError, match=r"no labels in .* or give .*/photos', where 'red' is a class"):
        tljax.evaluate(run, photos / "red")
    with pytest.raises(UserError, match="has no split 'test'"):
        tljax.evaluate(run, photos, split="test")
    with pytest.raises(UserError, match=r"has no images of the classes of .* 'purple'"):
        tljax.evaluate(run, lay(tmp_path, photos, "train/red", "test/purple=blue"), split="test")


def test_images_that_the_run_trained_on_are_counted_by_what_is_in_them(run, photos, tmp_path):
    with np.load(run.workdir / "predictions.npz") as kept:
        others = {*kept["val_names"].tolist(), *kept["test_names"].tolist()}
    for i, name in enumerate(f"{cls}/{k:03}.png" for cls in tiny.CLASSES for k in range(24)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(photos / name, tmp_path / name.split("/")[0] / f"other-{i:02}.png")
    found = tljax.evaluate(run, tmp_path)
    assert found.trained_on.tolist() == [
        f"{name.split('/')[0]}/{int(name[-6:-4]) % 24:03}.png" not in others for name in found.names
    ]
    rest = int((found.predicted == found.labels)[~found.trained_on].sum())
    assert f"the run trained on 36 of these images, accuracy on the others {rest / 36:.1%} ({rest} of 36" in str(found)
    assert found.chose_epoch == 18
    assert not tljax.evaluate(run).trained_on.any() and "trained on" not in str(tljax.evaluate(run))


def test_of_an_older_run_it_is_said_that_its_training_images_are_not_known(run, photos, tmp_path):
    shutil.copytree(run.workdir, tmp_path / "run")
    (tmp_path / "run/images.npz").unlink()
    found = tljax.evaluate(tmp_path / "run", photos)
    assert found.trained_on is None and "not known how many of these images the run trained on" in str(found)
    assert found.chose_epoch == 18


def test_predict_takes_files_folders_bytes_and_pixels(run, photos):
    file = photos / "red/000.png"
    with Image.open(file) as image:
        pixels = np.asarray(image)
        answers = tljax.predict(run, [file, str(file), file.read_bytes(), pixels, image], top=3)
    assert [answer.best for answer in answers] == [answers[0].best] * 5
    assert sum(share for _, share in answers[0].best) == pytest.approx(1)
    (alone,) = tljax.predict(run.workdir, pixels, top=1)
    assert dict(alone.best) == pytest.approx(dict(answers[0].best[:1]), abs=1e-5)
    assert [answer.name for answer in run.predict(photos / "red")] == [f"{photos}/red/{i:03}.png" for i in range(24)]
    missing, good = run.predict([photos / "missing.png", np.stack([pixels])[0]])
    assert missing.reason and good.best
    with pytest.raises(UserError, match="picture 1 is a int"):
        run.predict([file, 3])
    with pytest.raises(UserError, match="no pictures"):
        run.predict([])
    with pytest.raises(UserError, match="picture 0 is a NoneType"):
        run.predict(None)
    with pytest.raises(UserError, match="top='a' is not a positive whole number"):
        run.predict(file, top="a")


def test_a_population_has_members_which_are_runs(population, photos):
    wanted = [{"lr": 1e-6}, {"lr": 1e-2}]
    assert [dict(settings) for settings in population.settings] == wanted
    assert [member.settings for member in population.members] == wanted
    assert tljax.load(population.workdir / "members/001").settings == wanted[1]
    best = population.best
    assert best.result["validation"]["accuracy"] == max(m.result["validation"]["accuracy"] for m in population.members)
    assert tljax.evaluate(best).seen == 18
    assert len(best.history) == 2
    assert best.predict(photos / "red/000.png")[0].best
    with pytest.raises(UserError, match="holds a population"):
        tljax.evaluate(population)
    with pytest.raises(UserError, match="holds a population"):
        population.predict(photos)
    assert "2 members" in str(population)


@pytest.mark.slow
def test_import_leaves_jax_alone_until_something_is_asked_for():
    words = ("import sys, tljax; assert 'jax' not in sys.modules; "
             "from tljax.inference.batch_predict import find_pictures; "
             "assert 'jax' not in sys.modules; assert callable(tljax.predict); tljax.plan; "
             "assert callable(tljax.predict) and callable(tljax.evaluate)")  # fmt: skip
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", words], check=True, cwd=ROOT)


def test_what_there_is_can_be_listed():
    assert {"config", "evaluate", "fit", "load", "plan", "predict"} <= set(dir(tljax))
    with pytest.raises(AttributeError, match="no attribute 'train_me'"):
        _ = tljax.train_me


@pytest.mark.parametrize("wrong", [None, 3, b"runs/x", [], object()], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_folder_of_a_run_is_one_line(wrong, config):
    for call in (lambda: tljax.load(wrong), lambda: tljax.fit(config, wrong), lambda: tljax.evaluate(wrong),
                 lambda: tljax.predict(wrong, "cat.jpg")):  # fmt: skip
        with pytest.raises(UserError, match="is no folder; give the path of one") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": None}, {"batch_size": 2.5}, {"split": 3}], ids=str
)
def test_options_of_evaluate_are_looked_at(run, photos, options):
    with pytest.raises(UserError, match="is not"):
        tljax.evaluate(run, photos, **options)


@pytest.mark.parametrize("empty", [ConfigDict(), ConfigDict({"data": 1, "run": "train"})], ids=str)
def test_a_config_of_something_else_is_one_line(empty, tmp_path):
    for call in (tljax.plan, lambda config: tljax.fit(config, tmp_path / "run")):
        with pytest.raises(UserError, match="the config has no accumulate"):
            call(empty)


def test_a_seed_that_is_none_is_one_line(photos):
    with pytest.raises(UserError, match="seed=None does not fit; it takes a whole number"):
        tljax.plan(tljax.config(photos, weights=None, train="all", seed=None))


@pytest.mark.parametrize("nothing", ["", "nowhere", "cats:nowhere"])
def test_data_that_name_nothing_are_one_line(nothing):
    with pytest.raises(UserError, match="folder:PATH, pets:PATH, tfds:NAME, shapes:TASK"):
        tljax.config(nothing)


def test_files_that_are_open_and_bytes_of_any_kind_are_read(run, photos):
    path = photos / "red/000.png"
    (named,) = tljax.predict(run, path)
    data = path.read_bytes()
    with path.open("rb") as file:
        given = [file, io.BytesIO(data), bytearray(data), memoryview(data)]
        assert [answer.best for answer in tljax.predict(run, given, batch_size=1)] == [named.best] * 4
        file.seek(0)
        assert tljax.predict(run, file)[0].best == named.best
    for wrong in (file, path.open("ab"), open(__file__), io.StringIO("cat.jpg")):  # noqa: SIM115
        with pytest.raises(UserError, match=r"open pictures by open\(path, 'rb'\)"):
            tljax.predict(run, wrong)
        wrong.close()


@pytest.mark.parametrize("wrong", ["no", 2, None], ids=str)
@pytest.mark.parametrize("name", ["overwrite", "quiet"])
def test_a_switch_of_fit_that_is_not_true_or_false_is_refused_and_the_run_stays(run, config, name, wrong):
    before = (run.workdir / "result.json").stat()
    with pytest.raises(UserError, match=f"^{name}={wrong!r} is not True or False$"):
        tljax.fit(config, run.workdir, **{"quiet": True, name: wrong})
    assert (run.workdir / "result.json").stat() == before


def test_a_switch_of_predict_that_is_not_true_or_false_is_refused(run, photos):
    with pytest.raises(UserError, match=r"^flips='no' is not True or False$"):
        run.predict(photos, flips="no")


@pytest.mark.parametrize("where", ["x\0", "folder:x\0", "pets:x\0", Path("x\0")], ids=repr)
def test_a_path_with_a_nul_is_one_line(run, config, where):
    calls = [
        lambda: tljax.evaluate(run, where), lambda: tljax.predict(run, where), lambda: tljax.predict(run, [where]),
        lambda: tljax.load(where), lambda: tljax.fit(config, where, quiet=True),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(UserError, match="has a NUL character; no path has") as caught:
            call()
        assert "\0" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["", "folder:"])
def test_images_that_name_nothing_are_not_those_of_the_current_folder(run, where):
    with pytest.raises(UserError, match=r"images is empty; give a folder \('\.' for the current one\)"):
        tljax.evaluate(run, where)


@pytest.mark.parametrize("kind", ["folder", "pets"])
def test_a_source_without_a_folder_says_so(kind):
    with pytest.raises(
        UserError, match=rf"data\.source='{kind}:' names no folder; give one \('\.' for the current one\)"
    ):
        tljax.plan(tljax.config(f"{kind}:", weights=None, train="all"))


def test_a_dictionary_of_pictures_is_not_asked_by_its_keys(run):
    with pytest.raises(UserError, match="images is a dict; give"):
        tljax.predict(run, {"a": "cat0.png"})
