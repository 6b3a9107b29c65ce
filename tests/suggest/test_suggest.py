"""What is said before training: probes that are exact, choices with numbers, a config that runs."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import optimize, stats

from tests import tiny
from tljax.core.errors import UserError
from tljax.data import load
from tljax.data.duplicates import Copies
from tljax.metrics import significance
from tljax.report.console import make_console
from tljax.settings.command_line import load_config
from tljax.settings.fields import get_config
from tljax.suggest import __main__ as suggest_command
from tljax.suggest import probe, suggestion, trial
from tljax.suggest.trial import Backbone, Trial
from tljax.train import single_run

QUIET = make_console(quiet=True)
ROOT = Path(__file__).resolve().parents[2]


def evidence(features, target):
    """The maximum over alpha and beta of You et al. 2021, equation 2, as what it is: the density of a Gaussian."""

    def loss(logs):
        alpha, beta = np.exp(logs)
        spread = features @ features.T / alpha + np.eye(len(target)) / beta
        return -stats.multivariate_normal.logpdf(target, cov=spread, allow_singular=True) / len(target)

    bounds = [(-12, 12)] * 2
    return max(-optimize.minimize(loss, at, bounds=bounds).fun for at in itertools.product([-3, 0, 3, 6], repeat=2))


@pytest.mark.parametrize("count, width", [(60, 8), (20, 40)])
def test_log_me_is_the_maximum_of_the_papers_evidence(count, width):
    """Also where it rises for ever, towards weights that explain everything."""
    rng = np.random.default_rng(0)
    features = rng.normal(0.3, 1, (count, width))
    labels = (features[:, 0] + 0.5 * rng.normal(size=count) > 0.3).astype(int) + (features[:, 1] > 1)
    wanted = np.mean([evidence(features, (labels == label) * 1.0) for label in np.unique(labels)])
    assert wanted - 1e-7 <= probe.log_me(features, labels) <= wanted + 1e-5  # the search may end short of it


def test_features_that_say_nothing_have_an_evidence():
    assert probe.log_me(np.zeros((6, 3)), np.arange(6) % 2) == pytest.approx(
        evidence(np.zeros((6, 3)), np.arange(6) % 2.0)
    )


@pytest.mark.parametrize("width", [5, 60])
def test_the_probe_is_the_penalized_optimum_also_of_more_features_than_images(width):
    """At the minimum what is wrong balances the penalty; a prediction does not depend on the coordinates."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, width)), np.arange(30) % 3
    train, held = probe.standardised(features, features[:4])
    weights = probe.fit(train, labels, 3, 0.1, start=np.zeros((train.shape[1] + 1, 3)))
    whole = (features - features.mean(0)) / features.std(0)
    direct = probe.fit(whole, labels, 3, 0.1, start=np.zeros((width + 1, 3)))
    logits = held @ weights[:-1] + weights[-1]
    np.testing.assert_allclose(logits, whole[:4] @ direct[:-1] + direct[-1], atol=2e-3)
    chances = np.exp(whole @ direct[:-1] + direct[-1])
    wrong = (chances / chances.sum(1, keepdims=True) - np.eye(3)[labels]) / 30
    np.testing.assert_allclose(whole.T @ wrong, -0.1 * direct[:-1], atol=1e-4)


def test_folds_spread_each_class_and_never_divide_copies():
    labels = np.repeat([0, 1, 2], [10, 15, 25])
    folds = probe.make_folds(labels, 5)
    assert (np.array([np.bincount(folds[labels == c], minlength=5) for c in range(3)]) == [[2], [3], [5]]).all()
    groups = np.arange(50) // 2
    assert (np.diff(probe.make_folds(labels, 5, groups=groups).reshape(25, 2)) == 0).all()


def test_labels_that_were_changed_are_the_first_suspects():
    rng = np.random.default_rng(0)
    true = np.arange(120) % 3
    features = 3 * np.eye(3)[true] + rng.normal(0, 0.7, (120, 3))
    labels = true.copy()
    labels[:6] = (labels[:6] + 1) % 3
    found = probe.suspects(probe.cross_validate(features, labels, probe.make_folds(labels, 5)))
    first = found[:6]
    assert len({one.image for one in first} & set(range(6))) >= 5
    assert all(one.likely == true[one.image] and one.given < one.other for one in first if one.image < 6)


def a_trial(correct, *, seen=100, losses=None, epochs=1):
    right = np.arange(seen)[None] < np.asarray(correct)[:, None]
    rates = tuple(10.0**i for i in range(len(correct)))
    return Trial("head", rates, epochs, 50, right, tuple(losses or [1.0] * len(correct)), (1,) * len(correct))


def test_a_rate_is_the_middle_of_those_that_are_as_good_as_the_best():
    assert a_trial([20, 78, 80, 79, 30]).chosen == 2
    assert a_trial([80, 20, 30, 80, 81]).plateau == (3, 4)  # the first is as good, but not beside them
    assert a_trial([20, 80, 79, 30], losses=[3, 2, 1, 3]).chosen == 2
    assert a_trial([20, 80, 79, 30], losses=[3, 1, float("inf"), 3]).chosen == 1
    assert a_trial([100, 50]).plateau == (0,)


def test_another_plan_is_advised_only_where_it_is_told_apart_in_no_more_epochs():
    own, better, longer, alike = a_trial([60]), a_trial([85]), a_trial([85], epochs=2), a_trial([62])
    assert suggest_command.choose_plan([own, better]) is better
    assert suggest_command.choose_plan([own, longer]) is own
    assert suggest_command.choose_plan([own, alike]) is own
    assert "may be chance, or its longer training" in suggestion.why_plan([own, longer], own)


def test_backbones_are_read_as_they_are_written():
    assert trial.read_backbones("squeezenet1_0=a.pth, resnet18:layer3=b.pth,resnet34") == (
        Backbone("squeezenet1_0", None, "a.pth"), Backbone("resnet18", "layer3", "b.pth"),
        Backbone("resnet34", None, "imagenet"),
    )  # fmt: skip
    for text, words in (("resnet19", "not known"), ("resnet18:layer9", "not a stage"), ("resnet18=", "is not NAME"),
                        ("resnet18,resnet18=x", "twice")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            trial.read_backbones(text)


def test_only_weights_that_are_here_are_available(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    config = get_config()
    with pytest.raises(UserError, match="no pretrained network is here"):
        trial.available(config)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "squeezenet1_1-b8a52dc0.pth").touch()
    assert trial.available(config) == (Backbone("squeezenet1_1", None, "imagenet"),)
    config.model.weights = "mine.pth"
    assert trial.available(config)[0] == Backbone("resnet18", None, "mine.pth")


def test_a_plan_is_said_of_another_network_by_what_is_last():
    config, cut = get_config(), Backbone("resnet18", "layer3", "x")
    squeezed = Backbone("squeezenet1_0", None, "y")
    for own, theirs in (("head", "head"), ("head,layer4", "fire9,head"), ("all", "all")):
        config.transfer.train = own
        assert trial.train_of(config, squeezed) == theirs
    config.transfer.train = "head,layer4"
    assert trial.train_of(config, cut) == "layer3,head"
    config.transfer.train = "layer2,head"
    with pytest.raises(UserError, match="cannot be said of squeezenet1_0"):
        trial.train_of(config, squeezed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures with all that can be wrong: an unreadable file, a copy in two splits, a small class."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 30), ("val", 10), ("test", 10)):
        tiny.make_folder(root / split, per_class=count)
    rng = np.random.default_rng(5)
    for split in ("train", "val", "test"):  # which are otherwise the same noise
        for path in sorted((root / split).rglob("*.png")):
            c = tiny.CLASSES.index(path.parent.name)
            image = rng.integers(0, 200, (40, 48, 3))
            image[..., 2 - c] += rng.integers(20, 56)
            Image.fromarray(image.astype(np.uint8)).save(path)
    for i in range(6, 30):
        (root / "train/red" / f"{i:03}.png").unlink()
    (root / "test/blue/000.png").write_bytes((root / "train/blue/000.png").read_bytes())
    (root / "train/green/broken.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def pretrained(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    single_run.run(tiny.make_config(folder, data__split="official", epochs=1), workdir, console=QUIET)
    return workdir


@pytest.fixture(scope="module")
def config(folder, pretrained):
    return tiny.make_config(
        folder, data__split="official", model__weights=str(pretrained), transfer__train="head", epochs=2
    )


@pytest.fixture(scope="module")
def found(config, pretrained):
    backbones = (Backbone("resnet18", None, str(pretrained)), Backbone("resnet18", "layer1", str(pretrained)))
    return suggest_command.suggest(config, backbones, console=QUIET)


def test_the_tests_labels_are_not_read(found, config, pretrained, monkeypatch):
    assert found.test_labels_read == 0
    tiny.permute_labels(monkeypatch, config, "test")
    again = suggest_command.suggest(config, (Backbone("resnet18", None, str(pretrained)),), layers=False, console=QUIET)
    mine = next(one for one in found.looked if one.backbone.last_stage is None)
    np.testing.assert_array_equal(again.looked[0].probed.probabilities, mine.probed.probabilities)


def test_the_backbones_are_those_named_the_most_accurate_first(found):
    correct = [one.probed.right.sum() for one in found.looked]
    assert sorted(correct, reverse=True) == correct
    assert {one.backbone.last_stage for one in found.looked} == {None, "layer1"}
    assert all(len(one.probed.labels) == 66 for one in found.looked)
    best = found.best.backbone
    assert (found.fields["model.last_stage"], found.fields["model.weights"]) == (best.last_stage, best.weights)


def test_between_probes_that_do_not_differ_significantly_short_runs_decide(found):
    first, *others = found.looked
    alike = [one for one in others if suggestion.p_value(first.probed.right, one.probed.right) >= 0.05]
    assert [one for one, _ in found.rivals] == [first, *alike]
    most = max(suggestion.best_of(tried).sum() for _, tried in found.rivals)
    assert suggestion.best_of(found.trials[0]).sum() == most
    words = "short runs decide" if alike else "the first is significantly different"
    assert words in found.reasons[0]


def test_what_is_wrong_in_the_data_is_told(found):
    text = "\n".join(found.problems)
    assert "classes with fewer than 10 training images: red 6" in text
    assert "imbalance: blue has 30 training images, red 6" in text
    assert "1 file skipped: 'train/green/broken.png'" in text
    copies = found.duplicates["test"]["train"]
    assert copies["exact"] == 1
    assert copies["examples"][0][:2] == ["test/blue/000.png", "train/blue/000.png"]


def test_the_head_alone_and_the_last_stage_are_tried_on_the_same_images(found):
    assert found.trials[0].train == "head"
    assert len(found.trials) == 2 and found.trials[1].train.endswith(",head")
    assert {one.right.shape[1] for one in found.trials} == {30}
    assert all(len(one.rates) == len(one.right) == len(one.best_epochs) for one in found.trials)


def test_a_part_of_the_images_keeps_every_class_and_makes_as_many_updates(config, pretrained):
    backbone = Backbone("resnet18", None, str(pretrained))
    found = suggest_command.suggest(config, (backbone,), images=22, layers=False, console=QUIET)
    assert np.bincount(found.looked[0].probed.labels).tolist() == [10, 10, 2]
    assert found.trials[0].epochs == 6  # of 22 images, for the 2 of 66
    assert found.trials[0].right.shape[1] == 21  # 7 of each class


def test_a_class_that_the_sample_alone_makes_small_is_not_blamed(config, pretrained, tmp_path):
    one = suggest_command.look(config, trial.own_backbone(config), images=3, folder=tmp_path, console=QUIET)
    assert np.bincount(one.probed.labels).tolist() == [2, 2, 2]


def test_images_that_only_a_suggestion_validates_on_count_as_training_images(photos):
    config = tiny.make_config(photos, data__split="holdout:60", data__val=0.0)
    tried = trial.with_fields(config, trial.try_fields(config)).data
    data = load.decode_data(tried, load.open_data(tried, seed=0), resize=40, workdir=None)
    assert data.counts["train"].tolist() == [8, 8, 8]
    assert not suggest_command.problems(data, suggest_command.trained_on(config, data))


@pytest.mark.parametrize("seed", range(3))
def test_one_class_is_fishers_test_and_other_shares_of_classes_are_no_difference(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.random(40) < 0.9, rng.random(30) < 0.7
    one_class = [np.zeros(len(right), int) for right in (first, second)]
    found = significance.less_often_right(first, one_class[0], second, one_class[1])
    table = [[first.sum(), (~first).sum()], [second.sum(), (~second).sum()]]
    assert found == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue)
    labels = np.repeat([0, 1], [90, 10])  # one class is always right, the other never
    assert significance.less_often_right(labels == 0, labels, labels == 1, 1 - labels) == pytest.approx(1)
    assert significance.two_proportions(90, 100, 10, 100) < 1e-9


def test_validation_that_is_unlike_train_is_told_and_a_cut_of_ones_own_is_not(found):
    best, none = found.best, np.empty(0, np.int64)
    copied = Copies(none, none, none.astype(bool), none)
    assert not any("unlike" in text for text in found.problems)
    assert best.probed.right.mean() > 0.7
    other = replace(best, seen=replace(best.seen, validation=-best.seen.validation))
    (text,) = suggest_command.unlike(other, copied)
    right = suggestion.share(best.probed.right)
    assert text.startswith(f"validation is unlike train: a probe gets right {right} of training images")
    val = best.seen.x.data.splits["val"]  # all of them in train, too: nothing is known of the others
    everything = Copies(val, np.zeros_like(val), np.ones(len(val), bool), np.zeros_like(val))
    assert suggest_command.unlike(other, everything) == []
    data = best.seen.whole.data
    drawn = replace(data, source=replace(data.source, splits={}))
    whole = replace(best.seen.whole, data=drawn)
    assert suggest_command.unlike(replace(best, seen=replace(other.seen, whole=whole)), copied) == []


def test_mistakes_are_told_before_anything_is_tried(config, folder):
    for fields, words in (({"transfer.phases": "head@1;all"}, "transfer.phases has several plans"),
                          ({"run": "demo"}, "nothing to suggest for"), ({"epochs": 0}, "epochs=0")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            suggest_command.suggest(trial.with_fields(config, fields), console=QUIET)
    few = trial.with_fields(config, {"data.per_class": 1})
    with pytest.raises(UserError, match="has 1 labeled training image; cross-validation needs 2 of each"):
        suggest_command.suggest(few, (trial.own_backbone(config),), console=QUIET)


@pytest.mark.slow
def test_the_command_ends_with_a_config_that_runs(folder, pretrained, tmp_path):
    flags = {
        "data.source": f"folder:{folder}", "data.size": 32, "model.width": 4, "model.blocks": "(1,1)",
        "epochs": 1, "model.weights": pretrained,
    }  # fmt: skip
    command = [sys.executable, "-m", "tljax.suggest", "--config", "configs/folder.py", "--nolayers",
               f"--out={tmp_path / 'mine.py'}", *(f"--config.{k}={v}" for k, v in flags.items())]  # fmt: skip

    def run(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True, cwd=ROOT, env=os.environ, timeout=300)

    done = run()
    assert done.returncode == 0, done.stderr
    for began in ("resnet18: probed in ", "resnet18, training head: 8 rates tried in "):  # minutes pass in between
        assert any(line.startswith(began) for line in done.stdout.splitlines())
    assert "Suggested, and why:" in done.stdout and "test labels read: 0" in done.stdout
    assert "1 of 30 test images is in train, too; such as" in done.stdout
    config = load_config(str(tmp_path / "mine.py"))
    told = json.loads((tmp_path / "mine.json").read_text())
    assert config.optimizer.lr == told["fields"]["optimizer.lr"]
    assert (config.data.source, config.model.width, config.epochs) == (f"folder:{folder}", 4, 1)
    train_it = [sys.executable, "-m", "tljax.main", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]
    ran = subprocess.run(train_it, capture_output=True, text=True, cwd=ROOT, env=os.environ, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "run" / "result.json").is_file()
    for flag, words in (("--layers", "mine.py exists; give another --out"), ("--out=x.txt", "is not a .py file"),
                        ("--backbones=resnet19 --overwrite", "is not known"),
                        ("--config.epochs=0 --overwrite", "epochs=0 is too small")):  # fmt: skip
        wrong = run(*flag.split())
        assert wrong.returncode == 2
        (line,) = wrong.stderr.splitlines()
        assert line.startswith("tljax: ") and words in line
