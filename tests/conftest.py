"""Strict JAX on four fake CPU devices, and the real data where it is."""

import os
import shutil
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
# A program that several tests run is compiled once; the processes of one pytest and the commands they start share it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["TLJAX_CACHE"] = tempfile.mkdtemp(prefix="tljax-tests-")
# One that is given outlives them, as CI has it for its stages.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["TLJAX_CACHE"] + "/xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from tljax.machine import choose_libraries, forget_programs

choose_libraries()  # what a user's run computes with

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Every run draws other examples, on CI too: what is found is printed in a form that repeats it, and nothing is timed.
settings.register_profile("short", max_examples=40, deadline=None, derandomize=False, print_blob=True)
settings.register_profile("wide", settings.get_profile("short"), max_examples=2000)  # --hypothesis-profile=wide
settings.load_profile("short")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and weights; absent, its tests are skipped by name, or fail where CI is set."""
    folder = Path(os.environ.get("TLJAX_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data").is_dir():
        message = f"real data is absent: {folder}/data (set TLJAX_SHARED)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
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


@pytest.fixture(autouse=True)
def few_programs():
    """Compiled programs of many tests must not fill the process's table of mappings."""
    yield
    forget_programs()


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["TLJAX_CACHE"], ignore_errors=True)
