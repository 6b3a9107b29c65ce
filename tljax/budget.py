"""A run that has to end in so many minutes: what it takes is measured, and of its recipe is done what fits.

The number of updates is settled before the first one, so that rates that fall to 0 do so where training ends.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from tljax import workdir as folders
from tljax.clock import Budget, in_words
from tljax.data.load import Data
from tljax.divergence import watched
from tljax.errors import UserError
from tljax.experiment import Experiment, prepare
from tljax.feed import Features, endless, run_over
from tljax.fields import with_fields
from tljax.recipe import DEFAULTS, STOPS, Choice
from tljax.steps import parallel_forward_step, parallel_train_step, replicate
from tljax.train import fresh_state

AIM = 0.92  # share of the minutes that is planned for
LEAST = 30  # updates, below which it is no training
TIMED, LONG = 3, 5.0  # batches that are timed after the first one, unless they take so many seconds
CACHED = 0.4  # share of a program's first call that it takes again, where JAX keeps programs on disk
FORWARD = 1 / 3  # of an update: no way back
# Pictures, trackers, libraries and files, before training and after: shares of what loading took, which varies with the
# machine alike. Measured of folders of photographs on one core.
BEFORE, AFTER = 1.2, 0.3


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds that parts of a run take on this machine.

    Attributes:
      view: features of one view of all training images; 0 where none are kept.
      update: one update, on features where they are kept.
      whole: one update that takes its images through the whole network.
      stop: validating and saving, after an epoch.
      once: all else that comes before the last update.
      rest: all that comes after it.
    """

    view: float
    update: float
    whole: float
    stop: float
    once: float
    rest: float

    def updates(self, updates: int, stops: int, views: int) -> float:
        return updates * (self.update if views else self.whole) + stops * self.stop

    def total(self, updates: int, stops: int, views: int) -> float:
        return views * self.view + self.updates(updates, stops, views) + self.once + self.rest


def plan(
    config: Any, choices: Sequence[Choice], budget: Budget, workdir: Path, console: Console,
    *, overwrite: bool = False,
) -> tuple[Any, tuple[Choice, ...], Data]:  # fmt: skip
    """Decodes the images, times a few batches, and cuts what was chosen down to a budget, which learns what is planned.

    Args:
      config: with nothing open.
      choices: the recipe's.
      budget: the minutes.
      workdir: the run's folder.
      console: where to print.
      overwrite: whether another run there may be thrown away.

    Returns:
      The config with nothing open, what was chosen, and the decoded images.

    Raises:
      UserError: for whatever is wrong with config or images, and where the budget is too small.
    """
    folders.check_free(workdir, config.to_dict(), overwrite=overwrite)
    loading = budget.elapsed
    x, variables = prepare(config, workdir, console)
    costs = measure(x, variables, loading, budget.clock)
    choices, (updates, stops, views) = fit(
        choices, config, costs, budget.elapsed, views=x.views, per_pass=x.steps_per_pass, minutes=budget.minutes
    )
    budget.view, budget.updates, budget.rest = costs.view, costs.updates(updates, stops, views), costs.rest
    return with_fields(config, {c.field: c.value for c in choices if c.field in DEFAULTS}), choices, x.data


def measure(x: Experiment, variables: Any, loading: float, clock: Callable[[], float]) -> Costs:
    """Times features and updates; nothing of it is kept. `loading` is what the command took before the images."""
    key, state, data = jax.random.key(x.config.seed), replicate(fresh_state(x, 0, variables)), x.data
    cut, val, test = x.cut(0), len(data.splits.get("val", ())), len(data.splits.get("test", ()))
    keeps = cut is not None and x.config.cache.features != "off"
    image = compiled = 0.0
    kept = {}
    if keeps:
        pictures = x.feed(data.pool, training=True, once=True) if x.views else x.feed("train", once=True)
        step = parallel_forward_step(x.forward_step(0, pictures, end=cut))
        each, compiled = timed(run_over(step, pictures, state.variables, key, x.replicas), clock)
        image = each / pictures.batch_size
    if keeps and x.views:
        size = x.config.data.size
        one: Any = jax.eval_shape(lambda v: x.model.apply(v, jnp.zeros((1, size, size, 3)), end=cut), variables)
        kept["train"] = Features(np.zeros((len(data.pool), 1, *one.shape[1:]), one.dtype), data.pool)
    update, first = timed(_updates(x, state, x.training_feed(kept), key), clock)
    evaluated = FORWARD * update / x.batch_size
    again = CACHED if getattr(jax.config, "jax_compilation_cache_dir", None) else 1.0
    return Costs(
        view=image * len(data.pool) if kept else 0.0,
        update=update,
        whole=update + (image * x.batch_size if kept else 0.0),
        stop=val * evaluated,
        once=BEFORE * loading + first + again * compiled + image * val,  # the program of updates has another schedule
        rest=AFTER * loading
        + bool(test) * (compiled or FORWARD * first)
        + val * evaluated
        + test * (image + evaluated),
    )


def timed(batches: Iterator[Any], clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a batch, and of what the first one takes beside: its program is compiled."""
    began, times = clock(), []
    for _ in batches:
        times.append(clock() - began - sum(times))
        if len(times) == 1 + TIMED or (len(times) > 1 and sum(times[1:]) > LONG):
            break
    first, *others = times
    each = sum(others) / len(others) if others else first
    return each, max(0.0, first - each)


def _updates(x: Experiment, state: Any, feed: Any, key: jax.Array) -> Iterator[None]:
    step = watched(x.train_step(0, feed), x.plans[0][0], alone=not x.population, stop=x.config.stop_at_nan)
    step = parallel_train_step(step)
    for number, shard in enumerate(endless(feed, x.replicas)):
        state, metrics = step(state, shard | {"number": np.full(x.replicas.local, number, np.int32)}, key)
        jax.block_until_ready(metrics)
        yield


def fit(
    choices: Sequence[Choice], config: Any, costs: Costs, gone: float,
    *, views: int, per_pass: int, minutes: float,
) -> tuple[tuple[Choice, ...], tuple[int, int, int]]:  # fmt: skip
    """Choices that keep to a budget: of a recipe's updates and views all that fit, updates first.

    Args:
      choices: the recipe's, of what was open; `epochs` is among them.
      config: with all of these in their place.
      costs: as measured.
      gone: seconds of the budget that have gone.
      views: that the recipe's run keeps, or the user's.
      per_pass: updates in which each image comes once.
      minutes: the budget.

    Returns:
      The choices in their order, then one called `minutes` that says what is expected; updates, epochs and views.

    Raises:
      UserError: where not even `LEAST` updates fit, or one epoch as long as the user wants it.
    """
    opened, steps = {choice.field for choice in choices}, config.epoch_steps or per_pass
    wanted, length = config.epochs * steps, None if "epoch_steps" in opened else steps
    each = length or 1
    least = min(wanted, -(-LEAST // each) * each)
    free = views > 0 and costs.view > 0 and "cache.views" in opened
    few = (1, 0) if free else (views,)

    def candidate(updates: int, kept: int) -> tuple[int, int, int]:
        stops = config.epochs
        if updates < wanted:
            stops = updates // length if length else min(STOPS, max(1, updates // max(per_pass, LEAST)))
        return updates // stops * stops, stops, min(kept, -(-updates // per_pass))

    candidates = itertools.chain(
        (candidate(wanted, kept) for kept in (range(views, 0, -1) if free else ())),
        (candidate(updates, kept) for updates in range(wanted, least - 1, -each) for kept in few),
    )
    chosen = next((found for found in candidates if gone + costs.total(*found) <= AIM * 60 * minutes), None)
    if chosen is None:
        needed = gone + min(costs.total(*candidate(least, kept)) for kept in few)
        enough = -(-needed // (6 * AIM)) / 10
        raise UserError(
            f"minutes={minutes:g} is too little: {in_words(gone)} went for loading and reading the images, and the "
            f"least that can be done takes about {in_words(needed)} in all; give --minutes={enough:g}"
        )
    updates, stops, kept = chosen
    fits = f"as many as fit in {minutes:g} minutes"
    changed = {}
    if updates != wanted:
        changed["epochs"] = stops, f"{updates:,} updates in all, {fits}; the recipe has {wanted:,}"
        changed["epoch_steps"] = updates // stops, f"updates between two looks at validation; a pass has {per_pass}"
    if free and kept != views:
        why = f"random views of each image, {fits}" if kept else "none fits"
        changed["cache.views"] = kept, f"{why}; the recipe has {views}"
    parts = [f"{in_words(gone)} have gone"]
    if kept and costs.view:
        parts.append(f"{kept} x {in_words(costs.view)} for features")
    parts += [f"{in_words(costs.updates(*chosen))} for {updates:,} updates and validation",
              f"{in_words(costs.once + costs.rest)} for the test and all else"]  # fmt: skip
    expected = f"about {in_words(gone + costs.total(*chosen))}: {', '.join(parts)}"
    said = [Choice(c.field, *changed[c.field]) if c.field in changed else c for c in choices]
    return (*said, Choice("minutes", minutes, expected)), chosen
