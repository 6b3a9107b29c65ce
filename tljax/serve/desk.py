"""One network that many ask: one picture at a time, in a thread of its own, behind a queue that has an end."""

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from tljax.inference.classifier import Classifier
from tljax.inference.grad_cam import BEST, make_grad_cam
from tljax.report.html import png_address
from tljax.report.plots import heat_over

STRENGTH = 0.85  # of the full color; the page's slider takes it back


class Busy(Exception):
    """All places of the queue are taken."""


class Prediction(NamedTuple):
    """What the network says of a picture.

    Attributes:
      best: (class, probability), the most probable first.
      of: the class whose Grad-CAM `heat` shows; empty without.
      picture: data URL of what the network saw, a PNG of its square; empty without heat.
      heat: data URL of the same square under its Grad-CAM; empty without.
    """

    best: tuple[tuple[str, float], ...]
    of: str = ""
    picture: str = ""
    heat: str = ""


class InferenceQueue:
    """Where questions to a network wait for their turn.

    Args:
      classifier: a finished run.
      places: requests that may be under way at once, from their first byte to their answer.
    """

    def __init__(self, classifier: Classifier, *, places: int):
        self.classifier, self.places = classifier, places
        self.taken = self.answered = 0
        self._grad_cam = make_grad_cam(classifier)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")

    def warm_up(self) -> None:
        """Compiles both programs, so that nobody has to wait for that."""
        black = np.zeros((1, 1, 3), np.uint8)
        for heat in (False, True):
            self.say(black, top=1, heat=heat)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue. Call it from the event loop's thread alone.

        Raises:
          Busy: at once, where none is free.
        """
        if self.taken >= self.places:
            raise Busy
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def ask(self, data: bytes, *, top: int, heat: bool = False, of: str | None = None) -> Prediction:
        """`say`, in the network's thread."""
        loop = asyncio.get_running_loop()
        said = await loop.run_in_executor(self._thread, lambda: self.say(data, top=top, heat=heat, of=of))
        self.answered += 1
        return said

    def say(self, data: bytes | np.ndarray, *, top: int, heat: bool = False, of: str | None = None) -> Prediction:
        """What the network says of an image file.

        Args:
          data: its bytes, or a decoded picture.
          top: classes to name; of fewer, all.
          heat: whether to show where the answer comes from.
          of: the class that the heat explains; None for the most probable.

        Raises:
          decode.Unreadable: with the reason.
        """
        c = self.classifier
        square = c.see(data)
        if heat:
            logits, maps = self._grad_cam(square[None], [BEST if of is None else c.classes.index(of)])
        else:
            logits, maps = c.forward(square[None]), None
        (chances,) = c.probabilities(np.asarray(logits))
        best = c.best(chances, top)
        if maps is None:
            return Prediction(best)
        hot = heat_over(square, np.asarray(maps[0]), strength=STRENGTH)
        return Prediction(best, of or best[0][0], png_address(square), png_address(hot))

    def close(self) -> None:
        """Lets go of what still waits."""
        self._thread.shutdown(cancel_futures=True)
