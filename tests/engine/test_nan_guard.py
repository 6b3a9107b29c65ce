"""Numbers that go wrong: the run stops at that step, keeps what was good, and says where it began."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tljax.core.errors import UserError
from tljax.data import load
from tljax.engine.nan_guard import first_nonfinite, skip_nonfinite_updates
from tljax.run_dir.checkpoint import saved_steps, saved_variables
from tljax.run_dir.train_state import TrainState
from tljax.train import single_run

PHASES = "all@1@1e-3; all@2@1e30"


def strict(path):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_run_stops_at_the_step_and_keeps_the_checkpoint_before(photos, tmp_path):
    config = tiny.make_config(photos, transfer__phases=PHASES, optimizer__name="sgd")
    with pytest.raises(UserError) as said:
        single_run.run(config, tmp_path / "run")
    words = str(said.value)
    assert "of epoch 2; learning rate 1e+30" in words
    assert "the checkpoint of step 5 is kept" in words
    assert saved_steps(tmp_path / "run") == [5]
    kept = saved_variables(tmp_path / "run", 5)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(kept))
    assert not (tmp_path / "run" / "result.json").exists()
    with pytest.raises(UserError) as again:  # it goes on from there, and meets the same step
        single_run.run(config, tmp_path / "run")
    assert str(again.value) == words


def test_the_stopped_run_may_go_on_all_the_same(photos, tmp_path):
    config = tiny.make_config(photos, transfer__phases=PHASES, optimizer__name="sgd")
    with pytest.raises(UserError, match="stop_at_nan=False"):
        single_run.run(config, tmp_path)
    config.stop_at_nan = False
    result = single_run.run(config, tmp_path)
    assert 5 <= result["diverged_step"] < 10
    written = strict(tmp_path / "result.json")
    assert written["history"][-1]["train_loss"] is None
    assert written["best_step"] == 5  # validation chose the epoch before


def test_a_member_that_diverges_is_marked_and_leaves_the_others_alone(photos, tmp_path):
    alone = single_run.run(tiny.make_config(photos, optimizer__name="sgd"), tmp_path / "alone")
    config = tiny.make_config(photos, optimizer__name="sgd", population__lr=(1e30, 3e-3))
    single_run.run(config, tmp_path / "both")
    first, second = (strict(tmp_path / "both" / "members" / m / "result.json") for m in ("000", "001"))
    assert first["diverged_step"] in (0, 1)
    assert second["diverged_step"] is None
    assert [row["train_loss"] for row in second["history"]] == pytest.approx(
        [row["train_loss"] for row in alone["history"]], rel=1e-5
    )


@pytest.mark.parametrize("where", ["conv1", "layer2_0"])
def test_the_group_where_it_began_is_named(photos, tmp_path, where, monkeypatch):
    """A parameter that is not finite from the start; forwards the first stage that shows it is the one it lies in."""
    real = single_run.prepare

    def broken(*args):
        experiment, variables = real(*args)
        flat = dict(jax.tree_util.tree_flatten_with_path(variables["params"])[0])
        path = next(p for p in flat if p[0].key == where)

        def spoil(p, v):
            return v.at[(0,) * v.ndim].set(jnp.nan) if p == path else v

        params = jax.tree_util.tree_map_with_path(spoil, jax.tree.map(jnp.asarray, variables["params"]))
        return experiment, {**variables, "params": params}

    monkeypatch.setattr(single_run, "prepare", broken)
    config = tiny.make_config(photos, transfer__train="layer2,head", transfer__allow_fresh_frozen=True)
    with pytest.raises(UserError) as said:
        single_run.run(config, tmp_path / "run")
    group = {"conv1": "stem (frozen)", "layer2_0": "layer2 (rate 0.003)"}[where]
    assert f"the loss is nan; the first that is not finite is the output of {group}" in str(said.value)
    assert "there is no checkpoint yet" in str(said.value)


def plan_of(*groups):
    made = [types.SimpleNamespace(name=name, trainable=trainable, lr=0.1) for name, trainable in groups]
    return types.SimpleNamespace(
        groups=made,
        labels={("a",): "a", ("b",): "b"},
        split=lambda params: ({("a",): params["a"], ("b",): params["b"]}, {}),
    )


def state_of(**params):
    return TrainState(step=jnp.int32(0), params=params, batch_stats={}, opt_state=())


def test_a_step_that_is_not_sound_changes_nothing_and_neither_do_those_after_it():
    plan = plan_of(("a", 1), ("b", 1))

    def step(state, batch, key):
        params = jax.tree.map(lambda v: v + batch["by"], state.params)
        return state.replace(step=state.step + 1, params=params), {"loss": batch["by"], "grad_norm": jnp.ones(())}

    run = jax.jit(skip_nonfinite_updates(step, plan, alone=True, stop=True))
    state = state_of(a=jnp.zeros(2), b=jnp.zeros(3))
    sound = []
    for number, by in enumerate([1.0, np.nan, 1.0]):
        state, metrics = run(state, {"by": jnp.float32(by), "number": jnp.int32(number)}, None)
        sound.append(bool(metrics["all_finite"]))
    assert sound == [True, False, True]
    assert int(state.step) == 1
    np.testing.assert_array_equal(state.params["a"], [1, 1])
    goes_on = jax.jit(skip_nonfinite_updates(step, plan, alone=True, stop=False))
    state, metrics = goes_on(state, {"by": jnp.float32(np.nan), "number": jnp.int32(1)}, None)
    assert np.isnan(state.params["a"]).all()
    assert int(state.step) == 2


def test_members_are_told_apart():
    plan = plan_of(("a", 1), ("b", 1))

    def step(state, batch, key):
        return state, {"loss": jnp.ones(2), "grad_norm": jnp.array([1.0, 2.0])}

    state = state_of(a=jnp.array([[1.0, 2.0], [1.0, jnp.inf]]), b=jnp.ones((2, 1)))
    metrics = skip_nonfinite_updates(step, plan, alone=False, stop=True)(state, {"number": jnp.int32(0)}, None)[1]
    assert metrics["all_finite"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("loss", "norms", "updated", "words"),
    [
        (1.0, {"a": np.inf, "b": 1.0}, {"a": False, "b": True}, "the gradient of a (rate 0.1) is not finite"),
        (1.0, {"a": np.nan, "b": np.nan}, {"a": False, "b": False}, "the gradient of b (rate 0.1)"),
        (1.0, {"a": 1.0, "b": 1.0}, {"a": False, "b": True}, "the parameters of a (rate 0.1) are not after the update"),
        (np.nan, {}, {}, "the loss is nan; the first that is not finite is the output of b"),
    ],
)
def test_backwards_it_begins_nearest_to_the_head_and_forwards_nearest_to_the_picture(loss, norms, updated, words):
    metrics = {"loss": loss, "norms": norms, "updated": updated}
    said = first_nonfinite(
        plan_of(("a", 1), ("b", 1)), metrics, lambda: {"input": 1, "a": 1, "b": 0, "pool": 0}, ["a", "b"]
    )
    assert words in said


@pytest.mark.parametrize("label", [-1, 3, 999])
def test_labels_out_of_range_are_refused_before_training(photos, tmp_path, monkeypatch, label):
    real = load.open_source

    def wrong(*args, **options):
        source = real(*args, **options)
        labels = source.labels.copy()
        labels[5] = label
        return dataclasses.replace(source, labels=labels)

    monkeypatch.setattr(load, "open_source", wrong)
    with pytest.raises(UserError, match=rf"the label {label}, but its 3 classes are numbered from 0 to 2"):
        single_run.run(tiny.make_config(photos), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_head_of_the_wrong_size_is_refused_before_training(photos, tmp_path):
    """Of weights for four classes, and of a number of outputs that is too small for three."""
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    shutil.copytree(other / "red", other / "scarlet")
    single_run.run(tiny.make_config(other, epochs=1), tmp_path / "four")
    kept = tiny.make_config(photos, model__weights=str(tmp_path / "four"), transfer__fresh="")
    with pytest.raises(UserError, match=r"tells apart blue, green, red, .*, not the classes of"):
        single_run.run(kept, tmp_path / "run")
    with pytest.raises(UserError, match=r"model.outputs=2 does not fit .* on 3 classes; it needs 3"):
        single_run.run(tiny.make_config(photos, model__outputs=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()
