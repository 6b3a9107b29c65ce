"""Runs `python -m tljax.main` as a user does."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEVICES = "--xla_force_host_platform_device_count"
QUICK = "TLJAX_TEST_OPTIMIZED" not in os.environ
# A run of seconds on `tiny.make_folder`'s pictures: what `tiny.make_config` has, for a command line.
TINY = {
    "data.split": "50/25/25", "data.resize": 40, "data.size": 32, "model.weights": "None", "model.width": 4,
    "model.blocks": "(1,1)", "transfer.train": "all", "epochs": 3, "batch_size": 8, "optimizer.lr": 3e-3,
    "augment.crop": "center", "pictures": False, "trackers": "()",
}  # fmt: skip


def command(config: str, workdir: Path, overrides: dict[str, Any], *flags: str) -> list[str]:
    """The command line; overrides by dotted name."""
    values = [f"--config.{name}={value}" for name, value in overrides.items()]
    return [sys.executable, "-m", "tljax.main", "--config", config, "--workdir", str(workdir), *flags, *values]


def start(config: str, workdir: Path, overrides: dict[str, Any], *flags: str, devices: int = 1, cwd: Path = ROOT,
          **more: str) -> subprocess.Popen[str]:  # fmt: skip
    """Starts a command, in a folder that relative paths begin at."""
    return subprocess.Popen(
        command(str(ROOT / config), workdir, overrides, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment(devices=devices, PYTHONPATH=str(ROOT), **more), cwd=cwd,
    )  # fmt: skip


def environment(*, devices: int = 1, quick: bool = QUICK, **more: str) -> dict[str, str]:
    """This process's environment with so many fake CPU devices; not `quick`, programs are compiled as users' are."""
    flags, kept = [f"{DEVICES}={devices}"], dict(os.environ)
    if quick:
        flags += [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(DEVICES)]
    else:
        kept.pop("MALLOC_ARENA_MAX", None)
    return {**kept, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu", **more}


def run(config: str, workdir: Path, overrides: dict[str, Any], *, devices: int = 1,
        **more: str) -> subprocess.CompletedProcess[str]:  # fmt: skip
    return subprocess.run(
        command(config, workdir, overrides), capture_output=True, text=True, check=False,
        env=environment(devices=devices, **more),
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_processes(config: str, workdir: Path, overrides: dict[str, Any], *, processes: int, devices: int = 1,
                    own: dict[int, dict[str, Any]] | None = None,
                    cwd: dict[int, Path] | None = None) -> list[subprocess.Popen[str]]:  # fmt: skip
    """Starts one command as several processes on this machine; `own` has overrides, `cwd` folders of single ones."""
    address, several = f"--coordinator=127.0.0.1:{free_port()}", f"--processes={processes}"
    return [
        start(config, workdir, overrides | (own or {}).get(i, {}), address, several, f"--process={i}", devices=devices,
              cwd=(cwd or {}).get(i, ROOT))
        for i in range(processes)
    ]  # fmt: skip


def ends(running: Sequence[subprocess.Popen[str]], *, timeout: float = 300) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of processes, all of which end within `timeout` seconds or are killed."""
    until = time.monotonic() + timeout
    try:
        outputs = [process.communicate(timeout=max(0.1, until - time.monotonic())) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(p.returncode, *out) for p, out in zip(running, outputs, strict=True)]


def run_processes(config: str, workdir: Path, overrides: dict[str, Any], **options: Any) -> list[tuple[int, str, str]]:
    """Runs one command as several processes; (exit status, stdout, stderr) of each."""
    return ends(start_processes(config, workdir, overrides, **options))
