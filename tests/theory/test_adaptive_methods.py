"""Adaptive methods against the loops of their papers, and the inequalities of their theorems at every iterate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from composites import CASES, Run, huber, quadratic, run

import nagjax
from nagjax import adaptive, step_sizes
from nagjax.theory import adaptive_loops

STEPS = 50
LASSO, WIDE, CURVED = CASES["lasso"], CASES["wide lasso"], CASES["quadratic"]
EPS = np.finfo(float).eps


def runs(make, numbers, case, steps):
    """`run` of `make(number)` for every number, compiled once."""

    @jax.jit
    @jax.vmap
    def whole(number):
        tx, start = make(number), jnp.asarray(case.start)

        def update(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(case.value)(params)
            updates, state = tx.update(gradient, state, params, value=value)
            params = params + updates
            return (params, state), (params, nagjax.eval_params(params, state), state)

        queries, answers, states = jax.lax.scan(update, (start, tx.init(start)), length=steps)[1]
        return jnp.concatenate([start[None], queries]), jnp.concatenate([start[None], answers]), states

    queries, answers, states = jax.tree.map(np.asarray, whole(jnp.asarray(numbers)))
    lanes = [jax.tree.map(lambda leaf, lane=lane: leaf[lane], states) for lane in range(len(numbers))]
    found = zip(queries, answers, lanes, strict=True)
    return {n: Run(q, x, s.step_size, s) for n, (q, x, s) in zip(numbers, found, strict=True)}


def shortened(found, steps):
    """The first steps of a run."""
    states = jax.tree.map(lambda leaf: leaf[:steps], found.states)
    return Run(found.queries[: steps + 1], found.answers[: steps + 1], found.step_sizes[:steps], states)


@functools.cache
def acfgm_runs(name):
    """400 steps for each alpha, from 0.4 / L on."""
    case = CASES[name]

    def make(alpha):
        return adaptive.acfgm(case.prox, alpha=alpha, initial=0.4 / case.smoothness)

    return runs(make, (0.0, 0.1, 0.5, 1.0), case, 400)


@functools.cache
def proximal_gradient_runs(name, version):
    """200 steps for each first step in units of 1 / L.

    0.83 for the comparison with the loop: 1 makes a coordinate of the quadratic exactly 0, up to rounding, which later
    steps amplify.
    """
    case = CASES[name]

    def make(first):
        initial = first / case.smoothness
        return adaptive.adaptive_proximal_gradient(case.prox, version=version, initial=initial)

    return runs(make, (0.83, 1.0), case, 200)


def assert_same_to_rounding(found, reference, case):
    """Adaptive steps amplify rounding: the tolerance is 100 times what a rounding of x_0 does to the reference."""
    expected, direction = reference(case.start), np.cos(np.arange(len(case.start)))
    nudged = [reference(case.start * (1 + sign * 4 * EPS * direction)) for sign in (-1, 1)]
    for name in ("queries", "answers"):
        right = getattr(expected, name)
        spread = max(np.max(np.abs(getattr(other, name) - right)) for other in nudged)
        assert spread < 1e-7  # else nothing is compared
        np.testing.assert_allclose(getattr(found, name), right, rtol=0, atol=100 * spread + 1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", ["lasso", "wide lasso", "quadratic", "huber 0.05"])
def test_acfgm_is_the_printed_loop(name, alpha):
    case = CASES[name]
    first = 0.4 / case.smoothness
    found = shortened(acfgm_runs(name)[alpha], STEPS)
    assert_same_to_rounding(found, lambda start: adaptive_loops.acfgm(case.loop, start, first, STEPS, alpha), case)
    expected = adaptive_loops.acfgm(case.loop, case.start, first, STEPS, alpha)
    np.testing.assert_allclose(found.states.tau, expected.numbers, rtol=1e-5)


def acfgm_ratios(case, found, first):
    """(tau_k + 1) eta_{k+1} (F(x_k) - F*) 2 beta / |x_start - x*|^2, with the method started at iterate `first`."""
    gaps = case.gaps(found.queries)[first + 1 : -1]
    tau, eta = np.asarray(found.states.tau)[first:-1], found.step_sizes[first + 1 :]
    radius = np.sum((found.queries[first] - case.minimizer) ** 2)
    return (tau + 1) * eta * gaps * 2 * adaptive_loops.ACFGM_BETA / radius


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_the_inequality_of_acfgm_holds_at_every_iterate(name, alpha):
    case = CASES[name]
    ratios = acfgm_ratios(case, acfgm_runs(name)[alpha], 0)
    assert np.max(ratios) <= 1
    assert np.max(ratios) > 0.05


@pytest.mark.parametrize("name", CASES)
def test_the_inequality_of_acfgm_holds_from_where_its_own_first_step_starts_it(name):
    """Ages 0 are probes; age 1 is the first step of the method, or of another try."""
    case = CASES[name]
    found = run(adaptive.acfgm(case.prox), case, 400)
    ages = np.asarray(found.states.age)
    first = int(np.flatnonzero(ages == 1)[-1])
    assert first < 40
    assert np.all(np.diff(ages[first:]) == 1)
    assert np.max(acfgm_ratios(case, found, first)) <= 1
    k = np.arange(1, 401 - first)
    radius = float(np.linalg.norm(found.queries[first] - case.minimizer))
    assert radius <= 10 * case.radius  # a probe on a linear piece grows tenfold, and may pass the minimizer
    assert np.max(k**2 * case.gaps(found.queries)[first + 1 :]) <= 10 * case.smoothness * radius**2


def test_a_first_step_that_is_too_long_makes_acfgm_start_again():
    case = CURVED
    found = run(adaptive.acfgm(initial=30 / case.smoothness), case, 200)
    ages = np.asarray(found.states.age)
    assert ages[:2].tolist() == [1, 1]
    first = int(np.flatnonzero(ages == 1)[-1])
    assert np.max(acfgm_ratios(case, found, first)) <= 1


def test_acfgm_grows_its_steps_on_linear_pieces():
    """|g - g'| = 0: to leave the step would not converge in 400 steps."""
    case = huber(0.01)
    found = run(adaptive.acfgm(initial=0.4), case, 400)
    k = np.arange(1, 401)
    assert np.max(found.step_sizes[:8]) > 1
    assert np.max(k**2 * case.gaps(found.queries)[1:]) <= 3 * case.radius**2


def test_cancellation_in_values_does_not_spoil_the_curvature_of_acfgm():
    """f shifted by 1000 in float32: Bregman distances are rounding, and every estimate still lies in [mu, L]."""
    case = quadratic((1.0, 3.0, 10.0))
    found = run(adaptive.acfgm(initial=0.04), case, 60, dtype=jnp.float32, shift=1000.0)
    estimates = np.asarray(found.states.smoothness)[2:]
    moved = np.linalg.norm(np.diff(found.queries, axis=0), axis=1)[1:-1] > 1e-5
    assert np.sum(moved) > 30
    assert np.all(estimates[moved] <= 10 * (1 + 1e-3))
    assert np.all(estimates[moved] >= 1 - 1e-3)


@pytest.mark.parametrize("name", ["quadratic", "chain", "lasso"])
def test_adgd_is_the_printed_loop(name):
    case = CASES[name]
    firsts = (1e-3 / case.smoothness, 0.5 / case.smoothness)
    for initial, found in runs(lambda first: adaptive.adgd(initial=first), firsts, case, STEPS).items():

        def reference(start, initial=initial):
            return adaptive_loops.adgd(case.loop.gradient, start, initial, STEPS)

        assert_same_to_rounding(found, reference, case)


SMOOTH = [name for name in CASES if CASES[name].prox is None]


@pytest.mark.parametrize("name", SMOOTH)
def test_the_energy_of_adgd_does_not_rise(name):
    """|x_{k+1} - x*|^2 + |x_{k+1} - x_k|^2 / 2 + 2 lambda_k (1 + theta_k) (f(x_k) - f*), of Malitsky and Mishchenko."""
    case = CASES[name]
    found = run(adaptive.adgd(), case, 300)
    x, gaps, sizes = found.queries, case.gaps(found.queries), found.step_sizes
    theta = sizes[1:] / sizes[:-1]
    for k in range(2, 299):
        distance = [np.sum((x[j] - case.minimizer) ** 2) + np.sum((x[j] - x[j - 1]) ** 2) / 2 for j in (k, k + 1)]
        before = distance[0] + 2 * sizes[k] * theta[k - 1] * gaps[k - 1]
        after = distance[1] + 2 * sizes[k] * (1 + theta[k - 1]) * gaps[k]
        assert after <= before * (1 + 1e-9) + 1e-15


@pytest.mark.parametrize("name", ["quadratic", "chain"])
def test_accelerated_adgd_is_the_printed_loop(name):
    case = CASES[name]
    initial, steps = 1e-3 / case.smoothness, 30
    every = runs(lambda growth: adaptive.adgd_accelerated(initial=initial, growth=growth), (0.5, 1.0), case, steps)
    for growth, found in every.items():

        def reference(start, growth=growth):
            return adaptive_loops.adgd_accelerated(case.loop.gradient, start, initial, steps, growth)

        assert_same_to_rounding(found, reference, case)
        np.testing.assert_allclose(found.states.readout, reference(case.start).numbers, atol=1e-5)


def test_accelerated_adgd_is_its_row_of_four_numbers():
    """(m_{k-1}, 1, m_k, m_k), but decay 1 at k = 1 and gain 0 at k = 0, in `accelerate`."""
    case, steps = CASES["chain"], 30
    expected = run(adaptive.adgd_accelerated(initial=1e-3), case, steps)
    m, sizes = jnp.asarray(expected.states.readout), jnp.asarray(expected.step_sizes)

    def row(k, **_):
        decay = jnp.where(k == 1, 1, m[k - 1])
        return nagjax.Coefficients(decay, 1.0, m[k], m[k]), k + 1

    rule = nagjax.Momentum(lambda: jnp.int32(0), row, nesterov=True)
    tx = optax.chain(optax.scale_by_schedule(lambda k: -sizes[k]), nagjax.accelerate(rule))
    with jax.numpy_dtype_promotion("standard"):
        found = run(tx, case, steps)
    np.testing.assert_allclose(found.queries, expected.queries, atol=1e-12)
    np.testing.assert_allclose(found.answers, expected.answers, atol=1e-12)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["lasso", "wide lasso", "quadratic"])
def test_the_adaptive_proximal_gradient_method_is_the_printed_loop(name, version):
    case = CASES[name]
    initial, steps = 0.83 / case.smoothness, 40
    found = shortened(proximal_gradient_runs(name, version)[0.83], steps)

    def reference(start):
        return adaptive_loops.adaptive_proximal_gradient(case.loop, start, initial, steps, version)

    assert_same_to_rounding(found, reference, case)
    assert len(set(np.round(found.step_sizes * case.smoothness, 6))) > 20


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_steps_and_values_of_the_adaptive_proximal_gradient_method_keep_the_theorem(name, version):
    """min F(x_i) - F* <= R^2 / (2 sum alpha_i), and sum alpha_i >= k / (sqrt(2) L), or k / L in version 2."""
    case = CASES[name]
    found = proximal_gradient_runs(name, version)[1.0]
    total = np.cumsum(found.step_sizes)
    best = np.minimum.accumulate(case.gaps(found.queries)[1:])
    assert np.all(best * 2 * total <= case.radius**2 * (1 + 1e-9))
    longest = (1 if version == 2 else 1 / np.sqrt(2)) / case.smoothness
    assert np.all(total >= np.arange(1, 201) * longest * (1 - 1e-9))


@pytest.mark.parametrize("version", [1, 2])
def test_without_a_first_step_the_proximal_gradient_method_starts_with_the_curvature_of_its_probe(version):
    found = run(adaptive.adaptive_proximal_gradient(LASSO.prox, version=version), LASSO, 3)
    moved = np.linalg.norm(found.queries[1] - found.queries[0])
    turned = np.linalg.norm(LASSO.loop.gradient(found.queries[1]) - LASSO.loop.gradient(found.queries[0]))
    assert moved <= 1e-3 * (1 + np.linalg.norm(LASSO.start)) * 1.2
    np.testing.assert_allclose(found.step_sizes[1], moved / turned, rtol=1e-12)
    assert np.asarray(found.states.ratio)[1] == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["lasso", "wide lasso", "quadratic"])
def test_greedy_fista_is_the_printed_loop(name):
    case = CASES[name]
    found = run(adaptive.greedy_fista(case.smoothness, case.prox), case, STEPS)
    assert_same_to_rounding(
        found, lambda start: adaptive_loops.greedy_fista(case.loop, start, case.smoothness, STEPS), case
    )
    assert 0 in np.asarray(found.states.age)


def test_the_safeguard_of_greedy_fista_shortens_its_step_to_one_over_the_smoothness():
    case = CURVED
    found = run(adaptive.greedy_fista(case.smoothness, relaxation=1.9, safeguard=1e-3), case, 40)
    expected = np.maximum(1, 1.9 * 0.96 ** np.arange(40)) / case.smoothness
    np.testing.assert_allclose(found.step_sizes, expected, rtol=1e-12)


METHODS = {
    "curvature": lambda case: step_sizes.curvature(
        nagjax.accelerate(nagjax.momentum.fista(), restart=nagjax.restart.gradient()), prox=case.prox
    ),
    "backtracking": lambda case: step_sizes.backtracking(
        nagjax.accelerate(nagjax.momentum.fista(), restart=nagjax.restart.gradient()), prox=case.prox
    ),
    "growing": lambda case: step_sizes.backtracking(
        nagjax.accelerate(nagjax.momentum.fista(), restart=nagjax.restart.gradient()), prox=case.prox, growth=1.1
    ),
    "acfgm": lambda case: adaptive.acfgm(case.prox),
    "adaptive_proximal_gradient 1": lambda case: adaptive.adaptive_proximal_gradient(case.prox),
    "adaptive_proximal_gradient 2": lambda case: adaptive.adaptive_proximal_gradient(case.prox, version=2),
    "greedy_fista": lambda case: adaptive.greedy_fista(case.smoothness, case.prox),
    "monotone_fista": lambda case: adaptive.monotone_fista(1 / case.smoothness, case.prox),
}


def residuals(case, points):
    """|x - prox(x - s grad f(x))| / s with s = 1/L, relative to the start; in float64."""
    s = 1 / case.smoothness
    found = [np.linalg.norm(x - case.loop.forward_backward(x, s)) for x in np.asarray(points, np.float64)]
    return np.array(found) / found[0]


@pytest.mark.parametrize("name", METHODS)
def test_float32_reaches_a_relative_residual_of_one_millionth_on_a_lasso_and_stays_near(name, single_precision):
    # AC-FGM has no linear rate; in float64 it needs as many.
    found = run(METHODS[name](WIDE), WIDE, 2500 if name == "acfgm" else 400, dtype=jnp.float32)
    relative = residuals(WIDE, found.answers)
    assert found.answers.dtype == np.float32
    assert np.min(relative) < 1e-6
    assert np.max(relative[-50:]) < 1e-5
