"""AcceleGrad against the loop of its paper, its two bounds at every iterate, and what its opening finds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_same_trajectory, run

import nagjax
from nagjax import adaptive, momentum, problems, restart
from nagjax.theory import universal_loops as loops

WRONG = (1e-4, 1e-2, 1.0, 1e2, 1e4)
CURVATURES = np.array([1.0, 0.3, 0.07, 0.011, 0.002])


@functools.cache
def smooth_problems():
    generator = np.random.default_rng(3)
    features = generator.standard_normal((40, 6)) * np.logspace(0, -1, 6)
    labels = np.where(generator.random(40) < 0.5, 1.0, -1.0)
    return {
        "quadratic": problems.quadratic(np.logspace(-3, 0, 12), seed=1, minimizer=generator.standard_normal(12)),
        "chain": problems.nesterov_chain(30, 2.0),
        "logistic": problems.logistic(features, labels, 1e-2),
        "log_sum_exp": problems.log_sum_exp(30, 8, seed=2, temperature=0.3, minimizer=generator.standard_normal(8)),
        "huber": problems.huber(0.05, minimizer=generator.standard_normal(4)),
        "log_cosh": problems.log_cosh(np.logspace(-2, 0, 10), seed=4, minimizer=generator.standard_normal(10)),
    }


PROBLEMS = ("quadratic", "chain", "logistic", "log_sum_exp", "huber", "log_cosh")


def pieces(name):
    """The problem, its gradient for NumPy loops, where to start, and the distance from there."""
    problem = smooth_problems()[name]
    slope = jax.jit(jax.grad(problem.value))
    start = np.zeros(problem.minimizer.shape)
    return problem, lambda x: np.asarray(slope(x)), start, float(np.linalg.norm(problem.minimizer))


def curved(x):
    """Not a quadratic, so that no sequence stays in an eigenspace."""
    return CURVATURES * x + 0.2 * np.tanh(x)


def curved_in_jax(params, k):
    return jnp.asarray(CURVATURES) * params + 0.2 * jnp.tanh(params)


START = np.array([2.0, -1.0, 3.0, 0.5, -4.0])


@pytest.mark.parametrize(("distance", "bound"), [(0.37, 0.0), (5.3, 1.9), (71.0, 0.013)])
def test_accelegrad_is_the_printed_loop_of_three_sequences(distance, bound):
    found = run(adaptive.accelegrad(distance, gradient_bound=bound), curved_in_jax, START, 40)
    assert_same_trajectory(found, loops.accelegrad(curved, START, 40, distance, bound), 1e-12)


def test_the_rule_alone_is_the_printed_coupling_for_any_step_sizes():
    rates = 0.4 + 0.3 * np.sin(np.arange(40))
    table = jnp.asarray(rates)
    tx = optax.chain(optax.scale_by_schedule(lambda k: -table[k]), nagjax.accelerate(momentum.accelegrad()))
    z = y = START
    a, queries, answers = loops.weights(41), [START], [START]
    for t in range(40):
        x = z / a[t] + (1 - 1 / a[t]) * y
        z, y = z - a[t] * rates[t] * curved(x), x - rates[t] * curved(x)
        queries.append(z / a[t + 1] + (1 - 1 / a[t + 1]) * y)
        answers.append(y)
    with jax.numpy_dtype_promotion("standard"):
        found = run(tx, curved_in_jax, START, 40)
    assert_close(found.queries, queries, 1e-12)
    assert_close(found.answers, answers, 1e-12)


def test_a_restart_begins_the_weights_again_and_keeps_the_sum():
    tx = adaptive.accelegrad(9.0, restart=restart.gradient())

    def update(carry, _):
        params, state = carry
        updates, state = tx.update(curved_in_jax(params, 0), state, params)
        params = params + updates
        return (params, state), (params, nagjax.eval_params(params, state), state.inner.age, state.gradient_sum)

    start = jnp.asarray(START)
    queries, answers, ages, sums = jax.lax.scan(update, (start, tx.init(start)), length=120)[1]
    first = int(np.argmin(np.asarray(ages) > 0))  # the update that restarts
    assert 5 < first < 80
    again = np.nonzero(np.asarray(ages[first + 1 :]) == 0)[0]
    length = int(again[0]) if len(again) else 120 - first - 1
    assert length > 5  # the weights grow from the fifth on
    np.testing.assert_array_equal(queries[first], answers[first])
    expected = loops.accelegrad(curved, np.asarray(queries[first]), length, 9.0, float(sums[first]) ** 0.5)
    assert_close(queries[first : first + length + 1], expected.queries, 1e-12)
    assert_close(answers[first : first + length + 1], expected.answers, 1e-12)


@functools.cache
def opened_runs(name):
    """60 updates from each wrong first distance, compiled once."""
    problem, _, start, radius = pieces(name)

    @jax.jit
    @jax.vmap
    def whole(first):
        tx = adaptive.accelegrad(initial=first)

        def update(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(problem.value)(params), state, params)
            return (params + updates, state), (params + updates, nagjax.eval_params(params + updates, state))

        return jax.lax.scan(update, (jnp.asarray(start), tx.init(jnp.asarray(start))), length=60)[1]

    queries, answers = whole(0.37 * radius * jnp.asarray(WRONG))
    rows = zip(WRONG, np.asarray(queries), np.asarray(answers), strict=True)
    return {factor: (np.concatenate([start[None], y]), np.concatenate([start[None], x])) for factor, y, x in rows}


@pytest.mark.parametrize("factor", WRONG)
@pytest.mark.parametrize("name", PROBLEMS)
def test_without_a_distance_it_is_the_loop_with_an_opening(name, factor):
    _, gradient, start, radius = pieces(name)
    first, steps = 0.37 * factor * radius, 25
    opened = loops.opening(gradient, start, first)
    probes = len(opened.points) - 1
    queries, answers = opened_runs(name)[factor]
    assert probes + steps <= 60
    # Interpolation divides by a difference of slopes, which a short first move makes small.
    assert_close(queries[: probes + 1], opened.points, 1e-8)
    assert_close(answers[: probes + 1], opened.points, 1e-8)
    expected = loops.self_tuning(gradient, start, first, steps)
    assert_close(queries[probes : probes + steps + 1], expected.queries, 1e-7)
    assert_close(answers[probes : probes + steps + 1], expected.answers, 1e-7)


@pytest.mark.parametrize("factor", WRONG)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_opening_goes_no_farther_than_it_may(name, factor):
    """r <= 2 |x_0 - x*|, r >= |g_0| / (10 L), no step away from x*, and a slope in the window or a bracketed kink."""
    problem, gradient, start, radius = pieces(name)
    opened = loops.opening(gradient, start, 0.37 * factor * radius)
    size = np.linalg.norm(gradient(start))
    assert 0 < opened.distance <= opened.covered <= 2 * radius * (1 + 1e-12)
    assert opened.covered >= 0.1 * size / problem.smoothness * (1 - 1e-6)
    assert np.linalg.norm(opened.points[-1] - problem.minimizer) <= radius * (1 + 1e-12)
    left = gradient(opened.points[-1]) @ gradient(start) / size**2
    assert left >= 0.5
    assert left <= 0.9 or opened.distance <= 0.1 * opened.covered
    assert len(opened.points) <= 20


def gaps(value, minimum, points):
    return np.asarray(jax.vmap(value)(jnp.asarray(points))) - minimum


def reach(queries, answers, minimizer):
    """The largest |z_t - x*|, t < T, for every T."""
    a = loops.weights(len(queries))[:, None]
    fast = answers + a * (queries - answers)
    return np.maximum.accumulate(np.linalg.norm(fast - minimizer, axis=1))[:-1]


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_smooth_bound_holds_at_every_iterate_on_the_whole_space(name):
    problem, gradient, start, radius = pieces(name)
    distance, steps = 3.0 * radius, 400
    found = run(adaptive.accelegrad(distance), lambda x, k: jax.grad(problem.value)(x), start, steps)
    far = reach(found.queries, found.answers, np.asarray(problem.minimizer))
    assert far[-1] < 1.99 * distance
    first = float(np.linalg.norm(gradient(start)))
    last = gaps(problem.value, problem.minimum, found.answers[1:]) * loops.weights(steps) ** 2
    bounds = [loops.smooth_bound(problem.smoothness, distance, first, r) for r in far]
    assert np.all(last <= bounds)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_smooth_bound_holds_at_every_iterate_and_average_on_a_ball(name):
    problem, gradient, start, radius = pieces(name)
    diameter, steps = 3.0 * radius, 200

    def project(z):
        size = np.linalg.norm(z - start)
        return z if size <= diameter / 2 else start + (z - start) * diameter / (2 * size)

    found = loops.accelegrad(gradient, start, steps, diameter, project=project)
    bound = loops.smooth_bound(problem.smoothness, diameter, float(np.linalg.norm(gradient(start))))
    a = loops.weights(steps)
    assert np.all(gaps(problem.value, problem.minimum, found.answers[1:]) * a**2 <= bound)
    assert np.all(gaps(problem.value, problem.minimum, found.averages[1:]) * np.cumsum(a) <= 2 * bound)


def test_the_smooth_bound_is_not_idle():
    """Some quadratic in one dimension comes within a factor of 200 of it; the log alone is up to 16 there."""
    ratios = []
    for curvature in np.logspace(-6, 0, 61):
        found = loops.accelegrad(lambda x, c=curvature: c * x, np.ones(1), 120, 1.0)
        values = curvature * found.answers[1:, 0] ** 2 / 2 * loops.weights(120) ** 2
        ratios.append(np.max(values) / loops.smooth_bound(1.0, 1.0, curvature))
    assert 0.005 < max(ratios) <= 1


def absolute(x):
    """|A x|_1, its subgradients bounded by the sum of the lengths of the rows."""
    rows = np.array([[1.0, 0.2, 0.0], [0.0, 0.5, 0.1], [0.3, 0.0, 0.9]])
    return rows, jnp.sum(jnp.abs(jnp.asarray(rows) @ x))


@pytest.mark.parametrize("excess", [1.3, 4.0])
def test_the_bound_for_functions_that_are_not_smooth_holds_at_every_iterate(excess):
    """Universality: the same method without any change has the optimal rate there, up to the root of a logarithm."""
    start, steps = np.array([3.0, -2.0, 1.0]), 600
    rows, _ = absolute(jnp.zeros(3))
    lipschitz = float(np.sum(np.linalg.norm(rows, axis=1)))
    distance = excess * float(np.linalg.norm(start))
    slope = jax.grad(lambda x: absolute(x)[1])
    found = run(adaptive.accelegrad(distance), lambda x, k: slope(x), start, steps)
    far = reach(found.queries, found.answers, np.zeros(3))
    first = float(np.linalg.norm(np.asarray(slope(jnp.asarray(start)))))
    last = gaps(lambda x: absolute(x)[1], 0.0, found.answers[1:])
    scaled = last * loops.weights(steps) ** 2
    bounds = [loops.lipschitz_bound(t + 1, lipschitz, distance, first, far[t]) for t in range(steps)]
    ratios = scaled / bounds
    assert np.all(ratios <= 1)
    assert np.max(ratios) > 0.01
    # A fixed step, and gradient descent with it, stays where its steps jump over the kink.
    assert last[-1] < 0.05 * last[0]
