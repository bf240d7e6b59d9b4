"""Nesterov's momentum with constant, scheduled and increasing b_k; heavy ball and quasi-hyperbolic momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax import checks
from nagjax.scalars import Schedule, as_scalar, evaluate, increment, number, scalar_dtype
from nagjax.types import Coefficients, Momentum


def fixed(coefficients: Coefficients, *, nesterov: bool = False) -> Momentum:
    """The rule with the same four coefficients in every update, without state."""

    def following(carry: tuple[()], **_: Any) -> tuple[Coefficients, tuple[()]]:
        return coefficients, carry

    return Momentum(init=tuple, next=following, nesterov=nesterov)


def constant(b: ArrayLike) -> Momentum:
    """Nesterov's method with constant momentum: decay = gain = readout = b, direct = 1.

    Args:
        b: Momentum, in [0, 1).

    Returns:
        A rule without state.

    Raises:
        TypeError: `b` is not a number.
        ValueError: `b` is outside [0, 1) or NaN.

    Source:
        Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983; in
        the form of I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and
        momentum in deep learning", 2013, equations (3) and (4).
    """
    checks.fraction("momentum.constant", "b", b, "typical values are 0.9 and 0.99")
    return fixed(Coefficients(decay=b, direct=1.0, gain=b, readout=b), nesterov=True)


def schedule(fn: Schedule) -> Momentum:
    """Nesterov's method with the momentum b_k = fn(k) that forms y_k.

    Update k decays the velocity with b_k and looks ahead with b_{k+1}: the textbook scheme has two indices, and a
    schedule that is put in both places is another method. b_0 multiplies zero velocity and does not matter.

    Args:
        fn: An Optax schedule, from a count (int32 scalar, updates since the last restart) to a scalar in [0, 1).
            It is called under standard type promotion and its value is cast.

    Returns:
        A rule with one int32 counter of state.

    Raises:
        TypeError: `fn` cannot be called.
        ValueError: `fn` returns something else than a scalar (raised when an update is traced).
    """
    if not callable(fn):
        checks.reject(
            "momentum.schedule", "fn", "a function of the count", fn, "use constant(b) for a number", TypeError
        )

    def init() -> jax.Array:
        return jnp.zeros((), jnp.int32)

    def following(k: jax.Array, **_: Any) -> tuple[Coefficients, jax.Array]:
        after = increment(k)
        decay, gain = evaluate("momentum.schedule", fn, k), evaluate("momentum.schedule", fn, after)
        return Coefficients(decay, 1.0, gain, gain), after

    return Momentum(init, following, nesterov=True)


class _FistaCarry(NamedTuple):
    t: jax.Array  # t_{k+1}, scalar
    momentum: jax.Array  # b_k, scalar


def fista() -> Momentum:
    """Nesterov's method with FISTA's momentum b_k = (t_k - 1)/t_{k+1}, t_1 = 1, t_{k+1} = (1 + sqrt(1 + 4 t_k^2))/2.

    Where the step size changes, the keyword argument `step_ratio` of `update`, r = s_k / s_{k+1}, corrects the
    sequence: t_{k+1} = (1 + sqrt(1 + 4 r t_k^2))/2. The wrappers of `nagjax.step_sizes` give it.

    Returns:
        A rule with two scalars of state.

    Guarantee:
        For convex, L-smooth f and step 1/L, f(x_N) - f* <= L R^2 / (2 t_N^2) <= 2 L R^2 / (N + 1)^2 at the answer,
        R = |x_0 - x*|. With corrected changes of a step that passes the descent test, f(x_k) - f* <=
        R^2 / (2 s_k t_k^2).

    Source:
        A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems",
        2009, equations (4.1) to (4.3) and Theorem 4.4; for changing steps K. Scheinberg, D. Goldfarb and X. Bai,
        "Fast first-order methods for composite convex optimization with backtracking", 2014.
    """

    def init() -> _FistaCarry:
        dtype = scalar_dtype()
        return _FistaCarry(t=jnp.ones((), dtype), momentum=jnp.zeros((), dtype))

    def following(
        carry: _FistaCarry, *, step_ratio: ArrayLike | None = None, **_: Any
    ) -> tuple[Coefficients, _FistaCarry]:
        t = next_t(carry.t, step_ratio)
        gain = (carry.t - 1) / t
        return Coefficients(carry.momentum, 1.0, gain, gain), _FistaCarry(t, gain)

    return Momentum(init, following, nesterov=True)


def next_t(t: jax.Array, step_ratio: ArrayLike | None = None) -> jax.Array:
    """FISTA's recursion t -> (1 + sqrt(1 + 4 r t^2))/2, r = 1 where no ratio of step sizes is given."""
    square = 4 * t**2
    return (1 + jnp.sqrt(1 + (square if step_ratio is None else as_scalar(step_ratio) * square))) / 2


def polynomial(a: ArrayLike = 2.0) -> Momentum:
    """Nesterov's method with b_k = (k - 1)/(k + a); a = 2 is the sequence of Su, Boyd and Candes.

    Args:
        a: Positive shift. Above 2 the iterates themselves converge.

    Returns:
        A rule with one int32 counter of state.

    Raises:
        TypeError: `a` is not a number.
        ValueError: `a` is not positive and finite.

    Guarantee:
        For convex, L-smooth f, step 1/L and a >= 2, f(x_N) - f* <= a^2 L R^2 / (2 (N + a - 1)^2) at the answer.

    Source:
        A. Chambolle and C. Dossal, "On the convergence of the iterates of the fast iterative shrinkage/thresholding
        algorithm", 2015; W. Su, S. Boyd and E. Candes, "A differential equation for modeling Nesterov's accelerated
        gradient method", 2016.
    """
    checks.positive("momentum.polynomial", "a", a, "2 is the usual value; above 2 the iterates converge too")

    def momentum(k: ArrayLike) -> jax.Array:
        k = jnp.asarray(k).astype(scalar_dtype())
        return jnp.maximum(k - 1, 0) / (k + as_scalar(a))

    return schedule(momentum)


def strongly_convex(condition_number: ArrayLike) -> Momentum:
    """Nesterov's method with the constant b = (sqrt(kappa) - 1)/(sqrt(kappa) + 1).

    Args:
        condition_number: kappa = L/mu, at least 1.

    Returns:
        A rule without state.

    Raises:
        TypeError: `condition_number` is not a number.
        ValueError: `condition_number` is less than 1 or not finite.

    Guarantee:
        For L-smooth, mu-strongly convex f and step 1/L, f(x_N) - f* <= (1 - 1/sqrt(kappa))^N
        (f(x_0) - f* + mu R^2 / 2) at the answer.

    Source:
        Y. Nesterov, "Introductory lectures on convex optimization", 2004, section 2.2, scheme (2.2.11).
    """
    check_condition_number("momentum.strongly_convex", condition_number)
    root = number(condition_number) ** 0.5
    b = (root - 1) / (root + 1)
    return fixed(Coefficients(decay=b, direct=1.0, gain=b, readout=b), nesterov=True)


def check_condition_number(function: str, value: ArrayLike) -> None:
    """Check that a condition number is at least 1 and finite."""
    checks.scalar(
        function, "condition_number", value, "at least 1 and finite", lambda v: 1 <= v < float("inf"), "give L / mu"
    )


def heavy_ball(b: ArrayLike) -> Momentum:
    """Polyak's heavy ball: decay = b, direct = 0, gain = 1; the answer is `params`.

    Args:
        b: Momentum, in [0, 1).

    Returns:
        A rule without state.

    Raises:
        TypeError: `b` is not a number.
        ValueError: `b` is outside [0, 1) or NaN.

    Source:
        B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """
    checks.fraction("momentum.heavy_ball", "b", b, "typical values are 0.9 and 0.99")
    return fixed(Coefficients(decay=b, direct=0.0, gain=1.0, readout=0.0))


def quasi_hyperbolic(b: ArrayLike, nu: ArrayLike) -> Momentum:
    """Quasi-hyperbolic momentum: decay = b, direct = 1 - nu, gain = nu (1 - b); the answer is `params`.

    With nu = b and the step u / (1 - b) it is Nesterov's method with momentum b; nu = 1 is the damped heavy ball.

    Args:
        b: Momentum, in [0, 1).
        nu: Weight of the averaged step, in [0, 1].

    Returns:
        A rule without state.

    Raises:
        TypeError: An argument is not a number.
        ValueError: `b` is outside [0, 1) or `nu` outside [0, 1].

    Source:
        J. Ma and D. Yarats, "Quasi-hyperbolic momentum and Adam for deep learning", 2019.
    """
    checks.fraction("momentum.quasi_hyperbolic", "b", b, "the paper recommends 0.999")
    checks.scalar("momentum.quasi_hyperbolic", "nu", nu, "in [0, 1]", lambda v: 0 <= v <= 1, "the paper recommends 0.7")
    b, nu = number(b), number(nu)
    return fixed(Coefficients(decay=b, direct=1 - nu, gain=nu * (1 - b), readout=0.0))


def as_momentum(momentum: ArrayLike | Schedule | Momentum) -> Momentum:
    """A rule from what `accelerate` takes: a rule, a number in [0, 1), or a schedule of such numbers."""
    if isinstance(momentum, Momentum):
        return momentum
    return schedule(momentum) if callable(momentum) else constant(momentum)
