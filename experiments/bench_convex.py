"""The solver of nagjax against JAXopt's accelerated proximal gradient and L-BFGS, nobody told a Lipschitz constant.

Counts are exact: 1 for a value of the smooth part, 2 for a gradient with or without its value; of JAXopt's line
search every trial. Accuracy is (F - F*) / F*, or (F - F*) / (F_0 - F*) where F* is not positive. Times are those of
compiled runs of as many steps as 1e-6 takes, through `nagjax.solve.minimize` and `jaxopt.ProximalGradient.run`, in
turn, medians over rounds. A dash stands where JAXopt does not arrive within --cap steps, and a gain is counted where
it does. Takes about 6 minutes on two cores; --held-out one more, --quick less than one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.output import Options, Run

Name = Literal[
    "lasso_corr_0.01",
    "lasso_corr_0.1",
    "lasso_iid_0.01",
    "lasso_iid_0.1",
    "nnls",
    "digits",
    "cancer",
    "quad",
    "deblur",
]
QUICK: tuple[Name, ...] = ("lasso_iid_0.01", "cancer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to measure, and how often."""

    problems: tuple[Name, ...] = get_args(Name)
    """Which of the nine problems; all by default."""
    held_out: bool = False
    """Measure the held-out problems as well: five, and a9a where --data is given."""
    data: Path | None = None
    """Folder with the LIBSVM data set a9a (a9a.gz, or a9a/a9a.gz) for --held-out."""
    rounds: int = 7
    """Timed runs of each method."""
    cap: int = 30_000
    """Most steps of a method, JAXopt's above all."""
    quick: bool = False
    """A check in less than a minute: two problems, 3 rounds, small batches."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        if not self.problems:
            raise ValueError("--problems needs at least one name.")
        if self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, got {self.rounds}.")
        if self.cap < 250:
            raise ValueError(f"--cap must be at least 250, got {self.cap}.")
        if self.data is not None and not self.data.is_dir():
            raise ValueError(f"--data {self.data} is not a folder.")
        if self.data is not None and not self.held_out:
            raise ValueError("--data is read with --held-out only; add it, or leave --data out.")

    def reduced(self) -> Config:
        """Returns what --quick runs."""
        if not self.quick:
            return self
        problems = QUICK if self.problems == get_args(Name) else self.problems
        return dataclasses.replace(self, problems=problems, rounds=min(self.rounds, 3), cap=min(self.cap, 2000))


def main(config: Config, run: Run) -> dict[str, Any]:
    """Measures the problems and prints the tables."""
    import jax

    from experiments import (
        bench_convex_extras,
        bench_convex_report,
        bench_convex_runs,
        convex_held_out,
        convex_problems,
    )

    config = config.reduced()
    with jax.enable_x64(True):
        rows = [
            bench_convex_runs.measure(convex_problems.PROBLEMS[name](), config.rounds, config.cap, run)
            for name in config.problems
        ]
        bench_convex_report.show(rows, "Nine problems")
        held_out: list[dict[str, Any]] = []
        if config.held_out:
            problems = list(convex_held_out.HELD_OUT.values())
            if config.data is not None:
                folder = config.data
                problems.append(lambda: convex_held_out.a9a(folder))
            held_out = [bench_convex_runs.measure(build(), config.rounds, config.cap, run) for build in problems]
            bench_convex_report.show(held_out, "Held-out problems")
        extras = bench_convex_extras.measure(config.rounds, quick=config.quick)
    verdicts = bench_convex_report.verdicts(rows, extras)
    bench_convex_report.conclude(verdicts, extras)
    return {
        "seeds": [0, 1, 2, 3, 4, 5],
        "ran": {"problems": config.problems, "rounds": config.rounds, "cap": config.cap},
        "absent": bench_convex_runs.absent(),
        "problems": rows,
        "held_out": held_out,
        "gains": bench_convex_report.gains(rows),
        "held_out_gains": bench_convex_report.gains(held_out),
        "extras": extras,
        "targets": verdicts,
    }
