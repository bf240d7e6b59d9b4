"""Checkpoints of a training run, written by Orbax: state, data cursor, configuration and metrics.

On disk a checkpoint is a folder "00003-step-40", the third one written, at step 40, with the Orbax items "state"
(arrays under the model's own names) and "record" (JSON). It is written under a temporary name and renamed when
complete, so that a process that is killed at any moment leaves whole checkpoints only; checksums show what a disk has
damaged.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, cast

from nagjax import checks
from nagjax.training.checkpoint import items, reading
from nagjax.training.checkpoint.folder import Folder, Saved, unwritable
from nagjax.training.checkpoint.reading import Restored
from nagjax.training.checkpoint.together import Save, Together
from nagjax.types import PyTree


class Checkpoints:
    """The checkpoints of one run in a folder: the last ones, and the best.

    A process that is killed at any moment leaves readable checkpoints and loses the steps since the last whole one: at
    most one interval with `asynchronous=False`. Otherwise also those made while a checkpoint was being written, at most
    another interval, since a save waits for the one before; where writing takes a step, one interval and a step.

    Nothing is made, locked or loaded before it is needed: the folder and its lock at the first `save`, Orbax at the
    first save or restore. One run writes into a folder at a time; any may read.

    In a program of several processes all call every method but `due` alike, with one folder that all can reach. Each
    writes and reads the parts of global arrays that it holds; of arrays on its own devices, which must be equal in all,
    process 0 writes its own. What fails in one process is raised in all. The template of another number of processes or
    of other shardings restores the same values.

    Args:
        folder: A local or mounted folder, absent, empty or one of checkpoints.
        every: Steps between checkpoints, an integer of at least 1, or None. A checkpoint is due when the run passes a
            multiple of it.
        every_seconds: Seconds from a save until the next is due, positive, or None. For one process: the clocks of
            several differ.
        keep: Number of last checkpoints that stay, an integer of at least 1.
        best: Name of a metric; the checkpoint with its best value also stays. Those without it, or with NaN, are never
            the best; among equals it is the earliest.
        mode: "min" or "max", whichever is best.
        asynchronous: Whether `save` returns when the state is copied, and a thread writes it while training goes on.
            Failures are raised by the next call of any method but `due`.

    Raises:
        TypeError: `every` or `keep` is not an integer, or `every_seconds` not a number.
        ValueError: An argument is out of its range.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from nagjax.training.checkpoint import Checkpoints
        >>> state = {"x": jnp.arange(3.0), "step": jnp.array(20)}
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, every=10, best="loss") as checkpoints:
        ...     if checkpoints.due(20):
        ...         checkpoints.save(20, state, cursor={"epoch": 1}, config={"width": 8}, metrics={"loss": 0.5})
        ...     found = checkpoints.restore(state, config={"width": 8})
        >>> found.step == 20 and found.cursor == {"epoch": 1} and bool((found.state["x"] == state["x"]).all())
        True
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
        every_seconds: float | None = None,
        keep: int = 3,
        best: str | None = None,
        mode: Literal["min", "max"] = "min",
        asynchronous: bool = True,
    ) -> None:
        name = "Checkpoints"
        if "://" in os.fspath(folder):
            checks.reject(name, "folder", "local or mounted", folder, "mount the bucket, or copy checkpoints to it")
        if every is not None:
            checks.whole(name, "every", every, 1, "give the number of steps between checkpoints")
        if every_seconds is not None:
            checks.positive(name, "every_seconds", every_seconds, "give the seconds between checkpoints")
        checks.whole(name, "keep", keep, 1, "the last checkpoint is what a run resumes from")
        if mode not in ("min", "max"):
            checks.reject(name, "mode", '"min" or "max"', mode, "say which value of the metric is best")
        self.folder = Path(folder).absolute()
        self.every, self.every_seconds = every, every_seconds
        self.keep, self.best, self.mode = keep, best, mode
        self.asynchronous = asynchronous
        self._disk = Folder(self.folder)
        self._together = Together("checkpoints")
        self._save: Save | None = None  # of several processes, the one in progress
        self._writer: Any = None
        self._writing = False
        # Those of the last save or restore.
        self._step, self._metrics, self._time = 0, cast("dict[str, float]", {}), time.monotonic()

    def due(self, step: int) -> bool:
        """Whether `every` or `every_seconds` asks for a checkpoint now.

        Raises:
            ValueError: `every_seconds` is given in a program of several processes.
        """
        if self.every_seconds is not None and self._together.several:
            remedy = "give every: all processes count the same steps"
            checks.reject("Checkpoints.due", "every_seconds", "None in several processes", self.every_seconds, remedy)
        passed = self.every is not None and step // self.every > self._step // self.every
        return passed or (self.every_seconds is not None and time.monotonic() - self._time >= self.every_seconds)

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        cursor: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint. The arrays may be donated or changed as soon as this returns.

        A checkpoint of the same step is replaced, its metrics kept if it was this object's last. A run that went back
        to an earlier step goes on from there: `latest` is the checkpoint written last.

        Args:
            step: Number of the step, at least 0.
            state: A tree of arrays, PRNG keys and Python numbers.
            cursor: Place in the data, JSON.
            config: What made the run, JSON; `restore` compares it.
            metrics: Scalars by name.

        Raises:
            TypeError: A leaf is no array or number, or of a dtype that Orbax cannot store; or JSON cannot hold a value.
            ValueError: The folder holds something else, or another run writes there.
            OSError: The folder cannot be written; earlier checkpoints are as they were.
        """
        checks.whole("Checkpoints.save", "step", step, 0, "give the number of steps done")
        several = self._together.several
        record, arrays = self._together.do(lambda: items.prepared(step, state, cursor, config, metrics, several))
        self.wait()
        if step == self._step:
            record["metrics"] = self._metrics | record["metrics"]
        path = self.folder / f"{self._together.of_main(self._disk.claim):05d}-step-{step}"
        self._together.do(lambda: self._start(path, record, arrays))
        self._step, self._metrics, self._time = step, record["metrics"], time.monotonic()
        if not self.asynchronous:
            self.wait()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, ascending."""
        return sorted({saved.step for saved in self._saved()})

    def latest(self) -> int | None:
        """The step of the checkpoint written last, or None."""
        saved = self._saved()
        return saved[-1].step if saved else None

    def best_step(self) -> int | None:
        """The step with the best value of the metric `best`, or None."""
        found = self._saved()
        saved = self._together.do(lambda: self._best(found))
        return saved.step if saved else None

    def restore(
        self, template: PyTree, *, config: Mapping[str, Any] | None = None, step: int | None = None
    ) -> Restored:
        """Read the checkpoint written last, or that of `step`.

        Args:
            template: A state of the right structure: arrays, `jax.ShapeDtypeStruct`s, keys or numbers. Arrays come back
                where the template's are placed, or on the default device.
            config: What makes this run; where the checkpoint has another configuration, nothing is restored.
            step: One of `steps()`.

        Returns:
            Step, state, cursor, configuration and metrics.

        Raises:
            FileNotFoundError: There is no such checkpoint.
            ValueError: The configuration or the state differs; the message has a line for each difference.
            OSError: The checkpoint is damaged.
        """
        found = self._saved()
        chosen = [saved for saved in found if step is None or saved.step == step]
        if not chosen:
            steps = sorted({saved.step for saved in found})
            remedy = f"choose one of {steps}" if steps else "save one, or look into another folder"
            name = f"that of a checkpoint in {self.folder}"
            checks.reject("Checkpoints.restore", "step", name, step, remedy, FileNotFoundError)
        saved = chosen[-1]
        self._together.of_main(lambda: reading.verify(saved, found))
        record = self._together.do(lambda: reading.record(saved, found, template, config))
        restored = self._together.do(lambda: reading.read(saved, found, template, record))
        self._step, self._metrics, self._time = saved.step, restored.metrics or {}, time.monotonic()
        return restored

    def wait(self) -> None:
        """Wait for the save in progress, raise its failure, and remove checkpoints that are no longer kept."""
        self._wait(self._together.do)

    def close(self) -> None:
        """Wait for the save in progress and let other processes write; a later call opens the folder again."""
        self._close(self._together.do)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error this process alone may be here: it does not wait for what the others say.
        self._close(self._together.do if error is None else _alone)

    def _start(self, path: Path, record: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Copy the arrays and begin to write them."""
        self._save = self._together.save() if self._together.several else None
        try:
            if self._writer is None:
                self._writer = items.writer(self._disk.unfinished, self._barrier if self._save else None)
            self._writing = True
            self._writer.save(str(path), args=items.to_write(record, arrays))
        except Exception as error:  # TensorStore and Orbax raise many kinds
            self._failed("save", error)

    def _barrier(self, *, key: str, timeout_ms: int) -> None:
        assert self._save is not None
        self._save.join(key=key, timeout_ms=timeout_ms)

    def _wait(self, do: Callable[[Callable[[], None]], None]) -> None:
        if not self._writing:
            return
        try:
            do(self._finish)
        except Exception:
            self._writing = False
            raise
        self._writing = False

    def _finish(self) -> None:
        """Wait for the save in progress, and remove checkpoints that are no longer kept."""
        try:
            self._writer.wait_until_finished()
            if self._together.is_main:
                found = self._disk.saved()
                kept = self._kept(found)
                for saved in found:
                    if saved not in kept:
                        self._disk.remove(saved)
        except Exception as error:  # TensorStore and Orbax raise many kinds
            if self._save is not None:
                self._save.fail(error)
            self._failed("wait", error)

    def _close(self, do: Callable[[Callable[[], None]], None]) -> None:
        try:
            self._wait(do)
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._disk.release()

    def _saved(self) -> list[Saved]:
        self.wait()
        return [Saved(k, step, Path(path)) for k, step, path in self._together.of_main(self._listed)]

    def _listed(self) -> list[tuple[int, int, str]]:
        return [(saved.serial, saved.step, str(saved.path)) for saved in self._disk.saved()]

    def _best(self, found: list[Saved]) -> Saved | None:
        values = [(value, saved) for saved in found if (value := self._value(saved)) is not None]
        return min(values)[1] if values else None

    def _value(self, saved: Saved) -> float | None:
        """The metric of a checkpoint, less being better; None without it, and for a record that cannot be read."""
        try:
            value = items.read_record(saved.path)["metrics"].get(self.best, math.nan)
        except Exception:
            return None
        value = value if self.mode == "min" else -value
        return None if math.isnan(value) else value

    def _kept(self, found: list[Saved]) -> list[Saved]:
        newest = list({saved.step: saved for saved in found}.values())
        best = self._best(newest)
        return sorted(newest)[-self.keep :] + ([best] if best else [])

    def _failed(self, method: str, error: Exception) -> NoReturn:
        self._writing = False
        self._writer = None  # in no known state
        unwritable(f"Checkpoints.{method}", self.folder, error)


def _alone(action: Callable[[], None]) -> None:
    action()
