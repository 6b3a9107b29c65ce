"""A look at a finished run: its numbers are those of the run, its pictures are there, what is missing is said."""

import html
import io
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import log_softmax

from tests import tiny
from tljax.inference.activations import first_kernel, layers, maps_of, nearest
from tljax.inference.classifier import load
from tljax.inference.test_predictions import open_images, read_answers
from tljax.look import __main__ as look_command
from tljax.models import MODELS, ForwardContext, create_model, init_variables
from tljax.report.answers import confusion_picture
from tljax.report.console import make_console
from tljax.report.insides import head, maps_picture
from tljax.train import runs

QUIET = make_console(quiet=True)
NASTY = "<b>$x_$ & y</b>"


def nasty_folder(root):
    """Three classes, one with markup for its name."""
    tiny.make_folder(root)
    (root / "green").rename(root / NASTY.replace("/", "|"))
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return nasty_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "plain"
    runs.run(tiny.make_config(photos, epochs=2, pictures=False), workdir, console=QUIET)
    return workdir


@pytest.fixture(scope="module")
def looked(finished):
    assert look_command.main([str(finished), "--top", "5", "--pictures", "3", "--near", "4"]) == 0
    return finished / "look"


@pytest.fixture(scope="module")
def numbers(looked):
    return json.loads((looked / "look.json").read_text())


def kept(workdir):
    with np.load(workdir / "predictions.npz") as file:
        return [file[f"test_{part}"] for part in ("names", "labels", "logits")]


def test_every_part_is_there_as_a_picture_and_on_one_page_that_needs_nothing_beside_it(looked):
    pictures = {path.name for path in looked.glob("*.png")}
    assert pictures == {
        "filters.png", "confusion.png", "mistakes.png", "losses.png",
        *(f"{part}-{i:02}.png" for part in ("explained", "neighbors") for i in (1, 2, 3)),
        *(f"maps-{name}-{when}.png" for name in ("stem", "layer1", "layer2") for when in ("before", "after")),
    }  # fmt: skip
    for name in pictures:
        with Image.open(looked / name) as image:
            image.load()
            assert min(image.size) > 100 and len(set(np.asarray(image.convert("L")).reshape(-1).tolist())) > 10
    page = (looked / "index.html").read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(one.startswith(("data:", "#")) for one in addresses)
    assert page.count("<img") == sum(one.startswith("data:image") for one in addresses) > 15
    assert page.count("<img") == len(re.findall(r'alt="[^"]+"', page))


def test_names_are_shown_and_never_markup(looked):
    page, name = (looked / "index.html").read_text(), NASTY.replace("/", "|")
    assert name not in page and html.escape(name) in page


def test_the_confusion_matrix_counts_the_runs_answers(finished, numbers):
    _, labels, logits = kept(finished)
    expected = [[int(((labels == i) & (logits.argmax(1) == j)).sum()) for j in range(3)] for i in range(3)]
    assert numbers["confusion"] == expected
    assert np.trace(expected) == json.loads((finished / "result.json").read_text())["test"]["correct"]


def test_the_highest_losses_are_numpys(finished, numbers):
    names, labels, logits = kept(finished)
    losses = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    order = np.argsort(-losses, kind="stable")[:5]
    assert [one["name"] for one in numbers["losses"]] == names[order].tolist()
    assert [one["loss"] for one in numbers["losses"]] == pytest.approx(losses[order].tolist(), abs=1e-9)
    mean = json.loads((finished / "result.json").read_text())["test"]["loss"]
    assert losses.mean() == pytest.approx(mean, rel=1e-5)


def test_mistakes_are_all_wrong_and_the_surest_come_first(finished, numbers):
    names, labels, logits = kept(finished)
    shares = np.exp(log_softmax(logits.astype(np.float64) / load(finished).temperature, axis=1))
    wrong = [i for i in np.argsort(-shares.max(1), kind="stable") if shares[i].argmax() != labels[i]]
    assert [one["name"] for one in numbers["mistakes"]] == names[wrong[:5]].tolist()
    assert all(one["answer"] != one["label"] for one in numbers["mistakes"])
    for one, row in zip(numbers["mistakes"], wrong, strict=False):
        assert one["probability"] == pytest.approx(shares[row].max())


def test_a_picture_that_was_exchanged_since_is_not_taken_for_the_runs(finished, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    images = open_images(load(finished), f"folder:{tmp_path}/photos")
    one, other = (tmp_path / "photos/red" / name for name in ("000.png", "001.png"))
    assert images.read("red/000.png") == one.read_bytes()
    one.write_bytes(other.read_bytes())
    with pytest.raises(OSError, match="another picture than the run had"):
        images.read("red/000.png")


def test_nearest_training_images_are_those_of_numpy(finished, photos, numbers):
    classifier = load(finished)
    images = open_images(classifier)
    train = [images.listed.source.names[i] for i in images.listed.splits["train"]]

    def features(names):
        squares = np.stack([classifier.see((photos / name).read_bytes()) for name in names])
        rows = np.asarray(
            classifier.model.apply(
                classifier.variables, classifier.normalize(squares), ForwardContext(), stop_stage="head"
            )
        )
        rows = rows.astype(np.float64)
        return rows / np.sqrt((rows**2).sum(1, keepdims=True))

    cosines = features([one["name"] for one in numbers["explained"]]) @ features(train).T
    for one, row in zip(numbers["explained"], cosines, strict=True):
        found = {near["name"]: near["cosine"] for near in one["near"]}
        assert sorted(found.values(), reverse=True) == pytest.approx(np.sort(row)[::-1][:4], abs=1e-5)
        assert all(near["label"] == near["name"].split("/")[0] for near in one["near"])
        for name, cosine in found.items():
            assert cosine == pytest.approx(row[train.index(name)], abs=1e-5)


def test_cosines_of_rows_and_of_a_row_of_zeros():
    rows, cosines = nearest(np.array([[2.0, 0], [0, 0]]), np.array([[0.0, 3], [5, 0], [1, 1]]), 2)
    assert rows[0].tolist() == [1, 2]
    np.testing.assert_allclose(cosines, [[1, np.sqrt(0.5)], [0, 0]])


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mini_xception"])
def test_an_activation_cuts_what_lies_before_it_at_zero(name):
    options = {"resnet18": {"width": 4}, "mini_xception": {"width": 4}}.get(name, {})
    model = create_model(name, num_classes=3, **options)
    variables = init_variables(model, jax.random.key(0))
    found = layers(model, 64)
    stages = [stage for stage in model.stages if stage not in ("pool", "head")]
    assert [stage for stage in stages if stage not in found] == []

    class Stand:  # all that `maps_of` asks of a run
        normalize = staticmethod(lambda squares: jnp.asarray(squares, jnp.float32) / 128 - 1)

    Stand.model, Stand.variables = model, variables
    square = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for layer, (before, after) in maps_of(Stand, square, found).items():
        assert after.shape == found[layer].shape
        if before is not None:
            assert before.min() < 0 < before.max()
            np.testing.assert_array_equal(after, np.maximum(before, 0))
    assert all(found[stage].before for stage in stages if name != "mini_xception" or stage in ("stem", "exit"))
    assert first_kernel(model, variables["params"]).shape[2] == 3


def test_a_stage_called_as_its_layer_does_not_stop_the_trace_of_all_stages():
    model = create_model("mini_xception", num_classes=3, width=4)
    variables = init_variables(model, jax.random.key(0))
    _, sown = model.apply(variables, jnp.ones((1, 64, 64, 3)), mutable=["intermediates"])
    assert "exit" in sown["intermediates"]
    assert set(MODELS) >= {"mini_xception"}


def test_pictures_of_ones_own_and_the_layers_by_name(finished, photos, tmp_path, capsys):
    assert look_command.main([str(finished), "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["stem", "layer1", "layer2"]
    (tmp_path / "no.jpg").write_text("text")
    given = [str(photos / "red/000.png"), str(tmp_path / "no.jpg"), "--maps", "layer2", "--out", str(tmp_path / "out")]
    assert look_command.main([str(finished), *given, "--channels", "4", "--near", "0"]) == 0
    assert "no.jpg cannot be read: not an image" in capsys.readouterr().err
    found = json.loads((tmp_path / "out/look.json").read_text())
    assert [one["name"] for one in found["explained"]] == [str(photos / "red/000.png")]
    assert [(one["layer"], one["when"], len(one["channels"])) for one in found["maps"]] == [
        ("layer2", "before", 4), ("layer2", "after", 4),
    ]  # fmt: skip
    assert found["explained"][0]["near"] is None
    assert look_command.main([str(finished), str(tmp_path / "no.jpg"), "--out", str(tmp_path / "none")]) == 1


def test_of_two_classes_and_one_logit(one_logit, tmp_path):
    workdir = shutil.copytree(one_logit, tmp_path / "run")
    assert look_command.main([str(workdir), "--pictures", "2", "--near", "1", "--maps", "stem"]) == 0
    found, (_, labels, logits) = json.loads((workdir / "look/look.json").read_text()), kept(workdir)
    answers = (logits[:, 0] > 0).astype(int)
    assert found["confusion"] == [[int(((labels == i) & (answers == j)).sum()) for j in (0, 1)] for i in (0, 1)]
    losses = np.logaddexp(0, np.where(labels == 1, -1, 1) * logits[:, 0].astype(np.float64))
    np.testing.assert_allclose(read_answers(load(workdir)).losses, losses)


def test_where_the_images_went_is_said_and_the_rest_is_there(finished, photos, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("look"))
    result = json.loads((workdir / "result.json").read_text())
    result["config"]["data"]["source"] = f"folder:{tmp_path}/gone"
    (workdir / "result.json").write_text(json.dumps(result))
    assert look_command.main([str(workdir)]) == 0
    err = capsys.readouterr().err
    assert "nearest training images are left out" in err and "gone" in err
    assert {path.name for path in (workdir / "look").glob("*.png")} == {"confusion.png", "filters.png"}
    page = (workdir / "look/index.html").read_text()
    assert "are left out" in page and "Most confident mistakes" in page
    assert look_command.main([str(workdir), "--source", f"folder:{photos}", "--pictures", "1", "--near", "1"]) == 0
    assert (workdir / "look/neighbors-01.png").is_file()


def test_a_source_that_is_not_the_runs_is_refused_and_nothing_written(finished, photos, tmp_path, capsys):
    fewer = nasty_folder(tmp_path / "fewer")
    for name in ("blue", "red", NASTY.replace("/", "|")):
        for file in sorted((fewer / name).iterdir())[9:]:
            file.unlink()
    broken = tmp_path / "broken"  # a run without answers: names of images cannot be compared
    shutil.copytree(finished, broken, ignore=shutil.ignore_patterns("look", "predictions.npz"))
    for run, source, words in (
        (finished, "nonsense", "'nonsense' is not one of folder:PATH"),
        (finished, f"folder:{tmp_path}/nope", "no such folder"),
        (finished, f"folder:{fewer}", "holds other images than when the run was made"),
        (broken, f"folder:{tiny.make_folder(tmp_path / 'other')}", "holds other classes than when the run was made"),
    ):
        assert look_command.main([str(run), "--source", source, "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"tljax: --source={source}: ") and words in line
    assert not (tmp_path / "out").exists()


def test_of_many_classes_the_numbers_that_are_not_zero_are_readable():
    """A cell of 37 classes has room for its number, and a matrix of sixty is no larger than a screen or two."""
    for count in (2, 37, 60):
        counts = np.eye(count, dtype=int) * 90 + 10 * (np.arange(count)[:, None] == 0)
        with Image.open(io.BytesIO(confusion_picture(counts, [f"class ${i}" for i in range(count)], title="t"))) as one:
            assert 30 * count < one.width < 40 * count + 700


def test_titles_are_cut_at_the_figures_width_and_show_dollars():
    figure, title = Figure(figsize=(4.6, 2)), "Most confident mistakes among validation images"
    head(figure, f"{title}\n{'a' * 90}$.jpg")
    first, second = figure.get_suptitle().split("\n")
    assert first == title and len(second) == 56 and "…" in second and second.endswith(r"a\$.jpg")


def test_a_spot_of_one_channel_leaves_the_others_their_contrast():
    maps = np.ones((20, 20, 4))
    maps[::2] = -1
    maps[0, 0, 0] = 4000
    for signed, least in ((True, 150), (False, 200)):
        with Image.open(io.BytesIO(maps_picture(maps, signed=signed))) as image:
            gray = np.asarray(image.convert("L"), int)
        lower = gray[gray.shape[0] // 2 :, : gray.shape[1] // 2]  # a channel without the spot
        stripes = lower[:, lower.shape[1] // 2]
        assert np.ptp(stripes[np.abs(stripes - 255) > 0]) > least


def test_mistakes_of_the_user_are_one_line(finished, tmp_path, capsys):
    for given, words in (
        ([str(tmp_path)], "is not the folder of a finished run"),
        ([str(finished), "--maps", "layer9"], "--maps: 'layer9' is not one of the layers stem, layer1, layer2"),
        ([str(finished), "--top", "0"], "--top=0 is less than 1"),
        ([str(finished), "nothing*.jpg"], "matches no file"),
        ([str(finished), "--out", str(finished / "result.json")], "result.json is a file, not a folder"),
    ):
        assert look_command.main(given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
