"""Rules for stochastic gradients: the published recursions, and the theorem of each where plain Nesterov fails."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_same_trajectory, from_table, run

import nagjax
from nagjax import momentum
from nagjax.theory import stochastic_loops, training_loops
from nagjax.theory.stochastic_loops import gaussian_moments, multiplicative_moments, spectral_radius

STEPS = 40
TOLERANCE = 1e-12
MATRIX = np.random.default_rng(5).standard_normal((6, 4)) * [1.0, 0.6, 0.3, 0.1]
START = np.array([2.0, -1.0, 3.0, 0.5])
K = np.arange(STEPS + 1)
ETA, ALPHA = 0.1 * (1 + np.sin(K) ** 2), 0.05 * (1 + np.cos(K) ** 2)
RHO = 0.9 * np.cos(K) ** 2


def gradient(x):
    return MATRIX.T @ np.tanh(MATRIX @ x) + 0.02 * x


def traced(x, k):
    return jnp.asarray(MATRIX.T) @ jnp.tanh(jnp.asarray(MATRIX) @ x) + 0.02 * x


def follow(rule, rate=1.0):
    return run(optax.chain(optax.scale(-rate), nagjax.accelerate(rule)), traced, START, STEPS)


def numbers(rule, count=1):
    """The four numbers of an update, after `count` of them."""
    carry = rule.init()
    for _ in range(count):
        four, carry = rule.next(carry)
    return [float(number) for number in four]


def test_agnes_is_the_authors_loop_under_schedules():
    rule = momentum.agnes(from_table(ETA), from_table(ALPHA), from_table(RHO))
    assert_same_trajectory(follow(rule), stochastic_loops.agnes(gradient, START, ETA[:-1], ALPHA, RHO[:-1]), TOLERANCE)


def test_mass_is_the_papers_loop_under_schedules():
    gamma, eta_2 = 0.2 + 0.5 * np.cos(K) ** 2, 0.01 * (1 + np.sin(3 * K))
    rule = momentum.mass(from_table(ETA), from_table(eta_2), from_table(gamma))
    loop = stochastic_loops.mass(gradient, START, ETA[:-1], eta_2[:-1], gamma[:-1])
    assert_same_trajectory(follow(rule), loop, TOLERANCE)


def test_mass_is_the_released_loop():
    rate, alpha, kappa = 0.1, 0.05, 12.0
    rule = momentum.mass(rate, rate * (1 - 1 / kappa) / (1 + alpha), (1 - alpha) / (1 + alpha))
    loop = stochastic_loops.mass_released(gradient, START, rate, alpha, kappa, STEPS)
    assert_close(follow(rule).queries, loop, TOLERANCE)


def test_mass_without_gain_is_gradient_descent():
    plain = follow(momentum.mass(0.1, 0.05, 0.5))
    assert_close(plain.queries, follow(momentum.constant(0.0), 0.1).queries, TOLERANCE)


@pytest.mark.parametrize(("kappa", "xi", "c"), [(1000.0, 10.0, 0.7), (50.0, 3.0, 0.9), (20.0, 10.0, 0.1)])
def test_accsgd_is_the_authors_loop(kappa, xi, c):
    rule = momentum.accsgd(kappa, xi, c)
    loop = stochastic_loops.accsgd(gradient, START, ETA[:-1], kappa, xi, c)
    found = run(
        optax.chain(optax.scale_by_schedule(lambda k: -from_table(ETA)(k)), nagjax.accelerate(rule)),
        traced,
        START,
        STEPS,
    )
    assert_close(found.queries, loop, TOLERANCE)
    assert_close(found.answers, loop, TOLERANCE)


def test_accsgd_with_no_advantage_is_gradient_descent():
    assert_close(
        follow(momentum.accsgd(20.0, 10.0, 0.1), 0.2).queries, follow(momentum.constant(0.0), 0.2).queries, TOLERANCE
    )


@pytest.mark.parametrize("fixed_gamma", [False, True], ids=["paper", "nag4"])
def test_nag_gs_is_the_papers_loop_under_schedules(fixed_gamma):
    alpha = 0.3 * (1 + np.sin(K) ** 2)
    rule = momentum.nag_gs(from_table(alpha), 0.7, 1.3, fixed_gamma=fixed_gamma)
    loop = stochastic_loops.nag_gs(gradient, START, alpha[:-1], 0.7, 1.3, fixed_gamma=fixed_gamma)
    found = follow(rule)
    assert_close(found.queries, loop, TOLERANCE)
    assert bool(np.all(found.queries[1] == START)) != fixed_gamma


@pytest.mark.parametrize("fixed_gamma", [False, True], ids=["paper", "nag4"])
@pytest.mark.parametrize(("first", "last"), [(0.0, 0.5), (0.5, 0.0)], ids=["warm-up from 0", "decay to 0"])
def test_nag_gs_bears_steps_of_zero(first, last, fixed_gamma):
    alpha = np.clip(first + (last - first) * K / 20, 0, 0.5)
    assert np.sum(alpha == 0) == (1 if first == 0 else 21)
    rule = momentum.nag_gs(from_table(alpha), 0.7, 1.3, fixed_gamma=fixed_gamma)
    loop = stochastic_loops.nag_gs(gradient, START, alpha[:-1], 0.7, 1.3, fixed_gamma=fixed_gamma)
    assert_close(follow(rule).queries, loop, TOLERANCE)


def test_an_update_of_nag_gs_without_a_step_forgets_the_velocity():
    alpha = np.where(K == 10, 0.0, 0.4)
    found = follow(momentum.nag_gs(from_table(alpha), 0.7, 1.3, fixed_gamma=True)).queries
    np.testing.assert_array_equal(found[11], found[10])
    afresh = run(
        optax.chain(
            optax.scale(-1.0), nagjax.accelerate(momentum.nag_gs(from_table(alpha[11:]), 0.7, 1.3, fixed_gamma=True))
        ),
        traced,
        found[11],
        STEPS - 11,
    )
    assert_close(found[11:], afresh.queries, TOLERANCE)


def test_nag_gs_with_a_fixed_gamma_is_the_heavy_ball():
    alpha, mu, gamma = 0.3, 0.7, 1.3
    share = alpha * mu + gamma
    ball = momentum.heavy_ball(gamma / (share * (1 + alpha)))
    found = follow(momentum.nag_gs(alpha, mu, gamma, fixed_gamma=True))
    assert_close(found.queries, follow(ball, alpha**2 / ((1 + alpha) * share)).queries, TOLERANCE)


@pytest.mark.parametrize("b", [0.5, 0.9])
def test_agnes_and_mass_contain_nesterovs_method_and_one_another(b):
    nesterov = follow(momentum.constant(b), 0.1)
    assert_same_trajectory(follow(momentum.agnes(0.1, 0.1, b)), nesterov, TOLERANCE)
    assert_same_trajectory(follow(momentum.mass(0.1, 0.0, b)), nesterov, TOLERANCE)
    agnes = follow(momentum.agnes(0.1, 0.03, b))
    assert_same_trajectory(follow(momentum.mass(0.1, b * (0.1 - 0.03), b)), agnes, TOLERANCE)


@pytest.mark.parametrize("periods", [1, 7, np.where(np.arange(STEPS) < 20, 5, 9)], ids=["1", "7", "5 then 9"])
def test_srsgd_is_the_papers_loop(periods):
    table = np.broadcast_to(periods, STEPS)
    rule = momentum.srsgd(int(periods) if np.ndim(periods) == 0 else from_table(table))
    rates = np.full(STEPS, 0.2)
    assert_same_trajectory(follow(rule, 0.2), training_loops.srsgd(gradient, START, rates, table), TOLERANCE)


# The theorems, from exact second moments: of the four numbers alone, so a wrong coefficient fails.


def chained(optimizer):
    """The four numbers of a chain that scales gradients by -1 before `accelerate`."""
    state = optimizer.init(jnp.zeros(2))
    # A unit gradient at zero velocity, then none: the response of the two updates gives the numbers.
    first, state = optimizer.update(jnp.array([-1.0, 0.0]), state)
    velocity = nagjax.velocity(state)[0]
    second, later = optimizer.update(jnp.zeros(2), state)
    decay = nagjax.velocity(later)[0] / velocity
    gain = second[0] / nagjax.velocity(later)[0]
    return [float(decay), float(first[0] - gain), float(gain), float(optax.tree_utils.tree_get(later, "readout"))]


def standard(q):
    return (1 - np.sqrt(q)) / (1 + np.sqrt(q))


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0, 20.0])
@pytest.mark.parametrize("q", [0.1, 0.01, 1e-4])
def test_agnes_has_its_rate_under_multiplicative_noise(noise, q):
    smoothness = 2.0
    numbers = chained(nagjax.agnes(smoothness, noise, q * smoothness))
    for curvature in smoothness * np.geomspace(q, 1, 50):
        radius = spectral_radius(multiplicative_moments(numbers, curvature, noise))
        assert radius <= 1 - np.sqrt(q) / (1 + noise) + 1e-12


@pytest.mark.parametrize("traced_number", [None, "smoothness", "noise", "strong_convexity"])
def test_agnes_of_the_easiest_function_is_gradient_descent(traced_number):
    """At q = 1 without noise alpha is 0/0 and rho is 0; numbers, arrays and traced numbers are the same."""
    arguments = {"smoothness": 4.0, "noise": 0.0, "strong_convexity": 4.0}

    def two_updates(**changed):
        optimizer = nagjax.agnes(**arguments | changed)
        first, state = optimizer.update(jnp.array([1.0, -2.0]), optimizer.init(jnp.zeros(2)))
        second, _ = optimizer.update(jnp.array([4.0, 8.0]), state)
        return jnp.stack([first, second])

    expected = -np.array([[1.0, -2.0], [4.0, 8.0]]) / 4
    if traced_number is None:
        np.testing.assert_allclose(two_updates(), expected, rtol=1e-15)
        return
    value = arguments[traced_number]
    np.testing.assert_allclose(two_updates(**{traced_number: jnp.float64(value)}), expected, rtol=1e-15)
    found = jax.jit(lambda number: two_updates(**{traced_number: number}))(value)
    np.testing.assert_allclose(found, expected, rtol=1e-15)


@pytest.mark.parametrize("noise", [3.0, 20.0])
@pytest.mark.parametrize("q", [0.01, 1e-4])
def test_nesterov_with_the_steps_of_agnes_diverges_under_that_noise(noise, q):
    step = 1 / (1 + noise)
    nesterov = [standard(q), step, standard(q) * step, standard(q) * step]
    assert max(spectral_radius(multiplicative_moments(nesterov, c, noise)) for c in np.geomspace(q, 1, 50)) > 1.1


@pytest.mark.parametrize("noise", [0.0, 1.0, 5.0, 20.0])
def test_agnes_for_convex_functions_has_its_rate_at_every_iterate(noise):
    """n^2 E f/(L R^2 (1 + noise)^2) stays below a constant, for every curvature; the observed one is 1.35."""
    optimizer = nagjax.agnes(1.0, noise)
    rule_steps = 400

    @jax.jit
    def coefficients():
        def body(state, _):
            before = state
            first, state = optimizer.update(jnp.float64(-1.0), before)
            still, _ = optimizer.update(jnp.float64(0.0), before)
            return state, (first, still, before[1].velocity, state[1].velocity, state[1].readout)

        return jax.lax.scan(body, optimizer.init(jnp.float64(0.0)), length=rule_steps)[1]

    first, still, before, after, readout = map(np.asarray, coefficients())
    # after = decay before + 1; first - still = direct + gain; still = gain decay before.
    decay = np.divide(after - 1, before, out=np.zeros_like(before), where=before != 0)
    gain = np.divide(still, decay * before, out=np.zeros_like(before), where=decay * before != 0)
    direct = first - still - gain
    for curvature in np.geomspace(1e-4, 1, 30):
        moments = np.array([1.0, 0, 0, 0])
        for n in range(1, rule_steps):
            four = (decay[n - 1], direct[n - 1], gain[n - 1], readout[n - 1])
            if n == 1:  # zero velocity does not show its gain, which is the readout
                four = (0.0, first[0] - readout[0], readout[0], readout[0])
            moments = multiplicative_moments(four, curvature, noise) @ moments
            answer = np.array([1.0, -four[3]])
            expected = curvature / 2 * float(np.kron(answer, answer) @ moments)
            assert n**2 * expected / (1 + noise) ** 2 <= 1.4


SPECTRA = {
    "two": [1.0, 0.01],
    "far": [1.0, 1e-4],
    "one large": [1.0, *[1e-3] * 10],
    "even": list(np.geomspace(1e-3, 1, 8)),
}
over_spectra = pytest.mark.parametrize("curvatures", SPECTRA.values(), ids=list(SPECTRA))


def gaussian_numbers(curvatures):
    """L1, the condition number and the statistical condition number of Gaussian examples."""
    curvatures = np.asarray(curvatures)
    smoothness = 2 * curvatures.max() + curvatures.sum()
    return smoothness, smoothness / curvatures.min(), len(curvatures) + 2.0


@over_spectra
def test_mass_has_its_rate_where_the_model_interpolates_and_nesterov_diverges(curvatures):
    smoothness, kappa, statistical = gaussian_numbers(curvatures)
    four = chained(nagjax.mass(smoothness, min(curvatures), statistical))
    assert spectral_radius(gaussian_moments(four, curvatures)) <= 1 - 1 / np.sqrt(kappa * statistical)
    gamma = four[0]
    nesterov = [gamma, 1 / smoothness, gamma / smoothness, gamma / smoothness]
    assert spectral_radius(gaussian_moments(nesterov, curvatures)) > 1.3
    descent = [0.0, 1 / smoothness, 0.0, 0.0]
    assert spectral_radius(gaussian_moments(descent, curvatures)) > 1 - 3 / kappa


@over_spectra
def test_mass_contracts_at_exactly_one_minus_alpha_without_noise(curvatures):
    """At k~ = 1, where it is Nesterov's method, on every curvature between mu and L."""
    smoothness, strong_convexity = 1.0, 0.01
    decay, direct, gain, _ = chained(nagjax.mass(smoothness, strong_convexity, 1.0))
    radii = []
    for curvature in np.geomspace(strong_convexity, smoothness, 40):
        update = np.array([[1 - curvature * (direct + gain), gain * decay], [-curvature, decay]])
        radii.append(np.max(np.abs(np.linalg.eigvals(update))))
    np.testing.assert_allclose(max(radii), 1 - 0.1, rtol=1e-6)


@over_spectra
def test_accsgd_beats_every_constant_rate_of_sgd_where_nesterov_with_its_rate_diverges(curvatures):
    smoothness, kappa, statistical = gaussian_numbers(curvatures)
    four = np.array(numbers(momentum.accsgd(kappa, np.sqrt(kappa / statistical))))
    accelerated = spectral_radius(gaussian_moments([four[0], *four[1:] / smoothness], curvatures))
    best = min(
        spectral_radius(gaussian_moments([0.0, rate / smoothness, 0.0, 0.0], curvatures))
        for rate in np.linspace(0.1, 2, 20)
    )
    assert accelerated <= 1 - 0.3 / np.sqrt(kappa * statistical)
    assert 1 - accelerated > 1.5 * (1 - best)
    b = four[0]
    nesterov = [b, 1 / smoothness, b / smoothness, b / smoothness]
    assert spectral_radius(gaussian_moments(nesterov, curvatures)) > 1.3


@pytest.mark.parametrize(("alpha", "mu", "gamma"), [(0.5, 1.0, 1.5), (2.0, 0.1, 0.5), (0.1, 1.0, 0.05)])
def test_nag_gs_is_stable_up_to_its_limit_where_nesterov_diverges(alpha, mu, gamma):
    decay, direct, gain, _ = numbers(momentum.nag_gs(alpha, mu, gamma, fixed_gamma=True), 2)
    limit = 2 * ((1 + alpha) * (alpha * mu + gamma) + gamma) / alpha**2

    def radius(four, curvature):
        decay, direct, gain = four
        return np.max(np.abs(np.linalg.eigvals([[1 - curvature * (direct + gain), gain * decay], [-curvature, decay]])))

    own = (decay, direct, gain)
    assert radius(own, limit * (1 - 1e-6)) < 1 < radius(own, limit * (1 + 1e-6))
    # Nesterov's method with the same momentum and rate.
    assert radius((decay, gain, gain * decay), limit * (1 - 1e-6)) > 1
