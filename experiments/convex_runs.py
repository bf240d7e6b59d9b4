"""The runs of `convex`: every method on one problem."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments import convex_curves, convex_methods, convex_peers, convex_reference
from experiments.convex_curves import Curve
from experiments.convex_peers import Endpoint
from experiments.convex_problems import Problem

TARGETS = (1e-3, 1e-6, 1e-9)
LAST = 1e-10  # where curves end
WORST = 0.1  # figures reach down to this even where F* is hardly known
MOST = 20_000  # steps
OWN = ("default", "boosted")
PATIENCE = {"wavelet": 4}  # how many times the seconds of a run the reference may take; 2 for other problems


@dataclass(frozen=True)
class Comparison:
    """What all methods did on one problem."""

    problem: Problem
    reference: convex_reference.Reference
    curves: dict[str, Curve]
    endpoints: dict[str, list[Endpoint]]
    bound: NDArray[np.float64]  # of FISTA's gap after each of its steps, relative to the scale
    absent: list[str]

    def cost_to(self, name: str, target: float) -> float | None:
        """Evaluations until the target; None where a method does not arrive or F* is not known so well."""
        if name not in self.curves or target < self.reference.floor:
            return None
        return self.curves[name].cost_to(target, self.reference.minimum, self.reference.scale)

    def seconds_to(self, name: str, target: float) -> float | None:
        """Seconds until the target; of a peer those of its fastest run that is accurate enough."""
        if target < self.reference.floor:
            return None
        if name in self.curves:
            return self.curves[name].seconds_to(target, self.reference.minimum, self.reference.scale)
        times = [run.seconds for run, gap in zip(self.endpoints[name], self.gaps(name), strict=True) if gap <= target]
        return min(times, default=None)

    def gaps(self, name: str) -> NDArray[np.float64]:
        """Relative suboptimality along a curve, or of every run of a peer."""
        if name in self.curves:
            return self.curves[name].gaps(self.reference.minimum, self.reference.scale)
        values = np.array([run.value for run in self.endpoints[name]])
        return (values - self.reference.minimum) / self.reference.scale

    @property
    def last(self) -> float:
        """Where the curves end in figures."""
        return min(max(LAST, self.reference.floor), WORST)

    @property
    def names(self) -> list[str]:
        """All methods."""
        return [*self.curves, *self.endpoints]


def compare(problem: Problem, seconds: float, *, most: int = MOST, chunk: int = convex_curves.CHUNK) -> Comparison:
    """Runs every method that can take the problem."""
    steppers = {name: convex_methods.solver(name) for name in OWN}
    patience = PATIENCE.get(problem.kind, 2)
    best, own = convex_reference.reference(
        problem, [steppers[name] for name in reversed(OWN)], limit=most, seconds=patience * seconds, chunk=chunk
    )
    curves = {curve.name: curve for curve in reversed(own)}
    answer = min(own, key=lambda curve: float(np.nanmin(curve.values))).answer
    rivals = [
        convex_methods.fista(problem.smoothness),
        convex_methods.fista(problem.smoothness, restarted=True),
        convex_methods.acfgm(),
    ]
    if convex_methods.installed("jaxopt"):
        rivals.append(convex_methods.jaxopt_proximal_gradient())
    if problem.smooth:
        rivals.append(convex_methods.optax_lbfgs())
    for stepper in rivals:
        steppers[stepper.name] = stepper
        curves[stepper.name] = convex_curves.curve(
            stepper, problem, limit=most, target=LAST, minimum=best.minimum, scale=best.scale, seconds=seconds,
            chunk=chunk,
        )  # fmt: skip
    for name, found in curves.items():
        shown = found.first(found.gaps(best.minimum, best.scale), LAST) or len(found.values) - 1
        convex_curves.timed(steppers[name], problem, found, steps=max(shown, 1))
    if problem.smooth or problem.kind == "nnls":
        curves["scipy_lbfgs"] = convex_peers.scipy_lbfgs(problem)
    missing = [] if convex_methods.installed("jaxopt") else ["jaxopt"]
    return Comparison(
        problem, best, curves, convex_peers.endpoints(problem), fista_bound(problem, answer, best.scale, curves),
        missing + convex_peers.absent(problem),
    )  # fmt: skip


def fista_bound(problem: Problem, answer: Any, scale: float, curves: dict[str, Curve]) -> NDArray[np.float64]:
    """2 L R^2 / (N + 1)^2 after N = 1, 2, ... steps of FISTA, over `scale`; R is the distance to the best answer."""
    squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), answer, problem.init)
    distance = math.sqrt(float(sum(jax.tree.leaves(squares))))
    steps = np.arange(1, len(curves["fista"].values))
    return 2 * problem.smoothness * distance**2 / (steps + 1.0) ** 2 / scale
