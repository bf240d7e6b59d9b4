"""What `solve.minimize` refuses, and how runs that cannot succeed end: status, sentence and best point."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nagjax
from nagjax import proximal, solve
from nagjax.solve import Status

GENERATOR = np.random.default_rng(1)
MATRIX = jnp.asarray(GENERATOR.standard_normal((20, 12)))
TARGET = jnp.asarray(3 * GENERATOR.standard_normal(20))
SMOOTHNESS = float(jnp.linalg.norm(MATRIX, 2)) ** 2
START = jnp.zeros(12)


def squares(x, matrix, target):
    return jnp.sum((matrix @ x - target) ** 2) / 2


def total(x):
    return jnp.sum(x)


REFUSED = {
    "fun that is no function": (lambda: solve.minimize(1.0, START), TypeError, "fun must be a function"),
    "fun that returns a vector": (lambda: solve.minimize(lambda x: x, START), ValueError, "returns a real scalar"),
    "fun that returns an array of one": (lambda: solve.minimize(lambda x: x[:1], START), ValueError, "real scalar"),
    "fun that returns a complex number": (
        lambda: solve.minimize(lambda x: jnp.sum(x).astype(complex), START),
        ValueError,
        "real scalar",
    ),
    "fun that returns an integer": (lambda: solve.minimize(lambda x: 1, START), ValueError, "real scalar"),
    "a pair without has_aux": (lambda: solve.minimize(lambda x: (jnp.sum(x), 1.0), START), ValueError, "has_aux=True"),
    "has_aux without a pair": (lambda: solve.minimize(total, START, has_aux=True), TypeError, "returns a pair"),
    "integer parameters": (lambda: solve.minimize(total, jnp.arange(3)), TypeError, "floating"),
    "boolean parameters": (lambda: solve.minimize(total, jnp.array([True])), TypeError, "floating"),
    "args that are no tuple": (
        lambda: solve.minimize(squares, START, args=[MATRIX, TARGET]),
        TypeError,
        "args must be a tuple",
    ),
    "a prox that is none": (lambda: solve.minimize(total, START, prox=0.1), TypeError, "prox must be a"),
    "a prox of another structure": (
        lambda: solve.minimize(total, START, prox=proximal.l1({"w": 1.0})),
        ValueError,
        "matches the parameters",
    ),
    "a prox of another shape": (
        lambda: solve.minimize(total, START, prox=proximal.l1(jnp.ones(3))),
        ValueError,
        "broadcasts",
    ),
    "an operator that changes the shape": (
        lambda: solve.minimize(total, START, prox=proximal.Prox(lambda x: 0.0, lambda x, s: x[:2])),
        ValueError,
        "prox must be",
    ),
    "a negative weight": (lambda: solve.minimize(total, START, prox=proximal.l1(-1.0)), ValueError, "at least 0"),
    "an empty box": (lambda: solve.minimize(total, START, prox=proximal.box(1.0, 0.0)), ValueError, "lower"),
    "a simplex of radius 0": (
        lambda: solve.minimize(total, START, prox=proximal.simplex(0.0)),
        ValueError,
        "positive",
    ),
    "a negative tolerance": (lambda: solve.minimize(total, START, tol=-1e-6), ValueError, "tol must be at least 0"),
    "a tolerance of NaN": (lambda: solve.minimize(total, START, tol=float("nan")), ValueError, "tol must be"),
    "a negative number of steps": (lambda: solve.minimize(total, START, max_iters=-1), ValueError, "max_iters must be"),
    "half a step": (lambda: solve.minimize(total, START, max_iters=1.5), TypeError, "integer"),
    "a boolean number of steps": (lambda: solve.minimize(total, START, max_iters=True), TypeError, "max_iters must be"),
    "a step size of 0": (lambda: solve.minimize(total, START, step_size=0.0), ValueError, "step_size must be positive"),
    "an unknown method": (lambda: solve.minimize(total, START, method="newton"), ValueError, "default, boosted, fista"),
    "a method that is none": (lambda: solve.minimize(total, START, method=3), TypeError, "method must be"),
    "a step size for a chain": (
        lambda: solve.minimize(total, START, method=nagjax.ogm(1.0), step_size=1.0),
        ValueError,
        "step_size must be None",
    ),
    "a chain without the prox": (
        lambda: solve.minimize(total, START, method=nagjax.ogm(1.0), prox=proximal.l1(1.0)),
        ValueError,
        "proximal.step",
    ),
    "history of unknown length": (
        lambda: jax.jit(lambda n: solve.minimize(total, START, max_iters=n, history=True).value)(3),
        ValueError,
        "history is asked for",
    ),
    "throw under jit": (
        lambda: jax.jit(lambda x: solve.minimize(total, x, throw=True, max_iters=3).value)(START),
        ValueError,
        "throw must be False",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_it_refuses(name):
    call, error, part = REFUSED[name]
    with pytest.raises(error, match=re.escape(part)) as raised:
        call()
    # {function}: {argument} must be {condition}, got {value}; {remedy}.
    assert re.fullmatch(r"[a-z_.0-9]+: .+ must be .+, got .+; .+\.", str(raised.value), re.DOTALL)


def safe_step(message):
    return float(re.search(r"at most ([0-9.e+-]+);", message)[1])


@pytest.mark.parametrize("method", ["fista", "chain"])
@pytest.mark.parametrize("factor", [2.5, 1e6])
def test_a_step_size_that_is_too_large_diverges_and_names_a_safe_one(method, factor):
    step = factor / SMOOTHNESS
    start = START + 0.5
    options = {"method": "fista", "step_size": step} if method == "fista" else {"method": nagjax.fista(step)}
    solution = solve.minimize(squares, start, args=(MATRIX, TARGET), max_iters=500, **options)
    assert int(solution.status) == Status.DIVERGED
    assert "too large" in solution.message
    # The curvature that a pair of points shows is at most L, so that 1 / L is never above the number given.
    safe = safe_step(solution.message)
    assert 0.99 / SMOOTHNESS <= safe < step
    assert float(squares(solution.params, MATRIX, TARGET)) <= float(squares(start, MATRIX, TARGET))
    assert float(solution.value) == pytest.approx(float(squares(solution.params, MATRIX, TARGET)), rel=1e-12)
    # Who follows the advice comes to an end.
    for _ in range(5):
        solution = solve.minimize(squares, start, args=(MATRIX, TARGET), method="fista", step_size=0.99 * safe)
        if bool(solution.converged):
            break
        safe = safe_step(solution.message)
    assert bool(solution.converged)


@pytest.mark.parametrize("method", ["default", "boosted"])
def test_a_first_step_that_is_far_too_large_does_no_harm(method):
    solution = solve.minimize(squares, START + 0.5, args=(MATRIX, TARGET), method=method, step_size=1e6, tol=1e-10)
    expected = jnp.linalg.lstsq(MATRIX, TARGET)[0]
    np.testing.assert_allclose(solution.params, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["default", "boosted"])
@pytest.mark.parametrize("fun", [total, lambda x: -jnp.sum(x**2)], ids=["linear", "concave"])
def test_an_unbounded_problem_is_called_so(method, fun):
    solution = solve.minimize(fun, jnp.ones(3), method=method)
    assert int(solution.status) == Status.DIVERGED
    assert "unbounded below" in solution.message
    assert int(solution.iterations) < 200
    assert np.all(np.isfinite(solution.params))
    assert float(fun(solution.params)) < -1e6


@pytest.mark.parametrize("method", ["default", "boosted", "fista"])
def test_a_start_outside_the_domain_is_called_so(method):
    solution = solve.minimize(lambda x: jnp.sum(jnp.log(x)), -jnp.ones(3), method=method)
    assert int(solution.status) == Status.NON_FINITE
    assert "not finite at init" in solution.message
    assert int(solution.iterations) == 0
    assert np.array_equal(solution.params, -np.ones(3))
    assert np.isnan(solution.value)


@pytest.mark.parametrize("method", ["default", "boosted", "fista"])
def test_steps_that_leave_the_domain_are_taken_back(method):
    rates = jnp.abs(MATRIX[:, :4])

    def poisson(x):
        means = rates @ x
        return jnp.sum(means) - 3 * jnp.sum(jnp.log(means))

    # From here the Newton step, and any step near it, leaves the domain.
    solution = solve.minimize(poisson, 60 * jnp.ones(4), method=method, tol=1e-9, max_iters=5000)
    assert bool(solution.converged)
    gradient = np.asarray(rates).T @ (1 - 3 / np.asarray(rates @ solution.params))
    assert np.max(np.abs(gradient)) < 1e-5


def test_a_function_that_turns_nan_everywhere_else_returns_the_best_point():
    def fun(x):
        return jnp.sum(x) + jnp.where(jnp.all(x == 1), 0.0, jnp.nan)

    solution = solve.minimize(fun, jnp.ones(3))
    assert int(solution.status) == Status.NON_FINITE
    assert np.array_equal(solution.params, np.ones(3))


@pytest.mark.parametrize("method", ["default", "fista"])
def test_a_tolerance_below_rounding_stalls(method):
    solution = solve.minimize(squares, START, args=(MATRIX, TARGET), method=method, tol=1e-30)
    assert int(solution.status) == Status.STALLED
    assert "rounding" in solution.message
    expected = jnp.linalg.lstsq(MATRIX, TARGET)[0]
    np.testing.assert_allclose(solution.params, expected, rtol=0, atol=1e-11)


def test_throw_raises_with_the_solution_attached():
    with pytest.raises(solve.SolveError, match="max_iters = 3") as raised:
        solve.minimize(squares, START, args=(MATRIX, TARGET), max_iters=3, throw=True)
    assert int(raised.value.solution.iterations) == 3
    assert np.all(np.isfinite(raised.value.solution.params))
    solution = solve.minimize(squares, START, args=(MATRIX, TARGET), throw=True)
    assert bool(solution.converged)


@pytest.mark.parametrize("method", ["default", "boosted", "fista"])
def test_no_steps_return_the_start_with_its_value(method):
    solution = solve.minimize(squares, START + 1, args=(MATRIX, TARGET), method=method, max_iters=0)
    assert int(solution.status) == Status.MAX_ITERS
    assert int(solution.iterations) == 0
    assert np.array_equal(solution.params, np.ones(12))
    assert float(solution.value) == pytest.approx(float(squares(START + 1, MATRIX, TARGET)))
    assert float(solution.residual) == 1.0


def test_a_start_that_is_the_answer_takes_no_step():
    solution = solve.minimize(lambda x: jnp.sum(x**2), START)
    assert bool(solution.converged)
    assert int(solution.iterations) == 0
    assert float(solution.residual) == 0
