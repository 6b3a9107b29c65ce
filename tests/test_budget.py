"""A number of minutes becomes views and updates by measured costs; what is settled is kept, and said."""

import dataclasses
import io
import itertools
import json

import pytest
from rich.console import Console

import tljax
from tests import tiny
from tests.test_recipe import OPEN, open_config
from tljax import main, runs, train
from tljax.budget import LEAST, Costs, fit
from tljax.clock import Budget
from tljax.errors import UserError
from tljax.fields import with_fields
from tljax.recipe import DEFAULTS, Choice, Facts, choices_for, choose

COSTS = Costs(view=40, update=0.03, whole=0.4, stop=0.2, once=8, rest=10)
"""Of 2,000 images in batches of 32; the recipe is 8 views and 504 updates, which take about six minutes."""


def fitted(minutes, *, costs=COSTS, opened=OPEN, views=8, **fields):
    config = with_fields(tljax.config("folder:x"), DEFAULTS | fields)
    facts = Facts(2000, 100, kept="head", view_bytes=100_000)
    choices = [choice for choice in choices_for(config, facts, opened) if choice.field in opened]
    config = with_fields(config, {choice.field: choice.value for choice in choices})
    choices, plan = fit(choices, config, costs, 20.0, views=views, per_pass=63, minutes=minutes)
    values = fields | {choice.field: choice.value for choice in choices}
    assert plan[0] == values["epochs"] * (values["epoch_steps"] or 63)
    assert plan[1] == values["epochs"]
    assert 20 + costs.total(*plan) <= 60 * minutes
    return values | {"updates": plan[0]}, choices, 20 + costs.total(*plan)


def test_more_minutes_are_more_updates_then_more_views_up_to_the_recipe():
    found = [fitted(minutes)[0] for minutes in (1, 1.5, 2, 3, 5, 8, 100)]
    assert [values["cache.views"] for values in found] == [0, 1, 1, 2, 5, 8, 8]
    updates = [values["updates"] for values in found]
    assert updates == sorted(updates)
    assert LEAST <= updates[0] < updates[1] < 504
    assert updates[2:] == [504] * 5


def test_time_that_is_there_is_used():
    for minutes in (1, 1.5):  # where updates are the measure
        assert fitted(minutes)[2] > 0.85 * 60 * minutes
    for minutes in (2, 3, 5):  # but for less than a view
        assert fitted(minutes)[2] + 40 > 0.92 * 60 * minutes


@pytest.mark.parametrize("views", [0, 1, 8])
def test_a_users_views_stand_and_there_are_fewer_updates(views):
    opened = tuple(name for name in OPEN if name != "cache.views")
    costs = COSTS if views else dataclasses.replace(COSTS, view=0, whole=0.03, update=0.03, once=75)
    values, _, _ = fitted(2, opened=opened, views=views, costs=costs, **{"cache.views": views})
    assert values["cache.views"] == views
    assert LEAST <= values["updates"] <= 504


@pytest.mark.parametrize(("steps", "update", "minutes"), [(40, 0.5, 3), (7, 0.2, 2), (1, 0.2, 2)])
def test_epochs_are_as_long_as_the_user_wants_them(steps, update, minutes):
    opened = tuple(name for name in OPEN if name != "epoch_steps")
    values, _, _ = fitted(minutes, opened=opened, costs=dataclasses.replace(COSTS, update=update), epoch_steps=steps)
    assert values["updates"] >= LEAST
    assert values["updates"] % steps == 0


def test_too_little_is_told_with_the_least_there_is():
    with pytest.raises(UserError, match=r"minutes=0\.5 is too little.*; give --minutes=[\d.]+$") as error:
        fitted(0.5)
    least = float(str(error.value).rpartition("=")[2])
    assert fitted(least)[0]["updates"] >= LEAST
    with pytest.raises(UserError, match="too little"):
        fitted(least - 0.2)


def test_the_plan_says_what_it_rests_on():
    choices = {choice.field: choice for choice in fitted(2)[1]}
    assert list(choices)[-1] == "minutes"
    for words in ("20 s have gone", "1 x 40 s for features", "17 s for 504 updates and validation"):
        assert words in choices["minutes"].reason
    assert "the recipe has 8" in choices["cache.views"].reason


def test_a_budget_is_over_while_there_is_time_for_the_test():
    now = [0.0]
    budget = Budget(1, 0.0, lambda: now[0], view=4, updates=20, rest=10)
    over = []
    for now[0] in (0, 40, 52, 54):
        over.append(budget.is_over())
    assert over == [False, False, False, True]


def test_views_end_while_there_is_time_for_updates():
    now = [0.0]
    budget = Budget(1, 0.0, lambda: now[0], view=4, updates=20, rest=10)
    enough = []
    for now[0], views in ((5, 0.5), (7, 1.0), (11, 2.0), (29, 3.0)):
        enough.append(budget.is_enough(views))
    assert enough == [False, False, False, True]
    slow = Budget(1, 0.0, lambda: now[0], view=4, updates=20, rest=10)
    enough = []
    for now[0], views in ((5, 0.5), (9, 1.0)):  # everything takes twice as long
        enough.append(slow.is_enough(views))
    assert enough == [False, True]
    late = Budget(1, 0.0, lambda: 60.0, view=4, updates=20, rest=10)
    with pytest.raises(UserError, match=r"minutes=1 is too little: it goes more slowly"):
        late.is_enough(0.5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"minutes": 5.0, "epochs": 3}, r"minutes=5 sets the number of epochs, and epochs=3 is set"),
        ({"minutes": 0.0}, r"minutes=0 is not a time"),
        ({"minutes": -1.5}, r"minutes=-1\.5 is not a time"),
        ({"minutes": float("nan")}, r"minutes=nan is not a finite number"),
        ({"minutes": 5.0, "transfer.phases": "head@1"}, r"minutes=5 does not go with transfer\.phases=head@1"),
        ({"minutes": 5.0, "semi.method": "fixmatch", "data.labels": "10%"}, r"does not go with semi\.method=fixmatch"),
    ],
)
def test_a_budget_that_cannot_be_is_one_line(fields, words):
    config = with_fields(tljax.config("shapes:target", weights=None), fields)
    with pytest.raises(UserError, match=words):
        choose(config)


def test_a_config_without_open_epochs_takes_no_budget(photos, tmp_path):
    config = with_fields(tiny.make_config(photos), {"minutes": 2.0})
    for run in (runs.run, train.run):
        with pytest.raises(UserError, match=r"minutes=2.*epochs"):
            run(config, tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_the_demo_takes_no_budget(capsys):
    assert main.main(["tljax.main", "--minutes=2"]) == 2
    assert capsys.readouterr().err == (
        "tljax: minutes is for a run of your own, as of configs/folder.py; the demo needs none\n"
    )


def ticking(step, until=1e9):
    """A clock that each look at moves on, until it stops."""
    source = itertools.count()
    return lambda: min(next(source) * step, until)


def budgeted(photos, finished, minutes):
    return with_fields(open_config(photos, finished), {"minutes": minutes})


def test_a_run_with_a_budget_records_it_and_repeats_without_a_clock(photos, finished, tmp_path):
    said = io.StringIO()
    config = with_fields(budgeted(photos, finished, 0.04), {"epoch_steps": 15})
    console = Console(file=said, width=300)
    result = runs.run(config, tmp_path / "run", console=console, clock=ticking(0.01, until=1.3))
    assert LEAST <= result["minutes"]["updates"] < 1000  # as many as fit
    assert [choice["field"] for choice in result["chosen"]][-1] == "minutes"
    assert result["config"]["minutes"] is None
    assert (result["minutes"]["budget"], result["minutes"]["updates"]) == (0.04, result["minutes"]["of"])
    for choice in result["chosen"]:
        assert f"{choice['field']}={choice['value']!r}: {choice['reason']}" in said.getvalue()
    assert said.getvalue().count("3 classes; images") == 1
    assert json.loads((tmp_path / "run/chosen.json").read_text()) == result["chosen"]
    again = tljax.fit(tljax.config(base=tmp_path / "run/repeat.py"), tmp_path / "again", quiet=True)
    assert again.result["history"] == result["history"]
    assert "minutes" not in again.result


def test_a_run_that_goes_on_keeps_what_its_budget_settled(photos, finished, tmp_path):
    config = budgeted(photos, finished, 5.0)
    filled, choices = choose(with_fields(config, {"minutes": None}), look=False)
    settled = [dataclasses.asdict(c) for c in (*choices, Choice("minutes", 5.0, "about 4 minutes"))]
    (tmp_path / "config.json").write_text(json.dumps(filled.to_dict()))
    (tmp_path / "chosen.json").write_text(json.dumps(settled))
    for minutes in (5.0, 1.0, None):  # another budget, or none, is the same run
        again, found = choose(with_fields(config, {"minutes": minutes}), tmp_path)
        assert again.to_dict() == filled.to_dict()
        assert [dataclasses.asdict(choice) for choice in found] == settled


def test_a_run_whose_time_is_up_is_tested_all_the_same_and_has_ended(photos, finished, tmp_path):
    said = io.StringIO()
    config, choices = choose(with_fields(open_config(photos, finished), {"epochs": 4, "epoch_steps": 6}))
    budget = Budget(5.0, 0.0, ticking(20))  # seconds, each time that somebody looks: it is hopelessly slow
    result = train.run(config, tmp_path / "run", console=Console(file=said, width=300), choices=choices, budget=budget)
    assert result["minutes"]["updates"] < result["minutes"]["of"] == 24
    assert result["test"]["seen"] > 0
    assert result["history"][-1]["step"] == result["minutes"]["updates"] == result["best_step"]
    assert "the minutes are all but over" in said.getvalue()
    (tmp_path / "run/result.json").unlink()  # as if it had been killed before it was written
    again = train.run(config, tmp_path / "run", console=Console(quiet=True), choices=choices)
    assert again["history"] == result["history"]
