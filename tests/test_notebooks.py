"""The tutorials, run from nothing in an empty folder, and what they then say."""

import re
from pathlib import Path

import pytest

from tools.notebooks import executed

nbformat = pytest.importorskip("nbformat", reason="needs the extra [notebooks]")
pytest.importorskip("nbclient", reason="needs the extra [notebooks]")
pytest.importorskip("ipykernel", reason="needs the extra [notebooks]")

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
ACCURACY = r"(\d+\.\d)% \((\d[\d,]*) of (\d[\d,]*); \d+\.\d to \d+\.\d\)"


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_tutorial_is_kept_without_what_it_printed(path):
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert all(re.fullmatch("[a-z-]+", cell.id) for cell in notebook.cells)  # names, not what an editor drew at random


def run(name):
    """The outputs of a tutorial by the cell's id: what it printed, and the kinds of what it showed."""
    code = [cell for cell in executed(TUTORIALS / f"{name}.ipynb").cells if cell.cell_type == "code"]
    printed = {cell.id: "".join(out.text for out in cell.outputs if out.output_type == "stream") for cell in code}
    shown = {cell.id: {kind for out in cell.outputs for kind in out.get("data", {})} for cell in code}
    assert not any("\x1b" in text for text in printed.values())  # a terminal's colors and moves
    assert not any(out.name == "stderr" for cell in code for out in cell.outputs if out.output_type == "stream")
    return printed, shown


@pytest.mark.notebooks
def test_own_folder_leads_from_nothing_to_answers():
    printed, shown = run("own_folder")
    assert printed["draw"] == "600 pictures in 10 classes\n"
    assert "text/html" in shown["plan"]
    assert {"image/png"} <= shown["confusion"] & shown["calibration"] & shown["curves"] & shown["see"]
    accuracy, correct, seen = (float(part.replace(",", "")) for part in re.search(ACCURACY, printed["more"]).groups())
    assert seen == 500 and accuracy == pytest.approx(100 * correct / seen, abs=0.05)
    assert accuracy > 40  # 10% by chance; what is claimed is that it learns from the folder
    dark = float(re.search(ACCURACY, printed["dark"])[1])
    assert dark < accuracy
    answers = [line.split() for line in printed["predict"].splitlines()]
    assert [words[0] for words in answers] == [f"outline0{i}" for i in range(5)]
    assert all(float(words[1].rstrip("%")) >= float(words[3].rstrip("%")) for words in answers)


@pytest.mark.notebooks
def test_layers_and_batch_norm_compares_plans_with_their_doubt():
    printed, shown = run("layers_and_batch_norm")
    assert {"image/png"} <= shown["rates"] & shown["plot"]
    assert printed["runs"].count("3 members, the best: ") == 6
    rows = printed["table"].splitlines()[1:]
    found = {}
    for row in rows:
        words = re.split(r"\s{2,}", row)
        found[words[0], words[1]] = float(re.search(ACCURACY, row)[1])
    assert len(found) == 6
    assert max(found.values()) > found["head", "running"] + 2  # training more than the head pays
    assert printed["paired"].count("against the head alone, p = ") == 5
