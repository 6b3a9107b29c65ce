"""The plan: who trains, how fast, with which batch norm."""

import contextlib
import itertools

import pytest
from flax import traverse_util
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tljax.core.errors import UserError
from tljax.models import BatchNormMode, create_model, variable_shapes
from tljax.transfer.plan import BN_MODES, FROZEN, make_phases, make_plan, merge, prefix_end, read_groups

MODEL = create_model("resnet18", num_classes=5, width=8, blocks=(1, 1, 1, 1))
SHAPES = variable_shapes(MODEL)


def plan(**options):
    return make_plan(MODEL, SHAPES, **{"train": "head", "lr": 1e-3, **options})


def group(made, name):
    return next(g for g in made.groups if g.name == name)


SMALL = {
    "resnet18": MODEL,
    "squeezenet1_1": create_model("squeezenet1_1", num_classes=2, last_stage="fire4"),
    "mini_xception": create_model("mini_xception", num_classes=2, width=8),
}
ALL_SHAPES = {name: variable_shapes(model) for name, model in SMALL.items()}
MODES = ["train", "torch_frozen_params", "eval", "batch", "batch+update", "batch+affine"]
MODES += ["running", "running+update", "running+affine", "running+affine+update"]
SPACE = st.text(" \t\n", max_size=2)


@st.composite
def separated(draw, parts):
    """Parts in any order, with space, empty ones and the same ones again among them."""
    parts = draw(st.permutations([*parts, *draw(st.lists(st.sampled_from(["", *parts]), max_size=2))]))
    return ",".join(draw(SPACE) + part + draw(SPACE) for part in parts)


@st.composite
def wishes(draw):
    """A network, its shapes, and what may be asked of its plan: groups, batch norm, rates."""
    name = draw(st.sampled_from(sorted(SMALL)))
    model = SMALL[name]
    group = st.sampled_from(model.groups)
    who = group | st.sampled_from(["all", "trained", "frozen"])
    words = draw(st.dictionaries(who, st.sampled_from(MODES), max_size=4))
    own = draw(st.dictionaries(group, st.sampled_from([1e-5, 0.5, 3.0]), max_size=3))
    asked = {
        "train": sorted(draw(st.sets(group))), "bn": words, "lr_groups": own, "lr": draw(st.floats(1e-6, 10.0)),
        "lr_decay": draw(st.floats(0.2, 2.0)), "weight_decay": draw(st.sampled_from([0.0, 0.1])),
    }  # fmt: skip
    return name, asked


def made(name, asked, *, write=",".join):
    """The plan, or None where there is nothing to train."""
    bn = write([f"{who}:{mode}" for who, mode in asked["bn"].items()])
    lr_groups = write([f"{group}:{rate}" for group, rate in asked["lr_groups"].items()])
    lists = {"train": write(asked["train"]), "bn": bn if asked["bn"] else "", "lr_groups": lr_groups}
    with contextlib.suppress(UserError):
        return make_plan(SMALL[name], ALL_SHAPES[name], **{**asked, **lists})
    with pytest.raises(UserError, match="trains nothing"):
        make_plan(SMALL[name], ALL_SHAPES[name], **{**asked, **lists})


def mode_of(group, asked):
    """The narrowest word on a group's batch norm."""
    trained = group in asked["train"]
    words = asked["bn"] or {"trained": "train"}
    found = next((words[who] for who in (group, "trained" if trained else "frozen", "all") if who in words), "eval")
    return BN_MODES.get(found) or BatchNormMode(found.startswith("batch"), "update" in found, "affine" in found)


@given(wishes())
def test_a_plan_says_of_every_parameter_whether_it_trains_and_how(wish):
    name, asked = wish
    model, shapes, plan = SMALL[name], ALL_SHAPES[name], made(name, asked)
    params, stats = (traverse_util.flatten_dict(shapes[part]) for part in ("params", "batch_stats"))
    norms = {path[:-1] for path in stats}
    trains = {
        path: mode_of(model.group_of(path), asked).train_affine
        if path[:-1] in norms
        else model.group_of(path) in asked["train"]
        for path in params
    }
    if plan is None:
        assert not any(trains.values())
        return
    assert plan.labels == {path: model.group_of(path) if trains[path] else FROZEN for path in params}
    assert plan.modes == {g: mode_of(g, asked) for g in model.groups if g in {model.group_of(path) for path in stats}}
    trainable, frozen = plan.split(shapes["params"])
    assert {path for path in trains if trains[path]} == set(trainable) and merge(trainable, frozen) == shapes["params"]
    assert plan.trainable + sum(x.size for x in frozen.values()) == sum(g.parameters for g in plan.groups)
    assert sum(g.parameters for g in plan.groups) == sum(x.size for x in params.values())
    assert [g.name for g in plan.groups] == list(model.groups)
    for distance, g in enumerate(reversed(plan.groups)):
        assert g.trained == (g.name in asked["train"]) and g.weight_decay == asked["weight_decay"]
        assert g.trainable == sum(x.size for path, x in trainable.items() if model.group_of(path) == g.name)
        wanted = asked["lr_groups"].get(g.name, asked["lr"] * asked["lr_decay"] ** distance)
        assert g.lr == pytest.approx(wanted, rel=1e-12)


PLAIN = {"train": ["head"], "lr_groups": {}, "lr": 1.0, "lr_decay": 1.0, "weight_decay": 0.0}


@given(wishes())
@example(("resnet18", {**PLAIN, "bn": {"layer2": "running+update"}}))
@example(("resnet18", {**PLAIN, "bn": {"layer2": "batch"}}))
def test_the_constant_prefix_ends_where_training_may_first_change_anything(wish):
    name, asked = wish
    model, plan = SMALL[name], made(name, asked)
    assume(plan is not None)
    moving = {group for group, mode in plan.modes.items() if mode.use_batch or mode.update}
    changing = [g.name for g in plan.groups if g.trainable or g.name in moving]
    first = model.groups.index(changing[0])
    assert plan.constant_prefix == model.groups[:first]
    stage = model.stage_of(changing[0])
    assert prefix_end(model, plan) == (None if stage == model.stages[0] else stage)


@given(wishes(), st.data())
def test_lists_may_come_in_any_order_and_spacing(wish, data):
    name, asked = wish
    assert made(name, asked, write=lambda parts: data.draw(separated(parts))) == made(name, asked)
    given = read_groups("transfer.train", data.draw(separated(asked["train"])), SMALL[name].groups)
    assert given == tuple(group for group in SMALL[name].groups if group in asked["train"])
    everything = make_plan(SMALL[name], ALL_SHAPES[name], train=",".join(SMALL[name].groups), lr=1.0)
    spaced = data.draw(SPACE) + "all" + data.draw(SPACE)
    assert make_plan(SMALL[name], ALL_SHAPES[name], train=spaced, lr=1.0) == everything


@given(st.sampled_from(sorted(SMALL)), st.text(st.characters(exclude_characters=",:"), min_size=1, max_size=9))
def test_a_group_that_there_is_not_is_refused_with_those_that_there_are(name, group):
    assume(group.strip() and group.strip() not in ("all", *SMALL[name].groups))
    for options in (
        {"train": f"head,{group}"}, {"fresh": group}, {"lr_groups": f"{group}:1"}, {"bn": f"{group}0:eval"}
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            make_plan(SMALL[name], ALL_SHAPES[name], **{"train": "head", "lr": 1.0, **options})
        assert ", ".join(SMALL[name].groups) in str(caught.value) and "\n" not in str(caught.value)


def test_batch_norm_by_default_trains_where_weights_train_and_evaluates_elsewhere():
    made = plan(train="layer4,head")
    assert made.modes["layer4"] == BN_MODES["train"]
    assert {mode for name, mode in made.modes.items() if name != "layer4"} == {BN_MODES["eval"]}
    assert group(made, "head").bn is None


def test_batch_norm_of_a_frozen_group_can_train_alone():
    made = plan(bn="eval, layer1:train")
    labels = {path[-1]: label for path, label in made.labels.items() if path[:2] == ("layer1_0", "bn1")}
    assert labels == {"scale": "layer1", "bias": "layer1"}
    assert made.labels["layer1_0", "conv1", "kernel"] == FROZEN
    assert not group(made, "layer1").trained
    assert group(made, "layer1").trainable == 4 * 8


def test_a_group_is_not_told_to_train_where_nothing_in_it_does():
    table = make_plan(
        SMALL["mini_xception"], ALL_SHAPES["mini_xception"], train="norm1,sep4", bn="eval", lr=1.0
    ).table()
    assert {row["state"] for row in table if row["group"] != "sep4"} == {"frozen"}
    assert {row["state"] for row in table if row["group"] == "sep4"} == {"trained"}


def test_batch_norm_of_a_trained_group_can_stay():
    made = plan(train="all", bn="eval")
    assert made.labels["layer1_0", "bn1", "scale"] == FROZEN
    assert made.labels["layer1_0", "conv1", "kernel"] == "layer1"


def test_the_narrowest_word_on_batch_norm_wins():
    made = plan(train="layer4,head", bn="layer4:running, frozen:torch_frozen_params, all:train, stem:batch+affine")
    assert str(made.modes["layer4"]) == "running"
    assert made.modes["layer3"] == BN_MODES["torch_frozen_params"]
    assert str(made.modes["stem"]) == "batch+affine"


@pytest.mark.parametrize(
    "options,prefix",
    [
        ({}, ("stem", "layer1", "layer2", "layer3", "layer4")),
        ({"train": "layer2,head"}, ("stem", "layer1")),
        ({"bn": "eval,layer1:running+update"}, ("stem",)),
        ({"bn": "torch_frozen_params"}, ()),
        ({"bn": "eval,layer3:running+affine"}, ("stem", "layer1", "layer2")),
        ({"train": "all"}, ()),
    ],
)
def test_the_constant_prefix_ends_where_anything_moves(options, prefix):
    assert plan(**options).constant_prefix == prefix


@pytest.mark.parametrize(
    "options,words",
    [
        ({"train": "layer5,head"}, ["layer5", "stem, layer1"]),
        ({"train": ""}, ["trains nothing"]),
        ({"fresh": "tail"}, ["tail", "layer4"]),
        ({"bn": "frozen"}, ["frozen", "torch_frozen_params"]),
        ({"bn": "batch+scale"}, ["batch+scale", "batch+update+affine"]),
        ({"bn": "layer7:eval"}, ["layer7", "trained"]),
        ({"lr": 0.0}, ["optimizer.lr"]),
        ({"lr": float("nan")}, ["optimizer.lr"]),
        ({"lr_groups": "head:1e-3, head:1e-4"}, ["optimizer.lr_groups", "head is given two values"]),
        ({"bn": "eval,train"}, ["transfer.bn", "all is given two values"]),
        ({"lr_groups": "head=1"}, ["head=1", "NAME:VALUE"]),
        ({"lr_groups": "head:fast"}, ["fast"]),
        ({"lr_decay": 0.0}, ["lr_decay"]),
        ({"lr_decay": float("nan")}, ["lr_decay"]),
        ({"train": "all", "lr_decay": 1e-9}, ["stem", "1e-48", "lr_decay=1e-09", "float32"]),
        ({"train": "all", "lr_decay": 1e99}, ["stem", "inf", "float32"]),
        ({"lr_groups": "head:1e39"}, ["head", "1e+39", "float32"]),
        ({"fresh": "head,layer4"}, ["layer4", "fresh and frozen", "allow_fresh_frozen"]),
        ({"fresh": "all"}, ["fresh and frozen"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, words):
    with pytest.raises(UserError) as caught:
        plan(**options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_frozen_random_trunk_when_asked_for():
    assert group(plan(fresh="all", allow_fresh_frozen=True), "stem").fresh


@given(st.lists(st.tuples(st.integers(1, 5), st.none() | st.floats(1e-6, 1.0)), min_size=1, max_size=4), st.data())
def test_phases_follow_each_other_and_cover_the_epochs(spans, data):
    names = [",".join(sorted(data.draw(st.sets(st.sampled_from(MODEL.groups), min_size=1)))) for _ in spans]
    parts = [f"{who}@{n}" + ("" if rate is None else f"@{rate}") for who, (n, rate) in zip(names, spans, strict=True)]
    if spans[-1][1] is None and data.draw(st.booleans()):
        parts[-1] = names[-1]  # takes what remains
    text = ";".join(data.draw(SPACE) + part.replace("@", data.draw(SPACE) + "@") + data.draw(SPACE) for part in parts)
    ends = list(itertools.accumulate((n for n, _ in spans), initial=0))
    phases = make_phases(text, train="", epochs=ends[-1], lr=7.0)
    assert [(p.first, p.last) for p in phases] == list(itertools.pairwise(ends))
    assert [p.train for p in phases] == names
    assert [p.lr for p in phases] == [7.0 if rate is None else rate for _, rate in spans]
    for epochs in (ends[-1] - 1, ends[-1] + 1) if parts[-1] != names[-1] else (ends[-2],):
        with pytest.raises(UserError, match=r"covers|is not GROUPS"):
            make_phases(text, train="", epochs=epochs, lr=7.0)


def test_phases():
    assert [(p.first, p.last, p.train, p.lr) for p in make_phases("", train="head", epochs=5, lr=0.1)] == [
        (0, 5, "head", 0.1)
    ]
    phases = make_phases("head@2; head,layer4@1@0.01; all", train="", epochs=5, lr=0.1)
    assert [(p.first, p.last, p.train, p.lr) for p in phases] == [
        (0, 2, "head", 0.1),
        (2, 3, "head,layer4", 0.01),
        (3, 5, "all", 0.1),
    ]


@pytest.mark.parametrize(
    "text", ["head@2; all@2", "head; all", "head@x", "head@5; all", "head@2@0.1@7; all", "head@0; all"]
)
def test_phases_that_do_not_add_up(text):
    with pytest.raises(UserError, match=r"covers|is not GROUPS"):
        make_phases(text, train="head", epochs=5, lr=0.1)
