"""Which epoch is tested."""

import math
from typing import Any


def merit(accuracy: float, loss: float | None, select: str) -> tuple[float, float]:
    """What validation chooses the greatest of: the accuracy, and of equals the lower loss; where `select` is 'loss' the
    other way round. A loss that is not finite, None in a file, is the worst."""
    low = -loss if loss is not None and math.isfinite(loss) else -math.inf
    return (low, accuracy) if select == "loss" else (accuracy, low)


def chosen_row(history: list[dict[str, Any]], select: str = "validation") -> dict[str, Any]:
    """The epoch that is tested: validation's choice by `merit`; the last where `select` is 'last' or nothing was
    validated. Where accuracy and loss are equal, validation cannot tell epochs apart, and it is the earliest: it has
    left the pretrained weights least, and its checkpoint is there already."""
    if select == "last" or history[-1]["val_accuracy"] is None:
        return history[-1]
    return max(history, key=lambda row: (*merit(row["val_accuracy"], row["val_loss"], select), -row["epoch"]))
