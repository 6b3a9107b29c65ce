"""What `tljax.suggest` says, held against what full runs then give, and against always saying the same.

python benchmarks/suggest.py --data ../shared/data --seed 1 [--only NAME]    (adds to docs/results/suggest.jsonl)
python benchmarks/suggest.py --page                                          (writes suggest.md beside it)

Each case has data and a plan. Full runs train every backbone at every rate, with random crops and flips (two kept
views) and 64 pixels unless said, and are tested once. Suggest sees the case's training and validation images alone.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.suggest_page import make_page, read, written
from tljax.core.xla_flags import tune_cpu

tune_cpu()

import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402

from tljax.core import shared_cache  # noqa: E402
from tljax.core.process import keep_compilations, quiet_libraries  # noqa: E402
from tljax.settings.fields import get_config  # noqa: E402
from tljax.suggest import __main__ as suggest_command  # noqa: E402
from tljax.suggest import trial  # noqa: E402
from tljax.suggest.probe import cross_validate, make_folds, suspects  # noqa: E402
from tljax.train import single_run  # noqa: E402

QUIET = Console(quiet=True)
RECORD = Path(__file__).resolve().parent.parent / "docs" / "results" / "suggest.jsonl"
ANIMALS = ("dog", "elephant", "giraffe", "horse")
SOURCES = {
    "pacs": ("folder:pacs_cartoon", "60/20/20"), "pets": ("pets:oxford_pets_3breeds", "official"),
    "ants, bees": ("folder:ants_bees", "60/20/20"), "cats, dogs": ("folder:cats_dogs", "60/20/20"),
    "37 breeds": ("folder:pets37_sample", "60/20/20"),
}  # fmt: skip
CASES = {
    "pacs 4 per class": ("pacs", (), dict(per_class=4), "head"),
    "pacs 10 per class": ("pacs", (), dict(per_class=10), "head"),
    "pacs 30 per class": ("pacs", (), dict(per_class=30), "head"),
    "dog, horse": ("pacs", ("dog", "horse"), {}, "head"),
    "dog, horse 10 per class": ("pacs", ("dog", "horse"), dict(per_class=10), "head"),
    "animals 20 per class": ("pacs", ANIMALS, dict(per_class=20), "head"),
    "things": ("pacs", ("guitar", "house", "person"), {}, "head"),
    "pets breeds": ("pets", (), dict(label="breed"), "head"),
    "pets breeds 10 per class": ("pets", (), dict(label="breed", per_class=10), "head"),
    "pets species 15 per class": ("pets", (), dict(label="species", per_class=15), "head"),
    "pacs 10 per class, last stage": ("pacs", (), dict(per_class=10), "last"),
    "animals 20 per class, last stage": ("pacs", ANIMALS, dict(per_class=20), "last"),
    "pets breeds 30 per class, last stage": ("pets", (), dict(label="breed", per_class=30), "last"),
    "guitar, house 20 per class, last stage": ("pacs", ("guitar", "house"), dict(per_class=20), "last"),
    "pacs": ("pacs", (), {}, "head"),
    "pets breeds, 224 pixels": ("pets", (), dict(label="breed", size=224), "head"),
    "pets breeds 10 per class, 224 pixels": ("pets", (), dict(label="breed", per_class=10, size=224), "head"),
    "pets species 15 per class, 224 pixels": ("pets", (), dict(label="species", per_class=15, size=224), "head"),
    "dog, horse 10 per class, 224 pixels": ("pacs", ("dog", "horse"), dict(per_class=10, size=224), "head"),
    # Sets that had no part in choosing how suggest works.
    "ants, bees 5 per class": ("ants, bees", (), dict(per_class=5), "head"),
    "ants, bees 30 per class": ("ants, bees", (), dict(per_class=30), "head"),
    "ants, bees": ("ants, bees", (), {}, "head"),
    "cats, dogs 10 per class": ("cats, dogs", (), dict(per_class=10), "head"),
    "cats, dogs": ("cats, dogs", (), {}, "head"),
    "37 breeds 3 per class": ("37 breeds", (), dict(per_class=3), "head"),
    "37 breeds": ("37 breeds", (), {}, "head"),
    "ants, bees 10 per class, 224 pixels": ("ants, bees", (), dict(per_class=10, size=224), "head"),
    "cats, dogs 10 per class, 224 pixels": ("cats, dogs", (), dict(per_class=10, size=224), "head"),
    "ants, bees 30 per class, last stage": ("ants, bees", (), dict(per_class=30), "last"),
    "cats, dogs 30 per class, last stage": ("cats, dogs", (), dict(per_class=30), "last"),
    "37 breeds, last stage": ("37 breeds", (), {}, "last"),
}


def make_config(data: Path, links: Path, name: str, seed: int = 0):
    """A case's config, as a user would write it."""
    kind, classes, fields, plan = CASES[name]
    config = get_config()
    source, config.data.split = SOURCES[kind]
    reader, _, place = source.partition(":")
    root = data / place
    if classes:
        root, whole = links / "-".join(classes), root
        root.mkdir(exist_ok=True)
        for cls in classes:
            (root / cls).exists() or os.symlink(whole / cls, root / cls)
    config.data.source = f"{reader}:{root}"
    for field, value in ({"size": 64, "split_seed": seed} | fields).items():
        config.data[field] = value
    config.epochs, config.cache.views, config.pictures = 8, 2, False
    config.model.name, config.model.last_stage = "resnet18", "layer3"
    config.model.weights = str(data / "resnet18_to_layer3-imagenet.pth")
    config.transfer.train = "head,layer3" if plan == "last" else "head"
    return config


def full_runs(config, backbones, rates, folder: Path):
    """By backbone: which validation and test images each rate got right, at its best epoch."""
    found = {}
    for backbone in backbones:
        fields = trial.network_fields(config, backbone) | {"transfer.train": trial.train_of(config, backbone)}
        own = trial.with_fields(config, fields | {"population.lr": tuple(rates)})
        with tempfile.TemporaryDirectory(dir=folder) as place:
            single_run.run(own, Path(place) / "run", console=QUIET)
            right: dict[str, list] = {"val": [], "test": []}
            for member in sorted((Path(place) / "run" / "members").iterdir()):
                told = np.load(member / "predictions.npz")
                for split, rows in right.items():
                    rows.append(told[f"{split}_logits"].argmax(1) == told[f"{split}_labels"])
        found[str(backbone)] = {split: np.stack(rows) for split, rows in right.items()}
    return found


def run_case(name, data, backbones, folder: Path, seed: int):
    """Suggests, runs in full, compares."""
    config, last = make_config(data, folder, name, seed), CASES[name][3] == "last"
    rates = list(suggest_command.RATES if last else suggest_command.HEAD_RATES)
    began = time.perf_counter()
    said = suggest_command.suggest(config, backbones, layers=False, console=QUIET)
    seconds = time.perf_counter() - began
    full = full_runs(config, backbones, rates, folder)
    return {
        "case": name, "seed": seed, "images": len(said.looked[0].probed.labels), "suggest_seconds": round(seconds, 1),
        "backbone": str(said.best.backbone), "lr": said.fields["optimizer.lr"], "rates": rates,
        "by_probe": str(said.looked[0].backbone),
        "by_log_me": str(max(said.looked, key=lambda one: one.log_me).backbone),
        "right": {who: {split: [written(row) for row in rows] for split, rows in right.items()}
                  for who, right in full.items()},
        "test_labels_read": said.test_labels_read,
    }  # fmt: skip


def wrong_labels(data, backbones, folder: Path):
    """Precision and recall of the suspects, of labels that were changed at random."""
    rows = []
    for name in ("pacs", "pets breeds"):
        seen = trial.features_of(
            make_config(data, folder, name), backbones[0], images=1000, folder=folder, console=QUIET
        )
        true = seen.x.data.labels("train")
        for part in (0.05, 0.1):
            rng = np.random.default_rng(0)
            changed = rng.random(len(true)) < part
            labels = np.where(changed, (true + rng.integers(1, true.max() + 1, len(true))) % (true.max() + 1), true)
            found = suspects(cross_validate(seen.features, labels, make_folds(labels, 5)))
            hits, first = [bool(changed[one.image]) for one in found], int(changed.sum())
            rows.append({
                "data": name, "changed": first, "of": len(true), "suspects": len(found), "found": sum(hits),
                "among_the_first": sum(hits[:first]),
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TLJAX_SHARED", "../shared")) / "data")
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--only", action="append", default=[], help="a case; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="of the splits")
    parser.add_argument("--labels", action="store_true", help="changed labels in place of the cases")
    parser.add_argument("--page", action="store_true", help="write the page, run nothing")
    args = parser.parse_args()
    if args.page:
        (args.out.with_suffix(".md")).write_text(make_page(read(args.out)))
        return
    quiet_libraries()
    keep_compilations(small=True)
    backbones = trial.read_backbones(
        f"squeezenet1_0={args.data}/squeezenet1_0-imagenet.pth,"
        f"resnet18:layer3={args.data}/resnet18_to_layer3-imagenet.pth"
    )
    lines = read(args.out) if args.out.exists() else []
    done = {(line.get("case"), line.get("seed")) for line in lines}
    with tempfile.TemporaryDirectory() as place, shared_cache.sharing():
        for name in () if args.labels else args.only or CASES:
            if (name, args.seed) in done:
                continue
            line = run_case(name, args.data.resolve(), backbones, Path(place), args.seed)
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name}, split {args.seed}: {line['backbone']} at {line['lr']:g}", flush=True)
        if args.labels:
            with args.out.open("a") as file:
                for line in wrong_labels(args.data.resolve(), backbones, Path(place)):
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
