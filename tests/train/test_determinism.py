"""Same config, same numbers, bit for bit, whatever the run was given to work with."""

import contextlib
import os

import jax
import pytest

from tests import commands, same, tiny
from tljax.core.errors import UserError
from tljax.core.xla_flags import is_deterministic, make_deterministic
from tljax.report.console import make_console
from tljax.train import single_run

QUIET = make_console(quiet=True)
KEPT = {"transfer__train": "head", "transfer__allow_fresh_frozen": True, "cache__views": 2}  # features of a frozen part


def ran(photos, workdir, **overrides):
    settings = {"epochs": 2, "model__dropout": 0.2} | overrides
    single_run.run(tiny.make_config(photos, **settings), workdir, console=QUIET)
    return workdir


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory):
    return ran(photos, tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="module")
def kept(photos, tmp_path_factory):
    return ran(photos, tmp_path_factory.mktemp("runs") / "kept", **KEPT)


@pytest.mark.parametrize(
    "given",
    [{}, {"data__workers": 1}, {"data__workers": 2}, {"data__workers": 5}, {"data__memory_gb": 1e-7},
     {"data__placement": "device"}],
    ids=str,
)  # fmt: skip
def test_what_images_are_loaded_with_changes_no_bit(photos, plain, tmp_path, given):
    same.check_same(ran(photos, tmp_path / "run", **given), plain)


@pytest.mark.parametrize("given", [{}, {"cache__memory_gb": 1e-7}, {"data__placement": "device"}], ids=str)
def test_where_features_are_kept_changes_no_bit(photos, kept, tmp_path, given):
    same.check_same(ran(photos, tmp_path / "run", **KEPT, **given), kept)


def test_the_order_in_which_a_disk_lists_its_files_changes_no_bit(photos, plain, tmp_path, monkeypatch):
    listed = os.scandir

    @contextlib.contextmanager
    def backwards(path):
        with listed(path) as entries:
            yield iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr("tljax.data.folder.os.scandir", backwards)
    same.check_same(ran(photos, tmp_path / "run"), plain)


@pytest.mark.slow
def test_neither_hashes_nor_place_nor_time_zone_nor_language_change_a_bit(photos, tmp_path):
    """Rounds of pseudo-labels in processes of their own: names, draws and files pass through every kind of code."""
    overrides = commands.TINY | {
        "data.source": f"folder:{photos}", "epochs": 2, "batch_size": 10, "data.labels": "25%",
        "semi.method": "pseudo_label", "semi.select": "top_per_class", "semi.share": 0.5, "augment.rand_ops": 1,
    }  # fmt: skip
    there = tmp_path / "elsewhere"
    there.mkdir()
    running = [
        commands.start("configs/folder.py", tmp_path / "one", overrides, PYTHONHASHSEED="1", TZ="UTC", LC_ALL="C"),
        commands.start(
            "configs/folder.py", tmp_path / "two", overrides | {"deterministic": True, "data.workers": 5}, cwd=there,
            PYTHONHASHSEED="2", TZ="Asia/Kathmandu", LC_ALL="tr_TR.UTF-8",
        ),
    ]  # fmt: skip
    for status, _, err in commands.ends(running):
        assert status == 0, err
    same.check_same(
        tmp_path / "two", tmp_path / "one", but=("config.deterministic", "config.data.pseudo", "record.config")
    )
    assert not list(there.iterdir())


@pytest.mark.parametrize("before", ["", "--xla_a=1", "--xla_gpu_deterministic_ops=true", "--xla_gpu_deterministic_ops"])
def test_the_switch_for_gpus_is_one_flag_beside_others(monkeypatch, before):
    monkeypatch.setenv("XLA_FLAGS", before)
    make_deterministic()
    assert is_deterministic()
    assert os.environ["XLA_FLAGS"].count("deterministic") == 1
    assert os.environ["XLA_FLAGS"].startswith(before)


def test_a_gpu_that_was_told_too_late_or_otherwise_is_refused(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # there is none here
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
    make_deterministic()  # leaves alone what the user has set
    with pytest.raises(UserError, match="XLA_FLAGS=--xla_gpu_deterministic_ops=true"):
        ran(photos, tmp_path / "run", deterministic=True)
    assert not (tmp_path / "run").exists()
