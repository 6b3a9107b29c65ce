"""Every kind of bad image is read right or skipped with a reason; none stops a run, hangs, or takes the memory."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.data import bad_images
from tljax.data.decode import Unreadable, decode
from tljax.report.console import make_console
from tljax.train import single_run

KINDS = bad_images.kinds()
ROOT = Path(__file__).resolve().parents[2]


def test_there_are_at_least_sixty():
    assert len(KINDS) + 8 >= 60


def outcome(data: bytes) -> tuple[np.ndarray | None, str]:
    try:
        return decode(data, short_side=32), ""
    except Unreadable as error:
        return None, error.reason


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", KINDS)
def test_it_is_read_right_or_has_a_reason(name):
    kind = KINDS[name]
    found, reason = outcome(kind.data)
    if kind.read is not None:
        assert (found is not None) == kind.read, reason
    if found is None:
        assert re.search(kind.reason, reason)
        assert reason.isprintable()
        assert len(reason) < 160
        return
    height, width, channels = found.shape
    assert (found.dtype, min(height, width), channels) == (np.uint8, 32, 3)
    if kind.quarters != ():
        colors = bad_images.COLORS if kind.quarters is None else kind.quarters
        for color, (y, x) in zip(colors, ((1, 1), (1, 3), (3, 1), (3, 3)), strict=True):
            seen = found[height * y // 4, width * x // 4].astype(int)
            assert np.abs(seen - color).max() <= 25, (seen, color)


def test_none_takes_the_memory():
    """Decompression bombs among them: all in one process that may grow by 400 MB."""
    program = (
        "import resource; from tests.data import bad_images; from tljax.data.decode import Unreadable, decode\n"
        "kinds = bad_images.kinds()\n"
        "decode(kinds['picture.tiff'].data, short_side=32)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for kind in kinds.values():\n"
        "    try: decode(kind.data, short_side=32)\n"
        "    except Unreadable: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    grown = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 400e6
    assert done.stderr == ""


def test_a_folder_full_of_them_trains(tmp_path):
    """Each is trained on or skipped; none is lost, and each reason is told."""
    folder = tiny.make_folder(tmp_path / "photos")
    mess = folder / "red"
    for name, kind in KINDS.items():
        (mess / name).write_bytes(kind.data)
    for name in bad_images.NAMES:
        (mess / name).write_bytes(bad_images.encoded("PNG"))
    told = bad_images.litter(mess)
    (mess / "deep").mkdir()
    (mess / "deep" / os.fsdecode(b"caf\xe9.png")).write_bytes(bad_images.encoded("PNG"))
    config = tiny.make_config(folder, data__split="50/25/25", epochs=1)
    result = single_run.run(config, tmp_path / "run", console=make_console(quiet=True))
    skipped = {name.removeprefix("red/"): reason for name, reason in result["skipped"]["files"]}
    assert len(skipped) == result["skipped"]["count"]
    for name, reason in told.items():
        assert reason in skipped.pop(name)
    for name, kind in KINDS.items():
        if kind.read is not None:
            assert (name in skipped) == (not kind.read), name
    assert skipped.keys() <= KINDS.keys()
    seen = sum(result[part][key] for part, key in (("train", "images"), ("validation", "seen"), ("test", "seen")))
    assert seen == 3 * 24 + len(KINDS) + len(bad_images.NAMES) + 1 - len(skipped)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 8e9
