"""What the processes of a run tell each other, through the store of JAX's coordination service, which process 0 keeps.

Whoever calls one of these must call it in all processes, at the same place. Where there is one process, none costs
anything.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax._src import distributed

from tljax.core.errors import UserError
from tljax.distributed.parallel import all_reduce_max
from tljax.run_dir import versions
from tljax.run_dir.files import LOCK
from tljax.settings.dotted import flatten

_turns = itertools.count()


def share(words: str) -> list[str]:
    """What each process says, in their order; waits for all of them."""
    state = distributed.global_state
    if state.num_processes == 1:
        return [words]
    key, client = f"tljax/share/{next(_turns)}/", cast(Any, state.client)
    client.key_value_set(f"{key}{state.process_id}", words)

    def said(number: int) -> str:
        while True:
            try:
                return client.blocking_key_value_get(f"{key}{number}", 1000)  # no signal is heard within
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    return [said(number) for number in range(state.num_processes)]


def barrier() -> None:
    """Waits until all processes are here: the first one alone writes files."""
    share("")


def assert_equal_across_processes(values: Callable[[], Mapping[str, Any]]) -> None:
    """Raises UserError in all processes where values, by name, are not the same in each."""
    if distributed.global_state.num_processes == 1:
        return
    first, *others = (json.loads(words) for words in share(json.dumps(values(), default=str)))
    for number, other in enumerate(others, 1):
        for name in first:
            if first[name] != other.get(name):
                raise UserError(f"{name} is {first[name]!r} in process 0, but {other.get(name)!r} in process {number}; "
                                "all processes of a run are given the same")  # fmt: skip


def assert_equal_config(config: Any) -> None:
    """Before anything is opened: all processes have one config, and the packages that decide on numbers."""
    assert_equal_across_processes(
        lambda: (
            {f"config.{name}": value for name, value in flatten(config.to_dict()).items()}
            | {f"the version of {name}": version for name, version in versions.versions().items()}
        )
    )


def assert_equal_start(data: Any, variables: Any) -> None:
    """Before the first step: all processes have the same images, labels, splits and initial weights."""
    assert_equal_across_processes(
        lambda: {
            "the number of images": len(data.source),
            "the digest of the images' names, labels and splits": data.fingerprint[:12],
            "the digest of what is in the images": data.content[:12],
            "the digest of the decoded images' sizes": _digest(data.pixels.sizes),
            "the digest of the initial weights": _digest(variables),
        }
    )


def assert_equal_folder(workdir: Path) -> None:
    """Once process 0 has claimed the run's folder: the others see that it has."""
    if distributed.global_state.num_processes == 1:
        return

    def holder() -> str:
        try:
            return (workdir / LOCK).read_text()
        except OSError:
            return ""

    process = distributed.global_state.process_id
    there = share(holder() if process == 0 else "")[0]
    until = time.monotonic() + 15  # a network file system may show others' files late
    while (here := holder()) != there and time.monotonic() < until:
        time.sleep(0.5)
    for number, sees in enumerate(share("yes" if here == there else "")):
        if not sees:
            raise UserError(f"--workdir={workdir} is another folder in process {number} than in process 0; give one on "
                            "a disk that all machines share")  # fmt: skip


class Stop:
    """When a run is to stop: each process is sent signals of its own, and all stop at the same step.

    Attributes:
      caught: signals that this process was sent.
      signal: one that any process was sent, once all know of it; else 0.
    """

    def __init__(self):
        self.caught: list[int] = []
        self.signal = 0

    def asked(self) -> bool:
        """Asks the others. Costs a collective."""
        self.signal = self.signal or all_reduce_max(next(iter(self.caught), 0))
        return self.signal > 0

    def words(self) -> dict[str, int]:
        """What a training step takes along to the others."""
        return {} if jax.process_count() == 1 else {"signal": next(iter(self.caught), 0)}

    def hear(self, signal: int | None) -> None:
        """What a training step brought back, if it took something along."""
        self.signal = self.signal or int(next(iter(self.caught), 0) if signal is None else signal)


def _digest(tree: Any) -> str:
    """A few digits that tell arrays apart."""
    found = hashlib.blake2b()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:12]
