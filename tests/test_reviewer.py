"""`make reviewer`: pages are what their archives give, and a digit or a verdict that is not is found."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import archive, reviewer
from tljax.core.errors import UserError
from tljax.study import __main__ as study_command
from tljax.study.jobs import make_config
from tljax.study.results import collect
from tljax.study.table import markdown

COMMAND = (
    "run", "002-table3", "--search", "optimizer.lr=0.01,0.001", "--data", "pacs-cartoon=folder:cartoons", "--set",
    "model.width=4", "--set", "model.blocks=(1,1)", "--set", "model.weights=None",
)  # fmt: skip
PAGE = """# Two methods

{% set found = found("small") %}
{{ table(found) }}

{{ sentences(found) }}

Adam {{ says("is higher than", verdict(found, "Adam", "SGD") == "held") }} SGD by {{ points(found, "Adam", "SGD") }} on
{{ images(found, "test") }} images; the report has {{ given("236") }}.
"""


def answered(names, labels, share, rng):
    """Answers of which a share is right."""
    right = rng.permutation(len(labels)) < round(share * len(labels))
    answers = np.where(right, labels, (labels + 1) % 3)
    return {"names": names, "labels": labels.tolist(), "answers": answers.tolist(), "outputs": 3}


def made(sgd=0.6):
    """A part: Adam is right for 90%, SGD for `sgd`."""
    rng, labels = np.random.default_rng(0), np.arange(120) % 3
    names = [f"c/{i:03}.png" for i in range(120)]
    runs = []
    for seed in range(3):
        for cell, share in (("SGD", sgd), ("Adam", 0.9)):
            for rate in (0.01, 0.001):
                result = {
                    "classes": ["a", "b", "c"], "preprocessing": {}, "best_step": 1,
                    "device": {"count": 1, "kind": "cpu"}, "versions": {}, "train": {"images": 960},
                    "config": make_config({"optimizer.lr": rate, "data.source": "folder:cartoons",
                                           "data.split": "holdout:10"}).to_dict(),
                    "history": [{"epoch": 1, "step": 1, "val_accuracy": share}],
                    "test": {}, "validation": {"best_epoch": 1, "loss": rate},
                }  # fmt: skip
                runs.append({
                    "study": "002-table3", "cell": cell, "seed": seed, "searched": {"optimizer.lr": rate},
                    "result": result, "val": answered(names[:60], labels[:60], share, rng),
                    "test": answered(names, labels, share, rng),
                })  # fmt: skip
    return archive.Part(COMMAND, tuple(runs))


@pytest.fixture(scope="module")
def part():
    return made()


@pytest.fixture
def site(tmp_path, part):
    """Pages, templates: one page, written from its archive."""
    for name in ("pages", "templates"):
        (tmp_path / name).mkdir()
    archive.write(tmp_path / "pages" / "two.jsonl.xz", {"small": part})
    (tmp_path / "templates" / "two.md.jinja").write_text(PAGE)
    folders = tmp_path / "pages", tmp_path / "templates"
    assert reviewer.review(*folders, rewrite=True) == []
    assert reviewer.review(*folders) == []
    return folders


def test_what_is_packed_and_unpacked_is_the_same_study(tmp_path, part):
    archive.write(tmp_path / "x.jsonl.xz", {"small": part})
    (again,) = archive.read(tmp_path / "x.jsonl.xz").values()
    assert json.dumps(again.runs) == json.dumps(part.runs)
    (wanted,) = archive.unpack(again, tmp_path / "studies")
    found = collect(*wanted)
    assert [row.values("test") for row in found.rows] == [[pytest.approx(0.6)] * 3, [pytest.approx(0.9)] * 3]
    assert [one.run.searched for one in found.rows[0].found] == [
        {"optimizer.lr": 0.001}
    ] * 3  # of equals the lower loss
    packed = archive.pack([*COMMAND, "--folder", str(tmp_path / "studies")])
    assert packed.command == COMMAND
    (wanted_again,) = archive.unpack(packed, tmp_path / "again")
    assert markdown(collect(*wanted_again), scale="full") == markdown(found, scale="full")
    archive.write(tmp_path / "y.jsonl.xz", {"small": again})
    assert (tmp_path / "y.jsonl.xz").read_bytes() == (tmp_path / "x.jsonl.xz").read_bytes()


def test_an_unpacked_study_has_its_report(tmp_path, part, capsys):
    archive.unpack(part, tmp_path)
    assert study_command.main(["report", *COMMAND[1:], "--folder", str(tmp_path)]) == 0
    assert "| Adam | 81.78 % (76.4 to 86.2) |" in capsys.readouterr().out


def test_paths_of_a_machine_are_not_packed(tmp_path, part):
    run = part.runs[0]
    config = {**run["result"]["config"], "model": {"weights": "/home/somebody/x.pth"}}
    there = dataclasses.replace(part, runs=({**run, "result": {**run["result"], "config": config}}, *part.runs[1:]))
    archive.unpack(there, tmp_path / "studies")
    folder = tmp_path / "images"
    command = [*COMMAND, "--folder", str(tmp_path / "studies")]
    packed = archive.pack(command)
    assert "somebody" not in json.dumps(packed.runs)
    assert packed.runs[0]["result"]["config"]["model"]["weights"] == "x.pth"
    named = archive.shareable(("run", "x", "--data", f"pets=pets:{folder}", "--folder", "/a", "--row", "a (b=1)"))
    assert named == ("run", "x", "--data", "pets=pets:images", "--row", "a (b=1)")


def test_answers_that_a_result_did_not_count_are_refused(tmp_path, part):
    (wanted,) = archive.unpack(part, tmp_path)
    path = next(wanted.folder.rglob("result.json"))
    result = json.loads(path.read_text())
    result["test"]["correct"] += 1
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match="answers are right, but its result has"):
        archive.pack([*COMMAND, "--folder", str(tmp_path)])


def test_a_digit_that_was_changed_is_found(site):
    page = site[0] / "two.md"
    text = page.read_text()
    for old, new in (("90.00", "91.00"), ("+30.00 points", "+30.01 points"), ("is higher than", "is lower than"),
                     ("by more than the noise", "by less than the noise"), ("236.\n", "236.")):  # fmt: skip
        assert old in text
        page.write_text(text.replace(old, new, 1))
        (wrong,) = reviewer.review(*site)
        assert wrong.startswith("two.md, ")


def test_a_verdict_that_answers_do_not_bear_out_is_found(site):
    archive.write(site[0] / "two.jsonl.xz", {"small": made(sgd=0.9)})
    (wrong,) = reviewer.review(*site)
    assert wrong == "two.md.jinja, line 8: 'is higher than' does not hold"
    before = (site[0] / "two.md").read_bytes()
    assert reviewer.review(*site, rewrite=True) == [wrong]
    assert (site[0] / "two.md").read_bytes() == before


@pytest.mark.parametrize(
    "prose, words",
    [
        ("It gave 67%.", "line 10: '6'"), ("It won\nby three points.", "line 11: 'three'"),
        ("It gave {{ 67 }}%.", "line 10: '67'"), ('It gave {{ "67" }}%.', "line 10: '67'"),
        ('{{ says("higher by 3", true) }}', "has a number of its own"), ('{{ found("none") }}', "line 10"),
        ('{{ accuracy(found, "SDG") }}', "line 10"), ("{{ nothing }}", "line 10"),
    ],
)  # fmt: skip
def test_a_template_has_no_numbers_of_its_own(site, prose, words):
    (site[1] / "two.md.jinja").write_text(PAGE + prose + "\n")
    (wrong,) = reviewer.review(*site)
    assert wrong.startswith("two.md.jinja, line ")
    assert words in wrong


def test_names_and_code_may_have_numbers():
    assert not reviewer.bare_numbers(
        "# Table 2\n\nReport 002's Table 3, ResNet-18, `fire9`, [x](7.md), layer3.\n\n    run 5\n"
    )


def test_a_page_that_nobody_can_recompute_is_found(site):
    (site[0] / "third.md").write_text("67%")
    assert reviewer.review(*site) == ["third.md has no template, so that nobody can recompute it"]


def test_the_committed_pages_are_recomputed():
    assert reviewer.review() == []
