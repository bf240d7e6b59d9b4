"""Chains as methods, functions that are hard, budgets of steps, and every proximal operator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from nagjax import adaptive, momentum, proximal, restart, solve
from nagjax.solve import Status

GENERATOR = np.random.default_rng(1)
MATRIX = jnp.asarray(GENERATOR.standard_normal((20, 12)))
TARGET = jnp.asarray(3 * GENERATOR.standard_normal(20))
SPECTRUM = np.linalg.svd(MATRIX, compute_uv=False) ** 2
SMOOTHNESS, CONVEXITY = float(SPECTRUM[0]), float(SPECTRUM[-1])
START = jnp.zeros(12)
ANSWER = np.linalg.lstsq(MATRIX, TARGET, rcond=None)[0]
LASSO = proximal.l1(3.0)


def squares(x, matrix, target):
    return jnp.sum((matrix @ x.reshape(-1) - target) ** 2) / 2


def by_hand(tx, steps):
    """The answer of a chain after a number of updates, in a plain loop."""
    params, state = START, tx.init(START)
    update = jax.jit(tx.update)
    for _ in range(steps):
        value, gradient = jax.value_and_grad(squares)(params, MATRIX, TARGET)
        updates, state = update(gradient, state, params, value=value, grad=gradient)
        params = optax.apply_updates(params, updates)
    return nagjax.eval_params(params, state)


CHAINS = {
    "ogm": (nagjax.ogm(SMOOTHNESS), None),
    "triple momentum": (nagjax.triple_momentum(SMOOTHNESS, CONVEXITY), None),
    "item": (nagjax.item(SMOOTHNESS, CONVEXITY), None),
    "fista": (nagjax.fista(1 / SMOOTHNESS), None),
    "fista with a prox": (nagjax.fista(1 / SMOOTHNESS, LASSO), LASSO),
    "fista with restart": (nagjax.fista(1 / SMOOTHNESS, LASSO, restart=restart.gradient()), LASSO),
    "nesterov": (nagjax.nesterov(1 / SMOOTHNESS, 0.8), None),
    "adgd": (adaptive.adgd(), None),
    "acfgm": (adaptive.acfgm(), None),
    "acfgm with a prox": (adaptive.acfgm(prox=LASSO), LASSO),
    "an Optax chain": (optax.chain(optax.scale(-1 / SMOOTHNESS), nagjax.accelerate(momentum.fista())), None),
}


@pytest.mark.parametrize("name", list(CHAINS))
def test_a_chain_attains_the_answer_that_it_has_when_run_by_hand(name):
    tx, prox = CHAINS[name]
    options = {"args": (MATRIX, TARGET), "prox": prox, "method": tx}
    short = solve.minimize(squares, START, tol=0.0, max_iters=25, **options)
    assert int(short.iterations) == 25
    assert int(short.evaluations) == 26
    np.testing.assert_allclose(short.params, by_hand(tx, 25), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["ogm", "triple momentum", "item", "fista with restart", "adgd", "acfgm with a prox"])
def test_a_chain_stops_where_its_tolerance_is_met(name):
    tx, prox = CHAINS[name]
    solution = solve.minimize(
        squares, START, args=(MATRIX, TARGET), prox=prox, method=tx, tol=1e-8, max_iters=5000
    )
    assert bool(solution.converged)
    x, step = solution.params, float(solution.state.report.step_size)
    gradient = MATRIX.T @ (MATRIX @ x - TARGET)
    moved = x - step * gradient if prox is None else prox.prox(x - step * gradient, step)
    residual = float(jnp.linalg.norm(x - moved)) / step / float(solution.state.report.scale)
    assert residual == pytest.approx(float(solution.residual), rel=1e-4)
    assert residual <= 1e-8
    if prox is None:
        np.testing.assert_allclose(x, ANSWER, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["default", "boosted"])
@pytest.mark.parametrize("size", [2, 20])
def test_rosenbrock_is_minimized_without_a_rise(method, size):
    def rosenbrock(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    start = jnp.where(jnp.arange(size) % 2 == 0, -1.2, 1.0)
    solution = solve.minimize(rosenbrock, start, method=method, tol=0.0, max_iters=3000, history=True)
    assert float(rosenbrock(solution.params)) < 1e-25
    np.testing.assert_allclose(solution.params, np.ones(size), rtol=0, atol=1e-11)
    assert float(np.nanmax(solution.history.value)) <= 1.3 * float(rosenbrock(start))


@pytest.mark.parametrize("method", ["default", "boosted"])
def test_a_small_network_comes_to_a_stationary_point(method):
    generator = np.random.default_rng(4)
    inputs = jnp.asarray(generator.standard_normal((50, 5)))
    outputs = jnp.sin(inputs[:, 0]) * inputs[:, 1]
    shapes = {"hidden": (5, 10), "bias": (10,), "out": (10,), "shift": ()}
    params = {name: jnp.asarray(0.5 * generator.standard_normal(shape)) for name, shape in shapes.items()}

    def loss(p):
        hidden = jnp.tanh(inputs @ p["hidden"] + jnp.broadcast_to(p["bias"], (50, 10)))
        return jnp.mean((hidden @ p["out"] + p["shift"] - outputs) ** 2)

    solution = solve.minimize(loss, params, method=method, tol=1e-4, max_iters=20_000)
    assert bool(solution.converged)
    slopes = [optax.global_norm(jax.grad(loss)(p)) for p in (solution.params, params)]
    assert float(slopes[0]) < 1e-3 * float(slopes[1])


@pytest.mark.parametrize("method", ["default", "boosted"])
@pytest.mark.parametrize("size", [1e8, 1e11])
def test_a_mean_of_exponentials_is_minimized_from_far_up_the_wall(method, size):
    rows = jnp.asarray(np.random.default_rng(6).standard_normal((200, 8)))

    def fun(x):
        return jnp.mean(jnp.exp(rows @ x))

    direction = rows[0] / jnp.linalg.norm(rows[0])
    distance = jnp.linspace(0.0, 60.0, 6001)
    values = jax.vmap(lambda t: fun(t * direction))(distance)
    start = distance[int(jnp.argmax(values > size))] * direction
    far = solve.minimize(fun, start, method=method, tol=1e-16, max_iters=5000)
    near = solve.minimize(fun, jnp.zeros(8), method=method, tol=1e-10)
    assert float(fun(start)) >= size
    assert float(far.value) == pytest.approx(float(near.value), rel=1e-9)


def quadratic(condition, size=60):
    generator = np.random.default_rng(7)
    basis = np.linalg.qr(generator.standard_normal((size, size)))[0]
    root = jnp.asarray(basis * np.sqrt(np.geomspace(1 / condition, 1, size)))
    return lambda x: jnp.sum((root.T @ (x - 1)) ** 2) / 2


# 1.5 times what the method needed when the budget was set; Nesterov's constant momentum needs about sqrt(condition)
# times log(1 / tol) steps: 690 and 2,300 at condition number 1e4 (1e-3, 1e-10).
@pytest.mark.parametrize(("method", "budgets"), [("default", (250, 900)), ("boosted", (150, 450))])
def test_the_acceleration_shows_at_condition_number_1e4(method, budgets):
    fun = quadratic(1e4)
    for tol, budget in zip((1e-3, 1e-10), budgets, strict=True):
        solution = solve.minimize(fun, jnp.zeros(60), method=method, tol=tol)
        assert bool(solution.converged)
        assert int(solution.iterations) <= budget


def operators():
    ones = jnp.ones(12)
    flat, square, wide = (12,), (4, 3), (3, 4)
    rows = jnp.asarray(np.random.default_rng(8).standard_normal((3, 12)))
    return {
        "zero": (proximal.zero(), flat),
        "l1": (LASSO, flat),
        "squared_l2": (proximal.squared_l2(2.0), flat),
        "elastic_net": (proximal.elastic_net(3.0, 2.0), flat),
        "huber": (proximal.huber(3.0, 0.1), flat),
        "log_barrier": (proximal.log_barrier(0.3), flat),
        "box": (proximal.box(-0.1, 0.2), flat),
        "nonnegative": (proximal.nonnegative(), flat),
        "linf_ball": (proximal.linf_ball(0.2), flat),
        "l1_ball": (proximal.l1_ball(0.5), flat),
        "l2_ball": (proximal.l2_ball(0.3), flat),
        "simplex": (proximal.simplex(1.0), flat),
        "l2": (proximal.l2(5.0), flat),
        "linf": (proximal.linf(5.0), flat),
        "hyperplane": (proximal.hyperplane(ones, 1.0), flat),
        "half_space": (proximal.half_space(ones, -1.0), flat),
        "affine": (proximal.affine(rows, jnp.ones(3)), flat),
        "group_lasso": (proximal.group_lasso(4.0, group_size=3), flat),
        "sparse_group_lasso": (proximal.sparse_group_lasso(1.0, 3.0, group_size=3), flat),
        "total_variation": (proximal.total_variation(2.0), flat),
        "nuclear": (proximal.nuclear(4.0), wide),
        "total_variation_2d": (proximal.total_variation_2d(2.0), square),
        "translate": (proximal.translate(LASSO, ones), flat),
        "scale": (proximal.scale(LASSO, 2.0), flat),
        "per_leaf": (proximal.per_leaf(LASSO), flat),
    }


def check_operator(name, method):
    prox, shape = operators()[name]
    start = jnp.ones(shape) if name == "log_barrier" else jnp.zeros(shape)
    tol = 1e-6 if name == "total_variation_2d" else 1e-9  # its operator is a search of its own
    solution = solve.minimize(
        squares, start, args=(MATRIX, TARGET), prox=prox, method=method, tol=tol, max_iters=500
    )
    assert int(solution.status) == Status.CONVERGED
    x = solution.params
    gradient = jax.grad(squares)(x, MATRIX, TARGET)
    # Optimality in its own right: F at other feasible points, all along the segment to them, is not smaller.
    objective = squares(x, MATRIX, TARGET) + prox.value(x)
    assert float(solution.value) == pytest.approx(float(objective), rel=1e-9)
    for seed in range(5):
        other = prox.prox(x + jnp.asarray(np.random.default_rng(seed).standard_normal(shape)), 0.1)
        # h is convex: h(other) - h(x) >= <v, other - x> for the subgradient v = -gradient.
        gain = prox.value(other) - prox.value(x) + jnp.sum(gradient * (other - x))
        assert float(gain) >= -3 * tol * float(jnp.linalg.norm(MATRIX.T @ TARGET) * jnp.linalg.norm(other - x))
    for step in (0.3 / SMOOTHNESS, 3.0):
        moved = prox.prox(x - step * gradient, step)
        residual = float(jnp.linalg.norm((x - moved).reshape(-1))) / step
        assert residual <= 20 * tol * float(solution.state.report.scale)


NAMES = list(operators())


@pytest.mark.parametrize(("name", "method"), [(n, ("default", "boosted")[i % 2]) for i, n in enumerate(NAMES)])
def test_the_answer_with_every_operator_is_optimal(name, method):
    check_operator(name, method)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [(n, ("boosted", "default")[i % 2]) for i, n in enumerate(NAMES)])
def test_the_answer_with_every_operator_is_optimal_by_the_other_method_too(name, method):
    check_operator(name, method)
