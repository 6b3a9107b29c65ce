"""Transfer learning on images.

    import tljax

    config = tljax.config("folder:photos", train="head,layer4", lr=1e-4)
    tljax.plan(config)                         which groups would train, at which rate, with which batch norm
    run = tljax.fit(config, "runs/photos")     trains, goes on, or loads what is finished
    tljax.evaluate(run)                        accuracy with its interval, by class, and calibration
    tljax.predict(run, ["cat.jpg", "holiday/"])

`tljax.load("runs/photos")` is a finished run. See `tljax.api`.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from tljax.core.errors import UserError
from tljax.core.signals import Interrupted

if TYPE_CHECKING:
    from tljax.api import config, evaluate, fit, load, plan, predict, setup_process

__all__ = [
    "Interrupted", "UserError", "config", "evaluate", "fit", "load", "plan", "predict", "setup_process",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports what is asked for: JAX starts with flags that the commands set after `import tljax`."""
    if name in __all__:
        api = import_api()
        # `predict` is also a command's module, which can be called.
        return importlib.import_module("tljax.predict") if name == "predict" else getattr(api, name)
    raise AttributeError(f"module 'tljax' has no attribute {name!r}")


def import_api() -> Any:
    """The module of the functions, whose libraries leave the process as it was."""
    if "tljax.api" in sys.modules:
        return importlib.import_module("tljax.api")  # which waits for a thread that is importing it
    from tljax.core.guest import importing

    with importing():
        return importlib.import_module("tljax.api")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
