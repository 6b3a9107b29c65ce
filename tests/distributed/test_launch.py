"""Several devices and several processes end where one device ends, however they are stopped and begun again."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests import commands, same, tiny
from tljax.core.errors import UserError
from tljax.distributed import launch
from tljax.distributed.coordinator import tell
from tljax.run_dir.checkpoint import saved_steps, saved_variables

FOLDER = "configs/folder.py"
OVERRIDES = commands.TINY | {
    "epochs": 2, "batch_size": 10, "optimizer.name": "sgd", "optimizer.lr": 0.01, "cross_replica_bn": True,
    "accumulate": 1, "model.dtype": "float64",
}  # fmt: skip
LONGER = {"epochs": 16}
MINUTE = 60.0  # in which the others end when one is killed


@pytest.fixture(scope="module")
def overrides(photos):
    """Of runs in double precision: in single, a rounding that turns a ReLU on or off is one of 1e-4 thirty steps on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_ENABLE_X64", "1")  # of the commands; without it float64 is refused
        yield {"data.source": f"folder:{photos}", **OVERRIDES}


def train(workdir, overrides):
    """By the command, in one process with one device."""
    found = commands.run(FOLDER, workdir, overrides)
    assert found.returncode == 0, found.stderr


@pytest.fixture(scope="module")
def alone(overrides, once):
    """One process with one device."""
    return once("processes-alone", lambda workdir: train(workdir, overrides))


@pytest.fixture(scope="module")
def undisturbed(overrides, once):
    """A run that is long enough to be stopped, but was not."""
    return once("processes-undisturbed", lambda workdir: train(workdir, overrides | LONGER))


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


def check_losses(*workdirs):
    """Two runs have the same losses in every epoch, up to rounding; their results."""
    results = [result_of(workdir) for workdir in workdirs]
    for a, b in zip(*(r["history"] for r in results), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-9)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-9)
    return results


def check_alike(ours, theirs):
    """Two runs agree in what they found, up to rounding."""
    results = check_losses(ours, theirs)
    assert saved_steps(ours)[-1] == saved_steps(theirs)[-1]
    (ours, theirs) = (saved_variables(w, saved_steps(w)[-1]) for w in (ours, theirs))
    for name in ("params", "batch_stats"):
        leaves = [same.leaves(found[name]) for found in (ours, theirs)]
        assert leaves[0].keys() == leaves[1].keys()
        for path in leaves[0]:
            np.testing.assert_allclose(leaves[0][path], leaves[1][path], atol=1e-9, err_msg=path)
    return results[0]


def check_all_end_well(found):
    assert [status for status, _, _ in found] == [0] * len(found), found
    assert "test accuracy" in found[0][1] or "Members" in found[0][1]
    for _, out, err in found[1:]:
        assert "epoch" not in out  # one process speaks
        assert not err


@pytest.mark.slow
def test_four_devices(overrides, alone, tmp_path):
    found = commands.run(FOLDER, tmp_path / "run", overrides, devices=4)
    assert found.returncode == 0, found.stderr
    assert check_alike(tmp_path / "run", alone)["device"]["count"] == 4


@pytest.mark.slow
def test_four_processes_of_two_devices(overrides, alone, tmp_path):
    check_all_end_well(commands.run_processes(FOLDER, tmp_path / "run", overrides, processes=4, devices=2))
    device = check_alike(tmp_path / "run", alone)["device"]
    assert (device["processes"], device["count"]) == (4, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{"cross_replica_bn": False},
     {"transfer.train": "head", "transfer.allow_fresh_frozen": True, "augment.flip": False},
     {"population.lr": (0.01, 0.02), "population.optimizer": ("sgd", "adam")}],
    ids=["statistics of each device's own", "kept features", "a population"],
)  # fmt: skip
def test_two_processes_of_two_devices_equal_one_of_four(overrides, tmp_path, more):
    """Batch statistics of each device's own depend on how many devices there are, not on whose they are."""
    one = commands.run(FOLDER, tmp_path / "one", overrides | more, devices=4)
    assert one.returncode == 0, one.stderr
    check_all_end_well(commands.run_processes(FOLDER, tmp_path / "two", overrides | more, processes=2, devices=2))
    if "population.lr" not in more:
        result = check_alike(tmp_path / "two", tmp_path / "one")
        assert (result["features"] is not None) == ("augment.flip" in more)
    else:
        for member in ("000", "001", "002", "003"):
            check_losses(*(tmp_path / name / "members" / member for name in ("one", "two")))


@pytest.mark.slow
def test_two_devices_are_the_same_bit_for_bit_in_one_process_and_in_two(overrides, tmp_path):
    """A sum of two has one order; of more, processes and devices add up in their own."""
    one = commands.run(FOLDER, tmp_path / "one", overrides, devices=2)
    assert one.returncode == 0, one.stderr
    check_all_end_well(commands.run_processes(FOLDER, tmp_path / "two", overrides, processes=2, devices=1))
    same.check_same(tmp_path / "two", tmp_path / "one", but=("device.processes",))


@pytest.mark.slow
def test_a_teacher_and_its_student_over_two_processes(overrides, tmp_path):
    few = {**overrides, "data.labels": "25%", "semi.method": "pseudo_label"}
    train(tmp_path / "one", few)
    check_all_end_well(commands.run_processes(FOLDER, tmp_path / "two", few, processes=2))
    one, two = (result_of(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-9)
    assert one["rounds"][1]["labels"] == two["rounds"][1]["labels"]


def wait_for_step(workdir, step, running):
    """Until a checkpoint of this step, or a later one, is whole, while processes run."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        assert all(process.poll() is None for process in running), commands.ends(running)
        folders = (workdir / "checkpoints").glob("*")
        if any(path.name.isdigit() and int(path.name) >= step for path in folders):
            return
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint of step {step} in time")


def stopped_at(workdir, running, number, victim):
    """Sends a signal to one process of a run once that has saved something new; how all of them end."""
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    wait_for_step(workdir, max(steps, default=0) + 1, running)
    running[victim].send_signal(number)
    return commands.ends(running, timeout=MINUTE)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_fewer_go_on(overrides, undisturbed, tmp_path, monkeypatch):
    """Four lose a worker, two lose the first, one ends like the run that nobody disturbed."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))  # a program cut short stays cut
    workdir, longer = tmp_path / "run", overrides | LONGER
    for count, victim in ((4, 2), (2, 0)):
        running = commands.start_processes(FOLDER, workdir, longer, processes=count)
        found = stopped_at(workdir, running, signal.SIGKILL, victim)
        for i, (status, _, err) in enumerate(found):
            if i == victim:
                assert status == -signal.SIGKILL
            else:
                assert status == launch.GONE, err
                (line,) = err.splitlines()
                assert line.startswith(
                    f"tljax: process {victim} of {count} is gone; the same command goes on from step "
                )
    last = commands.run(FOLDER, workdir, longer)
    assert last.returncode == 0, last.stderr
    assert f"going on from step {line.partition('from step ')[2].partition(',')[0]} of 64" in last.stdout
    check_alike(workdir, undisturbed)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step_and_another_number_goes_on(overrides, undisturbed, tmp_path):
    workdir, longer = tmp_path / "run", overrides | LONGER
    for count, number, victim in ((1, signal.SIGTERM, 0), (2, signal.SIGINT, 0), (2, signal.SIGTERM, 1)):
        if count == 1:
            running = [commands.start(FOLDER, workdir, longer)]
        else:
            running = commands.start_processes(FOLDER, workdir, longer, processes=count)
        found = stopped_at(workdir, running, number, victim)
        assert {status for status, _, _ in found} == {128 + number}, found
        step = saved_steps(workdir)[-1]
        for _, _, err in found:
            name = signal.Signals(number).name
            assert err == f"tljax: {name}: saved at step {step}; the same command goes on from there\n"
    last = commands.run(FOLDER, workdir, longer)
    assert last.returncode == 0, last.stderr
    check_alike(workdir, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["config", "images", "no images", "workdir"])
def test_processes_that_were_given_different_things_all_say_so(overrides, tmp_path, what):
    """Each in a folder of its own, as on machines of their own."""
    machines = [tmp_path / name for name in "ab"]
    for machine, count in zip(machines, (8, 7), strict=True):
        tiny.make_folder(machine / "photos", per_class=count if what == "images" else 8)
    if what == "no images":
        shutil.rmtree(machines[1] / "photos")
    found = commands.run_processes(
        FOLDER, Path("run") if what == "workdir" else tmp_path / "run", overrides | {"data.source": "folder:photos"},
        processes=2, cwd=dict(enumerate(machines)), own={1: {"optimizer.lr": 0.5}} if what == "config" else None,
    )  # fmt: skip
    words = {
        "config": "config.optimizer.lr is 0.01 in process 0, but 0.5 in process 1",
        "images": "the number of images is 24 in process 0, but 21 in process 1",
        "no images": "no such folder: 'photos'",
        "workdir": "--workdir=run is another folder in process 1 than in process 0",
    }[what]
    for status, _, err in found:
        assert status == 2, err
        assert words in err
        assert err.count("\n") == 1
    if what != "workdir":
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mistake_ends_every_process_with_its_line(overrides, tmp_path):
    found = commands.run_processes(FOLDER, tmp_path / "run", overrides | {"transfer.train": "layer9"}, processes=2)
    for status, _, err in found:
        assert status == 2
        assert "layer9" in err
        assert err.count("\n") == 1


LATE = """
import functools, sys, time
from pathlib import Path
import jax
import numpy as np
from tljax.distributed.launch import joined
address, own = sys.argv[1], int(sys.argv[2])
with joined(address, 2, own, patience=60, workdir=Path("nowhere")):
    time.sleep(35 * own)  # as long as a large program may take to compile
    total = jax.pmap(functools.partial(jax.lax.psum, axis_name="all"), axis_name="all")
    print(total(np.ones(2))[0])
"""


@pytest.mark.slow
def test_a_process_may_come_to_its_first_step_long_after_another():
    """Gloo gives up after 30 seconds where devices have not been connected before."""
    address = f"127.0.0.1:{commands.free_port()}"
    running = [
        subprocess.Popen([sys.executable, "-c", LATE, address, str(own)], cwd=commands.ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=commands.environment(devices=2))
        for own in range(2)
    ]  # fmt: skip
    for status, out, err in commands.ends(running):
        assert status == 0, err
        assert out.splitlines()[-1] == "4.0"


def meeting(port, *calls):
    """What comes of processes that meet at a time: by call (count, own, patience) what went wrong, else empty."""

    def meet(i):
        count, own, patience = calls[i]
        try:
            if own == 0:
                keeping.enter_context(launch.start_coordinator(port, count, patience))
            keeping.enter_context(launch.meet("127.0.0.1", port, count, own, patience))
        except UserError as error:
            outcomes[i] = str(error)

    outcomes = [""] * len(calls)
    with contextlib.ExitStack() as keeping:
        threads = [threading.Thread(target=meet, args=(i,)) for i in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive()
    return outcomes


def once_it_listens(port, use):
    """Starts a thread that calls `use` with a connection to a port, as soon as there is one."""

    def work():
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as line:
                use(line)
                return

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture
def port():
    return commands.free_port()


def test_processes_meet_whoever_comes_first(port):
    assert meeting(port, (3, 2, 30), (3, 0, 30), (3, 1, 30)) == [""] * 3


@pytest.mark.parametrize("place", ["localhost", "10.0.0.1:", ":80", "host:port", "127.0.0.1:70000"])
def test_what_is_no_address_is_said(place):
    with pytest.raises(UserError, match="is not HOST:PORT"):
        launch.check_address(place)


def test_a_host_that_is_not_known_is_said():
    with pytest.raises(UserError, match=r"--coordinator=no\.such\.host\.invalid:1234"):
        launch.check_address("no.such.host.invalid:1234")


def test_a_port_in_use_is_said():
    with socket.create_server(("", 0)) as other:
        (said,) = meeting(other.getsockname()[1], (2, 0, 5))
    assert said.endswith("cannot be served: Address already in use; give all processes another one")


def test_who_has_not_started_is_named(port):
    assert meeting(port, (4, 0, 2), (4, 2, 20)) == ["of 4 processes these have not started in time: 1, 3"] * 2


def test_a_first_process_that_does_not_come_is_said(port):
    (said,) = meeting(port, (2, 1, 1))
    assert said.startswith(f"process 0 was not reached at 127.0.0.1:{port} in 1 s")


def test_two_of_one_number_are_told_all_three(port):
    assert meeting(port, (3, 0, 20), (3, 1, 20), (3, 1, 20)) == ["two processes were given --process=1"] * 3


def test_another_count_is_told_both(port):
    said = "process 1 was given --processes=3, but process 0 --processes=2"
    assert meeting(port, (2, 0, 20), (3, 1, 20)) == [said] * 2


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        ({"process": 2, "processes": 3}, "process 2 has ended before all had started"),
        ({"process": 1, "processes": 2}, "process 1 was given --processes=2, but process 0 --processes=3"),
    ],
)
def test_what_goes_wrong_before_process_0_is_there_is_told_all_the_same_and_the_port_is_free_again(port, hello, words):
    with launch.start_coordinator(port, 3, 20):
        with socket.create_connection(("127.0.0.1", port)) as line:
            tell(line, hello)
        time.sleep(0.5)
        with pytest.raises(UserError, match=words):
            launch.meet("127.0.0.1", port, 3, 0, 20)
    assert meeting(port, (2, 0, 20), (2, 1, 20)) == ["", ""]


def test_who_speaks_otherwise_is_not_counted(port):
    browsing = once_it_listens(port, lambda line: line.sendall(b"GET / HTTP/1.1\r\n\r\n"))
    assert meeting(port, (2, 0, 20), (2, 1, 20)) == ["", ""]
    browsing.join()
