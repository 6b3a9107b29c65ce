"""One run, from a config to a folder with an honest test accuracy in it."""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from tljax.core import shared_cache
from tljax.core.errors import UserError, counted
from tljax.core.signals import listen
from tljax.core.xla_flags import forget_programs, is_deterministic
from tljax.data import content
from tljax.distributed.consensus import assert_equal_config, assert_equal_folder, assert_equal_start
from tljax.report import console as console_lib
from tljax.run_dir import files as folders
from tljax.run_dir.checkpoint import Checkpoints
from tljax.train.checks import check
from tljax.train.experiment import Experiment
from tljax.train.feature_cache import Kept
from tljax.train.final_eval import finish
from tljax.train.recipe import Choice, write_choices, write_repeat
from tljax.train.setup import prepare
from tljax.train.throughput import Budget
from tljax.train.trainer import Trainer
from tljax.transfer.plan import plan_tables


def run(
    config: Any,
    workdir: Path,
    *,
    overwrite: bool = False,
    console: Console | None = None,
    look_at_test: bool = False,
    before: Callable[[], None] = lambda: None,
    decoded: Path | None = None,
    choices: Sequence[Choice] = (),
    settle: Callable[..., tuple[Experiment, tuple[Choice, ...], Kept | None]] | None = None,
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Trains, picks the best epoch by validation, tests once.

    Started again in the same folder it goes on where it stopped; a batch is a function of (seed, epoch, index), so the
    result is that of a run that was never stopped.

    Args:
      config: as `tljax/settings/fields.py` describes.
      workdir: the run's folder: checkpoints, metrics.csv, result.json, predictions.npz, pictures, TensorBoard events.
      overwrite: throw away another run that is there.
      console: where to print.
      look_at_test: allows `select='test'`, which tests every epoch. Studies of reports that chose so are alone in it.
      before: called when everything has been found good, and nothing is written yet.
      decoded: the folder of decoded images that outgrow the memory, where it is not `workdir`.
      choices: what of the config was chosen for these images, for the record.
      settle: (experiment, variables, choices, workdir) -> experiment and choices of as many updates as are to be, and
        features that it made; called before training.
      budget: the minutes that the command may take, where there is an end to them.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: for whatever the user can mend.
      Interrupted: on SIGINT or SIGTERM, after saving.
    """
    began = time.perf_counter()
    shared_cache.begin_run()
    forget_programs()
    first = jax.process_index() == 0
    console = console or console_lib.make_console(quiet=not first)
    check(config, look_at_test=look_at_test)
    assert_equal_config(config)
    if config.deterministic and jax.default_backend() == "gpu" and not is_deterministic():
        raise UserError("deterministic=True comes too late here; set XLA_FLAGS=--xla_gpu_deterministic_ops=true")
    folders.check_free(workdir, config.to_dict(), overwrite=overwrite)
    if not overwrite:
        content.check_moved(workdir, config)
    experiment, variables = prepare(config, decoded or workdir, console)
    if config.select == "loss" and "val" not in experiment.data.splits:
        raise UserError("select='loss' chooses the epoch by validation images, and there are none; give data.val, or "
                        "say select=last")  # fmt: skip
    if not overwrite:
        content.check(decoded or workdir, experiment.data)
    for title, rows in plan_tables(experiment.phases[0], experiment.plans[0], members=len(experiment.members)):
        console_lib.print_table(console, title, rows)
    before()
    assert_equal_start(experiment.data, variables)
    with contextlib.ExitStack() as stack:
        if first:  # only now: a run that cannot begin leaves nothing behind, and throws nothing away
            stack.enter_context(folders.locked(workdir))
            folders.check_free(workdir, config.to_dict(), overwrite=overwrite)
            folders.claim(workdir, config.to_dict(), overwrite=overwrite)
            if settle is None:
                write_choices(workdir, config, choices)
            content.keep(decoded or workdir, config.data, experiment.data, experiment.earlier)
            if config.pictures:
                experiment.save_augmented(workdir / "augmented.png")
        assert_equal_folder(workdir)
        checkpoints = Checkpoints(workdir)
        stack.callback(checkpoints.close)
        kept = None
        if settle is not None:
            if config.trackers:
                with contextlib.suppress(ImportError):  # what takes time is over when time is counted
                    console_lib.load_writers()
            experiment, choices, kept = settle(experiment, variables, choices, workdir)
            config = experiment.config
            write_choices(workdir, config, choices)
            folders.write_json(workdir / folders.CONFIG, config.to_dict())
        writer = console_lib.make_writer(workdir, console, config, first=first)
        stack.callback(writer.close)
        trainer = Trainer(experiment, checkpoints, console, began, workdir, budget)
        trainer.begin(variables)
        if not trainer.step and not config.data.pseudo:  # of a run that goes on, or a teacher's students, it was said
            told = experiment.duplicates.as_dict(experiment.data.source.names)
            console_lib.print_duplicates(console, told, before=True)
        with listen() as trainer.stop.caught:
            trainer.train(writer, kept)
        if trainer.last_step < experiment.last_step:
            why = f"{trainer.last_step:,} of {counted(experiment.last_step, 'update')}: the minutes were all but over"
            choices = (*choices, Choice("stop_after", trainer.last_step, why))
            if first:
                write_repeat(workdir, config, choices)
        return finish(trainer, choices)
