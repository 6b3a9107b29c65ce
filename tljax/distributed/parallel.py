"""Devices: the only file that knows that a process has several.

Each holds a copy of the state and a share of every batch; arrays have a leading axis of this process's devices. Steps
are pure functions on one device's share, and know the name of an axis at most.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import jax_utils
from jax._src import distributed

AXIS = "replicas"


@dataclasses.dataclass(frozen=True)
class Replicas:
    """How batches are laid over the devices of all processes.

    Row `r` of a batch goes to device `r mod devices`, so that the rows that pad a last batch are spread evenly.
    """

    devices: int
    local: int
    process: int
    parts: int = 1

    @classmethod
    def here(cls, parts: int = 1) -> "Replicas":
        return cls(jax.device_count(), jax.local_device_count(), jax.process_index(), parts)

    def padded(self, batch_size: int) -> int:
        """The rows of a batch of `batch_size`, up to a multiple of the devices and of the parts of each share."""
        each = self.devices * self.parts
        return -(-batch_size // each) * each

    def rows(self, batch_size: int) -> np.ndarray:
        """Which rows of a padded batch this process holds, in the order that `shard` expects."""
        first = self.process * self.local
        return np.arange(self.padded(batch_size)).reshape(-1, self.devices)[:, first : first + self.local].T.reshape(-1)

    def shard(self, batch: Mapping[str, np.ndarray], **scalars: int) -> dict[str, np.ndarray]:
        """This process's rows `[local * per_device, ...]` to `[local, per_device, ...]`, and `scalars`."""
        return {k: v.reshape(self.local, -1, *v.shape[1:]) for k, v in batch.items()} | self.scalars(**scalars)

    def scalars(self, **numbers: int) -> dict[str, np.ndarray]:
        """Whole numbers that every device gets, int32 `[local]` each."""
        return {name: np.full(self.local, number, np.int32) for name, number in numbers.items()}

    def unshard(self, gathered: np.ndarray) -> np.ndarray:
        """What the evaluation step gathered, `[devices, per_device, ...]`, in the order of the batch's rows."""
        return np.moveaxis(gathered, 0, 1).reshape(-1, *gathered.shape[2:])


def replicate(tree: Any) -> Any:
    """A copy of a tree's arrays on each device of this process, with a leading axis of devices.

    They are placed as `train_step` places what it returns: a step whose first state lay otherwise would be traced and
    compiled once more for its second.
    """
    devices = jax.local_devices()
    sharding = jax.NamedSharding(jax.sharding.Mesh(np.array(devices), (AXIS,)), jax.P(AXIS))

    def place(leaf: Any) -> jax.Array:
        # A CPU "device" would use NumPy's own memory, whatever `may_alias` says, and a state is donated.
        copy = (lambda: leaf[None]) if isinstance(leaf, jax.Array) else (lambda: np.array(leaf)[None])
        copies = [jax.device_put(copy(), device) for device in devices]
        return jax.make_array_from_single_device_arrays((len(devices), *np.shape(leaf)), sharding, copies)

    return jax.tree.map(place, tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy, still there; the inverse of `replicate`."""
    return jax_utils.unreplicate(tree)


def to_host(tree: Any) -> Any:
    """The first device's copy in NumPy; waits for it."""
    here = jax.device_get(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree))
    return jax.tree.map(lambda leaf: leaf[0], here)


def train_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """`(state, batch, key) -> (state, metrics)` over all devices; the state is donated.

    A batch may hold `signal` `[]`, a number; the metrics then have the highest of all replicas.
    """

    def with_signal(state: Any, batch: Any, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        state, metrics = step(state, batch, key)
        return state, metrics | ({"signal": jax.lax.pmax(batch["signal"], AXIS)} if "signal" in batch else {})

    return jax.pmap(with_signal, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0)


def eval_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """`(variables or state, batch, key) -> outputs` over all devices, nothing donated."""
    return jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None))


def all_reduce_max(number: int) -> int:
    """The largest number that any process gives; all have to ask, and all of their devices take part."""
    if distributed.global_state.num_processes == 1:
        return number
    return int(to_host(_max_of_all()(np.full(jax.local_device_count(), number, np.int32))))


@functools.cache
def _max_of_all() -> Any:
    return jax.pmap(functools.partial(jax.lax.pmax, axis_name=AXIS), axis_name=AXIS)
