"""Mean and deviation in one pass equal those of all pixels at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.data.load import open_data
from tljax.data.pixels import Pixels, decode_all
from tljax.data.statistics import combine, mean_and_std
from tljax.settings.fields import get_config


def held(pictures):
    sizes = np.array([p.shape[:2] if p is not None else (0, 0) for p in pictures], np.int32)
    flat = [p.reshape(-1) for p in pictures if p is not None]
    starts = np.cumsum([0, *(p.size if p is not None else 0 for p in pictures[:-1])])
    return Pixels(np.concatenate(flat), starts.astype(np.int64), sizes)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6), st.integers(0, 2**32))
def test_one_pass_equals_all_at_once(sizes, seed):
    rng = np.random.default_rng(seed)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    mean, std = mean_and_std(held(pictures), np.arange(len(pictures)))
    everything = np.concatenate([p.reshape(-1, 3) for p in pictures]) / 255
    np.testing.assert_allclose(mean, everything.mean(0), atol=1e-12)
    np.testing.assert_allclose(std, everything.std(0), atol=1e-12)


def test_the_reports_formula():
    """Formula (1) as printed, term by term."""
    n, m, mean_n, mean_m, var_n, var_m = 3, 5, 0.2, 0.7, 0.04, 0.09
    _, mean, var = combine((n, np.array([mean_n]), np.array([var_n])), (m, np.array([mean_m]), np.array([var_m])))
    assert mean[0] == pytest.approx(m / (m + n) * mean_m + n / (m + n) * mean_n)
    expected = m / (m + n) * var_m + n / (m + n) * var_n + m * n / (m + n) ** 2 * (mean_m - mean_n) ** 2
    assert var[0] == pytest.approx(expected)


def test_what_could_not_be_read_does_not_count():
    picture = np.full((2, 2, 3), 51, np.uint8)
    mean, std = mean_and_std(held([None, picture]), np.array([0, 1]))
    np.testing.assert_allclose(mean, 0.2)
    np.testing.assert_allclose(std, 0, atol=1e-12)


@pytest.mark.real_data
def test_cartoons_as_the_third_report_has_them(shared):
    """Its arithmetic of images (2,108 and 236; swapped), and its formula (2), of which ours may differ by the cut."""
    config = get_config().data
    config.source, config.val = f"folder:{shared / 'data/pacs_cartoon'}", 0.2
    sizes = {}
    for split in ("holdout:10", "holdout:10:swapped"):
        config.split = split
        listed = open_data(config, seed=0)
        source, splits = listed.source, listed.splits
        sizes[split] = [len(splits[name]) for name in ("train", "val", "test")]
        pixels = decode_all(source, splits["train"], short_side=256)
        mean, std = mean_and_std(pixels, splits["train"])
        np.testing.assert_allclose(mean, [0.8116, 0.7858, 0.7380], atol=0.01)
        np.testing.assert_allclose(std, [0.2730, 0.2863, 0.3374], atol=0.01)
    full, few = sizes.values()
    assert (full[0] + full[1], full[2]) == (2108, 236) == (few[2], few[0] + few[1])
    assert few[0] == pytest.approx(187, abs=5)  # by class, each share is rounded
