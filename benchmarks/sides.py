"""The two sides of a benchmark as processes: ours as a user starts it, the peer as a worker that waits for commands."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNNING: set[subprocess.Popen[str]] = set()  # of both sides


def stop() -> None:
    """Ends what is running, so that nothing outlives the benchmark."""
    for process in [*RUNNING]:
        process.terminate()


class Peer:
    """A worker such as `peer_torch.py`: one JSON command per line, one JSON answer per line."""

    def __init__(self, script: str):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        RUNNING.add(self.process)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """One command. Raises RuntimeError with the worker's line where it fails."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps({"do": do, **fields}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise RuntimeError(f"the peer, asked to {do}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Lets it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        RUNNING.discard(self.process)


def run_ours(config: str, overrides: Mapping[str, Any], workdir: Path, cache: Path) -> dict[str, Any]:
    """`python -m tljax.main` from its start to its end; programs are compiled into `cache`.

    Returns:
      Its result.json, with `wall` and `cpu` seconds and the `peak` bytes of the process.

    Raises:
      RuntimeError: with the end of what it printed, where it fails.
    """
    values = [f"--config.{name}={value}" for name, value in overrides.items()]
    command = [sys.executable, "-m", "tljax.main", "--config", config, "--workdir", str(workdir)]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    began = time.perf_counter()
    with subprocess.Popen(
        [*command, *values], cwd=ROOT, env=environment | {"TLJAX_CACHE": str(cache)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        RUNNING.add(process)
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        RUNNING.discard(process)
    wall = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(values)}: {said.strip()[-500:]}")
    result = json.loads((workdir / "result.json").read_text())
    return result | {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024}


def machine(peer_versions: Mapping[str, Any]) -> dict[str, Any]:
    """Where this is measured, with what."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    name = models[0].partition(":")[2].strip() if models else platform.processor()
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {
        "machine": {"cpu": name, "cores": os.cpu_count(), "system": platform.platform(terse=True)},
        "versions": {"python": platform.python_version(), **versions, **peer_versions},
    }
