"""How often the verdicts of studies are wrong, and how often they see what is there: simulated, on no real data.

python benchmarks/verdicts.py

Prints the table of docs/reliability.md. A run's answer to an image is right where the sum of four normal variables is
above a threshold: how hard the image is (for all runs), how hard it is for this method (for all its seeds), luck, and
the seed's shift of all images. At 80% accuracy two runs of one method then agree on 87% of the images, of two methods
on 84%.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import special, stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tljax.metrics.significance import LEVEL, Difference, binomial_variance, one_more_run, paired, variance_over_images
from tljax.study.study import MARGIN
from tljax.study.verdicts import HELD, REFUTED, corrected, judge

ACCURACY, SHARED, METHOD = 0.8, 0.75, 0.1
FAMILY = 8


def answers(
    rng: np.random.Generator,
    *,
    methods: int,
    seeds: int,
    images: int,
    gain: float,
    noise: float,
    method: float = METHOD,
) -> np.ndarray:
    """Which images are answered right, bool `[methods, seeds, images]`.

    Args:
      rng: what is drawn from.
      methods: rows; the first is better than all others by `gain`.
      seeds: runs of each.
      images: in the test.
      gain: in accuracy.
      noise: deviation of a row's accuracy over seeds.
      method: the variance that an image's difficulty for one method has; 0 for one method several times.
    """
    shift = noise / stats.norm.pdf(special.ndtri(ACCURACY))
    spread = np.sqrt(1 + shift**2)
    right_on_average = np.full((methods, 1, 1), ACCURACY)
    right_on_average[0] += gain
    score = (
        np.sqrt(SHARED) * rng.standard_normal((1, 1, images), np.float32)
        + np.sqrt(method) * rng.standard_normal((methods, 1, images), np.float32)
        + np.sqrt(1 - SHARED - method) * rng.standard_normal((methods, seeds, images), np.float32)
        + shift * rng.standard_normal((methods, seeds, 1), np.float32)
    )
    return score + special.ndtri(right_on_average) * spread > 0


def compared(first: np.ndarray, second: np.ndarray) -> Difference:
    return paired(first.mean(1) - second.mean(1), variance_over_images(first, second))


def rates(
    kind: str, *, seeds: int, images: int, gain: float, repeats: int, noise: float = 0.01, method: float = METHOD
) -> tuple[float, float]:
    """How often a verdict is `held` and how often `refuted`, over `repeats` simulated tables.

    Args:
      kind: `order` of two rows, as claimed and for transfer; `best` of four; `equal`; `family`, whether any of eight
        rows is held, or refuted, to be above one baseline; `published`, whether p is below 5%, told as refuted.
      seeds, images, gain, noise, method: see `answers`.
      repeats: tables.
    """
    rng = np.random.default_rng([seeds, images, round(1e4 * gain), round(1e4 * noise)])
    rows = {"best": 4, "family": FAMILY + 1, "published": 1}.get(kind, 2)
    found = np.zeros(2)
    for _ in range(repeats):
        right = answers(rng, methods=rows, seeds=seeds, images=images, gain=gain, noise=noise, method=method)
        if kind == "published":
            theirs = answers(rng, methods=1, seeds=1, images=images, gain=0, noise=noise, method=method).mean()
            runs = right[0].mean(1)
            of_images = sum(binomial_variance(float(share), images) for share in (runs.mean(), theirs))
            difference = one_more_run(runs, float(theirs), of_images)
            found[1] += difference is not None and difference.p_value < LEVEL
            continue
        if kind == "family":
            judged = {i: judge([compared(right[0], row)]) for i, row in enumerate(right[1:])}
        else:
            margin = MARGIN if kind == "equal" else None
            judged = {0: judge([compared(right[0], row) for row in right[1:]], margin=margin)}
        said = {one.verdict for one in corrected(judged).values()}
        found += HELD in said, REFUTED in said
    held, refuted = found / repeats
    return float(held), float(refuted)


ROWS = {
    "order": "order of two rows; transfer",
    "equal": "equality up to 2 points",
    "published": "published, against one more run",
    "best": "one row above each of three",
    "family": f"any of {FAMILY} rows against one",
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--noise", type=float, default=0.01, help="deviation of a row's accuracy over seeds")
    args = parser.parse_args()
    print("| verdict | seeds | images | nothing differs | by the margin | by twice that |\n|---|---|---|---|---|---|")
    for kind, words in ROWS.items():
        for seeds in (3, 5):
            for images in (300, 1000):
                repeats = args.repeats // (2 if kind in ("best", "family") else 1)  # they take longer
                sizes = {"seeds": seeds, "images": images, "repeats": repeats, "noise": args.noise}
                pairs = [rates(kind, gain=gain, **sizes) for gain in (0.0, MARGIN, 2 * MARGIN)]
                told = (f"{100 * held:.1f} / {100 * refuted:.1f}" for held, refuted in pairs)
                print(f"| {words} | {seeds} | {images:,} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
