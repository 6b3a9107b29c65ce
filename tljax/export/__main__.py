"""`python -m tljax.export WORKDIR --to FORMAT`: a finished run for programs that do not have tljax.

    python -m tljax.export runs/folder --to onnx
    python -m tljax.export runs/folder --to stablehlo,onnx,torch,safetensors --out exported

A file gets its name when its own runtime has run it on pictures and said what the run says of them. metadata.json
beside it has the classes, how pictures are prepared, and the temperature; reading.py reads them so.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tljax.core.errors import UserError, counted
from tljax.core.process import keep_compilations
from tljax.core.xla_flags import tune_cpu
from tljax.data import reading
from tljax.data.reading import Unreadable
from tljax.data.shapes import open_shapes
from tljax.inference.batch_predict import find_pictures
from tljax.run_dir.files import write_whole
from tljax.settings.command_line import OneLineParser, exit_status

if TYPE_CHECKING:
    from tljax.inference.classifier import Classifier

FORMATS = ("stablehlo", "onnx", "torch", "safetensors")
METADATA = "metadata.json"
READING = Path(reading.__file__)  # is copied beside the network: how its pictures are read
PICTURES = 64  # are enough to tell


def formats_of(words: Sequence[str]) -> list[str]:
    """The formats that `--to` names, each once, in order."""
    found = [word.strip() for one in words for word in one.split(",") if word.strip()]
    for word in found:
        if word not in FORMATS:
            raise UserError(f"--to {word} is not one of {', '.join(FORMATS)}")
    if not found:
        raise UserError(f"--to names no format; there are {', '.join(FORMATS)}")
    return list(dict.fromkeys(found))


def see_pictures(classifier: "Classifier", names: Sequence[str]) -> tuple[np.ndarray, str]:
    """What the export is tried on: the pictures named, else the run's own test images, else procedural ones.

    Returns:
      Squares uint8 `[N, crop, crop, 3]`, N of 2 or more, and what they are.

    Raises:
      UserError: when pictures are named and none can be read.
    """
    if names:
        found = find_pictures(names, bytes)
        squares = _read(classifier, [picture.read for picture in found if not picture.reason])
        if not squares:
            raise UserError(f"--images: none of {counted(len(found), 'picture')} can be read")
        return _two(squares), "pictures given"
    reason = "the run's images cannot be read"
    try:
        own, split = _own_images(classifier)
        if squares := _read(classifier, own):
            return _two(squares), f"{split} images of the run"
    except (UserError, OSError, AttributeError) as error:  # the last of another version's config
        reason = str(error)
    source = open_shapes("tiny")
    squares = _read(classifier, [lambda i=i: source.read(i) for i in range(PICTURES)])
    return _two(squares), f"procedural pictures ({reason}; --images names others)"


def _own_images(classifier: "Classifier") -> tuple[list[Callable[[], Any]], str]:
    """Readers of the run's test images, of the validation's where there is no test; and which they are."""
    from ml_collections import ConfigDict

    from tljax.data.load import open_data

    config: Any = ConfigDict(classifier.result["config"])
    config.data.pseudo = ""  # labels do not matter here
    listed = open_data(config.data, seed=config.seed)
    split = next((split for split in ("test", "val", "train") if len(listed.splits.get(split, ()))), "train")
    chosen = listed.splits[split]
    spread = chosen[np.unique(np.linspace(0, len(chosen) - 1, PICTURES).astype(int))]  # not one class alone
    return [lambda i=i: listed.source.read(int(i)) for i in spread], {"val": "validation"}.get(split, split)


def _read(classifier: "Classifier", readers: Sequence[Callable[[], Any]]) -> list[np.ndarray]:
    """What the network sees of the pictures that can be read, so many at most."""
    squares: list[np.ndarray] = []
    for read in readers:
        with contextlib.suppress(Unreadable, OSError, ValueError):
            squares.append(classifier.see(read()))
        if len(squares) == PICTURES:
            break
    return squares


def _two(squares: list[np.ndarray]) -> np.ndarray:
    """One picture is seen mirrored, too, so that there is a batch."""
    return np.stack(squares if len(squares) > 1 else [squares[0], squares[0][:, ::-1]])


@contextlib.contextmanager
def written_when_good(path: Path, data: bytes) -> Iterator[Path]:
    """A file beside `path` with its ending; takes its place where the block ends well, and else is gone."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def check(kinds: Sequence[str], classifier: "Classifier", out: Path, text: str, *, overwrite: bool) -> None:
    """Refuses what cannot be done before anything is.

    Raises:
      UserError: for modules that are absent, files that exist, a folder that cannot be, a network that torchvision
        does not have.
    """
    from tljax.export.parity import RUNTIMES
    from tljax.export.torchvision_recipe import recipe
    from tljax.weights.torch_names import to_torch

    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"--out={out} cannot be a folder: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out={out} cannot be written: {there} is read-only")
    for kind in kinds:
        if (absent := RUNTIMES[kind].absent) and not RUNTIMES[kind].optional:
            raise UserError(f"--to {kind} needs {' and '.join(absent)}: pip install -e '.[export]'")
        if kind == "torch":
            recipe(classifier.model, classifier.result["config"]["model"]["name"])
        if kind == "safetensors":
            to_torch(classifier.variables)
        if (out / RUNTIMES[kind].file).exists() and not overwrite:
            raise UserError(f"{out / RUNTIMES[kind].file} exists; give another --out, or --overwrite to replace it")
    for path, words in ((out / METADATA, text), (out / READING.name, READING.read_text(encoding="utf-8"))):
        if path.exists() and not overwrite and path.read_text(encoding="utf-8") != words:
            raise UserError(f"{path} is of something else; give another --out, or --overwrite to replace it")


def export(workdir: Path, kinds: Sequence[str], out: Path, *, images: Sequence[str] = (), overwrite: bool = False,
           tell: Callable[[str], None] = print) -> None:  # fmt: skip
    """Writes a finished run in some formats, each held against the run before it gets its name.

    Args:
      workdir: the run's folder.
      kinds: of `FORMATS`.
      out: the folder to write `model.*` and metadata.json into.
      images: pictures to try the exports on, as `python -m tljax.predict` takes them; empty for the run's own.
      overwrite: replace files that are there.
      tell: is given a line per format.

    Raises:
      UserError: for whatever does not fit; an export that answers otherwise than the run is removed.
    """
    from tljax.export import parity, portable
    from tljax.inference.classifier import load

    classifier = portable.in_float32(load(workdir))
    about = portable.describe(classifier)
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    check(kinds, classifier, out, text, overwrite=overwrite)
    squares, what = see_pictures(classifier, images)
    tell(f"tried on {len(squares)} {what}, in batches of {min(parity.BATCH, len(squares))} and one by one")
    batches = parity.make_batches(squares)
    ours = parity.ask_ours(classifier, batches)
    for kind in kinds:
        runtime, path = parity.RUNTIMES[kind], out / parity.RUNTIMES[kind].file
        data = portable.make_bytes(kind, classifier)
        with written_when_good(path, data) as part:
            if runtime.program and not runtime.absent:
                theirs, words = parity.ask_runtime(runtime, part, about, batches), runtime.words
            else:
                theirs, words = parity.ask_weights(part, classifier, batches), "tljax"
            found = parity.compare(theirs, ours)
            if not found.good:
                raise UserError(f"{path} is removed: by {words} {found}, which is more than {parity.TOLERANCE}")
        tell(f"{kind}: {path}, {len(data) / 1e6:.1f} MB; by {words}: {found}")
        if runtime.program and runtime.absent:
            tell(f"{kind}: not run by {runtime.words}, since {' and '.join(runtime.absent)} cannot be imported; "
                 f"make .venv/peer, then the same command with --overwrite")  # fmt: skip
    write_whole(out / METADATA, text)
    write_whole(out / READING.name, READING.read_text(encoding="utf-8"))


def make_parser() -> OneLineParser:
    parser = OneLineParser("python -m tljax.export", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workdir", type=Path, help="the folder of a finished run")
    parser.add_argument("--to", action="append", required=True, help=f"formats, with commas: {', '.join(FORMATS)}")
    parser.add_argument("--out", type=Path, help="the folder to write into; WORKDIR/export by default")
    parser.add_argument("--images", nargs="+", default=[], help="pictures to try it on; else the run's test images")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)

    def command() -> None:
        kinds = formats_of(args.to)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # accelerators round otherwise, and there is little to compute
        tune_cpu()
        keep_compilations()
        export(args.workdir, kinds, args.out or args.workdir / "export", images=args.images, overwrite=args.overwrite)

    return exit_status(command)


if __name__ == "__main__":
    sys.exit(main())
