"""What a process sets before JAX starts, so that XLA's CPU backend is as fast as it can be.

Nothing here changes a result beyond rounding, and nothing touches what the user has set.
"""

import ctypes
import gc
import importlib.metadata
import os
import sys
from pathlib import Path

# From glibc's malloc.h. One arena, no mapping of large blocks, nothing given back: XLA takes the temporary memory of a
# step, a gigabyte, and frees it at every step, and faulting those pages in anew costs more than many of the layers.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
# XLA hands convolutions to YNNPACK by default, whose weight gradients take 2 to 4 times as long as Eigen's.
YNNPACK_FUSIONS = "--xla_cpu_experimental_ynn_fusion_type=dot,reduce"
# What compiles sooner and runs slower: no optimization by LLVM, and XLA's older way to emit a fused loop.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
MEASURED = ("0.10.",)  # versions of jaxlib that have these flags; XLA ends a process that names one it does not know
MANY_MAPPINGS = 10_000  # of the 65,530 that Linux allows a process
MUCH_MEMORY = 2 << 30  # bytes that a process has taken since programs were last forgotten
DETERMINISTIC = "--xla_gpu_deterministic_ops"

_left = 0  # bytes that were still there when programs had been forgotten


def tune_cpu() -> None:
    """Chooses XLA's libraries and keeps freed memory, as measured in docs/cpu.md. Call it before JAX computes."""
    choose_libraries()
    keep_memory()


def choose_libraries() -> None:
    """Leaves convolutions to Eigen."""
    if importlib.metadata.version("jaxlib").startswith(MEASURED):
        _add_flags(YNNPACK_FUSIONS)


def _add_flags(flags: str) -> None:
    """Adds to XLA_FLAGS what is not set there yet."""
    there = os.environ.get("XLA_FLAGS", "").split()
    named = {flag.partition("=")[0] for flag in there}
    os.environ["XLA_FLAGS"] = " ".join(
        [*there, *(flag for flag in flags.split() if flag.partition("=")[0] not in named)]
    )


def keep_memory() -> None:
    """Has malloc keep what is freed. Compiling takes half as long again: its threads share the one arena."""
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries
        if mallopt is not None:
            for option, value in (
                (M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 2**28),
            ):  # fmt: skip
                mallopt(option, value)


def compile_quickly() -> None:
    """For programs that do next to nothing, in place of `tune_cpu`: most of their time is compiling, so XLA is to leave
    them unoptimized, and malloc as it is. A tiny run compiles in a fifth of the time. Call it before JAX computes."""
    choose_libraries()
    _add_flags(QUICK)
    if importlib.metadata.version("jaxlib").startswith(MEASURED):
        _add_flags(OLDER_EMITTERS)


def make_deterministic() -> None:
    """Has XLA compute the same bits on a GPU each time; on a CPU it does anyway. Call it before JAX computes.

    The flag leaves no order of sums to chance, and takes no kernel because it was the fastest this time.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}=true".strip()


def is_deterministic() -> bool:
    """Whether XLA was told to compute the same bits on a GPU each time."""
    told = [flag.partition("=") for flag in os.environ.get("XLA_FLAGS", "").split()]
    values = [value for name, _, value in told if name == DETERMINISTIC]
    return bool(values) and values[-1].lower() in ("", "1", "true")


def forget_programs() -> None:
    """Drops JAX's compiled programs when there are many, or when they have taken much memory, and gives that back.

    Each program is mapped into memory piece by piece, JAX keeps them all, and a process that has reached the kernel's
    limit of mappings dies of a segmentation fault. What they took, and what `tune_cpu` has the C library keep,
    is as good as lost to other processes.
    """
    global _left
    import jax

    maps = Path("/proc/self/maps")
    if maps.exists() and (maps.read_bytes().count(b"\n") > MANY_MAPPINGS or _resident() > _left + MUCH_MEMORY):
        jax.clear_caches()
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent from other C libraries than GNU's
        if trim is not None:
            trim(0)
        _left = _resident()


def _resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
