"""The pictures that every run leaves: one augmented batch, its curves, and how far its confidence can be believed."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure  # not pyplot: no backend to choose, no global state
from PIL import Image

from tljax.report.console import scaled_in_words
from tljax.report.insides import plain, png

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
    path.write_bytes(png(figure))


def save_curves(path: Path, history: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> None:
    """Saves loss and accuracy over the epochs, the `best` one marked, as `curves` draws them."""
    path.write_bytes(png(curves(history, best)))


def curves(history: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> Figure:
    """Loss and accuracy over the epochs; those of several rounds apart, since each round has a network of its own.

    Args:
      history: a row per epoch; `round`, where rows have it, is 0 for a teacher's, then counts students.
      best: the row to mark.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rounds = [list(rows) for _, rows in itertools.groupby(history, lambda row: row.get("round"))]
    cramped = min(map(len, rounds)) < 0.15 * len(history)  # words side by side would run into each other
    for ax, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        scale = 100 if name == "accuracy" else 1
        for split, color in (("train", "#4477aa"), ("val", "#cc6677")):
            label = {"train": "training (augmented)", "val": "validation"}[split]
            for rows in rounds:
                if rows[0][f"{split}_{name}"] is not None:
                    values = [scale * row[f"{split}_{name}"] for row in rows]
                    ax.plot([row["epoch"] for row in rows], values, "o-", color=color, markersize=3.5, label=label)
                    label = None
        if best["val_accuracy"] is not None:
            words = f"best epoch of {_network(best)}" if "round" in best else "best epoch"
            ax.axvline(best["epoch"], color="0.6", linewidth=1, linestyle=":", label=f"{words}, {best['epoch']}")
        for rows in rounds if len(rounds) > 1 else ():
            begin = rows[0]["epoch"] - 0.5
            ax.axvline(begin, color="0.75", linewidth=0.7)
            ax.annotate(
                _network(rows[0]), (begin, 1), (1, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
                fontsize=8, color="0.35", rotation=45 if cramped else 0,
            )  # fmt: skip
        ax.set_xlabel("epoch")
        ax.set_ylabel("accuracy (%)" if name == "accuracy" else "loss")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
    return figure


def _network(row: Mapping[str, Any]) -> str:
    return f"student {row['round']}" if row["round"] else "teacher"


def save_reliability(path: Path, split: str, found: Mapping[str, Any], *, title: str = "") -> None:
    """Saves a reliability diagram: how often right by how sure, with 95% intervals, and how many images that is of.

    Args:
      path: a PNG.
      split: its name in words.
      found: of a split, as `calibration.calibration` has it.
      title: what the images are called above it; the split where there is none.
    """
    figure = Figure(figsize=(4.8, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    bins, width = [b for b in found["bins"] if b["seen"]], 100 / len(found["bins"])
    middle, seen = [50 * (b["from"] + b["to"]) for b in bins], [b["seen"] for b in bins]
    right = 100 * np.array([b["accuracy"] for b in bins])
    low, high = 100 * np.array([b["interval95"] for b in bins]).T
    upper.bar(middle, right, width, color="#a5c3de", edgecolor="white", label="accuracy")
    upper.errorbar(
        middle, right, (right - low, high - right), fmt="none", ecolor="#224466", elinewidth=1.3, capsize=3,
        label="95% interval",
    )  # fmt: skip
    upper.plot([100 * b["confidence"] for b in bins], right, "D", color="#cc3355", markersize=4.5, label="confidence")
    upper.plot([0, 100], [0, 100], "--", color="0.2", linewidth=1.3)
    upper.set(ylim=(0, 104), ylabel="accuracy (%)")
    figure.legend(*upper.get_legend_handles_labels(), frameon=False, fontsize=10, loc="outside lower center", ncols=3)
    lower.bar(middle, seen, width, color="0.75", edgecolor="white")
    for x, count in zip(middle, seen, strict=True):
        lower.annotate(f"{count:,}", (x, count), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    lower.set(xlim=(0, 100), xlabel="confidence (%)", ylabel="images")
    lower.margins(y=0.25)
    title = f"{title or split}: ECE {found['ece']:.1%} ({found['ece_if_calibrated']['mean']:.1%} by chance)"
    if scaled := found["scaled"]:
        title += f"\n{scaled_in_words(scaled, split)}"
    upper.set_title(title, fontsize=10)
    for ax in (upper, lower):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def heat_over(square: np.ndarray, heat: np.ndarray, *, strength: float = 0.75) -> np.ndarray:
    """A picture under its heat, uint8 `[S, S, 3]`: where there is none the picture is as it was.

    Args:
      square: uint8 `[S, S, 3]`.
      heat: `[h, w]`, enlarged smoothly to the picture; its largest value is the full color.
      strength: how much of the picture the full color covers, 0 to 1.
    """
    side = square.shape[:2]
    share = np.asarray(heat, np.float32) / (heat.max() or 1)
    share = np.asarray(Image.fromarray(share).resize(side[::-1], Image.Resampling.BICUBIC)).clip(0, 1)
    colors = 255 * colormaps["YlOrRd"](share)[..., :3]
    cover = strength * share[..., None]
    return np.round((1 - cover) * square + cover * colors).astype(np.uint8)
