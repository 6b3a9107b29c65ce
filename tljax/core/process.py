"""What a command sets up in its process, which is its own; `guest` is for calls in other people's."""

import logging
import os
import sys
import warnings
from pathlib import Path

from absl import logging as absl_logging

from tljax.core.guest import ENVIRONMENT, LEVELS, is_closed_loop


def quiet_libraries() -> None:
    """Keeps what libraries log from burying what a run says, for good: a command owns its process."""
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.FATAL)
    sys.unraisablehook = hide_closed_loops
    for name in ("jax", "urllib3"):
        logging.getLogger(name).setLevel(LEVELS[name])
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def hide_closed_loops(told: "sys.UnraisableHookArgs") -> None:
    """Prints what Python cannot raise, but for what is no news."""
    if not is_closed_loop(told):
        sys.__unraisablehook__(told)


def keep_compilations(*, small: bool = False) -> None:
    """Lets JAX keep compiled programs on disk, so that a program is compiled once; also those of less than a second if
    `small`.

    They lie in JAX_COMPILATION_CACHE_DIR, else in `xla` under TLJAX_CACHE or ~/.cache/tljax.
    """
    import jax

    # JAX writes entries in place: one that another process is writing, or was killed at, is compiled anew all the same.
    warnings.filterwarnings("ignore", message="Error reading persistent compilation cache entry")
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        try:
            folder = Path(os.environ.get("TLJAX_CACHE") or "~/.cache/tljax").expanduser() / "xla"
        except RuntimeError:  # a user without a home compiles anew each time
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if small:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
