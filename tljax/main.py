"""tljax trains and tests image classifiers that start from pretrained networks.

python -m tljax.main                                   the demo: no data, no downloads
python -m tljax.main --config configs/folder.py --config.data.source=folder:PATH
python -m tljax.main --config configs/pets_ft.py       see tljax/settings/fields.py for every field
"""

import contextlib
import os
import sys
import time
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from tljax.core.errors import UserError
from tljax.core.process import keep_compilations, quiet_libraries
from tljax.core.xla_flags import make_deterministic, tune_cpu
from tljax.run_dir.files import named
from tljax.settings.command_line import CONFIGS, parse, run_flags

DEFAULT = CONFIGS / "demo.py"


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
    from tljax import demo  # JAX, and what imports it, after the flags: a mistake is answered at once
    from tljax.distributed import launch
    from tljax.train import runs

    keep_compilations()
    kinds = {"train": runs.run, "demo": demo.run}
    if config.get("run") not in kinds:
        raise UserError(f"config.run={config.get('run')!r} is not one of {', '.join(kinds)}")
    with contextlib.ExitStack() as stack:
        if several:
            stack.enter_context(
                launch.joined(
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


if __name__ == "__main__":
    sys.exit(main())
