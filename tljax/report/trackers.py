"""MLflow and Weights & Biases as clu's metric writers.

Both are offline unless their own variables say otherwise: MLflow writes `mlflow.db` and `mlflow/` in the run's folder
unless MLFLOW_TRACKING_URI names a place, Weights & Biases writes `wandb/` there unless WANDB_MODE is `online`.
"""

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from clu.metric_writers import MetricWriter
from PIL import Image
from rich.console import Console

from tljax.core.errors import UserError, one_line
from tljax.core.guest import importing
from tljax.run_dir.files import RESULT, read_result, write_json
from tljax.settings.dotted import flatten

IDS = "trackers.json"
PROJECT = "tljax"
PICTURES = ("augmented", "curves", "calibration")
_AT_ONCE = 100  # what MLflow takes in one request


class Tracker(MetricWriter):
    """A tracker's run, which belongs to a run's folder: what goes on there goes on here, too.

    Scalars are told as they come; at the end, on `close`, what `result.json` holds of accuracies and calibration, the
    file itself and the pictures. A tracker that fails on the way says so in a line, and is told nothing more: no run
    ends because of it. Subclasses say how; kinds of values that no run of tljax writes are left out.
    """

    name = ""

    def __init__(self, workdir: Path, console: Console, config: Mapping[str, Any]):
        """Begins a tracker's run, or goes on with it.

        Raises:
          UserError: where that fails.
        """
        self.workdir, self._console, self._failed = workdir, console, False
        ids = _read_ids(workdir)
        earlier = ids.get(self.name)
        try:
            found = self.begin(earlier, _label(workdir))
            if earlier is None:
                self.write_hparams(flatten(config))
        except Exception as error:  # whatever a server, a network or a disk comes up with
            raise UserError(f"{self.name} cannot be begun: {one_line(error)[:200]}; mend that, or leave it out of "
                            "trackers") from None  # fmt: skip
        write_json(workdir / IDS, ids | {self.name: found})

    def begin(self, earlier: str | None, label: str) -> str:
        """Begins a run of that label, or goes on with an earlier one; returns its id."""
        raise NotImplementedError

    def put_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        raise NotImplementedError

    def put_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError

    def put_result(self, file: Path, numbers: Mapping[str, float]) -> None:
        """Takes `result.json`, and numbers of it by name."""
        raise NotImplementedError

    def end(self, *, finished: bool) -> None:
        raise NotImplementedError

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in scalars.items()}
        self._try(lambda: self.put_scalars(step, numbers))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        arrays = {name: np.asarray(image) for name, image in images.items()}
        self._try(lambda: self.put_images(step, arrays))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None: ...

    def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Any = None) -> None: ...

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None: ...

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None: ...

    def write_histograms(self, step: int, arrays: Mapping[str, Any], num_buckets: Any = None) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None:
        result = read_result(self.workdir)
        if result is not None:
            step = max((row["step"] for row in result.get("history", ())), default=0)
            self.write_images(step, dict(_pictures(self.workdir)))
            self._try(lambda: self.put_result(self.workdir / RESULT, numbers_of(result)))
        self._try(lambda: self.end(finished=result is not None))

    def _try(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # whatever a server, a network or a disk comes up with
            self._failed = True
            self._console.print(f"{self.name} is told nothing more: {one_line(error)[:200]}; the run goes on, and "
                                f"{self.workdir} has it all", markup=False)  # fmt: skip


class Mlflow(Tracker):
    """A run of MLflow's experiment `tljax`, or of MLFLOW_EXPERIMENT_NAME."""

    name = "mlflow"

    def begin(self, earlier: str | None, label: str) -> str:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # else a server that is down holds it for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        with importing():
            from mlflow.tracking import MlflowClient

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        folder = self.workdir.absolute()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(project)
        if experiment is not None:
            number = experiment.experiment_id
        else:
            files = None if uri else (folder / "mlflow").as_uri()
            number = self._client.create_experiment(project, artifact_location=files)
        if earlier is not None:
            self._client.set_terminated(earlier, "RUNNING")
            self._id = earlier
        else:
            self._id = self._client.create_run(number, run_name=label).info.run_id
        return self._id

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in hparams.items()]
        for i in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self._id, params=params[i : i + _AT_ONCE])

    def put_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in scalars.items()]
        for i in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[i : i + _AT_ONCE])

    def put_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            self._client.log_image(self._id, image, artifact_file=f"{name}.png")

    def put_result(self, file: Path, numbers: Mapping[str, float]) -> None:
        self.put_scalars(0, numbers)
        self._client.log_artifact(self._id, str(file))

    def end(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


class Wandb(Tracker):
    """A run of the Weights & Biases project `tljax`, or of WANDB_PROJECT."""

    name = "wandb"

    def begin(self, earlier: str | None, label: str) -> str:
        with importing():
            import wandb

        settings = wandb.Settings(silent=True, console="off", init_timeout=60)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=label, dir=str(self.workdir), mode=mode,
            id=earlier or uuid.uuid4().hex[:12], resume="allow", settings=settings, reinit="create_new",
        )  # fmt: skip
        return self._run.id

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._run.config.update(dict(hparams))

    def put_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def put_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        import wandb

        self._run.log({name: wandb.Image(image) for name, image in images.items()}, step=step)

    def put_result(self, file: Path, numbers: Mapping[str, float]) -> None:
        self._run.summary.update(dict(numbers))
        copy = shutil.copy(file, self._run.dir)  # of a file that lies elsewhere it would keep a link
        self._run.save(copy, base_path=self._run.dir, policy="now")

    def end(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


def open_tracker(name: str, workdir: Path, console: Console, config: Mapping[str, Any]) -> Tracker:
    """Begins, or goes on with, the run of a tracker by its name in a config.

    Raises:
      UserError: where that fails.
    """
    return {kind.name: kind for kind in (Mlflow, Wandb)}[name](workdir, console, config)


def numbers_of(result: Mapping[str, Any]) -> dict[str, float]:
    """What of a result goes into a tracker's table: accuracies with the ends of their intervals, calibration errors.

    Of a population those of every member, as `members/003/test_accuracy`.
    """
    found: dict[str, float] = {}
    for prefix, row in [("", result), *((f"{row['folder']}/", row) for row in result.get("members", ()))]:
        for split in ("validation", "test"):
            if told := row.get(split):
                low, high = told["interval95"]
                found |= {f"{prefix}{split}_accuracy": told["accuracy"], f"{prefix}{split}_low": low,
                          f"{prefix}{split}_high": high}  # fmt: skip
            if measured := (row.get("calibration") or {}).get(split):
                found[f"{prefix}{split}_ece"] = measured["ece"]
    return found


def _pictures(workdir: Path) -> Iterator[tuple[str, np.ndarray]]:
    for name in PICTURES:
        with contextlib.suppress(FileNotFoundError), Image.open(workdir / f"{name}.png") as image:
            yield name, np.asarray(image.convert("RGB"))


def _label(workdir: Path) -> str:
    """What the run is called among others: its folder's last two names."""
    return "/".join(workdir.absolute().parts[-2:])


def _read_ids(workdir: Path) -> dict[str, Any]:
    """The ids of the trackers' runs, by tracker; a file that is damaged holds none."""
    try:
        ids = json.loads((workdir / IDS).read_bytes())
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) and all(isinstance(one, str) for one in ids.values()) else {}
