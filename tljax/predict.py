"""`python -m tljax.predict WORKDIR IMAGE...`: what a finished run says of pictures.

    python -m tljax.predict runs/folder cat.jpg holiday/ 'scans/*.png'
    find photos -name '*.jpg' | python -m tljax.predict runs/folder - --format csv > answers.csv

An IMAGE is a file, a folder with all that lies in it, a pattern in quotes, or `-`: names from standard input, a line
each or with zero bytes between them (find -print0), or one picture there. Probabilities are calibrated by the
temperature that validation gave, if it could. A file that cannot be read has its reason in its place.
"""

import csv
import json
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tljax.core.errors import UserError, counted, one_line
from tljax.core.process import keep_compilations
from tljax.core.xla_flags import tune_cpu
from tljax.inference.batch_predict import Answer, ask, find_pictures, read_stdin
from tljax.settings.command_line import OneLineParser, exit_status

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
FORMATS = ("table", "csv", "jsonl")


def as_jsonl(file: TextIO) -> Callable[[Answer], None]:
    """A line of JSON per picture: `file`, and `top` or `error`."""

    def put(answer: Answer) -> None:
        told: dict[str, Any] = {"file": answer.name}
        if answer.reason:
            told["error"] = answer.reason
        else:
            told["top"] = [{"class": name, "probability": round(share, 6)} for name, share in answer.best]
        file.write(json.dumps(told, ensure_ascii=False) + "\n")

    return put


def as_csv(file: TextIO, top: int) -> Callable[[Answer], None]:
    """A row per picture: file, class and probability by rank, error."""
    writer = csv.writer(file, lineterminator="\n")
    ranks = [f"{part}_{rank}" for rank in range(1, top + 1) for part in ("class", "probability")]
    writer.writerow(["file", *ranks, "error"])

    def put(answer: Answer) -> None:
        cells = [cell for name, share in answer.best for cell in (name, f"{share:.6f}")]
        writer.writerow([answer.name, *cells, *[""] * (2 * top - len(cells)), answer.reason])

    return put


def as_table(file: TextIO, widest: int) -> Callable[[Answer], None]:
    """A line per picture, in columns, as they come."""

    def put(answer: Answer) -> None:
        if answer.reason:
            words = f"cannot be read: {answer.reason}"
        else:
            words = "   ".join(f"{share:6.1%} {name}" for name, share in answer.best)
        file.write(f"{one_line(answer.name):<{widest}}   {words}\n")

    return put


def make_parser() -> OneLineParser:
    parser = OneLineParser("python -m tljax.predict", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workdir", type=Path, help="the folder of a finished run")
    parser.add_argument("image", nargs="+", help="a file, a folder, a pattern, or - for standard input")
    parser.add_argument("--top", type=int, default=3, help="classes per picture")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--batch", type=int, default=32, help="pictures that go through the network together")
    parser.add_argument("--flips", action="store_true", help="look at each picture mirrored, too, and average")
    parser.add_argument("--workers", type=int, help="decoding threads; one per core by default")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return exit_status(lambda: predict(args))


def predict(args: Any) -> int:
    """Prints what the run says; 1 if no picture could be read."""
    for name in ("top", "batch", "workers"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name}={value} is not a positive number")
    pictures = find_pictures(args.image, read_stdin)
    tune_cpu()
    from tljax.inference.classifier import load  # after the flags: a mistake is answered at once

    keep_compilations()
    classifier = load(args.workdir)
    if reason := classifier.fitted.get("raw"):
        print(f"tljax: probabilities are not calibrated: {reason}", file=sys.stderr)
    top = min(args.top, len(classifier.classes))
    out = sys.stdout
    put = {"csv": lambda: as_csv(out, top), "jsonl": lambda: as_jsonl(out),
           "table": lambda: as_table(out, max(len(picture.name) for picture in pictures))}[args.format]()  # fmt: skip
    unread = 0
    answers = ask(classifier, pictures, batch_size=args.batch, top=top, flips=args.flips, workers=args.workers)
    console = Console(stderr=True)
    shown = console.is_terminal and not out.isatty()  # else the answers themselves show how far it is
    with Progress(*COLUMNS, console=console, transient=True, disable=not shown) as bar:
        for answer in bar.track(answers, total=len(pictures), description="pictures"):
            put(answer)
            unread += bool(answer.reason)
    if unread:
        print(f"tljax: {unread:,} of {counted(len(pictures), 'picture')} could not be read", file=sys.stderr)
    return int(unread == len(pictures))


class _Function(types.ModuleType):
    """This module, which `import tljax` has as the function `tljax.predict`, too, whichever was imported first."""

    def __call__(self, *args: Any, **options: Any) -> list[Answer]:
        from tljax import import_api

        return import_api().predict(*args, **options)


sys.modules[__name__].__class__ = _Function

if __name__ == "__main__":
    sys.exit(main())
