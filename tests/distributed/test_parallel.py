"""Devices stand in one file, and what it places there is what steps take and give."""

import ast
from pathlib import Path

import jax
import numpy as np
import pytest

from tljax.distributed import parallel

ROOT = Path(parallel.__file__).parents[1]
DEVICES = {"pmap", "shard_map", "jax_utils", "NamedSharding", "Mesh", "addressable_shards", "device_put_replicated",
           "device_put_sharded", "local_devices"}  # fmt: skip


def names_in(file):
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]


def test_no_other_file_knows_of_several_devices():
    found = {str(file.relative_to(ROOT)): DEVICES & set(names_in(file)) for file in ROOT.rglob("*.py")}
    found = {name: names for name, names in found.items() if names}
    assert found.pop("distributed/parallel.py") >= {"pmap", "NamedSharding", "Mesh"}
    assert found == {"engine/oom_guard.py": {"local_devices"}}  # how much memory each has left


@pytest.mark.devices
def test_what_is_replicated_is_on_every_device_and_no_copy_is_the_hosts():
    tree = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "n": np.int32(7), "d": jax.numpy.ones(2)}
    placed = parallel.replicate(tree)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(placed)} == {4}
    assert all(len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(placed))
    tree["w"][:] = -1
    for found in (parallel.to_host(placed), jax.device_get(parallel.unreplicate(placed))):
        np.testing.assert_array_equal(found["w"], np.arange(6).reshape(2, 3))
        assert found["n"] == 7 and found["d"].tolist() == [1, 1]


@pytest.mark.devices
def test_the_state_that_a_step_returns_lies_as_the_first_one_did():
    """Else the step would be compiled once more."""
    traced = []
    step = parallel.train_step(lambda state, batch, key: (state + batch["x"].sum(), traced.append(1) or {}))
    state = first = parallel.replicate(np.zeros(3, np.float32))
    sharding = first.sharding
    for _ in range(3):
        state, metrics = step(state, {"x": np.ones((4, 2), np.float32), "signal": np.arange(4)}, jax.random.key(0))
    assert state.sharding.is_equivalent_to(sharding, state.ndim) and len(traced) == 1
    assert parallel.to_host(state).tolist() == [6, 6, 6] and parallel.to_host(metrics["signal"]) == 3
