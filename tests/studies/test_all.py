"""Every study, tiny, as a user runs them: killed at random in one folder, left alone in another, side by side."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tljax.studies import LOOKS, STUDIES

pytestmark = pytest.mark.studies
ROOT = Path(__file__).resolve().parents[2]
KILLS = 5


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tljax.study", "run", "all", "--scale", "tiny", "--seeds", "1"]
    quiet = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.Popen([*command, "--folder", str(folder)], cwd=ROOT, env=quiet, stdout=subprocess.DEVNULL)


@pytest.mark.timeout(1500)
def test_killed_at_random_all_end_with_the_same_tables(tmp_path):
    alone = start(tmp_path / "alone")
    for _ in range(KILLS):
        killed = start(tmp_path / "killed")
        seconds = random.uniform(15, 50)
        print(f"killed after {seconds:.1f} s")
        time.sleep(seconds)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert start(tmp_path / "killed").wait() == 0
    assert alone.wait() == 0
    for name in (*STUDIES, *LOOKS):
        tables = [(tmp_path / folder / "tiny" / name / "table.md").read_text() for folder in ("alone", "killed")]
        assert "TINY" in tables[0]
        assert "missing" not in tables[0]
        assert "not run" not in tables[0]
        if name != "002-seconds":  # what it measures is time
            assert tables[0] == tables[1]
        assert (tmp_path / "killed/tiny" / name / "report.html").stat().st_size > 5000
