"""A study without training: what a network, as it was published, says of one picture, and what is inside it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from tljax.core.errors import UserError
from tljax.data.augment import Augmentation, make_views
from tljax.data.decode import Unreadable, decode
from tljax.data.shapes import open_shapes
from tljax.inference.activations import first_kernel
from tljax.models import create_model, init_variables
from tljax.models.imagenet import class_names
from tljax.report.html import data_address, jpeg_address
from tljax.report.insides import filters_picture, maps_picture
from tljax.run_dir.files import write_json, write_whole
from tljax.study.page import TEMPLATES
from tljax.study.scales import SCALES
from tljax.study.study import Look
from tljax.study.table import document
from tljax.weights.initial import find_weights, load_pretrained, merge_loaded

SHOWN = 16  # channels of the first layer
PICTURES = {
    "filters": "the filters of the first layer",
    "before": f"the first {SHOWN} channels of the first layer, before its activation",
    "after": "the same channels after it",
}


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a network made of a picture.

    Attributes:
      picture: what it saw, uint8 `[S, S, 3]`.
      best: the first classes with their probabilities.
      kernel: the first layer's filters, `[H, W, 3, filters]`.
      before, after: the first layer's output, before and after its activation, `[h, w, filters]`.
    """

    picture: np.ndarray
    best: tuple[tuple[str, float], ...]
    kernel: np.ndarray
    before: np.ndarray
    after: np.ndarray


def look(one: Look, picture: Path | None, weights: str | None) -> Seen:
    """Runs the network on the picture.

    Args:
      one: what to look at.
      picture: an image file; None takes a procedural one.
      weights: as `config.model.weights`; None for random ones.

    Raises:
      UserError: for a picture or weights that cannot be used.
    """
    found = find_weights(weights, one.model)
    model = create_model(one.model)
    variables, _ = merge_loaded(
        model, init_variables(model, jax.random.key(0)), load_pretrained(found, one.model), fresh=()
    )
    image = _read(picture, found.resize)
    views = make_views(Augmentation(found.crop, crop="center", flip=False), found.mean, found.std)
    x = views(jax.random.split(jax.random.key(0), 1), jnp.asarray(image[None]), jnp.asarray([image.shape[:2]]))
    logits, sown = model.apply(variables, x, mutable=["intermediates"])
    inside: Any = sown["intermediates"]
    shares = softmax(np.asarray(logits[0], np.float64))
    pixels = np.asarray(x[0]) * np.array(found.std) + np.array(found.mean)
    return Seen(
        picture=np.round(255 * pixels).clip(0, 255).astype(np.uint8),
        best=tuple((class_names()[i], float(shares[i])) for i in np.argsort(-shares)[: len(one.published)]),
        kernel=first_kernel(model, variables["params"]),
        before=np.asarray(inside["stem_before_relu"][0][0]),
        after=np.asarray(inside["stem_relu"][0][0]),
    )


def _read(picture: Path | None, short_side: int) -> np.ndarray:
    if picture is None:
        return decode(np.asarray(open_shapes("tiny").read(0)), short_side=short_side)
    try:
        return decode(picture.read_bytes(), short_side=short_side)
    except (OSError, Unreadable) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        raise UserError(f"{picture} cannot be read as a picture: {why}") from None


def markdown(one: Look, seen: Seen, picture: str, *, scale: str) -> str:
    """The classes that the report printed, and ours beside them."""
    pictures = "; ".join(f"{name}.png, {words}" for name, words in PICTURES.items())
    return document(one, SCALES[scale].note, grid(one, seen.best, picture), [f"Pictures: {pictures}."])


def grid(one: Look, best: Sequence[tuple[str, float]], picture: str) -> tuple[list[str], list[list[str]]]:
    """The head of the table and its lines, by rank."""
    head = ["rank", "published class", "published probability", f"ours, of {picture}", "our probability"]
    pairs = zip(one.published.items(), best, strict=True)
    return head, [
        [str(rank), name, text, ours, f"{100 * share:.2f} %"]
        for rank, ((name, text), (ours, share)) in enumerate(pairs, 1)
    ]


def write(one: Look, seen: Seen, picture: str, folder: Path, *, scale: str) -> str:
    """Writes table, page, pictures and numbers into a folder; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "filters": filters_picture(seen.kernel),
        "before": maps_picture(seen.before[..., :SHOWN], signed=True),
        "after": maps_picture(seen.after[..., :SHOWN], signed=False),
    }
    for name, data in files.items():
        (folder / f"{name}.png").write_bytes(data)
    head, lines = grid(one, seen.best, picture)
    text = markdown(one, seen, picture, scale=scale)
    html = TEMPLATES.get_template("look.html.jinja").render(
        study=one, note=SCALES[scale].note, head=head, lines=lines, name=picture,
        input=jpeg_address(seen.picture, quality=88),
        pictures=[
            (words, data_address("image/png", files[name]))
            for name, words in PICTURES.items()
        ],
    )  # fmt: skip
    numbers = {"filters": seen.kernel.shape[-1], "largest": float(np.abs(seen.before).max()),
               "zeros": float(np.mean(seen.after == 0))}  # fmt: skip
    best = [list(pair) for pair in seen.best]
    write_json(folder / "result.json", {"picture": picture, "best": best, "first layer": numbers})
    write_whole(folder / "report.html", html)
    write_whole(folder / "table.md", text)
    return text
