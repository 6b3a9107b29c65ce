"""The parts of a look at a finished run, each computed, drawn and put on the page; what cannot be is said."""

import dataclasses
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from tljax.core.errors import UserError, counted
from tljax.data.batches import prefetch
from tljax.data.reading import Unreadable
from tljax.inference.activations import Layer, first_kernel, make_features, maps_of, nearest
from tljax.inference.batch_predict import Picture, see
from tljax.inference.classifier import Classifier
from tljax.inference.grad_cam import BEST, make_grad_cam, make_saliency
from tljax.inference.test_predictions import Answers, Images, open_images, read_answers
from tljax.metrics.accuracy import chose_epoch, confusion
from tljax.report.answers import LARGEST, Captioned, Reason, confusion_picture, gallery_picture, reason_picture
from tljax.report.console import fit_in_words, progress_bar, unseen_words
from tljax.report.html import data_address, jpeg_address, make_templates, share_words
from tljax.report.insides import filters_picture, maps_picture
from tljax.run_dir.files import SPLITS, write_json, write_whole

BATCH, PAIRS = 32, 12
_LEFT_OUT = "some of the run's images are left out,"  # how a note begins
TEMPLATES = make_templates("tljax.report")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to look at.

    Attributes:
      maps: layers whose maps are shown, by name.
      top: mistakes, and losses, to show.
      pictures: to explain, at most.
      channels: of a layer to show.
      near: nearest training images per picture.
      compare: training images to compare with, at most.
      source: where the run's images lie now, as `data.source`; empty for where they lay.
    """

    maps: Mapping[str, Layer]
    top: int = 8
    pictures: int = 4
    channels: int = 16
    near: int = 5
    compare: int = 5000
    source: str = ""


@dataclasses.dataclass
class _Asked:
    """A picture to explain: what it is called, what the network sees, and its class and row where they are known."""

    name: str
    square: np.ndarray
    label: int | None = None
    answer: int = BEST
    share: float = 0.0


class _Look:
    """A look under way."""

    def __init__(self, classifier: Classifier, folder: Path, options: Options):
        self.classifier, self.folder, self.options = classifier, folder, options
        self.notes: list[str] = []
        self.console = Console(stderr=True)
        self.answers: Answers | None = None
        self.images: Images | None = None
        try:
            self.answers = read_answers(classifier)
            if self.answers.lost:
                self.notes.append(f"{counted(self.answers.lost, 'image')} left out, whose logits are not finite")
        except UserError as reason:
            self.notes.append(f"confusion matrix, mistakes and losses are left out: {reason}")
        try:
            self.images = open_images(classifier, options.source, self.answers)
        except UserError as reason:
            if options.source:
                raise UserError(f"--source={options.source}: {reason}") from None
            self.notes.append(f"pictures of the run's images and nearest training images are left out: {reason}")

    def write(self, name: str, data: bytes, *, photo: bool = False) -> dict[str, str]:
        """Writes a PNG; on the page one with a photograph in it is a JPEG, a fifth as large."""
        write_whole(self.folder / name, data)
        if not photo:
            return {"file": name, "address": data_address("image/png", data)}
        with Image.open(io.BytesIO(data)) as image:
            return {"file": name, "address": jpeg_address(np.asarray(image.convert("RGB")), quality=88)}

    def called(self, index: int) -> str:
        return self.classifier.classes[index]

    def square(self, name: str) -> np.ndarray | None:
        """One of the run's images as the network sees it; None where it cannot be had any more."""
        try:
            return None if self.images is None else self.classifier.see(self.images.read(name))
        except (Unreadable, OSError) as reason:
            if not any(note.startswith(_LEFT_OUT) for note in self.notes):
                self.notes.append(f"{_LEFT_OUT} such as {name!r}: {reason}")
            return None

    def matrix(self) -> dict[str, Any] | None:
        """The confusion matrix, and the pairs that are confused most."""
        if (found := self.answers) is None:
            return None
        classes = self.classifier.result["classes"]
        counts = confusion(found.predicted, found.labels, len(classes))[:, : len(classes)]
        wrong = counts * (1 - np.eye(len(classes), dtype=int))
        order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
        pairs = [divmod(int(i), len(classes)) for i in order if wrong.flat[i]]
        title = f"{counts.sum():,} {SPLITS[found.split]} images, {np.trace(counts):,} of them right"
        if SPLITS[found.split] == "validation" and chose_epoch(self.classifier.result):
            title += "\n(these images chose the epoch)"
        picture = None
        if len(classes) <= LARGEST:
            picture = self.write("confusion.png", confusion_picture(counts, classes, title=title))
        seen = counts.sum(1)
        return {
            "picture": picture,
            "pairs": [(classes[i], classes[j], int(wrong[i, j]), int(seen[i])) for i, j in pairs],
            "classes": len(classes),
            "beyond": len(found.labels) - int(counts.sum()),
            "counts": counts.tolist(),
        }

    def gallery(self, name: str, rows: np.ndarray, title: str) -> dict[str, Any] | None:
        """Test images with their label, answer and loss, as a picture and for the page."""
        if (found := self.answers) is None or not len(rows):
            return None
        told, shown = [], []
        for row in rows:
            label, answer = int(found.labels[row]), int(found.predicted[row])
            one = {
                "name": str(found.names[row]), "label": self.called(label), "answer": self.called(answer),
                "probability": float(found.shares[row, answer]), "of_label": float(found.shares[row, label]),
                "loss": float(found.losses[row]), "right": label == answer,
            }  # fmt: skip
            lines = (
                f"is {one['label']}" + ("" if one["right"] else f" ({share_words(one['of_label'])})"),
                f"answer {one['answer']} ({share_words(one['probability'])})",
                f"loss {one['loss']:.2f}",
            )
            square = self.square(one["name"])
            told.append(one | {"lines": lines, "picture": square is not None and jpeg_address(square, quality=80)})
            if square is not None:
                shown.append(Captioned(square, lines))
        if shown:
            scale = f"probabilities at temperature {found.temperature:.2f}, losses without it"
            head = f"{title}\n{scale}" if found.temperature != 1 else title
            write_whole(self.folder / f"{name}.png", gallery_picture(shown, title=head))
        return {"title": title, "shown": told, "file": f"{name}.png" if shown else ""}

    def chosen(self) -> list[_Asked]:
        """Test images to explain: half mistakes, half right answers, first one of each class."""
        if (found := self.answers) is None or self.images is None:
            return []
        picked: list[int] = []
        for right, most in ((False, -(-self.options.pictures // 2)), (True, self.options.pictures)):
            rows = found.most_confident(right=right).tolist()
            firsts = [row for i, row in enumerate(rows) if found.labels[row] not in found.labels[rows[:i]]]
            rest = [row for row in rows if row not in set(firsts)]
            picked += [*firsts, *rest][: most - (len(picked) if right else 0)]
        asked = []
        for row in picked:
            square = self.square(str(found.names[row]))
            if square is not None:
                asked.append(_Asked(str(found.names[row]), square, int(found.labels[row])))
        return asked

    def given(self, pictures: Sequence[Picture]) -> list[_Asked]:
        """Pictures that the user named; those that cannot be read are noted."""
        asked = []
        for picture in pictures:
            if len(asked) == self.options.pictures:
                self.notes.append(
                    f"of {counted(len(pictures), 'picture')} the first {len(asked)} are explained (--pictures)"
                )
                break
            square = see(self.classifier, picture)
            if isinstance(square, str):
                self.notes.append(f"{picture.name} cannot be read: {square}")
            else:
                asked.append(_Asked(picture.name, square))
        return asked

    def explain(self, asked: list[_Asked]) -> list[dict[str, Any]]:
        """Where each answer comes from: Grad-CAM for it, and for the label where that is another; saliency."""
        squares, size = np.stack([one.square for one in asked]), len(asked)
        cam, saliency = make_grad_cam(self.classifier), make_saliency(self.classifier)
        logits, heats = (np.asarray(part) for part in cam(squares, np.full(size, BEST)))
        shares = self.classifier.probabilities(logits)
        for one, row in zip(asked, shares, strict=True):
            one.answer = int(row.argmax())
            one.share = float(row[one.answer])
        labels = np.array([one.answer if one.label is None else one.label for one in asked])
        others = np.asarray(cam(squares, labels)[1])
        fine = np.asarray(saliency(squares, np.full(size, BEST))[1])
        told = []
        for i, one in enumerate(asked):
            wrong = one.label is not None and one.label != one.answer
            shown = [(self.called(one.answer), heats[i])]
            if wrong:
                shown.append((self.called(labels[i]), others[i]))
            lines = [f"{self.called(one.answer)} ({share_words(one.share)})"]
            if one.label is not None:
                lines.append(f"it is {self.called(one.label)}" if wrong else "it is right")
            title = f"{one.name}: {'; '.join(lines)}"
            data = reason_picture(Reason(one.square, tuple(shown), fine[i]), title=title)
            best = self.classifier.best(shares[i], 3)
            told.append({
                "name": one.name, "title": title, "lines": lines,
                "picture": self.write(f"explained-{i + 1:02}.png", data, photo=True),
                "best": best, "words": ", ".join(f"{name} {share_words(share)}" for name, share in best),
                "label": None if one.label is None else self.called(one.label), "near": None,
            })  # fmt: skip
        return told

    def near(self, asked: list[_Asked], told: list[dict[str, Any]]) -> str:
        """Gives each picture its nearest training images; returns with what they were compared."""
        if self.images is None or not self.options.near:
            return ""
        listed = self.images.listed
        train = listed.splits["train"]
        if len(train) > self.options.compare:
            train = np.sort(np.random.default_rng(0).choice(train, self.options.compare, replace=False))
        features = make_features(self.classifier)
        rows, found = [], []
        with progress_bar(self.console, "training images") as advance:
            for indices, squares in self._squares(train):
                found.append(features(squares)[: len(indices)])
                rows += indices
                advance(len(rows), len(train))
        if not rows:
            self.notes.append("nearest training images are left out: none of them can be read")
            return ""
        one = np.concatenate([features(part)[:k] for part, k in _padded(np.stack([a.square for a in asked]))])
        order, cosines = nearest(one, np.concatenate(found), self.options.near)
        for i, (mine, close) in enumerate(zip(order, cosines, strict=True)):
            neighbors, shown = [], [Captioned(asked[i].square, ("the picture", *told[i]["lines"]))]
            for k, cosine in zip(mine, close, strict=True):
                index = rows[k]
                label, made_up = self.images.label(index)
                name, square = listed.source.names[index], self.square(listed.source.names[index])
                lines = (f"{self.called(label)}{' (pseudo-label)' if made_up else ''}", f"cosine {cosine:.3f}")
                neighbors.append({
                    "name": name, "label": self.called(label), "cosine": float(cosine), "lines": lines,
                    "picture": square is not None and jpeg_address(square, quality=75),
                })  # fmt: skip
                if square is not None:
                    shown.append(Captioned(square, lines))
            data = gallery_picture(shown, title=f"{asked[i].name}: nearest training images")
            write_whole(self.folder / f"neighbors-{i + 1:02}.png", data)
            told[i]["near"] = neighbors
        whole = len(listed.splits["train"])
        drawn = (
            f"{len(rows):,} training images" if len(rows) == whole else f"{len(rows):,} of {whole:,} training images"
        )
        return f"{drawn}, in the {one.shape[1]:,} features that the head is given"

    def _squares(self, indices: np.ndarray) -> Iterator[tuple[list[int], np.ndarray]]:
        """Training images as evaluation sees them, in full batches, those that can be read; decoded ahead."""
        assert self.images is not None
        names = self.images.listed.source.names

        def see(index: int) -> np.ndarray | None:
            return self.square(names[index])

        def batches() -> Iterator[tuple[list[int], np.ndarray]]:
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                for start in range(0, len(indices), BATCH):
                    part = indices[start : start + BATCH].tolist()
                    pairs = [(i, s) for i, s in zip(part, pool.map(see, part), strict=True) if s is not None]
                    if pairs:
                        ((squares, _),) = _padded(np.stack([square for _, square in pairs]))
                        yield [i for i, _ in pairs], squares

        yield from prefetch(batches())

    def maps(self, one: _Asked) -> list[dict[str, Any]]:
        """The strongest channels of each layer over a picture, before and after the activation."""
        told = []
        for name, (before, after) in maps_of(self.classifier, one.square, self.options.maps).items():
            strength = np.abs(after).mean((0, 1))
            channels = np.sort(np.argsort(-strength, kind="stable")[: self.options.channels])
            all_of = (
                f"the {len(channels)} strongest of {after.shape[2]:,} channels, {after.shape[0]} x {after.shape[1]}"
            )
            parts = {"before": before, "after": after} if before is not None else {"output": after}
            for when, maps in parts.items():
                words = {"before": "before its activation", "after": "after its activation", "output": "its output"}
                signed = bool(when == "before" or maps.min() < 0)
                title = f"{name}, {words[when]}\n{all_of}\nover {one.name}"
                data = maps_picture(maps[..., channels], signed=signed, channels=channels.tolist(), title=title)
                told.append({
                    "layer": name, "when": when, "title": f"{name}, {words[when]}: {all_of}",
                    "channels": channels.tolist(), "picture": self.write(f"maps-{name}-{when}.png", data),
                })  # fmt: skip
        return told


def write_look(
    classifier: Classifier, folder: Path, pictures: Sequence[Picture], options: Options
) -> tuple[list[str], int]:
    """Writes page, pictures and numbers into a folder.

    Args:
      classifier: a finished run.
      folder: made where there is none.
      pictures: to explain; none for test images.
      options: what to look at.

    Returns:
      What was left out and why, a line each; how many pictures were explained.

    Raises:
      UserError: if the folder cannot be made, or `options.source` is not the run's images.
    """
    x = _Look(classifier, folder, options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"--out={folder} is a file, not a folder") from None
    except OSError as error:
        raise UserError(f"--out={folder} cannot be written to: {error.strerror or error}") from None
    found, matrix = x.answers, x.matrix()
    mistakes = losses = None
    if found is not None:
        split, wrong = SPLITS[found.split], found.most_confident(right=False)
        mistakes = x.gallery("mistakes", wrong[: options.top], f"Most confident mistakes among {split} images")
        losses = x.gallery("losses", found.costliest[: options.top], f"Highest losses among {split} images")
    asked = x.given(pictures) if pictures else x.chosen()
    told = x.explain(asked) if asked else []
    compared = x.near(asked, told) if asked else ""
    maps = x.maps(asked[0]) if asked else []
    if not asked and not pictures:
        x.notes.append("nothing is explained without pictures; name some")
    kernel = first_kernel(classifier.model, classifier.variables["params"])
    filters = x.write("filters.png", filters_picture(kernel))
    html = TEMPLATES.get_template("look.html.jinja").render(
        run=classifier.workdir.absolute().name, facts=_facts(classifier), notes=x.notes, matrix=matrix,
        split=SPLITS[found.split] if found else "", galleries=[part for part in (mistakes, losses) if part],
        temperature=classifier.temperature, explained=told, given=bool(pictures), compared=compared, maps=maps,
        looked_at=asked[0].name if asked else "", filters=filters, kernel=kernel.shape,
    )  # fmt: skip
    write_whole(folder / "index.html", html)
    numbers = {
        "confusion": matrix and matrix["counts"], "mistakes": mistakes and mistakes["shown"],
        "losses": losses and losses["shown"], "explained": told, "maps": maps, "notes": x.notes,
    }  # fmt: skip
    write_json(folder / "look.json", _without_pictures(numbers))
    return x.notes, len(asked)


def _padded(squares: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of one size, so that one program does for all, and how many rows of each are real."""
    for start in range(0, len(squares), BATCH):
        part = squares[start : start + BATCH]
        yield np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), np.uint8)]), len(part)


def _facts(classifier: Classifier) -> list[tuple[str, str]]:
    result = classifier.result
    facts = [("network", result["config"]["model"]["name"]), ("classes", f"{len(result['classes']):,}")]
    for name in reversed(SPLITS.values()):
        if s := result.get(name):
            low, high = (100 * end for end in s["interval95"])
            counts = f"{s['correct']:,} of {s['seen']:,}; 95% interval {low:.1f} to {high:.1f}"
            chose = "; these images chose the epoch" if name == "validation" and chose_epoch(result) else ""
            unseen = unseen_words(result.get("without_images", {}), name)
            words = f"{100 * s['accuracy']:.1f}% ({counts}{unseen and '; '}{unseen}){chose}"
            facts.append((f"{name} accuracy", words))
    return [*facts, ("calibration", fit_in_words(classifier.fitted))]


def _without_pictures(value: Any) -> Any:
    if isinstance(value, Mapping):
        drop = {"picture", "words", "lines", "title"}
        return {name: _without_pictures(one) for name, one in value.items() if name not in drop}
    return [_without_pictures(one) for one in value] if isinstance(value, list | tuple) else value
