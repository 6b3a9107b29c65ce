"""Fields that a config sets and that change nothing: said before a run, since whoever set one counts on it."""

from collections.abc import Iterator
from typing import Any

from tljax.semi.joint import METHODS
from tljax.settings.dotted import flatten
from tljax.settings.fields import get_config
from tljax.transfer.population import is_population, members_of

_COLORS = ("brightness", "contrast", "saturation", "hue", "grayscale", "invert", "blur")
_ROUNDS = ("rounds", "teacher_epochs", "teacher_noise", "select", "share", "targets", "calibrate", "start")
_JOINT = ("batch_size", "weight", "ramp_epochs", "strong_ops", "strong_magnitude")
_THRESHOLD = ("fixmatch", "flexmatch", "meta_pseudo_labels")


def idle_fields(config: Any) -> list[str]:
    """What to say of fields that differ from `tljax/settings/fields.py` and have no effect: a line each, sorted.

    Args:
      config: a whole config without open fields. Of a population, a field is idle if it is so in every member.
    """
    usual = flatten(get_config().to_dict())
    configs = [member.config for member in members_of(config)] if is_population(config) else [config]
    idle = [dict(_idle(flatten(one.to_dict()))) for one in configs]
    return [
        f"{name}={value!r} has no effect: {idle[0][name]}"
        for name, value in sorted(flatten(config.to_dict()).items())
        if value != usual.get(name, value) and all(name in one for one in idle)
    ]


def _idle(f: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, why it changes nothing whatever its value)."""
    kind = f["data.source"].partition(":")[0]
    method, select = f["semi.method"], f["semi.select"]

    def idle(needed: bool, why: str, *names: str) -> Iterator[tuple[str, str]]:
        yield from ((name, why) for name in names if not needed)

    yield from idle(f["optimizer.name"] == "sgd", "it is sgd's, and optimizer.name is another", "optimizer.momentum")
    yield from idle(bool(f["optimizer.weight_decay"]), "optimizer.weight_decay is 0", "optimizer.decay_all")
    yield from idle(f["schedule.name"] == "step", f"schedule.name is {f['schedule.name']}, not step",
                    "schedule.step_epochs", "schedule.factor")  # fmt: skip
    yield from idle(f["augment.crop"] == "random_resized", f"augment.crop is {f['augment.crop']}, not random_resized",
                    "augment.scale", "augment.ratio")  # fmt: skip
    yield from idle(bool(f["augment.rotation"]), "augment.rotation is 0", "protocol.rotations")
    yield from idle(bool(f["augment.rand_ops"]), "augment.rand_ops is 0", "augment.rand_magnitude")
    yield from idle(
        any(f[f"augment.{name}"] for name in _COLORS), "no color is changed", "protocol.color_after_normalization"
    )
    yield from idle(bool(f["transfer.phases"]), "there are no transfer.phases", "transfer.moments")
    yield from idle(not f["transfer.phases"], "transfer.phases says what trains", "transfer.train")
    yield from idle(bool(f["cache.views"]), "cache.views is 0", "cache.seed")
    yield from idle(f["cache.features"] != "off", "cache.features is off", "cache.memory_gb")
    yield from idle(kind == "shapes", "data.source is not shapes:TASK", "data.shapes_seed")
    yield from idle(kind == "tfds", "data.source is not tfds:NAME", "data.tfds_dir")
    yield from idle(kind != "shapes", "shapes:TASK has labels of its own", "data.label")
    yield from idle(not (f["data.mean"] and f["data.std"]), "data.mean and data.std are set", "data.normalize")
    yield from idle(f["data.split"].count("/") != 2, f"data.split={f['data.split']} says it", "data.val")
    yield from idle(f["data.labels"] != "all", "data.labels is all", "data.labels_seed")
    if method == "none":
        yield from ((name, "semi.method is none") for name in f if name.startswith("semi.") or name == "data.unlabeled")
        return
    rounds = method == "pseudo_label"
    yield from idle(rounds, f"it is for semi.method=pseudo_label, not {method}", *(f"semi.{name}" for name in _ROUNDS))
    yield from idle(method in METHODS, f"it is not for semi.method={method}", *(f"semi.{name}" for name in _JOINT))
    yield from idle(method == "mean_teacher", f"it is for semi.method=mean_teacher, not {method}", "semi.decay")
    if rounds:
        yield from idle(select == "threshold", f"semi.select is {select}, not threshold", "semi.threshold")
        yield from idle(select.startswith("top"), f"semi.select is {select}, not top or top_per_class", "semi.share")
    else:
        yield from idle(method in _THRESHOLD, f"it is not for semi.method={method}", "semi.threshold")
