"""A finished run as a function: pictures in, probabilities out."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from tljax.core.errors import UserError
from tljax.data.augment import make_normalize
from tljax.data.decode import Levels, decode
from tljax.data.reading import put_central_square
from tljax.metrics.calibration import FITTED, log_probabilities
from tljax.metrics.losses import outputs
from tljax.models import ForwardContext, Network, create_model, variable_shapes
from tljax.run_dir import files as folders
from tljax.run_dir.checkpoint import saved_member, saved_steps, saved_variables
from tljax.weights.hub import Preprocessing

NOTHING_FITTED = {"temperature": 1.0, "raw": "there are no validation images with finite logits"}


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The network of a finished run at its best epoch, with all that it takes to ask it.

    Attributes:
      workdir: the run's folder.
      model: the network.
      variables: `{'params': ..., 'batch_stats': ...}`.
      classes: names in the order of the outputs; of a head with more outputs than classes the others are `output N`.
      preprocessing: how pictures are resized, cut and normalized.
      fitted: the temperature that validation's logits gave, on how many images, or why it is 1 (`raw`); as in
        result.json under `scaled`.
      result: what the run's result.json holds.
    """

    workdir: Path
    model: Network
    variables: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    fitted: dict[str, Any]
    result: dict[str, Any]

    @property
    def temperature(self) -> float:
        """What logits are divided by for probabilities."""
        return float(self.fitted["temperature"])

    def see(self, data: bytes | np.ndarray | Image.Image) -> np.ndarray:
        """Reads an image file's bytes, a Pillow image or pixels to what evaluation shows the network: uint8
        `[crop, crop, 3]`. Any size and orientation will do.

        Raises:
          decode.Unreadable: with the reason.
        """
        crop = self.preprocessing.crop
        square = np.zeros((crop, crop, 3), np.uint8)
        levels = Levels(self.preprocessing.white, self.preprocessing.float_white)
        put_central_square(decode(data, short_side=self.preprocessing.resize, levels=levels), square)
        return square

    @property
    def normalize(self) -> Callable[[Any], jax.Array]:
        """Squares uint8 -> what the network takes."""
        return make_normalize(self.preprocessing.mean, self.preprocessing.std)

    @functools.cached_property
    def forward(self) -> Callable[[Any], jax.Array]:
        """Squares uint8 `[B, crop, crop, 3]` -> logits `[B, outputs]`, compiled once per B."""
        normalize, variables = self.normalize, jax.device_put(self.variables)

        @jax.jit
        def run(variables: Any, squares: jax.Array) -> jax.Array:
            logits: Any = self.model.apply(variables, normalize(squares), ForwardContext())
            return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

        return functools.partial(run, variables)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities `[N, classes]` of logits `[N, outputs]`, float64."""
        return np.exp(log_probabilities(logits, self.temperature))

    def best(self, chances: np.ndarray, top: int) -> tuple[tuple[str, float], ...]:
        """(class, probability) of a row of `probabilities`, the most probable first; of equal ones the first class."""
        order = np.argsort(-chances, kind="stable")[:top]
        return tuple((self.classes[i], float(chances[i])) for i in order)


def load(workdir: str | Path) -> Classifier:
    """Loads a finished run: a single one, a member of a population, the last student of rounds.

    Raises:
      UserError: for a folder that holds none, or several.
    """
    workdir = folders.named(workdir)
    result = folders.read_result(workdir)
    if result is None:
        raise UserError(f"{workdir} is not the folder of a finished run: it has no {folders.RESULT}")
    if rounds := result.get("rounds"):
        return load(workdir / f"round-{len(rounds) - 1}")
    if "members" in result:
        chosen = workdir / "members" / f"{result.get('best_member') or 0:03}"
        raise UserError(f"{workdir} holds a population; give the folder of one member, such as {chosen}")
    try:
        config, classes = result["config"], result["classes"]
        m, found = config["model"], Preprocessing(**result["preprocessing"])
        count = m["outputs"] or outputs(config["loss"]["name"], len(classes))
        options = {name: m[name] for name in ("width", "dropout", "stochastic_depth", "dtype")}
        blocks = m["blocks"] and tuple(m["blocks"])
        model = create_model(m["name"], num_classes=count, last_stage=m["last_stage"] or None, blocks=blocks, **options)
        step, last = result["best_step"], config["select"] == "last"
        scaled = ((result["calibration"] or {}).get("validation") or {}).get("scaled")
        fitted = {name: scaled[name] for name in FITTED if name in scaled} if scaled else NOTHING_FITTED
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{workdir / folders.RESULT} is not what a run of this version leaves ({error!r})") from None
    real = workdir.resolve()
    population = real.parent.parent  # of `/` this is `/`
    if real.parent.name == "members" and (population / folders.CONFIG).is_file():
        member, steps = int(real.name), saved_steps(population)
        variables = saved_member(population, steps[-1], member, variable_shapes(model), last=last)
    else:
        variables = saved_variables(workdir, step)
    names = (*classes, *(f"output {i}" for i in range(len(classes), count)))
    return Classifier(workdir, model, variables, names, found, fitted, result)
