"""Proximal methods against the textbook loops, their worst cases and their theorems."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from composites import CASES, absolute, huber, lasso, quadratic, run
from helpers import assert_same_trajectory

import nagjax
from nagjax import adaptive, momentum, proximal, restart, step_sizes
from nagjax.theory import convex_loops, proximal_loops, restart_loops, sequences

STEPS = 50
# About STEPS roundings on either side, of iterates of size 1 to 10.
TOLERANCE = 1e-12
LASSO = CASES["lasso"]


def chain(case, rule, scale=1.0, **options):
    s = scale / case.smoothness
    return optax.chain(optax.scale(-s), proximal.step(case.prox, s), nagjax.accelerate(rule, **options))


@pytest.mark.parametrize("name", ["lasso", "wide lasso"])
def test_the_minimizer_of_the_lasso_is_the_constructed_one(name):
    """0 in the subdifferential: grad f = -weight sign(x*) on the support, at most weight beside it."""
    case = CASES[name]
    slope, weight = case.loop.gradient(case.minimizer), case.loop.penalty(np.eye(len(case.start))[0])
    support = case.minimizer != 0
    np.testing.assert_allclose(slope[support], -weight * np.sign(case.minimizer[support]), rtol=1e-12)
    assert np.max(np.abs(slope[~support])) < 0.8 * weight
    assert 0 < np.sum(support) < len(support)


PLAIN = {
    "ista": (0.0, np.zeros(STEPS + 1)),
    "fista": (momentum.fista(), sequences.fista_momenta(STEPS)),
    "polynomial": (momentum.polynomial(2.0), np.maximum(np.arange(STEPS + 1) - 1, 0) / (np.arange(STEPS + 1) + 2)),
    "constant": (0.7, np.full(STEPS + 1, 0.7)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_chain_with_a_proximal_step_is_the_textbook_loop(name):
    rule, momenta = PLAIN[name]
    expected = proximal_loops.proximal_nesterov(LASSO.loop, LASSO.start, 1 / LASSO.smoothness, momenta)
    assert_same_trajectory(run(chain(LASSO, rule), LASSO, STEPS), expected, TOLERANCE)
    if name == "ista":
        plain = proximal_loops.proximal_gradient(LASSO.loop, LASSO.start, 1 / LASSO.smoothness, STEPS)
        assert_same_trajectory(plain, expected, TOLERANCE)


RESTARTS = {
    "gradient": (restart.gradient(), restart_loops.gradient_restart),
    "speed": (restart.speed(k_min=5), restart_loops.speed_restart(5)),
    "value": (restart.value(), restart_loops.query_value_restart(LASSO.loop.objective)),
}


@pytest.mark.parametrize("name", RESTARTS)
def test_restarted_chains_with_a_proximal_step_are_the_textbook_loops(name):
    test, reference = RESTARTS[name]
    steps = 28  # beyond, the values differ by less than their rounding times 1e4
    expected = proximal_loops.restarted_proximal_fista(LASSO.loop, LASSO.start, 1 / LASSO.smoothness, steps, reference)
    tx = chain(LASSO, momentum.fista(), restart=test)
    found = run(tx, LASSO, steps, objective=lambda x: LASSO.value(x) + LASSO.prox.value(x))
    assert_same_trajectory(found, expected, TOLERANCE)
    assert 0 in optax.tree_utils.tree_get(found.states, "age")


def test_the_function_restart_prefers_the_objective_to_the_value():
    test = restart.value()
    carry = jnp.asarray(1.0)
    assert bool(test.test(carry, value=0.0, objective=2.0)[0])
    assert not bool(test.test(carry, value=2.0, objective=0.0)[0])
    assert bool(test.test(carry, value=2.0)[0])


TRAVELS = {
    "ista": (0.0, lambda n: n),
    "polynomial": (momentum.polynomial(2.0), lambda n: (n**2 + 5 * n + 2) / 8),
    "shifted": (lambda k: k / (k + 3.0), lambda n: (n**2 + 7 * n) / 8),
    "fista": (momentum.fista(), lambda n: sequences.momentum_travel(sequences.fista_momenta(n)[: n + 1])),
}


@pytest.mark.parametrize("steps", [1, 2, 5, 12, 30])
@pytest.mark.parametrize("name", TRAVELS)
def test_composite_worst_cases_are_attained(name, steps):
    """L R^2 / (4 H_N) on f = 0, h = (L R / (2 H_N)) |x|; H_N of the table of closed forms."""
    rule, travel = TRAVELS[name]
    bound = 1 / (4 * travel(steps))
    case = absolute(1 / (2 * travel(steps)))
    answers = run(chain(case, rule), case, steps).answers
    assert case.gaps(answers)[-1] == pytest.approx(bound, rel=1e-12)


def test_monotone_fista_is_its_loop_where_points_are_rejected():
    case = CASES["lasso"]
    s = 1 / case.smoothness
    expected = proximal_loops.monotone_fista(case.loop, case.start, s, 40)
    found = run(adaptive.monotone_fista(s, case.prox), case, 40)
    assert_same_trajectory(found, expected, TOLERANCE)
    rejected = np.all(expected.answers[1:] == expected.answers[:-1], axis=1)
    assert 0 < np.sum(rejected) < 20
    np.testing.assert_array_equal(found.states.function_evaluations, np.arange(1, 41))


@pytest.mark.parametrize("name", CASES)
def test_monotone_fista_never_rises_and_keeps_the_rate(name):
    case, n = CASES[name], np.arange(1, 201)
    gaps = case.gaps(run(adaptive.monotone_fista(1 / case.smoothness, case.prox), case, 200).answers)
    assert np.all(np.diff(gaps) <= 1e-13 * (1 + np.abs(case.loop.objective(case.start))))
    assert np.all(gaps[1:] <= 2 * case.smoothness * case.radius**2 / (n + 1) ** 2)


def test_monotone_fista_starts_again_from_its_parameters_after_a_reset():
    case = CASES["lasso"]
    tx = adaptive.monotone_fista(1 / case.smoothness, case.prox)
    last = run(tx, case, 9)
    state = nagjax.reset_momentum(jax.tree.map(lambda leaf: leaf[-1], last.states))
    params = jnp.asarray(last.queries[-1])
    np.testing.assert_array_equal(nagjax.eval_params(params, state), params)
    for _ in range(3):
        slope = jnp.asarray(case.loop.gradient(np.asarray(params)))
        updates, state = tx.update(slope, state, params, value=case.value(params), value_fn=case.value)
        params = params + updates
    again = proximal_loops.monotone_fista(case.loop, last.queries[-1], 1 / case.smoothness, 3)
    np.testing.assert_allclose(params, again.queries[-1], atol=1e-13)


SEARCHES = {  # first step in units of 1/L, growth
    "shrinking": (20.0, 1.0),
    "growing": (0.02, 1.5),
    "both": (7.3, 1.1),
}


def searched(case, first, growth, correct=True):
    inner = nagjax.accelerate(momentum.fista())
    if not correct:
        inner = uncorrected(inner)
    tx = step_sizes.backtracking(inner, prox=case.prox, growth=growth, initial=first / case.smoothness)
    return run(tx, case, 60)


def uncorrected(inner):
    def update(updates, state, params=None, *, step_ratio, **extra):
        del step_ratio
        return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def numbers_t(sizes, following):
    """t_1, ..., t_N from accepted steps and the trials that follow them."""
    t = [1.0]
    for s, trial in zip(sizes[:-1], following[:-1], strict=True):
        t.append((1 + np.sqrt(1 + 4 * s / trial * t[-1] ** 2)) / 2)
    return np.array(t)


@pytest.mark.parametrize("name", ["lasso", "huber 0.05", "quadratic"])
@pytest.mark.parametrize("kind", SEARCHES)
def test_backtracking_is_the_loop(name, kind):
    case, (first, growth) = CASES[name], SEARCHES[kind]
    steps = 25  # margins of the test above rounding
    expected = proximal_loops.backtracking_fista(case.loop, case.start, case.smoothness / first, steps, 2.0, growth)
    tx = step_sizes.backtracking(
        nagjax.accelerate(momentum.fista()), prox=case.prox, growth=growth, initial=first / case.smoothness
    )
    found = run(tx, case, steps)
    np.testing.assert_allclose(found.step_sizes, expected.step_sizes, rtol=1e-12)
    assert_same_trajectory(found, expected, TOLERANCE)


@pytest.mark.parametrize("name", ["lasso", "wide lasso", "quadratic", "chain", "huber 0.05", "huber 0.002"])
@pytest.mark.parametrize("kind", SEARCHES)
def test_the_bound_of_changing_steps_holds_at_every_iterate(name, kind):
    """F(x_k) - F* <= R^2 / (2 s_k t_k^2), with the t of the corrected sequence."""
    case = CASES[name]
    found = searched(case, *SEARCHES[kind])
    t = numbers_t(found.step_sizes, np.asarray(found.states.trial))
    bound = case.radius**2 / (2 * found.step_sizes * t**2)
    assert np.all(case.gaps(found.answers)[1:] <= bound * (1 + 1e-10) + 1e-14)


def test_without_the_correction_the_bound_fails_when_steps_grow():
    case = huber(0.002)
    found = searched(case, 0.02, 1.5, correct=False)
    t = sequences.fista_t(60)[1:]
    bound = case.radius**2 / (2 * found.step_sizes * t**2)
    assert np.max(case.gaps(found.answers)[1:] / bound) > 1.2


@pytest.mark.parametrize("name", CASES)
def test_backtracking_without_growth_has_the_rate_of_beck_and_teboulle(name):
    case, n = CASES[name], np.arange(1, 201)
    tx = step_sizes.backtracking(nagjax.accelerate(momentum.fista()), prox=case.prox, initial=100.0)
    found = run(tx, case, 200)
    assert np.all(np.diff(found.step_sizes) <= 0)
    assert np.all(found.step_sizes >= 0.5 / case.smoothness * (1 - 1e-12))
    bound = 2 * 2 * case.smoothness * case.radius**2 / (n + 1) ** 2
    assert np.all(case.gaps(found.answers)[1:] <= bound + 1e-14)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_first_search_finds_a_step_between_half_and_twice_the_inverse_of_the_curvature(scale):
    """Of a scalar quadratic, where every point shows L; without an initial step."""
    case = quadratic((scale,))
    found = run(step_sizes.backtracking(nagjax.accelerate(0.0)), case, 1)
    assert 0.5 <= found.step_sizes[0] * scale <= 1
    assert int(found.states.function_evaluations[0]) < 60


@pytest.mark.parametrize("horizon", [1, 3, 7])
def test_pogm_without_a_penalty_is_the_optimized_gradient_method(horizon):
    case = CASES["chain"]
    found = proximal_loops.pogm(case.loop, case.start, case.smoothness, horizon)
    expected = convex_loops.ogm(case.loop.gradient, case.start, case.smoothness, horizon)
    np.testing.assert_allclose(found.answers[-1], expected.answers[-1], atol=1e-13)


POGM_WORST = [0.1666667, 0.0720770, 0.0429008, 0.0289732, 0.0210228, 0.0160038]


@pytest.mark.parametrize("name", ["lasso", "wide lasso", "chain", "huber 0.05"])
def test_pogm_stays_below_its_exact_worst_case(name):
    case = CASES[name]
    for horizon, worst in enumerate(POGM_WORST, 1):
        gap = case.gaps(proximal_loops.pogm(case.loop, case.start, case.smoothness, horizon).answers)[-1]
        assert gap <= worst * (1 + 1e-6) * case.smoothness * case.radius**2


def test_pogm_attains_its_worst_case_of_one_step():
    """L R^2 / 6, on h = |x| / 3."""
    case = absolute(1 / 3)
    gap = case.gaps(proximal_loops.pogm(case.loop, case.start, 1.0, 1).answers)[-1]
    assert gap == pytest.approx(1 / 6, rel=1e-12)


def test_a_lasso_of_another_seed_is_another_problem():
    assert not np.allclose(lasso(1).minimizer, lasso(2).minimizer)
