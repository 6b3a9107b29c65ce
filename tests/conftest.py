"""Strict JAX on one CPU device, programs that compile quickly, and the real data where it is.

Tests marked `devices` need four: they run where `TLJAX_TEST_DEVICES=4` is set, and are skipped by name elsewhere.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEVICES = int(os.environ.get("TLJAX_TEST_DEVICES", "1"))
COMPILED = ROOT / "build" / "compiled"
MOST_COMPILED = 2 << 30  # bytes of compiled programs that are kept

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["TLJAX_CACHE"] = tempfile.mkdtemp(prefix="tljax-tests-")
# A program that several tests run is compiled once and kept: JAX finds it by its code, jaxlib's version and the flags.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from tests.commands import QUICK  # noqa: E402
from tljax.core.xla_flags import choose_libraries, compile_quickly, forget_programs  # noqa: E402

# What users compute with takes five times as long to compile; TLJAX_TEST_OPTIMIZED asks for it.
if QUICK:
    os.environ["MALLOC_ARENA_MAX"] = "8"  # for commands: what `tune_cpu` has the C library do compiles more slowly
    compile_quickly()
elif os.environ.get("TLJAX_TEST_LIBRARIES") != "xla":
    choose_libraries()

import filelock  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests import tiny  # noqa: E402
from tljax.report.console import make_console  # noqa: E402
from tljax.train import single_run  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Python would go through all that JAX and its programs keep again and again: 7% of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 50)

# Every run draws other examples, on CI too: what is found is printed in a form that repeats it, and nothing is timed.
settings.register_profile("short", max_examples=40, deadline=None, derandomize=False, print_blob=True)
settings.register_profile("wide", settings.get_profile("short"), max_examples=2000)  # --hypothesis-profile=wide
settings.load_profile("short")


def forget_compiled() -> None:
    """Throws compiled programs away when there are many: most are of code that has changed since."""
    if COMPILED.is_dir() and sum(entry.stat().st_size for entry in os.scandir(COMPILED)) > MOST_COMPILED:
        old = COMPILED.rename(COMPILED.with_name(f"compiled-{os.getpid()}"))
        COMPILED.mkdir(exist_ok=True)  # another pytest may be writing into it
        shutil.rmtree(old, ignore_errors=True)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """(name, function of a path) -> a folder that is made once for all workers; whoever gets it only reads it."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "once"
    root.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], Any]) -> Path:
        with filelock.FileLock(root / f"{name}.lock"):
            if not (root / f"{name}.made").exists():
                shutil.rmtree(root / name, ignore_errors=True)
                make(root / name)
                (root / f"{name}.made").touch()
        return root / name

    return made


@pytest.fixture(scope="session")
def photos(once):
    """A folder of 24 small pictures in each of three classes."""
    return once("photos", tiny.make_folder)


# These name the folder once more, since some files have `photos` of their own.
@pytest.fixture(scope="session")
def finished(once):
    """The folder of a finished run over `photos`, of three epochs, with pictures."""
    config = tiny.make_config(once("photos", tiny.make_folder), pictures=True)
    return once("run", lambda workdir: single_run.run(config, workdir, console=make_console(quiet=True)))


@pytest.fixture(scope="session")
def one_logit(once):
    """The folder of a finished run over two of the classes, blue and red, whose head has one output."""
    photos = once("photos", tiny.make_folder)
    pair = once("pair", lambda folder: shutil.copytree(photos, folder, ignore=shutil.ignore_patterns("green")))
    config = tiny.make_config(pair, loss__name="sigmoid", epochs=4)
    return once("one-logit", lambda workdir: single_run.run(config, workdir, console=make_console(quiet=True)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and weights; absent, its tests are skipped by name, or fail where CI is set."""
    folder = Path(os.environ.get("TLJAX_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data").is_dir():
        message = f"real data is absent: {folder}/data (set TLJAX_SHARED)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    if QUICK:
        message = "real data wants programs that run quickly: TLJAX_TEST_OPTIMIZED=1, or make test-real"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def torchvision():
    """The peer, without its compiled operators, which its models and transforms do not need."""
    torch = pytest.importorskip("torch")
    register = torch.library.register_fake
    torch.library.register_fake = lambda op, *a, **k: (
        (lambda f: f) if isinstance(op, str) and op.startswith("torchvision::") else register(op, *a, **k)
    )
    try:
        return pytest.importorskip("torchvision")
    finally:
        torch.library.register_fake = register


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


def pytest_collection_modifyitems(items):
    for item in items:
        if {"slow", "devices"} <= item.keywords.keys():
            raise pytest.UsageError(f"{item.nodeid} is marked slow and devices: no target would run it")


def pytest_runtest_setup(item):
    if "devices" in item.keywords and DEVICES < 4:
        pytest.skip("needs four fake devices: TLJAX_TEST_DEVICES=4, or make test-devices")


@pytest.fixture(autouse=True)
def few_programs():
    """Compiled programs of many tests must not fill the process's table of mappings."""
    yield
    forget_programs()


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        forget_compiled()
        shutil.rmtree(os.environ["TLJAX_CACHE"], ignore_errors=True)
