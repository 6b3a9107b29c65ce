"""A study on a local Ray cluster: all jobs done, and a lost worker's again."""

import os
import signal
import socket
import threading
import time

import pytest

from tests.study.test_runner import QUIET, SMALL, planned
from tljax.core.errors import UserError
from tljax.run_dir import files as folders
from tljax.study.cluster import check_answers, run_on_ray
from tljax.study.study import Cell, Study

pytestmark = pytest.mark.peer


@pytest.fixture
def ray(monkeypatch):
    """Two processors, for two workers at most."""
    found = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    found.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield found
    found.shutdown()


def worker_in_a_run(runs):
    """The process that holds the folder of a run, once there is one."""
    return next((int(pid) for lock in runs.glob(f"*/{folders.LOCK}") if (pid := lock.read_text().strip())), None)


@pytest.mark.filterwarnings("ignore")
def test_a_lost_workers_job_is_done_again(ray, tmp_path):
    _, jobs = planned(SMALL)
    killed = []

    def kill_one():
        while not killed:
            if pid := worker_in_a_run(tmp_path):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.05)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    outcome = run_on_ray(jobs, tmp_path, QUIET)
    thread.join(timeout=30)
    assert killed
    assert killed != [os.getpid()]
    assert not outcome.failed
    assert sorted(outcome.done) == sorted(job.key for job in jobs)
    for job in jobs:
        assert folders.read_result(tmp_path / job.key)["seconds"] > 0


@pytest.mark.filterwarnings("ignore")
def test_failures_are_told_and_leave_the_rest_alone(ray, tmp_path):
    cells = Cell("bad", {"model.weights": "nowhere.pth"}), Cell("late", {"model.weights": "cell:bad", "epochs": 1})
    broken = Study("x", "000", "Table 1", "x", SMALL.base, (*cells, Cell("good", {"model.weights": "None",
                   "transfer.train": "all"})), ())  # fmt: skip
    runs, jobs = planned(broken)
    outcome = run_on_ray(jobs, tmp_path, QUIET)
    assert len(outcome.failed) == 2
    assert "nowhere.pth" in outcome.failed[runs[0].key]
    assert outcome.done == [runs[2].key]


def test_a_cluster_that_does_not_answer_is_refused():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(UserError, match=rf"no cluster answers at RAY_ADDRESS=127\.0\.0\.1:{port} \(.*refused"):
        check_answers(f"127.0.0.1:{port}")
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        there.listen()
        check_answers(f"ray://127.0.0.1:{there.getsockname()[1]}")
    check_answers("auto")
