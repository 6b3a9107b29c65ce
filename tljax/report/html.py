"""What pages have in common: templates that escape what they are given, pictures within the page."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
from PIL import Image


def make_templates(package: str) -> jinja2.Environment:
    """The templates that lie in a package of ours."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip


def data_address(kind: str, data: bytes) -> str:
    """A file as a `data:` address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def jpeg_address(picture: np.ndarray, *, quality: int) -> str:
    """A picture, uint8 `[H, W, 3]`, as a `data:` address."""
    return _address(picture, "JPEG", quality=quality)


def png_address(picture: np.ndarray) -> str:
    """The same without loss, compressed little, which is quick."""
    return _address(picture, "PNG", compress_level=1)


def _address(picture: np.ndarray, form: str, **options: int) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form, **options)
    return data_address(f"image/{form.lower()}", file.getvalue())


def share_words(share: float) -> str:
    """A probability as a percentage."""
    return "< 0.1%" if 0 < share < 0.0005 else f"{100 * share:.1f}%"


def tables_page(tables: Sequence[tuple[str, Sequence[Mapping[str, str]]]], lines: Sequence[str]) -> str:
    """Tables with their titles, and a paragraph per line, as HTML."""
    parts = []
    for title, rows in tables:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
        body = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row.values()) for row in rows)
        table = "".join(f"<tr>{cells}</tr>" for cells in body)
        caption = f"<caption>{html.escape(title)}</caption>"
        parts.append(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{table}</tbody></table>")
    return "".join([*parts, *(f"<p>{html.escape(line)}</p>" for line in lines)])
