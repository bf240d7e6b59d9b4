"""Worst cases and guarantees of methods on smooth convex functions (the strongly convex ones are in `strong_bounds`).

L is the smoothness, R the distance of the initial point from a minimizer, N the number of gradients taken. "Worst case"
says that a function attains the value; "guarantee" that none exceeds it. The travel H_N is defined in `sequences`.
"""

from nagjax.theory.sequences import fista_t, ogm_gradient_theta, ogm_theta


def huber_worst_case(travel: float, smoothness: float = 1.0, radius: float = 1.0) -> float:
    """The value at the answer on the Huber function with the kink at `huber_threshold`.

    No fixed-step method with this travel has a smaller worst case while its query points stay where the function is
    affine, which holds for every method of this module. Nothing is worse for gradient descent with step at most 1/L
    (proved), nor for (k-1)/(k+a) with a >= 2, k/(k+3), FISTA and OGM's primary sequence (semidefinite performance
    estimation for N up to 10; a conjecture beyond).

    Args:
        travel: H_N.
        smoothness: L.
        radius: R.

    Returns:
        L R^2 / (2 (2 H_N + 1)).

    Source:
        Y. Drori and M. Teboulle, "Performance of first-order methods for smooth convex minimization", 2014 (gradient
        descent); A. Taylor, J. Hendrickx and F. Glineur, "Smooth strongly convex interpolation and exact worst-case
        performance of first-order methods", 2017.
    """
    return smoothness * radius**2 / (2 * (2 * travel + 1))


def huber_threshold(travel: float, radius: float = 1.0) -> float:
    """The kink of the Huber function that is worst for a method: L x^2 / 2 within it, affine outside.

    Args:
        travel: H_N.
        radius: R, where the method starts.

    Returns:
        R / (2 H_N + 1).
    """
    return radius / (2 * travel + 1)


def composite_worst_case(travel: float, smoothness: float = 1.0, radius: float = 1.0) -> float:
    """The worst case of proximal methods on f + h with step 1/L, attained by f = 0 and h(x) = `composite_slope` |x|.

    Nothing is worse for proximal gradient descent (travel N), (k-1)/(k+2), k/(k+3) and FISTA (semidefinite performance
    estimation for N up to 8).

    Args:
        travel: H_N.
        smoothness: L.
        radius: R.

    Returns:
        L R^2 / (4 H_N).
    """
    return smoothness * radius**2 / (4 * travel)


def composite_slope(travel: float, smoothness: float = 1.0, radius: float = 1.0) -> float:
    """The weight of |x| that is worst for a proximal method started at R.

    Args:
        travel: H_N.
        smoothness: L.
        radius: R.

    Returns:
        L R / (2 H_N).
    """
    return smoothness * radius / (2 * travel)


def gradient_descent_worst_case(
    iterations: int, relative_step: float = 1.0, smoothness: float = 1.0, radius: float = 1.0
) -> float:
    """The exact worst case of f(x_N) - f* under gradient descent.

    Args:
        iterations: N.
        relative_step: H in (0, 2); the step size is h / L.
        smoothness: L.
        radius: R.

    Returns:
        (L R^2 / 2) max(1 / (2 N h + 1), (1 - h)^(2 N)): the Huber function or L x^2 / 2.

    Source:
        Y. Drori and M. Teboulle, "Performance of first-order methods for smooth convex minimization", 2014, Theorem 3.1
        and Conjecture 3.1.
    """
    quadratic = smoothness * radius**2 / 2 * (1 - relative_step) ** (2 * iterations)
    return max(huber_worst_case(iterations * relative_step, smoothness, radius), quadratic)


def fista_guarantee(iterations: int, smoothness: float = 1.0, radius: float = 1.0) -> float:
    """A guarantee of FISTA for F(x_N) - F*, with or without a proximal part.

    Args:
        iterations: N, at least 1.
        smoothness: L.
        radius: R.

    Returns:
        L R^2 / (2 t_N^2), which is at most 2 L R^2 / (N+1)^2.

    Source:
        A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm", 2009, Theorem 4.4.
    """
    return float(smoothness * radius**2 / (2 * fista_t(iterations)[-1] ** 2))


def chambolle_dossal_guarantee(iterations: int, a: float, smoothness: float = 1.0, radius: float = 1.0) -> float:
    """A guarantee for F(x_N) - F* under the momentum (k-1)/(k+a), with or without a proximal part.

    Args:
        iterations: N, at least 1.
        a: At least 2.
        smoothness: L.
        radius: R.

    Returns:
        a^2 L R^2 / (2 (N+a-1)^2).

    Source:
        A. Chambolle and C. Dossal, "On the convergence of the iterates of FISTA", 2015.
    """
    return a**2 * smoothness * radius**2 / (2 * (iterations + a - 1) ** 2)


def ogm_worst_case(horizon: int, smoothness: float = 1.0, radius: float = 1.0) -> float:
    """The exact worst case of f(x_N) - f* under OGM, attained by a Huber function and by L x^2 / 2.

    No first-order method does better in large dimension.

    Args:
        horizon: N, at least 1.
        smoothness: L.
        radius: R.

    Returns:
        L R^2 / (2 theta_N^2), where 2 H_N + 1 = theta_N^2.

    Source:
        D. Kim and J. Fessler, "Optimized first-order methods for smooth convex minimization", 2016, Theorem 2; Y.
        Drori, "The exact information-based complexity of smooth convex minimization", 2017.
    """
    return float(smoothness * radius**2 / (2 * ogm_theta(horizon)[-1] ** 2))


def ogm_gradient_worst_case(horizon: int, smoothness: float = 1.0, initial_gap: float = 1.0) -> float:
    """The exact worst case of the squared gradient norm at x_N under OGM-G.

    It is attained by L x^2 / 2 and by the Huber function with its kink at 2 R / (theta_0^2 + 1).

    Args:
        horizon: N, at least 1.
        smoothness: L.
        initial_gap: F(x_0) - f*.

    Returns:
        2 L (f(x_0) - f*) / theta_0^2.

    Source:
        D. Kim and J. Fessler, "Optimizing the efficiency of first-order methods for decreasing the gradient of smooth
        convex functions", 2021, Theorem 6.1.
    """
    return float(2 * smoothness * initial_gap / ogm_gradient_theta(horizon)[0] ** 2)


def chain_lower_bound(iterations: int, smoothness: float = 1.0, radius: float = 1.0) -> float:
    """What no method whose points stay in the span of its gradients can beat on Nesterov's chain.

    The chain needs a dimension of at least 2 N + 1; the bound is for the dimension 2 N + 1 and the start at zero.

    Args:
        iterations: N, at least 1.
        smoothness: L.
        radius: R.

    Returns:
        3 L R^2 / (32 (N+1)^2).

    Source:
        Y. Nesterov, "Introductory Lectures on Convex Optimization", 2004, Theorem 2.1.7.
    """
    return 3 * smoothness * radius**2 / (32 * (iterations + 1) ** 2)
