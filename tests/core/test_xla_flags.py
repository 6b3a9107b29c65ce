"""What is set before JAX starts: our flags beside the user's, and none that this XLA may not know."""

import os
from types import SimpleNamespace

import pytest

from tljax.core import xla_flags


def flags():
    return dict(flag.partition("=")[::2] for flag in os.environ["XLA_FLAGS"].split())


@pytest.mark.parametrize("choose", [xla_flags.tune_cpu, xla_flags.compile_quickly])
def test_what_the_user_has_set_stays(monkeypatch, choose):
    given = {"--xla_backend_optimization_level": "3", "--xla_cpu_experimental_ynn_fusion_type": "conv"}
    monkeypatch.setenv("XLA_FLAGS", " ".join(f"{name}={value}" for name, value in given.items()))
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")  # so is what the user has said of malloc
    for _ in range(2):  # a second call adds nothing
        choose()
        assert given.items() <= flags().items()
        assert len(flags()) == len(os.environ["XLA_FLAGS"].split())


def test_another_jaxlib_gets_no_flag_that_it_may_not_know(monkeypatch):
    """XLA ends a process that names one."""
    monkeypatch.setattr(xla_flags.importlib.metadata, "version", lambda _: "0.99.0")
    monkeypatch.setenv("XLA_FLAGS", "")
    xla_flags.choose_libraries()
    assert flags() == {}
    xla_flags.compile_quickly()
    assert set(flags()) == {"--xla_backend_optimization_level", "--xla_llvm_disable_expensive_passes"}


def test_freed_memory_is_kept_unless_the_user_has_set_malloc(monkeypatch):
    said = []
    library = SimpleNamespace(mallopt=lambda option, value: said.append((option, value)))
    monkeypatch.setattr(xla_flags.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(xla_flags.sys, "platform", "linux")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    xla_flags.keep_memory()
    assert said == []
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    xla_flags.keep_memory()
    # malloc.h: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    assert dict(said) == {-8: 1, -4: 0, -1: -1, -2: 2**28}
