"""Checkpoints of a training run, written by Orbax: state, data cursor, configuration and metrics.

On disk a checkpoint is a folder "00003-step-40", the third one written, at step 40, with the Orbax items "state"
(arrays under the model's own names) and "record" (JSON). It is written under a temporary name and renamed when
complete, so that a process that is killed at any moment leaves whole checkpoints only; checksums show what a disk has
damaged.
"""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn, Self, cast

import jax

from nagjax import checks
from nagjax.training.checkpoint import differences, items, leaves
from nagjax.training.checkpoint.folder import Folder, Saved, reason, unwritable
from nagjax.types import PyTree


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns."""

    step: int
    state: PyTree  # in the types of the template
    cursor: dict[str, Any]
    config: dict[str, Any] | None
    metrics: dict[str, float] | None


class Checkpoints:
    """The checkpoints of one run in a folder: the last ones, and the best.

    A process that is killed at any moment leaves readable checkpoints and loses the steps since the last whole one: at
    most one interval with `asynchronous=False`. Otherwise also those made while a checkpoint was being written, at most
    another interval, since a save waits for the one before; where writing takes a step, one interval and a step.

    Nothing is made, locked or loaded before it is needed: the folder and its lock at the first `save`, Orbax at the
    first save or restore. One process writes into a folder at a time; any may read. For runs of one process.

    Args:
        folder: A local or mounted folder, absent, empty or one of checkpoints.
        every: Steps between checkpoints, an integer of at least 1, or None. A checkpoint is due when the run passes a
            multiple of it.
        every_seconds: Seconds from a save until the next is due, positive, or None.
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
        self._writer: Any = None
        self._writing = False
        # Those of the last save or restore.
        self._step, self._metrics, self._time = 0, cast("dict[str, float]", {}), time.monotonic()

    def due(self, step: int) -> bool:
        """Whether `every` or `every_seconds` asks for a checkpoint now."""
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
        name = "Checkpoints.save"
        named = leaves.named(state)
        arrays = {key: leaves.to_stored(name, key, leaf) for key, leaf in named.items()}
        scalars = {key: float(value) for key, value in (metrics or {}).items()}
        record: dict[str, Any] = {
            "step": int(step),
            "cursor": items.as_json(name, "cursor", cursor),
            "config": items.as_json(name, "config", config),
            "leaves": {key: leaves.described(leaf) for key, leaf in named.items()},
            "keys": {k: str(jax.random.key_impl(leaf)) for k, leaf in named.items() if leaves.is_key(leaf)},
        }
        self.wait()
        record["metrics"] = scalars = self._metrics | scalars if step == self._step else scalars
        path = self.folder / f"{self._disk.claim():05d}-step-{step}"
        try:
            if self._writer is None:
                self._writer = items.writer(self._disk.unfinished)
            self._writing = True
            self._writer.save(str(path), args=items.to_write(record, arrays))
        except Exception as error:  # TensorStore and Orbax raise many kinds
            self._failed("save", error)
        self._step, self._metrics, self._time = step, scalars, time.monotonic()
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
        saved = self._best(self._saved())
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
        try:
            items.verify(saved.path)
            record = items.read_record(saved.path)
        except Exception as error:
            self._damaged(saved, found, error)
        if config is not None and record["config"] is not None:
            now = differences.entries(items.as_json("Checkpoints.restore", "config", config))
            self._compare("config", saved, differences.entries(record["config"]), now)
        named = leaves.named(template)
        self._compare("state", saved, record["leaves"], {k: leaves.described(x) for k, x in named.items()})
        try:
            state = items.read_state(saved.path, named, record["keys"])
        except Exception as error:  # TensorStore and Orbax raise many kinds
            self._damaged(saved, found, error)
        self._step, self._metrics, self._time = saved.step, record["metrics"], time.monotonic()
        tree = cast("Any", jax.tree.structure(template)).unflatten(state)
        return Restored(saved.step, tree, record["cursor"], record["config"], record["metrics"] or None)

    def wait(self) -> None:
        """Wait for the save in progress, raise its failure, and remove checkpoints that are no longer kept."""
        if not self._writing:
            return
        try:
            self._writer.wait_until_finished()
            self._writing = False
            kept = self._kept(self._disk.saved())
            for saved in self._disk.saved():
                if saved not in kept:
                    self._disk.remove(saved)
        except Exception as error:  # TensorStore and Orbax raise many kinds
            self._failed("wait", error)

    def close(self) -> None:
        """Wait for the save in progress and let other processes write; a later call opens the folder again."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._disk.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _saved(self) -> list[Saved]:
        self.wait()
        return self._disk.saved()

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

    def _compare(self, argument: str, saved: Saved, stored: dict[str, str], present: dict[str, str]) -> None:
        lines = differences.difference(stored, present)
        if lines:
            remedy = "make it as it was, leave out what may differ, or choose another folder"
            raise ValueError(
                f"Checkpoints.restore: {argument} must be that of the checkpoint {saved.path}, got"
                f" {len(lines)} differences; {remedy}.\n{differences.shortened(lines)}"
            )

    def _damaged(self, saved: Saved, found: list[Saved], error: Exception) -> NoReturn:
        others = sorted({other.step for other in found if other.path != saved.path and other.step != saved.step})
        remedy = f"restore with step={others[-1]}" if others else "there is no other to restore"
        raise OSError(
            f"Checkpoints.restore: step must be that of a checkpoint that can be read, got {saved.step}, damaged in"
            f" {saved.path} ({reason(error)}); {remedy}, or move that folder away."
        ) from error

    def _failed(self, method: str, error: Exception) -> NoReturn:
        self._writing = False
        self._writer = None  # in no known state
        unwritable(f"Checkpoints.{method}", self.folder, error)
