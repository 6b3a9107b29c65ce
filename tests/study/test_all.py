"""Studies, tiny, as a user runs them: by two commands in one folder, of which one is killed at random moments.

All of them, or those that TLJAX_STUDIES names, with commas between.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tljax.study import LOOKS, STUDIES

pytestmark = pytest.mark.studies
ROOT = Path(__file__).resolve().parents[2]
KILLS = 2
SAMPLE = ("000-table2", "001-fig2", "002-table6", "004-table2")  # single runs, chains of runs, populations
NAMES = os.environ.get("TLJAX_STUDIES", "all")


def start(folder: Path, names: str = NAMES) -> subprocess.Popen:
    command = [sys.executable, "-m", "tljax.study", "run", names, "--scale", "tiny", "--seeds", "1"]
    # A cache of its own: JAX writes a program in place, and one that was cut short would be compiled anew for ever.
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    return subprocess.Popen([*command, "--folder", str(folder)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.timeout(2400)
def test_killed_at_random_all_are_done_and_end_with_the_same_tables(tmp_path):
    steady = start(tmp_path / "killed")
    for _ in range(KILLS):
        killed = start(tmp_path / "killed")
        seconds = random.uniform(15, 40)
        print(f"killed after {seconds:.1f} s")
        time.sleep(seconds)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    steady.send_signal(signal.SIGKILL)  # what it was at is left half done, too
    steady.wait()
    again = start(tmp_path / "killed"), start(tmp_path / "killed")
    assert [process.wait() for process in again] == [0, 0]
    everything = (*STUDIES, *LOOKS)
    names = everything if NAMES == "all" else NAMES.split(",")
    assert set(names) <= set(everything)
    for name in names:
        table = (tmp_path / "killed/tiny" / name / "table.md").read_text()
        assert "TINY" in table
        assert "missing" not in table
        assert "not run" not in table
        assert (tmp_path / "killed/tiny" / name / "report.html").stat().st_size > 5000

    sample = [name for name in SAMPLE if name in names]
    undisturbed = [start(tmp_path / "alone", ",".join(sample)) for _ in range(2)]
    assert [process.wait() for process in undisturbed] == [0, 0]
    for name in sample:
        alone, after = ((tmp_path / folder / "tiny" / name / "table.md").read_text() for folder in ("alone", "killed"))
        assert alone == after
