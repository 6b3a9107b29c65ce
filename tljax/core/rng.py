"""The streams of random numbers that a run draws from, each named once: two that met would draw the same bits.

An example has one key in each epoch, whatever batch or device it is in; what is drawn for it is folded from that by
`Stream`, and what augments it by `AugmentStream` from the first of these. A second view has an example's key of its
own.
"""

import enum
from typing import Any

import jax
import numpy as np

SECOND_VIEWS = 2**32 - 1
"""In the place of an epoch: kept second views. No epoch has this number."""


class Stream(enum.IntEnum):
    """Of an example's key."""

    AUGMENTATION = 0
    DROPOUT = 1
    SECOND_VIEW = 2
    PSEUDO_LABEL = 3
    STOCHASTIC_DEPTH = 4


class AugmentStream(enum.IntEnum):
    """Of an example's key for augmentation."""

    CROP = 0
    FLIP = 1
    ROTATION = 2
    COLOR = 3
    RAND_AUGMENT = 4


def example_keys(key: jax.Array, epoch: Any, index: Any) -> jax.Array:
    """One key per example `[B]`, a function of the run's key, the epoch and the example's index `[B]` alone."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, epoch), i))(index)


def stream(key: jax.Array, which: Stream | AugmentStream) -> jax.Array:
    """The key of one stream of an example."""
    return jax.random.fold_in(key, int(which))


def streams(keys: jax.Array, which: Stream | AugmentStream) -> jax.Array:
    """The same of several examples, `[B]` to `[B]`."""
    return jax.vmap(lambda key: stream(key, which))(keys)


def depth_keys(keys: jax.Array, block: int) -> jax.Array:
    """Of the keys of examples `[B]`, those that say whether they skip a residual block."""
    return jax.vmap(lambda key: jax.random.fold_in(stream(key, Stream.STOCHASTIC_DEPTH), block))(keys)


def shuffling(seed: int, epoch: int) -> np.random.Generator:
    """What the order of an epoch's examples is drawn from, on the host."""
    return np.random.default_rng([seed, epoch])
