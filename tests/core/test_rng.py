"""No two streams of random numbers meet."""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from tljax.core.rng import AugmentStream, Stream, depth_keys, example_keys, stream, streams
from tljax.models.layers import stochastic_depth
from tljax.semi.meta_pseudo_labels import sampled_labels

BLOCKS = 50  # a ResNet-152's
COUNT = 10_000


def test_all_keys_of_an_example_and_of_its_second_view_are_different():
    """Also those of other examples and epochs, and whatever is folded from them."""
    found = []
    for epoch in range(3):
        keys = example_keys(jax.random.key(0), epoch, np.arange(4))
        for own in (keys, streams(keys, Stream.SECOND_VIEW)):
            augmentation = streams(own, Stream.AUGMENTATION)
            found += [own, *(streams(own, which) for which in Stream if which is not Stream.SECOND_VIEW)]
            found += [streams(augmentation, which) for which in AugmentStream]
            found += [depth_keys(own, block) for block in range(BLOCKS)]
    bits = np.concatenate([np.asarray(jax.random.key_data(keys)) for keys in found])
    assert len(np.unique(bits, axis=0)) == len(bits) == 3 * 2 * 4 * (1 + 4 + len(AugmentStream) + BLOCKS)


def test_a_stream_of_one_key_is_that_of_several():
    keys = example_keys(jax.random.key(1), 0, np.arange(3))
    for which in (*Stream, *AugmentStream):
        assert stream(keys[1], which) == streams(keys, which)[1]


def test_labels_that_are_drawn_and_blocks_that_are_left_out_are_independent():
    """They met once: of four classes of equal chance, one came 3% or 46% of the time, by what became of block 3."""
    keys = example_keys(jax.random.key(0), 0, np.arange(COUNT))
    labels = np.asarray(sampled_labels(streams(keys, Stream.PSEUDO_LABEL), np.zeros((COUNT, 4), np.float32)))
    dropped = [np.asarray(stochastic_depth(np.ones((COUNT, 1)), 0.5, keys, block))[:, 0] == 0 for block in range(8)]
    least = 0.001 / (8 + 28)  # Bonferroni
    for block in dropped:
        assert block.mean() == pytest.approx(0.5, abs=0.025)
        assert stats.chi2_contingency(np.histogram2d(labels, block, (4, 2))[0]).pvalue > least
    for one, other in itertools.combinations(dropped, 2):
        assert stats.chi2_contingency(np.histogram2d(one, other, (2, 2))[0]).pvalue > least
