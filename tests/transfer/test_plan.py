"""The plan: who trains, how fast, with which batch norm."""

import jax
import pytest

from tljax.errors import UserError
from tljax.models import create_model, variable_shapes
from tljax.transfer.plan import BN_MODES, FROZEN, make_phases, make_plan

MODEL = create_model("resnet18", num_classes=5, width=8, blocks=(1, 1, 1, 1))
SHAPES = variable_shapes(MODEL)


def plan(**options):
    return make_plan(MODEL, SHAPES, **{"train": "head", "lr": 1e-3, **options})


def group(made, name):
    return next(g for g in made.groups if g.name == name)


def test_every_parameter_is_labelled_by_its_group_or_frozen():
    made = plan(train="layer2,head")
    assert {label for path, label in made.labels.items() if path[0].startswith("layer2")} == {"layer2"}
    assert {label for path, label in made.labels.items() if path[0] == "fc"} == {"head"}
    rest = {label for path, label in made.labels.items() if path[0] != "fc" and not path[0].startswith("layer2")}
    assert rest == {FROZEN}
    trainable, frozen = made.split(SHAPES["params"])
    assert len(trainable) + len(frozen) == len(jax.tree.leaves(SHAPES["params"]))
    assert made.trainable == sum(x.size for x in trainable.values())


def test_rates_by_group_and_by_depth():
    made = plan(train="all", lr=1.0, lr_decay=0.5, lr_groups="stem:3e-6, layer4:0.25")
    rates = {g.name: g.lr for g in made.groups}
    assert rates == {"stem": 3e-6, "layer1": 0.0625, "layer2": 0.125, "layer3": 0.25, "layer4": 0.25, "head": 1.0}


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
        ({"lr_groups": "head=1"}, ["head=1", "NAME:VALUE"]),
        ({"lr_groups": "head:fast"}, ["fast"]),
        ({"lr_decay": 0.0}, ["lr_decay"]),
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
