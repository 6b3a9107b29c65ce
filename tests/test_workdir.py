"""Files that are whole, whoever writes them."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from tljax import workdir as folders
from tljax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
WRITER = """
import sys
from pathlib import Path
from tljax.workdir import write_whole
for _ in range(300):
    write_whole(Path(sys.argv[1]), sys.argv[2] * 50_000)
"""


def test_two_processes_may_write_one_file(tmp_path):
    """As two commands that share a folder of studies write its tables."""
    path = tmp_path / "table.md"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, letter], cwd=ROOT) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert path.read_text() in ("a" * 50_000, "b" * 50_000)
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_of_arrays_is_refused_whatever_is_in_it(tmp_path):
    path, rng, refused = tmp_path / "arrays.npz", random.Random(0), 0
    folders.write_arrays(path, names=np.array(["a", "b"]), values=np.arange(100.0))
    content = path.read_bytes()
    for _ in range(1000):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            damaged[rng.randrange(len(damaged))] = rng.choice((rng.randrange(256), 0, 255, 127))
        path.write_bytes(damaged)
        try:
            folders.read_arrays(path, "names", "values")
        except UserError:
            refused += 1
    assert refused > 100


def test_what_a_killed_process_left_half_written_is_in_nobodys_way(tmp_path):
    (tmp_path / "config.json.123.part").write_text("{")
    folders.check_free(tmp_path, {})
    folders.claim(tmp_path, {"a": {"b": 1}})
    assert (tmp_path / "config.json").is_file()
