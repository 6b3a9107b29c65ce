"""A batch that there is no memory for: named before it runs, with one that fits."""

import re

import jax
import numpy as np
import pytest

from tests import tiny
from tljax.core.errors import UserError
from tljax.engine import oom_guard
from tljax.train import single_run


def test_a_batch_that_cannot_fit_is_refused_before_its_first_step(tmp_path, monkeypatch):
    """On a machine with a megabyte to spare for each device."""
    monkeypatch.setattr(oom_guard, "available_memory", lambda: 4 * 2**20)
    config = tiny.make_config(
        tiny.make_folder(tmp_path / "photos"), batch_size=36, data__size=128, data__resize=128, model__width=16
    )
    with pytest.raises(UserError) as said:
        single_run.run(config, tmp_path / "run")
    found = re.search(
        r"batch_size=36 does not fit: a training step takes ([\d.]+) GB .* and ([\d.]+) GB are free", said.value.args[0]
    )
    assert float(found[1]) > float(found[2])
    assert re.search(r"by the same count batch_size=\d+ fits|not even one example would fit", str(said.value))
    assert list((tmp_path / "run").glob("checkpoints/*")) == []


def steps(width):
    """A parallel step whose memory grows with its batch, and its arguments for `rows`."""

    def step(state, shard, key):
        x = shard["image"]
        for _ in range(3):
            x = jax.numpy.tanh(x @ state)
        return state + x.T @ x, {"loss": x.sum()}

    run = jax.pmap(step, axis_name="replicas", in_axes=(0, 0, None))

    def arguments(rows):
        devices = jax.local_device_count()
        shard = {"image": np.zeros((devices, rows, width), np.float32), "epoch": np.zeros(devices, np.int32)}
        return np.zeros((devices, width, width), np.float32), shard, jax.random.key(0)

    return run, arguments


def test_the_batch_that_is_named_does_fit_and_not_by_a_mile():
    run, arguments = steps(64)
    rows = 4096
    needed = oom_guard.step_bytes(run, *arguments(rows))
    for share in (0.7, 0.3, 0.05):
        free = int(needed * share)
        error = oom_guard.does_not_fit(run, arguments(rows), {"batch_size": rows}, 1, needed=needed, free=free)
        fits = int(re.search(r"batch_size=(\d+) fits", str(error))[1])
        assert oom_guard.step_bytes(run, *arguments(fits)) <= free
        assert oom_guard.step_bytes(run, *arguments(4 * fits)) > free
        parts = int(re.search(r"accumulate=(\d+)", str(error))[1])
        assert oom_guard.step_bytes(run, *arguments(-(-rows // parts))) <= free


def test_where_nothing_fits_it_says_so():
    run, arguments = steps(64)
    needed = oom_guard.step_bytes(run, *arguments(8))
    error = oom_guard.does_not_fit(run, arguments(8), {"batch_size": 8}, 1, needed=needed, free=1)
    assert "not even one example would fit" in str(error)


def test_memory_that_runs_out_in_the_first_step_is_told_and_other_errors_are_not_hidden():
    run, arguments = steps(64)

    def check_fits_memory(error):
        def step(*_):
            raise error

        step.lower = run.lower
        return oom_guard.check_fits_memory(step, {"batch_size": 1024}, 1)

    with pytest.raises(UserError, match="batch_size=1,024 does not fit"):
        check_fits_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))(
            *arguments(1024)
        )
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        check_fits_memory(jax.errors.JaxRuntimeError("INTERNAL: something else"))(*arguments(1024))
