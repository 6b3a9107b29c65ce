"""Configs from Python: fields by name, and the nearest ones of a name that is none."""

import functools
import importlib
import math
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import common
from tljax.command_line import example, field_of, is_behind, load_config, similar_fields
from tljax.errors import UserError, one_line, shown, told
from tljax.workdir import flatten

CONFIGS = Path(common.__file__).parent
SOURCES = {"folder": "folder:PATH", "pets": "pets:PATH", "tfds": "tfds:NAME", "shapes": "shapes:TASK"}
"""Forms of `data.source`, by kind."""


def config(
    data: str | os.PathLike[str] | Mapping[str, Any] | None = None, *, base: str | Path = "folder", **fields: Any
) -> ConfigDict:
    """A config: the defaults, with some fields set.

        tljax.config("folder:photos", model="resnet34", train="head,layer4", lr=1e-4, epochs=5)
        tljax.config("pets:PATH", base="pets_ft", optimizer={"name": "sgd", "lr": 1e-2})

    Args:
      data: `data.source`: folder:PATH, or the folder itself, pets:PATH, tfds:NAME, shapes:TASK; or a dictionary of
        fields of `data`.
      base: a file of `configs/` by its name, or the path of another one.
      **fields: those of `configs/common.py`. A part takes a dictionary of its fields, or what it is called
        (`model="resnet34"`, `optimizer="sgd"`, `schedule="cosine"`); a field that is in one part alone needs no part
        (`weights=None` is `model.weights`), and dotted names will do (`**{"data.size": 32}`). Text may be a
        `pathlib.Path`. Parts count less than what stands at the top, `population` least, which
        takes a dictionary.

    Returns:
      A locked config, whose fields can be set as in `config.optimizer.lr = 1e-3`.

    Raises:
      UserError: for a field or config that does not exist, with the nearest ones, or a value that does not fit.
    """
    made: Any = _base(base)
    usual: Any = common.get_config()
    if isinstance(data, str | os.PathLike):
        data = _source(str(data))
    given: list[tuple[str, Any]] = []
    for name, value in (fields if data is None else {"data": data, **fields}).items():
        path = _path(name, made)
        node = field_of(made, path.split("."))
        if not isinstance(node, ConfigDict):
            given.append((path, value))
        elif isinstance(value, Mapping):
            given += [(f"{path}.{own}", one) for own, one in value.items()]
        else:
            given.append((f"{path}.{'source' if name == 'data' else 'name'}", value))
    known = flatten(made.to_dict())
    for path, value in given:
        if path not in known:
            raise _unknown(path, known)
        *parts, last = path.split(".")
        node = field_of(made, parts)
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if node[last] is None and value is not None:  # open: the usual value has the type
            node[last] = field_of(usual, [*parts, last])
        try:
            node[last] = value
        except (TypeError, OverflowError):  # the latter for a whole number that no float holds
            raise UserError(f"{path}={told(value)} does not fit; it takes {example(node[last])}") from None
    return made


def with_fields(config: Any, fields: Mapping[str, Any]) -> Any:
    """A copy of a config with other values, by dotted name."""
    changed: Any = ConfigDict(config.to_dict())
    for name, value in fields.items():
        *path, last = name.split(".")
        node = field_of(changed, path)
        with node.ignore_type():
            node[last] = value
    return changed.lock()


def check_fields(config: Any, *, opened: Iterable[str] = ()) -> None:
    """Refuses a config that lacks fields of `configs/common.py`, or has values of another type in them.

    Args:
      config: any config; fields of its own are not looked at.
      opened: fields that may be None, beside those that are None in `configs/common.py`.

    Raises:
      UserError: naming the field and what it takes.
    """
    given = flatten(config.to_dict())
    for name, (kind, or_none) in _kinds().items():
        if name not in given:
            raise UserError(f"the config has no {name}; begin with configs/common.py, or with tljax.config")
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
    "augment.copies": (10_000, ""), "cache.views": (10_000, ""), "augment.turns": (100, ""),
    "augment.rand_ops": (100, ""), "semi.strong_ops": (100, ""), "augment.blur": (1023, ""), "data.workers": (4096, ""),
}  # fmt: skip
"""What is beyond any use, and would hang a plan or take the machine's memory."""

_KINDS: dict[type, str] = {
    int: "a whole number", float: "a number", bool: "True or False", str: "text", tuple: "values in brackets",
}  # fmt: skip


@functools.cache
def _kinds() -> dict[str, tuple[type, bool]]:
    """Of each field of `configs/common.py` its type, and whether it may be None."""
    usual: Any = common.get_config()
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


def source_of(config: Any, words: str) -> str:
    """The text of a config's file: `words`, and all in which it differs from `configs/common.py`."""
    given, usual = flatten(config.to_dict()), flatten(common.get_config().to_dict())
    lines = [f"    config.{name} = {given[name]!r}" for name in usual if given[name] != usual[name]]
    words = words.replace("\\", "\\\\").replace('"""', "'''")
    body = "\n".join(["    config = common.get_config()", *lines, "    return config"])
    return f'"""{words}"""\n\nfrom configs import common\n\n\ndef get_config():\n{body}\n'


def _source(text: str) -> str:
    """`data.source` of what names one, or of a folder."""
    if text.partition(":")[0] in SOURCES and ":" in text:
        return text
    if text and os.path.isdir(os.path.expanduser(text)):
        return f"folder:{text}"
    there = f"there is no folder {text!r} (looked from {os.getcwd()!r})" if text else "data is empty"
    raise UserError(f"{there}; name a folder that is there, or say {', '.join(SOURCES.values())}")


def _base(base: str | Path) -> Any:
    is_name = isinstance(base, str | os.PathLike)
    path = Path(base) if str(base).endswith(".py") and is_name else CONFIGS / f"{base}.py"
    if not is_name or not path.is_file():
        known = sorted(found.stem for found in CONFIGS.glob("[a-z]*.py"))
        given = told(str(base) if is_name else base)
        raise UserError(f"base={given} is no config; there are {', '.join(known)}, and files of your own")
    if path.parent == CONFIGS:
        return importlib.import_module(f"configs.{path.stem}").get_config()
    try:
        return load_config(str(path))
    except Exception as error:  # whatever somebody's file raises
        raise UserError(f"base={str(base)!r} does not work: {type(error).__name__}: {one_line(error)}") from None


def _path(name: str, made: ConfigDict) -> str:
    """The dotted name of a field that is called by its last word."""
    paths = flatten(made.to_dict())
    if name in made or name in paths:
        return name
    found = [path for path in paths if path.rpartition(".")[2] == name and not is_behind(path)]
    if not found:
        raise _unknown(name, paths)
    if len(found) > 1:
        parts = " or ".join(f"{path.partition('.')[0]}={{{name!r}: ...}}" for path in found)
        raise UserError(f"{name} may be {' or '.join(found)}; say {parts}")
    return found[0]


def _unknown(name: str, paths: Iterable[str]) -> UserError:
    close = similar_fields(name, paths)
    hint = f"; did you mean {' or '.join(close)}?" if close else "; see configs/common.py"
    return UserError(f"{shown(name):.60} is not a field of a config{hint}")
