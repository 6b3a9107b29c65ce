"""A disk that is full, or may not be written to: one line, and what was there stays."""

import subprocess

import pytest

from tests import commands
from tests.same import differences

pytestmark = pytest.mark.slow

OVERRIDES = {
    "data.split": "50/25/25", "data.resize": 40, "data.size": 32, "model.weights": "None", "model.width": 32,
    "model.blocks": "(1,1)", "transfer.train": "all", "epochs": 6, "batch_size": 8, "augment.crop": "center",
}  # fmt: skip


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 16 MB; `disk(options)` mounts it anew with others."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)

    if (made := mount("-t", "tmpfs", "-o", "size=16m", "tmpfs")).returncode:
        pytest.skip(f"no file system of a given size can be had here: {made.stderr.strip()}")
    try:
        yield folder, lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def overrides(photos):
    return {"data.source": f"folder:{photos}", **OVERRIDES}


@pytest.fixture(scope="module")
def whole(overrides, once):
    """A run that had room."""

    def train(workdir):
        found = commands.run("configs/folder.py", workdir, overrides)
        assert found.returncode == 0, found.stderr

    return once("full-disk", train)


def one_line(found, *words):
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("tljax: ")]
    for word in words:
        assert word in line, line
    return line


def fill(folder, left):
    """Leaves so many bytes of a disk."""
    with (folder / "film.mp4").open("wb") as file:
        try:
            while True:
                file.write(bytes(65536))
                file.flush()
        except OSError:
            pass
    with (folder / "film.mp4").open("r+b") as file:
        file.truncate((folder / "film.mp4").stat().st_size - left)


@pytest.mark.parametrize("left", [20_000, 1_200_000])
def test_a_full_disk_ends_with_one_line_and_room_lets_the_same_command_go_on(disk, overrides, whole, left):
    folder, _ = disk
    fill(folder, left)
    found = commands.run("configs/folder.py", folder / "run", overrides)
    one_line(found, "No space left on device", "goes on from there")
    (folder / "film.mp4").unlink()
    found = commands.run("configs/folder.py", folder / "run", overrides)
    assert found.returncode == 0, found.stderr
    assert differences(whole, folder / "run")[0] == []


def test_a_disk_that_may_not_be_written_to_is_one_line(disk, overrides):
    folder, remount = disk
    remount("ro")
    one_line(commands.run("configs/folder.py", folder / "run", overrides), str(folder / "run"), "Read-only file system")
    remount("rw")
    assert list(folder.iterdir()) == []
