"""AC-FGM, the auto-conditioned fast gradient method: accelerated, without line search and without constants."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import AxisName
from nagjax.proximal.prox import Prox
from nagjax.scalars import as_scalar, increment, scalar_dtype
from nagjax.step_sizes import pairs
from nagjax.step_sizes.curvature import PROBE_GROWTH, first_step
from nagjax.step_sizes.pairs import Memory, Pair
from nagjax.storage import where
from nagjax.types import PyTree

BETA = 1 - 6**0.5 / 3
_FIRST = 2.5  # eta_1 = 1 / (2.5 L_1)
_RETRY = 1.5  # L_1 grows by this after a first step that was too long
_ROUNDING = 64.0  # a Bregman distance below this many units of rounding of its terms has no digits


class AcfgmState(NamedTuple):
    """State of `acfgm`; scalars in float32 or float64. The step number t of the paper is `age` + 1."""

    displacement: PyTree  # e = y - x, the structure of the parameters, at least 32 bits
    age: jax.Array  # updates since the start of the method, int32 scalar
    step_size: jax.Array  # eta of the last update, 0 before the first
    tau: jax.Array  # tau of the last update
    last_tau: jax.Array  # tau of the update before
    last_value: jax.Array  # f at the last query point
    smoothness: jax.Array  # the last estimate of L, 0 before the first and on flat pieces
    memory: Memory  # the last query point and its gradient

    def answer(self, params: PyTree) -> PyTree:
        """The parameters themselves."""
        return params

    def buffers(self) -> PyTree:
        """y - x, in at least 32 bits."""
        return self.displacement

    def reset(self) -> "AcfgmState":
        """Start again from the parameters; what is known of the curvature stays."""
        return self._replace(displacement=where(self.displacement, False), age=jnp.zeros_like(self.age))


class _Step(NamedTuple):
    step_size: jax.Array  # eta_t
    tau: jax.Array  # tau_t
    last_tau: jax.Array  # tau_{t-1}
    beta: jax.Array  # beta_t
    smoothness: jax.Array  # L_{t-1}


def acfgm(
    prox: Prox | None = None,
    *,
    alpha: ArrayLike = 0.1,
    beta: ArrayLike = BETA,
    initial: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The auto-conditioned fast gradient method for convex f + h.

    With x_0 = y_0 and the step size rule of the paper's experiments::

        z_t = prox_{eta_t h}(y_{t-1} - eta_t grad f(x_{t-1}))
        y_t = (1 - beta_t) y_{t-1} + beta_t z_t        beta_1 = 0, beta_t = beta
        x_t = (z_t + tau_t x_{t-1}) / (1 + tau_t)      tau_1 = 0

    The gradient is taken at x, which is also the answer. Two decisions beyond the paper: where two points show no
    curvature, L = 0, the step goes on growing; and where rounding has eaten the Bregman distance that L divides by,
    L = |g - g'| / |x - x'| takes its place.

    The first step needs an L_1, for which the paper searches with more gradients. Here, with one gradient a step, a
    probe comes first (a step of length 1e-3 (1 + |x_0|), ten times longer while it meets no curvature); the method
    starts from where it has led, with eta_1 = 1 / (2.5 L). If L_1 then turns out larger than this L, the method starts
    again from there with 1.5 L_1. `reset_momentum` makes it start again in the same way, without the probe.

    Args:
        prox: h, from `nagjax.proximal`; gradient and value passed to `update` are those of f.
        alpha: Between the two ways to bound tau, in [0, 1].
        beta: Weight of the average y, positive and at most 1 - sqrt(6)/3, the default.
        initial: eta_1, positive; 1 / (2.5 L) fits an L-smooth f, and no probe is made.
        axis_name: The mapped axis over which parameters are sharded inside `shard_map` or `pmap`.

    Returns:
        A gradient transformation that needs `params` and `value` in every update. Memory: three buffers (12 bytes a
        parameter of at most 32 bits) and six scalars. Cost: one gradient and the value of f with it a step.

    Guarantee:
        For convex, L-smooth f, F(x_k) - F* = O(L R^2 / k^2), R = |x_0 - x*| from the point where the method starts;
        in all tests (tau_k + 1) eta_{k+1} (F(x_k) - F*) <= R^2 / (2 beta).

    Raises:
        TypeError: `prox` is not a `Prox`, or a number is none.
        ValueError: A number is out of its range; `update` got no `params` or no `value`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from nagjax import adaptive
        >>> f = lambda x: jnp.sum(jnp.array([1.0, 100.0]) * x**2) / 2
        >>> tx, params = adaptive.acfgm(), jnp.array([1.0, 1.0])
        >>> state = tx.init(params)
        >>> for _ in range(200):
        ...     value, gradient = jax.value_and_grad(f)(params)
        ...     updates, state = tx.update(gradient, state, params, value=value)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(f(params) < 1e-4)
        True

    Source:
        T. Li and G. Lan, "A simple uniformly optimal method without line search for convex optimization", 2023; the
        step size rule is that of its experiments.
    """
    name = "adaptive.acfgm"
    pairs.check_optional_prox(name, prox)
    pairs.check_optional_step(name, initial)
    checks.scalar(name, "alpha", alpha, "in [0, 1]", lambda v: 0 <= v <= 1, "the paper uses 0, 0.1 and 0.5")
    in_range = "positive and at most 1 - sqrt(6)/3"
    checks.scalar(name, "beta", beta, in_range, lambda v: 0 < v <= BETA + 1e-3, "the default is the largest value")

    def init(params: PyTree) -> AcfgmState:
        dtype = scalar_dtype()
        return AcfgmState(
            displacement=pairs.zero_buffer(name, params),
            age=jnp.zeros((), jnp.int32),
            step_size=jnp.zeros((), dtype),
            tau=jnp.zeros((), dtype),
            last_tau=jnp.zeros((), dtype),
            last_value=jnp.zeros((), dtype),
            smoothness=jnp.zeros((), dtype),
            memory=pairs.no_memory(name, params),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, *, value: Any = None, **extra: Any
    ) -> tuple[PyTree, AcfgmState]:
        del extra
        params, updates = pairs.required_params(name, params), trees.as_arrays(updates)
        raw = pairs.required_value(name, value)
        present = as_scalar(raw)
        pair, memory = pairs.measure(name, state.memory, params, updates, axis_name)
        known = state.step_size > 0
        lipschitz = jnp.where(known, pair.lipschitz(pairs.rounding_unit((updates, params))), 0)
        local = _bregman_smoothness(pair, state.last_value, present, lipschitz, pairs.rounding_unit(raw))

        first = first_step(initial, updates, params, pair, axis_name)
        too_long = lipschitz * state.step_size * _FIRST > 1 + 1e-6
        starts = (state.age == 0) | ((state.age == 1) & too_long)
        opening, opened = _opening(state, first, known, lipschitz, pair.moved(), given=initial is not None)
        following = _following(state, lipschitz, local, as_scalar(alpha), as_scalar(beta))
        step = _select(starts, opening, following)
        age = jnp.where(starts, opened.astype(jnp.int32), increment(state.age))

        one = jnp.ones_like(step.tau)
        displacement = trees.combine((jnp.where(starts, 0, one), pairs.read(name, state.displacement, updates)))
        averaged = trees.add(trees.wide(updates, params), displacement)
        u = pairs.step_of(prox, averaged, updates, step.step_size)  # z_t - y_{t-1}
        weight = 1 / (1 + step.tau)
        moved = trees.combine((weight, displacement), (weight, u))
        displacement = trees.combine((step.tau * weight, displacement), (step.beta - weight, u))
        # Before the method starts, y follows x.
        displacement = trees.combine((jnp.where(age > 0, one, 0), displacement))
        new_state = AcfgmState(
            displacement=pairs.write(displacement, state.displacement),
            age=age,
            step_size=step.step_size,
            tau=step.tau,
            last_tau=step.last_tau,
            last_value=present,
            smoothness=step.smoothness,
            memory=memory,
        )
        return trees.like(updates, moved), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _bregman_smoothness(
    pair: Pair, last_value: jax.Array, value: jax.Array, lipschitz: jax.Array, unit: float
) -> jax.Array:
    """|g - g'|^2 / (2 D), D = f(x') - f(x) - <g, x' - x>; where rounding has eaten D, |g - g'| / |x - x'|."""
    distance = last_value - value + pair.slope
    noise = _ROUNDING * unit * (jnp.abs(last_value) + jnp.abs(value) + jnp.abs(pair.slope))
    exact = (distance > noise) & (lipschitz > 0)
    change = jnp.sqrt(pair.squared_change)
    return jnp.where(exact, change * (change / jnp.where(exact, 2 * distance, 1)), lipschitz)


def _opening(
    state: AcfgmState, first: jax.Array, known: jax.Array, lipschitz: jax.Array, moved: jax.Array, *, given: bool
) -> tuple[_Step, jax.Array]:
    """Step t = 1, and whether it counts: a probe does not."""
    seen, searching = lipschitz > 0, moved & (state.smoothness == 0)
    # The first try may be as long as the curvature of the probe allows; later ones come after a failure.
    estimate = jnp.where(state.age == 0, 1, _RETRY) * jnp.where(seen, lipschitz, 1)
    again = jnp.where(seen, 1 / (_FIRST * estimate), jnp.where(searching, PROBE_GROWTH, 1) * state.step_size)
    zero = jnp.zeros_like(first)
    step_size = pairs.limited(jnp.where(known, again, first))
    opened = seen | (known & (state.smoothness > 0)) | (jnp.asarray(given) & ~known)
    return _Step(step_size, zero, zero, zero, jnp.where(seen, lipschitz, state.smoothness)), opened


def _following(state: AcfgmState, lipschitz: jax.Array, local: jax.Array, alpha: jax.Array, beta: jax.Array) -> _Step:
    """Step t >= 2. L = 0 lifts its bound on the step."""
    second = state.age <= 1
    smoothness = jnp.where(second, lipschitz, local)
    size, seen = jnp.where(smoothness > 0, smoothness, 1), smoothness > 0
    tau, last_tau = jnp.where(second, 1, state.tau), jnp.where(second, 0, state.last_tau)
    growth = jnp.where(second, 1 - beta, jnp.minimum(2 * (1 - beta) ** 2, (last_tau + 1) / tau))
    grown = growth * state.step_size
    step_size = pairs.limited(jnp.where(seen, jnp.minimum(grown, tau / (4 * size)), grown))
    following = tau + alpha / 2 + 2 * (1 - alpha) * step_size * smoothness / tau
    return _Step(step_size, following, tau, beta, smoothness)


def _select(first: jax.Array, opening: _Step, following: _Step) -> _Step:
    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(first, a, b)

    return _Step(*(choose(a, b) for a, b in zip(opening, following, strict=True)))
