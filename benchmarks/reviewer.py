"""Recomputes every number and verdict of docs/results from the answers that lie beside each page; `make reviewer`.

python benchmarks/reviewer.py                 (says the first line of each page that differs; exit status 1 if one does)
python benchmarks/reviewer.py --write         (writes the pages)

A page is written by its template, benchmarks/pages/NAME.md.jinja, from docs/results/NAME.jsonl.xz (`archive.py`). A
template has no numbers of its own: they are computed, or marked `given(...)`, where a report, a config or a picture has
them. Words that state a verdict are `says(words, condition)`, which fails where it no longer holds.
"""

import argparse
import dataclasses
import itertools
import json
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import archive, suggest_page
from benchmarks.defaults import RECIPES
from benchmarks.defaults_page import make_page
from tljax.core.errors import UserError, one_line
from tljax.metrics import significance
from tljax.run_dir.files import write_whole
from tljax.study import LOOKS, STUDIES, table, verdicts
from tljax.study import look as looks
from tljax.study.results import Findings, Row, measure

ROOT = Path(__file__).resolve().parent.parent
PAGES, TEMPLATES = ROOT / "docs" / "results", ROOT / "benchmarks" / "pages"
TEMPLATE, ARCHIVE = ".md.jinja", ".jsonl.xz"
INDEX = "README.md"
NOT_RECOMPUTED = {
    "few_labels.md": "its predictions were not kept; the commands on it run it again",
    "suggest.md": "its predictions were not kept; benchmarks/suggest.py runs it again",
}
WIDTH = 116
NUMBER = re.compile(
    r"(?<![A-Za-z])\d|\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|half|twice)\b", re.IGNORECASE
)
# What a digit may be part of in prose: names.
NAMES = re.compile(r"SqueezeNet 1\.[01]|ResNet-\d+|[Rr]eports? 00\d|Tables? \d|[Ff]igures? \d|\]\([^)]*\)|`[^`]*`")


class Stale(Exception):
    """A sentence that the answers do not bear out."""


def says(words: str, condition: bool) -> str:
    """The words, if what they say holds."""
    if NUMBER.search(words):
        raise Stale(f"says({words!r}) has a number of its own")
    if not condition:
        raise Stale(f"{words!r} does not hold")
    return words


def joined(parts: Sequence[Findings]) -> Findings:
    """Rows of one study that ran by several commands, as one table; each row says how it ran."""
    first, *rest = parts
    if not rest:
        return first
    rows = tuple(row for part in parts for row in part.rows)
    whole = STUDIES[first.study.name]
    common = [text for text in first.study.differences if all(text in part.study.differences for part in rest)]
    own = [
        f"{', '.join(row.cell.name for row in part.rows)}: {text}"
        for part in parts
        for text in part.study.differences
        if text not in common
    ]
    study = whole.narrowed([row.cell.name for row in rows], {})
    return Findings(dataclasses.replace(study, differences=(*common, *own)), rows)


class Words:
    """What a template may ask for, over the parts of an archive."""

    def __init__(self, parts: Mapping[str, archive.Part], folder: Path):
        self._parts, self._found = parts, archive.read_findings(parts, folder)

    def found(self, *names: str) -> Findings:
        """What a part found, `PART` or `PART/STUDY`; of several, their rows together."""
        if missing := [name for name in names if name not in self._found]:
            raise Stale(f"no part {missing[0]!r}; there are {', '.join(self._found)}")
        return joined([self._found[name] for name in names])

    def has(self, name: str) -> bool:
        """Whether the archive has a part."""
        return name in self._parts

    def seen(self, name: str) -> Mapping[str, Any]:
        """What a network said of one picture: `picture`, `best` and numbers of its `first layer`."""
        return self._parts[name].runs[0]["result"]

    def ranks(self, name: str) -> str:
        """The table of one picture's classes."""
        run = self._parts[name].runs[0]
        head, body = looks.grid(LOOKS[run["study"]], run["result"]["best"], run["result"]["picture"])
        return table.as_table(head, body)

    def command(self, name: str) -> str:
        """What ran a part, indented as code."""
        words = ["python -m tljax.study", *map(shlex.quote, self._parts[name].command)]
        lines, line = [], ""
        for option in _options(words):
            if line and len(line) + len(option) > WIDTH - 8:
                lines.append(line)
                line = " "
            line += (" " if line else "") + option
        return " \\\n".join("    " + each for each in [*lines, line])

    def all(self) -> dict[str, Callable[..., Any]]:
        """By the names that templates use."""
        return {
            "found": self.found, "has": self.has, "seen": self.seen, "ranks": self.ranks, "command": self.command,
            "says": says, "given": str, "table": grid, "sentences": told, "protocol": protocol, "accuracy": accuracy,
            "by_seed": by_seed, "interval": interval, "points": points, "verdict": verdict, "decided": decided,
            "claims": claims, "images": images, "epochs": epochs,
            "colors": colors,
        }  # fmt: skip


def _options(words: Sequence[str]) -> list[str]:
    """Words of a command, an option with its value."""
    told: list[str] = []
    for word in words:
        if told and not word.startswith("--") and (told[-1].startswith("--") or len(told) == 1):
            told[-1] += f" {word}"
        else:
            told.append(word)
    return told


def grid(found: Findings, *, without: Sequence[str] = ()) -> str:
    """The table as `python -m tljax.study` prints it; `without` columns of these heads."""
    head, body = table.grid(found)
    shown = [i for i, title in enumerate(head) if title not in without]
    head, *body = ([line[i] for i in shown] for line in (head, *body))
    return table.as_table(head, body)


def told(found: Findings) -> str:
    """What the table shows, as `python -m tljax.study` prints it."""
    return "\n".join(f"- {sentence}" for sentence in table.sentences(found))


def protocol(found: Findings) -> str:
    """Where it leaves the report's protocol."""
    return "\n".join(f"- {text}" for text in found.study.protocol)


def row_of(found: Findings, name: str) -> Row:
    """A row by its name."""
    if name not in (names := [row.cell.name for row in found.rows]):
        raise Stale(f"no row {name!r}; there are {'; '.join(names)}")
    return found.row(name)


def accuracy(found: Findings, row: str, name: str = "test", digits: int = 1) -> str:
    """A measure's mean over seeds, in percent."""
    value = row_of(found, row).mean(name)
    if value is None:
        raise Stale(f"{row} has no {name}")
    return f"{100 * value:.{digits}f}"


def by_seed(found: Findings, row: str, name: str = "test", digits: int = 1) -> str:
    """A measure of each seed, shares in percent."""
    factor = 100 if measure(name).share else 1
    shown = f".{digits}f" if measure(name).share else "g"
    return ", ".join(f"{factor * value:{shown}}" for value in row_of(found, row).values(name))


def interval(found: Findings, row: str, name: str = "test") -> str:
    """Student's 95% interval of a mean over seeds, in percent."""
    ends = significance.mean_interval(row_of(found, row).values(name), share=True)
    if ends is None:
        raise Stale(f"{row} has one seed: no interval")
    return table.span(ends)


def points(found: Findings, a: str, b: str, name: str = "test") -> str:
    """By how much a row is higher than another, with its interval over seeds and test images."""
    difference = found.difference(a, b, name)
    if difference is None:
        raise Stale(f"{a} and {b} have no seed in common")
    return verdicts.difference_words(difference)


def verdict(found: Findings, a: str, b: str, name: str = "test") -> str:
    """Whether a row is higher than another; corrected for all pairs of the table (Holm), as the table's sentence is."""
    judged = verdicts.judge_all_pairs(found, name)
    if (a, b) in judged:
        return judged[a, b].verdict
    back = {verdicts.HELD: verdicts.REFUTED, verdicts.REFUTED: verdicts.HELD}
    return back.get(judged[b, a].verdict, judged[b, a].verdict)


def decided(found: Findings, name: str = "test") -> int:
    """How many pairs of rows differ by more than noise."""
    judged = verdicts.judge_all_pairs(found, name).values()
    return sum(one.verdict in (verdicts.HELD, verdicts.REFUTED) for one in judged)


def claims(found: Findings) -> list[str]:
    """What became of each claim of the report."""
    return [judged.verdict for _, judged in verdicts.judge_claims(found)]


def images(found: Findings, part: str) -> str:
    """How many images trained, validated or tested: `train`, `validation`, `test`."""
    sizes = {one.result[part]["images" if part == "train" else "seen"] for row in found.rows for one in row.found}
    if len(sizes) != 1:
        raise Stale(f"runs have {', '.join(map(str, sorted(sizes)))} images of {part}")
    return f"{sizes.pop():,}"


def epochs(found: Findings, row: str) -> str:
    """How many a row's runs were set to."""
    return str(row_of(found, row).found[0].result["config"]["epochs"])


def colors(found: Findings, which: str) -> str:
    """`mean` or `std` of the colors that all runs were normalized by."""
    values = {tuple(one.result["preprocessing"][which]) for row in found.rows for one in row.found}
    if len(values) != 1:
        raise Stale(f"runs were normalized by {len(values)} different values")
    return ", ".join(f"{value:.4f}" for value in values.pop())


def bare_numbers(source: str) -> list[tuple[int, str]]:
    """Numbers of a template's prose that are neither computed nor marked `given`: line and text."""
    tags = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
    blank = tags.sub(lambda tag: "\n" * tag[0].count("\n") or "~", source)
    found = []
    for number, line in enumerate(blank.splitlines(), 1):
        if not line.startswith(("#", "    ")):
            found += [(number, m[0]) for m in NUMBER.finditer(NAMES.sub("", line))]
    parsed = jinja2.Environment().parse(source)
    for output in parsed.find_all(nodes.Output):
        found += [(n.lineno, str(n.value)) for n in output.nodes if isinstance(n, nodes.Const)]
    return found


def render(template: Path, data: Path) -> str:
    """A page.

    Args:
      template: its template.
      data: its archive.

    Raises:
      UserError: naming the template's line, where it has a bare number or a sentence no longer holds.
    """
    source = template.read_text(encoding="utf-8")
    if bare := bare_numbers(source):
        line, text = bare[0]
        raise UserError(f"{template.name}, line {line}: {text!r} is neither computed nor given(...)")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(template.parent),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        words = Words(archive.read(data) if data.exists() else {}, Path(folder))
        try:
            return environment.get_template(template.name).render(words.all())
        except Exception as error:  # a template is a program, and its mistakes are its author's
            _stale(template, error)


def _stale(template: Path, error: Exception) -> NoReturn:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(template.name)]
    line = frames[-1].lineno if frames else getattr(error, "lineno", "?")
    what = one_line(error) if isinstance(error, Stale) else f"{type(error).__name__} {one_line(error)}"
    raise UserError(f"{template.name}, line {line}: {what}") from None


def make_defaults(data: Path) -> str:
    """The page that `make bench-defaults` writes."""
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    return make_page(lines, RECIPES, record=data.name)


def makers(pages: Path, templates: Path) -> dict[str, Callable[[], str]]:
    """What writes each page, by its name."""
    made: dict[str, Callable[[], str]] = {}
    for template in sorted(templates.glob(f"*{TEMPLATE}")):
        name = template.name.removesuffix(TEMPLATE)
        made[f"{name}.md"] = lambda template=template, name=name: render(template, pages / f"{name}{ARCHIVE}")
    if (data := pages / "defaults.jsonl").exists():
        made["defaults.md"] = lambda: make_defaults(data)
    if (cases := pages / "suggest.jsonl").exists():
        made["suggest.md"] = lambda: suggest_page.make_page(suggest_page.read(cases))
    return made


def review(pages: Path = PAGES, templates: Path = TEMPLATES, *, rewrite: bool = False) -> list[str]:
    """What is wrong with the pages, a sentence each; `rewrite` writes what differs."""
    made, wrong = makers(pages, templates), []
    for path in sorted({*pages.glob("*.md"), *(pages / name for name in made)}):
        if path.name == INDEX or (path.name in NOT_RECOMPUTED and path.name not in made):
            continue
        if path.name not in made:
            wrong.append(f"{path.name} has no template, so that nobody can recompute it")
            continue
        try:
            expected = made[path.name]()
        except UserError as error:
            wrong.append(str(error))
            continue
        if rewrite:
            write_whole(path, expected)
        elif difference := first_difference(expected, path.read_text(encoding="utf-8") if path.exists() else ""):
            wrong.append(f"{path.name}, {difference}")
    return wrong


def first_difference(expected: str, found: str) -> str | None:
    """The first line that differs, in words; None where none does."""
    if expected == found:
        return None
    pairs = itertools.zip_longest(expected.splitlines(), found.splitlines(), fillvalue="")
    for number, (ours, theirs) in enumerate(pairs, 1):
        if ours != theirs:
            return f"line {number}\n  recomputed: {ours}\n  on the page: {theirs}"
    return "its end: another newline"


def main() -> int:
    """Recomputes the pages; 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the pages")
    args = parser.parse_args()
    wrong = review(rewrite=args.write)
    made = makers(PAGES, TEMPLATES)
    print(f"recomputed: {', '.join(sorted(made))}")
    for name, why in NOT_RECOMPUTED.items():
        if name not in made:
            print(f"not recomputed: {name}: {why}")
    for text in wrong:
        print(f"WRONG: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
