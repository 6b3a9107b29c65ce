"""One run, from a config to a folder with an honest test accuracy in it."""

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils
from rich.console import Console

from tljax import features as features_lib
from tljax import workdir as folders
from tljax.checkpoint import Checkpoints
from tljax.data.batches import prefetch
from tljax.data.pixels import available_memory
from tljax.errors import UserError
from tljax.experiment import Experiment, augmentation, check, prepare
from tljax.feed import Feed
from tljax.finish import finish
from tljax.interrupt import Interrupted, listen
from tljax.losses import score
from tljax.report import console as console_lib
from tljax.state import TrainState
from tljax.steps import NOTHING, join_parts, own_parts, parallel_forward_step, parallel_train_step
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
    phases, plans = experiment.phases[0], experiment.plans[0]
    for phase, plan in zip(phases, plans, strict=True):
        title = f"Plan of epochs {phase.first + 1} to {phase.last}" if len(phases) > 1 else "Plan"
        title += f" (rates of the first of {len(experiment.members)} members)" if experiment.population else ""
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
        trainer = Trainer(experiment, variables, checkpoints, console, began, workdir)
        with listen() as caught:
            trainer.train(writer, caught)
        return finish(trainer)


@dataclasses.dataclass
class Clock:
    """Images per second of training. The first step of a program, which compiles it, counts only if there is no other.

    Attributes:
      warm: whether the program at hand has run.
      images, seconds: of all other steps.
      cold_images, cold_seconds: of first steps.
      waited: of `seconds`, those in which the loop stood waiting for its next batch.
    """

    warm: bool = False
    images: int = 0
    seconds: float = 0.0
    cold_images: int = 0
    cold_seconds: float = 0.0
    waited: float = 0.0

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
    def waited_share(self) -> float | None:
        """The share of the time in which the loop waited for input."""
        return self.waited / self.seconds if self.seconds else None

    @property
    def words(self) -> str:
        waited = f", {self.waited_share:.0%} of it waiting for input" if self.waited_share is not None else ""
        return f"{self.rate:,.0f} images/s{waited}" if self.rate else ""


class Trainer:
    """The moving part of a run: the state on the devices, the history, and where in the epochs it stands."""

    def __init__(
        self,
        experiment: Experiment,
        variables: dict[str, Any],
        checkpoints: Checkpoints,
        console: Console,
        began: float,
        workdir: Path,
    ):
        self.x, self.checkpoints, self.console, self.workdir = experiment, checkpoints, console, workdir
        self.key = jax.random.key(experiment.config.seed)
        self.phase = 0
        self.histories: list[list[dict[str, Any]]] = [[] for _ in experiment.members]
        self.sums = self.no_sums()
        self.began, self.earlier_seconds = began, 0.0
        self.clock = Clock()
        self.kept: dict[str, Any] | None = None  # about the features of this phase, if they are kept
        self.evaluators: dict[str, tuple[Feed, Callable[..., Any]]] = {}
        found = checkpoints.newest(self.like(variables), lambda line: console.print(line, markup=False))
        if found is None:
            state = self.like(variables)({"phase": 0})
        else:
            state, record = found
            self.phase, self.histories = record["phase"], record["histories"]
            self.sums = {name: np.asarray(values) for name, values in record["sums"].items()}
            self.earlier_seconds, self.clock = record["seconds"], Clock(**record["clock"])
            console.print(f"going on from step {state.step:,} of {self.last_step:,}")
        self.step = int(state.step)
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
                opt_state=self.x.init_optimizer(record["phase"], variables["params"]),
                best=self.no_best(variables) if self.x.population else {},
            )

        return state

    def no_best(self, variables: dict[str, Any]) -> dict[str, Any]:
        own = own_parts(self.x.model, self.x.plans[0][0], variables)[0]
        members = len(self.x.members)
        nothing = {"accuracy": np.full(members, -1.0, np.float32), "step": np.zeros(members, np.int32)}
        return join_parts(own, NOTHING) | nothing

    def no_sums(self) -> dict[str, np.ndarray]:
        """The sums of an epoch before its first step, by member."""
        return {name: np.zeros(len(self.x.members)) for name in SUMS}

    @property
    def last_step(self) -> int:
        return self.x.config.epochs * self.x.steps_per_epoch

    @property
    def seconds(self) -> float:
        """Since the run began, time between sittings excluded."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def one_replica(self) -> TrainState:
        return jax_utils.unreplicate(self.state)

    def train(self, writer: console_lib.Writer, caught: list[int]) -> None:
        """All epochs that remain; raises Interrupted as soon as `caught` holds a signal and the state is saved."""
        per_epoch = self.x.steps_per_epoch
        for number, phase in enumerate(self.x.phases[0]):
            if self.step >= phase.last * per_epoch:
                continue
            if number != self.phase:
                self.enter(number)
            feed = self.keep_features(number)
            train_step = parallel_train_step(self.x.train_step(number, feed))
            self.clock.warm = False
            for epoch in range(self.step // per_epoch, phase.last):
                if not self.train_epoch(train_step, feed, epoch, caught):
                    self.save(accuracy=None)
                    break
                rows = self.close_epoch(epoch)
                self.save(accuracy=None if self.x.population else rows[0]["val_accuracy"])
                self.log(rows, writer)
                if caught:
                    break
            if caught and self.step < self.last_step:
                self.checkpoints.wait()
                raise Interrupted(caught[0], self.step)

    def enter(self, phase: int) -> None:
        """Begins a phase with its plan's optimizer, and the moments of what goes on training if the config says so."""
        state = self.one_replica()
        opt_state = self.x.init_optimizer(phase, state.params)
        if self.x.config.transfer.moments == "keep":
            opt_state = carry_moments(state.opt_state, opt_state)
        self.state, self.phase = jax_utils.replicate(state.replace(opt_state=opt_state)), phase

    def keep_features(self, phase: int) -> Feed:
        """Computes what the phase's constant prefix puts out, where that is exact or asked for.

        Returns:
          What to train on: features, else pictures.
        """
        x, cache, cut = self.x, self.x.config.cache, self.x.cut(phase)
        self.kept, self.evaluators = None, {}
        if cut is None or cache.features == "off" or not x.views:
            return x.feed("train", training=True)
        images = sum(
            len(x.data.splits[split]) * n for split, n in (("train", x.views), ("val", 1)) if split in x.data.splits
        )
        one: Any = jax.eval_shape(
            lambda v: x.model.apply(v, jnp.zeros((1, x.config.data.size, x.config.data.size, 3)), end=cut),
            self.one_replica().variables,
        )
        size = images * one.size * one.dtype.itemsize
        spill = size > (int(cache.memory_gb * 2**30) or available_memory() // 2)
        names = list(x.model.groups[: x.model.groups.index(cut)])
        prefix = f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
        slower = jax.default_backend() != "cpu"  # to read from a disk than to compute again
        if spill and slower and not cache.views:
            self.console.print(f"{prefix}: {size / 1e9:.1f} GB of features do not fit in memory and are not kept")
            return x.feed("train", training=True)
        self.kept = {
            "prefix": names,
            "end": cut,
            "views": x.views,
            "bytes": size,
            "in": "file" if spill else "memory",
        }
        began = time.perf_counter()
        features = self.features_of("train", x.views, one)
        if "val" in x.data.splits:
            self.evaluator("val", one)
        self.kept["seconds"] = time.perf_counter() - began
        why = (
            f"{x.views} fixed views of each training image"
            if augmentation(x.config).random
            else "exact: nothing random"
        )
        self.console.print(
            f"{prefix} never change: their outputs are kept in {self.kept['in']} ({why}); {images:,} views, "
            f"{size / 1e6:,.0f} MB, {self.kept['seconds']:.0f} s"
        )
        return x.feed("train", training=True, features=features)

    def features_of(self, split: str, views: int, one: Any) -> np.ndarray:
        """Features `[n, views, ...]` of a split; `one` has the shape and type of a batch of one."""
        x, cut = self.x, self.x.cut(self.phase)
        pictures = x.feed(split, training=split == "train", once=True)
        assert cut is not None and self.kept is not None
        variables, key, file = self.state.variables, "", None
        if self.kept["in"] == "file":
            inputs = {
                **x.preprocessing,
                "pixels": x.data.pixels_digest,
                "images": x.data.fingerprint,
                "split": pictures.split,
                "views": views,
                "augment": repr(augmentation(x.config)) if pictures.training else "",
                "seed": x.config.seed,
            }
            key = features_lib.digest(x.model, cut, self.one_replica().variables, inputs)
            file = self.workdir / f"features-{pictures.split}-{jax.process_index()}.npy"
            if (found := features_lib.reopen(file, key)) is not None:
                return found
        step = parallel_forward_step(x.forward_step(self.phase, pictures, end=cut))

        def outputs() -> Iterator[tuple[int, int, np.ndarray]]:
            for view in range(views):
                first = 0
                for values in self.run_over(step, pictures, variables, view=view):
                    yield first, view, values
                    first += len(values)

        shape = (len(pictures.indices), views, *one.shape[1:])
        return features_lib.collect(outputs(), shape, one.dtype, file=file, key=key)

    def run_over(self, step: Callable[..., Any], feed: Feed, variables: Any, *, view: int = 0) -> Iterator[np.ndarray]:
        """What a forward step gives for every image of a feed, in order, a batch at a time."""
        rows, left = self.x.replicas.rows(feed.batch_size), len(feed.indices)
        batches = prefetch(feed.batches(epoch=view, rows=rows, shuffle=False))
        shards = (self.x.replicas.shard(batch, epoch=view) | feed.resident_part for batch in batches)
        for out in trailing((step(variables, shard, self.key) for shard in shards), IN_FLIGHT):
            values = self.x.replicas.unshard(jax_utils.unreplicate(out))[: min(feed.batch_size, left)]
            left -= len(values)
            yield values

    def train_epoch(self, train_step: Callable[..., Any], feed: Feed, epoch: int, caught: list[int]) -> bool:
        """Steps from where the state stands to the end of `epoch`; False if a signal came before that."""
        x = self.x
        done, of = self.step % x.steps_per_epoch, x.steps_per_epoch
        batches = prefetch(feed.batches(epoch=epoch, start=done, rows=x.replicas.rows(x.batch_size)))
        sums: list[Any] = []
        images = len(feed.indices)

        def steps() -> Iterator[Any]:
            nonlocal done
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    return
                self.clock.waited += time.perf_counter() - asked if self.clock.warm else 0.0
                shard = x.replicas.shard(batch, epoch=epoch) | feed.resident_part
                self.state, metrics = train_step(self.state, shard, self.key)
                sums.append({name: metrics[name] for name in SUMS})
                done += 1
                self.step += 1
                advance(done, of, self.clock.words)
                yield metrics, min(x.batch_size, images - (done - 1) * x.batch_size)
                if caught and done < of:
                    return

        title, last = f"epoch {epoch + 1}/{x.config.epochs}", time.perf_counter()
        with console_lib.progress_bar(self.console, title) as advance, contextlib.closing(batches):
            for metrics, seen in trailing(steps(), IN_FLIGHT):
                jax.block_until_ready(metrics)  # bounds what is under way; the devices have the next steps already
                now = time.perf_counter()
                self.clock.add(seen, now - last)
                last = now
        for found in jax.device_get(sums):
            for name in SUMS:
                self.sums[name] += np.atleast_1d(found[name][0]).astype(np.float64)
        return done == of

    def save(self, *, accuracy: float | None) -> None:
        record = {
            "phase": self.phase,
            "histories": self.histories,
            "sums": {name: values.tolist() for name, values in self.sums.items()},
            "seconds": self.seconds,
            "clock": dataclasses.asdict(self.clock),
            "data": self.x.data.fingerprint,
        }
        self.checkpoints.save(self.one_replica(), record, accuracy=accuracy)

    def close_epoch(self, epoch: int) -> list[dict[str, Any]]:
        """Validates, and adds the epoch's line to each member's history."""
        x, step = self.x, (epoch + 1) * self.x.steps_per_epoch
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
            )
        self.sums = self.no_sums()
        rows = [history[-1] for history in self.histories]
        if x.population and logits is not None:
            self.remember_best(np.asarray([row["val_accuracy"] for row in rows], np.float32), step)
        return rows

    def remember_best(self, accuracy: np.ndarray, step: int) -> None:
        """Copies what the members are now over what they were at their best, where they are better now."""
        state = self.one_replica()
        better = accuracy > np.asarray(state.best["accuracy"])
        own = own_parts(self.x.model, self.x.plans[0][0], state.variables)[0]

        def newer(old: Any, new: Any) -> Any:
            return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        now = join_parts(own, NOTHING) | {
            "accuracy": jnp.asarray(accuracy), "step": jnp.full(len(better), step, jnp.int32)
        }  # fmt: skip
        best = jax.tree.map(newer, state.best, now)
        self.state = self.state.replace(best=jax_utils.replicate(best))

    def log(self, rows: list[dict[str, Any]], writer: console_lib.Writer) -> None:
        """The epoch's line on the console; metrics.csv and TensorBoard for a single run."""
        self.console.print("   ".join([*console_lib.epoch_words(rows), self.clock.words]))
        if self.x.population:
            return
        row = rows[0]
        if jax.process_index() == 0:
            folders.write_csv(self.workdir / folders.METRICS, self.histories[0])
        scalars = {k: v for k, v in row.items() if v is not None and k not in ("epoch", "step")}
        writer.write_scalars(row["step"], scalars)
        writer.flush()

    def evaluator(self, split: str, one: Any = None) -> tuple[Feed, Callable[..., Any]]:
        """What evaluates a split: on kept features where there are any and they are used more than once."""
        if split not in self.evaluators:
            keep = self.kept is not None and one is not None
            feed = self.x.feed(split, features=self.features_of(split, 1, one) if keep else None)
            self.evaluators[split] = feed, parallel_forward_step(self.x.forward_step(self.phase, feed))
        return self.evaluators[split]

    def logits(self, split: str) -> np.ndarray:
        """Logits `[members, N, outputs]` of every image of a split, in its order, with running statistics."""
        feed, step = self.evaluator(split)
        found = np.concatenate(list(self.run_over(step, feed, self.state.variables)))
        return np.moveaxis(found, 1, 0) if self.x.population else found[None]


def trailing(items: Iterator[Any], behind: int) -> Iterator[Any]:
    """Yields the items `behind` places late, so that what computes them runs ahead of who waits for them."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > behind:
            yield waiting.popleft()
    yield from waiting
