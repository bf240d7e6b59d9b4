"""`solve.minimize` under jit and vmap, on trees and other dtypes; history, progress, warm starts, paths and gaps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nagjax import proximal, solve
from nagjax.solve import Status

GENERATOR = np.random.default_rng(1)
MATRIX = jnp.asarray(GENERATOR.standard_normal((20, 12)))
TARGET = jnp.asarray(3 * GENERATOR.standard_normal(20))
TARGETS = jnp.stack([TARGET, 2 * TARGET, TARGET**2])
SMOOTHNESS = float(np.linalg.norm(MATRIX, 2)) ** 2
START = jnp.zeros(12)


def squares(x, matrix, target):
    return jnp.sum((matrix @ x - target) ** 2) / 2


def lasso(target=TARGET, weight=3.0, start=START, **options):
    return solve.minimize(squares, start, args=(MATRIX, target), prox=proximal.l1(weight), **options)


BATCHES = {
    "data": ("default", {"target": TARGETS}),
    "weights": ("default", {"weight": jnp.array([1.0, 3.0, 300.0])}),
    "starts": ("default", {"start": jnp.stack([START, START + 1, START - 5])}),
    "tolerances": ("default", {"tol": jnp.array([1e-2, 1e-5, 1e-9])}),
    "numbers of steps": ("default", {"tol": jnp.zeros(3), "max_iters": jnp.array([0, 7, 20])}),
    "data, boosted": ("boosted", {"target": TARGETS}),
    "data, backtracking": ("fista", {"target": TARGETS, "tol": jnp.full(3, 1e-6)}),
}


@functools.cache
def compiled(method):
    """A run on its own, and one of lanes that differ in every argument: the batches share both."""

    def run(given):
        return lasso(method=method, **given)

    return jax.jit(run), jax.jit(jax.vmap(run))


@pytest.mark.parametrize("name", list(BATCHES))
def test_every_lane_of_vmap_is_the_run_on_its_own(name):
    method, varied = BATCHES[name]
    usual = {"target": TARGET, "weight": 3.0, "start": START, "tol": 1e-9, "max_iters": 10_000}
    batch = {key: jnp.asarray([value] * 3) for key, value in usual.items()} | varied
    run, in_lanes = compiled(method)
    together = in_lanes(batch)
    alone = [run(jax.tree.map(lambda rows, lane=lane: rows[lane], batch)) for lane in range(3)]
    assert len({int(one.iterations) for one in alone}) > 1  # lanes stop at different times
    # Products of batches round differently, which quasi-Newton steps amplify near the end.
    amplified = "boosted" in name
    differences = np.abs(np.asarray(together.iterations) - [int(one.iterations) for one in alone])
    assert np.max(differences) <= (3 if amplified else 0)
    assert np.array_equal(together.status, [int(one.status) for one in alone])
    tolerance = 1e-6 if amplified else 1e-10
    np.testing.assert_allclose(together.params, [one.params for one in alone], rtol=0, atol=tolerance)
    assert len(together.message) == len(alone)
    if not amplified:
        np.testing.assert_allclose(together.residual, [one.residual for one in alone], rtol=1e-2, atol=1e-12)
        assert together.message == [one.message for one in alone]


def test_new_data_weights_starts_and_tolerances_do_not_trace_again():
    traces = []

    def fun(x, target):
        traces.append(1)
        return squares(x, MATRIX, target)

    def run(target, weight, start, tol, max_iters):
        prox = proximal.l1(weight)
        return solve.minimize(fun, start, args=(target,), prox=prox, tol=tol, max_iters=max_iters)

    first = run(TARGET, 3.0, START, 1e-6, 100)
    count = len(traces)
    second = run(2 * TARGET, 1.0, START + 1, 1e-3, 50)
    # One abstract evaluation checks the value of fun; the loop is compiled once.
    checked = len(traces) - count
    assert checked <= 1
    run(TARGET, 2.0, START, 1e-4, 60)
    assert len(traces) == count + 2 * checked
    assert not np.array_equal(first.params, second.params)


def test_the_compiled_loop_calls_the_gradient_once():
    text = jax.jit(lambda target: lasso(target).params).lower(TARGET).as_text()
    # Two products a gradient: one by the matrix and one by its transpose.
    assert text.count("stablehlo.dot_general") == 2


def test_a_tree_with_an_absent_leaf_a_scalar_and_two_dtypes_is_solved():
    def fun(p):
        return (
            jnp.sum((p["a"] - 1) ** 2)
            + (p["b"]["c"] - 2.0) ** 2
            + jnp.sum((p["b"]["d"].astype(jnp.float64) - jnp.arange(3.0)) ** 2)
        )

    start = {"a": jnp.zeros((2, 2)), "n": None, "b": {"c": 0.0, "d": jnp.zeros(3, jnp.float32)}}
    for method, prox in (("default", proximal.l1(0.2)), ("boosted", proximal.l1(0.2)), ("fista", None)):
        solution = solve.minimize(fun, start, prox=prox, method=method)
        shift = 0.1 if prox else 0.0
        assert bool(solution.converged)
        found = solution.params
        assert found["n"] is None
        assert found["b"]["d"].dtype == jnp.float32
        assert found["a"].dtype == found["b"]["c"].dtype == jnp.float64
        np.testing.assert_allclose(found["a"], np.full((2, 2), 1 - shift), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["b"]["c"], 2 - shift, rtol=0, atol=1e-5)
        expected = [0, 1 - shift, 2 - shift]
        np.testing.assert_allclose(found["b"]["d"], expected, rtol=0, atol=1e-5)


def test_16_bit_parameters_are_solved_in_32_and_rounded_at_the_end():
    matrix, target = MATRIX.astype(jnp.float32), TARGET.astype(jnp.float32)
    wide, narrow = (
        solve.minimize(squares, START.astype(dtype), args=(matrix, target), prox=proximal.l1(3.0))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert narrow.params.dtype == jnp.bfloat16
    assert bool(narrow.converged)
    assert np.array_equal(narrow.params, wide.params.astype(jnp.bfloat16))


def complex_squares(z, matrix, target):
    return jnp.sum(jnp.abs(matrix @ z - target) ** 2) / 2


@pytest.mark.parametrize("method", ["default", "boosted", "fista"])
@pytest.mark.parametrize("weight", [0.0, 4.0])
def test_complex_least_squares_are_those_of_the_real_formulation(method, weight):
    generator = np.random.default_rng(2)
    matrix = generator.standard_normal((15, 6)) + 1j * generator.standard_normal((15, 6))
    target = generator.standard_normal(15) + 1j * generator.standard_normal(15)
    found = solve.minimize(
        complex_squares,
        jnp.zeros(6, complex),
        args=(jnp.asarray(matrix), jnp.asarray(target)),
        prox=proximal.l1(weight),
        method=method,
        tol=1e-9,
    )
    assert bool(found.converged)
    z = np.asarray(found.params)
    gradient = matrix.conj().T @ (matrix @ z - target)
    if weight:
        assert 0 < np.sum(z == 0) < 6
    on = z != 0
    np.testing.assert_allclose(gradient[on], -weight * z[on] / np.abs(z[on]), rtol=0, atol=1e-6)
    assert np.all(np.abs(gradient[~on]) < weight + 1e-6)


def test_aux_is_that_of_the_returned_point():
    def fun(x):
        error = MATRIX @ x - TARGET
        return jnp.sum(error**2) / 2, {"error": error, "steps": 3}

    for max_iters in (0, 5, 1000):
        solution = solve.minimize(fun, START, has_aux=True, max_iters=max_iters)
        np.testing.assert_allclose(solution.aux["error"], MATRIX @ solution.params - TARGET, rtol=0, atol=1e-13)
        assert int(solution.aux["steps"]) == 3
        assert float(solution.value) == pytest.approx(float(fun(solution.params)[0]), rel=1e-12)


@pytest.mark.parametrize(("method", "step_size"), [("default", None), ("boosted", None), ("fista", 1 / SMOOTHNESS)])
def test_history_has_a_row_a_step_and_bounds_the_value(method, step_size):
    options = {"method": method, "step_size": step_size, "tol": 1e-9}
    solution = lasso(history=True, max_iters=400, **options)
    history, count = solution.history, int(solution.iterations)
    assert count < 400
    assert all(column.shape == (400,) for column in history)
    for column in (history.value, history.residual, history.step_size):
        assert np.all(np.isfinite(column[:count]))
        assert np.all(np.isnan(column[count:]))
    assert np.all(history.restarts[:count] >= 0)
    assert np.all(history.restarts[count:] == -1)
    assert np.all(np.diff(history.restarts[:count]) >= 0)
    assert float(history.value[count - 1]) == pytest.approx(float(solution.value), rel=1e-9)
    for k in (1, 2, 5, 12, count):
        answer = lasso(max_iters=k, **{**options, "tol": 0.0}).params
        objective = squares(answer, MATRIX, TARGET) + 3 * jnp.sum(jnp.abs(answer))
        if float(history.step_size[k - 1]) <= 1 / SMOOTHNESS:  # else the upper bound may fail
            assert float(history.value[k - 1]) >= float(objective) * (1 - 1e-12)


def test_progress_goes_to_standard_error_and_changes_nothing(capsys):
    quiet = lasso()
    assert capsys.readouterr() == ("", "")
    loud = lasso(progress=True)
    jax.effects_barrier()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("step 0 ")
    assert "residual" in err
    assert "step size" in err
    assert np.array_equal(loud.params, quiet.params)
    jitted = jax.jit(lambda target: lasso(target, progress=True).params)(TARGET)
    jax.effects_barrier()
    assert "step 0 " in capsys.readouterr().err
    np.testing.assert_allclose(jitted, quiet.params, rtol=0, atol=1e-12)


def test_a_warm_start_takes_few_steps_and_keeps_the_scale():
    first = lasso(tol=1e-6)
    again = lasso(start=first, tol=1e-6)
    assert int(again.iterations) == 0
    assert bool(again.converged)
    near = lasso(weight=3.01, start=first, tol=1e-6)
    assert bool(near.converged)
    assert int(near.iterations) <= int(first.iterations) / 2
    assert float(near.state.report.scale) == float(first.state.report.scale)
    stopped = lasso(max_iters=10, tol=0.0)
    finished = lasso(start=stopped, tol=1e-10)
    np.testing.assert_allclose(finished.params, lasso(tol=1e-10).params, rtol=0, atol=1e-9)


def test_a_path_is_a_loop_of_warm_starts():
    weights = jnp.array([20.0, 5.0, 1.0])
    found = solve.path(squares, START, weights, proximal.l1, args=(MATRIX, TARGET), tol=1e-9)
    start = START
    for i, weight in enumerate(weights):
        start = lasso(weight=weight, start=start, tol=1e-9)
        assert int(found.iterations[i]) == int(start.iterations)
        np.testing.assert_allclose(found.params[i], start.params, rtol=0, atol=1e-10)
    assert np.all(found.status == Status.CONVERGED)


def test_the_duality_gap_bounds_the_suboptimality_at_the_end():
    gap = solve.least_squares_gap(proximal.l1(3.0), lambda g: jnp.max(jnp.abs(g)) / 3.0)
    best = lasso(tol=1e-12).value
    for tol in (1e-2, 1e-5):
        solution = lasso(tol=tol, duality_gap=gap)
        assert bool(solution.converged)
        suboptimality = float((solution.value - best) / solution.value)
        assert suboptimality <= float(solution.residual) <= tol
