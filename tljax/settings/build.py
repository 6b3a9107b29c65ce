"""Configs from Python: fields by name, and the nearest ones of a name that is none."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tljax.core.errors import UserError, shown, told
from tljax.settings.command_line import CONFIGS, load_config, reason
from tljax.settings.dotted import field_of, flatten, is_behind, similar_fields
from tljax.settings.fields import get_config
from tljax.settings.renamed import name_now
from tljax.settings.validate import example

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
      **fields: those of `tljax/settings/fields.py`. A part takes a dictionary of its fields, or what it is called
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
    usual: Any = get_config()
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


def source_of(config: Any, words: str) -> str:
    """The text of a config's file: `words`, and all in which it differs from `tljax/settings/fields.py`."""
    given, usual = flatten(config.to_dict()), flatten(get_config().to_dict())
    lines = [f"    config.{name} = {given[name]!r}" for name in usual if given[name] != usual[name]]
    words = words.replace("\\", "\\\\").replace('"""', "'''")
    body = "\n".join(["    config = fields.get_config()", *lines, "    return config"])
    return f'"""{words}"""\n\nfrom tljax.settings import fields\n\n\ndef get_config():\n{body}\n'


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
    try:
        return load_config(str(path))
    except Exception as error:  # whatever somebody's file raises
        raise UserError(f"base={str(base)!r} does not work: {reason(error)}") from None


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
    if now := name_now(name):
        return UserError(f"{name} is called {now} now")
    close = similar_fields(name, paths)
    hint = f"; did you mean {' or '.join(close)}?" if close else "; see tljax/settings/fields.py"
    return UserError(f"{shown(name):.60} is not a field of a config{hint}")
