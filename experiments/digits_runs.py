"""The runs of `digits`: tuning, the comparison of optimizers and the comparison of momentum storages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.digits_rivals import RIVALS, STORAGE_PAIR, STORAGES, TRIALS, TUNED, TUNING_SEEDS, Rival
from experiments.digits_training import Data, History, Plan, Program, load
from experiments.output import Run

if TYPE_CHECKING:
    from experiments.digits import Config

TARGET = 0.95


@dataclass(frozen=True)
class Entry:
    """The runs of one optimizer; arrays have shape (seeds, epochs)."""

    name: str
    rival: Rival
    rate: float
    second: float
    history: History
    run_seconds: NDArray[np.float64]  # of the compiled program, one a seed
    compile_seconds: float
    program_bytes: int
    state_bytes: int
    parameters: int
    traces: int

    @property
    def epochs_to_target(self) -> NDArray[np.float64]:
        """Epochs until the validation accuracy is at least `TARGET`, one a seed; NaN where it never is."""
        reached = np.asarray(self.history.validation_accuracy) >= TARGET
        return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.nan)

    @property
    def epoch_seconds(self) -> float:
        """Seconds of one epoch: the median over seeds of the time of a run divided by the epochs that it ran."""
        return float(np.median(self.run_seconds / np.asarray(self.history.ran).sum(axis=1)))

    def last(self, metric: str) -> NDArray[np.float64]:
        """A metric after the last epoch, one value a seed."""
        return np.asarray(getattr(self.history, metric), np.float64)[:, -1]

    def record(self) -> dict[str, Any]:
        """Returns what results.json keeps."""
        metrics = {metric: self.last(metric) for metric in History._fields if metric != "ran"}
        return {
            "name": self.name,
            "answer": "nagjax.eval_params" if self.rival.accelerated else "params",
            "learning_rate": self.rate,
            self.rival.second or "second": self.second if self.rival.second else None,
            **metrics,
            "epochs_run": np.asarray(self.history.ran).sum(axis=1),
            "epochs_to_95": self.epochs_to_target,
            "seconds_to_95": self.epochs_to_target * self.epoch_seconds,
            "run_seconds": self.run_seconds,
            "compile_seconds": self.compile_seconds,
            "traces": self.traces,
            "state_bytes": self.state_bytes,
            "program_bytes": self.program_bytes,
        }


def progress() -> Progress:
    """Returns the progress bar, which counts training runs."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns)


def tune(config: Config, run: Run, bar: Progress) -> dict[str, dict[str, Any]]:
    """Tries `TRIALS` pairs of rate and second value an optimizer, all on the same seeds.

    Returns:
        For each optimizer the pair with the lowest mean validation loss over the last quarter of the epochs, and which
        of the two lies at an edge of what was tried.
    """
    data = {seed: load(seed) for seed in TUNING_SEEDS}
    task = bar.add_task("tuning", total=len(config.optimizers) * TRIALS)
    best: dict[str, dict[str, Any]] = {}
    for name in config.optimizers:
        bar.update(task, description=f"tuning {RIVALS[name].label}")
        tried: list[dict[str, Any]] = []
        for trial in _trials(RIVALS[name], config, data):
            run.log({"tuning": name, **trial})
            tried.append(trial)
            bar.advance(task)
        chosen = min(tried, key=lambda trial: trial["loss"] if np.isfinite(trial["loss"]) else np.inf)
        edges: list[str] = []
        for key in ("learning_rate", "second"):
            values = {trial[key] for trial in tried}
            if len(values) > 1 and chosen[key] in (min(values), max(values)):
                edges.append(key)
        best[name] = {**chosen, "trials": len(tried), "seeds": list(data), "at_edge": edges}
    return best


def _trials(rival: Rival, config: Config, data: dict[int, Data]) -> Iterator[dict[str, float]]:
    program = _program(rival, config, data[TUNING_SEEDS[0]])
    program.compile(data[TUNING_SEEDS[0]])
    # One epoch alone is a noisy witness at large rates.
    last = max(1, config.epochs // 4)
    # A run of so small a network keeps about one core busy, so runs go side by side; none of them is timed.
    with ThreadPoolExecutor(config.threads or os.cpu_count()) as pool:
        for rate, second in rival.trials():
            arguments = [(split, seed, rate, second, config.patience) for seed, split in data.items()]
            histories = list(pool.map(lambda values: program.run(*values), arguments))
            loss = float(np.mean([history.validation_loss[-last:] for history in histories]))
            accuracy = float(np.mean([history.validation_accuracy[-last:] for history in histories]))
            yield {"learning_rate": rate, "second": second, "loss": loss, "accuracy": accuracy}


def compare(
    config: Config, run: Run, bar: Progress, tuned: dict[str, dict[str, Any]] | None
) -> tuple[list[Entry], list[Entry]]:
    """Returns the runs of the optimizers, then those of the momentum storages at `STORAGE_PAIR`."""
    pairs = dict(TUNED)
    for name, trial in (tuned or {}).items():
        pairs[name] = (trial["learning_rate"], trial["second"])
    data = {seed: load(seed) for seed in range(config.seeds)}
    work = [(name, RIVALS[name], pairs[name]) for name in config.optimizers]
    stored = [(name, rival, STORAGE_PAIR) for name, rival in STORAGES.items()]
    task = bar.add_task("training", total=len(work + stored) * len(data))
    programs: dict[str, Program] = {}
    entries: list[Entry] = []
    for name, rival, pair in work + stored:
        bar.update(task, description=f"training {rival.label}")
        # A storage may be an optimizer of the first list: the same program with other arguments. No other is kept,
        # because a compiled program takes megabytes.
        program = programs.get(rival.label) or _program(rival, config, data[0])
        if rival in STORAGES.values():
            programs[rival.label] = program
        entries.append(_train(name, rival, pair, program, config, data, run, lambda: bar.advance(task)))
    bar.update(task, description="done")
    return entries[: len(work)], entries[len(work) :]


def _train(
    name: str,
    rival: Rival,
    pair: tuple[float, float],
    program: Program,
    config: Config,
    data: dict[int, Data],
    run: Run,
    advance: Callable[[], None],
) -> Entry:
    if not program.traces:
        program.compile(data[0])
    histories: list[History] = []
    seconds: list[float] = []
    for seed, split in data.items():
        start = time.perf_counter()
        history = program.run(split, seed, *pair, config.patience)
        seconds.append(time.perf_counter() - start)
        histories.append(History(*(np.asarray(values) for values in history)))
        for epoch in range(config.epochs):
            if histories[-1].ran[epoch]:
                values = {metric: getattr(histories[-1], metric)[epoch] for metric in History._fields[:-1]}
                run.log({"optimizer": name, "seed": seed, "epoch": epoch + 1, **values})
        advance()
    return Entry(
        name=name,
        rival=rival,
        rate=pair[0],
        second=pair[1],
        history=History(*(np.stack(values) for values in zip(*histories, strict=True))),
        run_seconds=np.array(seconds),
        compile_seconds=program.compile_seconds,
        program_bytes=program.program_bytes,
        state_bytes=program.state_bytes,
        parameters=program.parameters,
        traces=program.traces,
    )


def _program(rival: Rival, config: Config, data: Data) -> Program:
    steps = len(data.train[1]) // config.batch
    return Program(rival.build, Plan(config.epochs, config.batch, steps), rival.accelerated)
