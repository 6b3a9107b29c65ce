"""Whether two runs found the same, bit for bit.

Of a folder everything counts that says what was computed: checkpoints with optimizer state and record, metrics.csv,
predictions, labels given to images, result.json, tables of studies. Times do not, nor where things were kept meanwhile.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tljax.run_dir.checkpoint import saved_steps
from tljax.run_dir.files import FREE

TIMES = {"seconds", "images_per_second", "waited_for_input", "first_step_seconds", "first_step", "validation_seconds",
         "expected_seconds", "clocks", "digest"}  # fmt: skip
WHERE = {"in", *(f"config.{name}" for name in FREE)}


def check_same(ours: Path, theirs: Path, *, but: tuple[str, ...] = ()) -> None:
    """Asserts that two finished runs agree in every bit that counts; `but` are more names that may differ, such as
    `config.data.source` or all of `device`."""
    wrong, _ = differences(ours, theirs, but=but)
    assert not wrong, wrong


def differences(ours: Path, theirs: Path, *, but: tuple[str, ...] = (), ends: bool = False) -> tuple[list[str], int]:
    """What does not agree, by name, and how much was compared; of checkpoints under `ends` those of the last step
    alone and of the best, since a run that was stopped has saved at others as well."""
    mine, others = (files(root, ends=ends) for root in (ours, theirs))
    wrong, compared = [f"{name} is in one alone" for name in sorted(mine.keys() ^ others.keys())], 0
    for name in sorted(mine.keys() & others.keys()):
        a, b = contents(mine[name], ours, but), contents(others[name], theirs, but)
        wrong += [f"{name}: {key}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
        compared += len(a)
    return wrong, compared


def files(root: Path, *, ends: bool = False) -> dict[str, Path]:
    """What counts in a run's folder, rounds and members included, by its name there."""
    names = ("metrics.csv", "predictions.npz", "labels-*.npz", "result.json", "table.md", "checkpoints/*")
    found = [path for name in names for path in root.rglob(name)]
    assert any(path.parent.name == "checkpoints" for path in found), f"{root} holds no run"
    return {str(path.relative_to(root)): path for path in found if not ends or counts(path)}


def counts(path: Path) -> bool:
    """Whether a path is no checkpoint, or the last of its run, or the best."""
    if path.parent.name != "checkpoints":
        return True
    run = path.parents[1]
    best = json.loads((run / "result.json").read_text()).get("best_step")
    return int(path.name) in (saved_steps(run)[-1], best)


def contents(path: Path, root: Path, but: tuple[str, ...]) -> dict[str, Any]:
    """The parts of a file or checkpoint, by name, so that they can be compared with ==."""
    if path.suffix in (".csv", ".md"):
        return {"text": path.read_text()}
    if path.suffix == ".json":
        return plain(json.loads(path.read_text().replace(str(root), "ROOT")), but)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: bits(array) for name, array in arrays.items()}
    state = ocp.PyTreeCheckpointer().restore(path / "state")
    record = json.loads((path / "record" / "metadata").read_text())
    return {name: bits(leaf) for name, leaf in leaves(state).items()} | plain(record, but)


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def bits(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(array)
    return str(array.dtype), array.shape, array.tobytes()


def plain(value: Any, but: tuple[str, ...], name: str = "") -> dict[str, Any]:
    """Nested values by dotted name, without what may differ."""
    last = name.rpartition(".")[2]
    if last in TIMES or name in WHERE or last in WHERE or any(name == b or name.startswith(f"{b}.") for b in but):
        return {}
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        found = {f"{name}": len(value)} if name else {}
        for key, inner in pairs:
            found |= plain(inner, but, f"{name}.{key}" if name else str(key))
        return found
    return {name: value}
