"""Optimizers at equal tuning budgets: steps to the loss that tuned NAdamW reaches, and how hard each is to tune.

For every optimizer the same number of trials from the same points of the unit cube, mapped to its own stated ranges;
the choice by the mean loss at the end on seeds that are not reported; then fresh seeds for the best setting and for
the median one of tuning. Tasks: digits (scikit-learn), charlm (a character transformer on the source of Python's
standard library, or on Tiny Shakespeare), fashion_mnist and a9a with --data. Every finished run goes to a journal:
after Ctrl-C the same command goes on where it stopped. Two cores need under 10 minutes for digits, and for charlm.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.compare_optimizers import OPTIMIZERS, QUICK, REFERENCE, refuse_unknown
from experiments.output import Options, Run, UsageError

if TYPE_CHECKING:
    from experiments.compare_sweep import Amount
    from experiments.compare_training import Workload

TaskName = Literal["digits", "fashion_mnist", "charlm", "a9a"]
TextName = Literal["python_source", "tinyshakespeare"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to compare, and how thoroughly."""

    task: tuple[TaskName, ...] = ("digits",)
    """One task or several; the performance profiles are over all of them."""
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    """Which optimizers run; all by default. NAdamW, which sets the target, always takes part."""
    budget: int | None = None
    """Trials of tuning for each optimizer. Default: 32 for digits, 16 for charlm, 12 for fashion_mnist and a9a."""
    seeds: int | None = None
    """Seeds that are reported: 0, 1, ... Default: 10 for digits, else 3. Tuning has seeds of its own."""
    tuning_seed: int = 0
    """Seed of the points that tuning tries."""
    text: TextName = "python_source"
    """Text of charlm; the first is on every machine."""
    data: Path | None = None
    """Folder of data sets: fashion_mnist/*.gz, a9a/*.gz, text/tinyshakespeare.txt. Without it they are downloaded."""
    journal: Path = Path("results/compare_trials")
    """Folder of the journals of finished runs; a run that is found there is not repeated."""
    fresh: bool = False
    """Repeat runs that the journal has."""
    quick: bool = False
    """A check in less than a minute: a quarter of the steps, 4 trials, 2 seeds and by default three optimizers."""
    threads: int | None = None
    """Number of cores to use; all by default. Runs go side by side, one a core."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        if not self.task:
            raise ValueError("--task needs at least one name.")
        if len(set(self.task)) < len(self.task):
            raise ValueError("--task names a task twice.")
        refuse_unknown(self.optimizers)
        for field, least in (("budget", 1), ("seeds", 1), ("tuning_seed", 0), ("threads", 1)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ValueError(f"--{field.replace('_', '-')} must be at least {least}, got {value}.")
        if self.seeds is not None and self.seeds > MOST_SEEDS:
            raise ValueError(f"--seeds must be at most {MOST_SEEDS}, got {self.seeds}; the ones above are for tuning.")

    def names(self) -> tuple[str, ...]:
        """The optimizers that run, the reference among them."""
        names = QUICK if self.quick and self.optimizers == tuple(OPTIMIZERS) else self.optimizers
        return tuple(name for name in OPTIMIZERS if name in (*names, REFERENCE))


MOST_SEEDS = 1000


def main(config: Config, run: Run) -> dict[str, Any]:
    """Does or finds the runs, prints the tables and draws the figures."""
    from experiments import data

    for task in config.task:
        try:
            data.check(config.text if task == "charlm" else task, config.data)
        except UsageError as error:
            raise UsageError(f"compare --task {task}: {error}") from None

    from experiments import compare_tasks

    workloads = [compare_tasks.load(task, config.text, config.data, config.quick) for task in config.task]
    return _compare(config, run, workloads)


def _compare(config: Config, run: Run, workloads: list[Workload]) -> dict[str, Any]:
    import numpy as np

    from experiments import compare_figures, compare_report, compare_scores, compare_sweep
    from experiments.compare_journal import Journal

    record: dict[str, Any] = {"tasks": {}}
    seeds: set[int] = set()
    steps: dict[str, list[Any]] = {name: [] for name in config.names()}
    labels: dict[str, compare_scores.Score] = {}
    for workload in workloads:
        amount = _amount(config, workload.name)
        seeds |= {*amount.seeds, *amount.tuning_seeds}
        journal = Journal(config.journal, workload.name, compare_sweep.definition(workload), config.fresh)
        print(f"{workload.name}: the journal holds {len(journal.runs)} runs; Ctrl-C and the same command go on.")
        with compare_sweep.progress() as bar:
            results, counts = compare_sweep.run(workload, config.names(), amount, journal, bar)
        target, scores = compare_scores.scores(workload, results)
        compare_report.show(workload, amount, target, scores)
        print(f"{counts['new']} new runs, {counts['found']} found in the journal {journal.path}.")
        compare_figures.learning_curves(run.folder / f"curves_{workload.name}.png", workload, target, scores)
        compare_figures.sensitivity(run.folder / f"sensitivity_{workload.name}.png", workload, target, scores)
        compare_figures.best_and_median(run.folder / f"tuning_{workload.name}.png", workload, target, scores)
        for score in scores:
            run.log({"task": workload.name, **score.record()})
            steps[score.result.name].append(score.steps)
            labels[score.result.name] = score
        record["tasks"][workload.name] = {
            "target": target,
            "plan": workload.plan,
            "definition": journal.definition,
            "amount": amount,
            "runs": counts,
            "optimizers": [score.record() for score in scores],
            "findings": compare_report.findings(workload, target, scores),
        }
    joined = {name: np.concatenate(rows) for name, rows in steps.items()}
    factors = np.linspace(1, compare_scores.largest_factor(joined), 101)
    shares = compare_scores.profiles(joined, factors)
    count = sum(len(_amount(config, workload.name).seeds) for workload in workloads)
    title = f"Share of {count} workloads ({', '.join(config.task)}; a seed each) at the target within a factor"
    compare_figures.performance_profiles(run.folder / "profiles.png", title, labels, factors, shares)
    record["profiles"] = {"factors": factors, "shares": shares}
    return {"seeds": sorted(seeds), **record}


def _amount(config: Config, task: str) -> Amount:
    from experiments import compare_sweep, compare_tasks

    defaults = compare_tasks.TASKS[task]
    trials, seeds, tuning, rates = defaults.trials, defaults.seeds, defaults.tuning_seeds, defaults.rates
    if config.quick:
        trials, seeds, tuning, rates = 4, 2, 1, 5
    first = compare_sweep.FIRST_TUNING_SEED
    return compare_sweep.Amount(
        trials=config.budget or trials,
        tuning_seed=config.tuning_seed,
        tuning_seeds=tuple(range(first, first + tuning)),
        seeds=tuple(range(config.seeds or seeds)),
        rates=rates,
        workers=compare_sweep.workers(config.threads),
    )
