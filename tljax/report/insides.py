"""Pictures of what is inside a network: the filters of its first layer, and what a layer makes of an image."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


def filters_picture(kernel: np.ndarray) -> bytes:
    """The filters of a first layer as color pictures, a PNG.

    All share one scale: gray is zero, black and full color the largest weight of all, so strong filters look strong.

    Args:
      kernel: `[H, W, 3, filters]`.
    """
    count = kernel.shape[-1]
    columns = int(np.ceil(np.sqrt(1.5 * count)))
    rows = -(-count // columns)
    largest = np.abs(kernel).max() or 1.0
    figure = Figure(figsize=(0.62 * columns, 0.62 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for ax in axes:
        ax.axis("off")
    for ax, one in zip(axes, np.moveaxis(kernel, -1, 0), strict=False):
        ax.imshow(0.5 + one / (2 * largest), vmin=0, vmax=1, interpolation="nearest")
    figure.suptitle(f"{count} filters of {kernel.shape[0]} x {kernel.shape[1]}; gray is 0, full scale {largest:.3g}",
                    fontsize=9)  # fmt: skip
    return png(figure)


def maps_picture(maps: np.ndarray, *, signed: bool, channels: Sequence[int] | None = None, title: str = "") -> bytes:
    """Channels of a layer's output over one image, with the scale that they share, a PNG.

    The scale ends at the 99th percentile of all values without their sign, so that a spot of one channel, such as what
    padding makes at a border, does not turn the others gray.

    Args:
      maps: `[h, w, channels]`.
      signed: whether they have a sign: zero is then the middle of the scale.
      channels: what to call them; None counts from 0.
      title: a line or several.
    """
    count = maps.shape[-1]
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    most = float(np.abs(maps).max())
    largest = float(np.percentile(np.abs(maps), 99)) or most or 1.0  # few are not zero: all of them
    lines = title.count("\n") + 1 if title else 0
    width = max(4.6 if title else 0.0, 1.55 * columns + 0.8)
    figure = Figure(figsize=(width, 1.62 * rows + 0.2 * lines), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    shown = None
    for i, ax in enumerate(axes.reshape(-1)):
        ax.axis("off")
        if i < count:
            # Both scales rise in lightness throughout, so they hold in gray print and for the color-blind.
            low, colors = (-largest, "cividis") if signed else (0.0, "magma")
            shown = ax.imshow(maps[..., i], vmin=low, vmax=largest, cmap=colors, interpolation="nearest")
            ax.set_title(str(i if channels is None else channels[i]), fontsize=8, pad=2)
    if shown is not None:
        words = f"output, top 1%\ncut, up to {most:.4g}" if largest < most else "output"
        figure.colorbar(shown, ax=axes, shrink=0.7).set_label(words, fontsize=8)
    if title:
        head(figure, title)
    return png(figure)


def png(figure: Figure) -> bytes:
    """The figure as a file."""
    file = io.BytesIO()
    with warnings.catch_warnings():  # a letter that the font lacks is a box in the picture, not a page of warnings
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a class may be called `$x$`."""
    return text.replace("$", r"\$")


def short(text: str, most: int = 24) -> str:
    """One line of at most that many letters; what is too long loses its middle."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most // 2 - 1] + "…" + text[-(most - most // 2) :]


def head(figure: Figure, title: str) -> None:
    """A title over the whole figure, each line of it cut to the figure's width."""
    most = int(12 * figure.get_figwidth())  # letters of this size to the inch
    figure.suptitle("\n".join(plain(short(line, most)) for line in title.split("\n")), fontsize=10)
