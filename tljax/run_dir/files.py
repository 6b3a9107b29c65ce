"""The folder of a run: whose it is, what lies in it, and how files get there whole."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from tljax.core.errors import UserError, one_line, shown, told
from tljax.settings.dotted import flatten
from tljax.settings.renamed import RENAMED, with_names_of_now

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are then not noticed
    fcntl = None

CONFIG, RESULT, METRICS, PREDICTIONS = "config.json", "result.json", "metrics.csv", "predictions.npz"
SPLITS = {"val": "validation", "test": "test"}
"""Splits that are evaluated at the end, by their names in predictions.npz, and their names in result.json."""
IMAGES = "images.npz"  # which pictures the run has, by name and content
SPILL, LOCK = "pixels.u8", ".lock"
_OURS = {CONFIG, RESULT, METRICS, SPILL, LOCK, "checkpoints", "members", PREDICTIONS, "augmented.png",
         "curves.png", "calibration.png"}  # fmt: skip
# Fields that do not change what a run computes.
FREE = ("data.workers", "data.memory_gb", "data.placement", "cache.features", "cache.memory_gb", "pictures",
        "stop_at_nan", "trackers", "minutes")  # fmt: skip
# Fields that say where the images lie, or labels that a round made: what lies there is compared by content.
_KINDS_OF_FOLDERS = ("folder", "pets")
PLACES = ("data.source", "data.tfds_dir", "data.pseudo")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that is either the old one or the new one, whatever happens and whoever else writes it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An .npz file without pickles."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_whole(path, file.getvalue())


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of an .npz file, by name.

    Raises:
      UserError: with the reason alone, where the file is missing, damaged, or without one of them.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except Exception as error:  # whatever numpy, zipfile and zlib raise for bytes that someone made up
        reason = "it is no .npz file" if "pickle" in str(error) else one_line(error) or type(error).__name__
        raise UserError(reason) from None


def write_json(path: Path, value: Any) -> None:
    """JSON, which has no word for a number that is not finite: null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_whole(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def read_result(workdir: Path) -> dict[str, Any] | None:
    """What a finished run found; None for one that is not finished. Raises UserError for one that is damaged."""
    path = workdir / RESULT
    if not path.exists():
        return None
    result = _read(path)
    if "rows" in result:  # the demo's, of several runs
        return result
    kinds = {"classes": list, "config": dict} | (
        {"members": list} if "members" in result else {"preprocessing": dict, "best_step": int, "history": list}
    )
    if wrong := [name for name, kind in kinds.items() if not isinstance(result.get(name), kind)]:
        raise UserError(f"{path} is damaged: it has no {wrong[0]}")
    return result | {"config": _of_now(result["config"], workdir)}


def read_config(workdir: Path) -> dict[str, Any]:
    """The config of the run in `workdir`. Raises UserError where there is none."""
    if not (workdir / CONFIG).is_file():
        raise UserError(f"{workdir} is not the folder of a run: it has no {CONFIG}")
    config = _read(workdir / CONFIG)
    parts = ("data", "model", "transfer", "optimizer")
    if not all(isinstance(config.get(part), dict) for part in parts) or not isinstance(
        config["model"].get("name"), str
    ):
        raise UserError(f"{workdir / CONFIG} is not the config of a run of tljax")
    return _of_now(config, workdir)


def _of_now(config: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """A run's config with its fields under today's names; says once that an earlier version gave them others."""
    config, before = with_names_of_now(config)
    place = workdir.resolve()
    run = place.parent.parent if place.parent.name == "members" else place  # one line for all of a population
    if before and run not in _told_of:
        _told_of.add(run)
        words = ", ".join(f"{name} (now {RENAMED[name]})" for name in before)
        print(f"tljax: an earlier version made {shown(str(workdir))}; it is read with today's names of {words}",
              file=sys.stderr)  # fmt: skip
    return config


_told_of: set[Path] = set()


def wrote(folder: Path, names: Set[str] | None = None) -> bool:
    """Whether a run, or the demo, wrote a folder; `names` are those of its files, where they are known."""
    names = set(os.listdir(folder)) if names is None else names
    if CONFIG in names or RESULT in names:
        for read in (read_config, read_result):
            with contextlib.suppress(UserError):
                if "rows" not in (read(folder) or {"rows": "or not finished"}):
                    return True
    return len(names & _OURS) > 2  # one that was stopped, or damaged


def digest_of_config(config: Mapping[str, Any]) -> str:
    """Of all that a run computes by; where the files lie that it names may change, since folders are moved."""
    fields = {name: value for name, value in flatten(json.loads(json.dumps(config))).items()
              if name not in (*FREE, "data.pseudo", "model.weights", "data.source")}  # fmt: skip
    return digest_of_json(fields)


def digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged: {one_line(error)}; remove it, and the run's command writes it anew"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it is no JSON object")
    return value


def named(folder: str | Path) -> Path:
    """A folder as a user names it, `~` filled in where there is such a home. Raises UserError for what is no path."""
    if not isinstance(folder, str | os.PathLike) or not isinstance(os.fspath(folder), str):
        raise UserError(f"{folder!r:.60} is no folder; give the path of one, as text or as a pathlib.Path")
    check_nul("the folder", os.fspath(folder))
    return Path(os.path.expanduser(folder))


def check_nul(what: str, path: str) -> None:
    """Raises UserError for a path with a NUL character, which the system's calls answer with a bare ValueError."""
    if "\0" in path:
        raise UserError(f"{what} {told(path)} has a NUL character; no path has")


# What Orbax and TensorStore do not take for itself: patterns, escapes, addresses (`gs:`, and `/gs/...` that etils makes
# of it), the names of TensorStore's lock files, bytes that are not UTF-8.
_MISREAD = re.compile(r"[*?\[\]\\:\x00-\x1f\x7f\ud800-\udfff]|^//|^/(gs|s3|az|hf)(/|$)|\.__lock(/|$)")
_OPEN_FOLDERS = Path("/proc/self/fd")


def is_misread(path: Path) -> bool:
    """Whether the library of checkpoints takes an absolute path for another one, or for none."""
    return os.name == "posix" and bool(_MISREAD.search(str(path)))


@contextlib.contextmanager
def literal(folder: Path) -> Iterator[Path]:
    """A path of a folder, which exists, that the library of checkpoints takes for itself.

    That is the folder without links and `..`, or, where it would be misread, this process's own name of it.
    """
    real = folder.resolve()
    if not is_misread(real):
        yield real
        return
    handle = os.open(real, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _OPEN_FOLDERS / str(handle)
    finally:
        os.close(handle)


class Busy(UserError):
    """Another process is at work in this folder."""


class Finished(UserError):
    """The folder holds this very run, finished."""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a run's folder for this process.

    Raises:
      Busy: when another process holds it.
      UserError: when the folder cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK).open("a+")  # "w" would take away what the holder wrote
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written to: {error.strerror or error}") from None
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = f" (process {pid})" if (pid := file.read().strip()) else ""
                raise Busy(
                    f"--workdir={workdir} is in use by another run{holder}; wait for it, or give another folder"
                ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def check_free(
    workdir: Path, config: Mapping[str, Any], *, overwrite: bool = False, opened: Collection[str] = ()
) -> None:
    """Looks whether a run may start, or go on, in a folder; touches nothing.

    Args:
      workdir: may be missing.
      config: the whole config, as plain values.
      overwrite: whether another run there may be thrown away.
      opened: fields that are yet to be chosen, and are not compared.

    Raises:
      UserError: when the folder holds a finished run, a run of another config, or something else.
    """
    try:
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"--workdir={workdir} is a file; give a folder")
        if workdir.is_symlink() and not workdir.exists():
            raise UserError(f"--workdir={workdir} is a link to {os.readlink(workdir)}, which is not there")
        workdir.resolve()
    except (OSError, RuntimeError) as error:  # no permission to look, a name that is too long, links in a circle
        raise UserError(f"--workdir={workdir} cannot be used: {getattr(error, 'strerror', None) or error}") from None
    if is_misread(workdir.resolve()) and not _OPEN_FOLDERS.is_dir():
        raise UserError(f"--workdir={workdir} has a name that the library of checkpoints takes for another (such as "
                        "one with a backslash, a colon, brackets or *); give another")  # fmt: skip
    if (workdir / CONFIG).exists():
        read_config(workdir)  # somebody else's config.json is not ours to throw away
        if not overwrite:
            _same_run(workdir, config, opened)
    elif workdir.exists() and {p.name for p in workdir.iterdir() if p.suffix != ".part"} - {SPILL, LOCK}:
        raise UserError(f"--workdir={workdir} has files in it but no run; give an empty folder or a new name")
    if overwrite or not (workdir / RESULT).exists():
        _check_writable(workdir)


def unwritable(workdir: Path, error: OSError) -> Exception:
    """What to raise where a folder takes no file: of a full disk the error itself, for commands know what to say."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    return UserError(f"--workdir={workdir} cannot be written to: {error.strerror or error}")


def _check_writable(workdir: Path) -> None:
    """Raises UserError for a folder that cannot be written to, or not be made, before hours are spent on it."""
    there = next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--workdir={workdir} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(there).f_flag & os.ST_RDONLY
        why = os.strerror(errno.EROFS if read_only else errno.EACCES)
        raise UserError(f"--workdir={workdir} cannot be written to: {why}; give another folder")


def claim(workdir: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Makes a folder that `check_free` has passed this run's; another run in it is thrown away under `overwrite`.

    Raises:
      UserError: when the folder cannot be made or written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for path in workdir.iterdir():
                if path.name not in (SPILL, LOCK):  # decoded images carry a key of their own
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not (workdir / CONFIG).exists():
            write_json(workdir / CONFIG, config)
        else:
            _follow(workdir, config)
    except OSError as error:
        raise unwritable(workdir, error) from None


def _follow(workdir: Path, config: Mapping[str, Any]) -> None:
    """Notes where a run's images lie now."""
    there = read_config(workdir)
    here = {name: config["data"][name] for name in (place.partition(".")[2] for place in PLACES)}
    if {name: there["data"].get(name) for name in here} != here:
        write_json(workdir / CONFIG, there | {"data": there["data"] | here})


def _same_run(workdir: Path, config: Mapping[str, Any], opened: Collection[str]) -> None:
    old, new = flatten(read_config(workdir)), flatten(json.loads(json.dumps(config)))
    done, moved = read_result(workdir) is not None, _moved(workdir, old, new)
    free = FREE if done and moved is None else (*FREE, *PLACES)
    other_kind = _kind(old.get("data.source")) != _kind(new.get("data.source"))
    changed = [
        f"{k}: {old.get(k)!r} there, {new.get(k)!r} now"
        for k in sorted((old.keys() | new.keys()) - set(opened))
        if old.get(k) != new.get(k) and (k not in free or (k == "data.source" and other_kind))
    ]
    if changed:
        raise UserError(
            f"--workdir={workdir} holds a run of another config ({'; '.join(changed)}); give another "
            f"--workdir, or --overwrite to throw that run away"
        )
    if done and not moved:
        raise finished(workdir)


def finished(workdir: Path) -> Finished:
    return Finished(
        f"--workdir={workdir} holds this run, finished; see its {RESULT}, or give --overwrite to run it again"
    )


def _moved(workdir: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool | None:
    """Whether a config's images lie elsewhere than those of the run there; None where that run does not say what was in
    them, so that their place is all there is to compare."""
    try:
        (there,) = read_arrays(workdir / IMAGES, "place")
    except UserError:
        return None
    return str(there) != place_of({name: new.get(f"data.{name}") for name in ("source", "tfds_dir")})


def place_of(config: Mapping[str, Any]) -> str:
    """Where `source` and `tfds_dir` of a `config.data` lie, however that is written."""
    kind, _, where = str(config["source"]).partition(":")
    if kind in _KINDS_OF_FOLDERS:
        return f"{kind}:{os.path.realpath(os.path.expanduser(where))}"
    return f"{config['source']} {config['tfds_dir'] and os.path.realpath(os.path.expanduser(config['tfds_dir']))}"


def _kind(source: Any) -> Any:
    """What is left of a source without its place: `folder`, or all of `tfds:NAME`."""
    kind = str(source).partition(":")[0]
    return kind if kind in _KINDS_OF_FOLDERS else source
