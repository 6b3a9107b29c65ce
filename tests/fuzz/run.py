"""Fuzzes the readers of weights for some seconds, with atheris; `make fuzz` runs it.

Every seed is read once, then libFuzzer mutates what covers new code. The last line says what was tried and
what was lost; whatever was lost lies in build/fuzz/lost, and the exit status is 1.
"""

import argparse
import dataclasses
import hashlib
import mmap
import os
import random
import shutil
import struct
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import NoReturn

import atheris

from tests.fuzz.mutate import mutate
from tests.fuzz.seeds import HOSTILE, VALID
from tests.fuzz.watch import Watch

ROOT = Path(__file__).resolve().parents[2] / "build" / "fuzz"
LONGEST = 1 << 16  # bytes of an input
STUCK = 100  # seconds for one input, after which its process is ended
FORMATS = ("zip", "safetensors", "legacy", "tar", "other")


def format_of(content: bytes) -> int:
    """As the reader tells formats apart."""
    signs = (content[:4] == b"PK\x03\x04", content[8:9] == b"{", content[:1] == b"\x80", content[257:262] == b"ustar")
    return (*signs, True).index(True)


@dataclasses.dataclass
class Tally:
    """Counts that outlive the process which makes them: of inputs tried and read by format, of inputs lost."""

    shared: mmap.mmap = dataclasses.field(default_factory=lambda: mmap.mmap(-1, 88))

    def counts(self) -> list[int]:
        return list(struct.unpack("11Q", self.shared[:]))

    def add(self, place: int) -> None:
        counts = self.counts()
        counts[place] += 1
        self.shared[:] = struct.pack("11Q", *counts)

    def __str__(self) -> str:
        counts = self.counts()
        return ", ".join(f"{name} {counts[i]:,} of which {counts[5 + i]:,} read" for i, name in enumerate(FORMATS))


def keep(content: bytes, reasons: tuple[str, ...]) -> None:
    """One input for each reason, named by its first word and a digest."""
    name = "".join(c if c.isalnum() else "-" for c in reasons[0][:40])
    if not list((ROOT / "lost").glob(f"{name}.*")):
        path = ROOT / "lost" / f"{name}.{hashlib.sha256(content).hexdigest()[:8]}"
        path.write_bytes(content)
        path.with_suffix(path.suffix + ".txt").write_text("\n".join(reasons) + "\n")


def fuzz(folder: Path, tally: Tally, seconds: int) -> NoReturn:
    """What one process does; libFuzzer ends it."""
    with atheris.instrument_imports(include=["tljax"]):
        from tljax.weights.torch_file import read_state_dict
        from tljax.weights.weights_file import load_weights

    watch = Watch(folder, read_state_dict, lambda path: load_weights(path, "resnet18"))
    tracemalloc.start()
    watch.attempt(VALID["zip"])  # whatever Python imports when it is first needed

    def attempt(content: bytes) -> None:
        outcome, place = watch.attempt(content), format_of(content)
        tally.add(place)
        if outcome.arrays is not None:
            tally.add(5 + place)
        if outcome.losses:
            tally.add(10)
            keep(content, outcome.losses)

    options = dict(
        max_total_time=seconds,
        mutate_depth=1,
        max_len=LONGEST,
        timeout=STUCK,
        rss_limit_mb=4000,
        artifact_prefix=f"{folder}/",
    )
    argv = [
        sys.argv[0],
        *(f"-{name}={value}" for name, value in options.items()),
        *map(str, (ROOT / "corpus", ROOT / "seeds")),
    ]

    def mutated(content: bytes, longest: int, seed: int) -> bytes:
        return mutate(content, random.Random(seed), lambda part: atheris.Mutate(part, len(part) + 64))[:longest]

    atheris.Setup(argv, attempt, custom_mutator=mutated)
    atheris.Fuzz()
    sys.exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=int)
    began, seconds = time.monotonic(), parser.parse_args().seconds
    for name in ("seeds", "lost"):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for name in ("seeds", "lost", "corpus"):
        (ROOT / name).mkdir(parents=True, exist_ok=True)
    for content in (*VALID.values(), *HOSTILE.values()):
        (ROOT / "seeds" / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    tally, starts = Tally(), 0
    with (ROOT / "log").open("w") as log:
        while starts == 0 or (time.monotonic() - began < seconds and starts < 100):
            with tempfile.TemporaryDirectory() as folder:
                process = os.fork()
                if not process:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                    fuzz(Path(folder), tally, max(1, round(began + seconds - time.monotonic())))
                _, status = os.waitpid(process, 0)
                if status:  # it crashed, hung or took too much: then what it was reading still lies there
                    tally.add(10)
                    path = Path(folder) / "weights.pth"
                    keep(path.read_bytes() if path.exists() else b"", (f"died of {os.waitstatus_to_exitcode(status)}",))
            starts += 1
    counts = tally.counts()
    print(
        f"fuzz: {sum(counts[:5]):,} inputs in {time.monotonic() - began:.0f} s ({tally}), from {len(VALID)} good and "
        f"{len(HOSTILE)} hostile seeds, lost {counts[10]:,}" + (f" (kept in {ROOT / 'lost'})" if counts[10] else "")
    )
    return int(counts[10] > 0)


if __name__ == "__main__":
    sys.exit(main())
