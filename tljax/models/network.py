"""What all networks share: they are a line of named stages, and a stage that has parameters is a group."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from tljax.models.layers import ForwardContext


class Network(nn.Module):
    """A classifier made of named stages that run one after the other.

    A subclass defines `all_stages` and one method per stage, `run_STAGE(x, forward)`. Parameters are assigned to groups
    by their path, through `group_of`. A stage is a group, unless a subclass divides its stages (`groups`, `stage_of`).

    Attributes:
      num_classes: outputs of the head.
      last_stage: the last stage before the head; None for the whole network. `last_stage='layer3'` puts pool and head
        on layer3.
      dtype: compute type; parameters are float32 under bfloat16.
      head_init: what a new head begins with, see `layers.head_inits`; mini_xception's is Keras's under 'torch'.
    """

    num_classes: int = 1000
    last_stage: str | None = None
    dtype: Any = "float32"
    head_init: str = "torch"

    @property
    def all_stages(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in order, cut after `last_stage`, the head last."""
        if self.last_stage is None:
            return self.all_stages
        body = self.trunk[: self.trunk.index(self.last_stage) + 1]
        return body + self.all_stages[len(self.trunk) :]

    @property
    def trunk(self) -> tuple[str, ...]:
        """The groups before the head of the whole network, whatever `last_stage` says."""
        return tuple(s for s in self.all_stages if s not in ("pool", "head"))

    @property
    def rectified(self) -> bool:
        """Whether the head ends in a ReLU: a class whose logit is 0 for every image then has no gradient, either."""
        return False

    @property
    def groups(self) -> tuple[str, ...]:
        """The stages that have parameters, in order, the head last."""
        return tuple(s for s in self.stages if s != "pool")

    def stage_of(self, group: str) -> str:
        """The stage that a group belongs to."""
        return group

    def group_of(self, path: Sequence[str]) -> str:
        """The group of the parameter or statistic at `path`, such as `('layer2_0', 'conv1', 'kernel')`."""
        raise NotImplementedError

    def __call__(
        self,
        x: jax.Array,
        forward: ForwardContext = ForwardContext(),
        *,
        start_stage: str | None = None,
        stop_stage: str | None = None,
    ) -> jax.Array:
        """Runs the stages from `start_stage` to just before `stop_stage`.

        Args:
          x: images `[B, H, W, 3]`, normalized; or, with `start_stage`, what the stage before it gave.
          forward: batch-norm modes, mask, keys.
          start_stage: the first stage to run; None for the first of all.
          stop_stage: the first stage not to run; None runs all.

        Returns:
          Logits `[B, num_classes]`, or the activations that reach `stop_stage`. The outputs of all stages, and of the
          parts that the model names, are sown into the collection `intermediates`.
        """
        stages = self.stages
        first = 0 if start_stage is None else stages.index(start_stage)
        last = len(stages) if stop_stage is None else stages.index(stop_stage)
        x = x.astype(self.dtype)
        for stage in stages[first:last]:
            x = getattr(self, f"run_{stage.rstrip('0123456789')}")(x, forward, stage)
            if self.scope and not self.scope.name_reserved(stage, "intermediates"):  # by the stage's one layer
                self.sow("intermediates", stage, x)
        return x
