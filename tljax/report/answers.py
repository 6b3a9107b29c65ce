"""Pictures of what a network answered: a confusion matrix, images in rows, an answer with its reasons."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from tljax.report.insides import head, plain, png, short
from tljax.report.plots import heat_over

LARGEST = 60  # classes of a confusion matrix that can be read
_SPLIT = 12  # classes up to which its cells have room


class Captioned(NamedTuple):
    """A picture with its lines.

    Attributes:
      picture: uint8 `[H, W, 3]`.
      lines: what stands above it.
    """

    picture: np.ndarray
    lines: tuple[str, ...]


class Reason(NamedTuple):
    """Where an answer comes from.

    Attributes:
      square: what the network saw, uint8 `[S, S, 3]`.
      heats: (title, Grad-CAM `[h, w]`) by class.
      saliency: `[S, S]`.
    """

    square: np.ndarray
    heats: tuple[tuple[str, np.ndarray], ...]
    saliency: np.ndarray


def confusion_picture(counts: np.ndarray, classes: Sequence[str], *, title: str) -> bytes:
    """Images by true class (rows) and answer (columns), a PNG: counts, on the share of the row as a shade.

    Args:
      counts: int `[C, C]`; C at most `LARGEST`, or numbers and names are too small to read.
      classes: their names.
      title: a line.
    """
    count, small = len(classes), len(classes) > _SPLIT
    side = 0.29 * count if small else max(2.4, 0.62 * count)
    figure = Figure(figsize=(side + 2.6, side + 1.9), layout="constrained")
    ax = figure.subplots()
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shown = ax.imshow(shares, vmin=0, vmax=100, cmap="Blues")
    for (row, column), value in np.ndenumerate(counts):
        if value or not small:
            color = "white" if shares[row, column] > 55 else "black" if value else "0.6"
            ax.text(column, row, f"{value}", ha="center", va="center", fontsize=7 if small else 10, color=color)
    size, names = 7.5 if small else 10, [plain(short(name)) for name in classes]
    ax.set_xticks(range(count), names, rotation=90 if small else 35, ha="center" if small else "right", fontsize=size,
                  rotation_mode="default" if small else "anchor")  # fmt: skip
    ax.set_yticks(range(count), names, fontsize=size)
    ax.set_xticks(np.arange(count - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(count - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="0.85", linewidth=0.5)
    ax.tick_params(which="minor", length=0)
    ax.set(xlabel="answer", ylabel="true class")
    head(figure, title)
    figure.colorbar(shown, ax=ax, shrink=0.75, label="share of the true class's images (%)")
    return png(figure)


def gallery_picture(shown: Sequence[Captioned], *, title: str) -> bytes:
    """Pictures in rows under their lines, a PNG."""
    columns = min(3 if len(shown) in (5, 6, 9) else 4, len(shown))
    rows, deep = -(-len(shown) // columns), max(len(one.lines) for one in shown)
    width, high = max(4.6, 2.2 * columns), 0.2 * (1 + title.count("\n")) + 0.2
    figure = Figure(figsize=(width, (2.15 + 0.17 * deep) * rows + high), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for ax in axes:
        ax.axis("off")
    for ax, one in zip(axes, shown, strict=False):
        ax.imshow(one.picture, interpolation="nearest")
        most = int(13 * width / columns)  # letters of this size to the inch
        ax.set_title("\n".join(plain(short(line, most)) for line in one.lines), fontsize=8.5, pad=3)
    head(figure, title)
    return png(figure)


def reason_picture(reason: Reason, *, title: str) -> bytes:
    """A picture, its Grad-CAM for one class or several over it, and its saliency, with their scales, a PNG."""
    heats = reason.heats
    figure = Figure(figsize=(2.7 * (2 + len(heats)), 3.75), layout="constrained")
    axes = figure.subplots(1, 2 + len(heats))
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    axes[0].imshow(reason.square, interpolation="nearest")
    axes[0].set_title("what the network saw", fontsize=9)
    _bar(figure, axes[0], ScalarMappable(), " ").ax.set_visible(False)  # keeps its room, so that pictures line up
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    colors = ListedColormap(heat_over(np.full((1, 256, 3), 255, np.uint8), ramp)[0] / 255)
    for ax, (words, heat) in zip(axes[1:], heats, strict=False):
        largest = float(heat.max())
        ax.imshow(heat_over(reason.square, heat), interpolation="nearest")
        ax.set_title(plain(f"Grad-CAM for {short(words)}"), fontsize=9)
        scale = ScalarMappable(Normalize(0, largest or 1), colors)
        words = "logits (on white)" if largest else "nothing speaks for it"
        _bar(figure, ax, scale, words)
    largest = float(np.percentile(reason.saliency, 99)) or 1.0
    shown = axes[-1].imshow(reason.saliency, vmin=0, vmax=largest, cmap="magma", interpolation="nearest")
    axes[-1].set_title(plain(f"saliency for {short(heats[0][0])}"), fontsize=9)
    _bar(figure, axes[-1], shown, "logits per unit of a pixel (top 1% cut)")
    head(figure, title)
    return png(figure)


def _bar(figure: Figure, ax: Axes, scale: ScalarMappable, words: str) -> Colorbar:
    bar = figure.colorbar(scale, ax=ax, orientation="horizontal", shrink=0.9, pad=0.02)
    bar.set_label(words, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.locator_params(nbins=4)
    return bar
