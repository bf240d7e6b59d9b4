"""Derivatives of solutions: closed forms, finite differences, and what has no derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nagjax import proximal, solve

GENERATOR = np.random.default_rng(1)
MATRIX = jnp.asarray(GENERATOR.standard_normal((20, 12)))
TARGET = jnp.asarray(3 * GENERATOR.standard_normal(20))
START = jnp.zeros(12)


def squares(x, matrix, target):
    return jnp.sum((matrix @ x.reshape(-1) - target) ** 2) / 2


def lasso(weight, target, method="default"):
    return solve.minimize(
        squares, START, args=(MATRIX, target), prox=proximal.l1(weight), tol=1e-12, method=method
    ).params


@functools.cache
def active_set():
    """Of the lasso at weight 3: the active coordinates, their signs, and (A_A^T A_A)^{-1}."""
    x = np.asarray(lasso(3.0, TARGET))
    on = x != 0
    columns = np.asarray(MATRIX)[:, on]
    return on, np.sign(x[on]), columns, np.linalg.inv(columns.T @ columns)


def embedded(rows, on):
    result = np.zeros((12, *rows.shape[1:]))
    result[on] = rows
    return result


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_the_derivatives_of_a_lasso_in_its_data_and_in_one_weight_a_coordinate_are_those_on_the_active_set(mode):
    on, signs, columns, inverse = active_set()
    assert 2 <= np.sum(on) <= 11
    by_weights, by_target = jax.jit(mode(lasso, (0, 1)))(jnp.full(12, 3.0), TARGET)
    expected = np.zeros((12, 12))
    expected[np.ix_(on, on)] = -inverse * signs[None, :]
    np.testing.assert_allclose(by_weights, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(by_target, embedded(inverse @ columns.T, on), rtol=0, atol=1e-12)


def test_the_derivative_of_a_boosted_lasso_in_one_weight_for_all_is_that_on_the_active_set():
    on, signs, _, inverse = active_set()
    found = jax.jit(jax.jacrev(lambda w: lasso(w, TARGET, "boosted")))(3.0)
    np.testing.assert_allclose(found, embedded(-inverse @ signs, on), rtol=0, atol=1e-12)


def solution_of_ridge(weight):
    return jnp.linalg.solve(MATRIX.T @ MATRIX + weight * jnp.eye(12), MATRIX.T @ TARGET)


@pytest.mark.parametrize("way", ["args", "prox", "closure"])
def test_first_and_second_derivatives_of_ridge_are_those_of_its_closed_form(way):
    def total(weight):
        def penalized(x, w):
            return squares(x, MATRIX, TARGET) + w * jnp.sum(x**2) / 2

        if way == "args":
            solution = solve.minimize(penalized, START, args=(weight,), tol=1e-13)
        elif way == "prox":
            prox = proximal.squared_l2(weight)
            solution = solve.minimize(squares, START, args=(MATRIX, TARGET), prox=prox, tol=1e-13)
        else:
            solution = solve.minimize(lambda x: penalized(x, weight), START, tol=1e-13)
        return jnp.sum(solution.params)

    def expected(weight):
        return jnp.sum(solution_of_ridge(weight))

    def both(function):
        return jax.jit(jax.jvp, static_argnums=0)(jax.grad(function), (2.0,), (1.0,))

    np.testing.assert_allclose(both(total), both(expected), rtol=1e-8)


def operators():
    weights = jnp.linspace(1.0, 2.0, 12)
    return {
        "elastic_net": (lambda w: proximal.elastic_net(3 * w, 2.0 * w), (12,)),
        "box": (lambda w: proximal.box(-0.1 * w, 0.2 * w), (12,)),
        "simplex": (lambda w: proximal.simplex(w), (12,)),
        "l1_ball": (lambda w: proximal.l1_ball(w), (12,)),
        "l2_ball": (lambda w: proximal.l2_ball(0.5 * w), (12,)),
        "group_lasso": (lambda w: proximal.group_lasso(4 * w, group_size=3), (12,)),
        "nuclear": (lambda w: proximal.nuclear(4 * w), (3, 4)),
        "total_variation": (lambda w: proximal.total_variation(2 * w), (12,)),
        "hyperplane": (lambda w: proximal.hyperplane(weights, w), (12,)),
        "log_barrier": (lambda w: proximal.log_barrier(w), (12,)),
    }


@pytest.mark.parametrize("name", list(operators()))
def test_derivatives_in_the_numbers_of_a_prox_and_in_the_data_agree_with_finite_differences(name):
    build, shape = operators()[name]
    start = jnp.ones(shape) if name == "log_barrier" else jnp.zeros(shape)

    @jax.jit
    @jax.value_and_grad
    def read(point):
        weight, shift = point
        solution = solve.minimize(
            squares, start, args=(MATRIX, TARGET + shift), prox=build(weight), tol=1e-13, max_iters=3000
        )
        return jnp.sum(jnp.sin(solution.params))

    point = jnp.array([1.3, 0.3])
    _, found = read(point)
    steps = 1e-5 * jnp.eye(2)
    expected = [float(read(point + e)[0] - read(point - e)[0]) / 2e-5 for e in steps]
    assert np.min(np.abs(expected)) > 1e-3  # both matter
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-8)


def test_derivatives_of_logistic_regression_with_l1_agree_with_finite_differences():
    labels = jnp.sign(TARGET)

    @jax.jit
    @jax.value_and_grad
    def read(point):
        weight, scale = point

        def loss(x):
            return jnp.sum(jax.nn.softplus(-labels * (MATRIX @ x * scale)))

        solution = solve.minimize(loss, START, prox=proximal.l1(weight), tol=1e-13)
        return jnp.sum(solution.params**2)

    point = jnp.array([0.7, 1.2])
    _, found = read(point)
    steps = 1e-5 * jnp.eye(2)
    expected = [float(read(point + e)[0] - read(point - e)[0]) / 2e-5 for e in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_gradients_under_vmap_are_those_of_a_loop():
    weights = jnp.array([2.0, 3.0, 4.0])
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(lasso(w, TARGET))))
    expected = [float(gradient(w)) for w in weights]
    np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(weights), expected, rtol=1e-10)


def test_the_derivative_of_the_value_is_that_of_the_objective_at_the_answer():
    def value(weight, target):
        return solve.minimize(squares, START, args=(MATRIX, target), prox=proximal.l1(weight), tol=1e-10).value

    x = lasso(3.0, TARGET)
    by_weight, by_target = jax.jit(jax.grad(value, (0, 1)))(3.0, TARGET)
    assert float(by_weight) == pytest.approx(float(jnp.sum(jnp.abs(x))), rel=1e-8)
    np.testing.assert_allclose(by_target, TARGET - MATRIX @ x, rtol=0, atol=1e-7)


def test_nothing_leaks_into_the_start_the_tolerance_or_the_step():
    def read(start, tol, step_size):
        solution = solve.minimize(
            squares, start, args=(MATRIX, TARGET), prox=proximal.l1(3.0), tol=tol, step_size=step_size
        )
        return jnp.sum(solution.params) + solution.value + solution.residual

    for gradient in jax.jit(jax.grad(read, (0, 1, 2)))(START, 1e-3, 1e-2):
        assert np.array_equal(gradient, np.zeros(np.shape(gradient)))


def complex_data():
    generator = np.random.default_rng(2)

    def draw(*shape):
        return jnp.asarray(generator.standard_normal(shape) + 1j * generator.standard_normal(shape))

    return draw(15, 6), draw(15)


def test_complex_solutions_have_the_derivatives_of_their_real_formulation():
    matrix, target = complex_data()

    def read(weight, shift):
        def loss(x):
            return jnp.sum(jnp.abs(matrix @ x - target - shift) ** 2) / 2

        solution = solve.minimize(loss, jnp.zeros(6, complex), prox=proximal.l1(weight), tol=1e-13)
        return jnp.sum(jnp.sin(solution.params.real) + solution.params.imag**2)

    def read_real(weight, shift):
        def loss(x):
            z = jax.lax.complex(x[:, 0], x[:, 1])
            return jnp.sum(jnp.abs(matrix @ z - target - shift) ** 2) / 2

        prox = proximal.group_lasso(weight, axis=-1)
        x = solve.minimize(loss, jnp.zeros((6, 2)), prox=prox, tol=1e-13).params
        return jnp.sum(jnp.sin(x[:, 0]) + x[:, 1] ** 2)

    real, forward, backward = (
        jax.jit(mode(function, (0, 1)))
        for mode, function in ((jax.grad, read_real), (jax.jacfwd, read), (jax.grad, read))
    )
    for weight in (0.0, 4.0):
        compared = slice(None if weight else 1, None)  # at weight 0 the derivative by it is one-sided: data alone
        expected = real(weight, 0.5)[compared]
        np.testing.assert_allclose(forward(weight, 0.5)[compared], expected, rtol=1e-8)
        np.testing.assert_allclose(backward(weight, 0.5)[compared], expected, rtol=1e-8)
