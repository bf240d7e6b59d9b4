"""Outer methods against their published double loops, closed forms and the methods that they are special cases of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_same_trajectory, from_table, run
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import nagjax
from nagjax import momentum, outer
from nagjax.descent import scale_by_learning_rate
from nagjax.theory import convex_loops, outer_loops, trajectories

WORKERS = 8
PERIOD, ROUNDS = 5, 8
UPDATES = PERIOD * ROUNDS
TOLERANCE = 1e-12
EXACT = 1e-14
MATRIX = np.random.default_rng(0).standard_normal((7, 4)) * [1.0, 0.7, 0.4, 0.1]
START = np.array([2.0, -1.0, 3.0, 0.5])
SMOOTHNESS = float(np.linalg.norm(MATRIX, 2)) ** 2
RATE = 0.5 / SMOOTHNESS
INNER_RATES = RATE / (1 + np.arange(UPDATES + 1) / 30)
SHIFTS = np.random.default_rng(1).standard_normal((WORKERS, 7))
QUADRATIC = np.array([0.01, 0.3, 1.0, 1.7])


def slope(x, shift=0.0):
    """The gradient of a function that is neither quadratic nor separable, for NumPy."""
    return MATRIX.T @ np.tanh(MATRIX @ x - 0.3 + shift) + 0.02 * x


def smooth(x, k, shift=0.0):
    """The same for JAX."""
    return jnp.asarray(MATRIX.T) @ jnp.tanh(jnp.asarray(MATRIX) @ x - 0.3 + shift) + 0.02 * x


def descend(theta, n, shift=0.0):
    return theta - INNER_RATES[n] * slope(theta, shift)


def inner_sgd():
    return optax.chain(scale_by_learning_rate(from_table(INNER_RATES)))


class Momentum:
    """Inner steps of heavy ball, whose buffer lives on through the rounds or starts again in each."""

    def __init__(self, period=None):
        self.velocity, self.period = np.zeros_like(START), period

    def __call__(self, theta, n):
        if self.period is not None and n % self.period == 0:
            self.velocity = np.zeros_like(START)
        self.velocity = 0.6 * self.velocity - RATE * slope(theta)
        return theta + self.velocity


def inner_momentum():
    return optax.chain(optax.scale(-RATE), nagjax.accelerate(momentum.heavy_ball(0.6)))


def follow(optimizer, updates=UPDATES, answer=nagjax.eval_params):
    return run(optimizer, smooth, START, updates, answer=answer)


def assert_same_rounds(found, expected):
    assert_close(found.queries, expected.fast[:, 0], TOLERANCE)
    assert_close(found.answers, expected.answers, TOLERANCE)


@pytest.mark.parametrize(("step", "inner"), [(lambda: descend, inner_sgd), (Momentum, inner_momentum)])
@pytest.mark.parametrize("period", [1, 2, 5])
def test_snoo_is_its_published_double_loop(period, step, inner):
    expected = outer_loops.snoo([step()], START, period, UPDATES // period, rate=0.83, momentum=0.71)
    found = follow(outer.snoo(inner(), 0.83, 0.71, period), UPDATES // period * period)
    assert_same_rounds(found, expected)


def test_snoo_with_schedules_is_nesterovs_textbook_scheme_outside():
    rates, momenta = 0.4 + 0.5 / (1 + np.arange(ROUNDS)), np.linspace(0.1, 0.9, ROUNDS + 1)
    expected = outer_loops.nesterov_rounds([descend], START, PERIOD, rates, momenta)
    tx = outer.snoo(inner_sgd(), from_table(rates), momentum.schedule(from_table(momenta)), PERIOD)
    assert_same_rounds(follow(tx), expected)


def test_the_textbook_scheme_and_the_published_loop_agree_where_nothing_changes():
    published = outer_loops.snoo([descend], START, PERIOD, ROUNDS, rate=0.83, momentum=0.71)
    textbook = outer_loops.nesterov_rounds([descend], START, PERIOD, np.full(ROUNDS, 0.83), np.full(ROUNDS + 1, 0.71))
    for found, expected in zip(published, textbook, strict=True):
        assert_close(found, expected, TOLERANCE)


def test_lookahead_with_a_schedule_is_its_published_double_loop():
    rates = np.linspace(0.2, 0.9, ROUNDS)
    expected = outer_loops.lookahead([descend], START, PERIOD, rates)
    assert_same_rounds(follow(outer.lookahead(inner_sgd(), from_table(rates), PERIOD)), expected)


@pytest.mark.parametrize("period", [1, 2, 7])
def test_the_start_phase_is_a_counter_that_is_tested_before_it_is_incremented(period):
    expected = outer_loops.snoo_with_a_counter(Momentum(), START, period, UPDATES, rate=0.83, momentum=0.71)
    tx = outer.snoo(inner_momentum(), 0.83, 0.71, period, phase="start")
    found = follow(tx, answer=lambda params, state: state.slow)
    assert_close(found.queries, expected.fast[:, 0], TOLERANCE)
    assert_close(found.answers, expected.slow, TOLERANCE)


def test_an_inner_state_that_is_reset_starts_again_in_every_round():
    expected = outer_loops.snoo([Momentum(PERIOD)], START, PERIOD, ROUNDS, rate=0.83, momentum=0.71)
    assert_same_rounds(follow(outer.snoo(inner_momentum(), 0.83, 0.71, PERIOD, reset_inner=True)), expected)
    kept = outer_loops.snoo([Momentum()], START, PERIOD, ROUNDS, rate=0.83, momentum=0.71)
    assert np.max(np.abs(kept.slow[-1] - expected.slow[-1])) > 1e-2


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_slowmo_is_a_heavy_ball_outside(rate):
    def step(theta, n):
        return theta - RATE * slope(theta)

    expected = outer_loops.slowmo([step], START, PERIOD, np.full(ROUNDS, RATE), rate=rate, momentum=0.6)
    heavy_ball = optax.chain(optax.scale(-rate), nagjax.accelerate(momentum.heavy_ball(0.6)))
    assert_same_rounds(follow(outer.periodic(optax.sgd(RATE), heavy_ball, PERIOD)), expected)


@pytest.mark.parametrize("period", [1, 3, 6])
def test_snoo_without_momentum_is_optaxs_lookahead(period, standard_promotion):
    pairs = optax.lookahead(optax.sgd(RATE, 0.6), period, 0.37)
    params = optax.LookaheadParams.init_synced(jnp.asarray(START))
    state, fast, slow = pairs.init(params), [START], [START]
    for k in range(UPDATES):
        updates, state = pairs.update(smooth(params.fast, k), state, params)
        params = optax.apply_updates(params, updates)
        fast.append(params.fast)
        slow.append(params.slow)
    for tx in outer.snoo(optax.sgd(RATE, 0.6), 0.37, 0.0, period), outer.lookahead(optax.sgd(RATE, 0.6), 0.37, period):
        found = follow(tx)
        assert_close(found.queries, np.array(fast), EXACT)
        assert_close(found.answers, np.array(slow), EXACT)


@pytest.mark.parametrize("rule", [0.0, 0.7, momentum.fista(), momentum.ogm()], ids=["0", "0.7", "fista", "ogm"])
def test_with_period_one_and_unit_inner_steps_the_outer_method_is_all_there_is(rule):
    method = optax.chain(optax.scale(-RATE), nagjax.accelerate(rule))
    assert_same_trajectory(follow(outer.periodic(optax.sgd(1.0), method, 1)), follow(method), EXACT)


@pytest.mark.parametrize("b", [0.0, 0.7])
def test_snoo_with_period_one_and_unit_inner_steps_is_nesterovs_method(b):
    expected = convex_loops.nesterov(slope, START, np.full(UPDATES, RATE), np.full(UPDATES + 1, b))
    found = follow(outer.snoo(optax.sgd(1.0), RATE, b, 1))
    assert_same_trajectory(found, expected, EXACT)
    assert_same_trajectory(follow(nagjax.nesterov(RATE, b)), found, EXACT)


@pytest.mark.parametrize("period", [1, 4, 16])
@pytest.mark.parametrize(("rate", "b"), [(0.7, 0.9), (1.0, 0.5), (0.4, 0.0)])
def test_on_a_quadratic_gradient_steps_inside_contract_the_curvatures_of_nesterovs_closed_form(period, rate, b):
    inner_rate, rounds = 0.45, 12
    found = run(
        outer.snoo(optax.sgd(inner_rate), rate, b, period),
        lambda x, k: jnp.asarray(QUADRATIC) * x,
        START,
        rounds * period,
    )
    seen = outer_loops.contraction(inner_rate, QUADRATIC, period)
    t = np.arange(rounds + 1)
    for column, (start, curvature) in enumerate(zip(START, seen, strict=True)):
        slow, answers = found.queries[::period, column], found.answers[::period, column]
        assert_close(slow, start * trajectories.nesterov_queries(t, rate, b, curvature), TOLERANCE)
        assert_close(answers, start * trajectories.nesterov_answers(t, rate, b, curvature), TOLERANCE)


def over_workers(tx, updates, mapped):
    """Fast weights, slow weights and answers of all workers, each with a function of its own, after every update."""

    def worker(start, shift, varying):
        params, state, rows = start, tx.init(start), [(start, start, start)]
        for k in range(updates):
            changes, state = tx.update(smooth(varying(params), k, shift), state, varying(params))
            params = optax.apply_updates(varying(params), changes)
            rows.append((params, state.slow, nagjax.eval_params(params, state)))
        return tuple(jnp.stack([varying(row) for row in column]) for column in zip(*rows, strict=True))

    start, shifts = jnp.asarray(START), jnp.asarray(SHIFTS)
    if mapped == "vmap":
        found = jax.jit(jax.vmap(lambda shift: worker(start, shift, lambda x: x), axis_name="workers"))(shifts)
        return tuple(np.moveaxis(np.asarray(column), 0, 1) for column in found)

    def varying(x):
        return x if "workers" in jax.typeof(x).mat.varying else jax.lax.pcast(x, "workers", to="varying")

    def one(start, shift):
        return tuple(column[:, None] for column in worker(start, shift[0], varying))

    mesh = Mesh(np.array(jax.devices()[:WORKERS]), ("workers",))
    specs = {"in_specs": (P(), P("workers")), "out_specs": P(None, "workers")}
    return tuple(np.asarray(column) for column in jax.jit(jax.shard_map(one, mesh=mesh, **specs))(start, shifts))


@pytest.mark.parametrize("mapped", ["vmap", "shard_map"])
def test_snoo_over_workers_is_dilocos_double_loop(mapped):
    steps = [lambda theta, n, shift=shift: descend(theta, n, shift) for shift in SHIFTS]
    expected = outer_loops.snoo(steps, START, 4, 3, rate=0.7, momentum=0.9)
    tx = outer.snoo(inner_sgd(), 0.7, 0.9, 4, axis_name="workers")
    fast, slow, answers = over_workers(tx, 12, mapped)
    assert_close(fast, expected.fast, TOLERANCE)
    assert np.max(np.ptp(fast[3], axis=0)) > 0.1  # the workers have parted
    for found, loop in (slow, expected.slow), (answers, expected.answers):
        assert_close(found, np.broadcast_to(loop[:, None], found.shape), TOLERANCE)


@pytest.mark.parametrize("mapped", ["vmap", "shard_map"])
def test_with_period_one_and_a_unit_outer_step_workers_are_data_parallel(mapped):
    tx = outer.periodic(optax.sgd(RATE), optax.sgd(1.0), 1, axis_name="workers")
    expected = [START]
    for _ in range(12):
        expected.append(expected[-1] - RATE * np.mean([slope(expected[-1], shift) for shift in SHIFTS], axis=0))
    fast, slow, _ = over_workers(tx, 12, mapped)
    for found in fast, slow:
        assert_close(found, np.broadcast_to(np.array(expected)[:, None], found.shape), EXACT)


def test_adam_in_adam_is_a_double_loop_with_optax(standard_promotion):
    inner, slow_step = optax.adam(0.03), optax.adam(0.2)
    y = s = jnp.asarray(START)
    inner_state, outer_state, expected = inner.init(y), slow_step.init(s), [START]
    for n in range(UPDATES):
        updates, inner_state = inner.update(smooth(y, n), inner_state, y)
        y = optax.apply_updates(y, updates)
        if n % PERIOD == PERIOD - 1:
            updates, outer_state = slow_step.update(s - y, outer_state, s)
            y = s = optax.apply_updates(s, updates)
        expected.append(y)
    found = follow(outer.periodic(inner, slow_step, PERIOD))
    assert_close(found.queries, np.array(expected), TOLERANCE)


def test_two_levels_in_a_third_are_three_nested_loops():
    def middle(theta, n):
        return outer_loops.snoo([lambda x, k: x - RATE * slope(x)], theta, 2, 1, rate=0.8, momentum=0.0).slow[-1]

    expected = outer_loops.snoo([middle], START, 3, 4, rate=0.7, momentum=0.9)
    tx = outer.snoo(outer.lookahead(optax.sgd(RATE), 0.8, 2), 0.7, 0.9, 6, reset_inner=True)
    found = follow(tx, 24)
    assert_close(found.queries[::2], expected.fast[:, 0], TOLERANCE)
    assert_close(found.answers[::2], expected.answers, TOLERANCE)


@pytest.mark.parametrize("m", [0.0, 0.5, 0.9])
def test_primal_averaging_with_gradients_at_the_average_is_the_heavy_ball(m):
    averaged = optax.chain(optax.scale(-RATE / (1 - m)), nagjax.accelerate(momentum.primal_averaging(m, 1.0)))
    ball = optax.chain(optax.scale(-RATE), nagjax.accelerate(momentum.heavy_ball(m)))
    assert_close(follow(averaged).queries, follow(ball).queries, TOLERANCE)
