"""Runs that tell MLflow and Weights & Biases: what these have afterwards, read with their own packages."""

import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tljax.core.errors import UserError
from tljax.report.console import check_trackers, make_console
from tljax.train import runs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what MLflow and SQLAlchemy say to each other
QUIET = make_console(quiet=True)
PLACES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.make_folder(tmp_path_factory.mktemp("photos"), per_class=12)


def client_of(workdir):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{workdir / 'mlflow.db'}")


def mlflow_runs(workdir):
    client = client_of(workdir)
    return client, client.search_runs([client.get_experiment_by_name("tljax").experiment_id])


def log_entries(data):
    """What a file in LevelDB's log format holds: blocks of 32 KiB, a record in one piece, or first, middle and last."""
    at, whole = 7, b""  # after the file's own header
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def wandb_records(workdir):
    """The records that offline runs of a folder left, by the kind of each, the oldest run first; and the runs' ids."""
    from wandb.proto import wandb_internal_pb2

    found, ids = {}, set()
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        ids.add(path.stem.removeprefix("run-"))
        for data in log_entries(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            found.setdefault(record.WhichOneof("record_type"), []).append(record)
    return found, ids


def by_name(items):
    return {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items}


def logged(records, key):
    """step -> value of what was logged under a name."""
    values = {}
    for record in records.get("history", ()):
        items = by_name(record.history.item)
        if key in items:
            values[items["_step"]] = items[key]
    return values


def test_names_that_are_none_and_packages_that_are_absent_are_said_before_anything(photos, tmp_path, monkeypatch):
    config = tiny.make_config(photos, trackers=("tensorbord",))
    with pytest.raises(UserError, match="'tensorbord' is not one of tensorboard, mlflow, wandb"):
        runs.run(config, tmp_path / "run", console=QUIET)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    with pytest.raises(UserError, match=r"wandb is not installed; pip install -e '\.\[wandb\]'"):
        runs.run(tiny.make_config(photos, trackers=("wandb",)), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()
    check_trackers(("tensorboard",))


def test_none_is_a_choice_that_changes_nothing_else(photos, tmp_path):
    runs.run(tiny.make_config(photos, epochs=1, trackers=()), tmp_path / "run", console=QUIET)
    assert not list((tmp_path / "run").glob("events*"))
    assert (tmp_path / "run/metrics.csv").exists()


@pytest.mark.peer
def test_mlflow_has_config_curves_result_and_pictures_of_a_run_that_was_stopped_once(photos, tmp_path, monkeypatch):
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("mlflow")
    config = tiny.make_config(photos, epochs=3, trackers=("tensorboard", "mlflow"), pictures=True)
    tiny.interrupted_after(config, tmp_path / "run", 4, monkeypatch)
    client, (one,) = mlflow_runs(tmp_path / "run")
    assert one.info.status == "KILLED"
    result = runs.run(config, tmp_path / "run", console=QUIET)
    client, (two,) = mlflow_runs(tmp_path / "run")
    assert (two.info.run_id, two.info.status) == (one.info.run_id, "FINISHED")
    assert two.data.params["optimizer.lr"] == "0.003"
    assert two.data.metrics["test_accuracy"] == result["test"]["accuracy"]
    told = {metric.step: metric.value for metric in client.get_metric_history(two.info.run_id, "train_loss")}
    assert told == pytest.approx({row["step"]: row["train_loss"] for row in result["history"]})
    files = {file.path for file in client.list_artifacts(two.info.run_id)}
    assert files == {"result.json", "augmented.png", "curves.png", "calibration.png"}
    kept = json.loads(Path(client.download_artifacts(two.info.run_id, "result.json", str(tmp_path))).read_text())
    assert kept == json.loads((tmp_path / "run/result.json").read_text())
    assert list((tmp_path / "run").glob("events*"))


@pytest.mark.peer
def test_wandb_has_config_curves_result_and_pictures_of_a_run_that_was_stopped_once(photos, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    config = tiny.make_config(photos, epochs=3, trackers=("wandb",), pictures=True)
    tiny.interrupted_after(config, tmp_path / "run", 4, monkeypatch)
    result = runs.run(config, tmp_path / "run", console=QUIET)
    for _ in range(300):  # a process of its own writes them, and may be behind
        records, ids = wandb_records(tmp_path / "run")
        if len(records.get("exit", ())) == 2:
            break
        time.sleep(0.1)
    assert len(ids) == 1  # two sittings, one run
    expected = {row["step"]: row["val_accuracy"] for row in result["history"]}
    assert logged(records, "val_accuracy") == pytest.approx(expected)
    assert by_name(item for r in records["config"] for item in r.config.update)["optimizer.lr"] == 0.003
    summary = by_name(item for r in records["summary"] for item in r.summary.update)
    assert summary["test_accuracy"] == result["test"]["accuracy"]
    pictures = list((tmp_path / "run").glob("wandb/offline-run-*/files/media/images/*.png"))
    assert {path.name.partition("_")[0] for path in pictures} == {"augmented", "curves", "calibration"}
    assert len(list((tmp_path / "run").glob("wandb/offline-run-*/files/result.json"))) == 1


@pytest.mark.peer
def test_a_population_tells_the_accuracies_of_its_members(photos, tmp_path):
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("mlflow")
    config = tiny.make_config(photos, epochs=1, trackers=("mlflow",), population__lr=(1e-4, 1e-3))
    result = runs.run(config, tmp_path / "run", console=QUIET)
    _, (one,) = mlflow_runs(tmp_path / "run")
    for row in result["members"]:
        assert one.data.metrics[f"{row['folder']}/test_accuracy"] == row["test"]["accuracy"]


@pytest.mark.peer
def test_a_server_that_is_not_there_is_one_line_before_training(photos, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="mlflow cannot be begun: ") as caught:
        runs.run(tiny.make_config(photos, trackers=("mlflow",)), tmp_path / "run", console=QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/metrics.csv").exists()


@pytest.mark.peer
def test_a_tracker_that_fails_on_the_way_is_told_nothing_more_and_the_run_ends_as_ever(photos, tmp_path, capsys):
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("mlflow")
    from tljax.report import trackers

    config, workdir = tiny.make_config(photos, epochs=2, trackers=("mlflow",)), tmp_path / "run"

    class Lost(trackers.Mlflow):
        """Its database is lost after the first epoch."""

        def put_scalars(self, step, scalars):
            super().put_scalars(step, scalars)
            (self.workdir / "mlflow.db").write_bytes(b"no database" * 1000)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trackers, "Mlflow", Lost)
        result = runs.run(config, workdir, console=make_console())
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mlflow is told nothing more: ")]
    assert len(told) == 1
    assert np.isfinite(result["test"]["accuracy"]) and len(result["history"]) == 2
