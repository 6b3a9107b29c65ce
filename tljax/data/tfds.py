"""TensorFlow Datasets as a source: prepared once by TFDS, then read by random access and without TensorFlow.

TFDS is imported inside the functions: it costs half a second and most runs read a folder. TensorFlow is imported by
TFDS alone, while it prepares, so a machine without it reads what another one has prepared.
"""

import contextlib
import difflib
import importlib.util
import io
import logging as python_logging
import os
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging

from tljax.core.errors import UserError, one_line
from tljax.core.guest import importing
from tljax.data.source import Source

SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}  # TFDS's name -> ours
FILE_NAME_FEATURES = ("file_name", "image/filename", "filename", "image/file_name")
NAME = re.compile(r"\w+(/[\w.+-]+)?(:(\d+|\*)(\.(\d+|\*)){0,2})?")  # what TFDS reads, less its namespaces
LABEL_ALIASES = {("oxford_iiit_pet", "breed"): "label"}
# TFDS tries a dead host 10 times with doubling pauses, 205 s in all, and without any limit on a silent one.
DOWNLOAD_RETRIES = 3
DOWNLOAD_TIMEOUT = (15, 60)  # seconds: to connect, between two pieces


class _Records(Protocol):
    """Serialized examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> bytes: ...


def open_tfds(name: str, *, label: str = "label", data_dir: str | os.PathLike[str] | None = None) -> Source:
    """Opens an image-classification dataset of TFDS, preparing it first where that has not been done.

    What lies prepared in the data folder is used as it is, in its newest version unless `name` gives one; array_record
    and tfrecord files are both read. Labels, names and boxes are read at once and kept in memory (1.2 s for
    25,000 images of 30 kB), images one by one. Examples without a label (TFDS marks them -1) are passed over.

    Args:
      name: as TFDS spells it: `name`, `name/config`, `name:version` or `name/config:version`.
      label: the name of a ClassLabel feature; `label` also stands for the dataset's own supervised label, and for
        `oxford_iiit_pet` `breed` stands for `label`.
      data_dir: TFDS's data folder; None takes `$TFDS_DATA_DIR`, else TFDS's default `~/tensorflow_datasets`.

    Returns:
      A source whose names are the dataset's file names where it has unique ones, else `split/000123`. The official
      splits are given if there are at least two of train, validation and test. `boxes` are the head boxes where the
      dataset has them (oxford_iiit_pet).

    Raises:
      UserError: for an unknown name, version, config or label, a dataset that does not hold labeled images, and one
        that is neither prepared nor can be.
    """
    with importing():
        import tensorflow_datasets as tfds

    spec = f"tfds:{name}"
    if not NAME.fullmatch(name):
        raise UserError(f"{spec}: {name!r} is not of the form name, name/config, name:1.2.3 or name/config:1.2.3")
    folder = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    builder, prepared = _find_builder(tfds, name, folder)
    # Before the download: nobody should wait for a dataset of texts, or for a label that is misspelt.
    image, label = _image_and_label(tfds, builder.info, spec, label)
    if not prepared:
        _prepare(tfds, builder, spec, folder)
        builder, _ = _find_builder(tfds, name, folder)
    return _index(tfds, builder, spec, image, label)


def _find_builder(tfds: Any, name: str, folder: str) -> tuple[Any, bool]:
    """Returns what lies prepared under `folder` or, failing that, TFDS's code for the dataset; and which of the two."""
    spec, dataset = f"tfds:{name}", re.split("[/:]", name)[0]
    with _quiet(tfds):
        try:
            # Asked first, although tfds.builder would do: this needs neither the dataset's code nor what that imports.
            return tfds.core.read_only_builder.builder_from_files(name, data_dir=folder), True
        except tfds.core.DatasetNotFoundError:
            pass
        except Exception as error:
            raise UserError(f"{spec} in {folder} cannot be opened: {_reason(error)}") from error
        try:
            return tfds.builder(name, data_dir=folder), False
        except tfds.core.DatasetNotFoundError as error:
            known = set(tfds.list_builders(with_community_datasets=False))
            close = difflib.get_close_matches(dataset, known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "https://www.tensorflow.org/datasets lists them"
            raise UserError(f"{spec} is not prepared in {folder}, and TFDS knows no {dataset!r}; {hint}") from error
        except ImportError as error:
            raise _missing_package(spec, folder, error) from error
        except Exception as error:  # AssertionError for a version, ValueError for a config
            configs = sorted(tfds.builder_cls(dataset).builder_configs)
            if "/" in name and name.split("/")[1].split(":")[0] not in configs:
                reason = f"the configs of {dataset} are: {', '.join(configs) or 'none'}"
            else:
                reason = _reason(error).split('}": ')[-1]  # drops 'Failed to construct ..., builder_kwargs "{...}": '
            raise UserError(f"{spec} is not prepared in {folder}, and TFDS cannot make it: {reason}") from error


def _image_and_label(tfds: Any, info: Any, spec: str, label: str) -> tuple[str, str]:
    """Returns the names of the image feature and of the label feature."""
    features = info.features
    flat = isinstance(features, tfds.features.FeaturesDict)
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)] if flat else []
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)] if flat else []
    supervised = [k for k in info.supervised_keys or () if isinstance(k, str)]
    # A dataset may hold more images than one (a mask, a depth map): its supervised key says which is the input.
    image = next((k for k in (*supervised, "image", *images) if k in images), None)
    if image is None or not labels:
        what = "no image" if image is None else "no class label"
        raise UserError(f"{spec} is not an image-classification dataset: {what} among {', '.join(features or ())}")
    if np.dtype(features[image].np_dtype) != np.uint8:
        raise UserError(f"{spec} holds {np.dtype(features[image].np_dtype)} images; only uint8 ones can be read")

    aliases = {alias: feature for (dataset, alias), feature in LABEL_ALIASES.items() if dataset == info.name}
    label = aliases.get(label, label)
    if label == "label" and label not in labels:
        label = next((k for k in supervised if k in labels), label)
    if label not in labels:
        raise UserError(f"{spec} has no label {label!r}; it has {', '.join(sorted({*labels, *aliases}))}")
    return image, label


def _prepare(tfds: Any, builder: Any, spec: str, folder: str) -> None:
    """Downloads a dataset and lets TFDS write it as array_record. The only place that needs TensorFlow."""
    # Asked for, not imported: TFDS does that after the download, where a missing package would come too late.
    if importlib.util.find_spec("tensorflow") is None:
        raise _missing_package(spec, folder, ModuleNotFoundError(name="tensorflow"))
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # or it takes the memory that training needs

    urls = builder.url_infos or {}
    size = sum(int(info.size) for info in urls.values()) / 2**20
    logging.info("Preparing %s in %s, once (downloads up to %.0f MiB)", spec, folder, size)
    try:
        with _quiet(tfds), _impatient(tfds):
            builder.download_and_prepare(file_format="array_record")
    except ImportError as error:
        raise _missing_package(spec, folder, error) from error
    except Exception as error:  # whatever a download, 1,300 datasets' own code and a full disk can raise
        with _quiet(tfds):
            if builder.is_prepared():  # another process was faster: at the end, TFDS found the folder taken
                return
        files = sorted({info.filename or "" for info in urls.values()})
        reason = _why_not_prepared(tfds, error, folder, files)
        raise UserError(f"{spec} is not prepared in {folder} and could not be: {reason}") from error


def _why_not_prepared(tfds: Any, error: Exception, folder: str, files: Sequence[str]) -> str:
    import requests

    if isinstance(error, tfds.download.download_manager.NonMatchingChecksumError):
        what = str(error).splitlines()[0].rstrip(":")  # "Artifact URL, downloaded to PATH, has wrong checksum"
        return f"{what}; delete that file and try again, or install a newer tensorflow-datasets"
    if not isinstance(error, (requests.RequestException, tfds.download.DownloadError)):
        return _reason(error)
    url = error.request.url if isinstance(error, requests.RequestException) and error.request else None
    reason = f"no answer from {url}" if url else _reason(error)
    if not all(files) or not 1 <= len(files) <= 5:
        return f"{reason}; connect to the network, or set TFDS_DATA_DIR to a folder where it is prepared"
    # Where TFDS looks, before it downloads, for the file names of its own checksum list.
    manual = os.path.join(folder, "downloads", "manual")
    return f"{reason}; connect to the network, or put {' and '.join(files)} into {manual}"


def _missing_package(spec: str, folder: str, error: ImportError) -> UserError:
    package = (error.name or "").split(".")[0]
    if package == "tensorflow":
        package = "tensorflow-cpu" if sys.platform == "linux" else "tensorflow"
    need = f"the package {package}: pip install {package}" if package else _reason(error)
    return UserError(f"{spec} is not prepared in {folder}, and preparing it needs {need}")


def _index(tfds: Any, builder: Any, spec: str, image: str, label: str) -> Source:
    """Reads everything but the images of a prepared dataset."""
    features = dict(builder.info.features)
    named = next((k for k in FILE_NAME_FEATURES if isinstance(features.get(k), tfds.features.Text)), None)
    boxed = isinstance(features.get("head_bbox"), tfds.features.BBoxFeature)
    wanted = [label, *([named] if named else []), *(["head_bbox"] if boxed else [])]
    facts = tfds.features.FeaturesDict({k: features[k] for k in wanted})
    picture = tfds.features.FeaturesDict({image: features[image]})
    encoded = {image: tfds.decode.SkipDecoding()}

    names, file_names, labels, boxes, where, skipped = [], [], [], [], [], []
    records = _open_splits(tfds, builder, spec)
    for split, data in records.items():
        for i in range(len(data)):
            try:
                example = facts.deserialize_example_np(data[i])
            except Exception as error:
                raise _unreadable(spec, builder, error) from error
            name = f"{split}/{i:06d}"
            if example[label] < 0:
                skipped.append((name, "no label"))
                continue
            names.append(name)
            file_names.append(bytes(example[named]).decode("utf-8", "replace") if named else name)
            labels.append(int(example[label]))
            boxes.append(example["head_bbox"] if boxed else ())
            where.append((split, i))
    if len(set(file_names)) == len(file_names):
        names = file_names
    order = sorted(range(len(names)), key=names.__getitem__)
    where = [where[i] for i in order]

    def read(index: int) -> bytes:
        split, i = where[index]
        return picture.deserialize_example_np(records[split][i], decoders=encoded)[image]

    of_split = np.array([split for split, _ in where])
    known = np.array(boxes, np.float32)[order] if boxed else None
    if known is not None:
        known[~known.any(axis=1)] = np.nan  # TFDS's way to say that there is none
    return Source(
        spec=spec,
        names=tuple(names[i] for i in order),
        labels=np.array(labels, np.int32)[order],
        classes=tuple(features[label].names),
        read=read,
        splits={SPLITS[s]: np.flatnonzero(of_split == s) for s in records} if len(records) > 1 else {},
        boxes=known,
        skipped=tuple(skipped),
    )


def _open_splits(tfds: Any, builder: Any, spec: str) -> dict[str, _Records]:
    """Returns the records of train, validation and test, as far as they exist."""
    info = builder.info
    splits = [s for s in info.splits if s in SPLITS and info.splits[s].num_examples]
    if not splits:
        raise UserError(f"{spec} has the splits {', '.join(info.splits)}: none of train, validation, test")
    formats = {f.value for f in info.available_file_formats()}
    try:
        if "array_record" in formats:  # one reader per file, safe to use from several threads
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            return {s: builder.as_data_source(s, deserialize_method=raw, file_format="array_record") for s in splits}
        if "tfrecord" in formats:
            return {s: _TFRecords(info.splits[s].filepaths, info.splits[s].num_examples) for s in splits}
    except Exception as error:
        raise _unreadable(spec, builder, error) from error
    found = ", ".join(sorted(formats))
    raise UserError(
        f"{spec} is prepared in {builder.data_dir} as {found}, which cannot be read by index; "
        "set TFDS_DATA_DIR to another folder to have it prepared as array_record"
    )


class _TFRecords:
    """Random access to TFRecord files, TFDS's usual format, without TensorFlow.

    A record is its length (8 bytes, little-endian), a checksum of that (4), the bytes, and a checksum of those (4).
    See https://www.tensorflow.org/tutorials/load_data/tfrecord. The checksums are left unchecked: a damaged image
    shows when it is decoded.
    """

    def __init__(self, paths: Sequence[os.PathLike[str]], expected: int) -> None:
        self._places: list[tuple[str, int, int]] = []
        for path in map(os.fspath, paths):
            size = os.path.getsize(path)
            with open(path, "rb", buffering=0) as file:
                start = 0
                while start < size:
                    file.seek(start)
                    (length,) = struct.unpack("<Q", file.read(8))
                    self._places.append((path, start + 12, length))
                    start += length + 16
            if start != size:
                raise ValueError(f"{path} is cut short")
        if len(self._places) != expected:
            raise ValueError(f"{len(self._places)} examples instead of {expected}")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> bytes:
        path, start, length = self._places[index]
        with open(path, "rb", buffering=0) as file:  # opened for each: a seek on a shared file would not be thread-safe
            file.seek(start)
            return file.read(length)


def _unreadable(spec: str, builder: Any, error: Exception) -> UserError:
    return UserError(
        f"{spec} is prepared in {builder.data_dir} but cannot be read ({_reason(error)}); "
        "delete that folder to have it prepared again"
    )


def _reason(error: BaseException) -> str:
    """The error's message on one line, since TFDS's run over many."""
    return one_line(error)[:400] or type(error).__name__


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Keeps TFDS's warnings and, where nobody watches, its progress bars from burying the one line that matters."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greeting, should TFDS import it
    urllib3 = python_logging.getLogger("urllib3")
    before = logging.get_verbosity(), urllib3.level
    logging.set_verbosity(logging.FATAL)
    urllib3.setLevel(python_logging.CRITICAL)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before[0])
        urllib3.setLevel(before[1])
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _impatient(tfds: Any) -> Iterator[None]:
    """Lets TFDS's downloader give up on a dead or silent host within a minute."""
    import requests

    # Not set back: after the first failure, downloads still queued go on in TFDS's threads, and Python's exit waits.
    tfds.download.download_manager.downloader.MAX_RETRIES = DOWNLOAD_RETRIES
    send = requests.Session.send

    def send_in_time(self: Any, request: Any, **kwargs: Any) -> Any:
        kwargs["timeout"] = kwargs.get("timeout") or DOWNLOAD_TIMEOUT
        return send(self, request, **kwargs)

    requests.Session.send = send_in_time
    try:
        yield
    finally:
        requests.Session.send = send
