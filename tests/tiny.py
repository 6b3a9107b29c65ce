"""Small things that several tests train on."""

import dataclasses
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tljax.core.signals import Interrupted
from tljax.data import load
from tljax.distributed import parallel
from tljax.report.console import make_console
from tljax.settings.fields import get_config
from tljax.train import runs

CLASSES = ("blue", "green", "red")


def quick_first(cases: Iterable[str], *quick: str) -> list[Any]:
    """Parameters of a test that is long: those named run with the quick tests, all others are marked slow."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def make_folder(root: Path, *, per_class: int = 24, side: int = 40) -> Path:
    """`root/CLASS/*.png`: noise with a tint of the class, easy but not trivial."""
    rng = np.random.default_rng(0)
    for c, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            image = rng.integers(0, 200, (side, side + 8, 3))
            image[..., 2 - c] += rng.integers(20, 56)
            Image.fromarray(image.astype(np.uint8)).save(root / name / f"{i:03}.png")
    return root


def make_config(folder: Path, **overrides: Any) -> Any:
    """A run of seconds on a folder; overrides by dotted name, dots as double underscores."""
    config = get_config()
    settings = {
        "data__source": f"folder:{folder}", "data__split": "50/25/25", "data__resize": 40, "data__size": 32,
        "model__weights": "None", "model__width": 4, "model__blocks": (1, 1), "transfer__train": "all",
        "epochs": 3, "batch_size": 8, "optimizer__lr": 3e-3,
        # These take longer than all else; who is after them asks for them.
        "augment__crop": "center", "pictures": False, "trackers": (),
    } | overrides  # fmt: skip
    for name, value in settings.items():
        *path, last = name.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


def permute_labels(monkeypatch: Any, config: Any, split: str) -> None:
    """From now on the images of a split have each other's labels; that it is drawn without labels is the config's."""
    hidden, open_source = load.open_data(config.data, seed=config.seed).splits[split], load.open_source

    def permuted(*args: Any, **options: Any) -> Any:
        source = open_source(*args, **options)
        changed = source.labels.copy()
        changed[hidden] = np.random.default_rng(1).permutation(changed[hidden])
        assert (changed != source.labels).any()
        return dataclasses.replace(source, labels=changed)

    monkeypatch.setattr(load, "open_source", permuted)
    assert np.array_equal(load.open_data(config.data, seed=config.seed).splits[split], hidden)


def interrupted_after(config: Any, workdir: Path, steps: int, monkeypatch: Any) -> None:
    """Runs until `steps` updates are made, then gets SIGTERM."""
    real, count = parallel.train_step, 0

    def counting(step):
        run = real(step)

        def counted(*args):
            nonlocal count
            count += 1
            if count == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return run(*args)

        counted.lower = run.lower  # type: ignore[attr-defined]
        return counted

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "train_step", counting)
        with pytest.raises(Interrupted, match="SIGTERM: saved at step"):
            runs.run(config, workdir, console=make_console(quiet=True))
