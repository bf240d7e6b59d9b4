"""The loss, the runs and the closed forms of `nagd`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

import nagjax
from experiments.output import UsageError
from nagjax.theory import trajectories

Array = NDArray[np.float64]

START = np.array([[0.1, 0.2], [0.3, 0.4]])
INPUTS = np.array([[1.0, 2.0], [3.0, 3.0], [2.0, 4.0], [4.0, 4.0]])
TARGETS = np.array([[-0.5, 2.0], [1.0, 2.5], [-1.0, 3.5], [1.5, 3.5]])
HESSIAN = INPUTS.T @ INPUTS / len(INPUTS)
CURVATURES, MODES = np.linalg.eigh(HESSIAN)
MINIMIZER = np.linalg.solve(HESSIAN, INPUTS.T @ TARGETS / len(INPUTS))
STABLE_BETA = 0.003
_CHUNK = 500


def loss(weights: Any) -> Any:
    """Returns |X W - Y|^2 / (2 n)."""
    return jnp.sum((INPUTS @ weights - TARGETS) ** 2) / (2 * len(INPUTS))


def excess(weights: Array) -> Array:
    """Returns f(W) - f(W*) of weights (..., 2, 2), from the error, so that no digits cancel."""
    error = weights - MINIMIZER
    return np.einsum("...ij,ik,...kj->...", error, HESSIAN, error) / 2


@dataclass(frozen=True)
class Trajectory:
    """One run and its closed form; arrays have shape (updates + 1, 2, 2)."""

    method: str
    rule: str
    queries: Array
    answers: Array
    closed_queries: Array
    closed_answers: Array
    gradient_norm: float

    @property
    def updates(self) -> int:
        """The number of updates made."""
        return len(self.queries) - 1

    @property
    def difference(self) -> float:
        """The largest difference between a weight and its closed form, over both sequences."""
        pairs = ((self.queries, self.closed_queries), (self.answers, self.closed_answers))
        return max(float(np.abs(found - exact).max()) for found, exact in pairs)

    def record(self) -> dict[str, Any]:
        """Returns what results.json keeps."""
        return {
            "method": self.method,
            "rule": self.rule,
            "updates": self.updates,
            "weights": self.answers[-1],
            "excess_loss": float(excess(self.answers[-1])),
            "gradient_norm": self.gradient_norm,
            "difference": self.difference,
        }


def all_runs(
    alpha: float, beta: float, iterations: Sequence[int], tolerance: float, max_iterations: int
) -> list[Trajectory]:
    """Returns every run of gradient descent, then of Nesterov's method; the last of each stops by the gradient.

    Raises:
        UsageError: a method diverges at these rates.
    """
    smoothness = float(CURVATURES.max())
    limit = min(trajectories.largest_stable_rate(beta, smoothness), 2 / smoothness)
    if alpha >= limit:
        raise UsageError(f"nagd: --alpha must be below {limit:.4f}, where a method diverges, got {alpha}.")
    methods: dict[str, tuple[optax.GradientTransformation, float]] = {
        "gradient descent": (optax.sgd(alpha), 0.0),
        "Nesterov": (nagjax.nesterov(alpha, beta), beta),
    }
    runs: list[Trajectory] = []
    for method, (optimizer, momentum) in methods.items():
        advance = _advance(optimizer, accelerated=method == "Nesterov")
        lengths = [(count, 0.0, f"{count} iterations") for count in iterations]
        for count, norm, rule in [*lengths, (max_iterations, tolerance, f"|gradient| <= {tolerance:g}")]:
            queries, answers, last = _iterate(optimizer, advance, count, norm)
            t = np.arange(len(queries))
            closed = [
                _closed(np.stack([form(t, alpha, momentum, float(curvature)) for curvature in CURVATURES], axis=-1))
                for form in (trajectories.nesterov_queries, trajectories.nesterov_answers)
            ]
            runs.append(Trajectory(method, rule, queries, answers, *closed, last))
    return runs


def _advance(optimizer: optax.GradientTransformation, *, accelerated: bool) -> Callable[..., Any]:
    def step(carry: Any, _: None) -> tuple[Any, Any]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        answer = nagjax.eval_params(params, state) if accelerated else params
        return (params, state), (params, answer, jnp.linalg.norm(jax.grad(loss)(params)))

    return jax.jit(lambda carry: jax.lax.scan(step, carry, length=_CHUNK))


def _iterate(
    optimizer: optax.GradientTransformation, advance: Callable[..., Any], count: int, tolerance: float
) -> tuple[Array, Array, float]:
    """Returns queries and answers of `count` updates, or of fewer if the gradient's norm falls to `tolerance`."""
    start = jnp.asarray(START)
    carry: Any = (start, optimizer.init(start))
    queries, answers, norms = [START[None]], [START[None]], [np.full(1, np.inf)]
    made = 0
    while made < count and norms[-1].min() > tolerance:
        carry, found = advance(carry)
        for kept, new in zip((queries, answers, norms), found, strict=True):
            kept.append(np.asarray(new)[: count - made])
        made += _CHUNK
    small = np.flatnonzero(np.concatenate(norms) <= tolerance)
    end = int(small[0]) + 1 if len(small) else None
    norm = np.concatenate(norms)[:end][-1]
    return np.concatenate(queries)[:end], np.concatenate(answers)[:end], float(norm)


def _closed(factors: Array) -> Array:
    """Returns W* + Q diag(factors) Q' (W_0 - W*) for factors (t, 2), the relative errors along the eigenvectors."""
    return MINIMIZER + np.einsum("im,tm,mj->tij", MODES, factors, MODES.T @ (START - MINIMIZER))


@dataclass(frozen=True)
class TutorialUpdate:
    """theta <- theta - alpha g + beta theta: iterates, closed form and fixed point."""

    beta: float
    iterates: Array
    closed: Array
    fixed_point: Array
    factors: Array  # 1 + beta - alpha lambda, one for each curvature

    def record(self) -> dict[str, Any]:
        """Returns what results.json keeps."""
        return {
            "beta": self.beta,
            "factors": self.factors,
            "fixed_point": self.fixed_point,
            "minimizer": MINIMIZER,
            "last": self.iterates[-1],
            "relative_difference": self.relative_difference,
        }

    @property
    def relative_difference(self) -> float:
        """The largest difference between an iterate and its closed form, relative to the iterate's largest weight."""
        scale = np.abs(self.closed).max(axis=(1, 2), keepdims=True)
        return float((np.abs(self.iterates - self.closed) / scale).max())


def tutorial_update(alpha: float, beta: float, updates: int) -> TutorialUpdate:
    """Runs theta <- (1 + beta) theta - alpha g, whose fixed point solves (H - (beta / alpha) I) theta = X'Y / n."""
    weights = START
    iterates = [weights]
    gradient = jax.jit(jax.grad(loss))
    for _ in range(updates):
        weights = weights - alpha * np.asarray(gradient(weights)) + beta * weights
        iterates.append(weights)
    fixed_point = np.linalg.solve(HESSIAN - beta / alpha * np.eye(2), HESSIAN @ MINIMIZER)
    factors = 1 + beta - alpha * CURVATURES
    powers = factors ** np.arange(updates + 1)[:, None]
    closed = fixed_point + np.einsum("im,tm,mj->tij", MODES, powers, MODES.T @ (START - fixed_point))
    return TutorialUpdate(beta, np.stack(iterates), closed, fixed_point, factors)


def report(alpha: float, beta: float, runs: Sequence[Trajectory], tutorial: Sequence[TutorialUpdate]) -> str:
    """Returns the text that the experiment prints."""
    lines = [
        f"f(W) = |X W - Y|^2 / (2 n), curvatures {CURVATURES[0]:.3f} and {CURVATURES[1]:.3f}, "
        f"alpha = {alpha:g}, beta = {beta:g}, float64",
        "",
        f"{'method':<18}{'rule':<22}{'updates':>8}{'f(x) - f*':>12}{'|gradient|':>12}{'difference':>12}",
    ]
    lines += [
        f"{run.method:<18}{run.rule:<22}{run.updates:>8}{excess(run.answers[-1]):>12.2e}{run.gradient_norm:>12.2e}"
        f"{run.difference:>12.1e}"
        for run in runs
    ]
    largest = max(run.difference for run in runs)
    lines += [
        "",
        "f at the answer x (nagjax.eval_params), |gradient| at the parameters y; difference: iterates from their "
        "closed form,",
        f"both sequences, all weights. Largest difference: {largest:.1e}"
        + (" (below 1e-12)" if largest < 1e-12 else " (NOT below 1e-12)"),
        "",
        "The update theta <- theta - alpha g + beta theta is not Nesterov's: it adds a multiple of the weights, not of",
        "their last change. It is gradient descent on f(W) - (beta / (2 alpha)) |W|^2, weight decay of the wrong sign.",
        "Its fixed point solves (H - (beta/alpha) I) W = X'Y/n, not H W = X'Y/n, and its error grows by the factor",
        "1 + beta - alpha lambda along each eigenvector:",
    ]
    for update in tutorial:
        factors = ", ".join(f"{factor:.4f}" for factor in update.factors)
        away = float(np.linalg.norm(update.iterates[-1] - MINIMIZER))
        stable = bool(np.all(np.abs(update.factors) < 1))
        distance = float(np.linalg.norm(update.fixed_point - MINIMIZER))
        verdict = f"converges to a point {distance:.2f} away from the minimizer" if stable else "diverges"
        lines.append(
            f"  beta = {update.beta:g}: factors {factors}: {verdict}; |W - W*| = {away:.2e} after "
            f"{len(update.iterates) - 1} updates (closed form to {update.relative_difference:.0e})"
        )
    return "\n".join(lines)
