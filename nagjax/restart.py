"""Restart tests: when the velocity has stopped helping, start again from the answer.

At a restart the parameters land on the answer x_{k+1}; velocity, readout and age become 0. A test that meets NaN is
false, so NaN never restarts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nagjax import checks
from nagjax.mapped import AxisName
from nagjax.reductions import inner_product, squared_norm
from nagjax.scalars import increment, scalar_dtype
from nagjax.types import PyTree, Restart


def gradient(axis_name: AxisName | None = None) -> Restart:
    """The gradient test: restart when the proposed step points against the velocity, sum Re<u, w'> < 0.

    Args:
        axis_name: The mapped axis over which parameters are sharded inside `shard_map` or `pmap`.

    Returns:
        A test without state. It reads the step and the velocity once more.

    Source:
        B. O'Donoghue and E. Candes, "Adaptive restart for accelerated gradient schemes", 2015, section 3.2. With
        u = x_{k+1} - y_k the test covers proximal steps.
    """

    def test(carry: tuple[()], *, step: PyTree, velocity: PyTree, **_: Any) -> tuple[jax.Array, tuple[()]]:
        product = inner_product(step, velocity, axis_name)
        return (product < 0) & jnp.isfinite(product), carry

    return Restart(init=tuple, test=test)


class _SpeedCarry(NamedTuple):
    steps: jax.Array  # updates since the last restart, int32 scalar
    speed: jax.Array  # |w|^2 of the last update, scalar


def speed(axis_name: AxisName | None = None, *, k_min: int = 2) -> Restart:
    """The speed test: restart when the answer moves less than in the step before, |w'| < |w|.

    Only for rules of Nesterov's form, whose velocity is the difference of successive answers; `accelerate` refuses
    others. Take a larger `k_min` with rules that start with b_1 = 0, such as `fista` and `polynomial`: their first
    two updates are plain gradient steps, the second of which is the shorter one, so that `k_min=2` restarts for ever.

    Args:
        axis_name: The mapped axis over which parameters are sharded inside `shard_map` or `pmap`.
        k_min: The earliest update since the last restart that may restart, an integer of at least 2. The paper's
            experiments use 10.

    Returns:
        A test with two scalars of state.

    Raises:
        TypeError: `k_min` is not an integer.
        ValueError: `k_min` is less than 2.

    Source:
        W. Su, S. Boyd and E. Candes, "A differential equation for modeling Nesterov's accelerated gradient method",
        2016, section 5.1 and Algorithm 1.
    """
    checks.whole("restart.speed", "k_min", k_min, 2, "10 is usual")

    def init() -> _SpeedCarry:
        return _SpeedCarry(jnp.zeros((), jnp.int32), jnp.zeros((), scalar_dtype()))

    def test(carry: _SpeedCarry, *, velocity: PyTree, **_: Any) -> tuple[jax.Array, _SpeedCarry]:
        steps, now = increment(carry.steps), squared_norm(velocity, axis_name)
        return (now < carry.speed) & (steps >= k_min), _SpeedCarry(steps, now)

    return Restart(init, test, needs_nesterov=True)


def value() -> Restart:
    """The function test: restart when the value of the objective at `params` has risen since the last update.

    Needs `value=` in every update; for composite functions `objective=`, f + h at `params`, which comes before
    `value`. The first comparison after a restart is with infinity. Not for constrained problems, where the objective
    at the query point may be infinite.

    Returns:
        A test with one scalar of state, the last value.

    Source:
        B. O'Donoghue and E. Candes, "Adaptive restart for accelerated gradient schemes", 2015, section 3.2.
    """

    def init() -> jax.Array:
        return jnp.full((), jnp.inf, scalar_dtype())

    def test(last: jax.Array, *, value: Any = None, objective: Any = None, **_: Any) -> tuple[jax.Array, jax.Array]:
        value = value if objective is None else objective
        if value is None:
            checks.reject("restart.value", "value", "given to every update", value, "pass `value=loss` to `update`")
        if jnp.shape(value):
            checks.reject("restart.value", "value", "a scalar", value, "pass the mean or the sum of the losses")
        now = jnp.asarray(value).astype(last.dtype)
        return now > last, now

    return Restart(init, test)


def every(period: int) -> Restart:
    """Scheduled restart: at every update number `period`, `2 period`, ...

    With the momentum b_k = k/(k+3), which is `schedule(lambda k: k / (k + 3.0))`, the gains of one period are
    1/4, 2/5, ..., (period-1)/(period+2), 0: the sequence of SRSGD from its second update on.

    Args:
        period: Updates from one restart to the next, an integer of at least 1.

    Returns:
        A test with one int32 counter of state.

    Raises:
        TypeError: `period` is not an integer.
        ValueError: `period` is less than 1.

    Source:
        B. Wang, T. Nguyen, T. Sun, A. Bertozzi, R. Baraniuk and S. Osher, "Scheduled restart momentum for
        accelerated stochastic gradient descent", 2020.
    """
    checks.whole("restart.every", "period", period, 1, "give the number of updates between restarts")

    def init() -> jax.Array:
        return jnp.zeros((), jnp.int32)

    def test(count: jax.Array, **_: Any) -> tuple[jax.Array, jax.Array]:
        count = increment(count)
        return count >= period, count

    return Restart(init, test)
