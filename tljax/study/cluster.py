"""The jobs of a study on a Ray cluster (the extra [ray]): one accelerator each, a lost worker's job done again."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tljax.core.errors import UserError, one_line
from tljax.study.jobs import Job
from tljax.study.runner import Outcome, fail, is_ready, reason_of, run_job, settled, trace_of

RETRIES = 3  # of a job whose worker died; a run goes on from its last checkpoint


def run_on_ray(jobs: Sequence[Job], runs: Path, console: Console, *, address: str | None = None) -> Outcome:
    """Runs all jobs on a cluster; returns when all are done or have failed.

    Args:
      jobs: those that others start from first.
      runs: the folder of all runs, on storage that every node sees.
      console: for one line per job.
      address: of the cluster, as `ray.init` takes it; None for RAY_ADDRESS, else a local one that ends with this call.

    Raises:
      UserError: where Ray is not installed, or nobody answers at the address.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray: pip install -e '.[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        check_answers(address or os.environ.get("RAY_ADDRESS", ""))
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, include_dashboard=False)
        except ConnectionError as error:
            raise UserError(f"--ray: no cluster can be reached: {one_line(error)[:200]}") from None
    try:
        return _run(ray, jobs, runs.resolve(), console)
    finally:
        if ours:
            ray.shutdown()


def check_answers(address: str) -> None:
    """Raises UserError where nobody answers at a cluster's `HOST:PORT`; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray: no cluster answers at RAY_ADDRESS={address} ({one_line(error)}); start one there, or "
                        "leave RAY_ADDRESS out to use this machine") from None  # fmt: skip


def _run(ray: Any, jobs: Sequence[Job], runs: Path, console: Console) -> Outcome:
    gpus = ray.cluster_resources().get("GPU", 0)
    # A process of its own for every job: nothing compiled for one, and no accelerator's memory, is left for the next.
    remote = ray.remote(num_gpus=1 if gpus else 0, num_cpus=1, max_retries=RETRIES, max_calls=1)(_work)
    outcome, waiting, under_way = Outcome(), list(jobs), {}
    while waiting or under_way:
        for job in list(waiting):
            if not settled(job, runs, outcome):
                if not is_ready(job, runs):
                    continue
                under_way[remote.remote(job, str(runs))] = job
            waiting.remove(job)
        if not under_way:
            continue
        (ready,), _ = ray.wait(list(under_way), num_returns=1)
        job = under_way.pop(ready)
        try:
            error, trace = ray.get(ready)
        except ray.exceptions.RayError as lost:
            error, trace = f"its worker was lost {RETRIES + 1} times: {one_line(lost)[:200]}", []
        if error is None:
            outcome.done.append(job.key)
        else:
            fail(job, runs, outcome, error, trace)
        place = f"{len(outcome.done) + len(outcome.failed)} of {len(jobs)}"
        console.print(f"{place}: {job.key}{' failed: ' + error if error else ''}", markup=False)
    return outcome


def _work(job: Job, runs: str) -> tuple[str | None, list[str]]:
    """In a worker: runs a job; why it failed, or None, and where."""
    from tljax.core.process import keep_compilations
    from tljax.report.console import make_console

    keep_compilations(small=True)
    try:
        run_job(job, Path(runs), make_console(quiet=True))
    except Exception as error:
        return reason_of(error), trace_of(error)
    return None, []
