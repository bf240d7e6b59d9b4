"""Which runs `diloco` makes: for every cell of its tables tuning on a seed of its own, then the seeds that count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from experiments.diloco_methods import BATCH, METHODS, PARALLEL, RATES, Grid, grids
from experiments.diloco_training import DRAWN, Losses, Plan, Program, Setting, Text
from experiments.finetune_place import Place

TUNING_SEED = 1000  # the ones that count are below
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One number of a table, with its spread."""

    part: str  # "periods", "few", "long", "parallel" or "alone"
    period: int
    steps: int
    every: bool = False  # whether all grids are reported, and not the best one only
    again: bool = False  # whether only the grid that won in the cell before is tried


@dataclass(frozen=True)
class Task:
    """Cells that one compiled program makes, in order."""

    plan: Plan
    cells: tuple[Cell, ...]

    @property
    def cost(self) -> int:
        """Grows with the time that it takes."""
        workers = self.plan.workers + 4
        return workers * sum(cell.steps for cell in self.cells)

    @property
    def pieces(self) -> int:
        """Calls of the program, with at most as many seeds as a grid has rates."""
        return sum((1 if cell.again else 2) * (2 if cell.every else 1) + (not cell.every) for cell in self.cells)


@dataclass(frozen=True)
class Amount:
    """How much is done."""

    workers: tuple[int, ...]
    periods: tuple[int, ...]
    long_period: int  # 0: none
    long_workers: tuple[int, ...]
    compared_period: int  # of the outer steps
    seeds: int
    outer_steps: int  # at least

    @property
    def steps(self) -> int:
        """Inner steps of all runs but the long ones: whole periods, of the long one too."""
        unit = math.lcm(DRAWN, *self.periods, self.long_period or 1)
        return -(-self.outer_steps * max(self.periods) // unit) * unit

    @property
    def long_steps(self) -> int:
        """Inner steps of the runs with the long period."""
        unit = math.lcm(DRAWN, self.long_period)
        return -(-self.outer_steps * self.long_period // unit) * unit

    def tasks(self) -> list[Task]:
        """All that is done, the slowest first."""
        steps, most = self.steps, max(self.workers)
        lanes = max(RATES, self.seeds)
        few = (Cell("few", self.long_period, steps, every=True),) if self.long_period else ()
        long = (Cell("long", self.long_period, self.long_steps, again=True),) if self.long_period else ()
        tasks = [Task(Plan(PARALLEL, 1, BATCH, lanes), (Cell("parallel", 1, steps), *long))]
        if most > 1:
            tasks.append(Task(Plan(PARALLEL, 1, BATCH, lanes, share=most), (Cell("alone", 1, steps),)))
        for period in self.periods:
            # As many tokens and synchronizations as with the period, in larger batches.
            if period > 1 and steps // period % DRAWN == 0:
                plan = Plan(PARALLEL, 1, BATCH * period, lanes)
                tasks.append(Task(plan, (Cell("parallel", 1, steps // period),)))
        for workers in self.workers:
            here = workers == most
            cells = [Cell("periods", period, steps, here and period == self.compared_period) for period in self.periods]
            cells += long if workers in self.long_workers else ()
            tasks.append(Task(Plan("nesterov", workers, BATCH, lanes), (*cells, *(few if here else ()))))
        for method in METHODS:
            if method != "nesterov":
                cells = (Cell("periods", self.compared_period, steps, every=True),)
                more = few if method == "averaging" else ()
                tasks.append(Task(Plan(method, most, BATCH, lanes), (*cells, *more)))
        return sorted(tasks, key=lambda task: -task.cost)


def run(tasks: Sequence[Task], text: Text, seeds: int, place: Place, jobs: int, advance: Callable[[], None]) -> Rows:
    """Returns the rows of all tasks, some of which are made at the same time."""
    make = partial(_rows, text=text, seeds=seeds, place=place, advance=advance)
    if jobs == 1:
        made = list(map(make, tasks))
    else:
        with ThreadPoolExecutor(jobs) as threads:
            made = list(threads.map(make, tasks))
    return [row for rows in made for row in rows]


def _rows(task: Task, *, text: Text, seeds: int, place: Place, advance: Callable[[], None]) -> Rows:
    runs = Runs(Program(task.plan, text), seeds, place, advance)
    rows: Rows = []
    for cell in task.cells:
        rows += runs.cell(cell)
    return rows


@dataclass
class Runs:
    """Makes the cells of one program, or finds what an earlier run has made of them."""

    program: Program
    seeds: int
    place: Place
    advance: Callable[[], None]
    best: Grid | None = field(default=None, init=False)  # of the cell before

    def cell(self, cell: Cell) -> Rows:
        """Tunes, and returns a row for the best grid, or for each one."""
        plan = self.program.plan
        tried = (self.best,) if cell.again and self.best else grids(plan.method, plan.batch)
        trials = {grid: self._losses(cell, grid, [(TUNING_SEED, rate) for rate in grid.rates()]) for grid in tried}
        tuned = {grid: min(losses, key=lambda loss: (not math.isfinite(loss.tuning), loss.tuning)).tuning
                 for grid, losses in trials.items()}  # fmt: skip
        self.best = min(tuned, key=lambda grid: tuned[grid])
        rows: Rows = []
        for grid in tried if cell.every else (self.best,):
            rates, losses = grid.rates(), [loss.tuning for loss in trials[grid]]
            chosen = losses.index(tuned[grid])
            found = self._losses(cell, grid, [(seed, rates[chosen]) for seed in range(self.seeds)])
            rows.append(
                {
                    "part": cell.part,
                    "method": plan.method,
                    "workers": plan.workers,
                    "batch": plan.batch // plan.share,
                    "period": 1 if plan.method == PARALLEL else cell.period,
                    "steps": cell.steps,
                    "outer_rate": grid.outer_rate,
                    "outer_momentum": grid.outer_momentum,
                    "best": grid == self.best,
                    "rate": rates[chosen],
                    "at_edge": chosen in (0, len(rates) - 1),
                    "trials": len(tried) * RATES,
                    "tuning": {str(other.outer_momentum if plan.method != PARALLEL else other.lowest): dict(
                        zip(map(str, other.rates()), [loss.tuning for loss in of], strict=True)
                    ) for other, of in trials.items()},
                    "losses": [loss.reported for loss in found],
                }
            )  # fmt: skip
        return rows

    def _losses(self, cell: Cell, grid: Grid, runs: Sequence[tuple[int, float]]) -> list[Losses]:
        plan = self.program.plan
        settings = [Setting(seed, rate, grid.outer_rate, grid.outer_momentum) for seed, rate in runs]
        kind = "tuning" if runs[0][0] == TUNING_SEED else f"rate{runs[0][1]:.6g}"
        parts = (
            plan.method,
            plan.workers,
            plan.batch,
            plan.share,
            cell.period,
            cell.steps,
            *grid[:2],
            f"{grid.lowest:.6g}",
        )
        name = "-".join(map(str, (*parts, kind)))
        row = self.place.row(name, lambda: {"losses": self.program.run(settings, cell.period, cell.steps)})
        self.advance()
        return [Losses(*(math.nan if loss is None else loss for loss in losses)) for losses in row["losses"]]
