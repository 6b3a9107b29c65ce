"""Where a network's numbers come from at the start of a run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from tljax import workdir as folders
from tljax.checkpoint import saved_variables
from tljax.convert import pretrained
from tljax.convert.weights_file import load_weights
from tljax.errors import UserError
from tljax.models import Network, init_variables
from tljax.transfer.merge import compare, merge_pretrained


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


def find_weights(text: str | None, arch: str) -> Weights:
    """Finds (and, for `imagenet`, downloads) what `config.model.weights` names; None means random.

    Raises:
      UserError: when it is nowhere, or of another network.
    """
    if text is None or text.lower() in ("none", ""):
        path, prep = None, pretrained.preprocessing(None, arch)
    elif Path(text).is_dir():
        path, config, result = Path(text), folders.read_config(Path(text)), folders.read_result(Path(text))
        if result is None:
            raise UserError(f"model.weights={text} is the folder of a run that is not finished")
        if config["model"]["name"] != arch:
            raise UserError(f"model.weights={text} is a run of {config['model']['name']}, but model.name={arch}")
        prep = pretrained.Preprocessing(**result["preprocessing"])
    else:
        path, prep = pretrained.resolve(text, arch), pretrained.preprocessing(text, arch)
    return Weights(path, prep.resize, prep.crop, tuple(prep.mean), tuple(prep.std))


def initial_variables(
    model: Network, key: jax.Array, weights: Weights, *, arch: str, fresh: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random variables, with the pretrained ones in their places.

    Args:
      model: the network.
      key: draws what starts fresh.
      weights: of `find_weights`.
      arch: the network's name.
      fresh: groups that are not loaded.

    Returns:
      The variables, and a record of where they came from: file, hash, arrays by group.

    Raises:
      UserError: when the weights do not fit, one line with what is missing, unexpected and of another shape.
    """
    init = init_variables(model, key)
    if weights.path is None:
        return init, {"source": None}
    if weights.path.is_dir():
        result = folders.read_result(weights.path) or {}
        loaded = saved_variables(weights.path, result["best_step"])
        record = {"source": str(weights.path)}
    else:
        loaded, metadata = load_weights(weights.path, arch)
        record = {"source": weights.path.name, **metadata}
    options: dict[str, Any] = dict(
        fresh=fresh, group_of=model.group_of, unused_groups=[g for g in model.trunk if g not in model.groups]
    )
    merged = merge_pretrained(init, loaded, source=str(weights.path), **options)
    return merged, {**record, **compare(init, loaded, **options).as_dict()}
