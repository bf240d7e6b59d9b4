"""Time-varying momentum on one eigen-direction of a quadratic: orthogonal polynomials and their limits.

With u = 1 - rate * curvature, every method here multiplies the initial error by a polynomial in u. The momentum
b_k forms the query point y_k = x_k + b_k (x_k - x_{k-1}).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Gauss quadrature with n nodes is exact for degree 2n - 1; cos(x s) with |x| up to 60 needs about 50 nodes.
_NODES = 96


def gegenbauer(degree: int, order: float, argument: ArrayLike) -> NDArray[np.complex128]:
    """Gegenbauer polynomials scaled to 1 at 1.

    Args:
        degree: N, at least 0.
        order: Nu of at least 0; 0 gives Chebyshev's T_n, 1/2 Legendre's P_n, 1 U_n / (n + 1).
        argument: Real or complex.

    Returns:
        C_n^(nu)(argument) / C_n^(nu)(1), complex128.

    Source:
        G. Szego, "Orthogonal Polynomials", 1975, (4.7.17) with (4.7.3).
    """
    argument = np.asarray(argument, np.complex128)
    previous, current = np.zeros_like(argument), np.ones_like(argument)
    for n in range(1, degree + 1):
        # At order 0 the first step is 0 / 0; its limit is the argument itself.
        forward = 2 * (n + order - 1) / (n + 2 * order - 1) if n > 1 else 1.0
        backward = (n - 1) / (n + 2 * order - 1) if n > 1 else 0.0
        previous, current = current, forward * argument * current - backward * previous
    return current


def polynomial_answer(k: int, u: ArrayLike, a: float = 2.0) -> NDArray[np.float64]:
    """Relative error of the answer x_k under b_k = (k-1)/(k+a).

    Args:
        k: Number of updates made, at least 0.
        u: 1 - rate * curvature, any real number.
        a: The parameter of the sequence; 2 is Nesterov's, larger ones are Chambolle and Dossal's.

    Returns:
        u^((k+1)/2) times the scaled Gegenbauer polynomial of degree k - 1 and order (a+1)/2 at sqrt(u).

    Source:
        For a = 2: C. Paquette, B. van Merrienboer, E. Paquette and F. Pedregosa, "Halting time is predictable for large
        models", 2021.
    """
    if k == 0:
        return np.ones_like(np.asarray(u, np.float64))
    return _scaled(k - 1, (a + 1) / 2, u, k + 1)


def polynomial_query(k: int, u: ArrayLike, a: float = 2.0) -> NDArray[np.float64]:
    """Relative error of the query point y_k under b_k = (k-1)/(k+a).

    Args:
        k: Number of updates made, at least 0.
        u: 1 - rate * curvature, any real number.
        a: The parameter of the sequence.

    Returns:
        u^(k/2) times the scaled Gegenbauer polynomial of degree k and order (a+1)/2 at sqrt(u).
    """
    return _scaled(k, (a + 1) / 2, u, k)


def shifted_answer(k: int, u: ArrayLike, b: float = 3.0) -> NDArray[np.float64]:
    """Relative error of the answer x_k under b_k = k/(k+b).

    For b = 3 this is the query point of (k-1)/(k+2), on every quadratic.

    Args:
        k: Number of updates made, at least 0.
        u: 1 - rate * curvature, any real number.
        b: The parameter of the sequence.

    Returns:
        u^(k/2) times the scaled Gegenbauer polynomial of degree k and order b/2 at sqrt(u).
    """
    return _scaled(k, b / 2, u, k)


def shifted_query(k: int, u: ArrayLike, b: float = 3.0) -> NDArray[np.float64]:
    """Relative error of the query point y_k under b_k = k/(k+b).

    Args:
        k: Number of updates made, at least 0.
        u: 1 - rate * curvature, any real number.
        b: The parameter of the sequence.

    Returns:
        u^((k-1)/2) times the scaled Gegenbauer polynomial of degree k + 1 and order b/2 at sqrt(u).
    """
    if k == 0:
        return np.ones_like(np.asarray(u, np.float64))
    return _scaled(k + 1, b / 2, u, k - 1)


def legendre_answer(k: int, u: ArrayLike) -> NDArray[np.float64]:
    """Relative error of the answer x_k under b_k = (k-1)/(k+2), by Legendre polynomials.

    Args:
        k: Number of updates made, at least 1.
        u: 1 - rate * curvature, any real number but 1.

    Returns:
        2 u^((k+1)/2) (sqrt(u) P_k(sqrt(u)) - P_{k+1}(sqrt(u))) / (k (1 - u)).

    Source:
        C. Paquette, B. van Merrienboer, E. Paquette and F. Pedregosa, "Halting time is predictable for large models",
        2021.
    """
    u = np.asarray(u, np.float64)
    root = np.sqrt(u.astype(np.complex128))
    bracket = root * gegenbauer(k, 0.5, root) - gegenbauer(k + 1, 0.5, root)
    return np.real(2 * root ** (k + 1) * bracket) / (k * (1 - u))


def scaled_bessel(order: float, argument: ArrayLike) -> NDArray[np.float64]:
    """Bessel functions of the first kind, scaled to 1 at 0.

    Poisson's integral makes this the mean of cos(argument s) over the weight (1 - s^2)^(order - 1/2) of the Gegenbauer
    polynomials, which Gauss quadrature takes to full precision for arguments up to about 60.

    Args:
        order: Nu of at least 0.
        argument: Real numbers of modulus up to 60.

    Returns:
        Gamma(nu + 1) (2 / argument)^nu J_nu(argument); for nu = 1, 2 J_1(argument) / argument.

    Source:
        G. Watson, "A Treatise on the Theory of Bessel Functions", 1944, section 3.3; G. Golub and J. Welsch,
        "Calculation of Gauss quadrature rules", 1969.
    """
    n = np.arange(1, _NODES, dtype=np.float64)
    squares = np.empty_like(n)
    squares[0] = 1 / (2 * (1 + order))
    squares[1:] = n[1:] * (n[1:] + 2 * order - 1) / (4 * (n[1:] + order) * (n[1:] + order - 1))
    off_diagonal = np.diag(np.sqrt(squares), 1)
    nodes, vectors = np.linalg.eigh(off_diagonal + off_diagonal.T)
    return np.cos(np.asarray(argument, np.float64)[..., None] * nodes) @ vectors[0] ** 2


def polynomial_flow(time: ArrayLike, curvature: float, friction: float = 3.0) -> NDArray[np.float64]:
    """The solution of X'' + (friction / t) X' + curvature X = 0, X(0) = 1, X'(0) = 0.

    It is the limit of the momentum (k-1)/(k+friction-1): the answers x_k with rate s approach it at t = k sqrt(s), to
    first order in sqrt(s).

    Args:
        time: T of at least 0, with t sqrt(curvature) up to 60.
        curvature: Lambda.
        friction: R of at least 1; 3 is Nesterov's.

    Returns:
        X(t) = Gamma((r+1)/2) (2 / z)^((r-1)/2) J_{(r-1)/2}(z) with z = t sqrt(curvature).

    Source:
        W. Su, S. Boyd and E. Candes, "A differential equation for modeling Nesterov's accelerated gradient method",
        2016, equation (3) and section 4.
    """
    return scaled_bessel((friction - 1) / 2, np.asarray(time, np.float64) * np.sqrt(curvature))


def strongly_convex_flow(time: ArrayLike, curvature: float, strong_convexity: float) -> NDArray[np.float64]:
    """The solution of X'' + 2 sqrt(mu) X' + curvature X = 0, X(0) = 1, X'(0) = 0.

    It is the limit of the constant momentum (1 - sqrt(mu s)) / (1 + sqrt(mu s)), to first order in sqrt(s).

    Args:
        time: T of at least 0.
        curvature: Lambda of at least `strong_convexity`.
        strong_convexity: Mu.

    Returns:
        exp(-sqrt(mu) t) (cos(omega t) + sqrt(mu) sin(omega t) / omega) with omega = sqrt(lambda - mu).

    Source:
        A. Wilson, B. Recht and M. Jordan, "A Lyapunov analysis of accelerated methods in optimization", 2021.
    """
    time = np.asarray(time, np.float64)
    damping = np.sqrt(strong_convexity)
    frequency = np.sqrt(curvature - strong_convexity)
    # numpy's sinc is sin(pi x) / (pi x), which is right at frequency 0.
    return np.exp(-damping * time) * (np.cos(frequency * time) + damping * time * np.sinc(frequency * time / np.pi))


def bessel_answer(k: ArrayLike, u: ArrayLike) -> NDArray[np.float64]:
    """The answer x_k under b_k = (k-1)/(k+2), to second order in the square root of the rate.

    Args:
        k: Number of updates made, at least 1.
        u: 1 - rate * curvature in [0, 1].

    Returns:
        u^((k+1)/2) 2 J_1(z) / z with z = (k + 1/2) arccos(sqrt(u)), up to 60.
    """
    k, root = np.asarray(k), np.sqrt(np.asarray(u, np.float64))
    return root ** (k + 1) * scaled_bessel(1.0, (k + 0.5) * np.arccos(root))


def chebyshev_error(k: ArrayLike, curvature: float, smoothness: float, strong_convexity: float) -> NDArray[np.float64]:
    """Relative error of Chebyshev's semi-iteration, the best polynomial for a spectrum in [mu, L].

    Args:
        k: Number of updates made, at least 0.
        curvature: Lambda in [mu, L].
        smoothness: L.
        strong_convexity: Mu in (0, L).

    Returns:
        T_k((L + mu - 2 lambda) / (L - mu)) / T_k((L + mu) / (L - mu)).

    Source:
        G. Golub and R. Varga, "Chebyshev semi-iterative methods", 1961.
    """
    k = np.asarray(k)
    width = smoothness - strong_convexity
    angle = np.arccos((smoothness + strong_convexity - 2 * curvature) / width)
    growth = np.arccosh((smoothness + strong_convexity) / width)
    # 1 / cosh(k growth), without overflow.
    return np.cos(k * angle) * 2 * np.exp(-k * growth) / (1 + np.exp(-2 * k * growth))


def chebyshev_weight(k: ArrayLike, smoothness: float, strong_convexity: float) -> NDArray[np.float64]:
    """The weight omega_k that forms the k-th iterate of Chebyshev's semi-iteration.

    Its limit is the heavy ball of `trajectories.polyak_tuning`: omega - 1 is the momentum, 2 omega / (L + mu) the rate.

    Args:
        k: At least 1; omega_1 = 1.
        smoothness: L.
        strong_convexity: Mu in (0, L).

    Returns:
        2 sigma T_{k-1}(sigma) / T_k(sigma) with sigma = (L + mu) / (L - mu); 1 at k = 1.

    Source:
        G. Golub and R. Varga, "Chebyshev semi-iterative methods", 1961.
    """
    k = np.asarray(k)
    sigma = (smoothness + strong_convexity) / (smoothness - strong_convexity)
    growth = np.arccosh(sigma)
    ratio = np.exp(-growth) * (1 + np.exp(-2 * (k - 1) * growth)) / (1 + np.exp(-2 * k * growth))
    return np.where(k == 1, 1.0, 2 * sigma * ratio)


def _scaled(degree: int, order: float, u: ArrayLike, twice_exponent: int) -> NDArray[np.float64]:
    # The product is a polynomial in u, hence real also where the root is imaginary.
    root = np.sqrt(np.asarray(u, np.complex128))
    return np.real(root**twice_exponent * gegenbauer(degree, order, root))
