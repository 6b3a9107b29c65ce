"""A study's rows as Markdown: published and ours side by side, with confidence intervals."""

import re
from collections.abc import Sequence

from tljax.metrics import significance
from tljax.metrics.accuracy import wilson_interval
from tljax.metrics.printed import number
from tljax.study import verdicts
from tljax.study.results import Findings, Row, measure
from tljax.study.scales import SCALES
from tljax.study.study import Look, Study

NOT_CORRECTED = (
    "Verdicts and their p-values are over seeds and test images, and corrected for the number of their kind in this "
    "table (Holm); intervals, and p-values against published rows, are of one comparison each."
)


def markdown(found: Findings, *, scale: str) -> str:
    """The table of a study, what it shows and what it does not, and every difference of protocol."""
    study = found.study
    note = SCALES[scale].note
    told = [f"- {sentence}" for sentence in sentences(found, compared=not note)]
    return document(study, note, grid(found, compared=not note), told)


def document(study: Study | Look, note: str, table: tuple[list[str], list[list[str]]], told: Sequence[str]) -> str:
    """A study's title, its table as (head, lines), what is told about it, and its protocol."""
    title = f"{study.title[:1].upper()}{study.title[1:]}."
    lines = [f"## {study.name}: report {study.report}, {study.item}", "", title, ""]
    lines += [f"**{note}**", ""] if note else []
    lines += [as_table(*table), "", *told]
    return "\n".join([*lines, "", "Protocol:", "", *(f"- {text}" for text in study.protocol)]) + "\n"


def grid(found: Findings, *, compared: bool = True) -> tuple[list[str], list[list[str]]]:
    """The head of the table and its lines, cell by cell; `compared` with the published ones, where ours are results."""
    study, rows = found.study, found.rows
    published = [name for name in study.measures if any(name in row.cell.published for row in rows)]
    head = ["row", *(f"published {measure(name).title}" for name in published)]
    head += [f"ours: {measure(name).title}" for name in study.measures]
    head += ["95% over seeds", "95% over images", f"minus {study.baseline} (95% over seeds and images)"]
    head += ["minus published (95% of one more run)", "p against published"]
    lines = []
    for row in rows:
        line = [row.cell.name, *(published_words(study, row, name) for name in published)]
        line += [own_words(row, name) for name in study.measures]
        line += [seeds_words(row, study.measures[0]), images_words(row, study.measures[0])]
        line += [gain_words(found, row) if compared else ""]
        line += list(published_difference(study, row)) if compared else ["", ""]
        lines.append(line)
    filled = [i for i, column in enumerate(zip(*lines, strict=True)) if any(column)]
    return [head[i] for i in filled], [[line[i] for i in filled] for line in lines]


def as_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The Markdown of a table."""
    return "\n".join([cells(head), "|---" * len(head) + "|", *map(cells, body)])


def cells(words: Sequence[str]) -> str:
    """One line of a table in Markdown; a name that looks like markup is shown, not obeyed."""
    return "| " + " | ".join(re.sub(r"<(?=[a-zA-Z/!])", "&lt;", word.replace("|", "\\|")) for word in words) + " |"


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def span(ends: tuple[float, float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def published_words(study: Study, row: Row, name: str) -> str:
    """As printed; an accuracy with what its test set leaves open."""
    text = row.cell.published.get(name, "")
    counts = study.published_counts(row.cell)
    return f"{text} ({span(wilson_interval(*counts))})" if counts and name == study.measures[0] else text


def own_words(row: Row, name: str) -> str:
    """The mean over seeds, and how many of them there are; of what was chosen, each seed's, or the one of all."""
    values = row.values(name)
    if not values:
        return "-" if row.found else "failed" if row.failed else "not run"
    if measure(name).chosen:
        return ", ".join(f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1]))
    mean = sum(values) / len(values)
    told = percent(mean) if measure(name).share else f"{mean:.4g}"
    return told + (f" ({len(values)} seeds)" if len(values) > 1 and name == "test" else "")


def seeds_words(row: Row, name: str) -> str:
    found = significance.mean_interval(row.values(name), share=measure(name).share)
    return "" if found is None else span(found) if measure(name).share else f"{found[0]:.4g} to {found[1]:.4g}"


def images_words(row: Row, name: str) -> str:
    """The interval of the first measure where it is of test images, else of the test."""
    name = name if row.counts(name) else "test"
    ends, counts = row.interval(name), row.counts(name)
    return f"{span(ends)} (n = {counts[1]:,})" if ends and counts else ""


def gain_words(found: Findings, row: Row) -> str:
    """The first measure minus the baseline's of the same seeds: mean and 95% interval; none of one seed."""
    baseline, name = found.study.baseline, found.study.measures[0]
    if not baseline or row.cell.name == baseline:
        return ""
    difference = found.difference(row.cell.name, baseline, name)
    factor, ends = 100 if measure(name).share else 1, difference and difference.interval
    if difference is None or ends is None or difference.seeds < 2:
        return ""
    return f"{factor * difference.mean:+.1f} ({factor * ends[0]:+.1f} to {factor * ends[1]:+.1f})"


def published_difference(study: Study, row: Row) -> tuple[str, str]:
    """Ours minus published, in the study's first measure, with what one more run may differ by; and the p-value."""
    name = study.measures[0]
    ours, text = row.mean(name), row.cell.published.get(name)
    if ours is None or text is None:
        return "", ""
    share = measure(name).share
    factor, digits = (100, "+.2f") if share else (1, "+.3g")
    told = f"{factor * (ours - number(text)):{digits}}"
    found = verdicts.against_published(study, row)
    if found is None or found.interval is None:
        return told, ""
    low, high = found.interval
    return f"{told} ({factor * low:+.1f} to {factor * high:+.1f})", verdicts.p_words(found.p_value)


def claims_words(found: Findings) -> list[str]:
    """What the report says and whether it held here; what it says of several rows alike, once."""
    told: dict[str, dict[str, list[str]]] = {}
    for claim, judged in verdicts.judge_claims(found):
        alike = [other for other in found.study.claims if (other.text, other.better) == (claim.text, claim.better)]
        name = claim.better if len(alike) == 1 else f"{claim.better} over {', '.join(claim.than)}"
        figures = f" ({judged.figures})" if judged.figures else ""
        told.setdefault(claim.text, {}).setdefault(judged.verdict, []).append(name + figures)
    return [
        f'The report: "{text}". Here: '
        + ". Also: ".join(f"{verdict}: {'; '.join(rows)}" for verdict, rows in by_verdict.items())
        + "."
        for text, by_verdict in told.items()
    ]


def sentences(found: Findings, *, compared: bool = True) -> list[str]:
    """What the table shows and what it does not, in words; where ours are no results, what is missing alone."""
    study, rows, told = found.study, found.rows, []
    if compared:
        theirs = verdicts.verdict_of_published(study)
        told += [verdicts.verdict(found), *([theirs] if theirs else [])]
        baseline = verdicts.baseline_words(found)
        told += [*claims_words(found), *verdicts.transfer_words(found), *([baseline] if baseline else [])]
    if compared and any(row.found for row in rows):
        told.append(NOT_CORRECTED)
    missing = sum(row.missing for row in rows)
    if missing:
        reasons = {reason for row in rows for reason in row.failed}
        told.append(f"{missing} runs are missing." + "".join(f" Failed: {reason}." for reason in sorted(reasons)))
    return told
