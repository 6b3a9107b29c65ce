"""The pictures that every run leaves: one augmented batch, and its curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot: no backend to choose, no global state

COLUMNS = 8


def save_batch(path: Path, images: np.ndarray, labels: Sequence[str]) -> None:
    """Saves a batch as the network sees it.

    Args:
      path: a PNG.
      images: `[B, S, S, 3]`, 0 to 255.
      labels: one word per image.
    """
    rows = -(-len(images) // COLUMNS)
    figure = Figure(figsize=(1.5 * COLUMNS, 1.75 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).reshape(-1)
    for ax in axes:
        ax.axis("off")
    for ax, image, label in zip(axes, images, labels, strict=False):
        ax.imshow(np.clip(np.round(image), 0, 255).astype(np.uint8), interpolation="nearest")
        ax.set_title(plain(label[:22]), fontsize=8)
    figure.savefig(path, dpi=100)


def save_curves(path: Path, history: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> None:
    """Saves loss and accuracy over the epochs, the `best` one marked."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for ax, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        scale = 100 if name == "accuracy" else 1
        for split, colour in (("train", "#4477aa"), ("val", "#cc6677")):
            values = [row[f"{split}_{name}"] for row in history]
            if values[0] is not None:
                ax.plot(
                    epochs,
                    [scale * v for v in values],
                    "o-",
                    color=colour,
                    markersize=3.5,
                    label={"train": "training (augmented)", "val": "validation"}[split],
                )
        if best["val_accuracy"] is not None:
            ax.axvline(best["epoch"], color="0.6", linewidth=1, linestyle=":", label=f"best epoch, {best['epoch']}")
        ax.set_xlabel("epoch")
        ax.set_ylabel("accuracy (%)" if name == "accuracy" else "loss")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a class may be called `$x$`."""
    return text.replace("$", r"\$")
