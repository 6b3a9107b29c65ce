"""How fast a run trains, epoch by epoch."""

import dataclasses
from collections.abc import Iterable
from typing import Any


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
