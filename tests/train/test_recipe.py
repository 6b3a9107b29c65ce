"""What a config leaves open is chosen, said, recorded and kept to."""

import dataclasses
import io
import json
import os

import pytest
from rich.console import Console

import tljax
from tests import tiny
from tljax.core.errors import UserError
from tljax.data import load
from tljax.settings.dotted import with_fields
from tljax.train import runs
from tljax.train.recipe import DEFAULTS, Facts, choices_for, choose, write_choices

OPEN = tuple(DEFAULTS)


def chosen(facts, *, opened=OPEN, **fields):
    usual = {name: DEFAULTS[name] for name in OPEN}
    config = with_fields(tljax.config("folder:x"), usual | fields)
    return {choice.field: choice.value for choice in choices_for(config, facts, opened)}


def updates(values, images, batch_size=32):
    per_pass = -(-images // min(batch_size, images))
    return values["epochs"] * (values["epoch_steps"] or per_pass)


@pytest.mark.parametrize("images", [2, 10, 31, 196, 400, 1600, 20_000])
def test_a_new_head_gets_enough_updates_and_few_stops(images):
    values = chosen(Facts(images, 0, kept="head", view_bytes=346_112))
    assert updates(values, images) >= 300
    assert updates(values, images) >= 8 * images // 32  # each image is seen eight times
    assert values["epochs"] <= 10


def test_cheap_features_get_more_updates():
    few, maps = (updates(chosen(Facts(200, 0, kept="head", view_bytes=n)), 200) for n in (2048, 346_112))
    assert (few, maps) == (1000, 300)


def test_views_are_kept_while_they_fit():
    facts = [Facts(images, 0, kept="head", view_bytes=346_112) for images in (100, 1400, 3000, 5000, 50_000)]
    assert [chosen(one)["cache.views"] for one in facts] == [8, 8, 3, 2, 0]
    assert chosen(Facts(100, 0, kept=None))["cache.views"] == 0
    assert chosen(Facts(100, 0, kept="head", view_bytes=2048, random=False))["cache.views"] == 0


def test_the_rate_of_a_new_head_follows_what_it_sees():
    rates = [chosen(Facts(100, 0, kept="head", view_bytes=9, strength=s))["optimizer.lr"] for s in (30, 900, 5800)]
    assert rates == [0.1, 0.003, 0.0005]
    deep = Facts(100, 0, kept="layer4", view_bytes=9, trained=("layer4", "head"), strength=900)
    values = chosen(deep)
    assert (values["optimizer.lr"], values["optimizer.lr_groups"]) == (1e-4, "head:0.003")
    for stands in (
        {"optimizer.lr": 0.5},
        {"population.lr": (1e-5, 1e-2)},
    ):  # a rate that a user gives is the head's, too
        opened = [name for name in OPEN if name not in stands]
        assert chosen(deep, opened=opened, **stands)["optimizer.lr_groups"] == ""
    old_head = Facts(100, 0, kept="layer4", view_bytes=9, trained=("layer4", "head"), new_head=False, strength=900)
    assert chosen(old_head)["optimizer.lr_groups"] == ""


def test_what_goes_through_the_whole_network_gets_few_updates():
    facts = Facts(200, 0, kept="head", view_bytes=1024)
    opened = [name for name in OPEN if name != "cache.views"]
    assert updates(chosen(facts, opened=opened, **{"cache.views": 0}), 200) == 300
    assert updates(chosen(facts, **{"cache.features": "off"}), 200) == 300
    assert updates(chosen(facts), 200) == 1000
    norms = Facts(200, 0, kept=None, trained=("head",))  # batch norms move, so that nothing is kept
    assert (updates(chosen(norms), 200), chosen(norms)["optimizer.lr_groups"]) == (300, "")


def test_validation_chooses_where_it_can_tell_epochs_apart():
    assert [chosen(Facts(900, val, kept="head", view_bytes=9))["select"] for val in (0, 24, 499, 500)] == [
        "last", "last", "last", "validation",
    ]  # fmt: skip


def test_what_a_user_sets_stands():
    values = chosen(Facts(100, 0, kept="head", view_bytes=9), opened=("epochs", "cache.views"), epoch_steps=7)
    assert values["epochs"] == -(-1000 // 7)
    config = tljax.config("shapes:target", weights=None, train="all", epochs=3, lr=0.5)
    filled, choices = choose(config)
    assert (filled.epochs, filled.optimizer.lr) == (3, 0.5)
    assert {"epochs", "optimizer.lr"}.isdisjoint(choice.field for choice in choices)
    assert all(choice.reason for choice in choices)


def test_an_epoch_that_is_longer_than_the_run_is_said(photos):
    config = with_fields(tljax.config(photos, weights=None, train="all"), {"epoch_steps": 5000})
    filled, choices = choose(config, look=False)
    (epochs,) = (choice for choice in choices if choice.field == "epochs")
    assert filled.epochs == 1
    assert "epoch_steps=5000 has validation looked at once, at the end" in epochs.reason


def test_nothing_open_is_nothing_chosen(photos):
    config = tiny.make_config(photos)
    assert choose(config) == (config, ())


def test_phases_and_unlabeled_images_keep_the_usual_values():
    filled, choices = choose(tljax.config("shapes:target", weights=None, phases="all@2; head@3@1e-4"))
    assert (filled.epochs, filled.cache.views, filled.select) == (5, 0, "validation")
    assert [choice.reason for choice in choices if choice.field == "epochs"] == ["what transfer.phases add up to"]
    filled, _ = choose(tljax.config("shapes:target", weights=None, train="all", labels="10%", method="fixmatch"))
    assert (filled.epochs, filled.optimizer.lr) == (10, 1e-3)


def test_a_mistake_is_said_although_something_is_open():
    with pytest.raises(UserError, match=r"augment\.crop='zoom'"):
        choose(tljax.config("shapes:target", weights=None, crop="zoom"))


def open_config(folder, finished):
    """All that the recipe chooses is open; a network that is there to be fine-tuned."""
    fields = {"augment__crop": "random_resized", "transfer__train": "head", "model__weights": str(finished)}
    return with_fields(tiny.make_config(folder, **fields), dict.fromkeys(OPEN))


def test_a_run_says_records_and_repeats_what_was_chosen(photos, finished, tmp_path, monkeypatch):
    said, listed, open_source = io.StringIO(), [], load.open_source
    monkeypatch.setattr(load, "open_source", lambda *args, **more: listed.append(args) or open_source(*args, **more))
    monkeypatch.chdir(photos.parent)
    places = {"data.source": f"folder:{photos.name}", "model.weights": os.path.relpath(finished)}
    config = with_fields(open_config(photos, finished), {"epochs": 2, "epoch_steps": 6} | places)
    result = runs.run(config, tmp_path / "run", console=Console(file=said, width=200))
    assert len(listed) == 1  # for the choice, and for the run
    open_now = [name for name in OPEN if name not in ("epochs", "epoch_steps")]
    assert [choice["field"] for choice in result["chosen"]] == open_now
    for choice in result["chosen"]:
        assert f"{choice['field']}={choice['value']!r}: {choice['reason']}" in said.getvalue()
    assert result["config"]["cache"]["views"] == 8
    assert result["config"]["select"] == "last"
    assert result["features"]["views"] == 3  # as many passes as there are
    monkeypatch.chdir(tmp_path / "run")  # where no relative path would lead anywhere
    again = tljax.fit(tljax.config(base="repeat.py"), tmp_path / "again", quiet=True)
    assert again.result["history"] == result["history"]
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("run", "again"))
    assert second["data"].pop("source") == f"folder:{photos}" and first["data"].pop("source") == "folder:photos"
    assert second["model"].pop("weights") == str(finished) and first["model"].pop("weights") == os.path.relpath(
        finished, photos.parent
    )
    assert first == second


def test_what_was_chosen_stays_when_a_run_goes_on(photos, finished, tmp_path, monkeypatch):
    config = with_fields(open_config(photos, finished), {"epochs": 2, "epoch_steps": 6})
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    undisturbed = runs.run(config, whole, console=Console(quiet=True))
    tiny.interrupted_after(config, parts, 7, monkeypatch)
    assert runs.run(config, parts, console=Console(quiet=True))["history"] == undisturbed["history"]
    assert choose(config, parts)[0].to_dict() == undisturbed["config"]
    assert choose(with_fields(config, {"select": "last"}), parts)[0].to_dict() == undisturbed["config"]
    other = with_fields(config, {"seed": 1})
    assert choose(other, parts)[0].seed == 1


@pytest.mark.parametrize("set_too", [{}, {"schedule.name": "constant"}, {"epochs": 3}])
def test_whatever_is_open_what_was_chosen_is_found_again(photos, finished, tmp_path, set_too):
    config = with_fields(open_config(photos, finished), set_too)
    filled, choices = choose(config, look=False)
    marked = [dataclasses.replace(c, value=0.123) if c.field == "optimizer.lr" else c for c in choices]
    filled = with_fields(filled, {"optimizer.lr": 0.123})  # nobody would choose that again
    write_choices(tmp_path, filled, marked)
    (tmp_path / "config.json").write_text(json.dumps(filled.to_dict()))
    again, found = choose(config, tmp_path)
    assert again.to_dict() == filled.to_dict()
    assert found == tuple(marked)
