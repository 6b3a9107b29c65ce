"""`python -m tljax.look WORKDIR [IMAGE...]`: what a finished run learned, and where it errs, as a page and pictures.

    python -m tljax.look runs/folder
    python -m tljax.look runs/folder cat.jpg holiday/ --maps stem,layer2,layer4 --out cats

An IMAGE is what `tljax.predict` takes for one. Without any, test images are explained: half of them the most confident
mistakes, half the most confident right answers, at most one of a class as long as there are others.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tljax.core.errors import UserError
from tljax.core.process import keep_compilations
from tljax.core.xla_flags import tune_cpu
from tljax.inference.batch_predict import find_pictures, read_stdin
from tljax.settings.command_line import OneLineParser, exit_status


def make_parser() -> OneLineParser:
    parser = OneLineParser("python -m tljax.look", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workdir", type=Path, help="the folder of a finished run")
    parser.add_argument("image", nargs="*", help="a file, a folder, a pattern, or - for standard input")
    parser.add_argument("--out", type=Path, help="where page and pictures go; WORKDIR/look by default")
    parser.add_argument("--maps", default="", help="layers whose maps are shown, as --list names them")
    parser.add_argument("--list", action="store_true", help="print the layers there are, and do nothing else")
    parser.add_argument("--top", type=int, default=8, help="most confident mistakes, and highest losses, to show")
    parser.add_argument("--pictures", type=int, default=4, help="pictures to explain, at most")
    parser.add_argument("--channels", type=int, default=16, help="channels of a layer to show")
    parser.add_argument("--near", type=int, default=5, help="nearest training images per picture; 0 for none")
    parser.add_argument("--compare", type=int, default=5000, help="training images to compare with, at most")
    parser.add_argument("--source", default="", help="where the run's images lie now, as data.source")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return exit_status(lambda: look(args))


def look(args: Any) -> int:
    """Makes the page; 1 if pictures were named and none could be read."""
    for name, least in (("top", 1), ("pictures", 1), ("channels", 1), ("near", 0), ("compare", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}={getattr(args, name)} is less than {least}")
    named = find_pictures(args.image, read_stdin) if args.image else []
    tune_cpu()
    from tljax.inference.activations import layers  # after the flags: a mistake is answered at once
    from tljax.inference.classifier import load
    from tljax.look.page import Options, write_look

    keep_compilations()
    classifier = load(args.workdir)
    there = layers(classifier.model, classifier.preprocessing.crop)
    if args.list:
        for name, layer in there.items():
            words = "before and after its activation" if layer.before else "its output; no activation ends it"
            print(f"{name:<12} {' x '.join(map(str, layer.shape)):<16} {words}")
        return 0
    stages = [name for name in classifier.model.stages if name in there]
    chosen = (
        [part.strip() for part in args.maps.split(",")]
        if args.maps
        else [stages[0], stages[len(stages) // 2], stages[-1]]
    )
    if unknown := [name for name in chosen if name not in there]:
        raise UserError(f"--maps: {unknown[0]!r} is not one of the layers {', '.join(there)}")
    options = Options(
        maps={name: there[name] for name in chosen}, top=args.top, pictures=args.pictures, channels=args.channels,
        near=args.near, compare=args.compare, source=args.source,
    )  # fmt: skip
    folder = args.out or args.workdir / "look"
    notes, read = write_look(classifier, folder, named, options)
    for note in notes:
        print(f"tljax: {note}", file=sys.stderr)
    print(folder / "index.html")
    return int(bool(named) and not read)


if __name__ == "__main__":
    sys.exit(main())
