"""Does the jobs of a study: skips what is done, goes on where it stopped, and lets no failure stop the rest."""

import dataclasses
import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tljax.core import shared_cache
from tljax.core.errors import UserError, one_line
from tljax.core.signals import Interrupted
from tljax.report.console import make_console
from tljax.run_dir import files as folders
from tljax.study.jobs import Job, make_config
from tljax.train import runs as runs_lib

PATIENCE = 2.0  # seconds between two looks at what other workers are doing


@dataclasses.dataclass
class Outcome:
    """What became of the jobs, by key."""

    done: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


def is_done(key: str, runs: Path) -> bool:
    return (runs / key / folders.RESULT).is_file()


def settled(job: Job, runs: Path, outcome: Outcome) -> bool:
    """Whether a job is done, or can never be; then the outcome says so."""
    if is_done(job.key, runs):
        outcome.done.append(job.key)
    elif job.after in outcome.failed:
        outcome.failed[job.key] = f"run {job.after}, which it starts from, failed"
    else:
        return False
    return True


def is_ready(job: Job, runs: Path) -> bool:
    """Whether the run that a job starts from, if any, is done."""
    return job.after is None or is_done(job.after, runs)


def failure(key: str, runs: Path) -> Path:
    """The file that says why a job failed; it is there from the failure until the job is done."""
    return runs / f"{key}.failed.json"


def why_failed(key: str, runs: Path) -> str | None:
    """Why a job failed when it was tried last; None if it did not."""
    path = failure(key, runs)
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text())["error"])
    except (ValueError, TypeError, KeyError):
        return f"for a reason that {path} no longer tells"


def run_job(job: Job, runs: Path, console: Console) -> None:
    """Runs one job in this process, or goes on with it; what failed before is tried again, what is done stays.

    Raises:
      Busy: when another worker is at it.
      Whatever a run raises.
    """
    with folders.locked(runs / ".locks" / job.key):
        if not is_done(job.key, runs):
            runs_lib.run(make_config(job.fields, runs), runs / job.key, console=console, look_at_test=True)
        failure(job.key, runs).unlink(missing_ok=True)


def run_jobs(jobs: Sequence[Job], runs: Path, console: Console) -> Outcome:
    """Runs, in this process, all jobs that nobody else runs; returns when all are done or have failed.

    Args:
      jobs: those that others start from first.
      runs: the folder of all runs; several workers may share it.
      console: for one line per job.

    Raises:
      Interrupted: on SIGINT or SIGTERM; the run under way is saved, and the same command goes on.
    """
    with shared_cache.sharing():
        return _run_all(jobs, runs, console)


def _run_all(jobs: Sequence[Job], runs: Path, console: Console) -> Outcome:
    outcome, waiting = Outcome(), list(jobs)
    while waiting:
        busy = []
        for job in waiting:
            if settled(job, runs, outcome):
                continue
            place = f"{len(outcome.done) + len(outcome.failed) + 1} of {len(jobs)}"
            if not (is_ready(job, runs) and _attempt(job, runs, console, outcome, place)):
                busy.append(job)
        if len(busy) == len(waiting):
            time.sleep(PATIENCE)
        waiting = busy
    return outcome


def _attempt(job: Job, runs: Path, console: Console, outcome: Outcome, place: str) -> bool:
    """Runs a job; False where another worker is at it."""
    began = time.perf_counter()
    try:
        run_job(job, runs, make_console(quiet=True))
    except folders.Busy:
        return False
    except Interrupted:
        raise
    except Exception as error:  # whatever a run dies of, the others go on
        reason = reason_of(error)
        fail(job, runs, outcome, reason, trace_of(error))
        console.print(f"{place}: {job.key} failed: {reason}", markup=False)
    else:
        outcome.done.append(job.key)
        console.print(f"{place}: {job.key}, {words(job)}, {time.perf_counter() - began:.0f} s", markup=False)
    return True


def fail(job: Job, runs: Path, outcome: Outcome, reason: str, trace: Sequence[str] = ()) -> None:
    """Notes that a job failed, for this command and the tables; for whoever asks also where, and the job's fields."""
    outcome.failed[job.key] = reason
    told = {"error": reason, "trace": list(trace), "config": job.fields}
    folders.write_json(failure(job.key, runs), told)


def trace_of(error: Exception) -> list[str]:
    """Where an error that is no mistake of the user's was raised: the lines of its traceback."""
    return [] if isinstance(error, UserError) else "".join(traceback.format_exception(error)).splitlines()


def reason_of(error: Exception) -> str:
    """Why a run failed, in one line."""
    said = one_line(error)
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}".removesuffix(": ")


def words(job: Job) -> str:
    """A job in a few words."""
    fields = job.fields
    count = f"{len(job.members)} members, " if job.population else ""
    return f"{fields['model.name']}, {count}training {fields['transfer.phases'] or fields['transfer.train']}"
