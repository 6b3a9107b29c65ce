"""Labelled and unlabelled images side by side."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from tljax.data.batches import num_batches
from tljax.distributed.parallel import Replicas
from tljax.engine.input_pipeline import InputPipeline, repeat


@dataclasses.dataclass(frozen=True)
class JointPipeline:
    """An epoch is a pass over the unlabelled images; the labelled ones come again and again beside them.

    Attributes:
      labelled: a pass over them has a number of its own, which their order and augmentation depend on.
      first, second: two views of the unlabelled ones, in the same order.
    """

    labelled: InputPipeline
    first: InputPipeline
    second: InputPipeline

    @property
    def features(self) -> Any:
        return self.first.features

    @property
    def batch_size(self) -> int:
        return self.first.batch_size

    @property
    def count(self) -> int:
        """Unlabelled images of an epoch."""
        return self.first.count

    def shards(self, replicas: Replicas, *, epoch: int = 0, start: int = 0) -> Iterator[dict[str, Any]]:
        """One epoch, from batch `start`: `labelled`, `weak`, and `strong` where second views lie in features."""
        done = epoch * num_batches(self.count, self.batch_size) + start
        again = repeat(self.labelled, replicas, start=done)
        seen = self.first.shards(replicas, epoch=epoch, start=start)
        if self.second.features is None:
            yield from ({"weak": one, "labelled": two} for one, two in zip(seen, again, strict=False))
        else:
            others = self.second.shards(replicas, epoch=epoch, start=start)
            for one, two, three in zip(seen, others, again, strict=False):
                yield {"weak": one, "strong": two, "labelled": three}
