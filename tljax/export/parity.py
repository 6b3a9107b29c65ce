"""Whether an exported network says what the run says: asked by its own runtime, about the same pictures."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from tljax.core.errors import UserError, one_line
from tljax.inference.classifier import Classifier
from tljax.weights.torch_names import from_torch
from tljax.weights.weights_file import load_weights

SINGLE, BATCH = 4, 16  # so many pictures are asked about alone, too; all in batches of so many
TOLERANCE = 1e-3  # of a probability; rounding gives about 1e-6
PROGRAMS = Path(__file__).parent / "runtimes"

Batches = Mapping[str, np.ndarray]


class Runtime(NamedTuple):
    """What runs a format.

    Attributes:
      file: the name of the export.
      words: what ran it.
      program: in `runtimes`; empty where the file holds only weights and tljax asks it.
      needs: modules.
      optional: whether the file can be made without them.
    """

    file: str
    words: str
    program: str = ""
    needs: tuple[str, ...] = ()
    optional: bool = False

    @property
    def absent(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


RUNTIMES = {
    "stablehlo": Runtime("model.stablehlo", "a fresh JAX process", "on_jax.py", ("flatbuffers",)),
    "onnx": Runtime("model.onnx", "onnxruntime", "on_onnxruntime.py", ("onnx", "onnxruntime")),
    "torch": Runtime("model.pth", "torchvision", "on_torch.py", ("torch", "torchvision"), optional=True),
    "safetensors": Runtime("model.safetensors", "safetensors and tljax"),
}


def make_batches(squares: np.ndarray) -> dict[str, np.ndarray]:
    """Some pictures alone and all in batches, by name; of uint8 `[N, crop, crop, 3]`, N of 2 or more."""
    alone = {f"alone{i}": squares[i : i + 1] for i in range(min(SINGLE, len(squares)))}
    return alone | {f"batch{i}": squares[i : i + BATCH] for i in range(0, len(squares), BATCH)}


def ask_runtime(runtime: Runtime, path: Path, about: Mapping[str, Any], batches: Batches) -> dict[str, np.ndarray]:
    """The probabilities, by batch, that the export's own runtime gives in a process without tljax.

    Raises:
      UserError: where it gives none, with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="tljax-export-") as folder:
        metadata, given, out = (Path(folder) / name for name in ("metadata.json", "batches.npz", "out.npz"))
        metadata.write_text(json.dumps(about), encoding="utf-8")
        np.savez(given, **batches)  # type: ignore[arg-type]
        parts = [sys.executable, "-P", PROGRAMS / runtime.program, path, metadata, given, out]
        done = subprocess.run([str(part) for part in parts], capture_output=True, text=True, check=False)
        if done.returncode:
            last = one_line((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
            raise UserError(f"{runtime.words} cannot run the {runtime.file} made here, which is removed: {last}")
        with np.load(out) as file:
            return {name: file[name] for name in file.files}


def ask_ours(classifier: Classifier, batches: Batches) -> dict[str, np.ndarray]:
    """The probabilities of a run, by batch."""
    return {name: classifier.probabilities(np.asarray(classifier.forward(batch))) for name, batch in batches.items()}


def ask_weights(path: Path, classifier: Classifier, batches: Batches) -> dict[str, np.ndarray]:
    """The probabilities of the run's network with the weights that tljax reads from a file of torchvision's names.

    Raises:
      UserError: where the safetensors library reads other ones from it.
    """
    variables, _ = load_weights(path, classifier.result["config"]["model"]["name"])
    if path.suffix == ".safetensors":
        import jax

        other = from_torch(safetensors.numpy.load_file(path))
        if not jax.tree.all(jax.tree.map(np.array_equal, other, variables)):
            raise UserError(f"safetensors reads other weights than tljax from the {path.name} made here")
    return ask_ours(dataclasses.replace(classifier, variables=variables), batches)


@dataclasses.dataclass(frozen=True)
class Parity:
    """How the answers of an export compare with the run's.

    Attributes:
      difference: the largest of two probabilities; infinite where there are not as many.
      agreed: pictures whose most probable class is the same.
      seen: pictures.
    """

    difference: float
    agreed: int
    seen: int

    @property
    def good(self) -> bool:
        return self.difference <= TOLERANCE  # not so of a NaN

    def __str__(self) -> str:
        same = f"same first class for {self.agreed} of {self.seen}"
        return f"probabilities differ by at most {self.difference:.1e}, {same}"


def compare(theirs: Batches, ours: Batches) -> Parity:
    """Compares probabilities `[B, classes]` by batch."""
    whole = [name for name in ours if name.startswith("batch")]
    seen = sum(len(ours[name]) for name in whole)
    if any(theirs[name].shape != ours[name].shape for name in ours):
        return Parity(float("inf"), 0, seen)
    agreed = sum(int((theirs[name].argmax(1) == ours[name].argmax(1)).sum()) for name in whole)
    return Parity(float(np.max([np.abs(theirs[name] - ours[name]).max() for name in ours])), agreed, seen)
