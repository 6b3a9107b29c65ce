"""Training that dies although its numbers are finite is said, once and in a line; training that lives is not."""

import dataclasses
import functools
import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from tests import tiny
from tljax.metrics.accuracy import images_in_words
from tljax.train import single_run
from tljax.train.diagnostics import Diagnostics, at_chance, constant, constant_loss, not_falling
from tljax.transfer.plan import make_phases
from tljax.transfer.population import members_of

SQUEEZE = {"model__name": "squeezenet1_1", "model__width": None, "model__blocks": None}


def kinds(result):
    return [entry["kind"] for entry in result["warnings"]]


def make_console():
    return Console(record=True, width=1000, file=io.StringIO())


@pytest.fixture(scope="module")
def started(photos, tmp_path_factory):
    """(whether its head ends in a ReLU, overrides) -> what watches such a run before its first update, its console."""

    @functools.cache
    def prepared(squeeze):
        config = tiny.make_config(photos, optimizer__lr=0.3, **(SQUEEZE if squeeze else {}))
        return single_run.prepare(config, tmp_path_factory.mktemp("run"), make_console())[0]

    def start(squeeze=False, **overrides):
        x, console = prepared(squeeze), make_console()
        config = tiny.make_config(photos, optimizer__lr=0.3, **(SQUEEZE if squeeze else {}), **overrides)
        phases = make_phases("", train="all", epochs=config.epochs, lr=0.3)
        x = dataclasses.replace(x, config=config, members=members_of(config), phases=(phases,))
        return Diagnostics(x, console), console

    return start


def updates(count, *, loss=1.1, norm=1.0, active=(8, 8, 8), seen=8):
    return [
        {"loss": np.float32(loss * seen), "seen": np.float32(seen), "norms": {"head": np.float32(norm)}}
        | ({"active": np.asarray(active)} if active is not None else {})
        for _ in range(count)
    ]


def test_a_dead_class_is_said_once_with_its_name_and_the_rate(started):
    watch, console = started(squeeze=True, epochs=100)
    watch.stepped(updates(9, active=(8, 0, 8)), 0)
    assert not watch.entries(0)
    watch.stepped(updates(1, active=(8, 0, 8)), 0)
    (entry,) = watch.entries(0)
    assert entry["kind"] == "dead_classes" and entry["classes"] == ["green"] and entry["update"] == 10
    watch.stepped(updates(30, active=(8, 0, 8)), 0)
    said = [line for line in console.export_text().splitlines() if line.startswith("warning: ")]
    assert len(said) == 1
    assert "class green: the head puts out 0 for every image" in said[0] and "the head's rate is 0.3" in said[0]


def test_a_dead_head_is_said_and_its_loss_is_not_said_beside_it(started):
    watch, _ = started(squeeze=True, epochs=12)  # of 5 updates each
    watch.stepped(updates(60, norm=0.0, active=(0, 0, 0)), 0)
    (entry,) = watch.entries(0)
    assert entry["classes"] == ["blue", "green", "red"]
    assert entry["message"].startswith("all classes: the head puts out 0")


@pytest.mark.parametrize("active", [(8, 1, 8), (0, 8, 0)])
def test_a_class_that_wakes_up_is_not_dead(started, active):
    """Nor one whose logit is 0 for a batch or a few."""
    watch, _ = started(squeeze=True, epochs=100)
    for _ in range(5):
        watch.stepped(updates(9, active=(8, 0, 8)) + updates(1, active=active), 0)
    assert not watch.entries(0)


def test_a_rare_class_is_not_called_dead_before_its_images_have_come(started):
    watch, _ = started(squeeze=True, epochs=100, batch_size=1)  # a third of an image per update
    watch.stepped(updates(59, seen=1, active=(1, 0, 1)), 0)
    assert not watch.entries(0)
    watch.stepped(updates(2, seen=1, active=(1, 0, 1)), 0)
    assert watch.entries(0)[0]["classes"] == ["green"]


def test_a_group_without_a_gradient_is_said_unless_nothing_is_left_to_learn(started):
    done, _ = started(epochs=100)
    done.stepped(updates(40, loss=0.0, norm=0.0, active=None), 0)
    assert not done.entries(0)
    watch, _ = started(epochs=100)
    watch.stepped(updates(40, norm=0.0, active=None), 0)
    (entry,) = watch.entries(0)
    assert entry["kind"] == "no_gradient" and entry["groups"] == ["head"]


@pytest.mark.parametrize(
    ("first", "last", "stuck"),
    [
        ([1.1] * 10, [1.1] * 10, True),
        ([1.1, 1.2] * 5, [1.2, 1.1] * 5, True),
        ([1.1] * 10, [37.0] * 10, True),
        ([3.0, 3.2] * 5, [2.0, 2.2] * 5, False),  # still above what one answer has, but on its way
        ([0.1] * 10, [0.1] * 10, False),  # began where another run ended
        ([1.1, 1.2] * 5, [1.0, 0.95] * 5, False),
        ([1.1] * 3, [1.1] * 3, False),  # too few to say
        ([1.1] * 10, [np.nan] * 10, False),
    ],
)
def test_whether_a_loss_falls(first, last, stuck):
    assert not_falling(first, last, np.log(3)) is stuck


def test_the_loss_of_one_answer_is_the_entropy_of_the_classes():
    assert constant_loss(np.array([0, 1, 2]), 3, 0.0) == pytest.approx(np.log(3))
    assert constant_loss(np.array([0, 0, 0, 1]), 2, 0.0) == pytest.approx(0.5623, abs=1e-4)
    assert constant_loss(np.array([[0.5, 0.5], [1.0, 0.0]]), 2, 0.0) == pytest.approx(0.5623, abs=1e-4)
    assert constant_loss(np.array([0, 0]), 2, 0.2) == pytest.approx(0.3251, abs=1e-4)


def test_a_loss_that_stays_is_said_at_the_end_of_a_short_run_and_at_a_fifth_of_a_long_one(started):
    short, _ = started(epochs=2)
    short.stepped(updates(9, active=None), 0)
    assert not short.entries(0)
    short.stepped(updates(1, active=None), 0)
    assert short.entries(0)[0]["kind"] == "not_falling"
    long, _ = started(epochs=100)
    long.stepped(updates(99, active=None), 0)
    assert not long.entries(0)
    long.stepped(updates(1, active=None), 0)
    assert "in 100 updates (1.10 to 1.10; one answer for all images has 1.10)" in long.entries(0)[0]["message"]


@pytest.mark.parametrize(
    ("correct", "labels", "said"),
    [
        (6, np.arange(42) % 7, True),
        (0, np.arange(42) % 7, True),
        (14, np.arange(42) % 7, False),
        (80, np.repeat([0, 1], [80, 20]), True),  # what one answer gives is chance, whatever it is
        (7, np.arange(12) % 2, False),  # too few to say
        (1, np.arange(3), False),
        (3, np.zeros(10, int), False),
        (21, np.arange(40) % 2, True),
    ],
)
def test_whether_an_accuracy_is_at_chance(correct, labels, said):
    assert at_chance(correct, labels) is said


def test_a_network_that_is_better_than_half_way_is_rarely_called_a_guesser():
    """However few images there are: at most once in 40, by all that may come."""
    from scipy import stats

    for classes in (2, 3, 7, 37):
        for count in range(classes, 130, classes):
            labels, good = np.arange(count) % classes, (1 + 1 / classes) / 2
            called = sum(stats.binom.pmf(k, count, good) for k in range(count + 1) if at_chance(k, labels))
            assert called <= 1 / 40, (classes, count, called)


def test_logits_that_are_one_row_are_constant():
    row = np.array([[0.3, -2.0, 5.0]], np.float32)
    assert constant(np.repeat(row, 5, 0))
    assert not constant(np.concatenate([row, row + np.float32(0.01)]))
    assert not constant(row)
    assert not constant(np.full((3, 2), np.nan))


def test_what_was_said_goes_into_checkpoints_and_is_not_said_again(started):
    watch, _ = started(squeeze=True, epochs=100)
    watch.stepped(updates(12, active=(8, 0, 8)), 0)
    console = make_console()
    again = Diagnostics(watch.x, console, json.loads(json.dumps(watch.record)))
    assert again.record == watch.record
    again.stepped(updates(12, active=(8, 0, 8)), 0)
    assert console.export_text() == ""
    assert kinds({"warnings": again.entries(0)}) == ["dead_classes"]


@pytest.mark.parametrize(
    ("overrides", "kind", "words"),
    [
        ({"schedule__warmup_epochs": 100.0}, "warm_up", "reaches 3% of what is asked for"),
        ({"schedule__name": "step", "schedule__step_epochs": 0.2}, "no_rate", "of the updates 1 to 15"),
        ({"schedule__name": "step", "schedule__step_epochs": 1.0, "schedule__factor": 0.0}, "no_rate", "factor (0)"),
    ],
)
def test_a_schedule_that_trains_nothing_is_said_before_the_first_update(started, overrides, kind, words):
    watch, _ = started(**overrides)
    (entry,) = watch.entries(0)
    assert entry["kind"] == kind and words in entry["message"]


def test_a_logit_that_cannot_be_negative_is_said_of_a_sigmoid(started):
    x = started(squeeze=True)[0].x
    (entry,) = Diagnostics(dataclasses.replace(x, model=x.model.clone(num_classes=1)), make_console()).entries(0)
    assert entry["kind"] == "one_sided" and "cannot be sure of blue" in entry["message"]


@pytest.mark.parametrize(
    ("labels", "kind", "words"),
    [
        ((0, 1), "no_images", "class red: no training image"),
        ((2,), "one_class", "all training images are of red"),
    ],
)
def test_classes_without_training_images_are_named(started, labels, kind, words):
    """Whatever took them away: here they are left out of the split."""
    x = started()[0].x
    train_images = x.data.splits["train"]
    kept = train_images[np.isin(x.data.labels("train"), labels)]
    data = dataclasses.replace(x.data, splits={**x.data.splits, "train": kept})
    (entry,) = Diagnostics(dataclasses.replace(x, data=data), make_console()).entries(0)
    assert entry["kind"] == kind and entry["message"].startswith(words)


@pytest.mark.parametrize("name", ["constant", "cosine", "step"])
def test_usual_schedules_are_not_doubtful(started, name):
    watch, _ = started(epochs=30, schedule__name=name, schedule__warmup_epochs=3.0)
    assert not watch.entries(0)


def test_a_run_that_learns_says_nothing(finished):
    assert json.loads((finished / "result.json").read_text())["warnings"] == []


def test_members_are_named_and_each_has_its_own(photos, tmp_path):
    """One is too slow to learn anything, one learns: the population has both, each member its own alone."""
    config = tiny.make_config(photos, population__lr=(1e-9, 3e-3), epochs=12, batch_size=36)
    console = make_console()
    result = single_run.run(config, tmp_path, console=console)
    own = [json.loads((tmp_path / "members" / m / "result.json").read_text()) for m in ("000", "001")]
    assert "not_falling" in kinds(own[0]) and own[1]["warnings"] == []
    assert all(entry["members"] == [0] for entry in result["warnings"])
    said = [line for line in console.export_text().splitlines() if line.startswith("warning: ")]
    assert len(said) == len(result["warnings"])
    assert all(line.startswith("warning: member 000 ({'lr': 1e-09}): ") for line in said)


def test_a_head_that_dies_by_its_rate_is_said_of_a_real_run(photos, tmp_path):
    config = tiny.make_config(photos, **SQUEEZE, optimizer__lr=3.0, transfer__train="head", epochs=4,
                              transfer__allow_fresh_frozen=True)  # fmt: skip
    result = single_run.run(config, tmp_path / "run")
    assert {"constant", "dead_classes"} <= {
        *kinds(result)
    }  # which is first, the end of an epoch or ten updates, is chance


def test_batch_norm_over_single_images_is_said(started):
    for alone in ({"batch_size": 1}, {"batch_size": 8, "accumulate": 8}, {"batch_size": 5, "accumulate": 4}):
        x = started(**alone)[0].x
        here = dataclasses.replace(x, replicas=dataclasses.replace(x.replicas, devices=1, local=1))
        (entry,) = Diagnostics(here, make_console()).entries(0)
        assert entry["kind"] == "one_example" and f"batch_size={alone['batch_size']}" in entry["message"]
        spread = dataclasses.replace(x.replicas, devices=4, local=4)
        pair = started(batch_size=8)[0].x
        assert not Diagnostics(dataclasses.replace(pair, replicas=spread), make_console()).entries(0)
    assert not started(squeeze=True, batch_size=1)[0].entries(0)  # which has no batch norm


def test_images_that_the_weights_have_trained_on_are_no_test(photos, finished, tmp_path):
    """A run that begins from another one's network under another split: what that one trained on is counted, also by
    a third run that begins from the second."""
    options = {"transfer__fresh": "", "transfer__train": "head", "epochs": 1}
    config = tiny.make_config(photos, model__weights=str(finished), data__split_seed=1, **options)
    result = single_run.run(config, tmp_path / "second", console=make_console())
    with np.load(finished / "predictions.npz") as earlier, np.load(tmp_path / "second/predictions.npz") as now:
        held_out = {*earlier["val_names"].tolist(), *earlier["test_names"].tolist()}
        seen = np.array([name not in held_out for name in now["test_names"].tolist()])
        right = now["test_logits"].argmax(1) == now["test_labels"]
    assert "trained_before" in kinds(result)
    assert 0 < seen.sum() == result["trained_before"]["test"]["images"] < len(seen)
    rest = result["trained_before"]["test"]["without"]
    assert (rest["correct"], rest["seen"]) == (right[~seen].sum(), (~seen).sum())
    assert images_in_words(result, "test") == f"test (an earlier run trained on {seen.sum()} of these images)"
    for weights, seed, count in ((tmp_path / "second", 1, seen.sum()), (finished, 0, 0)):
        config = tiny.make_config(photos, model__weights=str(weights), data__split_seed=seed, **options)
        x, _ = single_run.prepare(config, tmp_path, make_console())
        assert x.trained_before("test").sum() == count
        assert ("trained_before" in kinds({"warnings": Diagnostics(x, make_console()).entries(0)})) == (count > 0)


def test_an_older_run_that_does_not_say_what_it_trained_on_is_named(photos, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "old")
    (tmp_path / "old/images.npz").unlink()
    console = make_console()
    config = tiny.make_config(photos, model__weights=str(tmp_path / "old"), transfer__fresh="")
    single_run.prepare(config, tmp_path, console)
    assert "did not keep which images it trained on" in console.export_text()
