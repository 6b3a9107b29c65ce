"""Checkpoints of a run, by Orbax: written in the background, the last ones and the best kept, each with digests."""

import collections
import contextlib
import copy
import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import checkpoint_managers

from tljax.core.errors import UserError, one_line
from tljax.run_dir import versions
from tljax.run_dir.files import digest_of_json, literal
from tljax.run_dir.train_state import TrainState, averaged, overlaid

FOLDER = "checkpoints"
KEPT = 2  # the newest ones, so that one that was damaged has another before it


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the newest, and one that is named."""

    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        return [c.step == self.best or i >= len(checkpoints) - KEPT for i, c in enumerate(checkpoints)]


class _Written(NamedTuple):
    """A checkpoint to be read back: a state of its structure, and the digests of its parts and of its record."""

    step: int
    like: Any
    digests: dict[str, str]
    digest: str


class Damaged(Exception):
    """A checkpoint that Orbax reads, but that is not what was written."""


class Checkpoints:
    """The checkpoints under a run's folder. A checkpoint is a train state and a record: plain numbers, lists, words.

    Orbax's files have no checksums of their values, so a digest of each part of the state lies beside the record, and
    one of all that. A checkpoint is looked for once it is written, before the next one is begun; the last one is read
    whole before anything is told of it.
    """

    def __init__(self, workdir: Path):
        """Raises UserError where the folder cannot be made or opened."""
        self._policy, self._saving, self._failed = _LatestAndBest(), 0, False
        self._unread: _Written | None = None
        self._folder, self._open = workdir / FOLDER, contextlib.ExitStack()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._place = self._open.enter_context(literal(self._folder))
        except OSError as error:
            raise UserError(f"{self._folder} cannot be written to: {error.strerror or error}") from None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, cleanup_tmp_directories=True, create=False
        )
        self._manager = ocp.CheckpointManager(self._place, options=options)

    def save(self, state: TrainState, record: dict[str, Any], *, best: int | None) -> None:
        """Starts to write `state`, whose arrays may be donated as soon as this returns.

        Args:
          state: one replica of it.
          record: what else resuming needs; JSON.
          best: the step whose checkpoint is kept beside the newest ones.
        """
        state = jax.tree.map(np.asarray, state)
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._written(self._manager.wait_until_finished)
        self._read_back(values=False)
        self._policy.best, self._saving = best, step
        # Orbax writes JSON in a thread, later: what the run makes of its record meanwhile is not to be in it.
        record = copy.deepcopy(record)
        whole = {"versions": versions.versions(), "digests": digests(state), "record": record}
        whole |= {"digest": digest_of_json(whole)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(whole))
        self._written(lambda: self._manager.save(step, args=args, force=True))
        self._unread = _Written(step, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state),
                                whole["digests"], whole["digest"])  # fmt: skip

    def _written(self, action: Callable[[], Any]) -> None:
        """Does what waits for a checkpoint to be written; raises UserError where it could not be."""
        try:
            action()
        except Exception as error:  # whatever TensorStore makes of a disk, also in a thread of the save before
            self._failed = True
            full = os.strerror(errno.ENOSPC)
            reason = full if full in str(error) else self._reason(error)
            raise UserError(
                f"the checkpoint of step {self._saving} cannot be written under {self._folder}: {reason}; "
                f"those before it are whole, and the same command goes on from there"
            ) from None

    def _reason(self, error: Exception) -> str:
        """What a library raised, with the folder's own name."""
        return one_line(error).replace(str(self._place), str(self._folder))[:160]

    def _read_back(self, *, values: bool) -> None:
        """Looks whether what was written last is there: its record and every array, and with `values` what is in them.

        Raises:
          UserError: where it is not.
        """
        if self._unread is None:
            return
        written = self._unread
        try:
            # Of several processes each has a record of its own, and the first one's is written.
            if self._whole(written.step)["digest"] != written.digest and jax.process_index() == 0:
                raise Damaged("its record is not what was written")
            if missing := len(jax.tree.leaves(written.like)) - self._arrays(written.step):
                raise Damaged(f"{missing} of its arrays are not there")
            if values:
                self.state(written.step, written.like, written.digests)
        except Exception as error:  # whatever Orbax, TensorStore or JSON make of it
            self._failed = True
            raise UserError(
                f"the checkpoint of step {written.step} was written under {self._folder}, but cannot be read back: "
                f"{self._reason(error)}; those before it are kept; give another --workdir, on another disk"
            ) from None
        if values:
            self._unread = None

    def _arrays(self, step: int) -> int:
        """How many arrays a checkpoint's manifest leads to. Without one TensorStore finds none and says nothing."""
        base = {"driver": "file", "path": f"{self._place}/{step}/state/"}
        keys: Any = ts.KvStore.open({"driver": "ocdbt", "base": base}).result().list().result()
        names = collections.Counter(key.rpartition(b"/")[0] for key in keys)  # of an array: .zarray, and its values
        return sum(count > 1 for count in names.values())

    def newest(
        self, like: Callable[[dict[str, Any]], TrainState], tell: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, and its record; None where there is none at all.

        Newer ones, which are damaged, are removed once an older one has been read, so that they are written again.

        Args:
          like: a record -> a state of the structure that was saved with it.
          tell: is given a line for each checkpoint that cannot be read, and for one that other versions wrote.

        Raises:
          UserError: when there are checkpoints and none can be read; then all are left as they are.
        """
        damaged: list[int] = []
        for step in reversed(self.steps()):
            versions: dict[str, str] = {}
            try:
                whole = self._whole(step)
                versions, record = whole["versions"], whole["record"]
                found = self.state(step, like(record), whole["digests"]), record
            except UserError:
                raise
            except Exception as error:  # whatever Orbax, TensorStore or JSON make of a damaged file
                other = f" ({others})" if (others := other_versions(versions)) else ""
                tell(f"the checkpoint of step {step} cannot be read{other}: {self._reason(error)}")
                damaged.append(step)
                continue
            for bad in damaged:
                self._manager.delete(bad)
            if others := other_versions(versions):
                tell(f"the checkpoint of step {step} is by other versions, so numbers may differ in their last digits: "
                     f"{others}")  # fmt: skip
            return found
        if damaged:
            raise UserError("no checkpoint of this run can be read; all are left as they are; --overwrite begins again")
        return None

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def record(self, step: int) -> dict[str, Any]:
        return self._whole(step)["record"]

    def _whole(self, step: int) -> dict[str, Any]:
        whole = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        if whole["digest"] != digest_of_json({name: value for name, value in whole.items() if name != "digest"}):
            raise Damaged("its record is not what was written")
        return whole

    def state(self, step: int, like: TrainState, expected: dict[str, str]) -> TrainState:
        """The state at `step`, as NumPy arrays in the structure of `like`, held against digests by part."""
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
        _compare(digests(restored["state"]), expected)
        return restored["state"]

    def wait(self) -> None:
        """Until everything saved is on disk, and was read there.

        Raises:
          UserError: where it cannot be written, or not be read back; `save` does so of the checkpoint before.
        """
        self._written(self._manager.wait_until_finished)
        self._read_back(values=True)

    def close(self) -> None:
        if not self._failed:  # else it would say so once more, and may be writing still
            self._written(self._manager.close)
            self._open.close()


def digests(state: Any) -> dict[str, str]:
    """SHA-256 of what each part of a train state, or of a dictionary of its fields, holds: types, shapes, values."""
    parts = dict(state if isinstance(state, dict) else vars(state))
    parts |= {f"semi.{name}": part for name, part in parts.pop("semi", {}).items()}
    found = {}
    for name, part in parts.items():
        found[name] = hashlib.sha256()
        for leaf in map(np.asarray, jax.tree.leaves(part)):
            found[name].update(f"{leaf.dtype} {leaf.shape} ".encode())
            found[name].update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return {name: one.hexdigest() for name, one in found.items()}


def _compare(found: dict[str, str], expected: dict[str, str]) -> None:
    if wrong := [name for name, digest in found.items() if expected.get(name) != digest]:
        raise Damaged(f"its {', '.join(wrong)} are not what was written")


def other_versions(saved: dict[str, str]) -> str:
    """How the versions that wrote something differ from those here, in words; empty if they do not."""
    here = versions.versions()
    return ", ".join(f"{name} {there}, here {here.get(name, 'none')}" for name, there in saved.items()
                     if here.get(name) != there)  # fmt: skip


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
    found = _saved(workdir, step)
    return averaged({name: found[name] for name in ("params", "batch_stats")}, found["semi"])


def saved_member(workdir: Path, step: int, member: int, shapes: dict[str, Any], *, last: bool) -> dict[str, Any]:
    """Parameters and statistics of one member of a population, at its best epoch.

    Args:
      workdir: the population's folder.
      step: its last one.
      member: which.
      shapes: of a single run's variables; what has one axis more is stacked by member.
      last: at the last epoch instead, as where nothing was validated.

    Raises:
      UserError: when they cannot be read.
    """
    found = _saved(workdir, step)
    best = found["best"] if not last and found["best"]["accuracy"][member] >= 0 else {}

    def of_member(leaf: np.ndarray, shape: Any) -> np.ndarray:
        return leaf[member] if leaf.ndim > len(shape.shape) else leaf

    return {
        name: jax.tree.map(of_member, overlaid(found[name], best.get(name) or {}), shapes[name])
        for name in ("params", "batch_stats")
    }


def _saved(workdir: Path, step: int) -> dict[str, Any]:
    """What networks are made of at `step`, held against its digests."""
    folder = workdir.absolute() / FOLDER / str(step)
    told = str(folder)
    try:
        with literal(folder) as place:
            told = str(place)
            restored = ocp.PyTreeCheckpointer().restore(place / "state")
            whole = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(place / "record")
        average = {name: value for name, value in (restored.get("semi") or {}).items() if name == "average"}
        parts = {name: restored[name] or {} for name in ("params", "batch_stats", "best")} | {"semi": average}
        found = jax.tree.map(np.asarray, parts)
        _compare(digests(found), whole["digests"])
    except Exception as error:  # Orbax lets through whatever its storage raises
        reason = one_line(error).replace(told, str(folder))[:160]
        raise UserError(f"the checkpoint {folder} is missing or damaged: {reason}") from None
    return found


def saved_tree(workdir: Path, step: int) -> dict[str, Any]:
    """Shapes and dtypes of the state at `step`, as nested dictionaries and lists of Orbax's metadata."""
    with literal(workdir / FOLDER / str(step)) as place:
        metadata: Any = ocp.StandardCheckpointer().metadata(place / "state")
    return metadata.item_metadata.tree
