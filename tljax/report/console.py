"""What a run says while it goes on: tables, progress, one line per epoch; TensorBoard where it is installed."""

import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tljax.core.errors import UserError, are, counted, few, shown
from tljax.core.guest import importing


def make_console(*, quiet: bool = False) -> Console:
    """The console of a run; a quiet one, for processes other than the first, prints nothing."""
    # A notebook gets plain text: it takes itself for a terminal, and keeps every state of a progress bar.
    terminal = False if Console().is_jupyter else None
    narrow = not (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    out: Any = _Escaping(sys.stdout) if narrow else None
    console = Console(
        quiet=quiet, highlight=False, soft_wrap=True, force_jupyter=False, force_terminal=terminal, file=out
    )
    if not console.is_terminal:
        console.width = 200  # nobody's window: a table in a log is not cut
    return console


class _Escaping:
    """Standard output of another encoding than UTF-8; what it cannot hold is written as `\\u2192`."""

    def __init__(self, file: Any):
        self._file = file

    def write(self, text: str) -> None:
        self._file.write(text.encode(self._file.encoding, "backslashreplace").decode(self._file.encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def print_table(console: Console, title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Prints rows of equal keys, the keys as header; numbers to the right."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for key in rows[0]:
        numeric = all(row[key].strip("~")[:1].isdigit() or row[key] in ("", "-") for row in rows)
        table.add_column(Text(key), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    console.print(table, soft_wrap=False)


MOST_CLASSES = 20  # of a table with a row for each


def image_words(images: Mapping[str, int], classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    """How many classes there are, images by split, and of more than 20 classes the smallest and the largest.

    Args:
      images: by split.
      classes: names.
      counts: by split, images of each class.
    """
    words = (
        f"{counted(len(classes), 'class')}; images: {', '.join(f'{name} {count:,}' for name, count in images.items())}"
    )
    if len(classes) <= MOST_CLASSES:
        return words
    total = [sum(of_each) for of_each in zip(*counts.values(), strict=True)]

    def told(c: int) -> str:
        return f"{shown(classes[c])} ({', '.join(f'{split} {counts[split][c]:,}' for split in counts)})"

    smallest, largest = (pick(range(len(total)), key=total.__getitem__) for pick in (min, max))
    return f"{words}; the smallest class is {told(smallest)}, the largest {told(largest)}"


def class_rows(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> list[dict[str, str]]:
    """A row per class with its images by split, for `print_table`; none where there are more than 20."""
    if len(classes) > MOST_CLASSES:
        return []
    return [
        {"class": shown(name)} | {split: f"{counts[split][c]:,}" for split in counts} for c, name in enumerate(classes)
    ]


def unseen_words(without: Mapping[str, Sequence[str]], split: str) -> str:
    """Which classes an accuracy says nothing of; empty where there are none.

    Args:
      without: of result.json, the classes without an image by split.
      split: `validation` or `test`.
    """
    names = without.get(split, ())
    if not names:
        return ""
    return f"no {split} images of {few(names)}"


class Advance(Protocol):
    """Moves a progress bar to `done` of `total`, with a few words beside it."""

    def __call__(self, done: int, total: int, words: str = "") -> None: ...


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Advance]:
    """A progress bar with time left; on a terminal alone, elsewhere nothing."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, words="")
        yield lambda done, total, words="": bar.update(task, completed=done, total=total, words=words)


class Writer(Protocol):
    """Takes numbers of a step by name; clu's metric writers are of this kind."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class _NoWriter:
    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


TRACKERS = {"tensorboard": (), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}
"""What can be told of a run, and the packages of its extra."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError for a tracker that there is not, or that is not installed.

    TensorBoard is what is told where nothing is said; without it, a run says so in a line.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"trackers={tuple(names)}: {name!r} is not one of {', '.join(TRACKERS)}")
        for package in ("clu", "tensorflow", *TRACKERS[name]) if TRACKERS[name] else ():
            if importlib.util.find_spec(package) is None:
                raise UserError(f"trackers={tuple(names)}: {package} is not installed; pip install -e '.[{name}]'")


def load_writers() -> Any:
    """Imports clu's writers, and TensorFlow with them, which takes seconds. Raises ImportError."""
    with importing():
        from clu import metric_writers
    return metric_writers


def make_writer(workdir: Path, console: Console, config: Any, *, first: bool) -> Writer:
    """clu's writers, to TensorBoard and the log, and to the trackers that the config names.

    Where those to TensorBoard cannot be imported, one line says so and none write.

    Raises:
      UserError: for a tracker that cannot be begun.
    """
    if not first or not config.trackers:
        return _NoWriter()
    try:
        metric_writers = load_writers()
    except ImportError as error:
        console.print(f"TensorBoard is off: {error.name or 'clu'} is not installed; metrics.csv has the same numbers")
        return _NoWriter()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    writers: list[Any] = []
    for name in dict.fromkeys(config.trackers):
        if name == "tensorboard":
            writers.append(metric_writers.create_default_writer(str(workdir), asynchronous=False))
        else:
            with importing():
                from tljax.report import trackers  # subclasses clu's interface

            writers.append(trackers.open_tracker(name, workdir, console, config.to_dict()))
    return metric_writers.MultiWriter(writers)


def epoch_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """An epoch in words; `rows` has the line of each member in its history."""
    first = rows[0]
    words = [f"epoch {first['epoch']:>3}"]
    if len(rows) == 1:
        words.append(f"training loss {first['train_loss']:.4f} {first['train_accuracy']:6.1%}")
        if first["val_accuracy"] is not None:
            counts = f"({first['val_correct']} of {first['val_seen']})"
            words.append(f"validation loss {first['val_loss']:.4f} {first['val_accuracy']:6.1%} {counts}")
        return words
    for split, name in (("train", "training"), ("val", "validation")):
        values = [row[f"{split}_accuracy"] for row in rows]
        if values[0] is not None:
            words.append(f"{name} {min(values):6.1%} to {max(values):6.1%}")
    return [*words, f"{counted(len(rows), 'member')}"]


def percent(correct: int, seen: int, interval: Sequence[float]) -> str:
    """'81.5% (380 of 466; 77.8 to 84.8)', the interval being the 95% one."""
    return f"{correct / seen:.1%} ({correct:,} of {seen:,}; {100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def print_evaluation(console: Console, result: Mapping[str, Any]) -> None:
    """Accuracies of a single run; of the last split how sure it is for how often right, and its lowest classes."""
    told = [name for name in ("validation", "test") if result[name] is not None]
    for name in told:
        found = result[name]
        which = f", best epoch {found['best_epoch']}" if name == "validation" else ""
        which += ", chosen on these images" if which and found["chose_epoch"] else ""
        before = result.get("trained_before", {}).get(name, {})
        if rest := before.get("without"):
            which += f"; without {before['images']:,} that an earlier run trained on "
            which += percent(rest["correct"], rest["seen"], rest["interval95"])
        unseen = unseen_words(result.get("without_images", {}), name)
        console.print(
            f"{name} accuracy {percent(found['correct'], found['seen'], found['interval95'])}{which}"
            + (f"; {unseen}" if unseen else ""), markup=False
        )  # fmt: skip
    if not told:
        return
    if found := result["calibration"][told[-1]]:
        words = f"{told[-1]} calibration error {found['ece']:.1%} ({found['ece_if_calibrated']['mean']:.1%} by chance)"
        if scaled := found["scaled"]:
            words += f", {scaled_in_words(scaled, told[-1])}"
        console.print(words)
    shares = {name: share for name, share in result["by_class"][told[-1]].items() if share["seen"]}
    lowest = sorted(shares, key=lambda name: shares[name]["accuracy"])[: min(5, len(shares) // 2)]
    words = [f"{name} {shares[name]['accuracy']:.0%} ({shares[name]['correct']} of {shares[name]['seen']})"
             for name in lowest]  # fmt: skip
    if words:
        console.print(f"lowest by class, {told[-1]}: {', '.join(words)}", markup=False)


def scaled_in_words(scaled: Mapping[str, Any], split: str) -> str:
    """'8.4% at validation's temperature 0.76 (fitted on 468 images, 51 of them wrong)', or why nothing was scaled.

    Args:
      scaled: of `calibration.calibration`.
      split: whose error it has, validation or test.
    """
    whose = "its own" if split == "validation" else "validation's"
    return ("" if scaled.get("raw") else f"{scaled['ece']:.1%} at {whose} ") + fit_in_words(scaled)


def fit_in_words(fitted: Mapping[str, Any]) -> str:
    """How a temperature was found, or why the logits are left as they are; a record of an older version does not say.

    Args:
      fitted: `calibration.Temperature` as a dictionary, perhaps with more in it.
    """
    if fitted.get("raw"):
        return f"logits are not scaled: {fitted['raw']}"
    words = f"temperature {fitted['temperature']:.2f}"
    if "fit_images" not in fitted:
        return words
    return f"{words} (fitted on {counted(fitted['fit_images'], 'image')}, {fitted['fit_mistakes']:,} of them wrong)"


def print_duplicates(console: Console, told: Mapping[str, Any], *, before: bool = False) -> None:
    """A line for each kind of images that occur in two splits, and for training images with two labels.

    Args:
      console: where to print.
      told: `duplicates` of result.json.
      before: whether a training follows, whose accuracy may be too high by them.
    """
    for split, among in ((name, told[name]) for name in ("validation", "test") if name in told):
        for other, found in among.items():
            exact, near, layout = found["exact"], found["near"], found.get("same_layout", 0)
            if before and layout:
                images, have = counted(found["images"], f"{split} image"), "has" if layout == 1 else "have"
                console.print(
                    f"{layout:,} of {images} {have} the layout of others in {other}: "
                    "whether they are changed copies is not known"
                )
            if not (count := exact + near):
                continue
            whole = f" of {counted(found['images'], f'{split} image')}"
            parts = [f"{exact:,}{whole} {are(exact)} in {other}, too"] * bool(exact)
            what = "" if exact else whole
            parts += [f"{near:,}{what} look{'s' * (near == 1)} nearly the same as one in {other}"] * bool(near)
            image, copy, _ = found["examples"][0]
            words = f"{'; '.join(parts)}; such as {image!r} as {copy!r}"
            if other == "train" and before:
                some = "it will be told without them, too" if count < found["images"] else f"no {split} image is left"
                words += f"; {split} accuracy may be too high by them; {some}"
                if near:
                    words += "; what is only nearly the same may be another picture of one layout: look at some"
            console.print(words, markup=False)
    if names := told["contradictions_in_train"]:
        have = f"{counted(len(names), 'training image')} {'has' if len(names) == 1 else 'have'}"
        console.print(f"{have} the pixels of one with another label, such as {names[0]!r}", markup=False)


def print_without_duplicates(console: Console, told: Mapping[str, Any]) -> None:
    """A line for each accuracy without the images that are in train, too, which were named before the training."""
    for split, rest in told.get("without", {}).items():
        if rest:
            count = told[split]["train"]["exact"] + told[split]["train"]["near"]
            accuracy = percent(rest["correct"], rest["seen"], rest["interval95"])
            console.print(f"{split} accuracy without {count:,} that {are(count)} or may be in train, too: {accuracy}")
