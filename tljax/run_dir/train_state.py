"""Everything that training changes. In a population, what the plan changes has a leading axis of members."""

from typing import Any

import flax.struct


class TrainState(flax.struct.PyTreeNode):
    """What one step takes and gives.

    Attributes:
      step: updates made since the run began, int32.
      params: all parameters, trained or not.
      batch_stats: running means and variances, a collection of their own.
      opt_state: the optimizer's state; moments exist for what trains alone. In a population a tuple by family.
      best: of a population, what each member was at its best epoch: `params` and `batch_stats` flat by path, `accuracy`
        and `step`; empty for a single run, whose best epoch is a checkpoint.
      semi: what a method that learns from unlabeled images keeps (`semi/joint.py`); empty without one.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    best: Any = flax.struct.field(default_factory=dict)
    semi: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables that are tested: Mean Teacher's average, else what trains."""
        return averaged(self.variables, self.semi)


def averaged(variables: dict[str, Any], semi: Any) -> dict[str, Any]:
    """Variables with a moving average in the place of what it is an average of, if `semi` holds one."""
    return overlaid(variables, (semi or {}).get("average", {}))


def overlaid(tree: Any, part: Any) -> Any:
    """A tree with the leaves of a part of it in the place of its own."""
    if not isinstance(tree, dict):
        return part
    return {name: overlaid(value, part[name]) if name in part else value for name, value in tree.items()}
