"""Fields that had another name in an earlier version."""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "augment.colour_last": "protocol.color_after_normalization",
    "augment.copies": "protocol.augmented_copies",
    "augment.grey": "augment.grayscale",
    "augment.turns": "protocol.rotations",
    "data.unlabelled": "data.unlabeled",
    "model.depth_drop": "model.stochastic_depth",
    "model.drop": "model.dropout",
    "model.until": "model.last_stage",
}
"""Today's name by that of before."""


def name_now(name: str) -> str | None:
    """What a field is called that had this name before: a dotted one, or its last word; None for any other word."""
    by_last_word = {before.rpartition(".")[2]: now for before, now in RENAMED.items()}
    return RENAMED.get(name) or by_last_word.get(name)


def with_names_of_now(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A run's config, as plain values, with its fields under today's names; and which of them had another one."""
    changed = {name: dict(value) if isinstance(value, Mapping) else value for name, value in config.items()}
    found = []
    for before, now in RENAMED.items():
        (part, last), (new_part, new_last) = before.split("."), now.split(".")
        if isinstance(changed.get(part), dict) and last in changed[part]:
            changed.setdefault(new_part, {})[new_last] = changed[part].pop(last)
            found.append(before)
    return changed, found
