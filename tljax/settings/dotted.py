"""Fields by their dotted names, as `optimizer.lr`."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to `{'optimizer.lr': 0.001, ...}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def field_of(node: Any, parts: Sequence[str]) -> Any:
    """What lies under the parts of a dotted name."""
    for part in parts:
        node = node[part]
    return node


def with_fields(config: Any, fields: Mapping[str, Any]) -> Any:
    """A copy of a config with other values, by dotted name."""
    changed: Any = ConfigDict(config.to_dict())
    for name, value in fields.items():
        *path, last = name.split(".")
        node = field_of(changed, path)
        with node.ignore_type():
            node[last] = value
    return changed.lock()


def is_behind(path: str) -> bool:
    """Whether a field has to be called by its part, another one having its last word."""
    return path.startswith("population.") or path in ("data.train", "data.validation", "data.test")


def similar_fields(name: str, paths: Iterable[str]) -> list[str]:
    """Dotted names of fields that may be meant by one that is none: the one with its last word, else two like it."""
    # Of two with one last word optimizer.lr counts, not population.lr.
    paths = sorted(paths, key=is_behind, reverse=True)
    names = {path: path for path in paths} | {path.rpartition(".")[2]: path for path in paths}
    last = name.rpartition(".")[2]
    found = [path for path in paths if path.rpartition(".")[2] == last and not is_behind(path)]
    if len(found) == 1:
        return found
    return list(dict.fromkeys(names[one] for one in difflib.get_close_matches(name, names, 2)))
