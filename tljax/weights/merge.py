"""The strict merge of loaded and fresh parameters: every leaf is accounted for, or the run does not start."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tljax.core.errors import UserError, shorten
from tljax.weights.safe_pickle import shown
from tljax.weights.torch_names import flatten, nest

Path = tuple[str, ...]
GroupOf = Callable[[tuple[str, ...]], str]

SHOWN = 3  # examples of each kind in an error


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """How loaded variables and a model fit. Paths start with the collection and are sorted.

    Attributes:
      loaded: leaves of the model that come from the file.
      missing: leaves of the model that the file lacks.
      unexpected: leaves of the file that the model lacks.
      wrong_shape: leaves that both have, and why they differ, such as '(64, 3) in place of (64, 5)'.
      fresh: leaves of the model that were deliberately not loaded, because their group starts fresh.
      unused: leaves of the file in groups that the model is cut before, or that start fresh without such a leaf.
      group_of: the model's groups, by path without the collection.
    """

    loaded: tuple[Path, ...]
    missing: tuple[Path, ...]
    unexpected: tuple[Path, ...]
    wrong_shape: Mapping[Path, str]
    fresh: tuple[Path, ...]
    unused: tuple[Path, ...]
    group_of: GroupOf

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong_shape)

    def check(self, source: str) -> None:
        """Raises UserError, with the four lists on one line, when `source` does not fit."""
        if not self.fits:
            raise UserError(f"{source} does not fit the model: {self}")

    def groups(self, paths: Sequence[Path]) -> dict[str, int]:
        """Number of leaves by group."""
        return dict(sorted(Counter(self.group_of(path[1:]) for path in paths).items()))

    def as_dict(self) -> dict[str, dict[str, int]]:
        """What a run records: arrays per group, by what became of them."""
        return {kind: self.groups(getattr(self, kind)) for kind in ("loaded", "fresh", "unused")}

    def __str__(self) -> str:
        """The four sorted lists on one line, short enough to read, and the remedy where there is one."""
        odd = [f"{'/'.join(path)} {why}" for path, why in self.wrong_shape.items()]
        lists = {
            "missing": self.brief(self.missing),
            "unexpected": self.brief(self.unexpected),
            "wrong shape": shorten(odd, SHOWN),
            "deliberately not loaded": self.brief(self.fresh),
        }
        line = "; ".join(f"{kind}: {paths or 'none'}" for kind, paths in lists.items())
        wanted = self.groups((*self.missing, *self.wrong_shape))
        have, fresh = self.groups(self.loaded), self.groups(self.fresh)
        if wanted and have and not self.unexpected:
            line += f". Say transfer.fresh={','.join([*fresh, *wanted])} to start {' and '.join(wanted)} fresh"
        elif not self.fits:
            line += ". These look like weights of another architecture"
        return line

    def brief(self, paths: Sequence[Path]) -> str:
        """Whole groups by name and count, a few single leaves by path."""
        by_group: dict[str, list[str]] = {}
        for path in paths:
            by_group.setdefault(self.group_of(path[1:]), []).append(shown("/".join(path)))
        return shorten(
            [
                f"{shown(group)} ({len(names)} arrays)" if len(names) > SHOWN else ", ".join(names)
                for group, names in sorted(by_group.items())
            ],
            limit=6,
        )


def compare(
    init: Mapping[str, Any],
    loaded: Mapping[str, Any],
    *,
    fresh: Sequence[str],
    group_of: GroupOf,
    unused_groups: Sequence[str] = (),
) -> MergeReport:
    """Sorts the leaves of both sides; nothing is copied.

    Args:
      init: the model's variables, `{'params': ..., 'batch_stats': ...}`; shapes suffice (`jax.eval_shape`).
      loaded: the file's.
      fresh: groups that start fresh.
      group_of: the model's, from a path without its collection to a group. It also gets paths that the model lacks.
      unused_groups: groups of the whole network that this model is cut before; the file may have them.
    """
    ours, theirs = dict(flatten(init)), dict(flatten(loaded))
    wanted = {path for path in ours if group_of(path[1:]) not in fresh}
    left = theirs.keys() - wanted
    unused = {path for path in left if group_of(path[1:]) in {*fresh, *unused_groups}}
    odd = {path: why for path in sorted(wanted & theirs.keys()) if (why := misfit(ours[path], theirs[path]))}
    return MergeReport(
        loaded=tuple(sorted(wanted & theirs.keys() - odd.keys())),
        missing=tuple(sorted(wanted - theirs.keys())),
        unexpected=tuple(sorted(left - unused)),
        fresh=tuple(sorted(ours.keys() - wanted)),
        unused=tuple(sorted(unused)),
        wrong_shape=odd,
        group_of=group_of,
    )


def misfit(ours: Any, theirs: Any) -> str:
    """Why an array cannot take another's place; empty if it can."""
    if tuple(ours.shape) != tuple(theirs.shape):
        return f"is {tuple(theirs.shape)}, not {tuple(ours.shape)}"
    if not jnp.issubdtype(theirs.dtype, jnp.floating):
        return f"holds {theirs.dtype}, not numbers with a fraction"
    return ""


def merge_pretrained(
    init: Mapping[str, Any],
    loaded: Mapping[str, Any],
    *,
    fresh: Sequence[str],
    group_of: GroupOf,
    unused_groups: Sequence[str] = (),
    source: str = "the weights",
) -> dict[str, Any]:
    """Puts loaded values in the place of random ones, or says why not.

    Leaves of fresh groups stay as they are in `init`; every other leaf must be in `loaded` with its exact shape, and
    nothing may be left over there outside of fresh and unused groups.

    Args:
      init: the model's variables, `{'params': ..., 'batch_stats': ...}`.
      loaded: the file's, of any floating type.
      fresh: groups that start fresh.
      group_of: as for `compare`.
      unused_groups: as for `compare`.
      source: what `loaded` is, for the error: a file's name.

    Returns:
      Variables of the structure, shapes and types of `init`.

    Raises:
      UserError: one line with four lists (missing, unexpected, wrong shape, deliberately not loaded).
    """
    groups = {group_of(path[1:]): None for path, _ in flatten(init)}
    if unknown := [group for group in fresh if group not in groups]:
        raise UserError(
            f"transfer.fresh={','.join(fresh)} names {', '.join(unknown)}, which the model lacks; "
            f"there are {', '.join(groups)}"
        )
    report = compare(init, loaded, fresh=fresh, group_of=group_of, unused_groups=unused_groups)
    report.check(source)
    theirs = dict(flatten(loaded))
    take = set(report.loaded)
    # A copy, always: jax may otherwise use the mapped file as its own memory, and a donated step would write there.
    return nest(
        {path: jnp.array(np.array(theirs[path]), ours.dtype) if path in take else ours for path, ours in flatten(init)}
    )
