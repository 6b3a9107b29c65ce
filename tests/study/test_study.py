"""What a study is, as data."""

import dataclasses

import pytest

from tljax.core.errors import UserError
from tljax.study import STUDIES
from tljax.study.figures import moving_mean
from tljax.study.seed004 import SCRATCH


def test_a_study_of_fewer_rows():
    whole = STUDIES["002-table8"]
    study = whole.narrowed(["None", "Greyscale()"], {"optimizer.lr": (0.03, 0.01)})
    assert [cell.name for cell in study.cells] == ["None", "Greyscale()"]
    assert study.cells[1].search == {"optimizer.lr": (0.03, 0.01)}
    assert dataclasses.replace(study.cells[1], search=whole.cell("Greyscale()").search) == whole.cell("Greyscale()")
    assert [claim.than for claim in study.claims] == [("Greyscale()",)]  # the one that is about these two alone
    assert whole.narrowed([], {}) == whole


def test_rows_bring_those_that_they_start_from_and_claims_lose_the_others():
    study = STUDIES["004-table2"].narrowed([SCRATCH, "2-last-conv2d & output, trainable", "only output, frozen"], {})
    assert [cell.name for cell in study.cells] == [
        "dogs120-base", SCRATCH, "only output, frozen", "2-last-conv2d & output, trainable",
    ]  # fmt: skip
    assert [claim.than for claim in study.claims] == [("only output, frozen",)]
    assert len(study.transfers) == 2


def test_what_there_is_not():
    with pytest.raises(UserError, match="000-table2 has no row 'all'; it has final layer only; "):
        STUDIES["000-table2"].narrowed(["all"], {})
    with pytest.raises(UserError, match="000-table2 searches no epochs"):
        STUDIES["000-table2"].narrowed([], {"epochs": (1, 2)})


def test_moving_mean():
    assert moving_mean([1.0, 3.0, 5.0, 7.0], 2).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert moving_mean([1.0, 3.0], 1).tolist() == [1.0, 3.0]
    assert moving_mean([2.0, 4.0], 5).tolist() == [2.0, 3.0]
