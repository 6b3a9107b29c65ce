"""What a study is: one table or figure of a report, as data."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

OF_CELL = "cell:"
"""`model.weights` of this form name the cell whose trained network a cell starts from."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a table, or one curve of a figure.

    Attributes:
      name: what tells it from the others, in the report's words.
      settings: fields of the config, by dotted name, over the study's base.
      search: fields with the values that were tried; the run with the highest validation accuracy counts.
      published: by measure (see `results.MEASURES`), the number as the report prints it.
      differences: where this row leaves the report's protocol, or fills a gap in it.
    """

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    search: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    differences: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a report says in words: one row is better than others.

    Attributes:
      text: its sentence.
      better: a cell.
      than: the cells that it beats.
      measure: in what.
      alike: it says instead that they are equally good.
    """

    text: str
    better: str
    than: tuple[str, ...]
    measure: str = "test"
    alike: bool = False


@dataclasses.dataclass(frozen=True)
class Study:
    """One table or figure.

    Attributes:
      name: on the command line.
      report: number of the report, '000' to '004'.
      item: its table or figure, such as 'Table 2'.
      title: what is compared.
      base: fields of the config that all cells share, over `configs/common.py`.
      cells: the rows, in the report's order.
      needs: data and weights, in words.
      measures: the columns, by name; the first is the one that rows are compared in.
      claims: what the report concludes.
      test_size: how many images the published accuracies are of; None where they do not say.
      differences: where all rows leave the report's protocol, or fill a gap in it.
      seeds: how many are run unless the command says otherwise.
    """

    name: str
    report: str
    item: str
    title: str
    base: Mapping[str, Any]
    cells: tuple[Cell, ...]
    needs: tuple[str, ...]
    measures: tuple[str, ...] = ("test",)
    claims: tuple[Claim, ...] = ()
    test_size: int | None = None
    differences: tuple[str, ...] = ()
    seeds: int = 3

    def __post_init__(self):
        names = [cell.name for cell in self.cells]
        assert len(set(names)) == len(names), f"{self.name} has a cell twice"
        assert {c.better for c in self.claims} | {n for c in self.claims for n in c.than} <= set(names), self.name

    def cell(self, name: str) -> Cell:
        return next(cell for cell in self.cells if cell.name == name)


def number(text: str) -> float:
    """The value of a number as printed; percentages become shares: '91.576 %' -> 0.91576."""
    value = float(re.sub(r"[%\s]", "", text))
    return value / 100 if "%" in text else value


def rounding(text: str) -> float:
    """Half a unit of the last digit printed: '91.576 %' -> 0.000005."""
    digits = re.sub(r"[%\s]", "", text).partition(".")[2]
    return 0.5 * 10.0 ** -len(digits) / (100 if "%" in text else 1)
