"""What a config asks for: one network, or a teacher and its students."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from tljax.core.errors import UserError
from tljax.data.load import listing_once
from tljax.report.console import make_console
from tljax.run_dir.files import check_free
from tljax.settings.validate import check_fields
from tljax.train import self_training, single_run
from tljax.train.budget import settle
from tljax.train.idle_fields import idle_fields
from tljax.train.recipe import DEFAULTS, choose, chosen_before, open_fields
from tljax.train.throughput import Budget


def run(
    config: Any,
    workdir: Path,
    *,
    overwrite: bool = False,
    console: Console | None = None,
    clock: Callable[[], float] = time.perf_counter,
    began: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Chooses what the config leaves open, and says so, as well as which fields have no effect; then
    `single_run.run`, or `self_training.run` where `semi.method` is 'pseudo_label'. Both take the same options.

    Args:
      config: as `tljax/settings/fields.py` describes. Of a run that goes on, `minutes` are counted anew, and end it
        early at most: how long it is was settled when it began.
      workdir: the run's folder.
      overwrite: throw away another run that is there.
      console: where to print.
      clock: seconds, which `minutes` are measured by.
      began: when the command did, by that clock; None: now.
      **options: those of `single_run.run` or `self_training.run`.
    """
    began = clock() if began is None else began
    console = console or make_console(quiet=jax.process_index() != 0)
    check_fields(config, opened=DEFAULTS)
    check_free(workdir, config.to_dict(), overwrite=overwrite, opened=open_fields(config))  # before minutes of choosing
    with listing_once():
        minutes, goes_on = config.get("minutes"), False
        if minutes is not None:
            if jax.process_count() > 1:
                raise UserError(f"minutes={minutes:g} is for one process; say how long with epochs")
            goes_on = not overwrite and bool(chosen_before(config, workdir))
        config, choices = choose(config, None if overwrite else workdir)
        if choices:
            console.print("chosen for these images; a value that you set stands:")
        for choice in choices:
            console.print(f"  {choice}", markup=False)
        if minutes is not None:
            options["budget"] = budget = Budget(minutes, began, clock)
            if goes_on:
                console.print(f"how long it trains was settled when this run began; {budget.words} can only end it "
                              "early")  # fmt: skip
            else:
                options["settle"] = functools.partial(settle, budget=budget, loading=budget.elapsed, console=console)
        if not options.get("look_at_test"):  # a study's rows share fields on purpose
            for line in idle_fields(config):
                console.print(f"warning: {line}", markup=False)
        kind = self_training.run if config.semi.method == "pseudo_label" else single_run.run
        return kind(config, workdir, overwrite=overwrite, console=console, choices=choices, **options)
