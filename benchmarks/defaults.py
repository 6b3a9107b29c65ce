"""What a first run gives on somebody's folder: ours, ours as it was, and what others' defaults give.

    make bench-defaults                                             (all that is missing, for 90 minutes at most)
    make bench-defaults ARGS='--sets ants_bees --sizes 5,10 --seeds 0 --recipes tljax,keras --minutes 10'
    make bench-defaults ARGS=--page                                 (only writes the page again)

A run is a draw (`draws.py`: set, images per class, seed) and a recipe. Every side reads the same folder of links, and
the seed draws the images, cuts the validation images and seeds the training. Ours is the command that a user types,
timed from its start to its end, compiling into an empty cache. The peers (`peer_defaults.py`) wait in a process whose
start-up is not counted. All start from torchvision's SqueezeNet 1.0.

Runs are side by side, one for each core and held to it (`--lanes 1`: one at a time on all cores). Each finished run is
a line of `--out`, and what has a line is not run again; a run that failed is. One file holds one protocol: other
machines, versions, lanes or epochs are refused, so that its seconds compare. `--redo tljax` first forgets the runs of a
recipe that has changed. The order is: seed by seed, within one the costliest recipes last, small sizes first.
Needs Linux, the images and weights of `TLJAX_SHARED` (default `../shared`), and for the peers the extra [peer].
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.defaults_page import make_page  # noqa: E402
from benchmarks.draws import SETS, SIZES, Draw, TooFew, link, make_draw, open_set  # noqa: E402
from benchmarks.sides import Peer, machine, run_ours, stop  # noqa: E402
from tljax.data.source import Source  # noqa: E402

WEIGHTS = "squeezenet1_0-imagenet.pth"
SQUEEZENET = {"model.name": "squeezenet1_0", "model.weights": WEIGHTS}
RESNET = {"model.name": "resnet18", "model.last_stage": "layer3", "model.weights": "resnet18_to_layer3-imagenet.pth"}
# What configs/folder.py chose until 2026-11, each field by name, whatever the defaults have become.
BEFORE = {
    "data.split": "auto", "data.val": 0.2, "epochs": 10, "epoch_steps": 0, "select": "validation", "batch_size": 32,
    "transfer.train": "head", "transfer.fresh": "head", "optimizer.name": "adam", "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 0.0, "schedule.name": "constant", "schedule.warmup_epochs": 0.0,
    "augment.crop": "random_resized", "augment.scale": (0.08, 1.0), "augment.flip": True, "cache.views": 0,
    "model.head_init": "torch",
}  # fmt: skip
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "tljax": ("configs/folder.py", SQUEEZENET),
    "tljax before": ("tljax/settings/fields.py", SQUEEZENET | BEFORE),
    "tljax resnet18": ("configs/folder.py", RESNET),  # another network: beside the comparison
}
COSTLY = ("keras", "fastai 10", "torchvision all")  # from the cheapest
RECIPES = ("tljax", "tljax before", "fastai 5", "torchvision head", *COSTLY, "tljax resnet18")
USUAL = RECIPES[:-1]


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to do."""

    set: str
    size: str
    seed: int
    recipe: str

    @property
    def turn(self) -> tuple[int, ...]:
        """Sorts jobs so that whatever is done when time runs out is balanced."""
        costly = COSTLY.index(self.recipe) + 1 if self.recipe in COSTLY else 0
        return self.seed, costly, SIZES.index(self.size), [*SETS].index(self.set), RECIPES.index(self.recipe)

    def __str__(self) -> str:
        return f"{self.recipe}, {self.set} {self.size}, seed {self.seed}"


class Record:
    """The file of finished runs: a header, for each set and seed the images of its test, and a line for each run."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        lines = path.read_text().splitlines() if path.exists() else []
        self.lines: list[dict[str, Any]] = []
        for number, line in enumerate(lines):
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                if number < len(lines) - 1:  # the last one was cut off by whatever ended the program
                    raise SystemExit(f"{path}, line {number + 1}: no JSON") from None

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Finished and failed runs."""
        return [line for line in self.lines if "recipe" in line]

    def open(self, header: Mapping[str, Any], redo: Sequence[str]) -> None:
        """Makes the file one of this protocol, without the runs to redo and those that failed."""
        there = self.lines[0] if self.lines else header
        if differing := [key for key in header if there.get(key) != header[key]]:
            raise SystemExit(f"{self.path} has runs of another {', '.join(differing)}; give another --out")
        dropped = [run for run in self.runs if run["recipe"] in redo or "error" in run]
        self.lines = [dict(header), *(line for line in self.lines[1:] if line not in dropped)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        fresh.replace(self.path)

    def add(self, line: dict[str, Any]) -> None:
        """Appends a line and makes sure that it lies on disk."""
        with self.lock, self.path.open("a") as file:
            self.lines.append(line)
            file.write(json.dumps(line) + "\n")

    def has_test(self, draw: Draw) -> bool:
        """Whether the images of this draw's test are listed. Raises SystemExit where other ones are."""
        for line in self.lines:
            if "test" in line and (line["set"], line["seed"]) == (draw.set, draw.seed):
                if line["test"] != draw.test.tolist():
                    raise SystemExit(
                        f"{self.path}: {draw.set}, seed {draw.seed} was tested on other images; give --out"
                    )
                return True
        return False


def plan(sources: Mapping[str, Source], sizes: Sequence[str], seeds: Sequence[int], recipes: Sequence[str],
         ) -> tuple[dict[tuple[str, str, int], Draw], list[Job], list[str]]:  # fmt: skip
    """All draws, all jobs in their order, and why what was asked for is not among them."""
    draws, jobs, absent = {}, [], []
    for name, source in sources.items():
        for size in sizes:
            try:
                found = {(name, size, seed): make_draw(source, name, size, seed) for seed in seeds}
            except TooFew as reason:
                absent.append(str(reason))
                continue
            draws |= found
            jobs += [Job(*key, recipe) for key in found for recipe in recipes]
    return draws, sorted(jobs, key=lambda job: job.turn), absent


class Lane:
    """A thread that takes jobs one by one, and the cores that its processes have."""

    def __init__(self, bench: "Bench", cores: set[int]):
        self.bench, self.cores = bench, cores
        self.peer: Peer | None = None

    def work(self) -> None:
        """Until no job is left or the time is up."""
        os.sched_setaffinity(0, self.cores)  # of this thread, and so of what it starts
        while (job := self.bench.next_job()) is not None:
            self.bench.done(job, self.run(job))
        if self.peer is not None:
            self.peer.close()

    def run(self, job: Job) -> dict[str, Any]:
        """What a run gave, or its error."""
        draw = self.bench.draws[job.set, job.size, job.seed]
        source = self.bench.sources[job.set]
        with tempfile.TemporaryDirectory(dir=self.bench.scratch) as place:
            folder = Path(place) / "photos"
            link(source, draw, folder)
            try:
                given = self.ours(job, Path(place)) if job.recipe in OURS else self.theirs(job, folder)
            except RuntimeError as error:
                return {"error": " ".join(str(error).split())[-300:]}
        right = dict(zip(given.pop("names"), given.pop("right"), strict=True))
        labels, names = source.labels[draw.test], [source.names[i].rpartition("/")[2] for i in draw.test]
        tested = [f"{source.classes[label]}/{name}" for label, name in zip(labels, names, strict=True)]
        if sorted(tested) != sorted(right):
            return {"error": f"it was tested on {len(right)} other images than the draw's {len(tested)}"}
        counts = {"train": len(draw.train), "classes": len(source.classes)}
        return counts | given | {"right": "".join(right[name] for name in tested)}

    def ours(self, job: Job, place: Path) -> dict[str, Any]:
        config, fields = OURS[job.recipe]
        weights = self.bench.data / fields["model.weights"]
        fields = fields | {"model.weights": weights, "data.source": f"folder:{place / 'photos'}"}
        fields |= {"seed": job.seed, "data.split_seed": job.seed}
        result = run_ours(config, fields, place / "run", place / "cache")
        with np.load(place / "run" / "predictions.npz") as told:
            right = told["test_logits"].argmax(1) == told["test_labels"]
            names = [name.removeprefix("test/") for name in told["test_names"].tolist()]
        return {
            "names": names, "right": "".join("01"[int(one)] for one in right), "seconds": round(result["wall"], 2),
            "cpu": round(result["cpu"], 2), "updates": result["best_step"], "commit": self.bench.commit,
        }  # fmt: skip

    def theirs(self, job: Job, folder: Path) -> dict[str, Any]:
        if self.peer is None or self.peer.process.poll() is not None:
            self.peer = Peer("peer_defaults.py")
            self.peer.ask("versions", threads=len(self.cores))
        given = self.peer.ask(
            "train", recipe=job.recipe, root=str(folder), weights=str(self.bench.data / WEIGHTS), seed=job.seed,
            scale=self.bench.scale,
        )  # fmt: skip
        return {name: round(value, 2) if isinstance(value, float) else value for name, value in given.items()}


@dataclasses.dataclass
class Bench:
    """What the lanes share. `scale` is of the peers' epochs, `until` a time by `perf_counter`."""

    record: Record
    data: Path
    scratch: Path
    sources: Mapping[str, Source]
    draws: Mapping[tuple[str, str, int], Draw]
    jobs: list[Job]
    scale: float
    until: float

    def __post_init__(self) -> None:
        self.lock, self.began, self.count = threading.Lock(), time.perf_counter(), len(self.jobs)
        self.commit = commit()

    def next_job(self) -> Job | None:
        with self.lock:
            return self.jobs.pop(0) if self.jobs and time.perf_counter() < self.until else None

    def done(self, job: Job, given: dict[str, Any]) -> None:
        """Records and prints a run."""
        draw = self.draws[job.set, job.size, job.seed]
        with self.lock:
            if not self.record.has_test(draw):
                self.record.add({"set": job.set, "seed": job.seed, "test": draw.test.tolist()})
            self.record.add(dataclasses.asdict(job) | given)
            minutes = (time.perf_counter() - self.began) / 60
            words = given.get("error")
            if words is None:
                words = f"{given['right'].count('1') / len(given['right']):.1%}, {given['seconds']:.0f} s"
            print(f"{minutes:5.1f} min, {len(self.jobs)} of {self.count} not begun. {job}: {words}", flush=True)


def commit() -> str:
    """The code that runs, with a + where its files differ from the commit."""

    def git(*words: str) -> str:
        said = subprocess.run(["git", *words], cwd=HERE.parent, capture_output=True, text=True, check=False)
        return said.stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "no commit") + "+" * bool(git("status", "-s", "tljax", "configs"))


def choose(parser: argparse.ArgumentParser, flag: str, text: str, there: Sequence[str]) -> list[str]:
    """The values of a flag, each of which must be one of those there."""
    chosen = [word.strip() for word in text.split(",")]
    if unknown := [word for word in chosen if word not in there]:
        parser.error(f"{flag}: no {', '.join(unknown)}; there are {', '.join(there)}")
    return chosen


def write_page(record: Record) -> None:
    """Beside the record."""
    page = make_page(record.lines, RECIPES, record=record.path.name)
    record.path.with_suffix(".md").write_text(page, encoding="utf-8")


def main() -> None:
    """Runs what is missing, then writes the page."""
    docs = HERE.parent / "docs" / "results"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--sizes", default=",".join(SIZES), help="images per class; all: at most 400")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recipes", default=",".join(USUAL), help="there is tljax resnet18, too")
    parser.add_argument("--minutes", type=float, default=90, help="after so many no run is begun")
    parser.add_argument("--lanes", type=int, help="runs at a time; default: one for each core")
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="times the peers' epochs, for a trial")
    parser.add_argument("--redo", default="", help="recipes whose runs are forgotten first")
    parser.add_argument("--out", type=Path, default=docs / "defaults.jsonl")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page of --out")
    args = parser.parse_args()
    record = Record(args.out)
    if args.page:
        if not record.runs:
            parser.error(f"{args.out} has no runs")
        write_page(record)
        return
    shared = Path(os.environ.get("TLJAX_SHARED") or HERE.parent.parent / "shared").resolve()
    if not (shared / "data").is_dir():
        parser.error(f"no images and weights in {shared}/data; set TLJAX_SHARED")
    if not args.seeds.replace(",", "").isdigit():
        parser.error(f"--seeds: {args.seeds!r}; give numbers such as 0,1,2")
    recipes = choose(parser, "--recipes", args.recipes, RECIPES)
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: no peers; make .venv/peer", flush=True)
        recipes = [recipe for recipe in recipes if recipe in OURS]
    sets = choose(parser, "--sets", args.sets, [*SETS])
    sources = {name: open_set(shared / "data", name) for name in sets}
    sizes, seeds = choose(parser, "--sizes", args.sizes, SIZES), [int(seed) for seed in args.seeds.split(",")]
    draws, jobs, absent = plan(sources, sizes, seeds, recipes)

    cores = sorted(os.sched_getaffinity(0))
    lanes = min(args.lanes or len(cores), len(cores))
    shares = [set(cores[i::lanes]) for i in range(lanes)]
    there = ("torch", "torchvision") if importlib.util.find_spec("torch") else ()
    where = machine({name: importlib.metadata.version(name) for name in there})
    record.open({**where, "cores of a run": len(shares[0]), "epochs scale": args.epochs_scale},
                choose(parser, "--redo", args.redo, RECIPES) if args.redo else ())  # fmt: skip
    finished = {Job(*(run[f.name] for f in dataclasses.fields(Job))) for run in record.runs}
    left = [job for job in jobs if job not in finished]
    for reason in absent:
        print(f"not there: {reason}")
    print(f"{len(left)} of {len(jobs)} runs to do on {lanes} x {len(shares[0])} cores", flush=True)
    for draw in draws.values():
        record.has_test(draw)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="tljax-bench-", ignore_cleanup_errors=True) as scratch:
        until = time.perf_counter() + 60 * args.minutes
        bench = Bench(record, shared / "data", Path(scratch), sources, draws, left, args.epochs_scale, until)
        threads = [threading.Thread(target=Lane(bench, share).work, daemon=True) for share in shares]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            bench.until = 0
            stop()
    if bench.jobs:
        print(f"{len(bench.jobs)} runs are left; the same command goes on with them")
    if record.runs:
        write_page(record)


if __name__ == "__main__":
    main()
