"""What a config may not say: found before anything is opened."""

from typing import Any

from tljax.core.errors import UserError
from tljax.data.randaugment import STRONGEST
from tljax.metrics.losses import make_loss
from tljax.report.console import check_trackers
from tljax.semi.joint import METHODS
from tljax.settings.dotted import flatten
from tljax.settings.validate import check_fields
from tljax.train.experiment import augmentation
from tljax.transfer.optimizer import check_optimizer, make_schedule
from tljax.transfer.population import as_typed, is_population, members_of


def check(config: Any, *, look_at_test: bool = False) -> None:
    """Refuses numbers and names that cannot be, before anything is opened.

    Args:
      config: the config.
      look_at_test: whether `select='test'` is allowed.

    Raises:
      UserError: naming the field.
    """
    least = {
        "epochs": 1, "epoch_steps": 0, "stop_after": 0, "batch_size": 1, "accumulate": 1, "seed": 0, "data.size": 1,
        "data.resize": 0, "data.val": 0, "data.per_class": 0, "data.workers": 0, "data.memory_gb": 0,
        "data.split_seed": 0, "schedule.step_epochs": 0, "schedule.warmup_epochs": 0, "schedule.factor": 0,
        "optimizer.weight_decay": 0, "optimizer.clip": 0, "optimizer.momentum": 0, "model.outputs": 0,
        "protocol.augmented_copies": 0, "cache.views": 0, "cache.memory_gb": 0, "semi.rounds": 1,
        "semi.teacher_epochs": 0, "semi.batch_size": 1, "semi.weight": 0, "semi.ramp_epochs": 0, "semi.decay": 0,
        "augment.rand_ops": 0, "semi.strong_ops": 0,
    }  # fmt: skip
    check_fields(config)
    fields = flatten(config.to_dict())
    if fields["minutes"] is not None:
        raise UserError(
            f"minutes={fields['minutes']} is for single runs whose epochs are open, as in configs/folder.py"
        )
    for name, bound in least.items():
        if fields[name] < bound:
            raise UserError(f"{name}={fields[name]} is too small; it is at least {bound}")
    for name, value in fields.items():
        if isinstance(value, int) and value >= 2**31 and not name.endswith("seed"):
            raise UserError(f"{name}={value} is too large; it is below 2^31")
    if config.optimizer.momentum >= 1:
        raise UserError(f"optimizer.momentum={config.optimizer.momentum} is not below 1; sgd would diverge")
    for name in ("seed", "transfer.seed", "data.split_seed", "data.shapes_seed", "data.labels_seed", "cache.seed"):
        if fields[name] is not None and not 0 <= fields[name] < 2**32:
            raise UserError(f"{name}={fields[name]} is not a whole number from 0 that fits in 32 bits")
    for name in ("augment.rand_magnitude", "semi.strong_magnitude"):
        if not 0 <= fields[name] <= STRONGEST:
            raise UserError(f"{name}={fields[name]} is not from 0 to {STRONGEST}")
    for name in ("semi.threshold", "semi.share"):
        if not 0 < fields[name] <= 1:
            raise UserError(f"{name}={fields[name]} is not in 0 < x <= 1")
    if config.accumulate > config.batch_size:
        raise UserError(
            f"accumulate={config.accumulate} cuts a batch of batch_size={config.batch_size} into empty parts"
        )
    if config.transfer.moments not in ("keep", "fresh"):
        raise UserError(f"transfer.moments={config.transfer.moments!r} is not one of keep, fresh")
    if config.select == "test" and not look_at_test:
        raise UserError("select='test' would choose the epoch by the images it is tested on; studies alone may, to "
                        "repeat reports that did; say validation, loss or last")  # fmt: skip
    for name, known in (
        ("data.placement", ("auto", "host", "device")), ("cache.features", ("auto", "off")),
        ("data.normalize", ("weights", "dataset")), ("select", ("validation", "loss", "last", "test")),
        ("semi.method", ("none", "pseudo_label", *METHODS)),
        ("semi.select", ("all", "threshold", "top", "top_per_class")),
        ("semi.targets", ("hard", "soft")), ("semi.start", ("weights", "teacher")),
    ):  # fmt: skip
        if fields[name] not in known:
            raise UserError(f"{name}={fields[name]!r} is not one of {', '.join(known)}")
    for member in members_of(config) if is_population(config) else ():
        with as_typed(member):
            check(member.config, look_at_test=look_at_test)
    if config.cache.views and (config.cache.features == "off" or config.protocol.augmented_copies):
        raise UserError("cache.views asks for fixed views, whose features are kept; it does not go with "
                        "cache.features=off or protocol.augmented_copies")  # fmt: skip
    for name in ("mean", "std"):
        values = config.data[name]
        numbers = all(isinstance(v, int | float) and 0 <= v <= 1 for v in values)
        if len(values) not in (0, 3) or not numbers or (name == "std" and not all(values)):
            raise UserError(f"data.{name}={values} is not three numbers, one per channel, of values in 0 to 1")
    if config.data.resize and config.data.resize < config.data.size:
        raise UserError(f"data.resize={config.data.resize}, the side that images are kept at, is smaller than "
                        f"data.size={config.data.size}")  # fmt: skip
    if config.data.boxes and (config.data.labels != "all" or config.data.unlabeled):
        raise UserError("data.boxes=True cuts to boxes that somebody drew, which unlabeled images do not have; leave "
                        "it out, or say data.labels=all and no data.unlabeled")  # fmt: skip
    check_trackers(config.trackers)
    augmentation(config)
    augmentation(config, strong=True)
    check_semi(config)
    check_optimizer(config.optimizer.name)
    make_schedule(config.schedule.name, steps=1)
    make_loss(config.loss.name, label_smoothing=config.loss.label_smoothing)


def check_semi(config: Any) -> None:
    """Refuses what learning from unlabeled images does not go with."""
    method = config.semi.method
    if method == "none":
        return
    if config.data.labels == "all" and not config.data.unlabeled:
        raise UserError(f"semi.method={method} needs images without a label; say data.labels=10%, or 4 for 4 per "
                        "class, or data.unlabeled=FOLDER")  # fmt: skip
    if config.model.outputs:
        raise UserError(f"semi.method={method} does not go with model.outputs={config.model.outputs}; an output that "
                        "is no class could become a label")  # fmt: skip
    if is_population(config):
        raise UserError(f"semi.method={method} and population.* do not go together; run the members one by one")
    if config.data.pseudo:
        raise UserError(f"semi.method={method} makes its own labels; leave data.pseudo out")
    if method not in METHODS:
        return
    for name, given, alone in (
        ("accumulate", config.accumulate, 1), ("transfer.phases", config.transfer.phases, ""),
        ("protocol.augmented_copies", config.protocol.augmented_copies, 0), ("loss.name", config.loss.name, "softmax"),
    ):  # fmt: skip
        if given != alone:
            raise UserError(f"semi.method={method} does not go with {name}={given}; it takes {alone!r}")
    if config.cache.views == 1 and not config.semi.strong_ops:
        raise UserError(f"semi.method={method} compares two views of an image, and with cache.views=1 and "
                        "semi.strong_ops=0 there is one; keep 2 or more")  # fmt: skip
    if config.semi.decay >= 1:
        raise UserError(f"semi.decay={config.semi.decay} is not below 1; the average would never move")
