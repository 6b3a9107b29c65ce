"""From a POST to its answer with Grad-CAM, beside the bare pass of the network that gives both.

    python benchmarks/serve.py runs/folder photos/*.jpg     (the extra [serve])

Starts `python -m tljax.serve` and asks it for one picture after the other, each in turn with the bare compiled pass on
the decoded square in this process. What the service adds is HTTP, decoding, and the pictures of the answer. Prints
medians, the slowest, and the median ratio.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tljax.core.xla_flags import tune_cpu  # noqa: E402

tune_cpu()

import jax  # noqa: E402

from tljax.inference.classifier import load  # noqa: E402
from tljax.inference.grad_cam import BEST, make_grad_cam  # noqa: E402


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


def main(workdir: str, pictures: Sequence[str]) -> None:
    classifier = load(workdir)
    bare = make_grad_cam(classifier)
    service = subprocess.Popen(
        [sys.executable, "-m", "tljax.serve", workdir, "--port", "0", "--rate", "1000000"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert service.stdout is not None
        url = service.stdout.readline().partition(" answers at ")[2].split()[0]
        posts, passes = [], []
        with requests.Session() as session:
            for number, name in enumerate([*pictures[:1], *pictures]):
                data = Path(name).read_bytes()
                square = classifier.see(data)[None]
                post = seconds(lambda data=data: session.post(f"{url}predict?heat=true", data=data).raise_for_status())
                alone = seconds(lambda square=square: bare(square, [BEST]))
                if number:  # the first one compiles here
                    posts.append(post)
                    passes.append(alone)
    finally:
        service.terminate()
        service.wait()
    ratio = statistics.median(post / alone for post, alone in zip(posts, passes, strict=True))
    name = classifier.result["config"]["model"]["name"]
    print(
        f"{name}, {len(posts)} pictures: POST to answer {middle(posts)}, bare pass {middle(passes)}; {ratio:.2f} times"
    )


def middle(times: Sequence[float]) -> str:
    return f"{1000 * statistics.median(times):.0f} ms (slowest {1000 * max(times):.0f})"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
