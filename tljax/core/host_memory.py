"""How much memory the machine, or the container that we are in, has left."""

import contextlib
import os
from pathlib import Path


def available_memory() -> int:
    """Bytes that this process could still use, as far as the system tells; 4 GiB where it does not."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # a container's limit; 'max', no number, where it has none
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files read before count as used, but make room when asked.
        used = int((group / "memory.current").read_text()) - int(counts.get("inactive_file", 0))
        found.append(max(0, limit - used))
    if not found:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return min(found, default=4 << 30)
