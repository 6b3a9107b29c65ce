"""What `tljax.suggest` came to, in words, tables, JSON, and as a config."""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from tljax.report.console import percent, print_duplicates, print_table

if TYPE_CHECKING:  # they bring JAX: a mistake is answered at once
    from tljax.suggest.probe import Probed, Suspect
    from tljax.suggest.trial import Backbone, Seen, Trial

LEVEL = 0.05
SHOWN = 10


@dataclasses.dataclass(frozen=True)
class BackboneScore:
    """A backbone and what its features are worth."""

    backbone: "Backbone"
    seen: "Seen"
    probed: "Probed"
    log_me: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """What is suggested, why, and what it rests on.

    Attributes:
      fields: of the config that differ, by dotted name.
      reasons: sentences with their numbers.
      looked: the backbones, the most accurate probe first.
      best: the chosen one.
      rivals: short runs of the config's own plan, by backbone: of the most accurate probe, and of those that are not
        significantly different from it.
      trials: short runs with the chosen one; the first is that of the config's own plan.
      chosen: the trial whose groups and rate are suggested.
      suspects: labels that are likely wrong, by the chosen backbone's features.
      problems: of the data, in words.
      duplicates: images that occur in two splits, as result.json has them.
      test_labels_read: how often.
    """

    fields: dict[str, Any]
    reasons: list[str]
    looked: list[BackboneScore]
    best: BackboneScore
    rivals: "list[tuple[BackboneScore, Trial]]"
    trials: "list[Trial]"
    chosen: "Trial"
    suspects: "list[Suspect]"
    problems: list[str]
    duplicates: dict[str, Any]
    test_labels_read: int

    @property
    def all_trials(self) -> "list[tuple[BackboneScore, Trial]]":
        """Every short run, the chosen backbone's last."""
        others = [(one, tried) for one, tried in self.rivals if one is not self.best]
        return [*others, *((self.best, tried) for tried in self.trials)]


def best_of(trial: "Trial") -> np.ndarray:
    """Which validation images the chosen rate got right."""
    return trial.right[trial.chosen]


def differ(first: "Trial", second: "Trial") -> bool:
    return p_value(best_of(first), best_of(second)) < LEVEL


def p_value(first: np.ndarray, second: np.ndarray) -> float:
    """Of two rows of right and wrong answers about the same images being equally good."""
    from tljax.metrics.significance import mcnemar

    return mcnemar(first[None], second[None])


def why_backbone(
    looked: Sequence[BackboneScore], best: BackboneScore, rivals: "Sequence[tuple[BackboneScore, Trial]]"
) -> str:
    words = [f"{one.backbone} {share(one.probed.right)}" for one in looked]
    text = f"{best.backbone}: probes in cross-validation: {'; '.join(words)}"
    if len(looked) == 1:
        return f"{text}; no other one was there to compare"
    if len(rivals) == 1:
        text += "; the first is significantly different from all others"
    else:
        words = [f"{one.backbone} {share(best_of(trial))}" for one, trial in rivals]
        text += f"; these are not significantly different, so short runs decide, validation: {'; '.join(words)}"
        if close := [one for one, tried in rivals if one is not best and not _apart(rivals, best, tried)]:
            text += f"; still not significantly different from {', '.join(str(one.backbone) for one in close)}"
    return f"{text}; LogME is highest for {max(looked, key=lambda one: one.log_me).backbone}"


def _apart(rivals: "Sequence[tuple[BackboneScore, Trial]]", best: BackboneScore, tried: "Trial") -> bool:
    return differ(next(trial for one, trial in rivals if one is best), tried)


def why_plan(tried: "Sequence[Trial]", chosen: "Trial") -> str:
    def words(one: "Trial") -> str:
        return f"{one.train} {share(best_of(one))} after {one.epochs} epochs or fewer"

    others = [one for one in tried if one is not chosen]
    if not others:
        return f"transfer.train={chosen.train}: as the config says; nothing else was tried"
    text = f"transfer.train={chosen.train}: on {chosen.images:,} images, validation: {words(chosen)}; "
    text += "; ".join(words(one) for one in others)
    if chosen is not tried[0]:
        return (
            f"{text}; better than the config's {tried[0].train} (p = {p_value(best_of(chosen), best_of(tried[0])):.2g})"
        )
    better = [one for one in others if best_of(one).sum() > best_of(chosen).sum()]
    if not better:
        return f"{text}; as the config says"
    return f"{text}; as the config says: the difference to {better[0].train} may be chance, or its longer training"


def why_rate(chosen: "Trial") -> str:
    places, at = chosen.plateau, chosen.chosen
    text = f"optimizer.lr={chosen.rates[at]:g}: {share(chosen.right[at])} of validation"
    low, high = chosen.rates[places[0]], chosen.rates[places[-1]]
    text += (
        f"; {low:g} to {high:g} are within one standard error of the best, this is their middle" if low < high else ""
    )
    if at in (0, len(chosen.rates) - 1):
        text += "; it is the last rate that was tried on this side"
    return text + f" ({chosen.epochs} epochs on {chosen.images:,} images, nothing random in them)"


def share(right: np.ndarray) -> str:
    from tljax.metrics.accuracy import wilson_interval

    return percent(int(right.sum()), len(right), wilson_interval(int(right.sum()), len(right)))


def tell(console: Console, found: Suggestion) -> None:
    """Prints tables, problems and reasons."""
    rows = [
        {
            "backbone": str(one.backbone), "probe": share(one.probed.right), "loss": f"{one.probed.loss:.3f}",
            "strength": f"{one.probed.strength:g}", "LogME": f"{one.log_me:.3f}",
            "features": f"{one.seen.features.shape[1]:,}", "seconds": f"{one.seconds:.0f}",
        }
        for one in found.looked
    ]  # fmt: skip
    count = len(found.looked[0].probed.labels)
    print_table(console, f"Backbones, on {count:,} training images, cross-validated", rows)
    for who, one in found.all_trials:
        rows = [
            {
                "rate": f"{rate:g}", "validation": share(one.right[i]), "loss": f"{one.losses[i]:.3f}",
                "best epoch": str(one.best_epochs[i]),
                "": "chosen" if i == one.chosen else "as good" if i in one.plateau else "",
            }
            for i, rate in enumerate(one.rates)
        ]  # fmt: skip
        title = f"{who.backbone}, {one.train}: {one.epochs} epochs on {one.images:,} images"
        print_table(console, title, rows)
    for text in found.problems:
        console.print(text, markup=False)
    print_duplicates(console, found.duplicates)
    data, best = found.best.seen.x.data, found.best
    if found.suspects:
        console.print(f"{len(found.suspects):,} of {count:,} labels may be wrong, as the probe sees it; look at these:")
        names, images = np.unique(data.labels("train")), data.splits["train"]
        for one in found.suspects[:SHOWN]:
            given = data.source.classes[names[best.probed.labels[one.image]]]
            console.print(
                f"  {data.source.names[images[one.image]]}: {given} ({one.given:.0%}), looks like "
                f"{data.source.classes[names[one.likely]]} ({one.other:.0%})", markup=False,
            )  # fmt: skip
    console.print("\nSuggested, and why:")
    for text in found.reasons:
        console.print(f"  {text}", markup=False)
    console.print(f"  test labels read: {found.test_labels_read}")


def config_file(config: Any, found: Suggestion, out: Path) -> str:
    """A config's source: the suggestion, and all else that differs from `tljax/settings/fields.py`."""
    from tljax.settings.build import source_of
    from tljax.settings.dotted import with_fields

    wrap = textwrap.TextWrapper(118, subsequent_indent="  ", break_long_words=False)
    reasons = "\n".join(wrap.fill(f"- {text}") for text in found.reasons)
    words = f"Suggested by tljax.\n\n    python -m tljax.main --config {out}\n\n{reasons}\n"
    return source_of(with_fields(config, found.fields), words)


def record(found: Suggestion) -> dict[str, Any]:
    """All of it, for JSON."""
    best = found.best
    data, classes = best.seen.x.data, best.seen.x.data.source.classes
    names, images = np.unique(data.labels("train")), data.splits["train"]
    return {
        "fields": found.fields,
        "reasons": found.reasons,
        "backbones": [
            {
                "backbone": str(one.backbone), "weights": one.backbone.weights, "correct": int(one.probed.right.sum()),
                "seen": len(one.probed.right), "losses": {f"{k:g}": v for k, v in one.probed.losses.items()},
                "strength": one.probed.strength, "log_me": one.log_me,
            }
            for one in found.looked
        ],
        "trials": [
            {
                "backbone": str(who.backbone), "train": one.train, "epochs": one.epochs, "images": one.images,
                "seen": one.right.shape[1],
                "rates": [
                    {
                        "lr": rate, "correct": int(one.right[i].sum()), "best_epoch": one.best_epochs[i],
                        "val_loss": one.losses[i] if np.isfinite(one.losses[i]) else None,
                    }
                    for i, rate in enumerate(one.rates)
                ],
            }
            for who, one in found.all_trials
        ],
        "problems": found.problems,
        "duplicates": found.duplicates,
        "suspects": [
            {
                "image": data.source.names[images[one.image]], "label": classes[names[best.probed.labels[one.image]]],
                "likely": classes[names[one.likely]], "probability": one.given, "probability_likely": one.other,
            }
            for one in found.suspects
        ],
        "test_labels_read": found.test_labels_read,
    }  # fmt: skip
