"""Chains as methods, functions that are hard, and budgets of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from nagjax import adaptive, momentum, proximal, restart, solve
from nagjax.solve import Composite

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


@pytest.mark.parametrize("name", ["triple momentum", "item", "fista with restart", "adgd", "acfgm with a prox"])
def test_a_chain_stops_where_its_tolerance_is_met(name):
    tx, prox = CHAINS[name]
    solution = solve.minimize(squares, START, args=(MATRIX, TARGET), prox=prox, method=tx, tol=1e-8, max_iters=5000)
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
    composite, rule = Composite(rosenbrock), getattr(solve, method)()

    def step(state, _):
        state = rule.step(composite, state)
        return state, rosenbrock(state.params)

    _, values = jax.jit(lambda state: jax.lax.scan(step, state, length=3000))(rule.start(composite, start))
    assert float(np.min(values)) < 1e-25
    assert float(values[-1]) < 1e-25
    assert float(np.max(values)) <= 1.3 * float(rosenbrock(start))


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
    slopes = [optax.tree.norm(jax.grad(loss)(p)) for p in (solution.params, params)]
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
@pytest.mark.parametrize(("method", "budgets"), [("default", (250, 2100)), ("boosted", (150, 1300))])
def test_the_acceleration_shows_at_condition_number_1e4(method, budgets):
    fun = quadratic(1e4)
    for tol, budget in zip((1e-3, 1e-10), budgets, strict=True):
        solution = solve.minimize(fun, jnp.zeros(60), method=method, tol=tol)
        assert bool(solution.converged)
        assert int(solution.iterations) <= budget
