"""`python -m tljax.inspect WORKDIR`: what lies in a run's checkpoint, group by group.

    python -m tljax.inspect WORKDIR [--step N] [--leaves]

Shows, per group, parameters, statistics and optimizer moments with their sizes; moments exist for what trains alone.
With --leaves, every array by its path, with shape and type.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from tljax.core.errors import UserError
from tljax.models import create_model
from tljax.report.console import make_console, print_table
from tljax.run_dir import files as folders
from tljax.run_dir.checkpoint import saved_steps, saved_tree
from tljax.settings.command_line import OneLineParser, exit_status


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and metadata of the arrays in a saved tree."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, (*path, str(i)))
    elif getattr(tree, "shape", None) is not None and getattr(tree, "dtype", None) is not None:
        yield path, tree


def size(leaf: Any) -> int:
    return math.prod(leaf.shape)


def moment_path(path: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """The name (`mu`, `nu`, `trace`) and the parameter's path of an optimizer moment; None for counters."""
    for name in ("mu", "nu", "trace"):
        if name in path:
            return name, path[len(path) - path[::-1].index(name) :]
    return None


def inspect(workdir: Path, step: int | None = None) -> tuple[int, list[dict[str, str]], list[dict[str, str]]]:
    """The step, one row per group, one row per array.

    Raises:
      UserError: when `workdir` is no run's folder or has no such checkpoint.
    """
    config = folders.read_config(workdir)
    steps = saved_steps(workdir)
    if step is not None and step not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    step = steps[-1] if step is None else step
    m = config["model"]
    model = create_model(m["name"], last_stage=m["last_stage"] or None, width=m["width"], blocks=m["blocks"])
    found = list(leaves(saved_tree(workdir, step)))

    groups: dict[str, dict[str, int]] = {
        g: {"parameters": 0, "statistics": 0, "moments": 0, "bytes": 0} for g in model.groups
    }
    for path, leaf in found:
        kind, of = {"params": ("parameters", path[1:]), "batch_stats": ("statistics", path[1:])}.get(path[0], ("", ()))
        if not kind and (moment := moment_path(path)):
            kind, of = "moments", moment[1]
        if kind:
            row = groups[model.group_of(of)]
            row[kind] += size(leaf)
            row["bytes"] += size(leaf) * leaf.dtype.itemsize
    total = {name: sum(row[name] for row in groups.values()) for name in next(iter(groups.values()))}
    rows = [
        {"group": name, **{k: f"{v:,}" if v else "-" for k, v in row.items() if k != "bytes"},
         "MB": f"{row['bytes'] / 1e6:.2f}"}
        for name, row in [*groups.items(), ("all", total)]
    ]  # fmt: skip
    arrays = [
        {"array": "/".join(path), "shape": "x".join(map(str, leaf.shape)) or "scalar", "type": str(leaf.dtype)}
        for path, leaf in found
    ]
    return step, rows, arrays


def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser("python -m tljax.inspect", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workdir", type=Path, help="the folder of a run")
    parser.add_argument("--step", type=int, help="which checkpoint; the last one by default")
    parser.add_argument("--leaves", action="store_true", help="every array, too")
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns of a file that its own manager does not write
    return exit_status(lambda: show(args.workdir, args.step, every_array=args.leaves))


def show(workdir: Path, step: int | None, *, every_array: bool) -> None:
    """Prints the tables."""
    step, rows, arrays = inspect(workdir, step)
    console = make_console()
    steps = ", ".join(map(str, saved_steps(workdir)))
    console.print(f"{workdir}: checkpoints of steps {steps}; this is step {step}", markup=False)
    print_table(console, "Numbers by group", rows)
    if every_array:
        print_table(console, "Arrays", arrays)
    result = folders.read_result(workdir)
    if result is None:
        console.print("the run is not finished")
    elif "members" in result:
        console.print(f"finished; a population of {len(result['members'])}, whose numbers are counted together")
    else:
        best = (result["validation"] or {}).get("best_epoch", "the last")
        console.print(f"finished; best epoch {best}, step {result['best_step']}")


if __name__ == "__main__":
    sys.exit(main())
