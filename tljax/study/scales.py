"""How large a study's runs are: as published, tiny, or one step of full size."""

import dataclasses
from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]

TINY_NETWORKS: dict[str, Fields] = {
    "resnet": {"model.width": 4, "model.blocks": (1, 1, 1, 1), "data.size": 32, "data.resize": 36},
    "squeezenet": {"data.size": 48, "data.resize": 52},
    "mini_xception": {"model.width": 4, "data.size": 32, "data.resize": 36},
}
TINY_EPOCHS = 2


@dataclasses.dataclass(frozen=True)
class Scale:
    """A size.

    Attributes:
      note: what every page and table says about it; empty for results that count.
      change: the fields of a run as published -> those of this size, and of a run that has to come before it, if any.
      in_one: populations are formed wherever they are exact, not only where they are faster.
      alike: fields whose values change the numbers and not the program; of single runs that differ in nothing else one
        stands for all.
    """

    note: str
    change: Callable[[Fields], tuple[Fields, Fields | None]]
    in_one: bool = False
    alike: tuple[str, ...] = ()


def as_published(given: Fields) -> tuple[Fields, None]:
    return given, None


def tiny(given: Fields) -> tuple[Fields, Fields | None]:
    """Procedural pictures, a network of a few thousand parameters that was pretrained on other such pictures."""
    kind = next(prefix for prefix in TINY_NETWORKS if given["model.name"].startswith(prefix))
    small = {
        **given,
        **TINY_NETWORKS[kind],
        "data.source": "shapes:tiny-pair" if _binary(given) else "shapes:tiny",
        "data.label": "",
        "epochs": min(given.get("epochs", TINY_EPOCHS), TINY_EPOCHS),
        "batch_size": max(given.get("batch_size", 32), 20),
        "pictures": False,
    }
    for field, value in (("semi.teacher_epochs", 1), ("epoch_steps", 2)):
        if small.get(field):
            small[field] = value
    if small.get("data.split", "official") == "official" and "data.val" not in small:
        small["data.val"] = 0.2
    if phases := small.get("transfer.phases"):
        parts = [part.split("@") for part in phases.split(";")]
        small["transfer.phases"] = ";".join("@".join([part[0], "1", *part[2:]]) for part in parts)
        small["epochs"] = len(parts)
    weights = str(given.get("model.weights", "imagenet"))
    if not weights.startswith("imagenet"):
        return small, None
    network = {name: small[name] for name in small if name.startswith("model.") and name != "model.weights"}
    network.pop("model.last_stage", None)
    network.pop("model.outputs", None)
    first = {
        **network, **TINY_NETWORKS[kind], "model.weights": "None", "data.source": "shapes:tiny-source",
        "transfer.train": "all", "epochs": 1, "optimizer.lr": 3e-3, "seed": 0, "pictures": False,
    }  # fmt: skip
    return small, first


def one_step(given: Fields) -> tuple[Fields, None]:
    """The published network, picture size and batch, random weights, one batch of procedural pictures."""
    batch = given.get("batch_size", 32)
    return {
        **given,
        "data.source": "shapes:step-pair" if _binary(given) else "shapes:step",
        "data.label": "",
        "data.split": "official",
        "data.per_class": -(-batch // (2 if _binary(given) else 10)),
        "model.weights": "None",
        "transfer.allow_fresh_frozen": True,
        "transfer.phases": "",
        "epochs": 1,
        "epoch_steps": 1,
    } | ({"semi.rounds": 1, "semi.teacher_epochs": 1} if "semi.rounds" in given else {}), None


def _binary(given: Fields) -> bool:
    return given.get("data.label") == "species" or given.get("loss.name") == "sigmoid"


SCALES = {
    "full": Scale("", as_published),
    "tiny": Scale(
        "TINY: procedural pictures and networks of a few thousand parameters. Nothing here is a result.",
        tiny,
        in_one=True,
    ),
    "onestep": Scale(
        "ONE STEP: each program of full size ran once, on procedural pictures. Nothing here is a result.",
        one_step,
        alike=("optimizer.lr", "seed"),
    ),
}
