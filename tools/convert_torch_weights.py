"""Converts torchvision's weights to ours, and back; torch is not needed.

    python tools/convert_torch_weights.py resnet18 resnet18-f37072fd.pth resnet18.safetensors
    python tools/convert_torch_weights.py --back resnet18 resnet18.safetensors resnet18_torchvision.safetensors

The first reads .pth files of any age, or safetensors with torchvision's names; a sha256 in the file's name is checked.
The second writes a torchvision state_dict as safetensors.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax.core.errors import UserError
from tljax.models import MODELS, create_model, variable_shapes
from tljax.settings.command_line import OneLineParser, exit_status
from tljax.weights.hub import check_hash
from tljax.weights.merge import compare
from tljax.weights.torch_names import flatten, to_torch
from tljax.weights.weights_file import load_weights, save_weights, sha256_of, write_safetensors


def convert(arch: str, source: Path, out: Path, *, back: bool = False, force: bool = False) -> str:
    """Converts one file.

    A file from which whole groups are absent is converted as it is; anything else that does not fit is refused.

    Args:
      arch: a key of `tljax.models.MODELS`.
      source: the file to read.
      out: the file to write.
      back: from ours to torchvision's.
      force: replace `out` if it exists.

    Returns:
      One line: architecture, arrays, parameters, the source's sha256 and what is absent.

    Raises:
      UserError: one line.
    """
    model = create_model(arch)
    if out.exists() and not force:
        raise UserError(f"{out} exists; --force replaces it")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"{out} is the file to read")
    check_hash(source)
    variables, metadata = load_weights(source, arch)
    if bool(metadata) != back:
        raise UserError(
            f"{source} is already a file of tljax; --back converts it to torchvision's names"
            if metadata
            else f"{source} is no file of tljax, so --back has nothing to do"
        )
    model = model.clone(num_classes=classes_of(variables) or model.num_classes)  # any number is welcome here
    shapes = variable_shapes(model)
    report = compare(shapes, variables, fresh=(), group_of=model.group_of)
    absent = report.groups(report.missing)
    partly = absent.keys() & report.groups((*report.loaded, *report.wrong_shape)).keys()
    if partly or report.unexpected or report.wrong_shape or not report.loaded:
        raise UserError(f"{source} does not fit {arch}: {report}")
    digest = sha256_of(source)
    if back:
        write_safetensors(out, to_torch(variables), {"format": "pt"})
    else:
        save_weights(out, variables, {"arch": arch, "source": source.name, "sha256": digest})
    arrays = [array for _, array in flatten(variables)]
    parameters = sum(array.size for _, array in flatten(variables["params"]))
    return f"{out}: {arch}, {len(arrays)} arrays, {parameters:,} parameters, from {source.name} (sha256 {digest})" + (
        f"; absent: {', '.join(absent)}" if absent else ""
    )


def classes_of(variables: dict[str, Any]) -> int | None:
    """Outputs of the head in these variables, None where it has none of the expected rank."""
    for head in ("fc", "classifier_1"):
        match variables["params"].get(head):
            case {"bias": np.ndarray(shape=(classes,))}:
                return classes
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one line that says what is wrong."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch", metavar="ARCH", help=", ".join(MODELS))
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--back", action="store_true", help="from our file to a torchvision state_dict")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(argv)
    return exit_status(lambda: print(convert(args.arch, args.file, args.out, back=args.back, force=args.force)))


if __name__ == "__main__":
    sys.exit(main())
