"""How fast a run trains, epoch by epoch, how long it will take, and whether its time is up."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console

WORTH_SAYING = 10.0  # seconds
OFF = 0.25  # share by which a forecast is off that is corrected
TIMED = 3  # batches of features that show how long one takes
LAST = 1.12  # share of a budget that a run may take where it goes more slowly than was planned
LEAST = 30  # updates, below which it is no training


@dataclasses.dataclass
class Clock:
    """One epoch. The first step of a program, which compiles it, counts for the rate only if there is no other.

    Attributes:
      images, seconds: of all other steps.
      cold_images, cold_seconds: of first steps.
      waited: of `seconds`, those in which the loop stood waiting for its next batch.
      validation: seconds of the validation after it.
    """

    images: int = 0
    seconds: float = 0.0
    cold_images: int = 0
    cold_seconds: float = 0.0
    waited: float = 0.0
    validation: float = 0.0

    def add(self, images: int, seconds: float, *, cold: bool) -> None:
        if cold:
            self.cold_images, self.cold_seconds = self.cold_images + images, self.cold_seconds + seconds
        else:
            self.images, self.seconds = self.images + images, self.seconds + seconds

    @property
    def rate(self) -> float | None:
        """Images per second of training."""
        images, seconds = (self.images, self.seconds) if self.images else (self.cold_images, self.cold_seconds)
        return images / seconds if seconds else None

    @property
    def waited_share(self) -> float | None:
        """The share of the time in which the loop waited for input."""
        return self.waited / self.seconds if self.seconds else None

    @property
    def words(self) -> str:
        waited = f", {self.waited_share:.0%} of it waiting for input" if self.waited_share is not None else ""
        return f"{self.rate:,.0f} images/s{waited}" if self.rate else ""

    @property
    def speed(self) -> dict[str, Any]:
        """The speed, for result.json."""
        return {"images_per_second": self.rate, "waited_for_input": self.waited_share}


def total(clocks: Iterable[Clock]) -> Clock:
    """All epochs as one."""
    columns = zip(*map(dataclasses.astuple, clocks), strict=True)
    return Clock(*map(sum, columns))


def in_words(seconds: float) -> str:
    """A duration, to two digits: `40 s`, `4.6 minutes`, `2.5 hours`."""
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} s"


class Forecast:
    """Says how long a run will take, as soon as its own pace shows it, and once more if that was wrong.

    Attributes:
      total: seconds of the whole run, as first said, or last expected where nothing was worth saying; None before.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.perf_counter):
        self.console, self.now = console, now
        self.total: float | None = None
        self._image: float | None = None  # seconds of one image through what never changes
        self._seen: list[tuple[float, int]] = []
        self._said = self._corrected = False

    def features(self, done: int, of: int, *, tested: int) -> None:
        """Hears that features of `done` of `of` images are there; `tested` images go the same way at the end."""
        if len(self._seen) > TIMED:
            return
        self._seen.append((self.now(), done))
        if len(self._seen) <= TIMED:
            return
        (began, before), (ended, after) = self._seen[0], self._seen[-1]
        self._image = (ended - began) / (after - before)
        left = self._image * (of - done + tested)
        if left >= WORTH_SAYING:
            test = f", the test of {tested:,} images among it" if tested else ""
            self.console.print(f"about {in_words(left)}{test}: features of {of:,} views at {1 / self._image:,.1f} a "
                               "second, as first batches show; updates on them are timed when they begin")  # fmt: skip

    def updates(self, left: int, each: float, stops: float, gone: float, *, tested: int) -> None:
        """Hears that `left` updates of `each` seconds are to come, `stops` seconds of validation, and a test, `gone`
        seconds after the run began."""
        more = left * each + stops + tested * (self._image or 0.0)
        if not self._said:
            self.total, self._said = gone + more, more >= WORTH_SAYING
            if self._said:
                self.console.print(f"about {in_words(more)} more: {left:,} updates at {1000 * each:,.0f} ms, as first "
                                   "ones show, with validation and test")  # fmt: skip
        elif self.total and not self._corrected and abs(gone + more - self.total) > max(OFF * self.total, WORTH_SAYING):
            self._corrected = True
            self.console.print(f"about {in_words(more)} more: {in_words(gone + more)} in all, where "
                               f"{in_words(self.total)} was said")  # fmt: skip


@dataclasses.dataclass
class Budget:
    """Minutes that a command may take, from its start to its last file.

    Attributes:
      minutes: how many.
      began: when the command did, on the clock.
      clock: seconds.
      rest: seconds of what follows the last update, as planned; a tenth of all where nothing was planned.
    """

    minutes: float
    began: float
    clock: Callable[[], float] = time.perf_counter
    rest: float = 0.0

    def __post_init__(self):
        self.rest = self.rest or 0.1 * self.seconds

    @property
    def seconds(self) -> float:
        return 60 * self.minutes

    @property
    def words(self) -> str:
        """`1 minute`, `2.5 minutes`."""
        return f"{self.minutes:g} minute{'s' * (self.minutes != 1)}"

    @property
    def elapsed(self) -> float:
        return self.clock() - self.began

    @property
    def is_over(self) -> bool:
        """Whether the time is up for anything but the test."""
        return self.elapsed + self.rest > LAST * self.seconds
