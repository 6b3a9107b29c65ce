"""The thousand classes of ImageNet (ILSVRC 2012), in the order of the outputs of networks that were trained on it."""

import functools
from importlib import resources


@functools.cache
def class_names() -> tuple[str, ...]:
    """Their names as torchvision has them (`torchvision.models._meta`)."""
    return tuple((resources.files("tljax.models") / "imagenet_classes.txt").read_text("utf-8").splitlines())
