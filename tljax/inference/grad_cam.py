"""Where in a picture a finished run's answer comes from: Grad-CAM and saliency."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tljax.inference.classifier import Classifier
from tljax.models import ForwardContext, Network

Explain = Callable[[Any, Any], tuple[jax.Array, jax.Array]]
BEST = -1  # in place of a class: the one that the network finds most probable


def last_maps(model: Network) -> str:
    """The last stage whose output is maps: the one before pool and head."""
    return [stage for stage in model.stages if stage not in ("pool", "head")][-1]


def make_grad_cam(classifier: Classifier, stage: str | None = None) -> Explain:
    """Makes `(squares, classes) -> (logits, heat)`, compiled once per number of squares.

    Gradient-weighted class activation mapping (Selvaraju et al. 2017): the stage's channels, each weighted by the mean
    over the map of the class's gradient, summed; what speaks against the class is cut off at zero.

    Args:
      classifier: a finished run.
      stage: whose output is weighed; None for the last that has maps.

    Returns:
      A function of squares uint8 `[B, crop, crop, 3]` and classes int `[B]`, with `BEST` for the most probable, to
      logits `[B, outputs]` and heat float32 `[B, h, w]`, zero or more, in units of the class's logit.
    """
    after = _after(classifier.model, stage or last_maps(classifier.model))

    def run(variables: Any, x: jax.Array, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
        maps: Any = classifier.model.apply(variables, x, ForwardContext(), stop_stage=after)

        def rest(maps: Any) -> tuple[jax.Array, jax.Array]:
            logits: Any = classifier.model.apply(variables, maps, ForwardContext(), start_stage=after)
            return _scores(logits, classes).sum(), logits

        gradients, logits = jax.grad(rest, has_aux=True)(maps)
        weights = gradients.astype(jnp.float32).mean((1, 2), keepdims=True)
        return logits, jax.nn.relu((weights * maps.astype(jnp.float32)).sum(-1))

    return _compiled(classifier, run)


def make_saliency(classifier: Classifier) -> Explain:
    """Makes `(squares, classes) -> (logits, saliency)`, as `make_grad_cam` does.

    The gradient of the class's logit by each pixel, the largest size over the colors (Simonyan et al. 2013): float32
    `[B, crop, crop]`, in logits by unit of the normalized pixel.
    """

    def run(variables: Any, x: jax.Array, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
        def score(x: Any) -> tuple[jax.Array, jax.Array]:
            logits: Any = classifier.model.apply(variables, x, ForwardContext())
            return _scores(logits, classes).sum(), logits

        gradients, logits = jax.grad(score, has_aux=True)(x)
        return logits, jnp.abs(gradients.astype(jnp.float32)).max(-1)

    return _compiled(classifier, run)


def _after(model: Network, stage: str) -> str:
    return model.stages[model.stages.index(stage) + 1]


def _scores(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """What is explained, `[B]`: the class's logit; of a single logit its distance from the other class."""
    logits = logits.astype(jnp.float32)
    if logits.shape[1] == 1:
        logits = jnp.concatenate([-logits, logits], axis=1)
    classes = jnp.where(classes == BEST, logits.argmax(1), classes)
    return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]


def _compiled(classifier: Classifier, run: Callable[..., tuple[jax.Array, jax.Array]]) -> Explain:
    normalize, variables = classifier.normalize, jax.device_put(classifier.variables)
    compiled = jax.jit(lambda variables, squares, classes: run(variables, normalize(squares), classes))
    return lambda squares, classes: compiled(variables, squares, jnp.asarray(classes, jnp.int32))
