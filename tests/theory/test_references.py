"""Each rule against the textbook loop of its method, on a function that is neither quadratic nor separable."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_same_trajectory, from_table, run

import nagjax
from nagjax.theory import averaging_loops, convex_loops, restart_loops, strong_bounds, training_loops

STEPS = 60
# About STEPS roundings on either side, of iterates of size 1 to 10.
TOLERANCE = 1e-12

MATRIX = np.random.default_rng(0).standard_normal((7, 4)) * [1.0, 0.7, 0.4, 0.1]
SHIFT = np.linspace(-1, 1, 7)
RIDGE = 0.02
SMOOTHNESS = float(np.linalg.norm(MATRIX, 2)) ** 2 + RIDGE
START = np.array([2.0, -1.0, 3.0, 0.5])
RATES = 0.3 / SMOOTHNESS * (1 + np.sin(np.arange(STEPS)) ** 2)
MOMENTA = 0.95 * np.cos(np.arange(STEPS + 1)) ** 2


def gradient(x):
    """Of the sum of log cosh(a_i^T x - b_i) plus a ridge."""
    return MATRIX.T @ np.tanh(MATRIX @ x - SHIFT) + RIDGE * x


def traced(x, k):
    return jnp.asarray(MATRIX.T) @ jnp.tanh(jnp.asarray(MATRIX) @ x - jnp.asarray(SHIFT)) + RIDGE * x


def constant_rate(rule, rate=1 / SMOOTHNESS):
    return optax.chain(optax.scale(-rate), nagjax.accelerate(rule))


def assert_same(optimizer, expected, tolerance=TOLERANCE):
    found = run(optimizer, traced, expected.queries[0], len(expected.queries) - 1)
    assert_same_trajectory(found, expected, tolerance)
    assert np.max(np.abs(expected.queries[-1] - expected.queries[0])) > 0.5


def test_the_function_is_smooth_and_strongly_convex_as_the_tests_assume():
    points = np.random.default_rng(1).standard_normal((100, 2, 4)) * 3
    for first, second in points:
        moved, turned = second - first, gradient(second) - gradient(first)
        assert RIDGE * moved @ moved <= moved @ turned <= SMOOTHNESS * moved @ moved
    np.testing.assert_allclose(traced(jnp.asarray(START), 0), gradient(START), rtol=1e-14)


def test_nesterov_under_schedules_is_the_textbook_and_the_sutskever_loop():
    optimizer = nagjax.nesterov(from_table(RATES), from_table(MOMENTA))
    assert_same(optimizer, convex_loops.nesterov(gradient, START, RATES, MOMENTA))
    assert_same(optimizer, training_loops.sutskever(gradient, START, RATES, MOMENTA))


def test_zero_momentum_is_gradient_descent():
    assert_same(nagjax.nesterov(from_table(RATES), 0.0), convex_loops.gradient_descent(gradient, START, RATES))


def test_fista_is_its_loop():
    assert_same(nagjax.fista(1 / SMOOTHNESS), convex_loops.fista(gradient, START, 1 / SMOOTHNESS, STEPS))


@pytest.mark.parametrize("a", [2.0, 4.5])
def test_polynomial_momentum_is_its_loop(a):
    loop = convex_loops.polynomial(gradient, START, 1 / SMOOTHNESS, STEPS, a)
    assert_same(constant_rate(nagjax.momentum.polynomial(a)), loop)


@pytest.mark.parametrize("mu", [0.0, RIDGE])
def test_nesterovs_general_scheme_is_a_schedule_of_its_momenta(mu):
    scheme = strong_bounds.general_scheme(STEPS, mu / SMOOTHNESS, 0.6)
    loop = convex_loops.general_nesterov(gradient, START, SMOOTHNESS, mu, 0.6, STEPS)
    assert_same(nagjax.nesterov(1 / SMOOTHNESS, from_table(scheme.momenta)), loop)


def test_the_strongly_convex_rule_is_the_general_scheme_from_its_fixed_point():
    root = np.sqrt(RIDGE / SMOOTHNESS)
    loop = convex_loops.general_nesterov(gradient, START, SMOOTHNESS, RIDGE, root, STEPS)
    assert_same(constant_rate(nagjax.momentum.strongly_convex(SMOOTHNESS / RIDGE)), loop)


def test_sutskever_momentum_is_its_loop_over_three_stages():
    steps = 520
    momenta = training_loops.sutskever_momenta(steps + 1, 0.8)
    assert sorted(set(momenta)) == pytest.approx([0.5, 0.75, 0.8])
    loop = training_loops.sutskever(gradient, START, np.full(steps, 0.02), momenta)
    assert_same(nagjax.nesterov(0.02, nagjax.momentum.sutskever(0.8)), loop)


def test_demon_is_its_loop_and_ends_without_momentum():
    momenta = training_loops.demon_momenta(STEPS + 1, 0.9, 40)
    assert momenta[0] == pytest.approx(0.9)
    assert np.all(momenta[40:] == 0)
    loop = convex_loops.nesterov(gradient, START, RATES, momenta)
    assert_same(nagjax.nesterov(from_table(RATES), nagjax.momentum.demon(0.9, 40)), loop)


def test_heavy_ball_is_its_loop_under_a_rate_schedule():
    points = training_loops.heavy_ball(gradient, START, RATES, 0.8)
    optimizer = nagjax.nesterov(from_table(RATES), nagjax.momentum.heavy_ball(0.8))
    assert_same(optimizer, convex_loops.Trajectory(points, points))


@pytest.mark.parametrize(("b", "nu"), [(0.9, 0.7), (0.999, 0.7), (0.9, 0.0), (0.9, 1.0)])
def test_quasi_hyperbolic_momentum_is_its_loop(b, nu):
    points = training_loops.quasi_hyperbolic(gradient, START, np.full(STEPS, 0.3), b, nu)
    rule = nagjax.momentum.quasi_hyperbolic(b, nu)
    assert_same(constant_rate(rule, 0.3), convex_loops.Trajectory(points, points))


def test_ogm_is_its_loop_at_every_horizon():
    assert_same(nagjax.ogm(SMOOTHNESS), convex_loops.ogm(gradient, START, SMOOTHNESS, STEPS))


@pytest.mark.parametrize("mu", [RIDGE, RIDGE / 20])
def test_triple_momentum_is_its_loop(mu):
    loop = convex_loops.triple_momentum(gradient, START, SMOOTHNESS, mu, STEPS)
    assert_same(nagjax.triple_momentum(SMOOTHNESS, mu), loop)


@pytest.mark.parametrize("mu", [RIDGE, RIDGE / 20])
def test_item_is_its_loop(mu):
    assert_same(nagjax.item(SMOOTHNESS, mu), convex_loops.item(gradient, START, SMOOTHNESS, mu, STEPS))


def schedule_free(rate, warm_up, b, r, p, decay=0.0):
    rates = from_table(rate * np.minimum((np.arange(STEPS) + 1) / max(warm_up, 1), 1.0))
    rule = nagjax.momentum.schedule_free(b, rates, weight_power=p, count_power=r)
    return optax.chain(optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rates), nagjax.accelerate(rule))


@pytest.mark.parametrize(
    ("warm_up", "b", "r", "p", "decay"),
    [
        (0, 0.9, 0.0, 2.0, 0.0),
        (15, 0.9, 0.0, 2.0, 0.0),
        (15, 0.98, 1.0, 2.0, 0.1),
        (70, 0.5, 0.5, 1.0, 0.0),
        (15, 1.0, 0.0, 0.0, 0.0),
        (15, 0.0, 2.0, 2.0, 0.0),
    ],
)
def test_schedule_free_is_the_authors_loop(warm_up, b, r, p, decay):
    rate = 0.8 / SMOOTHNESS
    loop = averaging_loops.schedule_free(
        gradient, START, rate, STEPS, momentum=b, warm_up=warm_up, count_power=r, weight_power=p, weight_decay=decay
    )
    assert_same(schedule_free(rate, warm_up, b, r, p, decay), loop)


def test_schedule_free_with_a_constant_rate_answers_with_the_mean_of_the_fast_points():
    b, rate = 0.9, 0.5 / SMOOTHNESS
    found = run(schedule_free(rate, 0, b, 0.0, 2.0), traced, START, STEPS)
    fast = (found.queries - b * found.answers) / (1 - b)
    means = np.cumsum(fast[1:], axis=0) / np.arange(1, STEPS + 1)[:, None]
    assert_close(found.answers[1:], means, 1e-11)


@pytest.mark.parametrize(("mu_x", "mu_y"), [(0.9, 0.7), (0.974, 0.9), (0.9, 1.0), (0.0, 0.5)])
def test_primal_averaging_is_its_loop(mu_x, mu_y):
    rates = RATES * 2
    rule = nagjax.momentum.primal_averaging(mu_x, mu_y)
    optimizer = nagjax.nesterov(from_table(rates), rule)
    assert_same(optimizer, averaging_loops.primal_averaging(gradient, START, rates, mu_x, mu_y))


def test_primal_averaging_takes_schedules_of_both_parameters():
    mu_x, mu_y = 0.5 + 0.49 * np.sin(np.arange(STEPS + 1)) ** 2, 0.6 + 0.4 * np.cos(np.arange(STEPS + 1)) ** 2
    rule = nagjax.momentum.primal_averaging(from_table(mu_x), from_table(mu_y))
    loop = averaging_loops.primal_averaging(gradient, START, RATES, mu_x, mu_y)
    assert_same(nagjax.nesterov(from_table(RATES), rule), loop)


@pytest.mark.parametrize("period", [1, 2, 7, 25])
def test_scheduled_restart_is_srsgd_after_its_first_update(period):
    loop = training_loops.srsgd(gradient, START, RATES, period)
    optimizer = nagjax.nesterov(from_table(RATES[1:]), lambda k: k / (k + 3.0), restart=nagjax.restart.every(period))
    # SRSGD begins with the update without momentum that ends each of its periods here.
    np.testing.assert_array_equal(loop.queries[1], loop.answers[1])
    assert_same(optimizer, convex_loops.Trajectory(loop.queries[1:], loop.answers[1:]))


AFRESH = {
    "fista": (nagjax.momentum.fista(), lambda x, n: convex_loops.fista(gradient, x, 1 / SMOOTHNESS, n)),
    "ogm": (nagjax.momentum.ogm(), lambda x, n: convex_loops.ogm(gradient, x, SMOOTHNESS, n)),
    "item": (
        nagjax.momentum.item(SMOOTHNESS / RIDGE),
        lambda x, n: convex_loops.item(gradient, x, SMOOTHNESS, RIDGE, n),
    ),
    "primal averaging": (
        nagjax.momentum.primal_averaging(0.9, 0.7),
        lambda x, n: averaging_loops.primal_averaging(gradient, x, np.full(n, 1 / SMOOTHNESS), 0.9, 0.7),
    ),
    "schedule-free": (
        nagjax.momentum.schedule_free(0.9),
        lambda x, n: averaging_loops.schedule_free(gradient, x, 1 / SMOOTHNESS, n),
    ),
}


@pytest.mark.parametrize("name", AFRESH)
def test_scheduled_restart_runs_any_rule_afresh_from_its_answer(name):
    (rule, loop), period, point = AFRESH[name], 7, START
    queries, answers = [START[None]], [START[None]]
    for _ in range(6):
        lap = loop(point, period)
        point = lap.answers[-1]
        queries += [lap.queries[1:-1], point[None]]
        answers.append(lap.answers[1:])
    optimizer = optax.chain(optax.scale(-1 / SMOOTHNESS), nagjax.accelerate(rule, restart=nagjax.restart.every(period)))
    assert_same(optimizer, convex_loops.Trajectory(np.concatenate(queries), np.concatenate(answers)))


CURVATURES = np.array([1.0, 0.3, 0.03, 0.004])


def quadratic_gradient(x):
    return CURVATURES * x


def quadratic_value(x):
    return float(CURVATURES @ x**2 / 2)


def gradient_margin(progress):
    fall, moved = progress.query - progress.answer, progress.answer - progress.last_answer
    return abs(fall @ moved) / (np.linalg.norm(fall) * np.linalg.norm(moved))


def speed_margin(progress):
    if progress.earlier_answer is None:
        return np.inf
    now = np.linalg.norm(progress.answer - progress.last_answer)
    before = np.linalg.norm(progress.last_answer - progress.earlier_answer)
    return abs(now - before) / before


def value_margin(progress):
    if progress.last_query is None:
        return np.inf
    before = quadratic_value(progress.last_query)
    return abs(quadratic_value(progress.query) - before) / before


@pytest.mark.parametrize(
    ("restart", "test", "margin"),
    [
        (nagjax.restart.gradient(), restart_loops.gradient_restart, gradient_margin),
        (nagjax.restart.speed(), restart_loops.speed_restart(), speed_margin),
        (nagjax.restart.speed(k_min=25), restart_loops.speed_restart(25), speed_margin),
        (nagjax.restart.value(), restart_loops.query_value_restart(quadratic_value), value_margin),
    ],
    ids=["gradient", "speed", "late speed", "value"],
)
def test_restarted_fista_is_its_loop_while_decisions_are_clear(restart, test, margin):
    steps, margins, decisions = 150, [], []

    def recorded(progress):
        margins.append(margin(progress))
        decisions.append(test(progress))
        return decisions[-1]

    loop = restart_loops.restarted_fista(quadratic_gradient, START, 1.0, steps, recorded)
    # Decisions compare numbers that differ by far more than the distance of the two trajectories.
    assert min(margins) > 1e-6
    assert sum(decisions) >= 3
    found = run(
        nagjax.fista(1.0, restart=restart),
        lambda x, k: jnp.asarray(CURVATURES) * x,
        START,
        steps,
        value=lambda x: jnp.sum(jnp.asarray(CURVATURES) * x**2) / 2,
    )
    assert_same_trajectory(found, loop, TOLERANCE)
    landed = np.flatnonzero(np.all(found.queries[2:] == found.answers[2:], axis=1)) + 2
    restarted = np.flatnonzero(decisions) + 1
    # The first update after a restart has no momentum either: FISTA's b_1 is 0.
    assert set(restarted) <= set(landed) <= set(restarted) | set(restarted + 1)


def test_restarts_reach_a_value_that_plain_fista_does_not():
    loop = restart_loops.restarted_fista(quadratic_gradient, START, 1.0, 400, restart_loops.gradient_restart)
    published = restart_loops.restarted_fista(
        quadratic_gradient, START, 1.0, 400, restart_loops.value_restart(quadratic_value)
    )
    plain = convex_loops.fista(quadratic_gradient, START, 1.0, 400)
    assert quadratic_value(loop.answers[-1]) < 1e-6 * quadratic_value(plain.answers[-1])
    assert quadratic_value(published.answers[-1]) < 1e-6 * quadratic_value(plain.answers[-1])


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.0},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"momentum": 0.8},
        {"momentum": 0.8, "dampening": 0.5},
        {"momentum": 0.8, "dampening": 1.0, "weight_decay": 0.1},
        {"momentum": 0.8, "nesterov": True},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("maximize", [False, True], ids=["descend", "ascend"])
def test_pytorch_sgd_is_its_loop_under_a_rate_schedule(options, maximize):
    ahead = gradient if not maximize else lambda x: -gradient(x)
    sign = -1 if maximize else 1
    points = training_loops.pytorch_sgd(ahead, START, RATES, maximize=maximize, **options)
    optimizer = nagjax.conventions.pytorch_sgd(from_table(RATES), maximize=maximize, **options)
    found = run(optimizer, lambda x, k: sign * traced(x, k), START, STEPS)
    assert_close(found.queries, points, TOLERANCE)
    assert np.max(np.abs(points[-1] - points[0])) > 0.5


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_keras_sgd_is_its_loop_under_a_rate_schedule(momentum, nesterov):
    points = training_loops.keras_sgd(gradient, START, RATES, momentum=momentum, nesterov=nesterov)
    optimizer = nagjax.conventions.keras_sgd(from_table(RATES), momentum=momentum, nesterov=nesterov)
    assert_close(run(optimizer, traced, START, STEPS).queries, points, TOLERANCE)
