"""The drivers of the benchmarks, on what is quick."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import defaults, defaults_page, draws
from tests import commands
from tljax.data.folder import open_folder
from tljax.settings.dotted import with_fields
from tljax.settings.fields import get_config


def bench(shared, *arguments, driver="run"):
    return subprocess.run(
        [sys.executable, f"benchmarks/{driver}.py", *map(str, arguments)], capture_output=True, text=True, check=False,
        env=commands.environment(TLJAX_SHARED=str(shared)),
    )  # fmt: skip


@pytest.mark.peer
@pytest.mark.real_data
def test_a_row_beside_pytorch(shared, torchvision, tmp_path):
    out = tmp_path / "results.json"
    out.write_text(json.dumps({"machine": "another", "versions": {}, "rows": [{"work": "full"}]}))
    found = bench(shared, "--rows", "augment", "--out", out)
    assert found.returncode == 0, found.stderr
    written = json.loads(out.read_text())
    (row,) = written["rows"]  # what another machine measured is gone
    assert row["work"] == "augment"
    assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert written["versions"]["torch"]
    assert "| `augment` |" in found.stdout


@pytest.mark.peer
@pytest.mark.real_data
def test_others_defaults_see_the_same_images_and_are_not_run_twice(shared, torchvision, tmp_path):
    out = tmp_path / "defaults.jsonl"
    asked = ("--sets", "oxford_pets_3breeds", "--sizes", "5", "--seeds", "0", "--recipes", "fastai 5,torchvision head",
             "--epochs-scale", "0.01", "--out", out)  # fmt: skip
    found = bench(shared, *asked, driver="defaults")
    assert found.returncode == 0, found.stderr
    runs = defaults.Record(out).runs
    assert {(run["recipe"], run["train"], len(run["right"])) for run in runs} == {
        ("fastai 5", 15, 298), ("torchvision head", 15, 298),
    }, runs  # fmt: skip
    assert "a trial" in out.with_suffix(".md").read_text()
    assert "0 of 2 runs to do" in bench(shared, *asked, driver="defaults").stdout


@pytest.mark.slow
def test_what_cannot_be_measured_is_said_at_once(tmp_path):
    for arguments, words in ((("--rows", "ful"), "no ful; there are grid-head"), ((), "set TLJAX_SHARED")):
        found = bench(tmp_path, *arguments)
        assert found.returncode == 2
        assert words in found.stderr.splitlines()[-1]


def empty_images(folder, counts):
    """A folder of files without content, for what only lists: {class: how many}."""
    for cls, count in counts.items():
        (folder / cls).mkdir(parents=True)
        for i in range(count):
            (folder / cls / f"{i}.jpg").touch()
    return open_folder(folder)


def test_a_draw_keeps_its_test_apart_and_in_proportion(tmp_path):
    source = empty_images(tmp_path, {"a": 40, "b": 20, "rare": 2})
    found = [draws.make_draw(source, "s", "all", seed) for seed in range(5)]
    for draw in found:
        assert not set(draw.train) & set(draw.test)
        assert np.bincount(source.labels[draw.test]).tolist() == [11, 6, 1]  # 30%, and one of the rare class
        assert np.bincount(source.labels[draw.train]).tolist() == [29, 14, 1]
    assert len({tuple(draw.train) for draw in found}) == 5
    again = draws.make_draw(source, "s", "all", 3)
    assert again.train.tolist() == found[3].train.tolist()
    assert again.test.tolist() == found[3].test.tolist()


def test_sizes_share_their_test_and_the_smaller_lies_in_the_larger(tmp_path):
    source = empty_images(tmp_path, {"a": 50, "b": 50})
    five, ten = (draws.make_draw(source, "s", size, 1) for size in ("5", "10"))
    assert np.bincount(source.labels[five.train]).tolist() == [5, 5]
    assert set(five.train) < set(ten.train)
    assert five.test.tolist() == ten.test.tolist()


def test_official_test_images_stay_the_test(tmp_path):
    source = empty_images(tmp_path, {"train/a": 8, "train/b": 8, "val/a": 3, "val/b": 3})
    draw = draws.make_draw(source, "s", "5", 0)
    assert draw.test.tolist() == source.splits["val"].tolist()
    assert set(draw.train) < set(source.splits["train"])


def test_what_a_set_does_not_have_is_said(tmp_path):
    source = empty_images(tmp_path, {"a": 40, "b": 8})
    with pytest.raises(draws.TooFew, match="s, 10 per class: the smallest class has 6 training images"):
        draws.make_draw(source, "s", "10", 0)


def test_a_drawn_folder_is_what_a_user_has(photos, tmp_path):
    source = open_folder(photos)
    draw = draws.make_draw(source, "photos", "5", 0)
    draws.link(source, draw, tmp_path / "drawn")
    seen = open_folder(tmp_path / "drawn")
    assert {part: len(found) for part, found in seen.splits.items()} == {"train": 15, "test": len(draw.test)}
    read = {seen.read(int(i)) for i in seen.splits["test"]}
    assert read == {source.read(int(i)) for i in draw.test}


def test_runs_are_ordered_so_that_a_part_is_balanced(tmp_path):
    sources = {"ants_bees": empty_images(tmp_path, {"a": 20, "b": 20})}
    _, jobs, absent = defaults.plan(sources, ["5", "30"], [0, 1], ["torchvision all", "tljax"])
    assert [(job.seed, job.recipe) for job in jobs] == [
        (0, "tljax"), (0, "torchvision all"), (1, "tljax"), (1, "torchvision all"),
    ]  # fmt: skip
    assert absent == ["ants_bees, 30 per class: the smallest class has 14 training images"]


def test_a_record_goes_on_after_a_kill_and_takes_one_protocol(tmp_path):
    record = defaults.Record(tmp_path / "runs.jsonl")
    record.open({"cores": 1}, [])
    for recipe in ("tljax", "keras"):
        record.add({"recipe": recipe, "right": "1"})
    record.add({"recipe": "tljax", "error": "it ended"})
    record.path.write_text(record.path.read_text() + '{"recipe": "fas')
    again = defaults.Record(record.path)
    again.open({"cores": 1}, ["keras"])
    assert again.runs == [{"recipe": "tljax", "right": "1"}]  # neither what failed nor what is to be done again
    assert defaults.Record(record.path).runs == again.runs
    with pytest.raises(SystemExit, match="another cores; give another --out"):
        again.open({"cores": 2}, [])


HEADER = {
    "machine": {"cpu": "a cpu", "cores": 2}, "versions": {"jax": "0.10"}, "cores of a run": 1, "epochs scale": 1.0,
}  # fmt: skip


def recorded(answers, set="ants_bees", size="5", test=range(20)):
    """Lines of a record: {recipe: right answers by seed}, of `seconds` 10."""
    tests = [{"set": set, "seed": seed, "test": [*test]} for seed in range(2)]
    runs = [
        {"set": set, "size": size, "seed": seed, "recipe": recipe, "right": right, "seconds": 10, "train": 10,
         "classes": 2}
        for recipe, rights in answers.items() for seed, right in enumerate(rights)
    ]  # fmt: skip
    return [HEADER, *tests, *runs]


def test_the_page_says_where_ours_loses_and_by_which_test():
    lines = recorded({"tljax": ["1" * 4 + "0" * 16] * 2, "tljax before": ["0" * 20] * 2, "keras": ["1" * 20] * 2})
    page = defaults_page.make_page(lines, defaults.RECIPES, record="runs.jsonl")
    assert "| -80.0 on keras, <0.001 |" in page
    assert "ahead of ours, 1 of 1: ants_bees, 5 per class (-80.0 on keras, p <0.001)" in page
    assert "p < 0.05): ants_bees, 5 per class" in page
    assert "20.0%" in page and "ahead in 1 of 1 rows" in page
    assert "fastai" not in page.partition("| set")[2]  # no runs, no column


def test_an_image_of_two_draws_is_one_image(tmp_path):
    lines = recorded({"tljax": ["1" * 3 + "0" * 17] * 2, "keras": ["0" * 20] * 2})
    (row,) = defaults_page.make_rows(lines)
    assert row.p_value("keras") == pytest.approx(0.25)  # three images, not six: 0.03
    for line in lines:
        if line.get("seed") == 1 and "test" in line:
            line["test"] = [*range(20, 40)]
    (row,) = defaults_page.make_rows(lines)
    assert row.p_value("keras") == pytest.approx(2 / 64)


def test_what_is_missing_is_said_and_not_compared():
    lines = recorded({"tljax": ["1" * 20] * 2, "tljax before": ["1" * 20] * 2, "keras": ["0" * 20]})
    lines.append({"set": "ants_bees", "size": "5", "seed": 1, "recipe": "keras", "error": "it ended"})
    page = defaults_page.make_page(lines, defaults.RECIPES, record="runs.jsonl")
    assert "| +0.0 on tljax before, 1.000 |" in page  # keras lacks a draw that ours has
    assert "ants_bees, 5 per class, of 2 draws there lack: keras 1" in page
    assert "failed: keras, ants_bees 5, seed 1: it ended" in page
    assert "there is no mean over rows" in page
    assert "1 of 2 draws |" in page


def test_what_it_was_is_fields_that_there_are():
    assert with_fields(get_config(), defaults.BEFORE).optimizer.lr == 1e-3
