import dataclasses
import errno
import os
import threading

import numpy as np
import pytest
from PIL import Image

from tljax.core.errors import UserError
from tljax.data import pixels as pixels_module
from tljax.data.folder import open_folder
from tljax.data.pixels import decode_all, drop
from tljax.data.source import Source


@pytest.fixture
def source(tmp_path):
    """Twelve images of different sizes and two that are none, indices 1 and 8."""
    rng = np.random.default_rng(0)
    for cls in "ab":
        (tmp_path / "photos" / cls).mkdir(parents=True)
        for i in range(6):
            image = rng.integers(0, 256, (20 + 3 * i, 50 - 4 * i, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / "photos" / cls / f"{i}.png")
    (tmp_path / "photos/a/0bad.png").write_bytes(b"")
    (tmp_path / "photos/b/0bad.png").write_bytes(b"GIF89a")
    return open_folder(tmp_path / "photos")


def same(one, other):
    return (
        np.array_equal(one.sizes, other.sizes)
        and one.skipped == other.skipped
        and all(np.array_equal(one.image(i), other.image(i)) for i in np.flatnonzero(one.held))
    )


def test_images_lie_by_index_and_bad_ones_are_named(source):
    pixels = decode_all(source, np.arange(len(source)), short_side=16)
    assert [name for name, _ in pixels.skipped] == ["a/0bad.png", "b/0bad.png"]
    assert pixels.skipped[0][1] == "an empty file"
    assert np.flatnonzero(~pixels.held).tolist() == [1, 8]
    assert (pixels.sizes[pixels.held].min(axis=1) == 16).all()
    assert pixels.sizes.dtype == np.int32
    assert pixels.buffer.nbytes == (pixels.sizes.prod(axis=1) * 3).sum()  # no padding
    assert pixels.image(0).shape == (16, 32, 3)  # of 20 x 50, the middle that is twice as long as high
    with pytest.raises(KeyError):
        pixels.image(1)


def test_only_what_is_asked_for_is_decoded(source):
    asked = set()

    def read(index):
        asked.add(index)
        return source.read(index)

    pixels = decode_all(dataclasses.replace(source, read=read), np.array([5, 2, 5]), short_side=16)
    assert asked == {2, 5}
    assert np.flatnonzero(pixels.held).tolist() == [2, 5]


@pytest.mark.parametrize("spilled", [False, True])
def test_any_number_of_workers_gives_the_same(source, tmp_path, spilled):
    results = []
    for workers in (1, 2, 7):
        spill = tmp_path / f"cache{workers}" if spilled else None
        limit = 3000 if spilled else None
        results.append(
            decode_all(source, np.arange(14), short_side=16, workers=workers, spill=spill, memory_bytes=limit)
        )
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    if spilled:
        assert (tmp_path / "cache1").read_bytes() == (tmp_path / "cache7").read_bytes()


def test_no_more_work_is_taken_on_than_workers_can_do(source):
    running, most, lock = [0], [0], threading.Lock()
    read_ahead = [0]

    def read(index):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            read_ahead[0] = max(read_ahead[0], index)
        data = source.read(index)
        with lock:
            running[0] -= 1
        return data

    many = Source("x", ("x",) * 200, np.zeros(200, np.int32), ("x",), lambda index: read(index % 14))
    seen = []
    decode_all(many, np.arange(200), short_side=16, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert most[0] <= 2
    assert seen == [(i + 1, 200) for i in range(200)]


def test_what_outgrows_memory_goes_on_in_a_file_and_is_used_again(source, tmp_path):
    in_memory = decode_all(source, np.arange(14), short_side=16)
    spill = tmp_path / "deep" / "cache"
    first = decode_all(source, np.arange(14), short_side=16, memory_bytes=4000, spill=spill)
    assert isinstance(first.buffer.base, np.memmap) or isinstance(first.buffer, np.memmap)
    assert same(in_memory, first)
    assert os.listdir(spill.parent) == ["cache"]

    unread = dataclasses.replace(source, read=Unread(source.read))
    again = decode_all(unread, np.arange(14), short_side=16, memory_bytes=4000, spill=spill)
    assert same(in_memory, again)
    with pytest.raises(ValueError, match="read-only"):
        again.image(0)[:] = 0


class Unread:
    """Knows the files, but must not be asked to read one."""

    def __init__(self, files):
        self.stamp = files.stamp

    def __call__(self, index):
        raise AssertionError(f"image {index} was read again")


def test_a_cache_of_something_else_is_replaced(source, tmp_path):
    spill = tmp_path / "cache"

    def decoded(short_side=16, indices=14):
        return decode_all(source, np.arange(indices), short_side=short_side, memory_bytes=1000, spill=spill)

    decoded()
    assert same(decoded(short_side=18), decode_all(source, np.arange(14), short_side=18))
    assert same(decoded(indices=9), decode_all(source, np.arange(9), short_side=16))
    path = source.read._paths[0]
    Image.new("RGB", (44, 44), "red").save(path)
    assert (decoded(indices=9).image(0) == (255, 0, 0)).all()
    whole = spill.read_bytes()
    for damaged in (whole[:-100], whole[50:], b"tljaxpx1", whole[:-16] + b"\xff" * 8 + whole[-8:]):
        spill.write_bytes(damaged)
        if not damaged.endswith(b"tljaxpx1"):
            with pytest.raises(UserError, match="is no cache of decoded images"):
                decoded(indices=9)
        else:
            assert same(decoded(indices=9), decode_all(source, np.arange(9), short_side=16))


def test_a_file_of_the_users_is_never_replaced(source, tmp_path):
    (tmp_path / "thesis.doc").write_text("important")
    with pytest.raises(UserError, match="is no cache of decoded images and will not be replaced"):
        decode_all(source, np.arange(14), short_side=16, memory_bytes=0, spill=tmp_path / "thesis.doc")
    assert (tmp_path / "thesis.doc").read_text() == "important"


def test_without_a_file_too_many_images_are_an_error(source):
    with pytest.raises(UserError, match=r"14 decoded images need about .* GB, more than this machine can give"):
        decode_all(source, np.arange(14), short_side=16, memory_bytes=4000)


def test_a_full_disk_is_one_line_and_leaves_nothing(source, tmp_path, monkeypatch):
    real = os.fdopen

    class Full:
        def __init__(self, handle, mode):
            self.file = real(handle, mode)

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            self.file.close()

    monkeypatch.setattr(pixels_module.os, "fdopen", Full)
    with pytest.raises(UserError, match=r"cannot keep the decoded images in .*No space left on device") as caught:
        decode_all(source, np.arange(14), short_side=16, memory_bytes=4000, spill=tmp_path / "c" / "cache")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "c") == []


def test_an_interruption_leaves_no_half_file(source, tmp_path):
    def stop(done, total):
        if done == 12:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        decode_all(source, np.arange(14), short_side=16, memory_bytes=1000, spill=tmp_path / "c" / "x", progress=stop)
    assert os.listdir(tmp_path / "c") == []
    assert threading.active_count() == before


def test_files_that_vanish_are_skipped(source):
    os.unlink(source.read._paths[0])
    pixels = decode_all(source, np.arange(14), short_side=16)
    assert pixels.skipped[0] == ("a/0.png", "cannot be read: No such file or directory")


def test_splits_lose_what_was_skipped_but_never_everything(source):
    pixels = decode_all(source, np.arange(14), short_side=16)
    left = drop({"train": np.array([0, 1, 2]), "val": np.array([8, 9])}, pixels)
    assert left["train"].tolist() == [0, 2]
    assert left["val"].tolist() == [9]
    with pytest.raises(UserError, match=r"none of the 2 images of val can be read, such as 'a/0bad.png': an empty"):
        drop({"train": np.array([0]), "val": np.array([1, 8])}, pixels)


def test_decoded_arrays_as_procedural_sources_give_them():
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    drawn = Source("shapes", tuple("abcde"), np.zeros(5, np.int32), ("x", "y"), lambda index: images[index])
    pixels = decode_all(drawn, np.arange(5), short_side=16)
    assert all(np.array_equal(pixels.image(i), images[i]) for i in range(5))


def test_contents_are_of_what_is_in_the_files_and_stay_with_the_pixels(source, tmp_path):
    indices, options = np.arange(len(source)), {"short_side": 16, "spill": tmp_path / "cache"}
    first = decode_all(source, indices, memory_bytes=3000, **options)
    again = decode_all(source, indices, memory_bytes=3000, **options)  # from the file
    memory = decode_all(source, indices, short_side=16)
    for one in (again, memory):
        np.testing.assert_array_equal(one.contents, first.contents)
    assert np.flatnonzero(first.contents == b"").tolist() == [1, 8]
    assert len(set(first.contents.tolist())) == 13


def test_files_that_change_places_and_keep_their_times_are_decoded_again(source, tmp_path):
    options = {"short_side": 16, "spill": tmp_path / "cache", "memory_bytes": 3000}
    before = decode_all(source, np.arange(len(source)), **options)
    one, other = tmp_path / "photos/a/0.png", tmp_path / "photos/b/0.png"
    contents, times = (one.read_bytes(), other.read_bytes()), os.stat(one)
    for path, content in zip((other, one), contents, strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = decode_all(source, np.arange(len(source)), **options)
    places = [source.names.index(name) for name in ("a/0.png", "b/0.png")]
    assert before.contents[places].tolist() == after.contents[places[::-1]].tolist()
