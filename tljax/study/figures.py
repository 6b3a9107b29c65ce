"""The pictures of a study's page, as SVG text that takes the page's own color for its lines and words."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from tljax.metrics.accuracy import wilson_interval
from tljax.metrics.printed import number
from tljax.metrics.significance import mean_interval
from tljax.report.plots import plain
from tljax.study.results import Row, measure
from tljax.study.study import Study

INK = "#010203"  # replaced by the page's color
OURS, THEIRS = "#3b82c4", "#c2603d"  # readable on white and on black
LINES = ("#3b82c4", "#c2603d", "#4d9a5b", "#9a6cc0", "#b58a2a", "#c4588f", "#4fa3a8", "#7d7d7d", "#8a6d4f", "#6b7fd6")
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "tljax", "font.family": "sans-serif", "font.size": 9, "text.color": INK,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip


def rows_picture(study: Study, rows: Sequence[Row]) -> str | None:
    """Each row's value, ours and published, with 95% intervals; None where nothing has run."""
    name = study.measures[0]
    share, shown = measure(name).share, [row for row in rows if row.values(name) or name in row.cell.published]
    if not share or not any(row.values(name) for row in rows):
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 0.9 + 0.42 * len(shown)), layout="constrained")
        ax = figure.subplots()
        for y, row in enumerate(reversed(shown)):
            values = row.values(name)
            if values:
                ends = row.interval(name) or mean_interval(values, share=True) or (min(values), max(values))
                _bar(ax, y + 0.12, sum(values) / len(values), ends, OURS, "o", "ours")
                ax.plot([100 * v for v in values], [y + 0.12] * len(values), "|", color=OURS, markersize=7, alpha=0.7)
            if name in row.cell.published:
                theirs = number(row.cell.published[name])
                counts = study.published_counts(row.cell)
                ends = wilson_interval(*counts) if counts else (theirs, theirs)
                _bar(ax, y - 0.14, theirs, ends, THEIRS, "D", "published")
        ax.set_yticks(range(len(shown)), [plain(row.cell.name) for row in reversed(shown)])
        ax.set_ylim(-0.6, len(shown) - 0.4)
        ax.set_xlabel(f"{measure(name).title} (%)\n95% intervals")
        ax.grid(axis="x", color=INK, alpha=0.12)
        handles, labels = ax.get_legend_handles_labels()
        by_label = dict(zip(labels, handles, strict=True))
        ax.legend(by_label.values(), by_label.keys(), loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
        return svg(figure)


def _bar(ax: Any, y: float, value: float, ends: tuple[float, float], color: str, marker: str, label: str) -> None:
    ax.plot([100 * end for end in ends], [y, y], color=color, linewidth=2)
    ax.plot(100 * value, y, marker, color=color, markersize=5, label=label)


def moving_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Means of each value and those before it, `window` in all; at the start of as many as there are."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def curves_picture(tried: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], *, smooth: int = 1) -> str | None:
    """Validation accuracy by epoch, a line per run; None where nothing was validated.

    Args:
      tried: names of runs and their histories.
      smooth: over how many epochs the lines are moving means; what they are means of is drawn thinly.
    """
    histories = [(plain(words), [e["val_accuracy"] for e in history]) for words, history in tried]
    histories = [(words, values) for words, values in histories if values and values[0] is not None]
    if not histories:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, max(2.8, 0.5 + 0.19 * len(histories))), layout="constrained")
        ax = figure.subplots()
        for (words, values), color in zip(histories, LINES * 9, strict=False):
            epochs = np.arange(1, len(values) + 1)
            if smooth > 1:
                ax.plot(epochs, 100 * np.asarray(values), color=color, linewidth=0.6, alpha=0.5)
            style, means = "o-" if len(values) < 8 else "-", 100 * moving_mean(values, smooth)
            ax.plot(epochs, means, style, color=color, markersize=3, linewidth=1.4, label=words)
        ax.set_xlabel("epoch")
        ax.set_ylabel("validation accuracy (%)" + (f", moving mean of {smooth}" if smooth > 1 else ""))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(color=INK, alpha=0.12)
        if len(histories) > 1:
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        return svg(figure)


def confusion_picture(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """Test images by true class (rows) and answer (columns), counts."""
    side = max(3.0, 0.42 * len(classes) + 1.6)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(side, side), layout="constrained")
        ax = figure.subplots()
        shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        for (i, j), share in np.ndenumerate(shares):
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=OURS, alpha=float(share) * 0.8, lw=0))
            if confusion[i, j] and len(classes) <= 12:
                ax.text(j, i, str(confusion[i, j]), ha="center", va="center", fontsize=8)
        names = [plain(name[:22]) for name in classes]
        ax.set_xticks(range(len(classes)), names, rotation=90)
        ax.set_yticks(range(len(classes)), names)
        ax.set_xlim(-0.5, len(classes) - 0.5)
        ax.set_ylim(len(classes) - 0.5, -0.5)
        ax.set_xlabel("answer")
        ax.set_ylabel("true class")
        ax.set_aspect("equal")
        return svg(figure)


def svg(figure: Figure) -> str:
    """The figure as an element of a page: no prologue, no fixed size, the page's color and fonts."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    found = text.getvalue()
    found = found[found.index("<svg") :].replace(INK, "currentColor")
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    return re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', r'style="width:100%;max-width:\1pt"', found, count=1)
