"""Where a network's numbers come from at the start of a run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tljax.core.errors import UserError
from tljax.models import Network
from tljax.run_dir import files as folders
from tljax.run_dir.checkpoint import saved_variables
from tljax.weights import hub
from tljax.weights.merge import compare, merge_pretrained
from tljax.weights.weights_file import load_weights


@dataclasses.dataclass(frozen=True)
class Weights:
    """Pretrained weights, found.

    Attributes:
      path: a file, or the folder of a finished run.
      resize, crop: pixels of the short side and of the central square that the weights were evaluated on.
      mean, std: per channel, 0 to 1, of the pictures that they were trained on.
    """

    path: Path | None
    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def short_side(self, size: int) -> int:
        """What pictures are resized to, so that a square of `size` pixels shows the share of them that `crop` does."""
        return round(size * self.resize / self.crop)


def no_weights(text: str | None) -> bool:
    """Whether `config.model.weights` asks for random weights."""
    return text is None or text.lower() in ("none", "")


def find_weights(text: str | None, arch: str) -> Weights:
    """Finds (and, for `imagenet`, downloads) what `config.model.weights` names; None means random.

    Raises:
      UserError: when it is nowhere, or of another network.
    """
    if text is None or no_weights(text):
        path, prep = None, hub.preprocessing(None, arch)
    elif Path(text).is_dir():
        path, config, result = Path(text), folders.read_config(Path(text)), folders.read_result(Path(text))
        if result is None:
            raise UserError(f"model.weights={text} is the folder of a run that is not finished")
        if rounds := result.get("rounds"):  # the last student is a run of its own
            return find_weights(str(path / f"round-{len(rounds) - 1}"), arch)
        if "rows" in result:
            raise UserError(f"model.weights={text} is the demo's folder; give that of one of its runs")
        if "members" in result:
            raise UserError(f"model.weights={text} is the folder of a population; run the member you want alone")
        if config["model"]["name"] != arch:
            raise UserError(f"model.weights={text} is a run of {config['model']['name']}, but model.name={arch}")
        prep = hub.Preprocessing(**result["preprocessing"])
    else:
        path, prep = hub.resolve(text, arch), hub.preprocessing(text, arch)
    return Weights(path, prep.resize, prep.crop, tuple(prep.mean), tuple(prep.std))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Pretrained variables, read.

    Attributes:
      variables: `{'params': ..., 'batch_stats': ...}`, or None for random weights.
      source: what to call them in an error.
      record: what a run writes down: file, hash, whatever the file says of itself.
      classes: what the head tells apart, where that is known.
    """

    variables: dict[str, Any] | None
    source: str
    record: dict[str, Any]
    classes: tuple[str, ...] | None = None


def load_pretrained(weights: Weights, arch: str) -> Loaded:
    """Reads what `find_weights` found.

    Raises:
      UserError: for a file that cannot be read, or is of another architecture.
    """
    if weights.path is None:
        return Loaded(None, "random weights", {"source": None})
    if weights.path.is_dir():
        result = folders.read_result(weights.path) or {}
        variables, source = saved_variables(weights.path, result["best_step"]), str(weights.path)
        return Loaded(variables, source, {"source": source}, tuple(result["classes"]))
    variables, metadata = load_weights(weights.path, arch)
    classes = hub.of_export(weights.path)[0]
    return Loaded(variables, str(weights.path), {"source": weights.path.name, **metadata}, classes)


def merge_loaded(
    model: Network, init: dict[str, Any], loaded: Loaded, *, fresh: Sequence[str], shapes_only: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Puts pretrained variables in the places of fresh ones.

    Args:
      model: the network.
      init: its variables, or their shapes.
      loaded: of `load_pretrained`.
      fresh: groups that are not loaded.
      shapes_only: only say whether it fits.

    Returns:
      The variables (`init` itself under `shapes_only`), and a record of where they came from.

    Raises:
      UserError: when the weights do not fit, one line with what is missing, unexpected and of another shape.
    """
    if loaded.variables is None:
        return init, loaded.record
    cut = [group for group in model.trunk if group not in model.groups]
    options: dict[str, Any] = dict(fresh=fresh, group_of=model.group_of, unused_groups=cut)
    report = compare(init, loaded.variables, **options)
    if not shapes_only:
        init = merge_pretrained(init, loaded.variables, source=loaded.source, **options)
    else:
        report.check(loaded.source)
    return init, {**loaded.record, **report.as_dict()}
