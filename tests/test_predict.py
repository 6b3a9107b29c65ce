"""What a finished run says of pictures: what it said when it was tested, of whatever it is given."""

import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import commands, tiny
from tljax import predict
from tljax.core.errors import UserError
from tljax.inference import batch_predict
from tljax.inference.classifier import load
from tljax.metrics.calibration import log_probabilities
from tljax.report.console import make_console
from tljax.train import runs

QUIET = make_console(quiet=True)
ROOT = Path(__file__).resolve().parents[1]


def answers_kept(workdir):
    """Names, logits and labels of the test images, as the run left them."""
    with np.load(workdir / "predictions.npz") as file:
        return [file[f"test_{part}"] for part in ("names", "logits", "labels")]


def logits_of(classifier, photos, names):
    return np.asarray(classifier.forward(np.stack([classifier.see((photos / n).read_bytes()) for n in names])))


def ask(workdir, *names, **options):
    pictures = batch_predict.find_pictures([str(name) for name in names], lambda: b"")
    return list(batch_predict.ask(load(workdir), pictures, **options))


def test_the_loaded_network_says_what_the_run_said(finished, photos):
    names, logits, _ = answers_kept(finished)
    np.testing.assert_allclose(logits_of(load(finished), photos, names), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        *(
            pytest.param(o, marks=pytest.mark.slow)
            for o in ({"select": "last"}, {"data__split": "official", "data__val": 0.0})
        ),
    ],
)
def test_so_does_each_member_of_a_population(photos, tmp_path, overrides):
    folder = photos
    if overrides.get("data__split") == "official":
        folder = tmp_path / "split"
        for part in ("train", "test"):
            shutil.copytree(photos, folder / part)
    config = tiny.make_config(folder, epochs=3, population__lr=(1e-4, 3e-2), **overrides)
    runs.run(config, tmp_path / "run", console=QUIET)
    for member in ("000", "001"):
        workdir = tmp_path / "run/members" / member
        names, logits, _ = answers_kept(workdir)
        np.testing.assert_allclose(logits_of(load(workdir), folder, names), logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"holds a population; give the folder of one member, such as .*members/00"):
        load(tmp_path / "run")


@pytest.mark.slow
def test_and_the_last_of_rounds(photos, tmp_path):
    config = tiny.make_config(photos, epochs=1, data__labels="50%", semi__method="pseudo_label")
    runs.run(config, tmp_path / "run", console=QUIET)
    names, logits, _ = answers_kept(tmp_path / "run")
    np.testing.assert_allclose(logits_of(load(tmp_path / "run"), photos, names), logits, rtol=1e-4, atol=1e-5)


def test_of_one_logit_both_classes_have_a_probability(one_logit, photos):
    (answer,) = ask(one_logit, photos / "red/000.png")
    assert {name for name, _ in answer.best} == {"blue", "red"}
    assert sum(share for _, share in answer.best) == pytest.approx(1)


def test_probabilities_are_calibrated_by_validations_temperature(finished, photos):
    names, logits, _ = answers_kept(finished)
    temperature = json.loads((finished / "result.json").read_text())["calibration"]["test"]["scaled"]["temperature"]
    expected = np.exp(log_probabilities(logits, temperature))
    for name, row in zip(names, expected, strict=True):
        (answer,) = ask(finished, photos / name)
        assert dict(answer.best) == pytest.approx(dict(zip(("blue", "green", "red"), row, strict=True)), abs=1e-4)


def test_many_are_answered_in_order_whatever_the_batch(finished, photos):
    alone = [ask(finished, photos / f"{c}/{i:03}.png")[0] for c in ("red", "blue") for i in range(4)]
    for batch_size in (1, 3, 8, 32):
        names = [photos / f"{c}/{i:03}.png" for c in ("red", "blue") for i in range(4)]
        for one, other in zip(ask(finished, *names, batch_size=batch_size), alone, strict=True):
            assert one.name == other.name
            assert dict(one.best) == pytest.approx(dict(other.best), abs=1e-5)


def test_flips_average_a_picture_and_its_mirror(finished, photos, tmp_path):
    with Image.open(photos / "red/000.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    names = [photos / "red/000.png", tmp_path / "mirrored.png"]
    (plain, mirrored), (both, again) = ask(finished, *names), ask(finished, *names, flips=True)
    mean = {name: (dict(plain.best)[name] + dict(mirrored.best)[name]) / 2 for name, _ in plain.best}
    assert dict(both.best) == pytest.approx(mean, abs=1e-5)
    assert dict(again.best) == pytest.approx(dict(both.best), abs=1e-5)


def test_any_size_and_orientation_and_a_reason_for_what_cannot_be_read(finished, tmp_path):
    gray = Image.fromarray(np.full((30, 700), 90, np.uint8))
    gray.save(tmp_path / "a.png")
    turned = Image.fromarray(np.full((40, 30, 3), 90, np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b.jpg", exif=exif)
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    (tmp_path / "d.png").touch()
    (tmp_path / "e.txt").write_text("a note")
    (tmp_path / "f.png").mkdir()
    os.symlink(tmp_path / "nowhere", tmp_path / "g.png")
    (tmp_path / "odd").mkdir()
    os.mkfifo(tmp_path / "odd/pipe.jpg")  # nobody ever writes into it
    os.symlink("/dev/zero", tmp_path / "odd/endless.jpg")
    odd = [tmp_path / "odd/pipe.jpg", tmp_path / "odd/endless.jpg"]
    for answer in ask(finished, *odd, tmp_path / "odd"):
        assert answer.reason == "not a regular file"
    shutil.rmtree(tmp_path / "odd")
    answers = {Path(answer.name).name: answer for answer in ask(finished, tmp_path, tmp_path / "missing.jpg")}
    assert list(answers) == ["a.png", "b.jpg", "c.jpg", "d.png", "e.txt", "f.png", "g.png", "missing.jpg"]
    assert [name for name, answer in answers.items() if not answer.reason] == ["a.png", "b.jpg"]
    assert answers["d.png"].reason == "an empty file"
    assert answers["f.png"].reason == "a folder, not an image"
    assert answers["missing.jpg"].reason == "No such file or directory"


def test_names_from_patterns_folders_and_standard_input(photos):
    def names(*given, stdin=b""):
        return [picture.name for picture in batch_predict.find_pictures(given, lambda: stdin)]

    assert names(f"{photos}/*/00[01].png") == [f"{photos}/{c}/00{i}.png" for c in tiny.CLASSES for i in (0, 1)]
    assert names(str(photos / "red")) == [f"{photos}/red/{i:03}.png" for i in range(24)]
    assert names("-", stdin="\ufeffa.png\r\nb\u00f6.png\r\n".encode()) == ["a.png", "b\u00f6.png"]
    assert names("-", stdin="a.png\r\nb\u00f6.png\r\n".encode("utf-16")) == ["a.png", "b\u00f6.png"]
    assert names("-", stdin=b"a.png\0b\nc.png\0") == ["a.png", "b\nc.png"]  # find -print0
    for path in (*photos.glob("red/00?.png"),):
        for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"):
            file = io.BytesIO()
            Image.open(path).resize((16, 16)).save(file, kind)
            assert names("-", stdin=file.getvalue()) == ["-"] or kind == "PPM", kind
    assert names("-", "c.png", stdin=b"a.png\n\nb c.png\r\n") == ["a.png", "b c.png", "c.png"]
    picture = (photos / "red/000.png").read_bytes()
    (found,) = batch_predict.find_pictures(["-"], lambda: picture)
    assert (found.name, found.read()) == ("-", picture)
    with pytest.raises(UserError, match="matches no file"):
        names("nothing/*.png")
    with pytest.raises(UserError, match="no pictures in standard input; name files"):
        names("-")


def test_a_name_with_brackets_that_exists_is_a_file(tmp_path):
    (tmp_path / "cat[1].png").touch()
    assert [p.name for p in batch_predict.find_pictures([str(tmp_path / "cat[1].png")], bytes)] == [
        f"{tmp_path}/cat[1].png"
    ]


def run(*arguments, stdin=b""):
    return subprocess.run(
        [sys.executable, "-m", "tljax.predict", *map(str, arguments)], input=stdin, capture_output=True, cwd=ROOT,
        env=commands.environment(), check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_standard_files_that_are_closed_are_empty(finished, photos):
    def closed(words):
        command = f"{shlex.quote(sys.executable)} -m tljax.predict {finished} {words}"
        return subprocess.run(
            command, shell=True, capture_output=True, text=True, cwd=ROOT, check=False, env=commands.environment()
        )

    found = closed("- <&-")
    words = "tljax: no pictures in standard input; name files, folders or patterns\n"
    assert (found.returncode, found.stderr) == (2, words)
    found = closed(f"{photos}/red/000.png >&-")
    assert (found.returncode, found.stderr) == (0, "")


def test_standard_input_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(batch_predict, "LARGEST_FILE", 1 << 20)
    with open("/dev/zero") as endless:
        monkeypatch.setattr(sys, "stdin", endless)
        with pytest.raises(UserError, match="standard input has more than 1 GiB"):
            batch_predict.read_stdin()


def said(capsys, *arguments):
    """Exit status, standard output and standard error of the command, in this process."""
    try:
        status = predict.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's
        status = stop.code
    return status, *capsys.readouterr()


def test_formats_and_exit_statuses(finished, photos, tmp_path, capsys):
    broken = tmp_path / 'odd, "name".jpg'
    broken.write_bytes(b"no picture")
    status, out, err = said(capsys, finished, photos / "red/000.png", broken, "--format", "jsonl")
    assert status == 0
    good, bad = map(json.loads, out.splitlines())
    assert [set(one) for one in good["top"]] == [{"class", "probability"}] * 3
    assert bad == {"file": str(broken), "error": bad["error"]}
    assert err.splitlines()[-1] == "tljax: 1 of 2 pictures could not be read"
    found = run(finished, "-", "--format", "csv", "--top", "1", stdin=f"{photos / 'red/000.png'}\n{broken}\n".encode())
    rows = list(csv.DictReader(io.StringIO(found.stdout.decode())))
    assert rows[0]["class_1"] in tiny.CLASSES and float(rows[0]["probability_1"]) > 1 / 3
    assert (rows[1]["file"], rows[1]["class_1"], rows[1]["error"] != "") == (str(broken), "", True)
    assert said(capsys, finished, broken)[0] == 1
    for arguments, words in (
        ((photos, photos / "red/000.png"), "is not the folder of a finished run: it has no result.json"),
        ((finished, "nothing*"), "'nothing*' matches no file"),
        ((finished, photos, "--top", "0"), "--top=0 is not a positive number"),
        ((finished, photos, "--format", "xml"), "invalid choice"),
    ):
        status, _, err = said(capsys, *arguments)
        assert status == 2
        (line,) = err.splitlines()
        assert line.startswith("tljax: ") and words in line


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it_without_a_word(finished, photos):
    asked = f"{sys.executable} -m tljax.predict {finished} {photos} {photos} {photos} --batch 1 --format csv"
    found = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{asked} | head -n 1"], capture_output=True, cwd=ROOT,
        env=commands.environment(), check=False,
    )  # fmt: skip
    assert found.stdout.startswith(b"file,class_1") and found.stderr == b""
    assert found.returncode in (0, 128 + signal.SIGPIPE)  # 0 where the pipe took all of it


def test_a_result_of_something_else_is_one_line(tmp_path):
    (tmp_path / "result.json").write_text('{"accuracy": 1}')
    with pytest.raises(UserError, match="is damaged: it has no classes"):
        load(tmp_path)
