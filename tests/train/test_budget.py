"""A number of minutes becomes views and updates by measured costs; what is settled is kept, and said."""

import dataclasses
import io
import itertools
import json

import pytest
from rich.console import Console

import tljax
from tests import tiny
from tests.train.test_recipe import OPEN, open_config
from tljax import main
from tljax.core.errors import UserError
from tljax.settings.dotted import with_fields
from tljax.train import runs, single_run
from tljax.train.budget import Costs, TooSlow, Views, fit
from tljax.train.recipe import DEFAULTS, Facts, choices_for, choose
from tljax.train.throughput import LEAST, Budget

COSTS = Costs(update=0.03, stop=0.2, once=8, rest=10)
"""Of 2,000 images in batches of 32, on features; the recipe is 8 views and 504 updates."""
WHOLE = dataclasses.replace(COSTS, update=0.4)  # each takes its images through the network


def fitted(minutes, *, costs=COSTS, opened=OPEN, views=8, **fields):
    config = with_fields(tljax.config("folder:x"), DEFAULTS | fields)
    facts = Facts(2000, 100, kept="head", view_bytes=100_000)
    choices = [choice for choice in choices_for(config, facts, opened) if choice.field in opened]
    config = with_fields(config, {choice.field: choice.value for choice in choices})
    choices, updates = fit(choices, config, costs, 20.0, views=(views, 8), per_pass=63, minutes=minutes)
    values = fields | {choice.field: choice.value for choice in choices}
    assert updates == values["epochs"] * (values["epoch_steps"] or 63)
    return values | {"updates": updates}, choices, 20 + costs.total(updates, values["epochs"])


def test_more_minutes_are_more_updates_up_to_the_recipe_in_the_time_that_is_there():
    found = []
    for minutes in (1, 1.5, 2, 3, 5, 100):
        values, _, seconds = fitted(minutes, costs=WHOLE)
        found.append(values["updates"])
        assert minutes < 1.5 or minutes > 4 or 0.8 * 60 * minutes < seconds <= 60 * minutes
    assert found == sorted(found)
    assert LEAST <= found[0] < found[2] < found[3] < 504
    assert found[-2:] == [504, 504]


@pytest.mark.parametrize(("steps", "update", "minutes"), [(40, 0.5, 3), (7, 0.2, 2), (1, 0.2, 2)])
def test_epochs_are_as_long_as_the_user_wants_them(steps, update, minutes):
    opened = tuple(name for name in OPEN if name != "epoch_steps")
    values, _, _ = fitted(minutes, opened=opened, costs=dataclasses.replace(COSTS, update=update), epoch_steps=steps)
    assert LEAST <= values["updates"] < 504
    assert values["updates"] % steps == 0


def test_too_little_is_told_and_the_least_is_done():
    for minutes in (0.01, 0.5):
        values, choices, _ = fitted(minutes, costs=WHOLE)
        assert values["updates"] == LEAST
        assert choices[-1].reason.startswith("too little: the least that can be done takes about 50 s")


def test_more_than_the_recipe_needs_changes_nothing_and_is_told():
    _, without, _ = fitted(100)
    assert without[-1].reason.startswith("more than it needs: it ends after about 55 s")
    assert {c.field: c.value for c in without[:-1]} == {c.field: c.value for c in fitted(2)[1][:-1]}


def test_what_is_cut_is_told_with_numbers():
    choices = {choice.field: str(choice) for choice in fitted(2, costs=WHOLE, views=3)[1]}
    assert list(choices)[-1] == "minutes"
    assert choices["cache.views"] == "cache.views=3: 3 of 8 random views of each image, for --minutes 2"
    assert " of 504 updates, for --minutes 2" in choices["epochs"]
    assert "20 s have gone" in choices["minutes"]


class Now:
    """A clock that is told the time."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def views_made(minutes, *, image=0.02, images=1000, free=True, update=0.01, without=40.0, said=None):
    """How many views there are when `Views` has enough, where each image takes `image` seconds and a program 2."""
    now = Now()
    now.seconds = 20.0
    decide = Views(
        Budget(minutes, 0.0, now), images, lambda _image, _compiled, n: 20 + n * update,
        lambda _image, _compiled: without, updates=(LEAST, 300), views=8, free=free,
        tell=[].append if said is None else said.append,
    )  # fmt: skip
    done, now.seconds = 0, now.seconds + 2
    for view in range(1, 9):
        for size in (100,) * (images // 100):
            now.seconds, done = now.seconds + size * image, done + size
            last = decide(done, 8 * images)
        if last:
            return view
    assert decide.image == pytest.approx(image)
    assert decide.compiled == pytest.approx(2)
    return view


def test_there_are_as_many_views_as_fit_with_all_updates():
    assert [views_made(minutes) for minutes in (1, 1.5, 2, 2.5, 5)] == [1, 2, 3, 4, 8]
    assert views_made(1.5, update=0.1) == 1


def test_one_view_more_where_much_time_would_lie_idle():
    assert views_made(2, image=0.03) == 2  # 105 s; three would take 135 s
    assert views_made(2, image=0.04) == 2  # 85 s with one, 125 s with two


def test_no_view_where_updates_through_the_network_are_sooner_done():
    with pytest.raises(TooSlow):
        views_made(1, images=10_000)
    said = []
    assert views_made(1, images=10_000, without=300, said=said) == 1  # too little, but that would take longer
    assert said == ["1 minute will not do: the least that can be done takes about 4 minutes"]


def test_a_users_views_stand():
    said = []
    assert views_made(1, images=10_000, free=False, said=said) == 8
    assert said == ["1 minute will not do: the least that can be done takes about 27 minutes"]


def test_a_budget_is_over_while_there_is_time_for_the_test():
    now = Now()
    budget, over = Budget(1, 0.0, now, rest=10), []
    for now.seconds in (0, 40, 57, 58):
        over.append(budget.is_over)
    assert over == [False, False, False, True]


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
    for run in (runs.run, single_run.run):
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


def budgeted(photos, finished, minutes, **more):
    return with_fields(open_config(photos, finished), {"minutes": minutes} | more)


@pytest.mark.parametrize("fields", [{}, {"cache.features": "off"}, {"population.seed": (0, 1)}])
def test_a_run_with_a_budget_records_it_and_repeats_without_a_clock(photos, finished, tmp_path, fields):
    said = io.StringIO()
    config = budgeted(photos, finished, 0.04, **fields)
    console = Console(file=said, width=300)
    result = runs.run(config, tmp_path / "run", console=console, clock=ticking(0.01, until=1.3))
    assert LEAST <= result["minutes"]["updates"] < 1000  # as many as fit
    assert [choice["field"] for choice in result["chosen"]][-1] == "minutes"
    assert result["config"]["minutes"] is None
    assert (result["minutes"]["budget"], result["minutes"]["updates"]) == (0.04, result["minutes"]["of"])
    for choice in result["chosen"]:
        assert f"{choice['field']}={choice['value']!r}: {choice['reason']}" in said.getvalue()
    assert json.loads((tmp_path / "run/chosen.json").read_text()) == result["chosen"]
    again = tljax.fit(tljax.config(base=tmp_path / "run/repeat.py"), tmp_path / "again", quiet=True)
    assert histories(tmp_path / "again") == histories(tmp_path / "run")
    assert "minutes" not in again.result


def histories(folder):
    files = sorted(folder.glob("members/*/result.json")) or [folder / "result.json"]
    return [json.loads(file.read_text())["history"] for file in files]


@pytest.mark.parametrize("minutes", [0.0001, 100.0])
def test_too_few_and_too_many_minutes_give_a_result(photos, finished, tmp_path, minutes):
    said = io.StringIO()
    result = runs.run(budgeted(photos, finished, minutes), tmp_path / "run", console=Console(file=said, width=300))
    assert result["test"]["seen"] > 0
    assert (result["minutes"]["updates"] == LEAST) == (minutes < 1)
    assert ("too little" if minutes < 1 else "more than it needs") in said.getvalue()


def test_a_run_that_goes_on_keeps_what_its_budget_settled(photos, finished, tmp_path, monkeypatch):
    config, quiet = budgeted(photos, finished, 0.0001), Console(quiet=True)
    whole = runs.run(config, tmp_path / "whole", console=quiet)
    tiny.interrupted_after(config, tmp_path / "parts", 7, monkeypatch)
    for minutes in (0.0001, 7.0, None):  # another budget, or none, is the same run
        assert choose(with_fields(config, {"minutes": minutes}), tmp_path / "parts")[0].to_dict() == whole["config"]
    parts = runs.run(with_fields(config, {"minutes": 7.0}), tmp_path / "parts", console=quiet)
    assert parts["history"] == whole["history"]


@pytest.mark.parametrize("steps", [10, 11])
def test_a_run_whose_time_is_up_is_tested_all_the_same_and_has_ended(photos, finished, tmp_path, steps):
    said = io.StringIO()
    config, choices = choose(with_fields(open_config(photos, finished), {"epochs": 4, "epoch_steps": steps}))
    budget = Budget(5.0, 0.0, lambda: 400.0)  # over when it begins
    result = single_run.run(
        config, tmp_path / "run", console=Console(file=said, width=300), choices=choices, budget=budget
    )
    assert (result["minutes"]["updates"], result["minutes"]["of"]) == (LEAST, 4 * steps)
    assert result["test"]["seen"] > 0
    assert result["history"][-1]["step"] == result["minutes"]["updates"] == result["best_step"]
    assert "the minutes are all but over" in said.getvalue()
    assert (result["chosen"][-1]["field"], result["chosen"][-1]["value"]) == ("stop_after", result["best_step"])
    repeated = tljax.fit(tljax.config(base=tmp_path / "run/repeat.py"), tmp_path / "again", quiet=True)
    assert repeated.result["history"] == result["history"]
    (tmp_path / "run/result.json").unlink()  # as if it had been killed before it was written
    again = single_run.run(config, tmp_path / "run", console=Console(quiet=True), choices=choices)
    assert again["history"] == result["history"]
