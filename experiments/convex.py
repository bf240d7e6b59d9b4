"""Convex problems with data: nagjax's solvers against FISTA, AC-FGM, JAXopt, L-BFGS and coordinate descent.

Lasso with correlated columns, logistic and softmax regression on scikit-learn's data, non-negative least squares, an
ill-conditioned quadratic, and deblurring of a photograph; a9a with --data. Each method's suboptimality against the
exact number of evaluations (a value of the smooth part counts 1, a gradient 2) and against seconds of its compiled
loop. FISTA is told the Lipschitz constant, and its theorem is drawn in; the others are told nothing. JAXopt, skglm
and celer take part where installed (pip install 'nagjax[bench]'). Under 5 minutes on two cores; --quick under one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.output import Options, Run

Name = Literal["lasso_corr_0.01", "cancer", "digits", "nnls", "quad", "deblur"]
QUICK: tuple[Name, ...] = ("cancer", "deblur")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to run, and how long."""

    problems: tuple[Name, ...] = get_args(Name)
    """Which problems; all by default."""
    data: Path | None = None
    """Folder with the LIBSVM data set a9a (a9a.gz, or a9a/a9a.gz), which adds that problem."""
    seconds: float = 5.0
    """Longest run of a method on a problem, in seconds; the reference may take up to four times as long."""
    quick: bool = False
    """A check in less than a minute: two problems, made smaller, and short runs."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        if not self.problems:
            raise ValueError("--problems needs at least one name.")
        if not self.seconds > 0:
            raise ValueError(f"--seconds must be positive, got {self.seconds}.")
        if self.data is not None and not self.data.is_dir():
            raise ValueError(f"--data {self.data} is not a folder.")

    def reduced(self) -> Config:
        """Returns what --quick runs."""
        if not self.quick:
            return self
        problems = QUICK if self.problems == get_args(Name) else self.problems
        return dataclasses.replace(self, problems=problems, seconds=min(self.seconds, 1.0))


def main(config: Config, run: Run) -> dict[str, Any]:
    """Runs every method on every problem, prints the tables and draws the figures."""
    import jax

    from experiments import convex_figures, convex_held_out, convex_problems, convex_report, convex_runs

    config = config.reduced()
    with jax.enable_x64(True):
        builders = {name: convex_problems.PROBLEMS[name] for name in config.problems}
        if config.quick:
            builders |= {name: build for name, build in convex_problems.SMALL.items() if name in builders}
        if config.data is not None:
            folder = config.data
            builders["a9a"] = lambda: convex_held_out.a9a(folder, rows=2000 if config.quick else 12_000)
        found = []
        for build in builders.values():
            found.append(convex_runs.compare(build(), config.seconds))
            run.log(convex_report.record(found[-1]))
        convex_report.show(found)
        convex_figures.convergence(run.folder / "convergence.png", found)
        convex_figures.seconds(run.folder / "seconds.png", found)
        pictures = [entry for entry in found if entry.problem.name == "deblur"]
        if pictures:
            convex_figures.deblurring(run.folder / "deblurring.png", pictures[0])
    return {
        "seeds": [0],
        "ran": {"problems": list(builders), "seconds": config.seconds},
        "problems": [convex_report.record(entry) for entry in found],
        "ratios": {entry.problem.name: convex_report.ratios(entry) for entry in found},
        "findings": convex_report.findings(found),
        "absent": sorted({name for entry in found for name in entry.absent}),
    }
