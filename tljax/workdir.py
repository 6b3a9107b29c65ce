"""The folder of a run: whose it is, what lies in it, and how files get there whole."""

import contextlib
import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax.errors import UserError

CONFIG, RESULT, METRICS = "config.json", "result.json", "metrics.csv"
FREE = ("data.workers", "data.memory_gb")  # fields that change how fast a run is, not what it computes


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that is either the old one or the new one, whatever happens."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def read_result(workdir: Path) -> dict[str, Any] | None:
    """What a finished run found; None for one that is not finished."""
    path = workdir / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def read_config(workdir: Path) -> dict[str, Any]:
    """The config of the run in `workdir`. Raises UserError where there is none."""
    try:
        return json.loads((workdir / CONFIG).read_text())
    except FileNotFoundError:
        raise UserError(f"{workdir} is not the folder of a run: it has no {CONFIG}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{workdir / CONFIG} is damaged: {error}") from None


def claim(workdir: Path, config: Mapping[str, Any], *, overwrite: bool = False, writer: bool = True) -> None:
    """Makes the folder this run's, or finds that it is already.

    Args:
      workdir: created when missing.
      config: the whole config, as plain values.
      overwrite: throw away the run that is there.
      writer: False for the processes of a run that only look.

    Raises:
      UserError: when the folder holds a finished run, a run of another config, or something else.
    """
    if overwrite and writer and (workdir / CONFIG).exists():
        shutil.rmtree(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from None
    if (workdir / CONFIG).exists():
        if not overwrite:
            _same_run(workdir, config)
    elif any(workdir.iterdir()):
        raise UserError(f"--workdir={workdir} has files in it but no run; give an empty folder or a new name")
    if writer and not (workdir / CONFIG).exists():
        try:
            write_json(workdir / CONFIG, config)
        except OSError as error:
            raise UserError(f"--workdir={workdir} cannot be written to: {error.strerror}") from None


@contextlib.contextmanager
def unclaimed_on_error(workdir: Path, *, writer: bool = True) -> Iterator[None]:
    """A run that never began leaves no folder in which the mended config would be refused."""
    try:
        yield
    except BaseException:
        if writer and {path.name for path in workdir.iterdir()} <= {CONFIG}:
            (workdir / CONFIG).unlink(missing_ok=True)
            workdir.rmdir()
        raise


def _same_run(workdir: Path, config: Mapping[str, Any]) -> None:
    old, new = flatten(read_config(workdir)), flatten(json.loads(json.dumps(config)))
    changed = [
        f"{k}: {old.get(k)!r} there, {new.get(k)!r} now"
        for k in sorted(old.keys() | new.keys())
        if old.get(k) != new.get(k) and k not in FREE
    ]
    if changed:
        raise UserError(
            f"--workdir={workdir} holds a run of another config ({'; '.join(changed)}); give another "
            f"--workdir, or --overwrite to throw that run away"
        )
    if read_result(workdir) is not None:
        raise UserError(
            f"--workdir={workdir} holds this run, finished; see its {RESULT}, or give --overwrite to run it again"
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to `{'optimizer.lr': 0.001, ...}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
