"""What `minimize` returns: the answer, and how the run ended, in numbers and in a sentence."""

import enum
from typing import Any, NamedTuple

import jax
import numpy as np

from nagjax.solve.method import Report
from nagjax.types import PyTree


class Status(enum.IntEnum):
    """How a run ended. `Solution.status` is an int32 array of these numbers."""

    CONVERGED = 0
    MAX_ITERS = 1
    DIVERGED = 2
    NON_FINITE = 3
    STALLED = 4


class History(NamedTuple):
    """One entry a step, shape (max_iters,); NaN (-1 for `restarts`) after the last one.

    `value` is f(y) + <g, z - y> + |z - y|^2/(2 s) + h(z), which costs no evaluation: for s at most 1/L it is at least
    F(z) and at most F(y), where z is the answer after the step.
    """

    value: jax.Array
    residual: jax.Array  # relative, at the query point
    step_size: jax.Array
    restarts: jax.Array  # so far, int32


class Solution(NamedTuple):
    """The result of `minimize`; a pytree of arrays.

    Where the status is DIVERGED or NON_FINITE, `value` and `aux` may be those of another point of the run.
    """

    params: PyTree  # the answer, like `init`
    value: jax.Array  # F at `params`, scalar
    status: jax.Array  # a Status, int32 scalar
    iterations: jax.Array  # steps, int32 scalar
    evaluations: jax.Array  # values and gradients of `fun`, and values alone where the method takes them, int32
    residual: jax.Array  # |x - prox_{s h}(x - s grad f(x))| / s at `params`, over its value at the start
    history: History | None
    state: Any  # of the method; its `report` has step size, restarts, ...
    aux: PyTree = None  # of `fun` at `params`

    @property
    def converged(self) -> jax.Array:
        """Whether the tolerance was met, bool."""
        return self.status == Status.CONVERGED

    @property
    def message(self) -> str | list[str]:
        """How the run ended, in a sentence; a list of them for a batch."""
        report: Report = self.state.report
        rows = np.broadcast_arrays(*(np.asarray(x) for x in (self.status, self.iterations, self.residual, self.value,
                                                            report.safe_step, report.unbounded)))  # fmt: skip
        sentences = [_sentence(*row) for row in zip(*(row.ravel() for row in rows), strict=True)]
        return sentences if np.ndim(np.asarray(self.status)) else sentences[0]


def _sentence(status: int, iterations: int, residual: float, value: float, safe_step: float, unbounded: bool) -> str:
    match Status(int(status)):
        case Status.CONVERGED:
            return f"Converged after {iterations} steps: relative residual {residual:.2g}."
        case Status.MAX_ITERS:
            return (
                f"Stopped at max_iters = {iterations} with relative residual {residual:.2g}; "
                "raise max_iters, or start again from this solution."
            )
        case Status.DIVERGED if unbounded:
            return (
                f"Diverged after {iterations} steps: the objective seems unbounded below (last value {value:.2g}); "
                "add a regularizer or a constraint."
            )
        case Status.DIVERGED:
            return (
                f"Diverged after {iterations} steps: the step size is too large, the curvature seen allows at most "
                f"{safe_step:.3g}; pass that, or leave the step to method='default'. The best point is returned."
            )
        case Status.NON_FINITE if iterations == 0:
            return "The objective or its gradient is not finite at init; start at a point of its domain."
        case Status.NON_FINITE:
            return (
                f"No further point with a finite objective was found after {iterations} steps; the best point is "
                "returned: check the domain of fun, or constrain it by a prox."
            )
        case Status.STALLED:
            fit = " With an Optax chain, see that its prox is the one of minimize." if residual > 1e-2 else ""
            return (
                f"Stalled at rounding after {iterations} steps with relative residual {residual:.2g}: steps are below "
                f"the precision of the parameters; loosen tol or use float64.{fit}"
            )


class SolveError(RuntimeError):
    """Raised by `minimize(throw=True)` where a run did not converge; `solution` is what would have been returned."""

    def __init__(self, solution: Solution) -> None:
        super().__init__(f"solve.minimize: {solution.message}")
        self.solution = solution
