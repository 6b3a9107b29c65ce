"""The plan: which groups train, at which rate, with which batch norm. Made once, read by everybody else."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from tljax.core.errors import UserError
from tljax.models import BatchNormMode, Network

Path = tuple[str, ...]

FROZEN = "frozen"
"""The label of a parameter that does not train."""

RATES = (float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max))
"""What a learning rate may be: below it a group would be frozen, though the plan says that it trains."""

BN_MODES: dict[str, BatchNormMode] = {
    "train": BatchNormMode(use_batch=True, update=True, train_affine=True),
    # PyTorch's `requires_grad = False` on a module that was left in train() mode.
    "torch_frozen_params": BatchNormMode(use_batch=True, update=True, train_affine=False),
    # Keras's `trainable = False`, and PyTorch's eval() with frozen parameters.
    "eval": BatchNormMode(use_batch=False, update=False, train_affine=False),
}


@dataclasses.dataclass(frozen=True)
class GroupPlan:
    """One line of the plan.

    Attributes:
      name: the group.
      parameters: how many numbers it has.
      trained: whether its weights train. Batch-norm scales and biases follow `bn.train_affine` instead.
      trainable: how many of its numbers train.
      fresh: whether it starts from random numbers.
      lr: its learning rate, before the schedule; what trains in it trains at this rate.
      weight_decay: its weight decay.
      bn: its batch-norm mode; None where it has no batch norm.
    """

    name: str
    parameters: int
    trained: bool
    trainable: int
    fresh: bool
    lr: float
    weight_decay: float
    bn: BatchNormMode | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What trains. `groups` in the network's order; `labels` maps every parameter's path to its group or `FROZEN`."""

    groups: tuple[GroupPlan, ...]
    labels: Mapping[Path, str]

    @property
    def modes(self) -> dict[str, BatchNormMode]:
        """Batch-norm mode by group, for `models.ForwardContext`."""
        return {g.name: g.bn for g in self.groups if g.bn is not None}

    @property
    def trainable(self) -> int:
        return sum(g.trainable for g in self.groups)

    @property
    def label_tree(self) -> dict[str, Any]:
        """The labels as a tree of the parameters' own shape, for `optax.multi_transform`."""
        return traverse_util.unflatten_dict(dict(self.labels))

    @property
    def constant_prefix(self) -> tuple[str, ...]:
        """The first groups whose output for an image is the same all through the run: nothing in them trains, and
        their batch norms neither look at the batch nor move."""
        prefix = []
        for g in self.groups:
            if g.trainable or (g.bn is not None and (g.bn.use_batch or g.bn.update)):
                break
            prefix.append(g.name)
        return tuple(prefix)

    def split(self, params: Any) -> tuple[dict[Path, Any], dict[Path, Any]]:
        """Parameters as two flat dictionaries by path: those that train, those that do not."""
        flat = traverse_util.flatten_dict(params)
        return (
            {p: v for p, v in flat.items() if self.labels[p] != FROZEN},
            {p: v for p, v in flat.items() if self.labels[p] == FROZEN},
        )

    def as_rows(self) -> list[dict[str, Any]]:
        """One row of plain values per group, for `result.json`."""
        return [{**dataclasses.asdict(g), "bn": None if g.bn is None else str(g.bn)} for g in self.groups]

    def table(self) -> list[dict[str, str]]:
        """One row per group, as a run prints it."""
        rows = []
        for g in self.groups:
            state = "frozen" if not g.trainable else "trained" if g.trained else "norms trained"
            rows.append(
                {
                    "group": g.name,
                    "parameters": f"{g.parameters:,}",
                    "state": state + (", fresh" if g.fresh else ""),
                    "rate": f"{g.lr:.3g}" if g.trainable else "-",
                    "decay": f"{g.weight_decay:.3g}" if g.trainable else "-",
                    "batch norm": "-" if g.bn is None else str(g.bn),
                }
            )
        return rows


def merge(*parts: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of `Plan.split`."""
    flat: dict[Path, Any] = {}
    for part in parts:
        flat.update(part)
    return traverse_util.unflatten_dict(flat)


def prefix_end(model: Network, plan: Plan) -> str | None:
    """The first stage that training can change; None where that is the first of all, so that nothing can be kept."""
    constant = plan.constant_prefix
    changing = {model.stage_of(group) for group in model.groups if group not in constant}
    first = next(stage for stage in model.stages if stage in changing)
    return first if first != model.stages[0] else None


def make_plan(
    model: Network,
    variables: Any,
    *,
    train: str,
    fresh: str = "",
    bn: str = "",
    lr: float,
    lr_groups: str = "",
    lr_decay: float = 1.0,
    weight_decay: float = 0.0,
    allow_fresh_frozen: bool = False,
    asked_by: str = "transfer.train",
) -> Plan:
    """Decides, once, what a run (or a phase of one) trains.

    Args:
      model: gives the groups.
      variables: parameters and statistics, or their shapes.
      train: groups separated by commas, or 'all'. They need not be contiguous.
      fresh: groups that start from random numbers.
      bn: a batch-norm mode for all groups, or `WHO:MODE` pairs separated by commas, where WHO is a group, `trained`,
        `frozen` or `all` and the narrowest word wins. MODE is a key of `BN_MODES`, or its three switches spelt out as
        in `batch+update+affine` or `running`. The default is `trained:train,frozen:eval`.
      lr: the base learning rate.
      lr_groups: `GROUP:RATE` pairs for groups that have one of their own, whatever `lr` and `lr_decay` say.
      lr_decay: the factor from each group to the next one further from the head, 1 for the same rate everywhere.
      weight_decay: for all trained groups; the optimizer leaves out biases and batch norms.
      allow_fresh_frozen: train over a group that is both fresh and frozen, instead of refusing.
      asked_by: what named `train`, for messages.

    Raises:
      UserError: for a group, a mode or a rate that does not exist, or a plan that trains nothing or cannot work.
    """
    names = model.groups
    trained = read_groups(asked_by, train, names)
    started = read_groups("transfer.fresh", fresh, names)
    modes = _modes(bn or "trained:train,frozen:eval", names, trained)
    if not 0 < lr < float("inf"):
        raise UserError(f"optimizer.lr={lr} is not a positive number")
    if not 0 < lr_decay < float("inf"):
        raise UserError(f"optimizer.lr_decay={lr_decay} is not a positive number")
    own_rates = {group: _rate(group, rate) for group, rate in _pairs("optimizer.lr_groups", lr_groups, names)}
    _refuse_fresh_frozen(names, trained, started, allow_fresh_frozen, asked_by)

    flat: dict[Path, Any] = dict(traverse_util.flatten_dict(variables["params"]))
    norms = {path[:-1] for path in traverse_util.flatten_dict(variables["batch_stats"])}
    with_norm = {model.group_of(path) for path in norms}
    labels = {}
    for path in flat:
        group = model.group_of(path)
        trains = modes[group].train_affine if path[:-1] in norms else group in trained
        labels[path] = group if trains else FROZEN

    groups = []
    for depth, name in enumerate(reversed(names)):
        sizes = {p: int(x.size) for p, x in flat.items() if model.group_of(p) == name}
        groups.append(
            GroupPlan(
                name=name,
                parameters=sum(sizes.values()),
                trained=name in trained,
                trainable=sum(n for p, n in sizes.items() if labels[p] != FROZEN),
                fresh=name in started,
                lr=own_rates[name] if name in own_rates else _decayed(lr, lr_decay, depth),
                weight_decay=weight_decay,
                bn=modes[name] if name in with_norm else None,
            )
        )
    plan = Plan(groups=tuple(reversed(groups)), labels=labels)
    if not plan.trainable:
        raise UserError(f"{asked_by}={train!r} trains nothing; name groups among {', '.join(names)}, or all")
    for g in plan.groups:
        if g.trainable and not RATES[0] <= g.lr <= RATES[1]:
            raise UserError(
                f"{g.name} would train at a rate of {g.lr:g}, which float32 does not hold, by optimizer.lr={lr}, "
                f"lr_decay={lr_decay}, lr_groups={lr_groups!r}; give it one from {RATES[0]:.0e} to {RATES[1]:.0e}"
            )
    return plan


def _refuse_fresh_frozen(
    names: Sequence[str], trained: Sequence[str], fresh: Sequence[str], allowed: bool, asked_by: str
) -> None:
    useless = [g for g in names if g in fresh and g not in trained]
    if useless and not allowed:
        raise UserError(
            f"{', '.join(useless)} would be both fresh and frozen, so what trains above would learn from random "
            f"features; add it to {asked_by}, or say transfer.allow_fresh_frozen=True"
        )


def read_groups(field: str, text: str, names: Sequence[str]) -> tuple[str, ...]:
    """The groups among `names`, in that order, that a list separated by commas names; 'all' are all.

    Raises:
      UserError: for another name, with those that there are.
    """
    if text.strip() == "all":
        return tuple(names)
    given = [part.strip() for part in text.split(",") if part.strip()]
    for group in given:
        if group not in names:
            raise UserError(f"{field}={text!r} names {group!r}; this network's groups are {', '.join(names)} (or all)")
    return tuple(g for g in names if g in given)


def _pairs(field: str, text: str, names: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        who, colon, value = (s.strip() for s in part.partition(":"))
        if not colon or who not in names:
            raise UserError(f"{field}={text!r}: {part!r} is not NAME:VALUE with a name among {', '.join(names)}")
        if dict(pairs).get(who, value) != value:
            raise UserError(f"{field}={text!r}: {who} is given two values; leave one of them out")
        pairs.append((who, value))
    return pairs


def _decayed(lr: float, decay: float, distance: int) -> float:
    try:
        return lr * decay**distance
    except OverflowError:
        return float("inf")


def _rate(group: str, text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 < rate < float("inf"):
        raise UserError(f"optimizer.lr_groups gives {group} the rate {text!r}, which is not a positive number")
    return rate


def _modes(text: str, names: Sequence[str], trained: Sequence[str]) -> dict[str, BatchNormMode]:
    text = ",".join(part if ":" in part else f"all:{part}" for part in text.split(",") if part.strip())
    modes = {name: BN_MODES["eval"] for name in names}
    wide = {"all": tuple(names), "trained": trained, "frozen": tuple(n for n in names if n not in trained)}
    pairs = _pairs("transfer.bn", text, [*names, *wide])
    for who, value in sorted(
        pairs, key=lambda pair: ("all", "trained", "frozen").index(pair[0]) if pair[0] in wide else len(wide)
    ):
        for name in wide.get(who, (who,)):
            modes[name] = _mode(value)
    return modes


def _mode(text: str) -> BatchNormMode:
    if text in BN_MODES:
        return BN_MODES[text]
    switches = text.split("+")
    if switches[0] in ("batch", "running") and set(switches[1:]) <= {"update", "affine"}:
        return BatchNormMode(
            use_batch=switches[0] == "batch", update="update" in switches[1:], train_affine="affine" in switches[1:]
        )
    raise UserError(
        f"transfer.bn: {text!r} is not a mode; there are {', '.join(BN_MODES)}, and switches such as "
        f"batch+update+affine, running+affine or running"
    )


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of epochs with one plan: epochs `first` to `last - 1`, counted from 0."""

    first: int
    last: int
    train: str
    lr: float


def make_phases(text: str, *, train: str, epochs: int, lr: float) -> tuple[Phase, ...]:
    """Reads `transfer.phases`, such as `head@2; head,layer4@4@1e-5; all`: groups, epochs, and a rate if it differs.

    The last phase takes the epochs that remain, and may say so. Without phases, there is one: `train`, all epochs.
    """
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if not parts:
        return (Phase(0, epochs, train, lr),)
    phases, start = [], 0
    for i, part in enumerate(parts):
        groups, *numbers = (s.strip() for s in part.split("@"))
        try:
            rate = float(numbers[1]) if len(numbers) > 1 else lr
            count = int(numbers[0]) if numbers else epochs - start if i == len(parts) - 1 else 0
            if len(numbers) > 2 or count < 1:
                raise ValueError
        except ValueError:
            raise UserError(
                f"transfer.phases={text!r}: {part!r} is not GROUPS@EPOCHS or GROUPS@EPOCHS@RATE with at "
                f"least one of the {epochs} epochs for each phase"
            ) from None
        if len(numbers) > 1 and not 0 < rate < float("inf"):
            raise UserError(f"transfer.phases={text!r}: the rate {numbers[1]} of {part!r} is not a positive number")
        phases.append(Phase(start, start + count, groups, rate))
        start += count
    if start != epochs:
        raise UserError(f"transfer.phases={text!r} covers {start} epochs, but epochs={epochs}")
    return tuple(phases)


def plan_tables(
    phases: Sequence[Phase], plans: Sequence[Plan], *, members: int = 1
) -> list[tuple[str, list[dict[str, str]]]]:
    """Title and rows of the plan of each phase, as a run prints them; of `members` these are the first one's."""
    tables = []
    for phase, plan in zip(phases, plans, strict=True):
        title = f"Plan of epochs {phase.first + 1} to {phase.last}" if len(phases) > 1 else "Plan"
        title += f" (rates of the first of {members} members)" if members > 1 else ""
        tables.append((title, plan.table()))
    return tables
