"""The list of studies, and the published numbers held against the reports' own text."""

import re

import pytest

from tljax.metrics.printed import number
from tljax.study import LOOKS, STUDIES, seed002
from tljax.study.jobs import make_config, make_runs

ITEMS = {
    "000": {"Table 1", "Table 2", "Table 3", "Table 4", "section 3.2.2", "section 3.2.3", "section 4"},
    "001": {*(f"Figure {n}" for n in (1, 2, 3, 5, 6, 7)), "Table 1", "section 4", "section 4.1", "section 6"}
    | {f"beyond Table 1, {share} of the labels" for share in ("1%", "10%", "50%")},
    "002": {f"Table {n}" for n in ("II", "III", "IV", "V", "VI", "VII", "VIII")}
    | {"Table I and Figures 2 to 4", "Figures 5 and 6", "Figure 28", "section II-A"},
    "003": {"Table 1", "Table 2", "Table 3", "Table 4", "Figures 1 and 2"},
    "004": {"Table 2", "Figure 1"},
}


def test_every_table_and_figure_has_its_study():
    everything = [*STUDIES.values(), *LOOKS.values()]
    assert {report: {s.item for s in everything if s.report == report} for report in ITEMS} == ITEMS
    assert all(study.name.startswith(f"{study.report}-") for study in everything)


@pytest.mark.parametrize("name", STUDIES)
def test_its_runs_are_configs(name):
    """Every field exists and fits, at every scale; what differs between cells differs between runs."""
    study = STUDIES[name]
    for scale in ("full", "tiny", "onestep"):
        runs = make_runs(study, scale=scale, seeds=1, data={}, overrides={})
        assert {run.cell for run in runs} == {cell.name for cell in study.cells}
        for run in runs:
            make_config(run.fields)
    keys = [run.key for run in make_runs(study, scale="full", seeds=2, data={}, overrides={})]
    assert len(set(keys)) == len(keys)


@pytest.mark.real_data
@pytest.mark.parametrize("name", STUDIES)
def test_published_numbers_stand_in_the_report(name, shared):
    """Each number in its row: the digits occur in the text, those of one cell in one line where it is a table's."""
    study = STUDIES[name]
    if study.report not in ITEMS:
        return  # not one of the five
    (path,) = (shared / "seeds").glob(f"{study.report}_*.txt")
    text = path.read_text()
    lines = text.splitlines()
    for cell in study.cells:
        accuracies = [t for measure, t in cell.published.items() if measure not in ("epoch", "lr")]
        for printed in accuracies:
            digits = re.escape(printed.replace("%", "").strip())
            assert re.search(rf"(?<![\d.]){digits}(?!\d)", text), (cell.name, printed)
        if study.item.startswith("Table") and study.report in ("002",):
            want = [*accuracies, cell.published["epoch"], cell.published["lr"]] if cell.published else []
            assert any(all(w in line.split("\t") or w in line for w in want) for line in lines), cell.name


@pytest.mark.real_data
def test_published_classes_of_a_picture_stand_in_the_report(shared):
    (look,) = LOOKS.values()
    text = next((shared / "seeds").glob("002_*.txt")).read_text()
    assert [line for line in text.splitlines() if line in {"\t".join(p) for p in look.published.items()}] == [
        "\t".join(pair) for pair in look.published.items()
    ]


def test_figures_and_summaries_share_the_runs_of_the_tables():
    """They cost nothing where the tables have run."""
    for name, tables in (("002-fig28", "234"), ("003-summary", "1234"), ("004-fig1", "2")):
        everything = {
            run.key
            for table in tables
            for run in make_runs(STUDIES[f"{name[:3]}-table{table}"], scale="full", seeds=1, data={}, overrides={})
        }
        assert {run.key for run in make_runs(STUDIES[name], scale="full", seeds=1, data={}, overrides={})} <= everything


@pytest.mark.real_data
def test_mistakes_are_of_the_parts_that_the_figure_names(shared):
    text = next((shared / "seeds").glob("002_*.txt")).read_text()
    parts = dict.fromkeys(re.findall(r"^ *\([a-i]\) Part (\d) - Misclassified", text, re.M))
    tables = dict(re.findall(r"^TABLE ([IV]+): Part ([\d.]+) - Best achieved performance$", text, re.M))
    assert [seed002.ROMAN[seed002.PARTS[part]] for part in parts] == [
        table for table, part in tables.items() if part in parts
    ]
    assert parts.keys() == seed002.PARTS.keys()


@pytest.mark.real_data
def test_rows_of_tables_are_complete(shared):
    """Every accuracy that the tables of the text print belongs to a cell."""
    counted = {"002-table8": 28, "003-table1": 16, "003-table4": 16, "000-table4": 10, "004-table2": 8}
    for name, expected in counted.items():
        cells = {tuple(sorted(c.published.items())) for c in STUDIES[name].cells if c.published}
        rows = [c for c in STUDIES[name].cells if c.published and "after normalization" not in c.name]
        assert len(rows) == expected, name
        assert cells
    text = next((shared / "seeds").glob("002_*.txt")).read_text()
    table = text[text.index("Applied augmentation(s)") : text.index("TABLE VIII: ")]
    assert len([line for line in table.splitlines()[1:] if "%" in line]) == counted["002-table8"]
    printed = {c.published["test"] for c in STUDIES["002-table8"].cells if c.published}
    assert all(any(text in line for text in printed) for line in table.splitlines()[1:] if "%" in line)


def test_sizes_are_those_that_the_percentages_imply():
    from tljax.metrics.significance import counts_of

    by_test = ("000-table2", "000-table3", "000-table4", "002-table5", "002-table6", "002-table7", "002-table8")
    for name, measure in (*((name, "test") for name in by_test), ("003-table1", "best by test")):
        study = STUDIES[name]
        for cell in study.cells:
            if not cell.published:
                continue
            correct = counts_of(cell.published[measure], study.test_size)
            assert correct is not None, (name, cell.name)
            assert correct / study.test_size == pytest.approx(number(cell.published[measure]), abs=1e-3)
