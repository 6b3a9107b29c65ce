"""Verdicts: what each of them needs, and how often it is wrong, simulated."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.verdicts import ROWS, rates
from tljax.metrics.significance import Difference
from tljax.study import STUDIES, verdicts
from tljax.study.jobs import Run
from tljax.study.results import Findings, Found, Predictions, Row
from tljax.study.study import MARGIN, Cell, Claim, Study
from tljax.study.table import claims_words, published_difference, sentences

REPEATS = 200
MOST = 0.05 + 3 * np.sqrt(0.05 * 0.95 / REPEATS)  # three deviations of what so many repeats may show of 5%
SURE = Difference(0.05, 1e-6, 1e-6, 3)


@pytest.mark.parametrize("kind", ROWS)
def test_when_nothing_differs_a_verdict_errs_at_most_once_in_twenty(kind):
    """At the noise of seeds that most rows of docs/results have, and at the largest there."""
    for noise in (0.01, 0.026):
        held, refuted = rates(kind, seeds=3, images=300, gain=0.0, noise=noise, repeats=REPEATS)
        assert refuted + (0 if kind == "equal" else held) <= MOST


def test_the_same_method_twice_differs_at_most_once_in_twenty():
    held, refuted = rates("order", seeds=3, images=300, gain=0.0, method=0.0, repeats=REPEATS)
    assert held + refuted <= MOST
    held, refuted = rates("order", seeds=2, images=1000, gain=0.0, noise=0.026, repeats=REPEATS)
    assert held + refuted <= MOST  # where Welch's approximation errs in 14%


def test_at_the_margin_equality_is_held_at_most_once_in_twenty():
    held, _ = rates("equal", seeds=5, images=1000, gain=MARGIN, noise=0.003, repeats=REPEATS)
    assert held <= MOST


def test_there_is_power_at_twice_the_margin():
    sizes = {"seeds": 5, "images": 1000, "gain": 2 * MARGIN, "repeats": 100}
    assert rates("order", **sizes)[0] > 0.8
    equal = rates("equal", seeds=10, images=3000, gain=0.0, noise=0.003, repeats=50)
    assert equal[0] > 0.8


def test_one_seed_decides_nothing():
    """However large the difference, in every kind of claim."""
    one = Difference(0.5, 0.0, 1e-4, 1)
    for margin in (None, MARGIN):
        judged = verdicts.judge([one], margin=margin)
        assert judged.verdict == "on these two networks; seeds unknown"
        assert judged.figures.startswith("+50.00 points, 95% over test images alone +48.04 to +51.96")
        assert verdicts.judge([one, SURE], margin=margin).verdict == "on these networks; seeds unknown"


def test_an_order_is_symmetric():
    less = Difference(-0.05, 1e-6, 1e-6, 3)
    unsure = Difference(0.05, 0.1, 0.0, 3)
    for differences, verdict in (
        ([SURE], "held"), ([less], "refuted"), ([unsure], "not decided"), ([SURE, SURE], "held"),
        ([SURE, less], "refuted"), ([SURE, unsure], "not decided"), ([SURE, None], "not run yet"),
    ):  # fmt: skip
        assert verdicts.corrected({0: verdicts.judge(differences)})[0].verdict == verdict
    assert verdicts.judge([SURE]).p_value == pytest.approx(verdicts.judge([less]).p_value)


def test_equality_needs_a_small_interval_and_not_a_large_p():
    """A difference that is not significant is not decided; one that is, and small, is equality."""
    for one, verdict in (
        (Difference(0.001, 1e-3, 1e-3, 3), "not decided"),
        (Difference(0.005, 1e-7, 1e-7, 5), "held"),
        (Difference(-0.005, 1e-7, 1e-7, 5), "held"),
        (Difference(0.03, 1e-7, 1e-7, 5), "refuted"),
        (Difference(-0.03, 1e-7, 1e-7, 5), "refuted"),
        (Difference(0.02, 1e-7, 1e-7, 5), "not decided"),
    ):
        judged = verdicts.corrected({0: verdicts.judge([one], margin=0.02)})[0]
        assert judged.verdict == verdict
        assert "margin 2 points" in judged.figures


def test_claims_are_one_family():
    """What is held alone is not decided beside many claims."""
    close = verdicts.judge([Difference(0.05, 1e-4, 0.0, 4)])
    assert 0.005 < close.p_value < 0.05
    assert verdicts.corrected({0: close})[0].verdict == "held"
    several = verdicts.corrected(dict.fromkeys(range(10), close))
    assert {one.verdict for one in several.values()} == {"not decided"}
    unknown = verdicts.judge([Difference(0.5, 0.0, 1e-4, 1)])
    assert verdicts.corrected({0: close, 1: unknown})[0].verdict == "held"  # what tests nothing corrects nothing


def test_studies_run_three_seeds_or_more_and_state_their_margin():
    assert all(study.seeds >= 3 for study in STUDIES.values())
    equalities = [claim for study in STUDIES.values() for claim in study.claims if claim.alike]
    assert equalities
    assert all(0 < claim.margin <= 0.02 and claim.measure in ("test", "validation") for claim in equalities)


class Answered(Found):
    """A run whose answers are at hand."""

    def predictions(self, split):
        return self.result["answers"]


def row(name, right, published=None):
    """A row of `[seeds, N]` right and wrong answers."""
    cell = Cell(name, published={"test": published} if published else {})
    found = []
    for seed, answers in enumerate(right):
        seen, correct = len(answers), int(sum(answers))
        labels, logits = np.zeros(seen, int), np.stack([answers, ~answers], 1).astype(float)
        result = {
            "test": {"accuracy": correct / seen, "correct": correct, "seen": seen}, "validation": None,
            "answers": Predictions(np.arange(seen), labels, logits), "train": {"images": 9 * seen},
            "config": {"data": {"split": "holdout:10"}},
        }  # fmt: skip
        run = Run(name, seed, {}, {})
        found.append(Answered(run, Path(), result))
    return Row(cell, tuple(found), (), 0, ())


def findings(rows, **fields):
    study = Study("x", "000", "Table 1", "x", {}, tuple(row.cell for row in rows), (), **fields)
    return Findings(study, tuple(rows))


def test_a_table_of_one_seed_and_one_of_three():
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    high = np.stack([hard + 0.02 * rng.random(500) < 0.9 for _ in range(3)])
    low = np.stack([hard + 0.02 * rng.random(500) < 0.6 for _ in range(3)])
    fields = {
        "claims": (Claim("high is higher", "high", ("low",)), Claim("low is higher", "low", ("high",)),
                   Claim("both are alike", "low", ("high",), alike=True)),
        "transfers": (("high", "low"), ("low", "high")), "baseline": "low",
    }  # fmt: skip
    text = "\n".join(sentences(findings([row("high", high), row("low", low)], **fields)))
    assert '"high is higher". Here: held: high (+31' in text
    assert '"low is higher". Here: refuted: low (-31' in text
    assert '"both are alike". Here: refuted: low (-31' in text
    assert "Ours: of 1 pair of rows, 1 differ by more than the noise of seeds and test images: high over low (+" in text
    assert ": transfer helps." in text
    assert ": negative transfer." in text
    assert "Against low: higher: high (+" in text

    text = "\n".join(sentences(findings([row("high", high[:1]), row("low", low[:1])], **fields)))
    for word in ("held", "refuted", "transfer helps", "negative transfer", " p "):
        assert word not in text.replace("p-values", "")
    assert text.count("on these two networks; seeds unknown") == 6  # claims, transfers, the baseline
    assert "of 1 pair of rows none can be decided" in text


def test_rows_without_the_same_images_are_compared_as_independent():
    rng = np.random.default_rng(0)
    found = findings([row("high", rng.random((3, 400)) < 0.9), row("low", rng.random((3, 300)) < 0.6)])
    variance = found.difference("high", "low", "test").of_images
    assert variance == pytest.approx(0.9 * 0.1 / 400 + 0.6 * 0.4 / 300, rel=0.15)


def test_claims_alike_are_told_once():
    rng = np.random.default_rng(0)
    rows = [row(name, rng.random((3, 100)) < 0.5) for name in "abc"]
    claims = tuple(Claim("it is best", name, ("c",)) for name in "ab")
    (line,) = claims_words(findings(rows, claims=claims))
    assert line.startswith('The report: "it is best". Here: not decided: a (')
    assert "; b (" in line


def test_published_numbers_meet_one_more_run():
    """Of another tenth of all images, of the same images, and of one seed."""
    right = np.arange(200)[None] < np.array([140, 150, 160])[:, None]
    found = findings([row("a", right, "55 %")], test_size=200)
    told, p = published_difference(found.study, found.rows[0])
    assert told.startswith("+20.00 (")
    assert 0.05 < float(p) < 0.2  # 10 images between seeds; Fisher's test of images alone has p < 0.001
    apart = verdicts.against_published(found.study, found.rows[0]).of_images
    assert apart == pytest.approx(0.9 * (0.75 * 0.25 + 0.55 * 0.45) / 200, rel=0.05)
    for run in found.rows[0].found:
        run.result["config"]["data"]["split"] = "official"
    assert verdicts.against_published(found.study, found.rows[0]).of_images == 0
    one = findings([row("a", right[:1], "55 %")], test_size=200)
    assert published_difference(one.study, one.rows[0]) == ("+15.00", "")
