"""Runs on four devices: stopped, on kept features, with a teacher. Slow tests compare commands on one and on four."""

import jax
import numpy as np
import pytest

from tests import same, tiny
from tljax.report.console import make_console
from tljax.run_dir.checkpoint import saved_variables
from tljax.train import single_run

pytestmark = pytest.mark.devices
QUIET = make_console(quiet=True)


@pytest.mark.parametrize(
    "settings",
    [{}, {"data__labels": "25%", "semi__method": "mean_teacher", "semi__batch_size": 10, "semi__strong_ops": 0}],
    ids=["single", "average of weights"],
)
def test_interrupted_it_ends_as_undisturbed(photos, tmp_path, monkeypatch, settings):
    config = tiny.make_config(photos, epochs=2, **settings)
    whole = single_run.run(config, tmp_path / "whole", console=QUIET)
    assert whole["device"]["count"] == 4
    tiny.interrupted_after(config, tmp_path / "cut", 4, monkeypatch)
    again = single_run.run(config, tmp_path / "cut", console=QUIET)
    assert again["history"] == whole["history"]
    wrong, _ = same.differences(tmp_path / "whole", tmp_path / "cut", ends=True)
    assert not wrong, wrong


def test_features_that_are_kept_change_nothing(finished, photos, tmp_path, x64):
    found = []
    for cache in ("auto", "off"):
        config = tiny.make_config(
            photos, model__dtype="float64", model__weights=str(finished), cache__features=cache, epochs=1,
            transfer__train="head", augment__flip=False,
        )  # fmt: skip
        result = single_run.run(config, tmp_path / cache, console=QUIET)
        assert (result["features"] is not None) == (cache == "auto")
        found.append(jax.tree.leaves(saved_variables(tmp_path / cache, result["best_step"])))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
