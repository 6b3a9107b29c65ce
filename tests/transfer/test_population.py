"""Kept features and populations: the same numbers as plain single runs, for less."""

import json

import jax
import numpy as np
import pytest
from rich.console import Console

from tests import commands, tiny
from tljax import inspect
from tljax.core.errors import UserError
from tljax.run_dir.checkpoint import saved_steps, saved_variables
from tljax.train import feature_cache, single_run, trainer
from tljax.train.setup import prepare
from tljax.transfer.population import members_of

QUIET = Console(quiet=True)
PLAIN = {"augment__crop": "center", "augment__flip": False}


@pytest.fixture
def pretrained(finished):
    """A finished run to start from, so that a frozen prefix is not random."""
    return finished


@pytest.fixture(scope="session")
def squeezed(once, photos):
    """The same of a SqueezeNet, whose head has dropout, cut short."""
    config = squeezenet(photos, model__weights="None", transfer__train="all")
    return once("squeezed", lambda workdir: single_run.run(config, workdir, console=QUIET))


def squeezenet(photos, **overrides):
    name = {"model__name": "squeezenet1_1", "model__width": None, "model__blocks": None, "model__last_stage": "fire2"}
    return tiny.make_config(photos, **(name | {"epochs": 1} | overrides))


def leaves(workdir, step):
    return jax.tree.leaves(saved_variables(workdir, step))


def agree(a, b, tolerance):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


CACHED_CASES = {
    "head of a ResNet": dict(transfer__train="head"),
    "last stage": dict(transfer__train="layer2,head", optimizer__lr_decay=0.5),
    "not contiguous": dict(transfer__train="layer1,head"),
    "in parts, on the devices": dict(transfer__train="head", accumulate=2, data__placement="device"),
}


@pytest.mark.parametrize("case", tiny.quick_first(CACHED_CASES, "last stage", "in parts, on the devices"))
def test_features_that_are_kept_change_nothing(case, photos, pretrained, tmp_path, x64):
    found = []
    for cache in ("auto", "off"):
        config = tiny.make_config(
            photos, model__dtype="float64", model__weights=str(pretrained), cache__features=cache, epochs=2,
            **PLAIN, **CACHED_CASES[case],
        )  # fmt: skip
        result = single_run.run(config, tmp_path / cache, console=QUIET)
        assert (result["features"] is not None) == (cache == "auto")
        found.append((leaves(tmp_path / cache, result["history"][-1]["step"]), result))
    agree(found[0][0], found[1][0], 1e-10)
    for a, b in zip(found[0][1]["history"], found[1][1]["history"], strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-9)
    assert found[0][1]["test"]["correct"] == found[1][1]["test"]["correct"]


def test_dropout_draws_the_same_over_kept_features(photos, squeezed, tmp_path, x64):
    found = []
    for cache in ("auto", "off"):
        config = squeezenet(
            photos, model__dtype="float64", model__weights=str(squeezed), transfer__train="head",
            cache__features=cache, **PLAIN,
        )  # fmt: skip
        result = single_run.run(config, tmp_path / cache, console=QUIET)
        found.append(leaves(tmp_path / cache, result["best_step"]))
    agree(*found, 1e-10)


def test_views_are_those_of_the_first_epochs(photos, pretrained, tmp_path, x64):
    """With as many views as epochs, training is that without a cache; the file gives what memory gives."""
    found = []
    for name, options in {
        "plain": {},
        "views": {"cache__views": 2},
        "file": {"cache__views": 2, "cache__memory_gb": 1e-9},
    }.items():
        config = tiny.make_config(
            photos, model__dtype="float64", model__weights=str(pretrained), transfer__train="head", epochs=2, **options
        )
        result = single_run.run(config, tmp_path / name, console=QUIET)
        found.append(leaves(tmp_path / name, result["history"][-1]["step"]))
        assert (result["features"] or {}).get("views", 0) == options.get("cache__views", 0)
    agree(found[0], found[1], 1e-10)
    agree(found[1], found[2], 0)
    assert result["features"]["in"] == "file"
    assert not list((tmp_path / "file").glob("features-*"))  # a finished run needs them no more


def test_features_of_half_precision_are_kept_in_a_file(photos, pretrained, tmp_path):
    found = []
    for name, size in (("memory", 0.0), ("file", 1e-9)):
        config = tiny.make_config(
            photos, model__dtype="bfloat16", model__weights=str(pretrained), transfer__train="head", epochs=2,
            cache__memory_gb=size, **PLAIN,
        )  # fmt: skip
        result = single_run.run(config, tmp_path / name, console=QUIET)
        assert result["features"]["in"] == name
        found.append(leaves(tmp_path / name, result["history"][-1]["step"]))
    agree(*found, 0)


def test_a_damaged_file_of_features_is_not_used(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 1, 3)).astype(np.float32)
    file = tmp_path / "features-train-0.npy"
    feature_cache.collect(iter([(0, 0, values[:, 0])]), values.shape, values.dtype, file=file, key="k")
    np.testing.assert_array_equal(feature_cache.reopen(file, "k", np.float32), values)
    assert feature_cache.reopen(file, "another", np.float32) is None
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert feature_cache.reopen(file, "k", np.float32) is None


def test_a_full_disk_ends_no_run_that_can_do_without_features(photos, pretrained, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache.os, "posix_fallocate", full, raising=False)
    options = {"model__weights": str(pretrained), "transfer__train": "head", "epochs": 1, "cache__memory_gb": 1e-9}
    result = single_run.run(tiny.make_config(photos, **options, **PLAIN), tmp_path / "run", console=QUIET)
    assert result["features"] is None
    with pytest.raises(UserError, match="No space left on device; make room"):
        single_run.run(tiny.make_config(photos, cache__views=1, **options), tmp_path / "views", console=QUIET)


@pytest.mark.parametrize(
    "options", [{"cache__features": "off"}, {"transfer__train": "all"}, {"protocol__augmented_copies": 1}]
)
def test_views_that_could_not_be_kept_are_refused(photos, pretrained, tmp_path, options):
    settings = {"model__weights": str(pretrained), "transfer__train": "head", "cache__views": 2} | options
    with pytest.raises(UserError, match=r"cache\.views"):
        single_run.run(tiny.make_config(photos, **settings), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_what_is_told_of_features_survives_a_lost_ending(photos, pretrained, tmp_path):
    """Stopped between its last checkpoint and result.json, a run still says what it trained on."""
    config = tiny.make_config(photos, model__weights=str(pretrained), transfer__train="head", epochs=1, **PLAIN)
    told = single_run.run(config, tmp_path / "run", console=QUIET)["features"]
    (tmp_path / "run" / "result.json").unlink()
    assert single_run.run(config, tmp_path / "run", console=QUIET)["features"] == told


def test_what_the_plan_calls_fresh_is_not_loaded_however_it_is_written(photos, pretrained):
    for text in ("layer2,head", "head,\tlayer2", " all ", "all"):
        config = tiny.make_config(photos, model__weights=str(pretrained), transfer__fresh=text)
        experiment, _ = prepare(config, None, QUIET)
        assert {g.name for g in experiment.plans[0][0].groups if g.fresh} == set(experiment.origin["fresh"])


def test_features_are_not_kept_where_something_random_reaches_them(photos, pretrained, tmp_path):
    config = tiny.make_config(photos, model__weights=str(pretrained), transfer__train="head", epochs=1)
    assert single_run.run(config, tmp_path / "run", console=QUIET)["features"]["splits"] == ["val"]
    moving = tiny.make_config(
        photos, model__weights=str(pretrained), transfer__train="head", transfer__bn="torch_frozen_params", epochs=1,
        **PLAIN,
    )  # fmt: skip
    assert single_run.run(moving, tmp_path / "moving", console=QUIET)["features"] is None


POPULATIONS = {
    "heads": (dict(transfer__train="head", **PLAIN), dict(lr=(1e-3, 1e-2), seed=(0, 7))),
    "optimizers": (
        dict(transfer__train="head", **PLAIN),
        dict(optimizer=("adam", "sgd"), lr=(1e-3, 1e-2), weight_decay=(0.0, 1e-2)),
    ),
    "stages": (
        dict(transfer__train="layer2,head", optimizer__lr_decay=0.5, optimizer__clip=1.0, **PLAIN),
        dict(lr=(1e-3, 1e-2), schedule=("constant", "cosine")),
    ),
    "everything, augmented": (dict(transfer__train="all", augment__crop="random"), dict(lr=(1e-3, 3e-3))),
    "own rates": (dict(transfer__train="layer2,head"), dict(lr_groups=("", "layer2:1e-5"))),
}


@pytest.mark.parametrize("case", tiny.quick_first(POPULATIONS, "optimizers", "stages"))
def test_each_member_ends_where_its_own_single_run_would(case, photos, pretrained, tmp_path, x64):
    options, axes = POPULATIONS[case]
    tolerance = 1e-10 if PLAIN.items() <= options.items() else 1e-6  # random crops are sampled in float32
    config = tiny.make_config(
        photos, model__dtype="float64", model__weights=str(pretrained), epochs=2, **options,
        **{f"population__{axis}": values for axis, values in axes.items()},
    )  # fmt: skip
    together = single_run.run(config, tmp_path / "all", console=QUIET)
    members = members_of(config)
    assert len(together["members"]) == len(members) == np.prod([len(v) for v in axes.values()])
    everything = saved_variables(tmp_path / "all", saved_steps(tmp_path / "all")[-1])
    for m in (0, len(members) - 1):  # of the first and the last family
        member = members[m]
        alone = single_run.run(member.config, tmp_path / str(m), console=QUIET)
        single = saved_variables(tmp_path / str(m), alone["history"][-1]["step"])
        for stacked, own in zip(jax.tree.leaves(everything), jax.tree.leaves(single), strict=True):
            mine = stacked[m] if stacked.ndim > own.ndim else stacked
            np.testing.assert_allclose(mine, own, rtol=tolerance, atol=tolerance)
        row = together["members"][m]
        assert row["settings"] == member.settings
        assert row["test"]["correct"] == alone["test"]["correct"]
        assert row["validation"]["best_epoch"] == alone["validation"]["best_epoch"]
        written = json.loads((tmp_path / "all" / row["folder"] / "result.json").read_text())
        for a, b in zip(written["history"], alone["history"], strict=True):
            assert a["val_loss"] == pytest.approx(b["val_loss"], rel=10 * tolerance)
        assert written["config"] == json.loads(json.dumps(alone["config"]))


def test_a_population_that_was_interrupted_goes_on_as_if_it_had_not_been(photos, pretrained, tmp_path, monkeypatch):
    def config(epochs):
        return tiny.make_config(
            photos,
            model__weights=str(pretrained),
            transfer__train="head",
            epochs=epochs,
            population__lr=(1e-3, 3e-2),
            **PLAIN,
        )

    whole = single_run.run(config(3), tmp_path / "whole", console=QUIET)
    saves = []
    save = trainer.Trainer.save

    def save_and_die(self, **options):
        save(self, **options)
        self.checkpoints.wait()
        saves.append(self.step)
        if len(saves) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        single_run.run(config(3), tmp_path / "cut", console=QUIET)
    again = single_run.run(config(3), tmp_path / "cut", console=QUIET)
    assert again["members"] == whole["members"]
    assert inspect.main([str(tmp_path / "cut")]) == 0
    with pytest.raises(UserError, match="folder of a population"):
        single_run.run(tiny.make_config(photos, model__weights=str(tmp_path / "cut")), tmp_path / "next", console=QUIET)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(population__lr=(1e-3, 1e-3)), "twice"),
        (dict(population__lr=("fast",)), "does not fit optimizer.lr"),
        (dict(population__lr=(-1.0,)), "not a positive number"),
        (dict(population__optimizer=("adam", "lion")), "not one of adam, adamw, sgd"),
        (dict(population__lr=(1e-3,), transfer__phases="head@1; all"), "do not go together"),
        (dict(cache__features="yes"), "auto, off"),
        (dict(data__placement="moon"), "auto, host, device"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(options, words, photos, tmp_path):
    with pytest.raises(UserError, match=words):
        single_run.run(tiny.make_config(photos, **options), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{}, pytest.param({"population__lr": (1e-3, 2e-3)}, marks=pytest.mark.slow)])
def test_nothing_is_compiled_after_the_first_epoch(photos, pretrained, tmp_path, monkeypatch, options):
    counts, compiled = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    log = trainer.Trainer.log
    monkeypatch.setattr(
        trainer.Trainer, "log", lambda self, rows, writer: (log(self, rows, writer), counts.append(len(compiled)))
    )
    config = tiny.make_config(photos, model__weights=str(pretrained), epochs=4, **options)
    single_run.run(config, tmp_path / "run", console=QUIET)
    assert counts[0] > 0
    assert counts[1] - counts[0] <= 3  # what closes an epoch and what saves it ran for the first time
    assert counts[1] == counts[-1]


@pytest.mark.slow
def test_a_population_on_the_command_line(photos, tmp_path):
    overrides = {"data.source": f"folder:{photos}", "epochs": 1, "population.lr": "(1e-4, 1e-3)"}
    done = commands.run("configs/folder.py", tmp_path / "run", commands.TINY | overrides)
    assert done.returncode == 0, done.stderr
    assert "validation's choice" in done.stdout
    assert "2 members" in done.stdout
