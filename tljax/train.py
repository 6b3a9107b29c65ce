"""One run, from a config to a folder with an honest test accuracy in it."""

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import jax_utils
from rich.console import Console

from tljax import workdir as folders
from tljax.checkpoint import Checkpoints, saved_variables
from tljax.data.batches import eval_batches, prefetch, train_batches
from tljax.errors import UserError
from tljax.experiment import Experiment, check, prepare
from tljax.interrupt import Interrupted, listen
from tljax.losses import Score, score
from tljax.report import console as console_lib
from tljax.report import pictures, provenance
from tljax.state import TrainState
from tljax.steps import make_eval_step, parallel_eval_step, parallel_train_step
from tljax.transfer.optimizer import carry_moments

# Steps dispatched before the host waits for one: enough to keep a device busy, few enough to bound the memory.
IN_FLIGHT = 2
SUMS = ("loss", "correct", "seen")


def run(config: Any, workdir: Path, *, overwrite: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Trains, picks the best epoch by validation, tests once.

    Started again in the same folder it goes on where it stopped; a batch is a function of (seed, epoch, index), so the
    result is that of a run that was never stopped.

    Args:
      config: as `configs/common.py` describes.
      workdir: the run's folder: checkpoints, metrics.csv, result.json, predictions.npz, pictures, TensorBoard events.
      overwrite: throw away another run that is there.
      console: where to print.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: for whatever the user can mend.
      Interrupted: on SIGINT or SIGTERM, after saving.
    """
    began = time.perf_counter()
    first = jax.process_index() == 0
    console = console or console_lib.make_console(quiet=not first)
    check(config)
    folders.check_free(workdir, config.to_dict(), overwrite=overwrite)
    experiment, variables = prepare(config, workdir, console)
    for phase, plan in zip(experiment.phases, experiment.plans, strict=True):
        title = f"Plan of epochs {phase.first + 1} to {phase.last}" if len(experiment.phases) > 1 else "Plan"
        console_lib.print_table(console, title, plan.table())
    with contextlib.ExitStack() as stack:
        if first:  # only now: a run that cannot begin leaves nothing behind, and throws nothing away
            stack.enter_context(folders.locked(workdir))
            folders.check_free(workdir, config.to_dict(), overwrite=overwrite)
            folders.claim(workdir, config.to_dict(), overwrite=overwrite)
            experiment.save_augmented(workdir / "augmented.png")
        checkpoints = Checkpoints(workdir)
        stack.callback(checkpoints.close)
        writer = console_lib.make_writer(workdir, console, first=first)
        stack.callback(writer.close)
        trainer = Trainer(experiment, variables, checkpoints, console, began)
        with listen() as caught:
            trainer.train(workdir, writer, caught)
        return finish(trainer, workdir)


@dataclasses.dataclass
class Clock:
    """Images per second of training. The first step of a program, which compiles it, counts only if there is no other.

    Attributes:
      warm: whether the program at hand has run.
      images, seconds: of all other steps.
      cold_images, cold_seconds: of first steps.
    """

    warm: bool = False
    images: int = 0
    seconds: float = 0.0
    cold_images: int = 0
    cold_seconds: float = 0.0

    def add(self, images: int, seconds: float) -> None:
        if self.warm:
            self.images, self.seconds = self.images + images, self.seconds + seconds
        else:
            self.cold_images, self.cold_seconds, self.warm = (
                self.cold_images + images, self.cold_seconds + seconds, True
            )  # fmt: skip

    @property
    def rate(self) -> float | None:
        images, seconds = (self.images, self.seconds) if self.images else (self.cold_images, self.cold_seconds)
        return images / seconds if seconds else None

    @property
    def words(self) -> str:
        return f"{self.rate:,.0f} images/s" if self.rate else ""


class Trainer:
    """The moving part of a run: the state on the devices, the history, and where in the epochs it stands."""

    def __init__(
        self,
        experiment: Experiment,
        variables: dict[str, Any],
        checkpoints: Checkpoints,
        console: Console,
        began: float,
    ):
        self.x, self.checkpoints, self.console = experiment, checkpoints, console
        self.key = jax.random.key(experiment.config.seed)
        self.evaluate = parallel_eval_step(make_eval_step(model=experiment.model, normalize=experiment.normalize))
        self.phase = 0
        self.history: list[dict[str, Any]] = []
        self.sums = dict.fromkeys(SUMS, 0.0)  # of the epoch so far
        self.began, self.earlier_seconds = began, 0.0
        self.clock = Clock()
        found = checkpoints.newest(self.like(variables), lambda line: console.print(line, markup=False))
        if found is None:
            state = self.like(variables)({"phase": 0})
        else:
            state, record = found
            self.phase, self.history, self.sums = record["phase"], record["history"], record["sums"]
            self.earlier_seconds, self.clock = record["seconds"], Clock(**record["clock"])
            console.print(f"going on from step {state.step:,} of {self.last_step:,}")
        self.state = jax_utils.replicate(state)

    def like(self, variables: dict[str, Any]) -> Callable[[dict[str, Any]], TrainState]:
        """A record -> a state at the beginning, with the optimizer of the phase that was saved."""

        def state(record: dict[str, Any]) -> TrainState:
            data = self.x.data
            if record.get("data", data.fingerprint) != data.fingerprint:
                raise UserError(
                    f"the images of {data.source.spec}, or their split, have changed since this run began: it may have "
                    f"trained on what it would test on; give another --workdir, or --overwrite"
                )
            return TrainState(
                step=np.zeros((), np.int32),
                params=variables["params"],
                batch_stats=variables["batch_stats"],
                opt_state=self.x.optimizer(record["phase"]).init(variables["params"]),
            )

        return state

    @property
    def step(self) -> int:
        return int(self.one_replica().step)

    @property
    def last_step(self) -> int:
        return self.x.config.epochs * self.x.steps_per_epoch

    @property
    def seconds(self) -> float:
        """Since the run began, time between sittings excluded."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def one_replica(self) -> TrainState:
        return jax_utils.unreplicate(self.state)

    def train(self, workdir: Path, writer: console_lib.Writer, caught: list[int]) -> None:
        """All epochs that remain; raises Interrupted as soon as `caught` holds a signal and the state is saved."""
        per_epoch = self.x.steps_per_epoch
        for number, phase in enumerate(self.x.phases):
            if self.step >= phase.last * per_epoch:
                continue
            if number != self.phase:
                self.enter(number)
            train_step = parallel_train_step(self.x.train_step(number))
            self.clock.warm = False
            for epoch in range(self.step // per_epoch, phase.last):
                if not self.train_epoch(train_step, epoch, caught):
                    self.save(accuracy=None)
                    break
                row = self.close_epoch(epoch)
                self.save(accuracy=row["val_accuracy"])
                self.log(row, workdir, writer)
                if caught:
                    break
            if caught and self.step < self.last_step:
                self.checkpoints.wait()
                raise Interrupted(caught[0], self.step)

    def enter(self, phase: int) -> None:
        """Begins a phase with its plan's optimizer, and the moments of what goes on training if the config says so."""
        state = self.one_replica()
        opt_state = self.x.optimizer(phase).init(state.params)
        if self.x.config.transfer.moments == "keep":
            opt_state = carry_moments(state.opt_state, opt_state)
        self.state, self.phase = jax_utils.replicate(state.replace(opt_state=opt_state)), phase

    def train_epoch(self, train_step: Callable[..., Any], epoch: int, caught: list[int]) -> bool:
        """Steps from where the state stands to the end of `epoch`; False if a signal came before that."""
        x, data, config = self.x, self.x.data, self.x.config
        done, of = self.step % x.steps_per_epoch, x.steps_per_epoch
        batches = prefetch(
            train_batches(
                data.pixels,
                data.source.labels,
                data.splits["train"],
                batch_size=x.batch_size,
                seed=config.seed,
                epoch=epoch,
                start=done,
                rows=x.replicas.rows(x.batch_size),
            )
        )
        last = time.perf_counter()

        def settle(metrics: Any) -> None:
            nonlocal last
            sums = jax.device_get(jax_utils.unreplicate(metrics))
            for name in SUMS:
                self.sums[name] += float(sums[name])
            now = time.perf_counter()
            self.clock.add(int(sums["seen"]), now - last)
            last = now

        title = f"epoch {epoch + 1}/{config.epochs}"
        with console_lib.progress_bar(self.console, title) as advance, contextlib.closing(batches):

            def steps() -> Iterator[Any]:
                nonlocal done
                for batch in batches:
                    self.state, metrics = train_step(self.state, x.replicas.shard(batch, epoch=epoch), self.key)
                    done += 1
                    advance(done, of, self.clock.words)
                    yield metrics
                    if caught and done < of:
                        return

            for metrics in trailing(steps(), IN_FLIGHT):
                settle(metrics)
        return done == of

    def save(self, *, accuracy: float | None) -> None:
        record = {
            "phase": self.phase,
            "history": self.history,
            "sums": self.sums,
            "seconds": self.seconds,
            "clock": dataclasses.asdict(self.clock),
            "data": self.x.data.fingerprint,
        }
        self.checkpoints.save(self.one_replica(), record, accuracy=accuracy)

    def close_epoch(self, epoch: int) -> dict[str, Any]:
        """Validates, and adds the epoch's line to the history."""
        val = self.score("val") if "val" in self.x.data.splits else None
        row = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * self.x.steps_per_epoch,
            "lr": self.x.rate((epoch + 1) * self.x.steps_per_epoch - 1, self.phase),
            "train_loss": self.sums["loss"] / self.sums["seen"],
            "train_accuracy": self.sums["correct"] / self.sums["seen"],
            "val_loss": val and val.loss,
            "val_accuracy": val and val.accuracy,
            "val_correct": val and val.correct,
            "val_seen": val and val.seen,
        }
        self.history.append(row)
        self.sums = dict.fromkeys(SUMS, 0.0)
        return row

    def log(self, row: dict[str, Any], workdir: Path, writer: console_lib.Writer) -> None:
        """The epoch's line on the console, in metrics.csv and for TensorBoard."""
        parts = [f"epoch {row['epoch']:>3}", f"training loss {row['train_loss']:.4f} {row['train_accuracy']:6.1%}"]
        if row["val_accuracy"] is not None:
            counts = f"({row['val_correct']} of {row['val_seen']})"
            parts.append(f"validation loss {row['val_loss']:.4f} {row['val_accuracy']:6.1%} {counts}")
        self.console.print("   ".join([*parts, self.clock.words]))
        if jax.process_index() == 0:
            folders.write_csv(workdir / folders.METRICS, self.history)
        scalars = {k: v for k, v in row.items() if v is not None and k not in ("epoch", "step")}
        writer.write_scalars(row["step"], scalars)
        writer.flush()

    def logits(self, split: str) -> np.ndarray:
        """Logits `[N, outputs]` of every image of a split, in its order, with the statistics that training left."""
        x, data = self.x, self.x.data
        size = min(x.config.batch_size, len(data.splits[split]))
        batches = eval_batches(
            data.pixels,
            data.source.labels,
            data.splits[split],
            batch_size=size,
            crop=x.config.data.size,
            rows=x.replicas.rows(size),
        )
        variables = self.state.variables
        outputs = (self.evaluate(variables, x.replicas.shard(batch)["image"]) for batch in prefetch(batches))
        found = [x.replicas.unshard(jax_utils.unreplicate(out))[:size] for out in trailing(outputs, IN_FLIGHT)]
        return np.concatenate(found)[: len(data.splits[split])]

    def score(self, split: str) -> Score:
        return score(self.logits(split), self.x.data.labels(split), self.x.plain_loss)


def trailing(items: Iterator[Any], behind: int) -> Iterator[Any]:
    """Yields the items `behind` places late, so that what computes them runs ahead of who waits for them."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > behind:
            yield waiting.popleft()
    yield from waiting


def finish(trainer: Trainer, workdir: Path) -> dict[str, Any]:
    """Goes back to the best epoch, tests once, writes everything down."""
    x, history = trainer.x, trainer.history
    scored = [row for row in history if row["val_accuracy"] is not None]
    best = max(scored, key=lambda row: (row["val_accuracy"], -row["epoch"])) if scored else history[-1]
    trainer.checkpoints.wait()
    if best["step"] != trainer.step:
        state = trainer.one_replica().replace(**saved_variables(workdir, best["step"]))
        trainer.state = jax_utils.replicate(state)

    result: dict[str, Any] = {"test": None, "validation": None}
    predictions: dict[str, np.ndarray] = {}
    for split, name in (("val", "validation"), ("test", "test")):
        if split not in x.data.splits:
            continue
        logits, labels = trainer.logits(split), x.data.labels(split)
        result[name] = score(logits, labels, x.plain_loss).as_dict()
        names = np.array([x.data.source.names[i] for i in x.data.splits[split]])
        predictions |= {f"{split}_logits": logits, f"{split}_labels": labels, f"{split}_names": names}
    if scored:
        last = {name: history[-1][f"val_{name}"] for name in ("accuracy", "correct", "seen")}
        result["validation"] |= {"best_epoch": best["epoch"], "last_epoch": last}
    result |= {
        "best_step": best["step"],
        "train": {
            "images_per_second": trainer.clock.rate,
            "images": len(x.data.splits["train"]),
            "trainable_parameters": x.plans[-1].trainable,
        },
        "seconds": trainer.seconds,
        "skipped": {"count": len(x.data.skipped), "files": [list(pair) for pair in x.data.skipped]},
        "classes": list(x.data.source.classes),
        "preprocessing": x.preprocessing,
        "weights": x.origin,
        "plan": [plan.as_rows() for plan in x.plans],
        "history": history,
        "config": x.config.to_dict(),
        "versions": provenance.versions(),
        "device": provenance.device(),
    }
    if jax.process_index() == 0:
        np.savez_compressed(workdir / "predictions.npz", allow_pickle=False, **predictions)
        pictures.save_curves(workdir / "curves.png", history)
        folders.write_json(workdir / folders.RESULT, result)
    for name in ("validation", "test"):
        if (found := result[name]) is not None:
            told = console_lib.percent(found["correct"], found["seen"], found["interval95"])
            which = f", best epoch {found['best_epoch']}" if name == "validation" else ""
            trainer.console.print(f"{name} accuracy {told}{which}")
    trainer.console.print(f"{trainer.seconds:.0f} s; everything is in {workdir}", markup=False)
    return result
