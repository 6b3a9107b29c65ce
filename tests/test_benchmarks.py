"""The driver of the benchmarks, on the row that is quick."""

import json
import subprocess
import sys

import pytest

from tests import commands


def bench(shared, *arguments):
    return subprocess.run(
        [sys.executable, "benchmarks/run.py", *map(str, arguments)], capture_output=True, text=True, check=False,
        env=commands.environment(TLJAX_SHARED=str(shared)),
    )  # fmt: skip


@pytest.mark.peer
@pytest.mark.real_data
def test_a_row_beside_pytorch(shared, torchvision, tmp_path):
    out = tmp_path / "results.json"
    out.write_text(json.dumps({"machine": "another", "versions": {}, "rows": [{"work": "full"}]}))
    found = bench(shared, "--rows", "augment", "--out", out)
    assert found.returncode == 0, found.stderr
    written = json.loads(out.read_text())
    (row,) = written["rows"]  # what another machine measured is gone
    assert row["work"] == "augment"
    assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert written["versions"]["torch"]
    assert "| `augment` |" in found.stdout


@pytest.mark.slow
def test_what_cannot_be_measured_is_said_at_once(tmp_path):
    for arguments, words in ((("--rows", "ful"), "no ful; there are grid-head"), ((), "set TLJAX_SHARED")):
        found = bench(tmp_path, *arguments)
        assert found.returncode == 2
        assert words in found.stderr.splitlines()[-1]
