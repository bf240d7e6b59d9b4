"""The runs of `compare`: for every optimizer tuning, sensitivity to the rate, and the settings that are reported."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import nagjax
from experiments import compare_search as search
from experiments.compare_journal import Journal, Record, key
from experiments.compare_optimizers import OPTIMIZERS, Optimizer, builder
from experiments.compare_training import Program, Workload

FIRST_TUNING_SEED = 1000
SOURCES = ("compare_builders.py", "compare_tasks.py", "compare_training.py")


@dataclass(frozen=True)
class Amount:
    """How much is done for every optimizer."""

    trials: int
    tuning_seed: int
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    rates: int
    workers: int

    def __post_init__(self) -> None:
        """Seeds that tuning has seen are never reported."""
        assert not set(self.tuning_seeds) & set(self.seeds)


@dataclass(frozen=True)
class Trial:
    """One setting and its runs, one a seed."""

    setting: dict[str, float]
    records: tuple[Record, ...]

    @property
    def losses(self) -> NDArray[np.float64]:
        """Losses along the runs, shape (seeds, measurements)."""
        return np.stack([record.loss for record in self.records])

    @property
    def final(self) -> NDArray[np.float64]:
        """The losses at the end, shape (seeds,)."""
        return self.losses[:, -1]

    @property
    def mean(self) -> float:
        """The mean loss at the end; infinite where a run is not finite."""
        return float(self.final.mean()) if np.isfinite(self.final).all() else math.inf

    @property
    def diverged(self) -> NDArray[np.bool_]:
        """Which runs end higher than they began, or not finite; shape (seeds,)."""
        return ~(self.losses[:, -1] <= self.losses[:, 0])


@dataclass(frozen=True)
class Result:
    """Everything about one optimizer on one workload."""

    name: str
    optimizer: Optimizer
    tuning: list[Trial]
    sensitivity: list[Trial]  # on the seeds of tuning, the rate from one end of its range to the other
    best: Trial  # the setting of the lowest mean loss in tuning, on fresh seeds
    median: Trial  # the setting of the median of tuning, on fresh seeds
    at_edge: list[str]
    compile_seconds: float  # 0 where every run was in the journal
    traces: int
    swept: str  # the hyper-parameter that the sensitivity is about


@dataclass
class Runner:
    """Does runs of one optimizer, or takes them from the journal."""

    name: str
    workload: Workload
    journal: Journal
    amount: Amount
    advance: Callable[[], None]
    new: int = field(default=0, init=False)
    found: int = field(default=0, init=False)
    program: Program = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is compiled before a run needs it."""
        self.program = Program(self.workload, builder(self.name), OPTIMIZERS[self.name].has_answer)

    def trials(self, settings: Sequence[dict[str, float]], seeds: Sequence[int], *, timed: bool = False) -> list[Trial]:
        """Runs every setting on every seed; timed runs have the machine to themselves."""
        wanted = [(setting, seed) for setting in settings for seed in seeds]
        missing: dict[str, tuple[dict[str, float], int]] = {}
        for setting, seed in wanted:
            if key(self.name, setting, seed) in self.journal.runs:
                self.found += 1
                self.advance()
            else:
                missing[key(self.name, setting, seed)] = (setting, seed)
        if missing and not self.program.traces:
            self.program.compile(next(iter(missing.values()))[0])
        self._run(missing.values(), 1 if timed else self.amount.workers, timed=timed)
        runs = self.journal.runs
        return [Trial(setting, tuple(runs[key(self.name, setting, seed)] for seed in seeds)) for setting in settings]

    def _run(self, work: Iterable[tuple[dict[str, float], int]], workers: int, *, timed: bool) -> None:
        def one(setting: dict[str, float], seed: int) -> Record:
            start = time.perf_counter()
            curve = self.program.run(setting, seed)
            seconds = time.perf_counter() - start if timed else math.nan
            losses, accuracies = (np.asarray(values, np.float64) for values in curve[:2])
            return Record(self.name, setting, seed, losses, accuracies, *map(float, curve[2:]), seconds)

        waiting = iter(list(work))
        pool = ThreadPoolExecutor(workers)
        try:
            running: set[Future[Record]] = set()
            while True:
                # No more is handed out than runs at once: Ctrl-C waits for these alone.
                running |= {pool.submit(one, *item) for item in itertools.islice(waiting, workers - len(running))}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    self.journal.add(future.result())
                    self.new += 1
                    self.advance()
        finally:
            pool.shutdown(cancel_futures=True)


def definition(workload: Workload) -> dict[str, Any]:
    """What the numbers of a run depend on, beside optimizer, setting and seed."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "optax", "flax", "numpy")}
    return {
        "task": workload.name,
        "data": workload.fingerprint,
        "definition": workload.definition,
        "plan": workload.plan,
        "packages": packages,
        "sources": source_digest(),
        "device": [platform.machine(), jax.devices()[0].platform, jax.devices()[0].device_kind],
    }


def source_digest() -> str:
    """A hash of the sources of nagjax and of the modules here that define a run."""
    package, here = Path(nagjax.__file__).parent, Path(__file__).parent
    found = hashlib.sha256()
    for path in [*sorted(package.rglob("*.py")), *(here / name for name in SOURCES)]:
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def run(
    workload: Workload, names: Sequence[str], amount: Amount, journal: Journal, bar: Progress
) -> tuple[list[Result], dict[str, int]]:
    """Does everything for every optimizer; returns the results, and how many runs were new and how many were found."""
    each = amount.trials * len(amount.tuning_seeds) + amount.rates * len(amount.tuning_seeds) + 2 * len(amount.seeds)
    task = bar.add_task(workload.name, total=len(names) * each)
    results: list[Result] = []
    counts = {"new": 0, "found": 0, "torn_lines": journal.torn}
    for position, name in enumerate(names):
        bar.update(task, description=f"{workload.name}: {OPTIMIZERS[name].label}", completed=position * each)
        runner = Runner(name, workload, journal, amount, lambda: bar.advance(task))
        results.append(_result(runner))
        counts["new"] += runner.new
        counts["found"] += runner.found
    bar.update(task, description=f"{workload.name}: done", completed=len(names) * each)
    return results, counts


def _result(runner: Runner) -> Result:
    optimizer, amount = OPTIMIZERS[runner.name], runner.amount
    space = optimizer.space_of(decay=runner.workload.decay)
    tuning = runner.trials(search.trials(space, amount.trials, amount.tuning_seed), amount.tuning_seeds)
    means = [trial.mean for trial in tuning]
    best, median = tuning[int(np.argmin(means))].setting, tuning[search.middle(means)].setting
    swept = search.swept(space)
    return Result(
        name=runner.name,
        optimizer=optimizer,
        tuning=tuning,
        sensitivity=runner.trials(search.sweep(space, best, amount.rates), amount.tuning_seeds),
        best=runner.trials([best], amount.seeds, timed=True)[0],
        median=runner.trials([median], amount.seeds, timed=True)[0],
        at_edge=search.edges(space, best),
        compile_seconds=runner.program.compile_seconds,
        traces=runner.program.traces,
        swept=swept,
    )


def workers(threads: int | None) -> int:
    """How many runs go side by side."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return threads or cores


def progress() -> Progress:
    """Returns the progress bar, which counts training runs."""
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns)
