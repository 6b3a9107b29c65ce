"""Populations: the single runs that one program computes side by side, each with its own config."""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from tljax.core.errors import UserError
from tljax.transfer.optimizer import Schedule, make_optimizer
from tljax.transfer.plan import Plan

AXES = {
    "optimizer": "optimizer.name",
    "momentum": "optimizer.momentum",
    "schedule": "schedule.name",
    "lr": "optimizer.lr",
    "lr_groups": "optimizer.lr_groups",
    "weight_decay": "optimizer.weight_decay",
    "seed": "transfer.seed",
}
"""What members may differ in, and the field of a single run's config that says it. The slowest axis comes first."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One member.

    Attributes:
      settings: what tells it from the others, by axis; empty for a single run.
      config: the config of the single run that it is.
    """

    settings: Mapping[str, Any]
    config: Any


def is_population(config: Any) -> bool:
    """Whether a config asks for one, be it of one member."""
    return any(len(config.population[axis]) for axis in AXES)


def members_of(config: Any) -> tuple[Member, ...]:
    """All combinations of the axes, or the single run that a config without a population is.

    Raises:
      UserError: for values that do not fit, values that come twice, or a population with phases.
    """
    if not is_population(config):
        return (Member({}, config),)
    if config.transfer.phases:
        raise UserError("population.* and transfer.phases do not go together; give the members one phase")
    given = {axis: tuple(config.population[axis]) for axis in AXES if len(config.population[axis])}
    for axis, values in given.items():
        if not all(isinstance(value, int | float | str) for value in values):
            raise UserError(f"population.{axis}={values} is not a row of plain values, as in (1e-3, 1e-4)")
        if len(set(values)) < len(values):
            raise UserError(f"population.{axis}={values} has a value twice")
    members = []
    for values in itertools.product(*given.values()):
        settings = dict(zip(given, values, strict=True))
        single: Any = ConfigDict(config.to_dict())  # a copy whose fields can be set
        for axis, value in settings.items():
            part, field = AXES[axis].split(".")
            kind = {"lr": float, "weight_decay": float, "momentum": float, "seed": int}.get(axis, str)
            if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
                raise UserError(f"population.{axis}={given[axis]}: {value!r} does not fit {AXES[axis]}")
            single[part][field] = kind(value)
        for axis in AXES:
            single.population[axis] = ()
        members.append(Member(settings, single.lock()))
    return tuple(members)


@dataclasses.dataclass(frozen=True)
class Family:
    """Members of a population that share the form of their optimizer. A single run is one family of one member.

    Attributes:
      optimizer: the hyperparameters of one member -> its optimizer.
      hyper: hyperparameters; in a population every leaf has a leading axis of members.
      schedules: one per member, from steps since the phase began to the factor on the rates.
    """

    optimizer: Callable[[Any], optax.GradientTransformationExtraArgs]
    hyper: Any
    schedules: tuple[Schedule, ...]

    @classmethod
    def single(cls, tx: optax.GradientTransformationExtraArgs, schedule: Schedule) -> "Family":
        """The family of a single run."""
        return cls(lambda hyper: tx, {}, (schedule,))


@contextlib.contextmanager
def as_typed(member: Member) -> Iterator[None]:
    """Within it a UserError names the fields of `population` that a member's values come from, not the member's own."""
    try:
        yield
    except UserError as error:
        words = str(error)
        for axis in member.settings:
            words = re.sub(rf"\b{re.escape(AXES[axis])}\b", f"population.{axis}", words)
        raise UserError(words) from None


def make_families(
    members: Sequence[Member], plans: Sequence[Plan], schedules: Sequence[Schedule], *, dtype: Any = jnp.float32
) -> list[Family]:
    """Members in their order, those with the same form of optimizer in one family; `dtype` is the parameters'."""
    families = []
    together = itertools.groupby(
        zip(members, plans, schedules, strict=True),
        key=lambda m: (m[0].config.optimizer.name, m[0].config.optimizer.momentum),
    )
    for (name, momentum), found in together:
        mine = list(found)
        own_plans = [plan for _, plan, _ in mine]
        config = mine[0][0].config.optimizer
        hyper: dict[str, Any] = {
            "lr": {
                g.name: jnp.asarray([p.groups[i].lr for p in own_plans], jnp.float32)
                for i, g in enumerate(own_plans[0].groups)
                if g.trainable
            }
        }
        decays = [plan.groups[0].weight_decay for plan in own_plans]
        if any(decays):
            hyper["weight_decay"] = jnp.asarray(decays, dtype)
        families.append(
            Family(
                _optimizer(own_plans[0], name, momentum, config.clip, config.decay_all),
                hyper,
                tuple(schedule for _, _, schedule in mine),
            )
        )
    return families


def _optimizer(plan: Plan, name: str, momentum: float, clip: float, decay_all: bool) -> Callable[[Any], Any]:
    def optimizer(hyper: Any) -> Any:
        groups = [
            dataclasses.replace(
                g, lr=hyper["lr"].get(g.name, g.lr), weight_decay=hyper.get("weight_decay", g.weight_decay)
            )
            for g in plan.groups
        ]
        return make_optimizer(
            dataclasses.replace(plan, groups=tuple(groups)),
            name=name,
            momentum=momentum,
            clip=clip,
            decay_all=decay_all,
        )

    return optimizer
