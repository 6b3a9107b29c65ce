"""What `tljax.suggest` says, held against what full runs then give.

python benchmarks/suggest.py --data ../shared/data --out suggest.json [--only NAME]

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

from tljax.core.xla_flags import tune_cpu

tune_cpu()

import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402

from tljax.core import shared_cache  # noqa: E402
from tljax.core.process import keep_compilations, quiet_libraries  # noqa: E402
from tljax.metrics.accuracy import wilson_interval  # noqa: E402
from tljax.settings.fields import get_config  # noqa: E402
from tljax.suggest import __main__ as suggest_command  # noqa: E402
from tljax.suggest import suggestion, trial  # noqa: E402
from tljax.suggest.probe import cross_validate, make_folds, suspects  # noqa: E402
from tljax.train import single_run  # noqa: E402

QUIET = Console(quiet=True)
ANIMALS = ("dog", "elephant", "giraffe", "horse")
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
}


def make_config(data: Path, links: Path, name: str, seed: int = 0):
    """A case's config, as a user would write it."""
    kind, classes, fields, plan = CASES[name]
    config = get_config()
    if kind == "pacs":
        root = data / "pacs_cartoon"
        if classes:
            root, whole = links / "-".join(classes), root
            root.mkdir(exist_ok=True)
            for cls in classes:
                (root / cls).exists() or os.symlink(whole / cls, root / cls)
        config.data.source, config.data.split = f"folder:{root}", "60/20/20"
    else:
        config.data.source = f"pets:{data / 'oxford_pets_3breeds'}"
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


def judge_rate(right, rates, lr):
    """How a rate compares with the best one on the full runs' validation."""
    best, mine = int(right.sum(1).argmax()), rates.index(lr)
    apart = suggestion.p_value(right[best], right[mine])
    near = max(rates[best] / lr, lr / rates[best]) < 3.5
    return {
        "lr": lr, "best": rates[best], "correct": int(right[mine].sum()), "best_correct": int(right[best].sum()),
        "seen": right.shape[1], "p": apart, "near": near, "right": bool(near or apart >= suggestion.LEVEL),
    }  # fmt: skip


def run_case(name, data, backbones, folder: Path, seed: int):
    """Suggests, runs in full, compares."""
    config, last = make_config(data, folder, name, seed), CASES[name][3] == "last"
    rates = list(suggest_command.RATES if last else suggest_command.HEAD_RATES)
    began = time.perf_counter()
    said = suggest_command.suggest(config, backbones, layers=False, console=QUIET)
    seconds = time.perf_counter() - began
    full = full_runs(config, backbones, rates, folder)
    chosen, lr = str(said.best.backbone), said.fields["optimizer.lr"]
    test = {who: right["test"][int(right["val"].sum(1).argmax())] for who, right in full.items()}
    best, by_probe = max(test, key=lambda who: test[who].sum()), str(said.looked[0].backbone)
    by_log_me = str(max(said.looked, key=lambda one: one.log_me).backbone)
    apart = suggestion.p_value(*test.values())  # of the two backbones
    return {
        "case": name, "suggest_seconds": seconds, "images": len(said.looked[0].probed.labels),
        "backbone": chosen, "best_backbone": best, "p": apart, "told_apart": apart < suggestion.LEVEL,
        "probe": {str(one.backbone): [int(one.probed.right.sum()), one.log_me] for one in said.looked},
        "test": {who: [int(right.sum()), len(right)] for who, right in test.items()},
        "backbone_outright": bool(test[chosen].sum() == test[best].sum()),
        "tried": len(said.rivals),
        "by_probe": by_probe, "by_log_me": by_log_me,
        "backbone_right": bool(chosen == best or apart >= suggestion.LEVEL),
        "probe_right": bool(by_probe == best or apart >= suggestion.LEVEL),
        "log_me_right": bool(by_log_me == best or apart >= suggestion.LEVEL),
        "rate": judge_rate(full[chosen]["val"], rates, lr),
        "default_rate": judge_rate(full[chosen]["val"], rates, 1e-3),
        "trial": [int(n) for n in said.chosen.right.sum(1)],
        "full": {who: right["val"].sum(1).tolist() for who, right in full.items()},
        "rates": rates, "test_labels_read": said.test_labels_read,
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


def shares(rows):
    """How often suggest was right, with Wilson's 95% interval."""
    told = {
        "backbone, or not told apart": [row["backbone_right"] for row in rows],
        "backbone outright": [row["backbone_outright"] for row in rows],
        "backbone, where full runs tell them apart": [row["backbone_right"] for row in rows if row["told_apart"]],
        "by the probe alone": [row["probe_right"] for row in rows],
        "by LogME alone": [row["log_me_right"] for row in rows],
        "rate": [row["rate"]["right"] for row in rows],
        "rate, within a factor of 3.5": [row["rate"]["near"] for row in rows],
        "the default rate in its place": [row["default_rate"]["right"] for row in rows],
    }  # fmt: skip
    return {k: [sum(v), len(v), *wilson_interval(sum(v), len(v))] for k, v in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TLJAX_SHARED", "../shared")) / "data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", default=[], help="a case; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    parser.add_argument("--labels", action="store_true", help="changed labels in place of the cases")
    args = parser.parse_args()
    quiet_libraries()
    keep_compilations(small=True)
    backbones = trial.read_backbones(
        f"squeezenet1_0={args.data}/squeezenet1_0-imagenet.pth,"
        f"resnet18:layer3={args.data}/resnet18_to_layer3-imagenet.pth"
    )
    rows = []
    with tempfile.TemporaryDirectory() as place, shared_cache.sharing():
        for name in () if args.labels else args.only or CASES:
            rows.append(run_case(name, args.data.resolve(), backbones, Path(place), args.seed))
            print(json.dumps(rows[-1]), flush=True)
            args.out.write_text(json.dumps({"cases": rows, "shares": shares(rows)}, indent=1))
        if args.labels:
            args.out.write_text(json.dumps(wrong_labels(args.data.resolve(), backbones, Path(place)), indent=1))
    print(args.out.read_text())


main()
