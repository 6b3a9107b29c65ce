"""tljax beside PyTorch on this machine's CPU.

    make bench                                              (all rows)
    .venv/bin/python benchmarks/run.py --rows full,augment  (some)

Ours is what a user runs: `python -m tljax.main`, a process of its own, timed from its start to its end, so that
importing, compiling (into an empty cache), decoding and writing results are in it. The peer is `peer_torch.py`, which
waits in a process of its own while ours runs; its start-up is not counted. Both sides decode the same files, split them
alike and train for the same number of epochs.

A peer that would take hours is timed on two members, two epochs after a first one, and multiplied; such a row says
`extrapolated`. `BENCH_FULL=1` runs it whole. Needs the images and weights of `TLJAX_SHARED` (default `../shared`) and
the extra [peer]. Writes `results/latest.json`, in which rows that were not
asked for stay as they were on the same machine and versions, and the table in `README.md` beside this file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tljax.core.xla_flags import tune_cpu  # noqa: E402

tune_cpu()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

from benchmarks.gpu import flops_of, our_step  # noqa: E402
from benchmarks.sides import Peer, machine, run_ours  # noqa: E402
from tljax.data.load import open_data  # noqa: E402
from tljax.metrics.accuracy import wilson_interval  # noqa: E402
from tljax.settings.fields import get_config  # noqa: E402

WHOLE = os.environ.get("BENCH_FULL") == "1"
GRID_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SWEEP_RATES = tuple(round(5e-5 + i * 1e-4 / 9, 10) for i in range(10))  # seed 000's Table 4
STILL = {"augment.crop": "center", "augment.flip": False}
RESNET = {"model.name": "resnet18", "transfer.fresh": "layer4,head"}
LAST = {**RESNET, "transfer.train": "layer4,head"}
BATCH = 32
BEGIN, END = "<!-- the table, written by run.py -->", "<!-- its end -->"
Row = dict[str, Any]


class Bench:
    """Both sides on one machine, and what they share: files and splits."""

    def __init__(self, shared: Path, scratch: Path):
        self.scratch, self.runs = scratch, 0
        self.peer = Peer("peer_torch.py")
        self.ask = self.peer.ask
        self.versions = self.ask("versions")
        self.pacs = {"data.source": f"folder:{shared / 'data/pacs_cartoon'}", "data.split": "80/20"}
        self.pets = {"data.source": f"pets:{shared / 'data/oxford_pets_3breeds'}", "data.split": "80/20"}
        self.resnet = shared / "data/resnet18_to_layer3-imagenet.pth"
        self.squeezenet = shared / "data/squeezenet1_0-imagenet.pth"

    def peer_data(self, data: dict[str, Any]) -> float:
        """Gives the peer a data set, split as ours splits it; its seconds of decoding."""
        config = get_config()
        config.data.source, config.data.split = data["data.source"], data["data.split"]
        listed = open_data(config.data, seed=0)
        answer = self.ask(
            "data", root=data["data.source"].partition(":")[2], names=listed.source.names, labels=listed.truth.tolist(),
            splits={name: members.tolist() for name, members in listed.splits.items()},
        )  # fmt: skip
        return answer["seconds"]

    def ours(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """A whole run of ours: its result.json, with `wall` seconds and `peak` bytes of the process."""
        self.runs += 1
        workdir, cache = self.scratch / f"run{self.runs}", self.scratch / f"cache{self.runs}"
        return run_ours("tljax/settings/fields.py", overrides, workdir, cache)

    def peer_epochs(self, recipes: Sequence[dict[str, Any]], epochs: int) -> tuple[float, bool]:
        """Seconds of all epochs of all members on the peer, each validated; whether they were extrapolated."""
        if WHOLE:
            return sum(sum(self.ask("train", epochs=epochs, **r)["seconds_per_epoch"]) for r in recipes), False
        two = [recipes[0], recipes[-1]]
        steady = [s for r in two for s in self.ask("train", epochs=3, **r)["seconds_per_epoch"][1:]]
        return statistics.median(steady) * epochs * len(recipes), True


def row(
    work: str, ours: float, peer: float, ratio: float, goal: float, unit: str, extrapolated: bool, note: str
) -> Row:
    """One line of the table."""
    return {
        "work": work, "ours": ours, "peer": peer, "unit": unit, "ratio": ratio, "goal": goal,
        "extrapolated": extrapolated, "note": note, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def accuracies(ours: dict[str, Any], peer: dict[str, Any]) -> str:
    """One member's best validation accuracy on both sides, with 95% intervals, in words."""
    found = [(ours["validation"]["correct"], ours["validation"]["seen"]), (max(peer["val_correct"]), peer["val_seen"])]
    words = []
    for side, (correct, seen) in zip(("ours", "PyTorch"), found, strict=True):
        low, high = wilson_interval(correct, seen)
        words.append(f"{side} {correct / seen:.1%} ({100 * low:.1f} to {100 * high:.1f})")
    return ", ".join(words)


def grid_head(bench: Bench) -> list[Row]:
    """Seed 002, section IV: 2 optimizers x 5 rates x 50 epochs, the head alone, no augmentation."""
    epochs, optimizers = 50, ("adam", "sgd")
    ours = bench.ours(
        bench.pacs
        | STILL
        | {
            "model.name": "squeezenet1_0", "model.weights": bench.squeezenet, "epochs": epochs,
            "population.optimizer": optimizers, "population.lr": GRID_RATES,
        }
    )  # fmt: skip
    decoding = bench.peer_data(bench.pacs)
    bench.ask("model", arch="squeezenet1_0", weights=str(bench.squeezenet), classes=7, train=["head"])
    recipes = [{"optimizer": name, "lr": lr} for name in optimizers for lr in GRID_RATES]
    plain, extrapolated = bench.peer_epochs(recipes, epochs)
    plain += decoding
    member = bench.ask("train", cache=True, epochs=epochs, optimizer="adam", lr=1e-3)
    cached, _ = bench.peer_epochs([{"cache": True, **recipe} for recipe in recipes], epochs)
    cached += decoding + member["cache_seconds"]
    mine = next(m for m in ours["members"] if m["settings"] == {"optimizer": "adam", "lr": 1e-3})
    parts = f"{ours['features']['seconds']:.0f} s of it the features of {ours['features']['bytes'] / 1e6:,.0f} MB"
    told = f"{parts}; Adam at 1e-3: {accuracies(mine, member)}"
    return [
        row("grid-head", ours["wall"], plain, plain / ours["wall"], 100, "s", extrapolated, told),
        row("grid-head, caching peer", ours["wall"], cached, cached / ours["wall"], 5, "s", extrapolated,
            "the peer keeps features too: what is left is the population"),
    ]  # fmt: skip


def sweep_last_stage(bench: Bench) -> list[Row]:
    """Seed 000, Table 4: ten rates, last stage and head, batch norm in eval mode, 3 epochs."""
    epochs, fixed = 3, bench.pets | STILL | LAST | {"model.weights": bench.resnet, "transfer.bn": "eval"}
    ours = bench.ours(fixed | {"epochs": epochs, "population.lr": SWEEP_RATES})
    decoding = bench.peer_data(bench.pets)
    bench.ask("model", arch="resnet18", weights=str(bench.resnet), classes=3, train=["layer4", "head"],
              missing_ok=["layer4"])  # fmt: skip
    recipes = [{"optimizer": "adam", "lr": lr, "bn": "eval"} for lr in SWEEP_RATES]
    seconds, extrapolated = bench.peer_epochs(recipes, epochs)
    member = bench.ask("train", epochs=epochs, **recipes[5])
    # One member without features kept, on both sides, is the single-run speed ratio.
    single = bench.ours(fixed | {"epochs": 2, "optimizer.lr": SWEEP_RATES[5], "cache.features": "off"})
    steady = single["train"]["epochs"][-1]
    once = steady["seconds"] + steady["validation_seconds"]
    speed = seconds / (epochs * len(recipes)) / once
    ceiling = sweep_ceiling(single, epochs)
    spent = ours["features"]["seconds"] + sum(e["seconds"] + e["validation_seconds"] for e in ours["train"]["epochs"])
    compiling = ours["train"]["epochs"][0]
    rate = ours["train"]["images_per_second"]
    first = compiling["seconds"] - ours["train"]["images"] / rate  # what the first step took beyond a step
    reached = seconds / (spent - max(first, 0.0))
    note = (
        f"FLOP ceiling {ceiling:.2f}, single-run speed ratio {speed:.2f}: {reached / (ceiling * speed):.0%} of their "
        f"product while training ({reached:.2f}); 90% was asked for. At {SWEEP_RATES[5]:.3g}: "
        f"{accuracies(ours['members'][5], member)}"
    )
    total = seconds + decoding
    return [row("sweep-last-stage", ours["wall"], total, total / ours["wall"], 1.8, "s", extrapolated, note)]


def sweep_ceiling(single: dict[str, Any], epochs: int) -> float:
    """FLOPs of ten plain runs over those of a population that computes the prefix once per image, by XLA's count."""
    members, train, val = len(SWEEP_RATES), single["train"]["images"], single["validation"]["seen"]
    found = {}
    for name, options in (("plain", {}), ("kept", {"kept": True})):
        step, *arguments = our_step("resnet18", "layer4,head", BATCH, "float32", bn="eval", **options)
        flops = flops_of(step, *arguments, jax.random.key(0))
        assert flops is not None
        found[name] = flops / BATCH
    prefix = found["plain"] - found["kept"]
    forward = found["kept"] / 3  # forward, and backward to inputs and to weights
    plain = members * epochs * (train * found["plain"] + val * (prefix + forward))
    shared = (train + val) * prefix + members * epochs * (train * found["kept"] + val * forward)
    return plain / shared


def last_stage(bench: Bench) -> list[Row]:
    """One run with augmentation, end to end: last stage and head, 5 epochs, decoding included."""
    epochs = 5
    ours = bench.ours(bench.pacs | LAST | {"model.weights": bench.resnet, "epochs": epochs, "optimizer.lr": 1e-4})
    decoding = bench.peer_data(bench.pacs)
    bench.ask("model", arch="resnet18", weights=str(bench.resnet), classes=7, train=["layer4", "head"],
              missing_ok=["layer4"])  # fmt: skip
    peer = bench.ask("train", epochs=epochs, augment=True, optimizer="adam", lr=1e-4)
    seconds = decoding + sum(peer["seconds_per_epoch"])
    note = (
        f"{ours['train']['images_per_second']:.0f} images/s while training, the first step after "
        f"{ours['train']['first_step_seconds']:.0f} s; {accuracies(ours, peer)}"
    )
    return [row("last-stage", ours["wall"], seconds, seconds / ours["wall"], 1.5, "s", False, note)]


def full(bench: Bench) -> list[Row]:
    """One run, everything trained, no augmentation: images per second, in turn, twice; and our memory against that of
    training the last stage."""
    bench.peer_data(bench.pets)
    bench.ask("model", arch="resnet18", weights=str(bench.resnet), classes=3, train=["all"], missing_ok=["layer4"])
    fixed = bench.pets | STILL | {"model.weights": bench.resnet, "epochs": 2, "cache.features": "off"}
    mine, theirs, peak = [], [], 0
    for _ in range(2):
        ours = bench.ours(fixed | RESNET | {"transfer.train": "all", "optimizer.lr": 1e-4})
        peak = max(peak, ours["peak"])
        mine += [epoch["images_per_second"] for epoch in ours["train"]["epochs"]]
        peer = bench.ask("train", epochs=2, optimizer="adam", lr=1e-4)
        spent = zip(peer["seconds_per_epoch"], peer["val_seconds"], strict=True)
        theirs += [ours["train"]["images"] / (seconds - validating) for seconds, validating in spent]
    ours, peer = statistics.median(mine), statistics.median(theirs)
    spread = f"ours {min(mine):.1f} to {max(mine):.1f}, PyTorch {min(theirs):.1f} to {max(theirs):.1f}, by epoch"
    low = bench.ours(fixed | LAST | {"optimizer.lr": 1e-4})["peak"]
    steps = {train: step_bytes(train) for train in ("layer4,head", "all")}
    share = steps["layer4,head"] / steps["all"]
    note = f"the step alone, by XLA; the whole processes peaked at {low / 1e9:.2f} and {peak / 1e9:.2f} GB"
    return [
        row("full", ours, peer, ours / peer, 1.0, "images/s", False, spread),
        row("memory", steps["layer4,head"] / 1e9, steps["all"] / 1e9, share, 0.5, "GB", False, note),
    ]


def step_bytes(train: str) -> int:
    """What a step takes beside its compiled code: parameters, optimizer, batch and temporaries."""
    step, *arguments = our_step("resnet18", train, BATCH, "float32")
    run = jax.jit(step, donate_argnums=0).lower(*arguments, jax.random.key(0)).compile()
    found: Any = run.memory_analysis()
    return found.argument_size_in_bytes + found.temp_size_in_bytes


def augment(bench: Bench) -> list[Row]:
    """Crop, flip and rotation, pictures per second on one core, in turn."""
    bench.peer_data(bench.pets)
    mine, theirs = [], []
    for _ in range(3):
        command = [sys.executable, str(HERE / "augmentation.py"), bench.pets["data.source"].partition(":")[2]]
        said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent).stdout
        mine.append(json.loads(said)["images_per_second"])
        theirs.append(bench.ask("augment", count=600)["images_per_second"])
    ours, peer = statistics.median(mine), statistics.median(theirs)
    note = "ours bilinear throughout, torchvision's rotation by nearest neighbors, its default"
    return [row("augment", ours, peer, ours / peer, 1.5, "images/s", False, note)]


ROWS: dict[str, Callable[[Bench], list[Row]]] = {
    "grid-head": grid_head, "sweep-last-stage": sweep_last_stage, "last-stage": last_stage, "full": full,
    "augment": augment,
}  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| work | ours | PyTorch | ratio | goal | |", "|---|---|---|---|---|---|"]
    for r in rows:
        ratio, goal = f"{r['ratio']:.2f}", f"{r['goal']:g}"
        reached = r["ratio"] <= r["goal"] if r["work"] == "memory" else r["ratio"] >= r["goal"]
        peer = f"{r['peer']:,.4g} {r['unit']}" + (" (extrapolated)" if r["extrapolated"] else "")
        note = ("" if reached else "**falls short.** ") + r["note"]
        goal = f"at most {goal}" if r["work"] == "memory" else goal
        lines.append(f"| `{r['work']}` | {r['ours']:,.4g} {r['unit']} | {peer} | {ratio} | {goal} | {note} |")
    return "\n".join(lines)


def main() -> None:
    """Measures the rows asked for and writes them beside those that were not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="which, of " + ", ".join(ROWS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "latest.json")
    args = parser.parse_args()
    chosen = args.rows.split(",")
    if unknown := set(chosen) - set(ROWS):
        parser.error(f"--rows: no {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    shared = Path(os.environ.get("TLJAX_SHARED") or HERE.parent.parent / "shared").resolve()
    if not (shared / "data").is_dir():
        parser.error(f"no images and weights in {shared}/data; set TLJAX_SHARED")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tljax-bench-") as scratch:
        bench = Bench(shared, Path(scratch))
        here = machine(bench.versions)
        earlier = json.loads(args.out.read_text()) if args.out.exists() else {}
        same = {key: earlier.get(key) for key in here} == here
        rows = {r["work"]: r for r in earlier["rows"]} if same else {}
        for name in chosen:
            rows |= {r["work"]: r for r in ROWS[name](bench)}
            print(f"{name}: done after {time.perf_counter() - began:.0f} s", flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(here | {"rows": list(rows.values())}, indent=1) + "\n")
        bench.peer.close()
    page, shown = HERE / "README.md", table(list(rows.values()))
    if args.out == parser.get_default("out"):
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(before + BEGIN + "\n" + shown + "\n" + END + rest.partition(END)[2])
    print(shown)


if __name__ == "__main__":
    main()
