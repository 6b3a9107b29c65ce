"""Procedural tasks: tell apart outlines, whatever their color, place, size, turn, light and clutter.

They need no download, so the demo and the tests train on them; they are made hard enough that no method is perfect.
"""

import numpy as np

from tljax.core.errors import UserError
from tljax.data.source import Source

SIDE = 64
HARMONICS = 6

TASKS = {  # name: (first outline, classes, train, validation and test images per class)
    "source": (0, 24, 200, 10, 20),
    "target": (1000, 10, 40, 20, 100),
    # Small ones, on which studies show that they run.
    "tiny-source": (2000, 6, 30, 5, 5),
    "tiny": (3000, 4, 20, 10, 30),
    "tiny-pair": (4000, 2, 30, 10, 40),
    # For one update of a network of full size, which is slow enough.
    "step": (5000, 10, 40, 1, 1),
    "step-pair": (6000, 2, 200, 2, 2),
}
BOX = (0.1, 0.1, 0.9, 0.9)  # what outlines seldom leave


def open_shapes(task: str = "target", *, seed: int = 0) -> Source:
    """The procedural task `task`, drawn from `seed`.

    Each class is an outline, a random closed curve; no two tasks share one. Every image is a function of (seed, task,
    index) and is drawn when it is read.

    Raises:
      UserError: for a task that does not exist.
    """
    if task not in TASKS:
        raise UserError(f"data.source=shapes:{task} is not known; there are {', '.join('shapes:' + t for t in TASKS)}")
    first, count, *sizes = TASKS[task]
    outlines = [_outline(np.random.default_rng((seed, first + c))) for c in range(count)]
    names, labels, splits = [], [], {}
    for split, per_class in zip(("train", "val", "test"), sizes, strict=True):
        begin = len(names)
        for c in range(count):
            names += [f"{split}/outline{c:02}/{i:04}" for i in range(per_class)]
            labels += [c] * per_class
        splits[split] = np.arange(begin, len(names), dtype=np.int64)

    def read(index: int) -> np.ndarray:
        rng = np.random.default_rng((seed, first, index))
        return draw(outlines[labels[index]], rng, outlines)

    order = np.argsort(names)  # a source lists its names sorted
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return Source(
        spec=f"shapes:{task}",
        names=tuple(names[i] for i in order),
        labels=np.asarray(labels, np.int32)[order],
        classes=tuple(f"outline{c:02}" for c in range(count)),
        read=lambda i: read(int(order[i])),
        splits={k: np.sort(back[v]) for k, v in splits.items()},
        boxes=np.tile(np.array(BOX, np.float32), (len(names), 1)),
        narrow=True,
    )


def _outline(rng: np.random.Generator) -> np.ndarray:
    """A closed curve by its radius over the angle: complex Fourier coefficients of the harmonics 2, 3, ..."""
    size = 0.42 / np.sqrt(np.arange(2, 2 + HARMONICS))
    return size * (rng.standard_normal(HARMONICS) + 1j * rng.standard_normal(HARMONICS)) / np.sqrt(2)


def _inside(outline: np.ndarray, rng: np.random.Generator, *, scale: tuple[float, float], spread: float) -> np.ndarray:
    """How far each pixel lies inside an outline that is placed at random, `[SIDE, SIDE]`, 0 to 1 with soft edges."""
    pixels = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE * 2 - 1
    y, x = pixels - rng.uniform(-spread, spread, 2)[:, None, None]
    stretch = rng.uniform(0.85, 1.18)
    angle = np.arctan2(y * stretch, x / stretch) + rng.uniform(-0.4, 0.4)
    waves = np.exp(1j * angle[..., None] * np.arange(2, 2 + HARMONICS))
    jitter = 1 + 0.06 * rng.standard_normal(HARMONICS)
    radius = np.maximum(0.15, 1 + (waves * (outline * jitter)).sum(-1).real) * rng.uniform(*scale)
    return np.clip((radius - np.hypot(y * stretch, x / stretch)) * SIDE / 2 + 0.5, 0, 1)


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Two colors mixed by stripes or blotches, `[SIDE, SIDE, 3]`, 0 to 1."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    frequency, turn, phase = rng.uniform(2, 12), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
    wave = np.sin(2 * np.pi * frequency * (x * np.cos(turn) + y * np.sin(turn)) + phase[0])
    if rng.random() < 0.5:
        wave = wave * np.sin(2 * np.pi * frequency * (y * np.cos(turn) - x * np.sin(turn)) + phase[1])
    mix = 0.5 + 0.5 * wave[..., None] * rng.uniform(0.1, 0.6)
    return mix * rng.uniform(0, 1, 3) + (1 - mix) * rng.uniform(0, 1, 3)


def draw(outline: np.ndarray, rng: np.random.Generator, others: list[np.ndarray]) -> np.ndarray:
    """One picture of an outline, uint8 `[SIDE, SIDE, 3]`, with textures, small `others` as clutter, light and noise."""
    picture = _texture(rng)
    for _ in range(rng.integers(0, 4)):
        other = others[rng.integers(len(others))]
        cover = _inside(other, rng, scale=(0.1, 0.22), spread=0.9)[..., None]
        picture = picture * (1 - cover) + _texture(rng) * cover
    cover = _inside(outline, rng, scale=(0.45, 0.65), spread=0.2)[..., None]
    picture = picture * (1 - cover) + _texture(rng) * cover
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    light = 1 + rng.uniform(-0.4, 0.4) * y + rng.uniform(-0.4, 0.4) * x
    picture = picture * light[..., None] + rng.normal(0, 0.04, picture.shape)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)
