"""Whether the fields of a config are all there, of the right type and within reason."""

import functools
import math
import numbers
from collections.abc import Iterable
from typing import Any

from tljax.core.errors import UserError, told
from tljax.settings.dotted import field_of, flatten
from tljax.settings.fields import get_config


def example(value: Any) -> str:
    """What a field with this default takes, in words."""
    if value is None:
        return "a value of another type"
    if value == "":
        return "text"
    return f"a value such as {value!r}" if value != () else "values in brackets, such as (0.1, 0.2)"


def check_fields(config: Any, *, opened: Iterable[str] = ()) -> None:
    """Refuses a config that lacks fields of `tljax/settings/fields.py`, or has values of another type in them.

    Args:
      config: any config; fields of its own are not looked at.
      opened: fields that may be None, beside those that are None in `tljax/settings/fields.py`.

    Raises:
      UserError: naming the field and what it takes.
    """
    given = flatten(config.to_dict())
    for name, (kind, or_none) in _kinds().items():
        if name not in given:
            raise UserError(f"the config has no {name}; begin with tljax/settings/fields.py, or with tljax.config")
        if not _fits(given[name], kind, or_none=or_none or name in opened):
            raise UserError(f"{name}={told(given[name])} does not fit; it takes {_KINDS[kind]}")
        if isinstance(given[name], str) and "\0" in given[name]:
            raise UserError(f"{name}={told(given[name])} has a NUL character; no path or name has")
        several = given[name] if isinstance(given[name], tuple | list) else [given[name]]
        if not all(_is_finite(one) for one in several):
            raise UserError(f"{name}={told(given[name])} is not a finite number that 64 bits hold")
        most, why = _MOST.get(name, (math.inf, ""))
        if any(isinstance(one, numbers.Real) and float(one) > most for one in several):
            raise UserError(f"{name}={told(given[name])} is too large; it is at most {most:,}{why}")


_MOST: dict[str, tuple[int, str]] = {
    "data.size": (8192, "; beyond, an image takes over 0.8 GB"),
    "data.resize": (16384, "; beyond, an image takes over 0.8 GB"),
    "model.blocks": (100, " per layer"), "model.width": (16384, ""), "model.outputs": (1_000_000, ""),
    "batch_size": (1_000_000, ""), "semi.batch_size": (1_000_000, ""), "accumulate": (1_000_000, ""),
    "epochs": (10_000_000, ""), "semi.teacher_epochs": (10_000_000, ""), "semi.rounds": (1000, ""),
    "protocol.augmented_copies": (10_000, ""), "cache.views": (10_000, ""), "protocol.rotations": (100, ""),
    "augment.rand_ops": (100, ""), "semi.strong_ops": (100, ""), "augment.blur": (1023, ""), "data.workers": (4096, ""),
}  # fmt: skip
"""What is beyond any use, and would hang a plan or take the machine's memory."""

_KINDS: dict[type, str] = {
    int: "a whole number", float: "a number", bool: "True or False", str: "text", tuple: "values in brackets",
}  # fmt: skip


@functools.cache
def _kinds() -> dict[str, tuple[type, bool]]:
    """Of each field of `tljax/settings/fields.py` its type, and whether it may be None."""
    usual: Any = get_config()
    fields = ((name, *name.rpartition(".")[::2], value) for name, value in flatten(usual.to_dict()).items())
    return {
        name: (
            field_of(usual, part.split(".") if part else []).get_type(last),
            value is None or name == "model.weights",
        )
        for name, part, last, value in fields
    }


def _fits(value: Any, kind: type, *, or_none: bool) -> bool:
    if value is None:
        return or_none
    if isinstance(value, bool):  # Python's are whole numbers, too
        return kind is bool
    return isinstance(value, {int: numbers.Integral, float: numbers.Real, tuple: (tuple, list)}.get(kind, kind))


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, numbers.Real) or math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
