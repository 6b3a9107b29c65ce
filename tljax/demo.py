"""The demo: pretrain on one procedural task, transfer to another with few labels, four ways, and compare."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from tljax.core.errors import UserError
from tljax.report import console as console_lib
from tljax.run_dir import files as folders
from tljax.train import single_run
from tljax.transfer.population import is_population

WAYS = {  # name, what trains; None weights mean from scratch
    "head only": "head",
    "last stage + head": "head,layer4",
    "everything": "all",
    "from scratch": "all",
}


def run(config: Any, workdir: Path, *, overwrite: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Runs the demo: `configs/demo.py`, in which `epochs`, `optimizer` and `transfer` are those of the transfers.

    Each of its five runs has a folder of its own and resumes like any other.

    Args:
      config: the config.
      workdir: the folder of the demo.
      overwrite: throw away what is there.
      console: where to print.

    Returns:
      `result.json` of the demo: one row per way, with accuracy, interval, trained parameters and seconds.
    """
    console = console or console_lib.make_console()
    if is_population(config):
        raise UserError("the demo compares four single runs and takes no population.*; say --config configs/folder.py")
    folders.check_free(workdir, config.to_dict(), overwrite=overwrite)
    folders.claim(workdir, config.to_dict(), overwrite=overwrite)
    source = _variant(config, source="shapes:source", train="all", weights=None)
    source.epochs, source.optimizer.lr = config.demo.source_epochs, config.demo.source_lr
    seconds = {"source task": _run(source, workdir / "source", console, "pretraining on the source task")["seconds"]}
    rows = []
    for name, groups in WAYS.items():
        weights = None if name == "from scratch" else str(workdir / "source")
        way = _variant(config, source="shapes:target", train=groups, weights=weights)
        result = _run(way, workdir / name.replace(" ", "_").replace("_+_", "_"), console, f"transfer: {name}")
        seconds[name] = result["seconds"]
        rows.append(
            {
                "name": name,
                **result["test"],
                "trained_parameters": result["train"]["trainable_parameters"],
                "seconds": result["seconds"],
            }
        )
    result = {"rows": rows, "seconds": sum(seconds.values()), "config": config.to_dict()}
    _draw(rows, workdir / "demo.png")
    folders.write_json(workdir / folders.RESULT, result)
    console_lib.print_table(
        console,
        f"Test accuracy on the target task ({rows[0]['seen']:,} images)",
        [
            {
                "what trained": r["name"],
                "accuracy": f"{r['accuracy']:.1%}",
                "95% interval": " to ".join(f"{100 * x:.1f}" for x in r["interval95"]),
                "trained parameters": f"{r['trained_parameters']:,}",
                "seconds": f"{r['seconds']:.0f}",
            }
            for r in rows
        ],
    )
    console.print(
        f"{result['seconds']:.0f} s in all; picture: {workdir / 'demo.png'}, table: "
        f"{workdir / folders.RESULT}, runs: {workdir}/*/",
        markup=False,
    )
    return result


def _variant(config: Any, *, source: str, train: str, weights: str | None) -> Any:
    variant = config.copy_and_resolve_references()
    variant.run = "train"
    variant.data.source, variant.transfer.train, variant.model.weights = source, train, str(weights)
    return variant


def _run(config: Any, workdir: Path, console: Console, title: str) -> dict[str, Any]:
    """A run of the demo; one that is finished already is not run again."""
    done = folders.read_result(workdir)
    if done is not None:
        return done
    console.rule(title, align="left")
    return single_run.run(config, workdir, console=console)


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    ax = figure.subplots()
    for y, row in enumerate(reversed(rows)):
        low, high = (100 * x for x in row["interval95"])
        ax.plot([low, high], [y, y], color="#4477aa", linewidth=2)
        ax.plot(100 * row["accuracy"], y, "o", color="#4477aa")
        ax.annotate(
            f"{row['accuracy']:.1%}",
            (100 * row["accuracy"], y),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    ax.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    ax.set_ylim(-0.5, len(rows) - 0.3)
    ax.set_xlim(0, 100)
    ax.set_xlabel(f"test accuracy on the target task (%), {rows[0]['seen']:,} images, 95% interval")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", color="0.9")
    figure.savefig(path, dpi=110)
