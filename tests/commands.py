"""Runs `python -m tljax.main` as a user does."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def command(config: str, workdir: Path, overrides: dict[str, Any], *flags: str) -> list[str]:
    """The command line; overrides by dotted name."""
    values = [f"--config.{name}={value}" for name, value in overrides.items()]
    return [sys.executable, "-m", "tljax.main", "--config", config, "--workdir", str(workdir), *flags, *values]


def environment(*, devices: int = 1, **more: str) -> dict[str, str]:
    """This process's environment with so many fake CPU devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu", **more}


def run(config: str, workdir: Path, overrides: dict[str, Any], *, devices: int = 1,
        **more: str) -> subprocess.CompletedProcess[str]:  # fmt: skip
    return subprocess.run(
        command(config, workdir, overrides), capture_output=True, text=True, check=False,
        env=environment(devices=devices, **more),
    )  # fmt: skip


def run_processes(config: str, workdir: Path, overrides: dict[str, Any], *, processes: int, devices: int = 1,
                  timeout: float = 600) -> Sequence[tuple[int, str, str]]:  # fmt: skip
    """Runs one command as several processes on this machine; (exit status, stdout, stderr) of each."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    running = [
        subprocess.Popen(
            command(config, workdir, overrides, "--coordinator", f"127.0.0.1:{port}", "--processes", str(processes),
                    "--process", str(i)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(devices=devices),
        )
        for i in range(processes)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(p.returncode, *out) for p, out in zip(running, outputs, strict=True)]
