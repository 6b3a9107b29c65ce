"""`tljax.predict` end to end, beside the bare forward pass of its network on pictures that are decoded already.

    python benchmarks/predict.py WORKDIR IMAGE... [--batch 32] [--repeat 5]

Both in turn in one process, compiled before; prints pictures per second by turn, and the median of the ratios.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tljax.core.xla_flags import tune_cpu

tune_cpu()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from tljax.data.decode import Unreadable  # noqa: E402
from tljax.inference.batch_predict import ask, find_pictures  # noqa: E402
from tljax.inference.classifier import load  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("image", nargs="+")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    classifier = load(args.workdir)
    pictures = find_pictures(args.image, sys.stdin.buffer.read)
    squares = []
    for picture in pictures:
        try:
            squares.append(classifier.see(picture.read()))
        except (Unreadable, OSError):
            continue
    whole = len(squares) // args.batch * args.batch
    if not whole:
        parser.error(f"{len(squares)} pictures are fewer than a batch of {args.batch}")
    batches = np.stack(squares[:whole]).reshape(-1, args.batch, *squares[0].shape)
    jax.block_until_ready(classifier.forward(batches[0]))

    def bare() -> float:
        began = time.perf_counter()
        for batch in batches:
            jax.block_until_ready(classifier.forward(batch))
        return whole / (time.perf_counter() - began)

    def end_to_end() -> float:
        began = time.perf_counter()
        count = sum(1 for _ in ask(classifier, pictures[:whole], batch_size=args.batch))
        return count / (time.perf_counter() - began)

    turns = [(end_to_end(), bare()) for _ in range(args.repeat)]
    print(json.dumps({
        "model": classifier.result["config"]["model"]["name"], "pictures": whole, "batch": args.batch,
        "device": jax.devices()[0].device_kind, "cores": os.cpu_count(),
        "end_to_end": [round(turn[0], 1) for turn in turns], "bare": [round(turn[1], 1) for turn in turns],
        "ratio": round(statistics.median(ours / bare for ours, bare in turns), 3),
    }))  # fmt: skip


main()
