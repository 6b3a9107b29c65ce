"""Our augmentation on one core: pictures per second of crop, flip and rotation.

python benchmarks/augmentation.py ../shared/data/oxford_pets_3breeds
"""

import json
import os
import sys
import time
from pathlib import Path

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tljax.core.xla_flags import tune_cpu

tune_cpu()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from tljax.core.rng import Stream, example_keys, streams  # noqa: E402
from tljax.data.augment import Augmentation, make_augment  # noqa: E402
from tljax.data.batches import train_batches  # noqa: E402
from tljax.data.load import decode_data, open_data  # noqa: E402
from tljax.settings.fields import get_config  # noqa: E402


def main() -> None:
    """Decodes once, lays out the batches, then runs them through the compiled augmentation, twice."""
    config = get_config().data
    config.source, config.split = f"pets:{sys.argv[1]}", "80/20"
    data = decode_data(config, open_data(config, seed=0), resize=256, workdir=None)
    view = jax.jit(make_augment(Augmentation(size=224, rotation=10.0)))
    keys = jax.jit(lambda index: streams(example_keys(jax.random.key(0), 0, index), Stream.AUGMENTATION))

    batches = list(
        train_batches(data.pixels, data.targets, data.splits["train"], batch_size=32, seed=0, epoch=0)
    )  # which a thread does while the device computes

    def epoch() -> int:
        for batch in batches:
            view(keys(batch["index"]), batch["image"], batch["size"]).block_until_ready()
        return int(sum(np.sum(batch["mask"]) for batch in batches))

    epoch()
    began = time.perf_counter()
    count = epoch() + epoch()
    print(json.dumps({"images_per_second": count / (time.perf_counter() - began)}))


main()
