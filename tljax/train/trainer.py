"""The moving part of a run: epochs of steps, validation, checkpoints."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from tljax.core.errors import UserError, counted
from tljax.core.signals import Interrupted
from tljax.data.batches import num_batches, prefetch, trailing
from tljax.data.labels import UNLABELED
from tljax.distributed import parallel
from tljax.distributed.consensus import Stop, assert_equal_across_processes
from tljax.engine.input_pipeline import InputPipeline, predict_all, repeat, steps_ahead
from tljax.engine.nan_guard import first_nonfinite, make_trace, skip_nonfinite_updates
from tljax.engine.oom_guard import check_fits_memory
from tljax.engine.steps import NOTHING, combine, partition
from tljax.metrics.accuracy import score
from tljax.report import console as console_lib
from tljax.run_dir import files as folders
from tljax.run_dir.checkpoint import Checkpoints
from tljax.run_dir.train_state import TrainState
from tljax.semi.input_pipeline import JointPipeline
from tljax.train.best_epoch import chosen_row
from tljax.train.diagnostics import Diagnostics
from tljax.train.experiment import Experiment
from tljax.train.feature_cache import Kept, keep
from tljax.train.throughput import LEAST, Budget, Clock, Forecast
from tljax.transfer.optimizer import carry_moments

SUMS = ("loss", "correct", "seen")
GIVEN = ("index", "given")  # of unlabeled images, and what they were taken for
TOLD = ("given", "known", "right")  # of an epoch's pseudo-labels: how many, of how many somebody knows the label
VITAL = ("norms", "active")  # whether anything is learned
FETCHED = 20  # updates whose metrics are looked at together
SHOWN = 5  # updates that show how long an update takes


def fresh_state(x: Experiment, phase: int, variables: dict[str, Any]) -> TrainState:
    """The state at the beginning of a run, with the optimizer of a phase."""
    opt_state, best = x.init_optimizer(phase, variables["params"]), {}
    if x.population:
        trainable, members = partition(x.model, x.plans[0][0], variables)[0], len(x.members)
        nothing = {"accuracy": np.full(members, -1.0, np.float32), "step": np.zeros(members, np.int32)}
        best = combine(trainable, NOTHING) | nothing
    return TrainState(
        step=np.zeros((), np.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=opt_state,
        best=best,
        semi=x.init_semi(variables, opt_state),
    )


class Trainer:
    """The moving part of a run: the state on the devices, the history, and where in the epochs it stands."""

    def __init__(
        self,
        experiment: Experiment,
        checkpoints: Checkpoints,
        console: Console,
        began: float,
        workdir: Path,
        budget: Budget | None = None,
    ):
        self.budget, self.forecast = budget, Forecast(console)
        self.x, self.checkpoints, self.console, self.workdir = experiment, checkpoints, console, workdir
        self.key = jax.random.key(experiment.config.seed)
        self.phase = 0
        self.histories: list[list[dict[str, Any]]] = [[] for _ in experiment.members]
        self.best: list[int | None] = [None] * len(experiment.members)  # the step of the best epoch so far, by member
        self.sums = self.no_sums()
        self.last_step = experiment.last_step  # a budget may end it earlier
        self.stop = Stop()
        self.began, self.earlier_seconds = began, 0.0
        self.clocks: list[Clock] = []  # one per epoch
        self.warm = False  # whether the training step at hand has run, and is compiled
        self.first_step: float | None = None  # seconds until the run's first step was done
        self.diverged: list[int | None] = [None] * len(experiment.members)  # the step, by member
        self.kept: Kept | None = None
        self.features: dict[str, Any] | None = None  # what is told of those kept last
        self.evaluators: dict[str, tuple[InputPipeline, Callable[..., Any]]] = {}
        self.step = 0
        self.state: Any  # from `begin` on, as the next
        self.diagnostics: Diagnostics

    def begin(self, variables: dict[str, Any]) -> None:
        """Goes on from the newest checkpoint, else starts with `variables`; all processes call it together.

        Raises:
          UserError: when the checkpoints are of another config or of other images.
        """
        found = self.checkpoints.newest(self.like(variables), lambda line: self.console.print(line, markup=False))
        state, record = found or (fresh_state(self.x, 0, variables), {})
        if record:
            self.restore(state, record)
        self.diagnostics = Diagnostics(self.x, self.console, record.get("diagnostics"))
        self.step = int(state.step)
        assert_equal_across_processes(lambda: {"the step that the run goes on from": self.step})
        self.state = parallel.replicate(state)

    def restore(self, state: TrainState, record: dict[str, Any]) -> None:
        """Takes over what `save` recorded beside a state."""
        self.phase, self.histories = record["phase"], record["histories"]
        self.best = record["best"] if "best" in record else self.best_by_older_rule(state)
        self.sums |= {name: np.asarray(values) for name, values in record["sums"].items()}
        self.earlier_seconds, self.first_step = record["seconds"], record["first_step"]
        self.features = record.get("features")
        self.last_step = record.get("last_step", self.last_step)
        self.diverged = record["diverged"]
        self.clocks = [Clock(**clock) for clock in record["clocks"]]
        self.x.data.sealed.reads.update(record.get("test_labels", {}))
        self.console.print(f"going on from step {state.step:,} of {self.last_step:,}")
        self.tell_of_lost_best()
        if "content" not in record:
            self.console.print("an older version began this run and did not keep what is in its images: nobody can "
                               "tell whether they are the same pictures under the same names")  # fmt: skip

    def like(self, variables: dict[str, Any]) -> Callable[[dict[str, Any]], TrainState]:
        """A record -> a state at the beginning, with the optimizer of the phase that was saved."""

        def state(record: dict[str, Any]) -> TrainState:
            data, config = self.x.data, folders.digest_of_config(self.x.config.to_dict())
            if record["config"] != config:
                raise UserError(f"the checkpoints in {self.workdir} are of a run of another config; give another "
                                "--workdir, or --overwrite")  # fmt: skip
            if record["data"] != data.fingerprint or record.get("content", data.content) != data.content:
                raise UserError(
                    f"the images of {data.source.spec}, or their split, have changed since this run began: it may have "
                    f"trained on what it would test on; give another --workdir, or --overwrite"
                )
            return fresh_state(self.x, record["phase"], variables)

        return state

    def no_sums(self) -> dict[str, np.ndarray]:
        """The sums of an epoch before its first step, by member."""
        names = (*SUMS, *TOLD) if self.x.joint else SUMS
        return {name: np.zeros(len(self.x.members)) for name in names}

    @property
    def seconds(self) -> float:
        """Since the run began, time between sittings excluded."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def one_replica(self) -> TrainState:
        return parallel.unreplicate(self.state)

    def train(self, writer: console_lib.Writer, kept: Kept | None = None) -> None:
        """All epochs that remain, the first phase's on `kept` where given; raises Interrupted as soon as a process was
        sent a signal and the state is saved."""
        per_epoch = self.x.steps_per_epoch
        for number, phase in enumerate(self.x.phases[0]):
            if self.step >= min(phase.last * per_epoch, self.last_step):
                continue
            if number != self.phase:
                self.enter(number)
            self.evaluators = {}
            self.kept = (number == 0 and kept) or keep(
                self.x, number, self.state.variables, workdir=self.workdir, console=self.console,
                pause=self.featured,
            )  # fmt: skip
            self.features = self.kept.record if self.kept else self.features
            feed = self.x.training_feed(self.kept.splits if self.kept else {})
            plan, config = self.x.plans[0][number], self.x.config
            step = self.x.train_step(number, feed)
            step = skip_nonfinite_updates(step, plan, alone=not self.x.population, stop=config.stop_at_nan)
            train_step = check_fits_memory(parallel.train_step(step), self.x.batches, config.accumulate)
            self.warm = False
            for epoch in range(self.step // per_epoch, phase.last):
                if not self.train_epoch(train_step, feed, epoch):
                    self.save()
                    break
                self.end_if_late()
                rows = self.close_epoch(epoch)
                self.save()
                self.log(rows, writer)
                if self.stop.asked() or self.step == self.last_step:
                    break
                self.foresee_rest()
            if self.step < self.last_step:
                self.stop_if_asked()
        if self.last_step < self.x.last_step:
            self.console.print(
                "the minutes are all but over, and it went more slowly than measured: training ends after "
                f"{self.last_step:,} of {counted(self.x.last_step, 'update')}; so does repeat.py"
            )
        self.checkpoints.wait()  # while signals are still caught: the last epoch is not to be lost

    def featured(self, done: int, of: int) -> bool:
        """After a batch of features: says how long all will take, once a few have shown it. All views are wanted."""
        self.stop_if_asked()
        self.forecast.features(done, of, tested=len(self.x.data.splits.get("test", ())))
        return False

    def foresee_rest(self) -> None:
        """Says how long the run will take, once some updates have shown it."""
        x, clock = self.x, self.clocks[-1]
        each = (clock.seconds / clock.images if clock.images else 0) * x.batch_size
        left = self.last_step - self.step
        if not each or not left:
            return
        known = [clock.validation for clock in self.clocks if clock.validation][1:]  # the first one compiles
        stops = -(-left // x.steps_per_epoch) * (known[-1] if known else 0.0)
        self.forecast.updates(left, each, stops, self.seconds, tested=len(x.data.splits.get("test", ())))

    def end_if_late(self) -> None:
        """Makes this update the last one where what is left of a budget is needed for the test."""
        if self.budget is not None and self.step >= LEAST and self.budget.is_over:
            self.last_step = self.diagnostics.total = self.step

    def stop_if_asked(self) -> None:
        """Leaves, with what was saved last, if a signal came."""
        if self.stop.asked():
            self.checkpoints.wait()
            raise Interrupted(self.stop.signal, self.step)

    def enter(self, phase: int) -> None:
        """Begins a phase with its plan's optimizer, and the moments of what goes on training if the config says so."""
        state = self.one_replica()
        opt_state = self.x.init_optimizer(phase, state.params)
        if self.x.config.transfer.moments == "keep":
            opt_state = carry_moments(state.opt_state, opt_state)
        self.state, self.phase = parallel.replicate(state.replace(opt_state=opt_state)), phase

    def train_epoch(self, train_step: Callable[..., Any], feed: InputPipeline | JointPipeline, epoch: int) -> bool:
        """Steps from where the state stands to the end of `epoch` or of training; False if a signal came before."""
        x, first = self.x, epoch * self.x.steps_per_epoch
        done, of = self.step - first, min(x.steps_per_epoch, self.last_step - first)
        batches = prefetch(itertools.islice(repeat(feed, x.replicas, start=self.step), of - done))
        sums: list[Any] = []
        per_pass = num_batches(feed.count, feed.batch_size)
        if len(self.clocks) == epoch:
            self.clocks.append(Clock())
        clock = self.clocks[epoch]

        def steps() -> Iterator[Any]:
            nonlocal done
            while True:
                asked = time.perf_counter()
                shard = next(batches, None)
                if shard is None:
                    return
                clock.waited += time.perf_counter() - asked if self.warm else 0.0
                shard |= x.replicas.scalars(number=self.step, **self.stop.words())
                self.state, metrics = train_step(self.state, shard, self.key)
                done += 1
                self.step += 1
                advance(done, of, clock.words)
                seen = min(feed.batch_size, feed.count - (self.step - 1) % per_pass * feed.batch_size)
                yield metrics, seen, self.step - 1
                self.end_if_late()
                if self.step == self.last_step or (self.stop.signal and done < of):
                    return

        title, last = f"epoch {epoch + 1}/{x.config.epochs}", time.perf_counter()
        with console_lib.progress_bar(self.console, title) as advance, contextlib.closing(batches):
            for metrics, seen, number in trailing(steps(), steps_ahead()):
                jax.block_until_ready(metrics)  # bounds what is under way; the devices have the next steps already
                self.watch(metrics, feed, number)
                self.stop.hear(parallel.to_host(metrics["signal"]) if "signal" in metrics else None)
                sums.append({name: metrics[name] for name in (*SUMS, *GIVEN, *VITAL) if name in metrics})
                if len(sums) == FETCHED:
                    self.take_in(sums)
                now = time.perf_counter()
                clock.add(seen, now - last, cold=not self.warm)
                last, self.warm = now, True
                if self.forecast.total is None and clock.images >= SHOWN * x.batch_size:
                    self.foresee_rest()
                self.first_step = self.first_step or self.seconds
        self.take_in(sums)
        return done == of or self.step == self.last_step

    def take_in(self, sums: list[Any]) -> None:
        """Adds the metrics of updates to the epoch's, and empties the list."""
        fetched = parallel.to_host(sums)
        sums.clear()
        for found in fetched:
            for name in SUMS:
                self.sums[name] += np.atleast_1d(found[name]).astype(np.float64)
            if self.x.joint:
                index, given = (found[name] for name in GIVEN)
                self.sums["given"] += (given != UNLABELED).sum()
                self.sums["known"] += ((given != UNLABELED) & (self.x.data.truth[index] != UNLABELED)).sum()
                right = (given != UNLABELED) & (given == self.x.data.truth[index])  # told, never used
                self.sums["right"] += right.sum()
        self.diagnostics.stepped(fetched, self.phase)

    def watch(self, metrics: dict[str, Any], feed: InputPipeline | JointPipeline, number: int) -> None:
        """Notes which members' numbers have gone wrong; raises UserError for a single run that is to stop then."""
        x = self.x
        all_finite = np.atleast_1d(parallel.to_host(metrics["all_finite"]))
        for m in np.flatnonzero(~all_finite):
            self.diverged[m] = number if self.diverged[m] is None else self.diverged[m]
        if all_finite.all() or x.population or not x.config.stop_at_nan:
            return
        plan, metrics = x.plans[0][self.phase], parallel.to_host(metrics)
        where = first_nonfinite(plan, metrics, lambda: self.trace(feed, number), x.model.stages)
        self.checkpoints.wait()
        kept = self.checkpoints.steps()
        raise UserError(
            f"step {number + 1} (of epoch {number // x.steps_per_epoch + 1}; learning rate "
            f"{x.rate(number, self.phase):.3g}) went wrong: {where}; "
            + (f"the checkpoint of step {kept[-1]} is kept" if kept else "there is no checkpoint yet")
            + "; give a lower optimizer.lr, schedule.warmup_epochs or optimizer.clip, or stop_at_nan=False to go on"
        )

    def trace(self, feed: InputPipeline | JointPipeline, number: int) -> dict[str, int]:
        """Which stages' outputs are finite on the batch of a step, the labeled images first."""
        x, found = self.x, {}
        parts = {"labeled": feed.labeled, "weak": feed.first} if isinstance(feed, JointPipeline) else {"": feed}
        shard = next(repeat(feed, x.replicas, start=number))
        start_stage = x.frozen_prefix_end(self.phase) if feed.features is not None else None
        for name, part in parts.items():
            trace = parallel.eval_step(make_trace(x.model, x.plans[0][self.phase], part.inputs, start_stage))
            found = parallel.to_host(trace(self.state, shard[name] if name else shard, self.key))
            if not all(found.values()):
                break
        return found

    def best_row(self, member: int) -> dict[str, Any]:
        """The epoch of a member, or of a single run, that would be tested now; there is one already."""
        return next(row for row in self.histories[member] if row["step"] == self.best[member])

    def best_by_older_rule(self, state: TrainState) -> list[int | None]:
        """The best epochs of a record that does not name them: versions that kept the earliest of equal accuracies
        wrote it, and no other epoch's parameters are there."""
        if not self.histories[0]:
            return self.best
        if self.x.config.select == "last" or self.histories[0][0]["val_accuracy"] is None:
            return [history[-1]["step"] for history in self.histories]
        if self.x.population:
            return [int(step) for step in state.best["step"]]
        return [max(self.histories[0], key=lambda row: (row["val_accuracy"], -row["epoch"]))["step"]]

    def tell_of_lost_best(self) -> None:
        if self.x.population or self.best[0] is None:  # the best of members are part of the state
            return
        best = self.best_row(0)
        if best["step"] not in self.checkpoints.steps():
            self.console.print(f"the checkpoint of epoch {best['epoch']}, the best so far, is gone: if no later epoch "
                               "is better, this run cannot be tested")  # fmt: skip

    def save(self) -> None:
        record = {
            "phase": self.phase,
            "histories": self.histories,
            "best": self.best,
            "sums": {name: values.tolist() for name, values in self.sums.items()},
            "seconds": self.seconds,
            "first_step": self.first_step,
            "features": self.features,
            "last_step": self.last_step,
            "diverged": self.diverged,
            "diagnostics": self.diagnostics.record,
            "clocks": [dataclasses.asdict(clock) for clock in self.clocks],
            "data": self.x.data.fingerprint,
            "content": self.x.data.content,
            "config": folders.digest_of_config(self.x.config.to_dict()),
            "test_labels": dict(self.x.data.sealed.reads),
        }
        self.checkpoints.save(self.one_replica(), record, best=None if self.x.population else self.best[0])

    def close_epoch(self, epoch: int) -> list[dict[str, Any]]:
        """Validates, and adds the epoch's line to each member's history."""
        x, step, began = self.x, self.step, time.perf_counter()
        logits = self.logits("val") if "val" in x.data.splits else None
        for m, history in enumerate(self.histories):
            val = None if logits is None else score(logits[m], x.data.labels("val"), x.plain_loss)
            sums = {name: float(values[m]) for name, values in self.sums.items()}
            history.append(
                {
                    "epoch": epoch + 1,
                    "step": step,
                    "lr": x.rate(step - 1, self.phase, m),
                    "train_loss": sums["loss"] / sums["seen"],
                    "train_accuracy": sums["correct"] / sums["seen"],
                    "val_loss": val and val.loss,
                    "val_accuracy": val and val.accuracy,
                    "val_correct": val and val.correct,
                    "val_seen": val and val.seen,
                }
                | {name: int(sums[name]) for name in TOLD if name in sums}
            )
        if x.config.select == "test":
            labels = x.data.labels("test", "after an epoch, as select=test asks")
            for history, values in zip(self.histories, self.logits("test"), strict=True):
                test = score(values, labels, x.plain_loss)
                history[-1] |= {"test_correct": test.correct, "test_seen": test.seen}
        self.sums = self.no_sums()
        rows, before = [history[-1] for history in self.histories], self.best
        self.best = [
            row["step"] if old is None else chosen_row([self.best_row(m), row], x.config.select)["step"]
            for m, (row, old) in enumerate(zip(rows, before, strict=True))
        ]
        if x.population and logits is not None:
            self.remember_best(np.asarray([row["val_accuracy"] for row in rows], np.float32), step)
        self.diagnostics.validated(rows, logits)
        self.clocks[epoch].validation = time.perf_counter() - began
        return rows

    def remember_best(self, accuracy: np.ndarray, step: int) -> None:
        """Copies what the members are now over what they were at their best, where `step` is their best."""
        state = self.one_replica()
        better = np.asarray(self.best) == step
        trainable = partition(self.x.model, self.x.plans[0][0], state.variables)[0]

        def newer(old: Any, new: Any) -> Any:
            return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        now = combine(trainable, NOTHING) | {
            "accuracy": jnp.asarray(accuracy), "step": jnp.full(len(better), step, jnp.int32)
        }  # fmt: skip
        best = jax.tree.map(newer, state.best, now)
        self.state = self.state.replace(best=parallel.replicate(best))

    def log(self, rows: list[dict[str, Any]], writer: console_lib.Writer) -> None:
        """The epoch's line on the console; metrics.csv and TensorBoard for a single run."""
        self.console.print("   ".join([*console_lib.epoch_words(rows), self.clocks[-1].words]))
        if len(self.clocks) == 1:
            self.console.print(f"the first step was done after {self.first_step:.0f} s")
        if self.x.population:
            return
        row = rows[0]
        if jax.process_index() == 0:
            folders.write_csv(self.workdir / folders.METRICS, self.histories[0])
        scalars = {k: v for k, v in row.items() if v is not None and k not in ("epoch", "step")}
        writer.write_scalars(row["step"], scalars)
        writer.flush()

    def evaluator(self, split: str) -> tuple[InputPipeline, Callable[..., Any]]:
        """What evaluates a split, on kept features where there are any."""
        if split not in self.evaluators:
            feed = self.x.feed(split, features=self.kept and self.kept.splits.get(split))
            # Splits differ in their batches, not in what is computed of them: one step serves all on the same inputs.
            kept = feed.features is not None
            alike = [step for other, step in self.evaluators.values() if (other.features is not None) == kept]
            step = alike[0] if alike else parallel.eval_step(self.x.forward_step(self.phase, feed))
            self.evaluators[split] = feed, step
        return self.evaluators[split]

    def logits(self, split: str) -> np.ndarray:
        """Logits `[members, N, outputs]` of every image of a split, in its order, with running statistics."""
        feed, step = self.evaluator(split)
        found = np.concatenate(list(predict_all(step, feed, self.state.evaluated, self.key, self.x.replicas)))
        return np.moveaxis(found, 1, 0) if self.x.population else found[None]
