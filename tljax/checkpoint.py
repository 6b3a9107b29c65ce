"""Checkpoints of a run, by Orbax: written in the background, the last ones and the best kept."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from tljax.errors import UserError, one_line
from tljax.state import TrainState, averaged

FOLDER = "checkpoints"
KEPT = 2  # the newest ones, so that one that was damaged has another before it


@dataclasses.dataclass(frozen=True)
class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the newest, and the one with the highest validation accuracy, the earliest of equals."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        scored = [i for i, c in enumerate(checkpoints) if c.metrics and "accuracy" in c.metrics]
        best = max(scored, key=lambda i: (checkpoints[i].metrics["accuracy"], -checkpoints[i].step), default=None)
        return [i == best or i >= len(checkpoints) - KEPT for i in range(len(checkpoints))]


class Checkpoints:
    """The checkpoints under a run's folder. A checkpoint is a train state and a record: plain numbers, lists, words."""

    def __init__(self, workdir: Path):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LatestAndBest(),
            best_fn=lambda metrics: metrics.get("accuracy", -1.0),  # without it Orbax neither writes nor reads metrics
            cleanup_tmp_directories=True,
            create=True,
        )
        self._manager = ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)

    def save(self, state: TrainState, record: dict[str, Any], *, accuracy: float | None) -> None:
        """Starts to write `state`, whose arrays may be donated as soon as this returns.

        Args:
          state: one replica of it.
          record: what else resuming needs; JSON.
          accuracy: validation accuracy at the end of an epoch; None within one.
        """
        state = jax.tree.map(np.asarray, state)
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)),
            metrics={} if accuracy is None else {"accuracy": accuracy},
            force=True,
        )

    def newest(
        self, like: Callable[[dict[str, Any]], TrainState], tell: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, and its record; None where there is none at all.

        Newer ones, which are damaged, are removed once an older one has been read, so that they are written again.

        Args:
          like: a record -> a state of the structure that was saved with it.
          tell: is given a line for each checkpoint that cannot be read.

        Raises:
          UserError: when there are checkpoints and none can be read; then all are left as they are.
        """
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                record = self.record(step)
                found = self.state(step, like(record)), record
            except UserError:
                raise
            except Exception as error:  # whatever Orbax, TensorStore or JSON make of a damaged file
                tell(f"the checkpoint of step {step} cannot be read: {one_line(error)[:160]}")
                damaged.append(step)
                continue
            for bad in damaged:
                self._manager.delete(bad)
            return found
        if damaged:
            raise UserError("no checkpoint of this run can be read; give --overwrite to begin again")
        return None

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def record(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]

    def state(self, step: int, like: TrainState) -> TrainState:
        """The state at `step`, as NumPy arrays in the structure of `like`."""
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
        return restored["state"]

    def wait(self) -> None:
        """Until everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def saved_steps(workdir: Path) -> list[int]:
    """The steps that a run's folder has checkpoints of; nothing in the folder is touched.

    Raises:
      UserError: when there are none.
    """
    folder = workdir / FOLDER
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit() and (path / "state").is_dir())
    if not steps:
        rounds = sorted(workdir.glob("round-*"))
        hint = f"; look into {rounds[-1]}, a run of its own" if rounds else f" in a subfolder {FOLDER}, as a run has"
        raise UserError(f"{workdir} has no checkpoints{hint}")
    return steps


def saved_variables(workdir: Path, step: int) -> dict[str, Any]:
    """Parameters and statistics that are tested at `step`, read without knowing the network or the optimizer.

    Raises:
      UserError: when they cannot be read.
    """
    folder = (workdir / FOLDER).absolute() / str(step)
    try:
        restored = ocp.PyTreeCheckpointer().restore(folder / "state")
    except Exception as error:  # Orbax lets through whatever its storage raises
        raise UserError(f"the checkpoint {folder} is missing or damaged: {one_line(error)[:160]}") from None
    found = {name: jax.tree.map(np.asarray, restored[name] or {}) for name in ("params", "batch_stats")}
    return averaged(found, jax.tree.map(np.asarray, restored.get("semi")))


def saved_tree(workdir: Path, step: int) -> dict[str, Any]:
    """Shapes and dtypes of the state at `step`, as nested dictionaries and lists of Orbax's metadata."""
    metadata: Any = ocp.StandardCheckpointer().metadata((workdir / FOLDER).absolute() / str(step) / "state")
    return metadata.item_metadata.tree
