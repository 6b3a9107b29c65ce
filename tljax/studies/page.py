"""A study as one HTML page that needs nothing beside it: no script, no font, no file."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image
from scipy.special import softmax

from tljax.data.decode import Unreadable, decode
from tljax.data.load import open_source
from tljax.errors import UserError
from tljax.losses import predictions
from tljax.studies import figures, table
from tljax.studies.results import Findings, Found, Row, measure
from tljax.studies.scales import SCALES

MISTAKES, THUMBNAIL = 8, 144
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("tljax.studies", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)  # fmt: skip


def page(findings: Findings, *, scale: str) -> str:
    """The page, as HTML."""
    study, rows = findings.study, findings.rows
    head, lines = table.grid(findings)
    best = max(
        (row for row in rows if row.tested),
        key=lambda row: row.tested[0] / row.tested[1] if row.tested else 0,
        default=None,
    )
    shown = next((found for found in best.found if found.result["test"]), None) if best else None
    return TEMPLATES.get_template("page.html.jinja").render(
        study=study,
        note=SCALES[scale].note,
        picture=_markup(figures.rows_picture(study, rows)),
        head=head,
        lines=lines,
        sentences=table.sentences(findings),
        curves=_curves(rows),
        best=best and best.cell.name,
        confusion=_markup(shown and _confusion(shown)),
        mistakes=_mistakes(shown) if shown else [],
        differences=study.protocol,
        machine=_machine(shown.result if shown else next((f.result for row in rows for f in row.found), None)),
        measure=measure(study.measures[0]).title,
    )


def _markup(text: str | None) -> Markup | None:
    """Our own SVG, in which matplotlib has escaped all words."""
    return None if text is None else Markup(text)


def _curves(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """A picture for every cell in which something was searched, and one for all others together."""
    single = [(row.cell.name, history) for row in rows if len(row.tried) == 1 for _, history in row.tried]
    found = [("All rows" if len(single) == len(rows) else "Rows without a search", figures.curves_picture(single))]
    found += [(row.cell.name, figures.curves_picture(row.tried)) for row in rows if len(row.tried) > 1]
    return [(title, Markup(picture)) for title, picture in found if picture]


def _confusion(found: Found) -> str | None:
    """The confusion matrix of a run's test; None beyond 40 classes."""
    classes = found.result["classes"]
    if len(classes) > 40:
        return None
    _, labels, logits = found.predictions("test")
    answers = predictions(logits)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    inside = answers < len(classes)  # a head may have more outputs than there are classes
    np.add.at(counts, (labels[inside], answers[inside]), 1)
    return figures.confusion_picture(counts, classes)


def _mistakes(found: Found) -> list[dict[str, Any]]:
    """The most confident wrong answers of a run's test, with the picture, its label and the first three answers."""
    classes, data = found.result["classes"], found.result["config"]["data"]
    names, labels, logits = found.predictions("test")
    answers = predictions(logits)
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    shares = softmax(logits.astype(np.float64), axis=1)
    wrong = np.flatnonzero(answers != labels)
    wrong = wrong[np.argsort(-shares[wrong].max(1), kind="stable")][:MISTAKES]
    pictures = _thumbnails(data, found.result["config"]["seed"], [str(names[i]) for i in wrong])
    called = dict(enumerate(classes))
    return [
        {
            "picture": pictures.get(str(names[i])),
            "name": str(names[i]),
            "label": classes[labels[i]],
            "answers": [
                f"{called.get(int(c), f'output {c}')} {100 * shares[i, c]:.1f}%" for c in np.argsort(-shares[i])[:3]
            ],
        }
        for i in wrong
    ]


def _thumbnails(data: Mapping[str, Any], seed: int, names: Sequence[str]) -> dict[str, str]:
    """Pictures by name, as `data:` addresses; those that cannot be read any more are left out."""
    try:
        source = open_source(data["source"], label=data["label"], tfds_dir=data["tfds_dir"], seed=seed)
    except UserError:
        return {}
    place, found = {name: i for i, name in enumerate(source.names)}, {}
    for name in names:
        if name in place:
            try:
                picture = decode(source.read(place[name]), short_side=THUMBNAIL)
            except (Unreadable, OSError):
                continue
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG", quality=80)
            found[name] = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return found


def _machine(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    device, versions = result["device"], result["versions"]
    return f"{device['count']} x {device['kind']}; " + ", ".join(f"{name} {text}" for name, text in versions.items())
