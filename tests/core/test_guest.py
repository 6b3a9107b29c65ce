"""tljax in somebody else's program: whatever a call needs in the process is put back when it ends."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import tljax
from tests import commands, tiny
from tljax.core import guest
from tljax.core.errors import UserError
from tljax.core.signals import listen

ROOT = Path(__file__).resolve().parents[2]
HOST = """
import gc, locale, logging, os, random, signal, sys, warnings
import numpy as np

def host_excepthook(*args): sys.__excepthook__(*args)
def host_unraisable(told): sys.__unraisablehook__(told)
sys.excepthook, sys.unraisablehook = host_excepthook, host_unraisable
for name, level in (("jax", logging.DEBUG), ("urllib3", logging.INFO), ("host", logging.DEBUG)):
    logging.getLogger(name).setLevel(level)
if sys.argv[3] == "handlers":
    logging.basicConfig(level=logging.INFO)
warnings.simplefilter("always", ResourceWarning)
signal.signal(signal.SIGTERM, lambda number, frame: None)
random.seed(7)
np.random.seed(7)
gc.set_threshold(701, 11, 9)

calls = []
def audit(event, args):
    if event == "ctypes.dlsym" and args[1] == "mallopt":
        calls.append("mallopt")
sys.addaudithook(audit)

def state():
    def kept(logger):  # without what any import of a library adds to its own logger
        return tuple(one for one in logger.handlers if not isinstance(one, logging.NullHandler))

    loggers = {name: (found.level, kept(found), found.propagate, found.disabled)
               for name, found in logging.Logger.manager.loggerDict.items() if isinstance(found, logging.Logger)}
    import jax
    return {
        "root": (logging.root.level, tuple(logging.root.handlers), logging.root.disabled),
        "disabled": logging.root.manager.disable,
        "loggers": loggers,
        "filters": list(warnings.filters), "showwarning": warnings.showwarning,
        "hooks": (sys.unraisablehook, sys.excepthook, sys.displayhook),
        "streams": (sys.stdout, sys.stderr),
        "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "jax": dict(jax.config.values),
        "random": random.getstate(), "numpy": np.random.get_state()[1].tolist() + [np.random.get_state()[2]],
        "gc": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "locale": locale.setlocale(locale.LC_ALL), "cwd": os.getcwd(), "malloc": list(calls),
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval()),
    }

import jax
before = state()

def held(what):
    now = state()
    for name, value in before.items():
        if name == "loggers":  # those that were there
            now[name] = {key: now[name].get(key) for key in value}
        assert now[name] == value, f"{what} changes {name}: {value!r:.2000} -> {now[name]!r:.2000}"

import tljax
held("import tljax")
tljax.load, tljax.predict
held("the import of its functions")
run = tljax.load(sys.argv[1])
held("load")
run.classifier
held("its network")
tljax.predict(run, sys.argv[2] + "/red/000.png", top=1)
held("predict")
print(tljax.evaluate(run), tljax.evaluate(run, sys.argv[2]))
held("evaluate")
config = tljax.config({"source": "folder:" + sys.argv[2], "resize": 40, "size": 32}, split="50/25/25",
                      transfer={"train": "all"}, model={"weights": "None", "width": 4, "blocks": (1, 1)}, epochs=1,
                      epoch_steps=1, batch_size=8, trackers=("tensorboard",), pictures=False)
tljax.plan(config)
held("plan")
if sys.argv[4] == "fit":
    tljax.fit(config, "run", quiet=True)
    held("fit")
try:
    tljax.load("nowhere")
except ValueError:
    pass
held("a mistake")
print("nothing has changed")
"""


RUDE = """
import logging, os, random, warnings
import numpy as np
logging.basicConfig(level=logging.DEBUG)
logging.root.addHandler(logging.NullHandler())
warnings.simplefilter("ignore")
os.environ["RUDE"] = "1"
os.environ.pop("POLITE")
random.seed(1)
np.random.seed(1)
"""


def host(finished, photos, folder, handlers, last):
    environment = commands.environment(PYTHONPATH=str(ROOT))
    for name in ("MALLOC_ARENA_MAX", "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", HOST, str(finished), str(photos), handlers, last], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("nothing has changed\n")


def test_a_host_program_is_left_as_it_was(finished, photos, tmp_path):
    host(finished, photos, tmp_path, "none", "plan")


@pytest.mark.slow
@pytest.mark.parametrize("handlers", ["none", "handlers"])
def test_a_host_program_that_trains_is_left_as_it_was(finished, photos, tmp_path, handlers):
    host(finished, photos, tmp_path, handlers, "fit")


def process():
    loggers = {name: logging.getLogger(name).level for name in guest.LEVELS}
    return {
        "loggers": loggers, "root": (list(logging.root.handlers), logging.root.level), "environment": dict(os.environ),
        "hook": sys.unraisablehook, "filters": list(warnings.filters), "jax": dict(jax.config.values),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        "random": random.getstate(), "numpy": np.random.get_state(legacy=False)["state"]["key"].tolist(),  # noqa: NPY002
    }  # fmt: skip


def test_training_puts_back_what_it_needs(photos, tmp_path):
    before = process()
    tljax.fit(tiny.make_config(photos, epochs=1), tmp_path / "run", quiet=True)
    assert process() == before


def test_calls_in_several_threads_put_back_what_was_before_the_first():
    before, entered, leave = process(), threading.Barrier(3), [threading.Event() for _ in range(2)]

    def call(number):
        with guest.visiting():
            entered.wait(20)
            assert leave[number].wait(20)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    entered.wait(20)
    for number, thread in enumerate(threads):
        assert logging.getLogger("absl").level == logging.CRITICAL
        leave[number].set()
        thread.join()
    assert process() == before


def test_a_call_that_fails_puts_back_too(tmp_path):
    before = process()
    with pytest.raises(UserError):
        tljax.load(tmp_path)
    assert process() == before


def test_what_an_import_does_to_the_process_is_undone(tmp_path, monkeypatch):
    (tmp_path / "rude.py").write_text(RUDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("POLITE", "yes")

    def state():
        drawn = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
        return logging.root.level, list(logging.root.handlers), list(warnings.filters), dict(os.environ), drawn

    before = state()
    with guest.importing():
        import rude  # type: ignore[import-not-found]  # noqa: F401
    assert state() == before


def test_a_handler_that_python_does_not_know_stays(monkeypatch):
    kept = signal.getsignal(signal.SIGINT)
    real = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else real(number))
    before = real(signal.SIGTERM)
    with listen():
        assert real(signal.SIGTERM) is before
        assert real(signal.SIGINT) is not kept
    assert real(signal.SIGINT) is kept
