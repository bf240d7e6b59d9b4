"""Orthogonal polynomials, Bessel limits and Chebyshev's semi-iteration against the recursions that they solve."""

import itertools

import numpy as np
import pytest
import scipy.special

from nagjax.theory import convex_loops, polynomials, trajectories

STEPS = 60
# u = 1 - rate * curvature: unstable side, both roots zero, slow and fast modes.
CONTRACTIONS = np.array([-0.6, -0.1, 0.0, 1e-8, 0.3, 0.9, 0.9999, 1.0])


def run(momenta, steps=STEPS, contractions=CONTRACTIONS):
    """Textbook iterates with rate 1, one coordinate for each value of u."""
    return convex_loops.nesterov(
        lambda y: (1 - contractions) * y, np.ones_like(contractions), np.ones(steps), momenta[: steps + 1]
    )


def assert_close(actual, expected, tolerance=1e-13):
    scale = max(1.0, float(np.max(np.abs(expected))))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("order", [0.5, 1.0, 1.5, 2.75])
def test_gegenbauer_equals_scipy_scaled_to_one_at_one(order):
    z = np.linspace(-1.2, 1.2, 25)
    for degree in range(12):
        expected = scipy.special.eval_gegenbauer(degree, order, z) / scipy.special.eval_gegenbauer(degree, order, 1.0)
        np.testing.assert_allclose(polynomials.gegenbauer(degree, order, z).real, expected, rtol=1e-12, atol=1e-13)


def test_gegenbauer_has_chebyshev_legendre_and_second_kind_as_special_cases():
    z = np.linspace(-1, 1, 9)
    for degree in range(9):
        for order, expected in (
            (0.0, np.cos(degree * np.arccos(z))),
            (0.5, scipy.special.eval_legendre(degree, z)),
            (1.0, scipy.special.eval_chebyu(degree, z) / (degree + 1)),
        ):
            np.testing.assert_allclose(polynomials.gegenbauer(degree, order, z), expected, atol=1e-13)


@pytest.mark.parametrize("a", [2.0, 3.0, 4.5])
def test_polynomial_momentum_is_a_gegenbauer_polynomial_at_both_sequences(a):
    k = np.arange(STEPS + 1)
    loop = run((k - 1) / (k + a))
    assert_close([polynomials.polynomial_answer(n, CONTRACTIONS, a) for n in k], loop.answers)
    assert_close([polynomials.polynomial_query(n, CONTRACTIONS, a) for n in k], loop.queries)


@pytest.mark.parametrize("b", [2.0, 3.0, 4.5])
def test_shifted_momentum_is_a_gegenbauer_polynomial_at_both_sequences(b):
    k = np.arange(STEPS + 1)
    loop = run(k / (k + b))
    assert_close([polynomials.shifted_answer(n, CONTRACTIONS, b) for n in k], loop.answers)
    assert_close([polynomials.shifted_query(n, CONTRACTIONS, b) for n in k], loop.queries)


def test_answers_of_the_shifted_momentum_are_the_queries_of_nesterovs():
    k = np.arange(STEPS + 1)
    assert_close(run(k / (k + 3)).answers, run((k - 1) / (k + 2)).queries)


def test_nesterovs_momentum_is_a_legendre_polynomial():
    u = CONTRACTIONS[:-2]
    for k in range(1, STEPS + 1):
        assert_close(polynomials.legendre_answer(k, u), polynomials.polynomial_answer(k, u))


def test_nesterovs_first_polynomials_are_the_printed_ones():
    u = CONTRACTIONS
    printed = {2: u**2, 3: (5 * u**3 - u**2) / 4, 4: (7 * u**4 - 3 * u**3) / 4, 5: (21 * u**5 - 14 * u**4 + u**3) / 8}
    for k, expected in printed.items():
        assert_close(polynomials.polynomial_answer(k, u), expected, 1e-15)


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 1.5, 3.2])
def test_scaled_bessel_equals_scipy(order):
    z = np.linspace(0.05, 60, 400)
    expected = scipy.special.gamma(order + 1) * (2 / z) ** order * scipy.special.jv(order, z)
    np.testing.assert_allclose(polynomials.scaled_bessel(order, z), expected, atol=2e-14)
    assert polynomials.scaled_bessel(order, 0.0) == pytest.approx(1, abs=1e-14)


def limit_errors(approximation):
    """Largest distance from the answers of (k-1)/(k+2) for curvature 1 up to time 10, for four step sizes."""
    errors = []
    for inverse_root in (20, 40, 80, 160):
        steps = 10 * inverse_root
        u = 1 - 1 / inverse_root**2
        k = np.arange(steps + 1)
        loop = run((k - 1) / (k + 2), steps, np.array([u]))
        errors.append(np.max(np.abs(loop.answers[1:, 0] - approximation(k[1:], u, 1 / inverse_root))))
    return np.array(errors)


def test_nesterovs_flow_is_the_limit_to_first_order():
    errors = limit_errors(lambda k, u, root: polynomials.polynomial_flow(k * root, 1.0))
    assert [f"{error:.2e}" for error in errors] == ["3.73e-02", "1.88e-02", "9.41e-03", "4.71e-03"]


def test_the_bessel_form_is_accurate_to_second_order():
    errors = limit_errors(lambda k, u, root: polynomials.bessel_answer(k, u))
    assert [f"{error:.1e}" for error in errors] == ["7.0e-04", "1.8e-04", "4.4e-05", "1.1e-05"]
    assert np.all(np.abs(errors[:-1] / errors[1:] - 4) < 0.05)


@pytest.mark.parametrize("friction", [2.0, 3.0, 5.0])
def test_the_polynomial_flow_solves_its_differential_equation(friction):
    curvature, time, h = 1.7, np.linspace(0.5, 8, 40), 1e-3

    def flow(t):
        return polynomials.polynomial_flow(t, curvature, friction)

    velocity = (flow(time + h) - flow(time - h)) / (2 * h)
    acceleration = (flow(time + h) - 2 * flow(time) + flow(time - h)) / h**2
    # Central differences are off by h^2 / 6 and h^2 / 12 of higher derivatives, and by rounding over h^2.
    assert np.max(np.abs(acceleration + friction / time * velocity + curvature * flow(time))) < 3e-6
    assert flow(0.0) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("curvature", [0.04, 0.5, 3.0])
def test_the_strongly_convex_flow_is_the_limit_of_constant_momentum_to_first_order(curvature):
    strong_convexity, errors = 0.04, []
    for inverse_root in (40, 80, 160):
        root = 1 / inverse_root
        damping = np.sqrt(strong_convexity) * root
        k = np.arange(10 * inverse_root)
        answers = trajectories.nesterov_answers(k, root**2, (1 - damping) / (1 + damping), curvature)
        errors.append(np.max(np.abs(answers - polynomials.strongly_convex_flow(k * root, curvature, strong_convexity))))
    assert errors[-1] < 0.02
    for larger, smaller in itertools.pairwise(errors):
        assert larger / smaller == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("curvature", [0.02, 0.4, 1.01, 1.9, 2.0])
def test_chebyshev_semi_iteration_is_a_quotient_of_chebyshev_polynomials(curvature):
    loop = convex_loops.chebyshev(lambda x: curvature * x, [1.0], 2.0, 0.02, STEPS)
    assert_close(polynomials.chebyshev_error(np.arange(STEPS + 1), curvature, 2.0, 0.02), loop.answers[:, 0])


def test_chebyshev_weights_solve_their_recursion_and_tend_to_polyaks_heavy_ball():
    smoothness, strong_convexity = 2.0, 0.02
    sigma = (smoothness + strong_convexity) / (smoothness - strong_convexity)
    weights = polynomials.chebyshev_weight(np.arange(1, STEPS), smoothness, strong_convexity)
    assert weights[0] == 1
    assert weights[1] == pytest.approx(2 * sigma**2 / (2 * sigma**2 - 1), rel=1e-14)
    np.testing.assert_allclose(weights[2:], 1 / (1 - weights[1:-1] / (4 * sigma**2)), rtol=1e-14)
    limit = polynomials.chebyshev_weight(1000, smoothness, strong_convexity)
    rate, momentum = trajectories.polyak_tuning(smoothness, strong_convexity)
    assert limit - 1 == pytest.approx(momentum, rel=1e-14)
    assert 2 * limit / (smoothness + strong_convexity) == pytest.approx(rate, rel=1e-14)
