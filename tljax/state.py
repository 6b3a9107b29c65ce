"""Everything that training changes."""

from typing import Any

import flax.struct


class TrainState(flax.struct.PyTreeNode):
    """What one step takes and gives.

    Attributes:
      step: updates made since the run began, int32.
      params: all parameters, trained or not.
      batch_stats: running means and variances, a collection of their own.
      opt_state: the optimizer's state; moments exist for what trains alone.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}
