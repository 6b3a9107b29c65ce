"""What the rows of a study show, in words: held, refuted or not decided, over seeds and test images.

One seed decides nothing: what it shows is of its two networks. P-values of one kind of sentence in one table are
corrected for their number (Holm), so that all of them together err in at most one table of twenty.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tljax.metrics import significance
from tljax.metrics.printed import number
from tljax.metrics.significance import LEVEL, Difference, Key
from tljax.study.results import Findings, Row, measure
from tljax.study.study import Claim, Study

HELD, REFUTED, UNDECIDED = "held", "refuted", "not decided"
UNKNOWN = "on these two networks; seeds unknown"
NOT_RUN = "not run yet"


class Judged(NamedTuple):
    """A verdict, how unlikely noise alone makes it (1 where nothing is decided), and the figures behind it."""

    verdict: str
    p_value: float
    figures: str


def judge(differences: Sequence[Difference | None], *, margin: float | None = None, share: bool = True) -> Judged:
    """Whether one row is higher than each of others, or as high as each; symmetric in held and refuted.

    An order is held where every difference is above 0 and refuted where one of them is below. Equality within a margin
    is held where every difference is shown to be smaller, and refuted where one of them is shown to be larger. What
    takes all differences has the largest p-value of them, what takes one the smallest, times their number.

    Args:
      differences: of the row and each of the others; None where a pair has not run.
      margin: of equality; None for an order.
      share: the measure is one, told in points.
    """
    known = [one for one in differences if one is not None]
    if not known or len(known) < len(differences):
        return Judged(NOT_RUN, 1.0, "")
    if margin is None:
        held = max(one.tail(one.mean) for one in known)
        refuted = len(known) * min(one.tail(-one.mean) for one in known)
        p = 2 * min(held, refuted)
    else:
        held = max(one.p_within(margin) for one in known)
        refuted = len(known) * min(one.p_beyond(margin) for one in known)
        p = min(held, refuted)
    figures = difference_words(known[0], share=share) if len(known) == 1 else _places(known)
    if margin is not None:
        figures += f", margin {100 * margin:g} points" if share else f", margin {margin:g}"
    if any(one.seeds < 2 for one in known):
        return Judged(UNKNOWN if len(known) == 1 else UNKNOWN.replace("two ", ""), 1.0, figures)
    return Judged(HELD if held < refuted else REFUTED, min(1.0, p), figures)


def corrected(judged: Mapping[Key, Judged]) -> dict[Key, Judged]:
    """Verdicts of one table, `held` and `refuted` left to what stands after Holm's correction for the number of all."""
    open_ = {key: one.p_value for key, one in judged.items() if one.verdict in (HELD, REFUTED)}
    values = significance.holm(open_)
    after = dict(judged)
    for key, p in values.items():
        verdict, _, figures = judged[key]
        after[key] = Judged(verdict if p < LEVEL else UNDECIDED, p, f"{figures}, p {p_words(p)}")
    return after


def judge_claims(found: Findings) -> list[tuple[Claim, Judged]]:
    """What became of each claim of a report; all of them are one family."""
    judged = {}
    for i, claim in enumerate(found.study.claims):
        differences = [found.difference(claim.better, name, claim.measure) for name in claim.than]
        margin = claim.margin if claim.alike else None
        judged[i] = judge(differences, margin=margin, share=measure(claim.measure).share)
    return list(zip(found.study.claims, corrected(judged).values(), strict=True))


def judge_pairs(found: Findings, pairs: Iterable[tuple[str, str]], name: str) -> dict[tuple[str, str], Judged]:
    """Of each pair, whether its first row is higher in a measure; all of them are one family."""
    share = measure(name).share
    return corrected({pair: judge([found.difference(*pair, name)], share=share) for pair in pairs})


def judge_all_pairs(found: Findings, name: str) -> dict[tuple[str, str], Judged]:
    """The same of all pairs of rows that have the measure."""
    names = [row.cell.name for row in found.rows if row.values(name)]
    return judge_pairs(found, itertools.combinations(names, 2), name)


def against_published(study: Study, row: Row) -> Difference | None:
    """Ours minus published, with the noise that one more run has; None where that or how many images is unknown."""
    name = study.measures[0]
    theirs, counts, ours = study.published_counts(row.cell), row.counts(name), row.mean(name)
    if theirs is None or counts is None or ours is None:
        return None
    published, seen = number(row.cell.published[name]), (counts[1], theirs[1])
    apart = 1 - row.same_images(name) if seen[0] == seen[1] else 1.0
    shares = zip((ours, published), seen, strict=True)
    return significance.one_more_run(
        row.values(name), published, apart * sum(significance.binomial_variance(*pair) for pair in shares)
    )


def verdict(found: Findings) -> str:
    """One sentence: which of the differences between our rows are larger than the noise of seeds and test images."""
    judged = judge_all_pairs(found, found.measure)
    judged = {pair: one for pair, one in judged.items() if one.verdict != NOT_RUN}
    if not judged:
        return "Ours: nothing to compare."
    alone = sum(one.verdict == UNKNOWN for one in judged.values())
    if alone == len(judged):
        return f"Ours: of {_pairs(alone)} none can be decided: from one seed, what differs is of these networks."
    decided = {pair: one for pair, one in judged.items() if one.verdict in (HELD, REFUTED)}
    clear = {pair if one.verdict == HELD else pair[::-1]: one for pair, one in decided.items()}
    more = f" {alone} of them have one seed in common: seeds unknown." if alone else ""
    return f"Ours: {_larger(clear, len(judged), 'the noise of seeds and test images')}{more}"


def verdict_of_published(study: Study) -> str | None:
    """The same of the published rows, as far as one run of each and the number of test images allow."""
    counts = {cell.name: found for cell in study.cells if (found := study.published_counts(cell))}
    pairs = [(a, b) for a, b in itertools.combinations(counts, 2) if counts[a][1] == counts[b][1]]
    if not pairs:
        return None
    values = significance.holm({(a, b): significance.two_proportions(*counts[a], *counts[b]) for a, b in pairs})
    clear = {
        (a, b) if counts[a] > counts[b] else (b, a): Judged(UNKNOWN, p, f"p {p_words(p)}")
        for (a, b), p in values.items()
        if p < LEVEL
    }
    which = f"Published, on the {study.test_size:,} test images that the report's percentages or its text imply"
    return f"{which}, one run of each, seeds unknown: {_larger(clear, len(pairs), 'the noise of test images')}"


def baseline_words(found: Findings) -> str | None:
    """Which rows are higher than the baseline and which lower; all of them are one family."""
    study = found.study
    others = [row.cell.name for row in found.rows if row.cell.name != study.baseline and row.values(study.measures[0])]
    if not study.baseline or not others:
        return None
    judged = judge_pairs(found, [(name, study.baseline) for name in others], study.measures[0])
    titles = {HELD: "higher", REFUTED: "lower", UNDECIDED: UNDECIDED, UNKNOWN: UNKNOWN}
    parts = [
        f"{title}: " + "; ".join(f"{name} ({one.figures})" for (name, _), one in judged.items() if one.verdict == kind)
        for kind, title in titles.items()
        if any(one.verdict == kind for one in judged.values())
    ]
    return f"Against {study.baseline}: {'. '.join(parts)}." if parts else None


def transfer_words(found: Findings) -> list[str]:
    """For each pair of rows with and without pretrained weights, what these gave; negative transfer by its name."""
    meaning = {HELD: "transfer helps", REFUTED: "negative transfer"}
    title = measure(found.measure).title
    return [
        f"{pair[0]}, {title} minus that of {pair[1]}: {one.figures}: {meaning.get(one.verdict, one.verdict)}."
        for pair, one in judge_pairs(found, found.study.transfers, found.measure).items()
        if one.verdict != NOT_RUN
    ]


def _larger(clear: Mapping[tuple[str, str], Judged], total: int, noise: str) -> str:
    if not clear:
        return f"none of the differences between {_pairs(total)} is larger than {noise}."
    ranked = sorted(clear.items(), key=lambda item: item[1].p_value)
    shown = "; ".join(f"{a} over {b} ({one.figures})" for (a, b), one in ranked[:6])
    more = f"; and {len(clear) - 6} more" if len(clear) > 6 else ""
    return f"of {_pairs(total)}, {len(clear)} differ by more than {noise}: {shown}{more}."


def _pairs(count: int) -> str:
    return f"{count} pair{'s' if count > 1 else ''} of rows"


def _places(differences: Sequence[Difference]) -> str:
    return f"higher than {sum(one.mean > 0 for one in differences)} of {len(differences)}"


def difference_words(one: Difference, *, share: bool = True) -> str:
    """A difference with its interval: '+4.50 points, 95% +2.00 to +7.00'; of one seed, that of test images alone."""
    factor, digits, unit = (100, "+.2f", " points") if share else (1, "+.3g", "")
    ends = one.interval
    noise = " over test images alone" if one.seeds < 2 else ""
    interval = f", 95%{noise} {factor * ends[0]:{digits}} to {factor * ends[1]:{digits}}" if ends else ""
    return f"{factor * one.mean:{digits}}{unit}{interval}"


def p_words(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
