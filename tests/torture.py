"""Kills runs at random moments, starts them again, and holds each end against that of a run that nobody disturbed.

    TORTURE_KILLS=50 python -m tests.torture [CASE ...]

Ends with one line: what was tried, and what was lost. What was lost is kept, and its folder named.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import tiny
from tests.same import differences
from tljax.core.xla_flags import compile_quickly
from tljax.run_dir.files import LOCK

ROOT = Path(__file__).resolve().parents[1]
BASE = {
    "data.split": "50/25/25", "data.resize": 40, "data.size": 32, "model.weights": "None", "model.width": 4,
    "model.blocks": "(1,1)", "transfer.train": "all", "epochs": 40, "batch_size": 8, "optimizer.lr": 3e-3,
    "pictures": False,
}  # fmt: skip
FEW = {"data.labels": "25%", "epochs": 15}
CASES: dict[str, dict[str, Any]] = {
    "everything trained": {"model.dropout": 0.2, "schedule.name": "cosine"},
    "phases": {"transfer.phases": "layer2,head@10; all@20@1e-4", "transfer.allow_fresh_frozen": True, "epochs": 30},
    # Decoded images and features in files, as where they outgrow the memory.
    "kept features": {
        "transfer.train": "head", "transfer.allow_fresh_frozen": True, "cache.views": 20, "cache.memory_gb": 1e-7,
        "data.memory_gb": 1e-7,
    },
    "population": {"population.lr": "(1e-3,1e-2)", "population.optimizer": '("adam","sgd")', "epochs": 30},
    "rounds of pseudo-labels": {**FEW, "semi.method": "pseudo_label", "semi.rounds": 2, "semi.select": "top"},
    "Mean Teacher": {**FEW, "semi.method": "mean_teacher", "epochs": 20},
    "study": {},
}  # fmt: skip
STUDY = ("000-table1", "--scale", "tiny", "--seeds", "2")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLITE = 0.3  # their share: at these a run saves before it leaves
MOST = 6  # kills of one run
KILLED = (-signal.SIGKILL, *(-number for number in SIGNALS), *(128 + number for number in SIGNALS))


@dataclasses.dataclass
class Tally:
    """What became of a case."""

    kills: int = 0
    polite: int = 0
    ends: int = 0
    compared: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)


class Case:
    """One command, run again and again in folders of its own."""

    def __init__(self, name: str, root: Path, photos: Path):
        self.name, self.root, self.photos = name, root / name.replace(" ", "_"), photos
        self.undisturbed = self.root / "undisturbed"
        self.seconds = 0.0  # of that, start to end

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        if self.name == "study":
            command = ["tljax.study", "run", *STUDY, "--folder", str(folder)]
        else:
            fields = {"data.source": f"folder:{self.photos}", **BASE, **CASES[self.name]}
            values = [f"--config.{field}={value}" for field, value in fields.items()]
            command = ["tljax.main", "--config", "configs/folder.py", "--workdir", str(folder), *values]
        folder.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        with folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def run_undisturbed(self) -> None:
        began = time.monotonic()
        if status := self.start(self.undisturbed).wait():
            raise SystemExit(f"torture: {self.name} does not even end undisturbed, status {status}; see {self.root}")
        self.seconds = time.monotonic() - began

    def torment(self, kills: int, dice: random.Random) -> Tally:
        """Kills `kills` times, several times each run, and compares the end of each run."""
        tally = Tally()
        for number in itertools.count():
            if tally.kills >= kills:
                return tally
            self.run_killed(self.root / f"killed-{number}", min(MOST, kills - tally.kills), dice, tally)
        raise AssertionError

    def run_killed(self, folder: Path, kills: int, dice: random.Random, tally: Tally) -> None:
        for left in range(kills, -1, -1):
            process = self.start(folder)
            if left:
                self.kill(process, folder, dice, tally)
            if (status := process.wait()) not in KILLED:
                break
        tally.ends += 1
        log = folder.with_suffix(".log")
        # Killed between its last word and its end, it is refused as finished.
        if status and not (status == 2 and "holds this run, finished" in log.read_text()[-500:]):
            tally.lost.append(f"{self.name}: status {status}; see {log}")
            return
        found, compared = differences(self.undisturbed, folder, ends=True)
        tally.compared += compared
        tally.lost += [f"{self.name}: {words} ({folder})" for words in found]
        if not found:
            shutil.rmtree(folder)

    def kill(self, process: subprocess.Popen[bytes], folder: Path, dice: random.Random, tally: Tally) -> None:
        """Sends a signal at a random moment, most often one at which files are there to be lost."""
        sent = dice.choice(SIGNALS) if dice.random() < POLITE else signal.SIGKILL
        if dice.random() > 0.1 or sent in SIGNALS:  # while Python starts it hears nothing
            while process.poll() is None and not self.is_at_work(process, folder):
                time.sleep(0.02)
        try:
            process.wait(self.seconds * 0.7 * dice.random() ** 2)
        except subprocess.TimeoutExpired:
            process.send_signal(sent)
            tally.kills, tally.polite = tally.kills + 1, tally.polite + (sent in SIGNALS)
            began = time.monotonic()
            # A run that has just ended may end in peace; one that goes on has not listened.
            if process.wait() == 0 and time.monotonic() - began > self.seconds / 2:
                tally.lost.append(f"{self.name}: {sent.name} was not heard; see {folder.with_suffix('.log')}")

    def is_at_work(self, process: subprocess.Popen[bytes], folder: Path) -> bool:
        """Whether the process has a run's folder."""
        with contextlib.suppress(OSError):  # files come and go
            return any(lock.read_text() == f"{process.pid}\n" for lock in folder.rglob(LOCK))
        return False


def main(names: Sequence[str]) -> int:
    """Returns the exit status: 1 if anything was lost."""
    if unknown := set(names) - CASES.keys():
        raise SystemExit(f"torture: no case {sorted(unknown)[0]!r}; there are {', '.join(CASES)}")
    wanted, seed = (
        int(os.environ.get("TORTURE_KILLS", "50")),
        int(os.environ.get("TORTURE_SEED", time.time_ns() % 2**32)),
    )
    root, began = Path(tempfile.mkdtemp(prefix="torture-")), time.monotonic()
    os.environ.setdefault("TLJAX_CACHE", str(root / "cache"))
    compile_quickly()  # in the commands, too: what is tried is where they stop, not what they compute
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # each run starts many times
    photos = tiny.make_folder(root / "photos")
    cases = [Case(name, root, photos) for name in names or CASES]
    random.Random(seed).shuffle(cases)  # of few kills, other cases have them each time
    shares = [wanted // len(cases) + (i < wanted % len(cases)) for i in range(len(cases))]
    cases, shares = cases[:wanted], shares[:wanted]
    print(f"torture: {wanted} kills over {len(cases)} configs, TORTURE_SEED={seed}", flush=True)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(Case.run_undisturbed, cases))
        dice = [random.Random(f"{seed} {case.name}") for case in cases]
        tallies = list(pool.map(Case.torment, cases, shares, dice))
    for case, tally in zip(cases, tallies, strict=True):
        print(f"{case.name}: {case.seconds:.0f} s undisturbed, {tally.kills} kills, {tally.ends} ends", flush=True)
    lost = [words for tally in tallies for words in tally.lost]
    kills, polite, ends, compared = (
        sum(getattr(tally, name) for tally in tallies) for name in ("kills", "polite", "ends", "compared")
    )
    print(*(f"LOST: {words}" for words in lost), sep="\n", end="\n" if lost else "")
    print(f"torture: {kills} kills ({kills - polite} SIGKILL, {polite} SIGTERM or SIGINT) over {len(cases)} configs in "
          f"{time.monotonic() - began:.0f} s, {ends} ends compared with undisturbed ones, {compared:,} numbers and "
          f"arrays bit for bit, lost {len(lost)}")  # fmt: skip
    if not lost:
        shutil.rmtree(root)
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
