"""Nesterov against gradient descent on a 2x2 linear model, each iterate drawn over its closed form.

The weights W start at [[.1, .2], [.3, .4]] and minimize f(W) = |X W - Y|^2 / (2 n), whose Hessian X'X / n is known, so
that formulas.md section 1.2 gives every iterate in closed form. Runs of 10 and 100 iterations and one that stops by
the norm of the gradient, in float64 and through `nagjax.nesterov`; y is `params`, where gradients are taken, and x is
`nagjax.eval_params`. Then the update theta - alpha g + beta theta, which some tutorials call Nesterov's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.output import Options, Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Rates and stopping rule."""

    alpha: float = 0.01
    """Learning rate of both methods, positive."""
    beta: float = 0.97
    """Momentum, in [0, 1)."""
    iterations: tuple[int, ...] = (10, 100)
    """Lengths of the runs of fixed length."""
    tolerance: float = 1e-8
    """The last run stops when the norm of the gradient at the parameters is at most this."""
    max_iterations: int = 20_000
    """Limit of the run with a stopping rule."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        if not self.alpha > 0:
            raise ValueError(f"--alpha must be positive, got {self.alpha}.")
        if not 0 <= self.beta < 1:
            raise ValueError(f"--beta must be in [0, 1), got {self.beta}.")
        if not self.iterations or min(self.iterations) < 1 or self.max_iterations < 1:
            raise ValueError("--iterations and --max-iterations must be at least 1.")
        if not self.tolerance > 0:
            raise ValueError(f"--tolerance must be positive, got {self.tolerance}.")


def main(config: Config, run: Run) -> dict[str, Any]:
    """Runs both methods, compares them with their closed form and draws them."""
    import jax

    from experiments import nagd_figures, nagd_runs

    with jax.enable_x64(True):
        runs = nagd_runs.all_runs(config.alpha, config.beta, config.iterations, config.tolerance, config.max_iterations)
        tutorial = [
            nagd_runs.tutorial_update(config.alpha, config.beta, updates=20),
            nagd_runs.tutorial_update(config.alpha, nagd_runs.STABLE_BETA, updates=6000),
        ]
    for entry in runs:
        run.log(entry.record())
    print(nagd_runs.report(config.alpha, config.beta, runs, tutorial))
    nagd_figures.trajectories(run.folder / "trajectories.png", runs, config.alpha, config.beta)
    nagd_figures.errors(run.folder / "error.png", runs, config.alpha, config.beta)
    nagd_figures.tutorial(run.folder / "not_nesterov.png", tutorial, config.alpha)
    return {
        "runs": [entry.record() for entry in runs],
        "largest_difference": max(entry.difference for entry in runs),
        "tutorial_update": [update.record() for update in tutorial],
    }
