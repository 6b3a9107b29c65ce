"""tljax trains and tests image classifiers that start from pretrained networks.

python -m tljax.main                                   the demo: no data, no downloads
python -m tljax.main --config configs/folder.py --config.data.source=folder:PATH
python -m tljax.main --config configs/pets_ft.py       see configs/common.py for every field
"""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from tljax.command_line import parse, run_flags
from tljax.errors import UserError
from tljax.guest import ENVIRONMENT, LEVELS, is_closed_loop
from tljax.machine import make_deterministic, tune_cpu
from tljax.workdir import named

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "demo.py"


def make_flags() -> flags.FlagValues:
    """The flags beside `--config`."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's folder; runs/CONFIG_NAME by default", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "throw away the run that is in that folder", flag_values=values)
    flags.DEFINE_float("minutes", None, "how long the whole command may take", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several processes", flag_values=values)
    flags.DEFINE_integer("processes", 1, "how many processes take part", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process", 0, "which of them this is, from 0", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("patience", 120, "seconds to wait for the others to start", lower_bound=1, flag_values=values)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for a mistake of the user's, 128 + the signal if interrupted.

    One of several processes ends with 75 where another one has died.
    """
    quiet_libraries()
    return run_flags(argv, make_flags(), __doc__, dispatch)


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


def dispatch(argv: Sequence[str], values: flags.FlagValues) -> None:
    began = time.perf_counter()
    config, path = parse(argv, values, default=DEFAULT)
    if values.minutes is not None:
        with config.unlocked():
            config.minutes = values.minutes
    several, workdir = values.processes > 1, named(values.workdir or f"runs/{path.stem}")
    if several:
        check_processes(config, values)
        if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "2":  # ours: who is left tells of a dead process in one line
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if config.get("run") == "demo" and config.get("minutes") is not None:
        raise UserError("minutes is for a run of your own, as of configs/folder.py; the demo needs none")
    tune_cpu()
    if config.get("deterministic"):
        make_deterministic()
    from tljax import demo, processes, runs  # JAX after the flags: a mistake is answered at once

    keep_compilations()
    kinds = {"train": runs.run, "demo": demo.run}
    if config.get("run") not in kinds:
        raise UserError(f"config.run={config.get('run')!r} is not one of {', '.join(kinds)}")
    with contextlib.ExitStack() as stack:
        if several:
            stack.enter_context(
                processes.joined(
                    values.coordinator, values.processes, values.process, patience=values.patience, workdir=workdir
                )
            )
        options = {} if config.run == "demo" else {"began": began}
        kinds[config.run](config, workdir, overwrite=values.overwrite, **options)


def check_processes(config: ConfigDict, values: flags.FlagValues) -> None:
    """Refuses what one of several processes cannot be told."""
    if not values.coordinator:
        raise UserError(f"--processes={values.processes} needs --coordinator=HOST:PORT, where process 0 is reached")
    if values.process >= values.processes:
        raise UserError(f"--process={values.process} is not one of --processes={values.processes}, from 0")
    if config.get("run") == "demo":
        raise UserError("the demo runs in one process; leave --processes out")


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


if __name__ == "__main__":
    sys.exit(main())
