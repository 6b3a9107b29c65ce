"""What a study is: one table or figure of a report, as data."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tljax.core.errors import UserError
from tljax.metrics.printed import number

OF_CELL = "cell:"
"""`model.weights` of this form name the cell whose trained network a cell starts from."""

TORCH_DEFAULT = "trained:train,frozen:torch_frozen_params"
"""`transfer.bn` of a PyTorch script that sets requires_grad and calls train(), as most reports' scripts do."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a table, or one curve of a figure.

    Attributes:
      name: what tells it from the others, in the report's words.
      settings: fields of the config, by dotted name, over the study's base.
      search: fields with the values that were tried; the run with the highest validation accuracy counts.
      published: by measure (see `results.MEASURES`), the number as the report prints it.
      differences: where this row leaves the report's protocol, or fills a gap in it.
      test_size: how many images its published accuracy is of, where they are others than the study's.
    """

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    search: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    differences: tuple[str, ...] = ()
    test_size: int | None = None

    def __str__(self) -> str:
        settings = {**self.settings, **{name: f"one of {values}" for name, values in self.search.items()}}
        told = ", ".join(f"{name}={value}" for name, value in settings.items())
        published = ", ".join(f"{name} {text}" for name, text in self.published.items())
        return f"{self.name}: {told or 'as above'}" + (f"; published: {published}" if published else "")


MARGIN = 0.02
"""Two points of accuracy: rows no further apart are equally good, unless a claim has a margin of its own. The reports
call 1.5 points (001, Table 1) and up to 3.8 (002, Tables II to VII) equal."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a report says in words: one row is better than others.

    Attributes:
      text: its sentence.
      better: a cell.
      than: the cells than which it is higher.
      measure: in what.
      alike: it says instead that they are equally good.
      margin: up to which difference they are, in the measure's own unit; accuracies are shares.
    """

    text: str
    better: str
    than: tuple[str, ...]
    measure: str = "test"
    alike: bool = False
    margin: float = MARGIN


@dataclasses.dataclass(frozen=True)
class Study:
    """One table or figure.

    Attributes:
      name: on the command line.
      report: number of the report, '000' to '004'.
      item: its table or figure, such as 'Table 2'.
      title: what is compared.
      base: fields of the config that all cells share, over `tljax/settings/fields.py`.
      cells: the rows, in the report's order.
      needs: data and weights, in words.
      measures: the columns, by name; the first is the one that rows are compared in.
      claims: what the report concludes.
      test_size: how many images the published accuracies of the first measure are of; None where they do not say.
      differences: where all rows leave the report's protocol, or fill a gap in it.
      seeds: how many are run unless the command says otherwise; at least 3, as fewer decide nothing.
      transfers: pairs of cells, with pretrained weights and without, that are alike in all else.
      shown: the cells whose mistakes the page shows; the best one's if empty.
      smooth: over how many epochs the curves are moving means.
      baseline: the cell that all others are compared with seed by seed; none if empty.
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
    transfers: tuple[tuple[str, str], ...] = ()
    shown: tuple[str, ...] = ()
    smooth: int = 1
    baseline: str = ""

    def __post_init__(self):
        names = [cell.name for cell in self.cells]
        assert len(set(names)) == len(names), f"{self.name} has a cell twice"
        named = {name for claim in self.claims for name in (claim.better, *claim.than)}
        named |= {*self.shown, *itertools.chain(*self.transfers), *([self.baseline] if self.baseline else [])}
        assert named <= set(names), self.name
        assert self.seeds >= 3, f"{self.name} can decide nothing by default"

    @property
    def protocol(self) -> tuple[str, ...]:
        """Where the study, and each of its rows, leaves the report's protocol."""
        return (*self.differences, *(f"{cell.name}: {text}" for cell in self.cells for text in cell.differences))

    def published_counts(self, cell: Cell) -> tuple[int, int] | None:
        """Right answers and images of a cell's published accuracy, in the first measure; None where not known."""
        text, size = cell.published.get(self.measures[0]), cell.test_size or self.test_size
        return None if text is None or size is None else (round(number(text) * size), size)

    def cell(self, name: str) -> Cell:
        return next(cell for cell in self.cells if cell.name == name)

    def narrowed(self, rows: Sequence[str], search: Mapping[str, tuple[Any, ...]]) -> "Study":
        """The study with fewer rows, and other values searched.

        Args:
          rows: names of cells, which bring those that they start from; all if empty.
          search: by field, what is tried where a cell searches it.

        Raises:
          UserError: for a row, or a search, that the study does not have.
        """
        names = [cell.name for cell in self.cells]
        if unknown := [row for row in rows if row not in names]:
            raise UserError(f"{self.name} has no row {unknown[0]!r}; it has {'; '.join(names)}")
        if unknown := search.keys() - {field for cell in self.cells for field in cell.search}:
            raise UserError(f"{self.name} searches no {', '.join(sorted(unknown))}")
        wanted = set(rows or names)
        wanted |= {str(c.settings.get("model.weights")).removeprefix(OF_CELL) for c in self.cells if c.name in wanted}
        kept = [cell for cell in self.cells if cell.name in wanted]
        cells = tuple(
            dataclasses.replace(cell, search={f: search.get(f, values) for f, values in cell.search.items()})
            for cell in kept
        )
        left = {cell.name for cell in cells}
        claims = (
            dataclasses.replace(claim, than=tuple(name for name in claim.than if name in left))
            for claim in self.claims
            if claim.better in left
        )
        return dataclasses.replace(
            self,
            cells=cells,
            claims=tuple(claim for claim in claims if claim.than),
            transfers=tuple(pair for pair in self.transfers if left.issuperset(pair)),
            shown=tuple(name for name in self.shown if name in left),
            baseline=self.baseline if self.baseline in left else "",
        )


@dataclasses.dataclass(frozen=True)
class Look:
    """A table and figures about one picture in a network of ImageNet's thousand classes.

    Attributes:
      name: on the command line.
      report: number of the report.
      item: its table and figures.
      title: what is shown.
      model: a key of `tljax.models.MODELS`.
      data: what its picture is called in `--data NAME=FILE`.
      published: the first classes and their probabilities, as printed.
      needs: picture and weights, in words.
      protocol: where ours differs.
    """

    name: str
    report: str
    item: str
    title: str
    model: str
    data: str
    published: Mapping[str, str]
    needs: tuple[str, ...]
    protocol: tuple[str, ...] = ()
