"""Worst cases and guarantees: their printed table, the functions that attain them, the identities between methods."""

import numpy as np
import pytest

from nagjax.theory import bounds, convex_loops, sequences, strong_bounds

# Both tables are from semidefinite performance estimation, with L = R = 1.
# N, GD, 2/(N+1)^2, 1/(2 t_N^2), FISTA, (k-1)/(k+2), k/(k+3), OGM, OGM primary, OGM-G.
CONVEX = """
1  0.1666667 0.5000000 0.5000000 0.1666667 0.1666667 0.1666667 0.1250000 0.1666667 0.5000000
2  0.1000000 0.2222222 0.1909830 0.1000000 0.1000000 0.0909091 0.0618942 0.0801787 0.2475767
3  0.0714286 0.1250000 0.1039164 0.0661069 0.0666667 0.0588235 0.0376924 0.0470671 0.1507696
4  0.0555556 0.0800000 0.0661257 0.0468332 0.0476190 0.0416667 0.0255839 0.0310122 0.1023358
5  0.0454545 0.0555556 0.0460565 0.0348938 0.0357143 0.0312500 0.0185881 0.0220143 0.0743525
6  0.0384615 0.0408163 0.0340395 0.0270029 0.0277778 0.0243902 0.0141560 0.0164595 0.0566239
7  0.0333333 0.0312500 0.0262413 0.0215203 0.0222222 0.0196078 0.0111604 0.0127852 0.0446417
8  0.0294118 0.0246914 0.0208790 0.0175576 0.0181818 0.0161290 0.0090361 0.0102260 0.0361443
9  0.0263158 0.0200000 0.0170261 0.0146005 0.0151515 0.0135135 0.0074724 0.0083705 0.0298894
10 0.0238095 0.0165289 0.0141608 0.0123351 0.0128205 0.0114943 0.0062865 0.0069815 0.0251459
"""
# With q = 0.1: N, ITEM, triple momentum, constant momentum bound and worst case.
STRONGLY_CONVEX = """
1  0.6694215 2.3377223 0.6837722 0.5479388
2  0.3769395 1.0929891 0.4675445 0.3476022
3  0.1932193 0.5110210 0.3196939 0.2153897
4  0.0944268 0.2389251 0.2185978 0.1303060
5  0.0450848 0.1117081 0.1494711 0.0771202
6  0.0212883 0.0522285 0.1022042 0.0447496
7  0.0099994 0.0244191 0.0698844 0.0255117
8  0.0046853 0.0114170 0.0477850 0.0143176
9  0.0021928 0.0053380 0.0326741 0.0079243
10 0.0010257 0.0024957 0.0223416 0.0043322
"""
HORIZONS = [1, 2, 3, 5, 10, 25, 50]


def rows(table):
    return [line.split() for line in table.split("\n") if line]


@pytest.mark.parametrize("row", rows(CONVEX), ids=lambda row: f"N={row[0]}")
def test_the_printed_convex_table_is_reproduced_to_all_digits(row):
    n, printed = int(row[0]), row[1:]
    computed = [
        bounds.gradient_descent_worst_case(n),
        2 / (n + 1) ** 2,
        bounds.fista_guarantee(n),
        bounds.huber_worst_case(sequences.momentum_travel(sequences.fista_momenta(n))),
        bounds.huber_worst_case(sequences.polynomial_travel(n)),
        bounds.huber_worst_case(sequences.shifted_travel(n)),
        bounds.ogm_worst_case(n),
        bounds.huber_worst_case(sequences.ogm_primary_travel(n)),
        bounds.ogm_gradient_worst_case(n),
    ]
    assert [f"{value:.7f}" for value in computed] == printed


@pytest.mark.parametrize("row", rows(STRONGLY_CONVEX), ids=lambda row: f"N={row[0]}")
def test_the_printed_strongly_convex_table_is_reproduced_to_all_digits(row):
    n, printed = int(row[0]), row[1:]
    computed = [
        strong_bounds.item_worst_case(n, 0.1),
        strong_bounds.triple_momentum_worst_case(n, 1.0, 0.1),
        strong_bounds.nesterov_guarantee(n, 1.0, 0.1, initial_gap=1.0) / (1 + 0.1 / 2),
        strong_bounds.nesterov_worst_case(n, 1.0, 0.1),
    ]
    assert [f"{value:.7f}" for value in computed] == printed


def huber(threshold, smoothness=1.0, ridge=0.0):
    """Value and gradient of the one-dimensional Huber function, plus ridge x^2 / 2."""

    def value(x):
        inside = np.abs(x) <= threshold
        flat = np.where(inside, x**2 / 2, threshold * np.abs(x) - threshold**2 / 2)
        return (smoothness * flat + ridge * x**2 / 2).item()

    return value, lambda x: smoothness * np.clip(x, -threshold, threshold) + ridge * x


def at_end(trajectory):
    return trajectory.answers[-1]


def polynomial_momenta(steps, a=2.0):
    k = np.arange(steps + 1)
    return (k - 1) / (k + a)


def shifted_momenta(steps, b=3.0):
    k = np.arange(steps + 1)
    return k / (k + b)


MOMENTA = {
    "gradient descent": lambda n: np.zeros(n + 1),
    "fista": sequences.fista_momenta,
    "(k-1)/(k+2)": polynomial_momenta,
    "(k-1)/(k+4.5)": lambda n: polynomial_momenta(n, 4.5),
    "k/(k+3)": shifted_momenta,
}


@pytest.mark.parametrize("smoothness", [1.0, 2.5])
@pytest.mark.parametrize("steps", HORIZONS)
@pytest.mark.parametrize("name", MOMENTA)
def test_huber_attains_the_worst_case_of_nesterov_methods(name, steps, smoothness):
    radius, momenta = 3.0, MOMENTA[name](steps)
    travel = sequences.momentum_travel(momenta)
    value, gradient = huber(bounds.huber_threshold(travel, radius), smoothness)
    step_sizes = np.full(steps, 1 / smoothness)
    found = value(at_end(convex_loops.nesterov(gradient, [radius], step_sizes, momenta)))
    assert found == pytest.approx(bounds.huber_worst_case(travel, smoothness, radius), rel=1e-12)


@pytest.mark.parametrize("steps", HORIZONS)
def test_travels_have_their_closed_forms_and_give_the_printed_worst_cases(steps):
    n = steps
    for a in (2.0, 3.0, 4.5):
        travel = sequences.momentum_travel(polynomial_momenta(n, a))
        assert travel == pytest.approx(sequences.polynomial_travel(n, a), rel=1e-13)
        printed = (a + 2) / (2 * (n**2 + (2 * a + 1) * n + a + 4))
        assert bounds.huber_worst_case(travel) == pytest.approx(printed, rel=1e-13)
    for b in (2.0, 3.0):
        assert sequences.momentum_travel(shifted_momenta(n, b)) == pytest.approx(
            sequences.shifted_travel(n, b), rel=1e-13
        )
    assert bounds.huber_worst_case(sequences.polynomial_travel(n)) == pytest.approx(2 / ((n + 2) * (n + 3)), rel=1e-13)
    assert bounds.huber_worst_case(sequences.shifted_travel(n)) == pytest.approx(2 / (n**2 + 7 * n + 4), rel=1e-13)


@pytest.mark.parametrize("steps", HORIZONS)
def test_exact_worst_cases_stay_below_the_guarantees(steps):
    fista = bounds.huber_worst_case(sequences.momentum_travel(sequences.fista_momenta(steps)))
    assert fista <= bounds.fista_guarantee(steps) <= 2 / (steps + 1) ** 2
    for a in (2.0, 3.0, 4.5):
        exact = bounds.huber_worst_case(sequences.polynomial_travel(steps, a))
        assert exact <= bounds.chambolle_dossal_guarantee(steps, a)
    assert bounds.ogm_worst_case(steps) <= bounds.huber_worst_case(sequences.ogm_primary_travel(steps))
    assert bounds.huber_worst_case(sequences.ogm_primary_travel(steps)) <= 1 / (4 * sequences.fista_t(steps)[-1] ** 2)


@pytest.mark.parametrize("relative_step", [0.6, 1.0, 1.5, 1.95])
def test_gradient_descent_attains_its_worst_case_on_huber_or_on_the_quadratic(relative_step):
    for steps in HORIZONS:
        threshold = bounds.huber_threshold(relative_step * steps)
        value, gradient = huber(threshold)
        on_huber = value(at_end(convex_loops.gradient_descent(gradient, [1.0], np.full(steps, relative_step))))
        on_quadratic = (
            at_end(convex_loops.gradient_descent(lambda x: x, [1.0], np.full(steps, relative_step)))[0] ** 2 / 2
        )
        worst = bounds.gradient_descent_worst_case(steps, relative_step)
        assert max(on_huber, on_quadratic) == pytest.approx(worst, rel=1e-10)


@pytest.mark.parametrize("steps", HORIZONS)
def test_ogm_attains_its_worst_case_on_huber_and_on_the_quadratic(steps):
    theta = sequences.ogm_theta(steps)
    value, gradient = huber(bounds.huber_threshold((theta[-1] ** 2 - 1) / 2))
    worst = bounds.ogm_worst_case(steps)
    assert value(at_end(convex_loops.ogm(gradient, [1.0], 1.0, steps))) == pytest.approx(worst, rel=1e-12)
    quadratic = convex_loops.ogm(lambda x: x, [1.0], 1.0, steps)
    assert at_end(quadratic)[0] == pytest.approx((-1) ** steps / theta[-1], rel=1e-11)
    signs = (-1.0) ** np.arange(steps)
    np.testing.assert_allclose(quadratic.queries[:-1, 0], signs / theta[:-1], rtol=1e-11)


@pytest.mark.parametrize("steps", HORIZONS)
def test_ogm_primary_sequence_attains_its_worst_case_on_huber(steps):
    travel = sequences.ogm_primary_travel(steps)
    value, gradient = huber(bounds.huber_threshold(travel))
    last_query = convex_loops.ogm(gradient, [1.0], 1.0, steps).queries[-2]
    primary = last_query - gradient(last_query)
    assert value(primary) == pytest.approx(bounds.huber_worst_case(travel), rel=1e-12)


@pytest.mark.parametrize("steps", HORIZONS)
def test_ogm_gradient_attains_its_worst_case_on_huber_and_on_the_quadratic(steps):
    theta = sequences.ogm_gradient_theta(steps)
    assert theta[-1] == 1
    assert theta[0] == pytest.approx((1 + np.sqrt(1 + 8 * theta[1] ** 2)) / 2)
    value, gradient = huber(2 / (theta[0] ** 2 + 1))
    last = convex_loops.ogm_gradient(gradient, [1.0], 1.0, theta)[-1]
    worst = bounds.ogm_gradient_worst_case(steps, initial_gap=value(np.ones(1)))
    assert gradient(last)[0] ** 2 == pytest.approx(worst, rel=1e-9)
    last = convex_loops.ogm_gradient(lambda x: x, [1.0], 1.0, theta)[-1]
    assert last[0] ** 2 == pytest.approx(bounds.ogm_gradient_worst_case(steps, initial_gap=0.5), rel=1e-9)


@pytest.mark.parametrize("steps", HORIZONS)
@pytest.mark.parametrize("name", MOMENTA)
def test_the_absolute_value_attains_the_composite_worst_case(name, steps):
    smoothness, radius, momenta = 2.0, 1.5, MOMENTA[name](steps)
    travel = sequences.momentum_travel(momenta)
    slope = bounds.composite_slope(travel, smoothness, radius)

    def gradient_mapping(y):
        # With f = 0 the proximal step is soft thresholding.
        return smoothness * (y - np.sign(y) * np.maximum(np.abs(y) - slope / smoothness, 0))

    end = at_end(convex_loops.nesterov(gradient_mapping, [radius], np.full(steps, 1 / smoothness), momenta))
    worst = bounds.composite_worst_case(travel, smoothness, radius)
    assert slope * abs(end[0]) == pytest.approx(worst, rel=1e-12)


def test_the_composite_worst_cases_are_the_printed_ones():
    for n in HORIZONS:
        assert bounds.composite_worst_case(n) == pytest.approx(1 / (4 * n))
        polynomial = bounds.composite_worst_case(sequences.polynomial_travel(n))
        assert polynomial == pytest.approx(2 / (n**2 + 5 * n + 2), rel=1e-13)
        shifted = bounds.composite_worst_case(sequences.shifted_travel(n))
        assert shifted == pytest.approx(2 / (n**2 + 7 * n), rel=1e-13)
    assert bounds.composite_worst_case(sequences.momentum_travel(sequences.fista_momenta(6))) == pytest.approx(
        0.0285444, abs=5e-8
    )


def test_fista_t_has_its_known_properties():
    t = sequences.fista_t(2000)
    k = np.arange(1, 2001)
    np.testing.assert_allclose(t[1:] ** 2 - t[1:], t[:-1] ** 2, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.cumsum(t), t**2, rtol=1e-12)
    assert np.all((k + 1) / 2 <= t[1:])
    assert np.all(t[1:] <= k)
    assert t[-1] - 1000 - np.log(2000) / 4 == pytest.approx(0.3232, abs=2e-3)
    momenta = sequences.fista_momenta(3)
    np.testing.assert_allclose(momenta, [0, 0, (t[2] - 1) / t[3], (t[3] - 1) / t[4]])
    assert momenta[2] == pytest.approx(0.2818, abs=5e-5)


def test_the_general_scheme_solves_its_recursion():
    q = 0.01
    scheme = strong_bounds.general_scheme(50, q, 0.4)
    old, new = scheme.alphas[:-1], scheme.alphas[1:]
    np.testing.assert_allclose(new**2, (1 - new) * old**2 + q * new, rtol=1e-13)
    np.testing.assert_allclose(scheme.momenta[1:], old * (1 - old) / (old**2 + new), rtol=1e-13)
    np.testing.assert_allclose(scheme.factors[1:], np.cumprod(1 - old), rtol=1e-13)


def log_cosh(ridge):
    weights = np.array([1.0, 0.1, 0.01]) - ridge
    return (
        lambda x: float(np.sum(weights * np.log(np.cosh(x))) + ridge * x @ x / 2),
        lambda x: weights * np.tanh(x) + ridge * x,
    )


def estimate_sequence(gradient, start, smoothness, mu, gamma, steps):
    """Nesterov's scheme with the centers and curvatures of its estimate functions."""
    x = v = np.asarray(start, float)
    queries, answers, factor, factors = [], [x], 1.0, [1.0]
    for _ in range(steps):
        alpha = strong_bounds.first_alpha(smoothness, mu, gamma)
        after = (1 - alpha) * gamma + alpha * mu
        y = (alpha * gamma * v + after * x) / (gamma + alpha * mu)
        g = gradient(y)
        x = y - g / smoothness
        v = ((1 - alpha) * gamma * v + alpha * mu * y - alpha * g) / after
        gamma, factor = after, factor * (1 - alpha)
        queries.append(y)
        answers.append(x)
        factors.append(factor)
    return np.array(queries), np.array(answers), np.array(factors)


@pytest.mark.parametrize(("mu", "gamma"), [(0.0, 1.0), (0.01, 1.0), (0.01, 0.01), (0.01, 0.3)])
def test_the_general_scheme_is_its_estimate_sequence_and_keeps_its_guarantee(mu, gamma):
    steps, start = 60, np.array([2.0, -3.0, 1.0])
    value, gradient = log_cosh(mu)
    alpha = strong_bounds.first_alpha(1.0, mu, gamma)
    assert strong_bounds.estimate_start(1.0, mu, alpha) == pytest.approx(gamma, rel=1e-12)
    loop = convex_loops.general_nesterov(gradient, start, 1.0, mu, alpha, steps)
    queries, answers, factors = estimate_sequence(gradient, start, 1.0, mu, gamma, steps)
    np.testing.assert_allclose(loop.queries[:-1], queries, atol=1e-13)
    np.testing.assert_allclose(loop.answers, answers, atol=1e-13)
    scheme = strong_bounds.general_scheme(steps, mu, alpha)
    np.testing.assert_allclose(scheme.factors, factors, rtol=1e-12)
    radius = float(np.linalg.norm(start))
    for k, x in enumerate(answers):
        guarantee = strong_bounds.general_guarantee(float(factors[k]), value(start), gamma, radius)
        assert value(x) <= guarantee * (1 + 1e-12)
        assert factors[k] <= strong_bounds.general_factor_bound(k, 1.0, mu, gamma) * (1 + 1e-12)


def test_the_general_scheme_contains_constant_momentum_and_fista_one_step_ahead():
    q = 0.04
    constant = strong_bounds.general_scheme(30, q, np.sqrt(q))
    np.testing.assert_allclose(constant.momenta[1:], (1 - 0.2) / (1 + 0.2), rtol=1e-13)
    ahead = strong_bounds.general_scheme(30, 0.0, strong_bounds.first_alpha(1.0, 0.0, 1.0))
    np.testing.assert_allclose(1 / ahead.alphas, sequences.fista_t(32)[2:], rtol=1e-13)
    np.testing.assert_allclose(ahead.momenta[1:], sequences.fista_momenta(31)[2:], rtol=1e-13)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 25])
def test_constant_momentum_on_the_strongly_convex_huber_has_its_closed_form(steps):
    mu, threshold = 0.1, 0.02
    value, gradient = huber(threshold, 1 - mu, mu)
    root = np.sqrt(mu)
    momenta = np.full(steps + 1, (1 - root) / (1 + root))
    end = at_end(convex_loops.nesterov(gradient, [1.0], np.ones(steps), momenta))
    closed = strong_bounds.nesterov_on_huber(steps, 1.0, mu, threshold)
    if end[0] < threshold:
        assert closed == -np.inf
    else:
        assert value(end) / (value(np.ones(1)) + mu / 2) == pytest.approx(closed, rel=1e-10)
    worst = strong_bounds.nesterov_worst_case(steps, 1.0, mu)
    assert closed <= worst <= strong_bounds.nesterov_guarantee(steps, 1.0, mu, initial_gap=1.0) / (1 + mu / 2)


@pytest.mark.parametrize("kappa", [1.5, 10.0, 1000.0])
@pytest.mark.parametrize("steps", HORIZONS)
def test_triple_momentum_attains_its_worst_case_on_the_quadratic(kappa, steps):
    smoothness, mu, radius = 2.0, 2.0 / kappa, 1.5
    rho = strong_bounds.triple_momentum_constants(smoothness, mu).rho
    loop = convex_loops.triple_momentum(lambda x: smoothness * x, [radius], smoothness, mu, steps)
    assert at_end(loop)[0] == pytest.approx((-1) ** steps * np.sqrt(kappa) * rho**steps * radius, rel=1e-10)
    worst = strong_bounds.triple_momentum_worst_case(steps, smoothness, mu, radius)
    assert smoothness * at_end(loop)[0] ** 2 / 2 == pytest.approx(worst, rel=1e-10)


@pytest.mark.parametrize("q", [0.3, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("steps", HORIZONS)
def test_item_attains_its_worst_case_on_both_quadratics(q, steps):
    smoothness, radius = 2.0, 1.5
    for curvature in (smoothness, q * smoothness):
        loop = convex_loops.item(lambda x, c=curvature: c * x, [radius], smoothness, q * smoothness, steps)
        # 50 steps with q = 0.3 shrink the error by 1e-29; its digits come from cancellations of larger ones.
        worst = strong_bounds.item_worst_case(steps, q, radius)
        assert at_end(loop)[0] ** 2 == pytest.approx(worst, rel=1e-9, abs=1e-25)


def test_item_tends_to_triple_momentum_and_is_ogm_without_strong_convexity():
    q = 0.01
    item = strong_bounds.item_sequences(200, q)
    assert item.beta[-1] == pytest.approx((1 - np.sqrt(q)) / (1 + np.sqrt(q)), rel=1e-12)
    assert item.delta[-1] == pytest.approx(1 / np.sqrt(q), rel=1e-12)
    assert item.a[-1] / item.a[-2] == pytest.approx((1 - np.sqrt(q)) ** -2, rel=1e-12)
    np.testing.assert_allclose(strong_bounds.item_sequences(50, 0.0).a, 4 * sequences.fista_t(50) ** 2, rtol=1e-12)


def test_no_accelerated_method_beats_the_lower_bound_on_the_chain():
    steps = 20
    dimension = 2 * steps + 1
    links = (2 * np.eye(dimension) - np.eye(dimension, k=1) - np.eye(dimension, k=-1)) / 4
    pull = np.eye(dimension)[0] / 4
    minimizer = np.linalg.solve(links, pull)
    bound = bounds.chain_lower_bound(steps, 1.0, float(np.linalg.norm(minimizer)))

    def gap(x):
        return (x - minimizer) @ links @ (x - minimizer) / 2

    start = np.zeros(dimension)
    for loop in (
        convex_loops.fista(lambda x: links @ x - pull, start, 1.0, steps),
        convex_loops.polynomial(lambda x: links @ x - pull, start, 1.0, steps),
        convex_loops.ogm(lambda x: links @ x - pull, start, 1.0, steps),
        convex_loops.chebyshev(lambda x: links @ x - pull, start, 1.0, 0.001, steps),
    ):
        assert gap(at_end(loop)) >= bound
    # The bound is within a factor of 6 of what OGM reaches: the test would notice a wrong constant.
    assert gap(at_end(convex_loops.ogm(lambda x: links @ x - pull, start, 1.0, steps))) <= 6 * bound
