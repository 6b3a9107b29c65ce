"""What the rows of a study show, in words: which differences are larger than noise, and which claims held."""

import itertools
from collections.abc import Mapping
from typing import Any

from tljax.finish import SPLITS
from tljax.studies import statistics
from tljax.studies.results import Findings, PValues, Row
from tljax.studies.study import Claim, Study, number

NOT_TESTED = "not tested against noise, for want of the same images' answers"


def compare_published(study: Study) -> PValues:
    """P-values of all pairs of published rows of the same size, corrected; empty where it is not known."""
    counts = {cell.name: found for cell in study.cells if (found := study.published_counts(cell))}
    return statistics.holm(
        {
            (a, b): statistics.two_proportions(*counts[a], *counts[b])
            for a, b in itertools.combinations(counts, 2)
            if counts[a][1] == counts[b][1]
        }
    )


def against_published(study: Study, row: Row) -> float | None:
    """The p-value that our row and the published one are equally good; None where one of them is not known."""
    theirs, counts = study.published_counts(row.cell), row.counts(study.measures[0])
    if theirs is None or counts is None:
        return None
    correct, seen = counts
    return statistics.two_proportions(round(correct), seen, *theirs)


def verdict(found: Findings) -> str:
    """One sentence: which of the differences between our rows are larger than noise, of test images and of seeds."""
    values = found.paired
    if not values:
        return "Ours: nothing to compare."
    seeds = {pair: found.over_seeds(*pair, "test") for pair in values}
    also = sum(p is not None and max(values[pair], p) < statistics.LEVEL for pair, p in seeds.items())
    if all(p is None for p in seeds.values()):
        more = "that of seeds is not known from one"
    else:
        more = f"{also} of them also by more than that of seeds"
    accuracy = {row.cell.name: row.mean("test") or 0.0 for row in found.rows}
    return f"Ours: {_larger(values, accuracy, seeds, more)}"


def verdict_of_published(study: Study) -> str | None:
    """The same of the published rows, as far as one run of each and the number of test images allow."""
    values = compare_published(study)
    if not values:
        return None
    accuracy = {c.name: number(c.published[study.measures[0]]) for c in study.cells if study.measures[0] in c.published}
    which = f"Published, on the {study.test_size:,} test images that the report's percentages or its text imply"
    return f"{which}: {_larger(values, accuracy, {}, '')}"


def _larger(values: PValues, accuracy: Mapping[str, float], seeds: Mapping[tuple[str, str], Any], more: str) -> str:
    total = f"{len(values)} pair{'s' if len(values) > 1 else ''} of rows"
    larger = []
    for (a, b), p in sorted(values.items(), key=lambda item: item[1]):
        if p < statistics.LEVEL:
            better, worse = (a, b) if accuracy[a] > accuracy[b] else (b, a)
            over_seeds = "" if seeds.get((a, b)) is None else f"; over seeds p {p_words(seeds[a, b])}"
            larger.append(f"{better} over {worse} (p {p_words(p)}{over_seeds})")
    if not larger:
        return f"none of the differences between {total} is larger than the noise of test images."
    shown = "; ".join(larger[:6]) + (f"; and {len(larger) - 6} more" if len(larger) > 6 else "")
    told = f"of {total}, {len(larger)} differ by more than the noise of test images"
    return f"{told}{more and ', ' + more}: {shown}."


def judge(claim: Claim, found: Findings) -> str:
    """Whether what a report says held here."""
    ours, others = found.row(claim.better).mean(claim.measure), [found.row(n).mean(claim.measure) for n in claim.than]
    if ours is None or None in others:
        return "not run yet"
    pairs = [(claim.better, name) for name in claim.than]
    split = {"test": "test", "best by test": "test", "validation": "val"}.get(claim.measure)
    values = found.compare(split, pairs) if split else {}
    if not values and claim.alike:
        return NOT_TESTED
    clear = [pair for pair in pairs if values.get(pair, 1.0) < statistics.LEVEL]
    if split and not claim.alike:  # the measure may be of another epoch than the answers that are compared
        clear = [(a, b) for a, b in clear if (found.gain(a, b, SPLITS[split]) or 0.0) > 0]
    doubt = [pair for pair in clear if (found.over_seeds(*pair, claim.measure) or 0.0) >= statistics.LEVEL]
    if claim.alike:
        if not clear:
            return "held: no difference larger than noise"
        return (
            "not decided: different on these images, but not beyond the noise of seeds"
            if doubt
            else "did not hold: different beyond noise"
        )
    beaten = sum(ours > other for other in others if other is not None)
    if beaten < len(others):
        return f"did not hold: higher than {beaten} of {len(others)}"
    if not values:
        return f"held in order; {NOT_TESTED}"
    if len(clear) < len(others):
        return f"held in order, beyond noise against {len(clear)} of {len(others)}"
    return "held, but not beyond the noise of seeds" if doubt else "held"


def transfer_words(found: Findings) -> list[str]:
    """For each pair of rows with and without pretrained weights, what these gave; negative transfer by its name."""
    split = "test" if any(row.counts("test") for row in found.rows) else "val"
    values, told = found.compare(split, found.study.transfers), []
    for pair in found.study.transfers:
        gain = found.gain(*pair, SPLITS[split])
        if gain is None:
            continue
        p, over_seeds = values.get(pair), found.over_seeds(*pair, SPLITS[split])
        clear = p is not None and max(p, over_seeds or 0.0) < statistics.LEVEL
        meaning = ("transfer helps" if gain > 0 else "negative transfer") if clear else "not larger than noise"
        points = f"{100 * gain:+.2f} points of {SPLITS[split]} accuracy over {pair[1]}"
        told.append(f"{pair[0]}: {points}" + (f" (p {p_words(p)})" if p is not None else "") + f": {meaning}.")
    return told


def p_words(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
