"""Studies: the tables and figures of five reports, run again and set beside the published numbers.

python -m tljax.study list
python -m tljax.study show 000-table2
python -m tljax.study run 000-table2 --data pets=pets:PATH --seeds 3
python -m tljax.study run all --scale tiny
python -m tljax.study report 000-table2
"""

import argparse
import ast
import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tljax.core import shared_cache
from tljax.core.errors import UserError, counted
from tljax.core.process import keep_compilations, quiet_libraries
from tljax.core.xla_flags import compile_quickly, tune_cpu
from tljax.run_dir.files import FREE
from tljax.settings.command_line import OneLineParser, exit_status
from tljax.study.study import Look, Study

if TYPE_CHECKING:  # they bring JAX: a mistake is answered at once
    from tljax.study.jobs import Job, Run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 if runs failed, 2 for a mistake, 128 + the signal."""
    args = make_parser().parse_args(argv)
    quiet_libraries()
    command = {"list": show_list, "show": show_one, "run": run, "report": report}[args.command]
    return exit_status(lambda: command(args))


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = OneLineParser(
        prog="python -m tljax.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="one line per study")
    for name, words in (
        ("show", "its cells and what it needs"),
        ("run", "its runs; what is done is skipped"),
        ("report", "its table"),
    ):
        command = commands.add_parser(name, help=words)
        command.add_argument("name", help="a study, several with commas between, or all")
        if name == "show":
            continue
        if name == "run":
            command.add_argument("--ray", action="store_true", help="on a Ray cluster: RAY_ADDRESS, else this machine")
        command.add_argument("--folder", type=Path, default=Path("studies"), help="where runs and tables lie")
        command.add_argument("--scale", choices=("full", "tiny", "onestep"), default="full")
        command.add_argument("--seeds", type=int, help="how many; the study's own number by default")
        command.add_argument("--data", action="append", default=[], metavar="NAME=SOURCE", help="where a data set is")
        command.add_argument(
            "--row", action="append", default=[], metavar="NAME", help="only this one; may be repeated"
        )
        command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of all runs")
        command.add_argument("--search", action="append", default=[], metavar="FIELD=VALUES",
                             help="what is tried of a field that the study searches")  # fmt: skip
    return parser


def chosen(text: str) -> list[Study | Look]:
    """The studies named on the command line."""
    from tljax.study import LOOKS, STUDIES

    there = dict(sorted({**STUDIES, **LOOKS}.items()))
    names = list(there) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in there]:
        raise UserError(f"no study is called {', '.join(unknown)}; see python -m tljax.study list")
    return [there[name] for name in names]


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` options as a dictionary."""
    for text in given:
        if "=" not in text:
            raise UserError(f"{option} {text!r} is not NAME=VALUE")
    return {name: value for name, _, value in (text.partition("=") for text in given)}


def value_of(text: str) -> Any:
    """A number, a tuple or the like, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def show_list(args: argparse.Namespace) -> None:
    """Prints one line per study."""
    del args
    for study in chosen("all"):
        rows = len(study.cells if isinstance(study, Study) else study.published)
        print(f"{study.name:<19} report {study.report}, {study.item:<26} {rows:>3} rows  {study.title}")


def show_one(args: argparse.Namespace) -> None:
    """Prints the cells of studies, with their settings and published numbers."""
    for study in chosen(args.name):
        print(f"{study.name}: report {study.report}, {study.item}: {study.title}")
        print(f"needs: {'; '.join(study.needs)}")
        if isinstance(study, Study):
            print("all rows: " + ", ".join(f"{name}={value}" for name, value in study.base.items()))
            print(*(f"  {cell}" for cell in study.cells), sep="\n")
        else:
            print(*(f"  {name}: published: {text}" for name, text in study.published.items()), sep="\n")
        for text in study.protocol:
            print(f"  protocol: {text}")


class Asked(NamedTuple):
    """A study as the command line wants it, its runs, their jobs, and the folder of all runs of this scale."""

    study: Study
    runs: "list[Run]"
    jobs: "list[Job]"
    folder: Path


def asked(args: argparse.Namespace, study: Study) -> Asked:
    """What the command line makes of a study."""
    from tljax.study.jobs import check_given, make_jobs, make_runs
    from tljax.study.scales import SCALES

    scale = SCALES[args.scale]
    values = {name: value_of(text) for name, text in pairs("--search", args.search).items()}
    search = {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}
    if empty := [name for name, tried in search.items() if not tried]:
        raise UserError(f"--search {empty[0]} is empty")
    study = study.narrowed(args.row, search)
    seeds = study.seeds if args.seeds is None else args.seeds
    if seeds < 1:
        raise UserError(f"--seeds={seeds} is not 1 or more")
    given, data = pairs("--set", args.set), pairs("--data", args.data)
    overrides = {name: value_of(text) for name, text in given.items()}
    check_given(overrides)
    runs = make_runs(study, scale=args.scale, seeds=seeds, data=data, overrides=overrides)
    for name, value in overrides.items():
        plain = list(value) if isinstance(value, tuple) else value
        if name not in FREE and all(run.fields[name] != plain for run in runs):
            raise UserError(f"--set {name}: --scale={args.scale} has its own value; leave it out")
    told = [f"{name}={text.rpartition('/')[2]}" for name, text in given.items() if name not in FREE]
    told += [f"{name} one of {', '.join(map(str, tried))}" for name, tried in search.items()]
    by_hand = tuple(f"{text}, set by hand" for text in told) + (("only some of the rows",) if args.row else ())
    study = dataclasses.replace(study, differences=(*study.differences, *by_hand))
    jobs = make_jobs(runs, in_one=scale.in_one, alike=scale.alike)
    return Asked(study, runs, jobs, args.folder / args.scale / "runs")


def own_folder(args: argparse.Namespace, study: Study) -> Path:
    """Where a study's table lies; that of a part of it, or of other fields, does not take the whole's place."""
    part = [sorted(args.row), sorted(args.set), sorted(args.search)]
    name = f"{study.name}-{hashlib.sha256(repr(part).encode()).hexdigest()[:8]}" if any(part) else study.name
    return args.folder / args.scale / name


def check_paths(args: argparse.Namespace) -> None:
    """Refuses data and weights that the command line names and that are not there: all runs would fail alike."""
    for text in args.data:
        kind, _, path = text.partition("=")[2].partition(":")
        if kind in ("folder", "pets") and not Path(path).is_dir():
            raise UserError(f"--data {text}: there is no folder {path!r}")
    weights = pairs("--set", args.set).get("model.weights", "")
    if "/" in weights and not Path(weights).exists():
        raise UserError(f"--set model.weights: there is no {weights!r}")


def run(args: argparse.Namespace) -> int:
    """Runs what is not done, then writes the tables; 1 if a run failed."""
    tiny = args.scale == "tiny"
    compile_quickly() if tiny else tune_cpu()
    from tljax.report.console import make_console
    from tljax.study.cluster import run_on_ray
    from tljax.study.jobs import make_config
    from tljax.study.runner import run_jobs
    from tljax.train.checks import check

    keep_compilations(small=True)
    console, failed = make_console(), 0
    check_paths(args)
    everything = [asked(args, study) if isinstance(study, Study) else study for study in chosen(args.name)]
    for job in (job for wanted in everything if isinstance(wanted, Asked) for job in wanted.jobs):
        check(make_config(job.fields), look_at_test=True)  # a mistake is told before hours have passed
    with shared_cache.sharing():  # also from one study to the next
        for wanted in everything:
            if isinstance(wanted, Look):
                console.print(f"{wanted.name}: {look_at(args, wanted)}/report.html", markup=False, soft_wrap=True)
                continue
            study, runs, jobs, folder = wanted
            make_folder(folder)
            console.print(
                f"{study.name}: {len(study.cells)} rows, {len(runs)} runs in {counted(len(jobs), 'job')}", markup=False
            )
            outcome = (run_on_ray if args.ray else run_jobs)(jobs, folder, console)
            failed += len(outcome.failed)
            write_report(args, wanted)
            ended = f"{counted(len(outcome.done), 'job')} done, {len(outcome.failed)} failed"
            console.print(f"{study.name}: {ended}; {own_folder(args, study)}/report.html", markup=False, soft_wrap=True)
    return 1 if failed else 0


def look_at(args: argparse.Namespace, one: Look) -> Path:
    """Runs a picture through a network and writes what was seen; returns the folder."""
    from tljax.study.look import look, write

    given, data = pairs("--set", args.set), pairs("--data", args.data)
    full = args.scale == "full"
    if full and one.data not in data:
        raise UserError(f"{one.name} needs a picture: --data {one.data}=FILE")
    picture = Path(data[one.data]) if full else None
    seen = look(one, picture, given.get("model.weights", "imagenet") if full else None)
    folder = make_folder(args.folder / args.scale / one.name)
    write(one, seen, picture.name if picture else "a procedural picture", folder, scale=args.scale)
    return folder


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--folder: {folder} cannot be made: {error.strerror or error}") from None
    return folder


def report(args: argparse.Namespace) -> None:
    """Writes and prints the tables of what is done so far."""
    for study in chosen(args.name):
        if isinstance(study, Study):
            print(write_report(args, asked(args, study)))
        else:
            table = args.folder / args.scale / study.name / "table.md"
            print(table.read_text() if table.is_file() else f"{study.name} has not run yet")


def write_report(args: argparse.Namespace, wanted: Asked) -> str:
    """Writes a study's table and page into its folder, once there is something to show; returns the table."""
    from tljax.run_dir.files import write_whole
    from tljax.study.page import page
    from tljax.study.results import collect
    from tljax.study.table import markdown

    found = collect(*wanted)
    text = markdown(found, scale=args.scale)
    if any(row.found or row.failed for row in found.rows):
        where = make_folder(own_folder(args, wanted.study))
        try:
            write_whole(where / "table.md", text)
            write_whole(where / "report.html", page(found, scale=args.scale))
        except OSError as error:
            raise UserError(f"--folder: {where} cannot be written to: {error.strerror or error}") from None
    return text


if __name__ == "__main__":
    sys.exit(main())
