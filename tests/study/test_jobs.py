"""Runs and jobs: equal runs once, populations where they are exact and save work, networks of other runs first."""

import pytest

from tljax.core.errors import UserError
from tljax.study import STUDIES
from tljax.study.jobs import make_config, make_jobs, make_runs
from tljax.study.study import Cell, Study

HEAD = {"transfer.train": "head", "model.name": "resnet18", "data.source": "shapes:tiny"}


def study(*cells, **base):
    return Study("x", "000", "Table 0", "x", {**HEAD, **base}, cells, ())


def runs_of(one, scale="full", seeds=1, **overrides):
    return make_runs(one, scale=scale, seeds=seeds, data={}, overrides=overrides)


def test_runs_that_share_a_frozen_trunk_are_one_population():
    cells = tuple(
        Cell(name, {"optimizer.name": name}, search={"optimizer.lr": (1e-2, 1e-3)}) for name in ("sgd", "adam")
    )
    runs = runs_of(study(*cells), seeds=2)
    jobs = make_jobs(runs)
    assert [len(job.members) for job in jobs] == [4, 4]  # one per seed
    assert jobs[0].fields["population.lr"] == [1e-2, 1e-3]
    for job in jobs:
        assert len({job.folder_of(run) for run in job.members}) == 4
    assert {key for job in jobs for key in job.members} == {run.key for run in runs}


def test_one_of_each_program_stands_for_its_rates():
    rates = Cell("all", {"transfer.train": "all"}, search={"optimizer.lr": (1e-2, 1e-3)})
    head = Cell("head", search={"optimizer.lr": (1e-2, 1e-3)})
    runs = runs_of(study(rates, head), seeds=2)
    jobs = make_jobs(runs, alike=("optimizer.lr", "seed"))
    assert [len(job.members) for job in jobs] == [4, 2, 2]  # all rates and seeds; a population of heads per seed
    assert {jobs[0].folder_of(run.key) for run in runs if run.cell == "all"} == {jobs[0].key}
    assert {key for job in jobs for key in job.members} == {run.key for run in runs}


def test_members_stand_in_the_populations_order():
    from tljax.transfer.population import members_of

    cells = tuple(
        Cell(f"{name} {lr}", {"optimizer.name": name, "optimizer.lr": lr})
        for lr in (1e-3, 1e-2)
        for name in ("sgd", "adam")
    )
    runs = {run.key: run for run in runs_of(study(*cells))}
    (job,) = make_jobs(list(runs.values()))
    for key, member in zip(job.members, members_of(make_config(job.fields)), strict=True):
        own = runs[key].fields
        assert (own["optimizer.name"], own["optimizer.lr"]) == (
            member.config.optimizer.name,
            member.config.optimizer.lr,
        )


@pytest.mark.parametrize(
    "base, jobs",
    [({"transfer.train": "all"}, 2), ({"transfer.bn": "trained:train,frozen:torch_frozen_params"}, 2),
     ({"transfer.phases": "head@5;all"}, 2), ({}, 1)],
)  # fmt: skip
def test_what_shares_nothing_stays_apart(base, jobs):
    cells = Cell("a", {"optimizer.lr": 1e-2}), Cell("b", {"optimizer.lr": 1e-3})
    runs = runs_of(study(*cells, **base))
    assert len(make_jobs(runs)) == jobs
    phased = "transfer.phases" in base
    assert len(make_jobs(runs, in_one=True)) == (2 if phased else 1)


def test_combinations_that_are_not_all_there_are_cut_into_such_that_are():
    cells = (
        Cell("a", {"optimizer.name": "sgd", "optimizer.lr": 1e-2}),
        Cell("b", {"optimizer.name": "adam", "optimizer.lr": 1e-2}),
        Cell("c", {"optimizer.name": "adam", "optimizer.lr": 1e-3}),
    )
    runs = runs_of(study(*cells))
    jobs = make_jobs(runs)
    assert sorted(len(job.members) for job in jobs) == [1, 2]
    assert sorted(key for job in jobs for key in job.members) == sorted(run.key for run in runs)


def test_equal_runs_are_computed_once():
    runs = runs_of(study(Cell("a"), Cell("b", {"transfer.train": "head"})))
    assert runs[0].key == runs[1].key
    assert len(make_jobs(runs)) == 1


def test_a_network_of_another_cell_comes_first():
    cells = Cell("late", {"model.weights": "cell:early", "optimizer.lr": 1e-4}), Cell("early", {"epochs": 2})
    runs = runs_of(study(*cells), seeds=2)
    jobs = make_jobs(runs)
    place = {job.key: n for n, job in enumerate(jobs)}
    for run in runs:
        if run.cell == "late":
            assert run.first is not None
            assert run.first.seed == run.seed
            (job,) = [job for job in jobs if run.key in job.members]
            assert place[job.after] < place[job.key]
    assert len(jobs) == 4


def test_weights_by_hand_are_not_those_of_a_run_that_starts_from_another():
    cells = Cell("late", {"model.weights": "cell:early", "optimizer.lr": 1e-4}), Cell("early", {"epochs": 2})
    late, early = runs_of(study(*cells), **{"model.weights": "mine.pth"})
    assert early.fields["model.weights"] == "mine.pth"
    assert late.first is not None
    assert late.first.key == early.key
    assert early.key in late.fields["model.weights"]


def test_tiny_runs_start_from_a_tiny_network():
    runs = runs_of(study(Cell("a"), Cell("b", {"model.weights": "None", "transfer.train": "all"})), scale="tiny")
    assert runs[0].fields["model.weights"] == f"run:{runs[0].first.key}"
    assert runs[0].first.fields["data.source"] == "shapes:tiny-source"
    assert runs[1].first is None


def test_data_and_fields_of_the_users():
    table = STUDIES["000-table2"]
    found = make_runs(table, scale="full", seeds=1, data={"pets": "pets:here"}, overrides={"model.name": "resnet18"})
    assert {run.fields["data.source"] for run in found} == {"pets:here"}
    assert {run.fields["model.name"] for run in found} == {"resnet18"}
    with pytest.raises(UserError, match="no data set is called cats; there are pets"):
        make_runs(table, scale="full", seeds=1, data={"cats": "x"}, overrides={})
    for field, value in (("optimizer.rate", 1), ("epochs", "many"), ("nonsense", 1)):
        with pytest.raises(UserError, match=f"{field}={value!r} does not fit a config"):
            make_runs(table, scale="full", seeds=1, data={}, overrides={field: value})


@pytest.mark.parametrize("names, test", [(("train", "val"), "val"), (("train", "valid"), "valid"),
                                         (("train", "val", "test"), ""), (("cat", "dog"), "")])  # fmt: skip
def test_a_report_that_chose_by_its_test_images_has_them_in_a_folder_of_any_name(tmp_path, names, test):
    for name in names:
        (tmp_path / name).mkdir()
    one = study(Cell("a"), select="test")
    (run,) = runs_of(one, **{"data.source": f"folder:{tmp_path}"})
    assert run.fields["data.test"] == test
    (run,) = runs_of(one, **{"data.source": f"folder:{tmp_path}", "select": "validation"})
    assert run.fields["data.test"] == ""
