"""TFDS as a source: its own builders on local images, tiny builders of ours, and no TensorFlow for reading."""

import concurrent.futures
import errno
import io
import os
import pathlib
import subprocess
import sys
import textwrap
import xml.etree.ElementTree
from typing import Any

import numpy as np
import PIL.Image
import pytest
import requests

from tests.local_tfds import prepare_pets
from tljax.core.errors import UserError
from tljax.data.tfds import open_tfds

# A builder's class must live in a package of its own, which TFDS asks for its folder.
BUILDERS = """
import io
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]

def png(color):
    data = io.BytesIO()
    PIL.Image.new("RGB", (7, 5), color).save(data, "png")
    data.seek(0)
    return data

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(self.features()))

    def _split_generators(self, downloads):
        return {name: self._generate_examples(name, count) for name, count in self.splits.items()}

class TinyColors(Tiny):
    splits = {"train": 6, "validation": 3, "test": 3, "extra": 3}

    def features(self):
        return {"image": tfds.features.Image(), "mask": tfds.features.Image(shape=(None, None, 1)),
                "label": tfds.features.ClassLabel(names=["red", "green", "blue"]),
                "warm": tfds.features.ClassLabel(names=["no", "yes"]), "file_name": tfds.features.Text()}

    def _generate_examples(self, split, count):
        for i in range(count):
            yield i, {"image": png(COLORS[i % 3]), "mask": np.zeros((5, 7, 1), np.uint8), "label": i % 3,
                      "warm": int(i % 3 == 0), "file_name": f"{split[:2]}_{i}.png"}

class TinyTrainOnly(Tiny):
    splits = {"train": 4}

    def features(self):
        return {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["red", "green", "blue"]),
                "file_name": tfds.features.Text()}

    def _generate_examples(self, split, count):
        for i in range(count):
            yield i, {"image": png(COLORS[i % 3]), "label": i - 1, "file_name": "the same.png"}

class TinyTexts(Tiny):
    splits = {"train": 1}

    def features(self):
        return {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}

    def _generate_examples(self, split, count):
        yield 0, {"text": "a", "label": 0}
"""

# As on a machine without TensorFlow. Neither None in sys.modules nor a finder that raises will do: TFDS and etils look
# at sys.modules and at find_spec to learn whether it is there.
HIDE_TENSORFLOW = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "tensorflow" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A data folder for the builders above, which TFDS knows from here on."""
    root = tmp_path_factory.mktemp("tfds")
    package = root / "code" / "tljax_tiny_builders"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(BUILDERS)
    sys.path.insert(0, str(package.parent))
    import tljax_tiny_builders  # noqa: F401  # pyright: ignore[reportMissingImports]

    return root / "data"


@pytest.fixture(scope="module")
def pets(shared: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    data_dir = tmp_path_factory.mktemp("pets")
    prepare_pets(shared, data_dir)
    return data_dir


def pixel(data: bytes | np.ndarray) -> tuple[int, ...]:
    assert isinstance(data, bytes)
    return tuple(np.asarray(PIL.Image.open(io.BytesIO(data)))[2, 3])


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_prepares_and_reads_a_dataset_with_official_splits(tiny: pathlib.Path) -> None:
    source = open_tfds("tiny_colors", data_dir=tiny)
    assert source.spec == "tfds:tiny_colors" and source.classes == ("red", "green", "blue")
    assert list(source.names) == sorted(f"{s}_{i}.png" for s, n in (("tr", 6), ("va", 3), ("te", 3)) for i in range(n))
    assert source.labels.dtype == np.int32 and source.boxes is None and source.skipped == ()
    for split, prefix, count in (("train", "tr", 6), ("val", "va", 3), ("test", "te", 3)):
        assert [source.names[i] for i in source.splits[split]] == [f"{prefix}_{i}.png" for i in range(count)]
    for i, name in enumerate(source.names):
        number = int(name[3])
        assert source.labels[i] == number % 3
        assert pixel(source.read(i)) == tuple(255 * (np.arange(3) == number % 3))
    assert sorted(p.name.split(".")[-1][:12] for p in tiny.glob("tiny_colors/1.0.0/*-of-*")) == ["array_record"] * 4


def test_any_class_label_can_be_the_label(tiny: pathlib.Path) -> None:
    source = open_tfds("tiny_colors:1.0.0", label="warm", data_dir=str(tiny))
    assert source.classes == ("no", "yes")
    assert [source.labels[source.names.index(f"tr_{i}.png")] for i in range(4)] == [1, 0, 0, 1]
    with pytest.raises(UserError) as error:
        open_tfds("tiny_colors", label="color", data_dir=tiny)
    assert one_line(error) == "tfds:tiny_colors has no label 'color'; it has label, warm"


def test_train_only_has_no_splits_and_unlabeled_examples_are_passed_over(
    tiny: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
    source = open_tfds("tiny_train_only")
    assert source.splits == {}
    # Their file names are all the same, so numbers it is; TFDS shuffles what it prepares.
    assert len(source) == 3 and len(set(source.names)) == 3 and list(source.names) == sorted(source.names)
    assert all(name.startswith("train/00000") for name in source.names)
    assert [reason for _, reason in source.skipped] == ["no label"]
    assert sorted(source.labels) == [0, 1, 2]
    for i, label in enumerate(source.labels):
        assert pixel(source.read(i)) == tuple(255 * (np.arange(3) == (label + 1) % 3))


def test_tfrecord_files_are_read_as_they_are(tiny: pathlib.Path, tmp_path: pathlib.Path) -> None:
    import tensorflow_datasets as tfds

    tfds.builder("tiny_colors", data_dir=tmp_path).download_and_prepare(file_format="tfrecord")
    ours, usual = open_tfds("tiny_colors", data_dir=tmp_path), open_tfds("tiny_colors", data_dir=tiny)
    assert ours.names == usual.names and np.array_equal(ours.labels, usual.labels)
    assert [ours.read(i) for i in range(len(ours))] == [usual.read(i) for i in range(len(usual))]

    (shard,) = tmp_path.glob("tiny_colors/1.0.0/*-train.tfrecord-*")
    os.truncate(shard, shard.stat().st_size - 9)
    with pytest.raises(UserError) as error:
        open_tfds("tiny_colors", data_dir=tmp_path)
    assert "cannot be read" in one_line(error) and "cut short" in one_line(error)


def test_a_format_without_random_access_is_refused(tiny: pathlib.Path, tmp_path: pathlib.Path) -> None:
    open_tfds("tiny_colors", data_dir=tmp_path)
    info = tmp_path / "tiny_colors" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"riegeli"'))
    with pytest.raises(UserError, match="as riegeli, which cannot be read by index; set TFDS_DATA_DIR"):
        open_tfds("tiny_colors", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oxford_iiit_pets", "did you mean oxford_iiit_pet?"),
        ("qqqqqqqq", "TFDS knows no 'qqqqqqqq'; https://www.tensorflow.org/datasets lists them"),
        ("oxford_iiit_pet:3.0.0", "cannot be loaded at version 3.0.0, only: 4.0.0."),
        ("oxford_iiit_pet/small", "the configs of oxford_iiit_pet are: none"),
        ("oxford pets", "is not of the form name, name/config, name:1.2.3 or name/config:1.2.3"),
        ("tiny_texts", "is not an image-classification dataset: no image among text, label"),
    ],
)
def test_a_wrong_name_gets_one_line(tiny: pathlib.Path, tmp_path: pathlib.Path, name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        open_tfds(name, data_dir=tmp_path)
    assert message in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_without_network_and_data(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sent = []

    def unreachable(self: object, request: requests.PreparedRequest, **kwargs: object) -> None:
        sent.append(kwargs["timeout"])
        raise requests.ConnectionError("HTTPSConnectionPool(...): Max retries exceeded", request=request)

    monkeypatch.setattr("requests.adapters.HTTPAdapter.send", unreachable)
    with pytest.raises(UserError) as error:
        open_tfds("oxford_iiit_pet", data_dir=tmp_path)
    message = one_line(error)
    start = f"tfds:oxford_iiit_pet is not prepared in {tmp_path} and could not be: no answer from https://thor.robots"
    assert message.startswith(start)
    manual = tmp_path / "downloads" / "manual"
    assert message.endswith(f"or put annotations.tar.gz and images.tar.gz into {manual}")
    assert sent[0] == (15, 60)
    assert requests.Session.send.__module__ == "requests.sessions"
    said = capfd.readouterr()
    assert said.err == "" and said.out == ""

    # TFDS does look there, as the message promises, and does check what it finds.
    manual.mkdir(parents=True)
    for name in ("annotations.tar.gz", "images.tar.gz"):
        (manual / name).write_bytes(b"something else")
    with pytest.raises(UserError) as error:
        open_tfds("oxford_iiit_pet", data_dir=tmp_path)
    assert f"{manual}/annotations.tar.gz, has wrong checksum; delete that file" in one_line(error)


def test_a_full_disk_and_a_faster_process(
    tiny: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow_datasets as tfds

    prepare = tfds.core.DatasetBuilder.download_and_prepare

    def full(self: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def late(self: Any, **kwargs: object) -> None:
        prepare(self, **kwargs)  # pyright: ignore[reportCallIssue]
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", full)
    with pytest.raises(UserError, match=r"could not be: .*No space left on device"):
        open_tfds("tiny_colors", data_dir=tmp_path)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", late)
    assert len(open_tfds("tiny_colors", data_dir=tmp_path)) == 12


def test_reading_needs_no_tensorflow_and_preparing_says_that_it_does(tiny: pathlib.Path) -> None:
    open_tfds("tiny_colors", data_dir=tiny)
    script = HIDE_TENSORFLOW + textwrap.dedent("""
        from tljax.data.tfds import open_tfds
        from tljax.core.errors import UserError

        source = open_tfds("tiny_colors", data_dir=sys.argv[1])
        assert len(source) == 12 and all(source.read(i)[1:4] == b"PNG" for i in range(12))
        for name in ("oxford_iiit_pet", "cats_vs_dogs"):
            try:
                open_tfds(name, data_dir=sys.argv[1])
            except UserError as error:
                print(error)
        assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
    """)
    done = subprocess.run([sys.executable, "-c", script, tiny], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("and preparing it needs the package tensorflow" in line for line in lines), lines


@pytest.mark.real_data
@pytest.mark.parametrize(("label", "column", "classes"), [("breed", 1, 37), ("species", 2, 2)])
def test_pets_are_what_the_folder_holds(
    pets: pathlib.Path, shared: pathlib.Path, label: str, column: int, classes: int
) -> None:
    root = shared / "data" / "oxford_pets_3breeds"
    source = open_tfds("oxford_iiit_pet", label=label, data_dir=pets)
    assert len(source) == 598 and len(source.classes) == classes
    assert {"breed": source.classes[0] == "Abyssinian", "species": source.classes == ("Cat", "Dog")}[label]
    assert source.boxes is not None and source.boxes.shape == (598, 4) and source.boxes.dtype == np.float32
    recoded = []
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        rows = [line.split() for line in (root / "annotations" / file).read_text().splitlines()]
        assert [source.names[i] for i in source.splits[split]] == sorted(f"{row[0]}.jpg" for row in rows)
        for row in rows:
            i = source.names.index(f"{row[0]}.jpg")
            assert source.labels[i] == int(row[column]) - 1
            if source.read(i) != (root / "images" / f"{row[0]}.jpg").read_bytes():
                recoded.append(row[0])
            np.testing.assert_allclose(source.boxes[i], box(root / "annotations" / "xmls" / f"{row[0]}.xml"), rtol=1e-6)
    assert recoded == ["Abyssinian_5"]  # the one of these images on TFDS's list of damaged ones


@pytest.mark.real_data
def test_pets_can_be_read_from_several_threads(pets: pathlib.Path) -> None:
    source = open_tfds("oxford_iiit_pet", data_dir=pets)
    indices = np.random.default_rng(0).permutation(np.arange(598).repeat(2)).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, indices)) == [source.read(i) for i in indices]


def box(path: pathlib.Path) -> np.ndarray:
    """The head box of an annotation as fractions of the picture (ymin, xmin, ymax, xmax), NaN without a file."""
    if not path.exists():
        return np.full(4, np.nan)
    tree = xml.etree.ElementTree.parse(path)
    return np.array(
        [
            float(tree.findtext(f"object/bndbox/{edge}") or 0) / float(tree.findtext(f"size/{side}") or 0)
            for edge, side in (("ymin", "height"), ("xmin", "width"), ("ymax", "height"), ("xmax", "width"))
        ]
    )
