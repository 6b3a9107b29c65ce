"""Labeled and unlabeled images side by side."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from tljax.data.batches import num_batches
from tljax.distributed.parallel import Replicas
from tljax.engine.input_pipeline import InputPipeline, repeat


@dataclasses.dataclass(frozen=True)
class JointPipeline:
    """An epoch is a pass over the unlabeled images; the labeled ones come again and again beside them.

    Attributes:
      labeled: a pass over them has a number of its own, which their order and augmentation depend on.
      first, second: two views of the unlabeled ones, in the same order.
    """

    labeled: InputPipeline
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
        """Unlabeled images of an epoch."""
        return self.first.count

    def shards(self, replicas: Replicas, *, epoch: int = 0, start: int = 0) -> Iterator[dict[str, Any]]:
        """One epoch, from batch `start`: `labeled`, `weak`, and `strong` where second views lie in features."""
        done = epoch * num_batches(self.count, self.batch_size) + start
        again = repeat(self.labeled, replicas, start=done)
        seen = self.first.shards(replicas, epoch=epoch, start=start)
        if self.second.features is None:
            yield from ({"weak": one, "labeled": two} for one, two in zip(seen, again, strict=False))
        else:
            others = self.second.shards(replicas, epoch=epoch, start=start)
            for one, two, three in zip(seen, others, again, strict=False):
                yield {"weak": one, "strong": two, "labeled": three}
