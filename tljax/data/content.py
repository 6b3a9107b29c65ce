"""Which pictures a run was begun with, by name and by what is in them: it goes on with no others, wherever they lie.

Also on which of them its network has trained, so that a run that starts from it knows what it cannot be tested on.
"""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from tljax.core.errors import UserError, few
from tljax.data.load import Data, open_data
from tljax.data.pixels import content_of
from tljax.run_dir import files as folders

_EXAMPLES = 3


def keep(folder: Path, config: Any, data: Data, earlier: Set[bytes] = frozenset()) -> None:
    """Writes into a run's folder which pictures it has, and where they lie.

    Args:
      folder: the run's.
      config: `config.data`.
      data: the pictures.
      earlier: digests of those that its weights have trained on before.

    Raises:
      UserError: where it cannot.
    """
    held = np.flatnonzero(data.pixels.held)
    arrays = {
        "place": np.array(folders.place_of(config.to_dict())),
        "names": np.array([data.source.names[i] for i in held]),
        "contents": data.contents[held],
        "skipped": np.array([name for name, _ in data.pixels.skipped], np.str_),
        "trained": np.array(sorted(earlier | set(data.contents[data.pool].tolist())), data.contents.dtype),
    }
    try:
        folders.write_arrays(folder / folders.IMAGES, **arrays)
    except OSError as error:
        raise folders.unwritable(folder, error) from None


def check(folder: Path, data: Data) -> None:
    """Raises UserError where a run's folder says that it has other pictures than `data`; touches nothing."""
    if (kept := _kept(folder)) is not None:
        held = np.flatnonzero(data.pixels.held)
        now = {data.source.names[i]: data.contents[i] for i in held.tolist()}
        _compare(data.source.spec, kept[0], now)


def of_run(workdir: Path) -> dict[str, bytes]:
    """Digests of what a run's images held, by name: also of a member's, or a round's, which lie with the whole."""
    kept = _kept(_home(workdir))
    return {} if kept is None else kept[0]


def trained_on(workdir: Path) -> frozenset[bytes] | None:
    """Digests of all pictures that a finished run's network has trained on, with labels or without, in that run and in
    those that its weights came from; None where an older version did not keep them."""
    try:
        return frozenset(folders.read_arrays(_home(workdir) / folders.IMAGES, "trained")[0].tolist())
    except UserError:
        return None


def _home(workdir: Path) -> Path:
    """Where a run's record of its images lies: for a member, or a round, in the folder of the whole."""
    places = (workdir.resolve(), *workdir.resolve().parents[:2])
    return next((place for place in places if (place / folders.IMAGES).exists()), places[0])


def check_moved(workdir: Path, config: Any) -> None:
    """Of a finished run whose pictures are said to lie elsewhere now: reads these.

    Raises:
      folders.Finished: they are what the run had.
      UserError: they are others.
    """
    if folders.read_result(workdir) is None:
        return
    listed = open_data(config.data, seed=config.seed)
    known, skipped = _kept(workdir) or ({}, set())
    now = {}
    for index in np.unique(np.concatenate(list(listed.splits.values()))).tolist():
        if (name := listed.source.names[index]) not in skipped:
            try:
                now[name] = content_of(listed.source.read(index))
            except OSError:
                now[name] = b""
    _compare(listed.source.spec, known, now)
    raise folders.finished(workdir)


def _kept(folder: Path) -> tuple[dict[str, bytes], set[str]] | None:
    """Contents by name, and names of files that could not be read; None of a run that older versions began."""
    if not (folder / folders.IMAGES).exists():
        return None
    try:
        names, contents, skipped = folders.read_arrays(folder / folders.IMAGES, "names", "contents", "skipped")
    except UserError as reason:
        raise UserError(f"{folder / folders.IMAGES} is damaged ({reason}); remove it, and the run goes on without it"
                        ) from None  # fmt: skip
    return dict(zip(names.tolist(), contents.tolist(), strict=True)), set(skipped.tolist())


def _compare(spec: str, kept: Mapping[str, bytes], now: Mapping[str, bytes]) -> None:
    found = {
        "other pictures under the same names": [name for name in kept if name in now and kept[name] != now[name]],
        "gone": [name for name in kept if name not in now],
        "new": [name for name in now if name not in kept],
    }
    told = "; ".join(f"{words}: {few(sorted(names), _EXAMPLES)}" for words, names in found.items() if names)
    if told:
        raise UserError(
            f"the images of {spec} have changed since this run began: it may have trained on what it would test on "
            f"({told}); put them back, or give another --workdir, or --overwrite"
        )
