"""Running a study: what is done is skipped, a failure leaves the rest alone, workers share, a kill loses nothing."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import commands
from tljax.core.errors import UserError
from tljax.report.console import make_console
from tljax.run_dir import files as folders
from tljax.study import __main__ as command
from tljax.study.jobs import make_jobs, make_runs
from tljax.study.page import page
from tljax.study.results import collect
from tljax.study.runner import failure, run_jobs
from tljax.study.study import Cell, Claim, Study
from tljax.study.table import grid, markdown
from tljax.train import runs as runs_lib

QUIET = make_console(quiet=True)
ROOT = Path(__file__).resolve().parents[2]
CELLS = (
    Cell("head", {"transfer.train": "head"}, {"optimizer.lr": (1e-2, 1e-3)}, {"test": "50.0 %"}),
    Cell("layer4 too", {"transfer.train": "layer4,head"}, published={"test": "60.0 %"}, differences=("one rate",)),
)
SMALL = Study(
    "x-table1", "000", "Table 1", "what trains",
    {"model.name": "resnet18", "optimizer.lr": 1e-3, "epochs": 1, "augment.crop": "center"}, CELLS, (),
    claims=(Claim("training more is best", "layer4 too", ("head",)),), test_size=100,
    differences=("a test",),
)  # fmt: skip


def planned(study, seeds=1, **overrides):
    runs = make_runs(study, scale="tiny", seeds=seeds, data={}, overrides=overrides)
    return runs, make_jobs(runs, in_one=True)


@pytest.fixture(scope="module")
def finished(once):
    runs, jobs = planned(SMALL, seeds=2)

    def run(folder):
        outcome = run_jobs(jobs, folder, QUIET)
        assert not outcome.failed and len(outcome.done) == len(jobs)

    return once("small-study", run), runs, jobs


@pytest.mark.slow
def test_everything_is_done_and_nothing_twice(finished):
    folder, _, jobs = finished
    assert len(jobs) == 5  # a network to start from; for each seed, a population and a run
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob(folders.RESULT)}
    assert len(stamps) >= len(jobs)
    again = run_jobs(jobs, folder, QUIET)
    assert len(again.done) == len(jobs) and not again.failed
    assert {path: path.stat().st_mtime_ns for path in folder.rglob(folders.RESULT)} == stamps


@pytest.mark.slow
def test_rows_and_table(finished):
    folder, runs, jobs = finished
    found = collect(SMALL, runs, jobs, folder)
    rows = found.rows
    assert [len(row.found) for row in rows] == [2, 2]
    head = rows[0]
    for counted in head.found:  # of the two rates, the one that validation prefers
        both = [
            folders.read_result(folder / job.folder_of(key))["validation"]["accuracy"]
            for job in jobs
            for key in job.members
            for run in runs
            if run.key == key and run.cell == "head" and run.seed == counted.run.seed
        ]
        assert counted.result["validation"]["accuracy"] == max(both)
    names, right = head.right("test")
    assert names.shape == (120,)
    assert right.shape == (2, 120)
    assert right.sum() / 2 == head.tested[0]
    tiny = markdown(found, scale="tiny")
    assert "TINY" in tiny
    assert "The report:" not in tiny
    assert "minus published" not in tiny
    text = markdown(found, scale="full")
    assert "| head | 50.0 % (40.4 to 59.6) |" in text
    assert "- layer4 too: one rate" in text
    assert 'The report: "training more is best". Here: ' in text
    assert "Ours: " in text
    assert "Published, on the 100 test images" in text


@pytest.mark.slow
def test_rows_are_compared_with_the_baseline_seed_by_seed(finished):
    folder, runs, jobs = finished
    study = dataclasses.replace(SMALL, baseline="head")
    found = collect(study, runs, jobs, folder)
    (first, second), (head, body) = found.rows, grid(found)
    gains = np.subtract(second.values("test"), first.values("test"))
    column = head.index("minus head (95% over seeds and images)")
    ends = found.difference("layer4 too", "head", "test").interval
    assert ends[0] + ends[1] == pytest.approx(2 * gains.mean())
    assert ends[1] - ends[0] > 2 * 12.7 * gains.std(ddof=1) / np.sqrt(2)  # Student's, with one degree of freedom
    assert body[0][column] == ""
    assert body[1][column] == "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * v for v in (gains.mean(), *ends)))
    assert "- Against head: not decided: layer4 too (" in markdown(found, scale="full")
    assert not any("minus head" in title for title in grid(collect(SMALL, runs, jobs, folder))[0])
    assert study.narrowed(["layer4 too"], {}).baseline == ""


@pytest.mark.slow
def test_transfer_is_named_and_shown(finished):
    """A pair of rows, with pretrained weights and without: the gain in words, and images that one of them got right."""
    folder, runs, jobs = finished
    study = dataclasses.replace(SMALL, transfers=(("layer4 too", "head"),), shown=("head", "layer4 too"), smooth=5)
    found = collect(study, runs, jobs, folder)
    gain = 100 * (found.rows[1].mean("test") - found.rows[0].mean("test"))
    words = next(line for line in markdown(found, scale="full").splitlines() if "minus that of head" in line)
    assert words.startswith(f"- layer4 too, test accuracy minus that of head: {gain:+.2f} points, 95% ")
    assert words.endswith((": transfer helps.", ": negative transfer.", ": not decided."))
    one = dataclasses.replace(found, rows=tuple(dataclasses.replace(row, found=row.found[:1]) for row in found.rows))
    words = next(line for line in markdown(one, scale="full").splitlines() if "minus that of head" in line)
    assert words.endswith(": on these two networks; seeds unknown.")
    text = page(found, scale="tiny")
    assert text.count("Its most confident mistakes") == 2
    assert "The same images with and without pretrained weights" in text
    assert text.count("with: outline") == text.count("; without: outline") > 0
    assert "moving mean of 5" in text


@pytest.mark.slow
def test_the_page_needs_nothing_and_escapes_what_it_is_given(finished):
    folder, runs, jobs = finished
    found = collect(SMALL, runs, jobs, folder)
    for row in found.rows:
        for counted in row.found:
            counted.result["classes"] = ["<script>alert('x')</script>", "a & b", "$x$", "plain"]
    text = page(found, scale="tiny")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "a &amp; b" in text
    assert "TINY: procedural pictures" in text
    addresses = re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", text)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert text.count("<svg") == 4  # rows, curves of the search, the curve without one, the confusion matrix


@pytest.mark.slow
def test_a_failure_leaves_the_rest_alone_and_is_tried_again(tmp_path):
    cells = Cell("bad", {"optimizer.name": "sgd", "optimizer.momentum": 0.5}), Cell("good", {"epochs": 1})
    broken = Study("x", "000", "Table 1", "x", {**SMALL.base, "model.weights": "None"}, cells, ())
    runs, jobs = planned(broken, **{"transfer.train": "all"})
    bad = next(job for job in jobs if runs[0].key in job.members)
    (tmp_path / bad.key).mkdir()
    (tmp_path / bad.key / "somebody's.txt").write_text("")
    outcome = run_jobs(jobs, tmp_path, QUIET)
    assert set(outcome.failed) == {bad.key}
    assert len(outcome.done) == len(jobs) - 1
    found = collect(broken, runs, jobs, tmp_path)
    assert "has files in it but no run" in found.rows[0].failed[0]
    assert "Failed: --workdir=" in markdown(found, scale="tiny")
    told = json.loads(failure(bad.key, tmp_path).read_text())
    assert "has files in it but no run" in told["error"]
    assert (told["trace"], told["config"]) == ([], bad.fields)
    (tmp_path / bad.key / "somebody's.txt").unlink()
    assert not run_jobs(jobs, tmp_path, QUIET).failed
    assert not failure(bad.key, tmp_path).exists()


def test_what_starts_from_a_failed_run_fails_with_its_name(tmp_path):
    cells = Cell("early", {"model.weights": "nowhere.pth"}), Cell("late", {"model.weights": "cell:early", "epochs": 1})
    chain = Study("x", "000", "Table 1", "x", SMALL.base, cells, ())
    runs, jobs = planned(chain)
    outcome = run_jobs(jobs, tmp_path, QUIET)
    assert len(outcome.failed) == 2
    assert f"run {runs[0].key}, which it starts from, failed" in outcome.failed.values()


@pytest.mark.slow
def test_damaged_files_are_named_and_leave_the_other_rows(finished, tmp_path):
    folder, runs, jobs = finished
    shutil.copytree(folder, tmp_path / "runs")
    job = next(job for job in jobs if job.members == (runs[2].key,))
    (tmp_path / "runs" / job.key / "result.json").write_text("{}")
    (tmp_path / "runs" / f"{jobs[-1].key}.failed.json").write_text("junk")
    found = collect(SMALL, runs, jobs, tmp_path / "runs")
    assert [len(row.found) for row in found.rows] == [2, 1]
    assert f"is damaged: it has no classes; to run it again, delete {tmp_path}/runs/{job.key}" in markdown(
        found, scale="full"
    )
    (found.rows[0].found[0].folder / "predictions.npz").write_bytes(b"PK junk")
    found = collect(SMALL, runs, jobs, tmp_path / "runs")  # as the next command does
    with pytest.raises(UserError, match=r"predictions.npz is missing or damaged .*; to run it again, delete "):
        markdown(found, scale="full")


@pytest.mark.slow
def test_two_workers_share_a_folder(tmp_path):
    """Each job is done once, and both workers return when all are done."""
    jobs = planned(SMALL)[1]
    outcomes = []
    worker = [sys.executable, "-c", WORKER, str(tmp_path)]
    other = subprocess.Popen(worker, cwd=ROOT, env=commands.environment(), stdout=subprocess.PIPE, text=True)
    outcomes.append(run_jobs(jobs, tmp_path, QUIET))
    said, _ = other.communicate(timeout=300)
    assert other.returncode == 0, said
    assert set(outcomes[0].done) == set(json.loads(said.splitlines()[-1])) == {job.key for job in jobs}
    assert not outcomes[0].failed


WORKER = """
import json, sys
from pathlib import Path
from tests.study.test_runner import QUIET, SMALL, planned
from tljax.study.runner import run_jobs
print(json.dumps(run_jobs(planned(SMALL)[1], Path(sys.argv[1]), QUIET).done))
"""


def test_commands(tmp_path, capsys, monkeypatch):
    assert command.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("000-table2") and "report 000, Table 2" in line for line in lines)
    assert command.main(["show", "002-table8"]) == 0
    assert "GaussianBlur(27)" in capsys.readouterr().out
    assert command.main(["report", "002-table8", "--folder", str(tmp_path), "--row", "None", "--seeds", "1",
                         "--search", "optimizer.lr=0.03,0.01"]) == 0  # fmt: skip
    assert "- optimizer.lr one of 0.03, 0.01, set by hand\n- only some of the rows" in capsys.readouterr().out
    assert command.main(["report", "003-table1", "--folder", str(tmp_path)]) == 0
    assert "48 runs are missing" in capsys.readouterr().out
    assert command.main(["report", "000-table1", "--folder", str(tmp_path), "--set", "model.weights=a/b.pth"]) == 0
    assert "- model.weights=b.pth, set by hand" in capsys.readouterr().out
    for wrong, words in (
        (["show", "nothing"], "no study is called nothing"),
        (["run", "000-table2", "--seeds", "0"], "--seeds=0 is not 1 or more"),
        (["run", "000-table2", "--set", "epochs"], "--set 'epochs' is not NAME=VALUE"),
        (["run", "002-table6", "--row", "SGDD"], "002-table6 has no row 'SGDD'; it has SGD; Adam; "),
        (["run", "000-table2", "--search", "optimizer.lr=1,2"], "000-table2 searches no optimizer.lr"),
        (["run", "002-table6", "--search", "optimizer.lr=()"], "--search optimizer.lr is empty"),
        (
            ["run", "000-table2", "--set", "model.until=layer3"],
            "--set model.until: this field is called model.last_stage",
        ),
        (["run", "000-table2", "--set", "epoch=2"], "--set epoch: a config has no such field; did you mean epochs?"),
        (["run", "000-table2", "--set", "epochs=few"], "epochs='few' does not fit a config"),
        (["run", "000-table2", "--set", "epochs=0"], "epochs=0 is too small; it is at least 1"),
        (["run", "000-table2", "--set", "seed=5"], "--set seed: a study sets it itself"),
        (["run", "000-table2", "--set", "data.size=96", "--scale", "tiny"], "--scale=tiny has its own value"),
        (["run", "000-table2", "--data", "pets=pets:/nowhere"], "there is no folder '/nowhere'"),
        (["run", "000-table2", "--set", "model.weights=no/w.pth"], "--set model.weights: there is no 'no/w.pth'"),
        (["run", "000-table2", "--folder", "/proc/none"], "--folder: /proc/none/full/runs cannot be made"),
    ):
        assert command.main(wrong) == 2
        assert words in capsys.readouterr().err


def test_a_failure_that_nobody_foresaw_leaves_its_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_lib, "run", lambda *args, **options: {}["test"])
    job = planned(SMALL)[1][0]
    assert run_jobs([job], tmp_path, QUIET).failed == {job.key: "KeyError: 'test'"}
    told = json.loads(failure(job.key, tmp_path).read_text())
    assert told["error"] == "KeyError: 'test'"
    assert any("test_runner.py" in line for line in told["trace"])
