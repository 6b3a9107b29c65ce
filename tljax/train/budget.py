"""A run that has to end in so many minutes: what it takes is measured, and of its recipe is done what fits.

Features of views are made while there is time for them. Then, before the first update, the number of updates is
settled, so that rates that fall to 0 do so where training ends.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from tljax.core.errors import counted
from tljax.distributed import parallel
from tljax.engine.input_pipeline import Features, repeat
from tljax.engine.nan_guard import skip_nonfinite_updates
from tljax.settings.dotted import with_fields
from tljax.train.experiment import Experiment
from tljax.train.feature_cache import Kept, keep, shape_of_one
from tljax.train.recipe import DEFAULTS, STOPS, Choice
from tljax.train.throughput import LEAST, Budget, in_words
from tljax.train.trainer import fresh_state

AIM = 0.95  # share of the minutes that is planned for
UNDER, OVER = 0.8, 1.05  # where less than the first would be used, one more view may take up to the second
MOST = 1.1  # share up to which all of the recipe's updates are worth more than an early end
TIMED, LONG = 3, 5.0  # batches that are timed after the first one, unless they take so many seconds
CACHED = 0.4  # share of a program's first call that it takes again, where JAX keeps programs on disk
FORWARD = 1 / 3  # of an update: no way back
AFTER = 0.3  # pictures and files after the test: share of what loading took, which varies with the machine alike


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds that what follows takes on this machine.

    Attributes:
      update: one update, on features where they are kept.
      stop: validation after an epoch.
      once: all else that comes before the last update.
      rest: all that comes after it.
    """

    update: float
    stop: float
    once: float
    rest: float

    def total(self, updates: int, stops: int) -> float:
        return updates * self.update + stops * self.stop + self.once + self.rest


@dataclasses.dataclass(frozen=True)
class Pace:
    """What was measured before there are features, in seconds.

    Attributes:
      loading: of the command, before it read all images.
      update, first: of an update, on features where views of them are kept; of the first one beside: it compiles.
      batch, val, test: images of an update, and of the splits.
      views: whether that was on features.
    """

    loading: float
    update: float
    first: float
    batch: int
    val: int
    test: int
    views: bool

    def costs(self, image: float | None = None, compiled: float = 0.0, *, dropped: bool = False) -> Costs:
        """Of all after the features.

        Args:
          image: seconds of one image through what never changes; None where nothing is kept.
          compiled: seconds that its program took to compile.
          dropped: whether updates take their images through all of the network, whatever was measured.
        """
        whole = FORWARD * self.update / self.batch  # of an image, where updates take images
        again = CACHED if getattr(jax.config, "jax_compilation_cache_dir", None) else 1.0
        on_features = whole if self.views else 0.0
        update = self.update + (self.batch * (image or 0.0) if dropped else 0.0)
        validated = self.val * (whole if image is None else on_features)
        tested = self.test * (whole if image is None else image + on_features) + validated
        program = FORWARD * self.first if image is None else compiled * bool(self.test)
        once = self.first + compiled if dropped else again * self.first
        return Costs(update, validated, once, AFTER * self.loading + program + tested)


class TooSlow(Exception):
    """There is no time for features of one view."""


class Views:
    """Decides, from the pace of the features, when there are views enough.

    Attributes:
      image, compiled: seconds of one image, and those that the program took to compile, as seen so far.
    """

    def __init__(
        self, budget: Budget, images: int, later: Callable[[float, float, int], float],
        without: Callable[[float, float], float], *, updates: tuple[int, int], views: int, free: bool,
        tell: Callable[[str], None],
    ):  # fmt: skip
        """
        Args:
          budget: the minutes.
          images: how many a view has.
          later: (`image`, `compiled`, updates) -> seconds of all that comes after the features.
          without: (`image`, `compiled`) -> the same of the fewest updates, where no view is kept.
          updates: the fewest, and the recipe's.
          views: the recipe's number, or the user's.
          free: whether the number of views is not the user's.
          tell: told once, as soon as it is known, that minutes are too few.
        """
        self.budget, self.images, self.later, self.without = budget, images, later, without
        self.updates, self.free, self.tell = updates, free, tell
        self.least = images * (1 if free else views)
        self._told = False
        self.image = self.compiled = 0.0
        self._times = [(budget.elapsed, 0)]

    def __call__(self, done: int, of: int) -> bool:
        """After a batch, `done` images in all: whether the view at hand is the last. Raises TooSlow where it is not to
        be, either."""
        now = self.budget.elapsed
        self._times = [*self._times[:2], (now, done)]
        (began, _), (first, warm), *_ = self._times
        self.image = (now - first) / (done - warm) if done > warm else (now - began) / done
        self.compiled = max(0.0, first - began - warm * self.image)
        seconds, seen, (least, wanted) = self.budget.seconds, (self.image, self.compiled), self.updates
        if TIMED * warm < done < self.least and not self._told:
            shortest, without = (self.least - done) * self.image + self.later(*seen, least), self.without(*seen)
            drops = self.free and without < shortest
            if now + shortest > OVER * seconds:
                needed = now + (without if drops else shortest)
                if needed > MOST * seconds:
                    self._told = True
                    self.tell(
                        f"{self.budget.words} will not do: the least that can be done takes about {in_words(needed)}"
                    )
                if drops:
                    raise TooSlow
        if not self.free:
            return False
        later = self.later(*seen, wanted)
        idle = now + later < UNDER * seconds
        return now + self.images * self.image + later > (OVER if idle else AIM) * seconds


def settle(
    x: Experiment, variables: Any, choices: Sequence[Choice], workdir: Path,
    *, budget: Budget, loading: float, console: Console,
) -> tuple[Experiment, tuple[Choice, ...], Kept | None]:  # fmt: skip
    """Times a few updates, makes features, and cuts what was chosen down to a budget; says so.

    Args:
      x: of what was chosen, no update done.
      variables: its initial ones.
      choices: the recipe's.
      workdir: where features lie that outgrow the memory.
      budget: the minutes; learns how long a run takes after its last update.
      loading: seconds that the command took before it read all images.
      console: where to print.

    Returns:
      The experiment that fits, what was chosen, and the features.
    """
    config = x.config
    x.duplicates  # noqa: B018  # looked for now, so that its time has gone
    pace = measure(x, variables, loading, budget.clock)
    costs, kept = pace.costs(), None
    if is_kept(x):
        free = pace.views and config.cache.views > 0 and "cache.views" in {choice.field for choice in choices}
        least, wanted = min(LEAST, x.last_step), x.last_step
        views = Views(
            budget, len(x.data.pool),
            lambda image, compiled, n: pace.val * image + pace.costs(image, compiled).total(n, config.epochs),
            lambda image, compiled: pace.val * image + pace.costs(image, compiled, dropped=True).total(least, 1),
            updates=(least, wanted), views=x.views, free=free, tell=console.print,
        )  # fmt: skip
        state, dropped = parallel.replicate(fresh_state(x, 0, variables)), False
        try:
            kept = keep(x, 0, state.variables, workdir=workdir, console=console, pause=views)
        except TooSlow:
            dropped, without = True, x.lasting(with_fields(config, {"cache.views": 0}))
            kept = keep(without, 0, state.variables, workdir=workdir, console=console)
        costs = pace.costs(views.image, views.compiled, dropped=dropped)
    made = kept.splits["train"].values.shape[1] if kept and "train" in kept.splits else 0
    settled, updates = fit(
        choices, config, costs, budget.elapsed, views=(made, x.views), per_pass=x.steps_per_pass,
        minutes=budget.minutes,
    )  # fmt: skip
    budget.rest = costs.rest
    if kept and made > (passes := -(-updates // x.steps_per_pass)):  # a view that no pass comes to
        few = kept.splits["train"]._replace(values=kept.splits["train"].values[:, :passes])
        kept = Kept(kept.record | {"views": passes}, kept.splits | {"train": few})
    console.print(f"settled for {budget.words}:")
    for choice in settled:
        if choice not in choices:
            console.print(f"  {choice}", markup=False)
    fields = {choice.field: choice.value for choice in settled if choice.field in DEFAULTS}
    return x.lasting(with_fields(config, fields)), settled, kept


def is_kept(x: Experiment) -> bool:
    """Whether features are."""
    return (
        x.frozen_prefix_end(0) is not None
        and x.config.cache.features != "off"
        and bool(x.views or "val" in x.data.splits)
    )


def measure(x: Experiment, variables: Any, loading: float, clock: Callable[[], float]) -> Pace:
    """Times a few updates; nothing of them is kept. `loading` is what the command took before."""
    kept, data = {}, x.data
    if x.views and is_kept(x):
        one = shape_of_one(x, x.frozen_prefix_end(0), variables)
        kept["train"] = Features(np.zeros((len(data.pool), 1, *one.shape[1:]), one.dtype), data.pool)
    update, first = timed(_updates(x, variables, kept), clock)
    val, test = (len(data.splits.get(split, ())) for split in ("val", "test"))
    return Pace(loading, update, first, x.batch_size, val, test, bool(kept))


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


def _updates(x: Experiment, variables: Any, kept: dict[str, Features]) -> Iterator[None]:
    feed, key, state = (
        x.training_feed(kept),
        jax.random.key(x.config.seed),
        parallel.replicate(fresh_state(x, 0, variables)),
    )
    step = skip_nonfinite_updates(
        x.train_step(0, feed), x.plans[0][0], alone=not x.population, stop=x.config.stop_at_nan
    )
    step = parallel.train_step(step)
    for number, shard in enumerate(repeat(feed, x.replicas)):
        state, metrics = step(state, shard | x.replicas.scalars(number=number), key)
        jax.block_until_ready(metrics)
        yield


def fit(
    choices: Sequence[Choice], config: Any, costs: Costs, gone: float,
    *, views: tuple[int, int], per_pass: int, minutes: float,
) -> tuple[tuple[Choice, ...], int]:  # fmt: skip
    """Choices that keep to a budget: of a recipe's updates as many as fit, but `LEAST` in any case.

    Args:
      choices: the recipe's, of what was open; `epochs` is among them.
      config: with all of these in their place.
      costs: of what follows.
      gone: seconds of the budget that have gone.
      views: features of how many views of each image there are, and the recipe's number.
      per_pass: updates in which each image comes once.
      minutes: the budget.

    Returns:
      The choices in their order, then one called `minutes` that says what is expected; and the updates.
    """
    opened, steps = {choice.field for choice in choices}, config.epoch_steps or per_pass
    wanted, length = config.epochs * steps, None if "epoch_steps" in opened else steps

    def stops_of(updates: int) -> int:
        if updates == wanted:
            return config.epochs
        return updates // length if length else min(STOPS, max(1, updates // max(per_pass, LEAST)))

    each = length or 1
    least = min(wanted, -(-LEAST // each) * each)
    share = {wanted: MOST}
    fits = (
        n for n in range(wanted, least - 1, -each)
        if gone + costs.total(n, stops_of(n)) <= 60 * minutes * share.get(n, AIM)
    )  # fmt: skip
    updates = next(fits, least)
    stops = stops_of(updates)
    updates = updates // stops * stops
    changed: dict[str, tuple[Any, str]] = {}
    if updates != wanted:
        changed["epochs"] = stops, f"{updates:,} of {counted(wanted, 'update')}, for --minutes {minutes:g}"
        changed["epoch_steps"] = updates // stops, f"updates between two looks at validation; a pass has {per_pass}"
    made, of = views
    if "cache.views" in opened and config.cache.views and (made := min(made, -(-updates // per_pass))) != of:
        changed["cache.views"] = made, f"{made} of {of} random views of each image, for --minutes {minutes:g}"
    expected = gone + costs.total(updates, stops)
    parts = (f"{in_words(gone)} have gone, {in_words(updates * costs.update + stops * costs.stop)} for {updates:,} "
             f"updates and validation, {in_words(costs.once + costs.rest)} for the test and all else")  # fmt: skip
    if expected > 60 * MOST * minutes:
        said = f"too little: the least that can be done takes about {in_words(expected)} ({parts})"
    elif expected < 60 * UNDER * minutes and not changed:
        said = f"more than it needs: it ends after about {in_words(expected)} ({parts})"
    else:
        said = f"about {in_words(expected)} ({parts})"
    found = [Choice(c.field, *changed[c.field]) if c.field in changed else c for c in choices]
    return (*found, Choice("minutes", minutes, said)), updates
