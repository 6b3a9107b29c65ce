"""Whatever a field of a config is set to, it is taken or refused in one line, before anything is opened."""

import math

import pytest

from tests import tiny
from tljax.core.errors import UserError
from tljax.settings.dotted import field_of, flatten, with_fields
from tljax.settings.fields import get_config
from tljax.settings.validate import check_fields
from tljax.train.checks import check
from tljax.train.setup import outline

USUAL = flatten(get_config().to_dict())
KINDS = {name: field_of(get_config(), name.split(".")[:-1]).get_type(name.rpartition(".")[2]) for name in USUAL}
OF_NETWORK = {"model.width", "model.dropout", "model.stochastic_depth", "optimizer.lr", "optimizer.lr_decay"}
"""Numbers that are looked at with the network."""


def refused(name, value, look=check):
    """Whether a function refuses a config with this value, which it does in one line that names the field."""
    said = ""
    try:
        look(with_fields(tiny.make_config("photos"), {name: value}))
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert not said or name.rpartition(".")[2] in said
    return bool(said)


@pytest.mark.parametrize("value", [None, math.nan, -math.inf, "x", b"x", (1,), {"a": 1}, Ellipsis], ids=repr)
def test_a_number_is_a_number(value):
    for name in (name for name, kind in KINDS.items() if kind in (int, float)):
        assert refused(name, value) or (value is None and USUAL[name] is None), name


@pytest.mark.parametrize("value", [0, -1, 2**31, 2**70])
def test_a_number_out_of_range_is_refused(value):
    accepted = [name for name, kind in KINDS.items() if kind in (int, float) and not refused(name, value)]
    if value == -1:
        assert set(accepted) == OF_NETWORK
        assert all(refused(name, value, outline) for name in OF_NETWORK)
    if value == 2**31:
        assert [name for name in accepted if KINDS[name] is int and name not in OF_NETWORK and "seed" not in name] == []
    if value == 2**70:
        assert not {name for name in accepted if "seed" in name}


@pytest.mark.parametrize("value", [None, 3, 2.5, True, b"x", ["x"]], ids=repr)
def test_text_is_text(value):
    free = {"model.weights"} | {name for name, usual in USUAL.items() if usual is None}
    for name in (name for name, kind in KINDS.items() if kind is str):
        assert refused(name, value) or (value is None and name in free), name


def test_a_whole_number_that_no_float_holds_is_refused():
    for name in ("epochs", "seed"):
        assert refused(name, 10**400)
    for name in (name for name, kind in KINDS.items() if kind is tuple):
        assert refused(name, (10**400,)), name


def test_text_with_a_nul_is_refused():
    for name in (name for name, kind in KINDS.items() if kind is str):
        assert refused(name, "folder:x\0"), name


def test_a_switch_is_a_switch_and_several_values_stand_in_brackets():
    for name, kind in KINDS.items():
        if kind is bool:
            assert refused(name, 1) and refused(name, None) and refused(name, "True"), name
        if kind is tuple:
            assert refused(name, 3) and (refused(name, None) or USUAL[name] is None), name


def test_a_config_without_a_field_says_which():
    config = with_fields(tiny.make_config("photos"), {})
    with config.unlocked():
        del config.optimizer.lr
    with pytest.raises(UserError, match=r"no optimizer\.lr; begin with tljax/settings/fields\.py"):
        check(config)


def test_what_is_open_may_be_none():
    config = with_fields(tiny.make_config("photos"), {"epochs": None})
    check_fields(config, opened=["epochs"])
    with pytest.raises(UserError, match="epochs=None does not fit; it takes a whole number"):
        check_fields(config)


@pytest.mark.parametrize(
    "name,value,words",
    [
        ("population.lr", (0.0, 1e-3), "population.lr=0"),
        ("population.lr_groups", ("", "head:-1"), "population.lr_groups"),
        ("population.optimizer", ("adam", "rmsprop"), "population.optimizer='rmsprop'"),
        ("population.schedule", ("cosine", "linear"), "population.schedule='linear'"),
        ("population.momentum", (0.5, 1.5), "population.momentum=1.5"),
        ("population.seed", (0, -1), "population.seed=-1"),
        ("transfer.phases", "all@1@0;all@1", "transfer.phases='all@1@0;all@1': the rate 0 of 'all@1@0'"),
        ("transfer.phases", "all@1@nan;all@1", "transfer.phases='all@1@nan;all@1': the rate nan"),
    ],
)
def test_a_value_of_a_population_or_phase_is_told_as_it_was_typed(name, value, words):
    config = with_fields(tiny.make_config("photos"), {"epochs": 2, name: value})
    with pytest.raises(UserError) as caught:
        check(config) or outline(config)
    assert words in str(caught.value)
    assert "optimizer." not in str(caught.value).replace("population.optimizer", "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.size", 100_000),
        ("data.resize", 100_000),
        ("model.blocks", (100_000,)),
        ("batch_size", 10**9),
        ("cache.views", 10**6),
    ],
)
def test_numbers_that_would_hang_or_fill_a_machine_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name}=.* is too large; it is at most"):
        check_fields(with_fields(get_config(), {name: value}))


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ("heda@1; all", "a phase of transfer.phases='heda' names 'heda'"),
        ("stem@1; all", "add it to a phase of transfer.phases"),
    ],
)
def test_groups_of_a_phase_are_refused_by_the_field_that_names_them(phases, words):
    fields = {"epochs": 2, "transfer.phases": phases, "transfer.allow_fresh_frozen": False, "transfer.fresh": "head"}
    with pytest.raises(UserError) as caught:
        outline(with_fields(tiny.make_config("photos"), fields))
    assert words in str(caught.value)
