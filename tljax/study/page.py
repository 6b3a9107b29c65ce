"""A study as one HTML page that needs nothing beside it: no script, no font, no file."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.special import softmax

from tljax.core.errors import UserError
from tljax.data.decode import Levels, decode
from tljax.data.load import named_folders, open_source
from tljax.data.reading import Unreadable
from tljax.metrics.accuracy import confusion, predictions
from tljax.report.html import jpeg_address, make_templates, share_words
from tljax.study import figures, table
from tljax.study.results import Findings, Found, Row
from tljax.study.scales import SCALES
from tljax.study.study import Study

MISTAKES, THUMBNAIL = 8, 144
TEMPLATES = make_templates("tljax.study")


def page(findings: Findings, *, scale: str) -> str:
    """The page, as HTML."""
    study, rows = findings.study, findings.rows
    note = SCALES[scale].note
    head, lines = table.grid(findings, compared=not note)
    tested = {row.cell.name: found for row in rows for found in row.found[:1] if found.result["test"]}
    shown = {name: tested[name] for name in study.shown or _best(rows) if name in tested}
    return TEMPLATES.get_template("page.html.jinja").render(
        study=study,
        note=note,
        picture=_markup(figures.rows_picture(study, rows)),
        head=head,
        lines=lines,
        sentences=table.sentences(findings, compared=not note),
        curves=_curves(rows, study.smooth),
        shown=[(name, _markup(_confusion(found)), _mistakes(found)) for name, found in shown.items()],
        transfer=_with_and_without(study, tested),
        machine=_machine(next((found.result for row in rows for found in row.found), None)),
    )


def _best(rows: Sequence[Row]) -> list[str]:
    """The row with the highest test accuracy."""
    accuracy = {row.cell.name: row.mean("test") or 0.0 for row in rows if row.tested}
    return [max(accuracy, key=lambda name: accuracy[name])] if accuracy else []


def _markup(text: str | None) -> Markup | None:
    """Our own SVG, in which matplotlib has escaped all words."""
    return None if text is None else Markup(text)


def _curves(rows: Sequence[Row], smooth: int) -> list[tuple[str, Markup]]:
    """A picture for every cell in which something was searched, and one for all others together."""
    single = [(row.cell.name, history) for row in rows if len(row.tried) == 1 for _, history in row.tried]
    shown = [("All rows" if len(single) == len(rows) else "Rows without a search", single)]
    shown += [(row.cell.name, list(row.tried)) for row in rows if len(row.tried) > 1]
    pictures = ((title, figures.curves_picture(tried, smooth=smooth)) for title, tried in shown)
    return [(title, Markup(picture)) for title, picture in pictures if picture]


def _confusion(found: Found) -> str | None:
    """The confusion matrix of a run's test; None beyond 40 classes."""
    classes = found.result["classes"]
    if len(classes) > 40:
        return None
    _, labels, logits = found.predictions("test")
    return figures.confusion_picture(confusion(predictions(logits), labels, len(classes))[:, : len(classes)], classes)


def _mistakes(found: Found) -> list[dict[str, Any]]:
    """The most confident wrong answers of a run's test, with the picture, its label and the first three answers."""
    names, labels, shares = _answers(found)
    wrong = np.flatnonzero(~_right(labels, shares))
    wrong = wrong[np.argsort(-shares[wrong].max(1), kind="stable")][:MISTAKES]
    pictures = _thumbnails(found, names[wrong])
    classes = found.result["classes"]
    return [
        {
            "picture": pictures.get(str(names[i])),
            "name": str(names[i]),
            "label": classes[labels[i]],
            "words": "taken for " + _first(classes, shares[i], 3),
        }
        for i in wrong
    ]


def _with_and_without(study: Study, tested: Mapping[str, Found]) -> dict[str, Any] | None:
    """Test images of which two networks, with pretrained weights and without, got one right and one wrong."""
    pair = next((pair for pair in study.transfers if tested.keys() >= set(pair)), None)
    if pair is None:
        return None
    (names, labels, ours), (others, _, theirs) = (_answers(tested[name]) for name in pair)
    if not np.array_equal(names, others):
        return None
    apart = np.flatnonzero(_right(labels, ours) != _right(labels, theirs))
    apart = apart[np.argsort(-(ours[apart].max(1) + theirs[apart].max(1)), kind="stable")][:MISTAKES]
    pictures, classes = _thumbnails(tested[pair[0]], names[apart]), tested[pair[0]].result["classes"]
    return {
        "pair": pair,
        "pictures": [
            {
                "picture": pictures.get(str(names[i])),
                "name": str(names[i]),
                "label": classes[labels[i]],
                "words": f"with: {_first(classes, ours[i], 1)}; without: {_first(classes, theirs[i], 1)}",
            }
            for i in apart
        ],
    }


def _answers(found: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names, labels and probabilities `[N, classes]` of the test images; a single logit is that of the second class."""
    names, labels, logits = found.predictions("test")
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return names, labels, softmax(logits.astype(np.float64), axis=1)


def _right(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    return shares.argmax(1) == labels


def _first(classes: Sequence[str], shares: np.ndarray, count: int) -> str:
    """The first answers with their probabilities; a head may have more outputs than there are classes."""
    called, best = dict(enumerate(classes)), np.argsort(-shares)[:count]
    return ", ".join(f"{called.get(int(c), f'output {c}')} {share_words(float(shares[c]))}" for c in best)


def _thumbnails(found: Found, names: Iterable[str]) -> dict[str, str]:
    """Pictures by name, as `data:` addresses; those that cannot be read any more are left out."""
    data, seed = found.result["config"]["data"], found.result["config"]["seed"]
    try:
        source = open_source(
            data["source"], label=data["label"], tfds_dir=data["tfds_dir"], seed=seed, named=named_folders(data)
        )
    except UserError:
        return {}
    place, pictures = {name: i for i, name in enumerate(source.names)}, {}
    how = found.result["preprocessing"]
    levels = Levels(**{name: how[name] for name in Levels._fields if name in how})  # a run of before has none
    for name in map(str, names):
        if name in place:
            try:
                picture = decode(source.read(place[name]), short_side=THUMBNAIL, levels=levels)
            except (Unreadable, OSError):
                continue
            pictures[name] = jpeg_address(picture, quality=80)
    return pictures


def _machine(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    device, versions = result["device"], result["versions"]
    return f"{device['count']} x {device['kind']}; " + ", ".join(f"{name} {text}" for name, text in versions.items())
