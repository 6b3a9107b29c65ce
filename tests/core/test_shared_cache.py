"""Runs that share: images decoded once, features computed once, and the same numbers as alone."""

from tests import tiny
from tljax.core import shared_cache
from tljax.core.shared_cache import Memo
from tljax.data import pixels
from tljax.report.console import make_console
from tljax.train import feature_cache, single_run

QUIET = make_console(quiet=True)


def test_what_a_run_does_not_ask_for_makes_room():
    kept = Memo()
    for key in ("a", "b"):
        kept.get(key, lambda: object())
    a, b = kept.get("a", object), kept.get("b", object)
    kept.begin_run()
    assert kept.get("a", object) is a and kept.get("b", object) is b  # nothing new, nothing goes
    kept.begin_run()
    assert kept.get("a", object) is a
    kept.get("c", object)
    assert kept.get("a", object) is a and kept.get("b", object) is not b


def test_runs_that_share_are_what_they_are_alone(tmp_path, monkeypatch):
    folder = tiny.make_folder(tmp_path / "photos")
    decodings, computations = [], []
    decode_all, collect = pixels.decode_all, feature_cache.collect
    monkeypatch.setattr(pixels, "decode_all", lambda *a, **k: decodings.append(1) or decode_all(*a, **k))
    monkeypatch.setattr(feature_cache, "collect", lambda *a, **k: computations.append(1) or collect(*a, **k))

    def run(name, labels, seed):
        config = tiny.make_config(
            folder, transfer__train="head", transfer__allow_fresh_frozen=True, transfer__seed=0, cache__views=2,
            cache__seed=0, data__labels=labels, seed=seed,
        )  # fmt: skip
        return single_run.run(config, tmp_path / name, console=QUIET)

    alone = [run("a", "25%", 0), run("b", "50%", 1)]
    assert len(decodings) == 2 and len(computations) == 4  # training views and validation, each
    decodings.clear(), computations.clear()
    with shared_cache.sharing():
        together = [run("c", "25%", 0), run("d", "50%", 1), run("e", "25%", 0)]
    assert len(decodings) == 1 and len(computations) == 4  # those, and plain views of test and training images
    for one, other in zip([*alone, alone[0]], together, strict=True):
        assert one["history"] == other["history"] and one["test"] == other["test"]


def test_features_that_are_shared_take_no_more_memory(tmp_path, monkeypatch):
    """A study's later runs met a memory that its first one had filled, and computed all features again, into files."""
    folder, left = tiny.make_folder(tmp_path / "photos"), 2**40
    monkeypatch.setattr(feature_cache, "available_memory", lambda: left)

    def where(name, seed, views_seed):
        config = tiny.make_config(
            folder, transfer__train="head", transfer__allow_fresh_frozen=True, transfer__seed=0, cache__views=2,
            cache__seed=views_seed, seed=seed,
        )  # fmt: skip
        return single_run.run(config, tmp_path / name, console=QUIET)["features"]["in"]

    with shared_cache.sharing():
        assert where("a", 0, 0) == "memory"
        left = 0
        assert where("b", 1, 0) == "memory"
        assert where("c", 1, 1) == "file"
