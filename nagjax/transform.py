"""`accelerate`, the one transformation of nagjax."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import varying_like
from nagjax.momentum.classical import as_momentum
from nagjax.scalars import Schedule, as_scalar, increment, scalar_dtype
from nagjax.storage import decode, full, scaled, where
from nagjax.types import Carry, Momentum, PyTree, Restart, Storage


class AccelerateState(NamedTuple):
    """State of `accelerate`."""

    velocity: PyTree  # w, as its storage keeps it: the structure of the parameters for full() and cast()
    readout: jax.Array  # of the last update; scalar, float32 or float64
    age: jax.Array  # k, updates since the last restart; int32 scalar
    momentum: Carry  # of the rule
    restart: Carry  # of the restart test

    def answer(self, params: PyTree) -> PyTree:
        """x = params - readout * w."""
        return subtract_velocity(params, self.buffers(), self.readout)

    def buffers(self) -> PyTree:
        """w, in at least 32 bits."""
        return decode(self.velocity)

    def reset(self) -> "AccelerateState":
        """Zero velocity, readout and age; at age 0 the next update starts rule and test again."""
        return self._replace(
            velocity=where(self.velocity, False),
            readout=trees.zeros(self.readout),
            age=trees.zeros(self.age),
        )

    def scaled(self, factors: list[jax.Array]) -> "AccelerateState":
        """The velocity times one scalar a leaf."""
        return self._replace(velocity=scaled(self.velocity, factors))


def accelerate(
    momentum: ArrayLike | Schedule | Momentum,
    *,
    restart: Restart | None = None,
    storage: Storage | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Accelerate the steps of the chain before it.

    With the proposed step u, the velocity w and the coefficients of update k from `momentum`::

        w'     = decay * w + u
        update = direct * u + gain * w'
        answer = params' - readout * w'

    Put it last in a chain, after everything that scales the step: only then is the velocity in units of the
    parameters, and `eval_params` the answer. `params` are the query point y; gradients are always taken there.

    Args:
        momentum: A number in [0, 1) or an Optax schedule of such numbers, for Nesterov's method with that momentum;
            or a rule from `nagjax.momentum`. Inside `optax.inject_hyperparams` pass schedules as
            `momentum.schedule(fn)`: a bare schedule would be evaluated once for both of its places.
        restart: A test from `nagjax.restart`. When it is true in an update, parameters land on the answer and
            velocity, readout and age start again from 0.
        storage: How the velocity is kept, from `nagjax.storage`; `full()` by default. It is rounded before it is
            used, so that the answer is exact for every storage.

    Returns:
        A gradient transformation for real and complex parameters. For complex ones conjugate the gradient that
        `jax.grad` returns, once, before the chain. Updates keep the structure, shapes and dtypes of the steps; where
        a step is None or `optax.MaskedNode` the update is too, and the velocity stays. Memory: one buffer (4 bytes a
        parameter of at most 32 bits with `full()`) and a few scalars.

    Raises:
        TypeError: An argument has the wrong type, or parameters are not floating-point (raised by `init`).
        ValueError: The momentum is outside [0, 1); the restart test needs a rule of Nesterov's form; steps do not
            have the structure and shapes of the parameters (raised by `update`).

    Example:
        >>> import jax, nagjax, optax
        >>> tx = optax.chain(optax.scale(-0.1), nagjax.accelerate(0.9))
        >>> params = jax.numpy.array([1.0, -2.0])
        >>> state = tx.init(params)
        >>> for _ in range(300):
        ...     updates, state = tx.update(params, state)  # the gradient of |x|^2 / 2 is x
        ...     params = optax.apply_updates(params, updates)
        >>> bool(abs(nagjax.eval_params(params, state)).max() < 1e-6)
        True

    Source:
        Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983. The
        derivation of the four coefficients of each rule is in BUILD_NOTES.md.
    """
    rule = as_momentum(momentum)
    if restart is not None and restart.needs_nesterov and not rule.nesterov:
        checks.reject(
            "accelerate", "momentum", "a rule of Nesterov's form for this restart", momentum, "use restart.gradient()"
        )
    buffer = full() if storage is None else storage

    def init(params: PyTree) -> AccelerateState:
        check_floating("accelerate", params)
        return AccelerateState(
            velocity=buffer.init(trees.as_arrays(params)),
            readout=jnp.zeros((), scalar_dtype()),
            age=jnp.zeros((), jnp.int32),
            momentum=rule.init(),
            restart=() if restart is None else restart.init(),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AccelerateState]:
        del params
        fresh = state.age == 0
        coefficients, momentum_carry = rule.next(_select(fresh, rule.init(), state.momentum), **extra)
        decay, direct, gain, readout = map(as_scalar, coefficients)
        updates = trees.as_arrays(updates)
        previous = decode_checked("accelerate", buffer, state.velocity, updates)
        one = jnp.ones_like(decay)
        proposed = trees.combine((decay, previous), (one, updates))

        if restart is None:
            stored = buffer.encode(proposed, state.velocity)
            terms = [(gain, buffer.decode(stored, updates)), (direct, updates)]
            age, restart_carry = increment(state.age), state.restart
        else:
            carry = _select(fresh, restart.init(), state.restart)
            flag, restart_carry = restart.test(carry, step=updates, velocity=proposed, **extra)
            keep = _detached(~flag, one)
            # The flag scales coefficients, not arrays: the proposed velocity then lives inside the test alone, and
            # the kept one is computed in place of the previous one.
            stored = buffer.encode(trees.combine((keep * decay, previous), (keep, updates)), state.velocity)
            terms = [(gain, buffer.decode(stored, updates)), (direct, updates)]
            if not rule.nesterov:
                # Land on the answer; in Nesterov's form gain - readout is 0, and zero velocity is enough.
                terms.append(((1 - keep) * (gain - readout), proposed))
            readout, age = keep * readout, jnp.where(flag, 0, increment(state.age))

        # Constants too stay of the type that `shard_map` has for them in the state.
        kept = varying_like((readout, momentum_carry, restart_carry), (state.readout, state.momentum, state.restart))
        new_state = AccelerateState(stored, kept[0], age, *kept[1:])
        return trees.map_present(_as_dtype_of, updates, trees.combine(*terms)), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def subtract_velocity(params: PyTree, velocity: PyTree, readout: jax.Array) -> PyTree:
    """params - readout * velocity, in the structure and dtypes of `params`, by `answer_from`.

    A `readout` with axes belongs to stacked replicas and is aligned from the left.
    """

    def subtract(y: jax.Array, w: jax.Array) -> jax.Array:
        scale = readout.reshape(readout.shape + (1,) * (w.ndim - readout.ndim))
        dtype = np.promote_types(trees.compute_dtype(y.dtype), w.dtype)
        return (y.astype(dtype) - trees.scaled(scale, w.astype(dtype))).astype(y.dtype)

    return answer_from(params, velocity, subtract)


def answer_from(params: PyTree, tree: PyTree, point: Callable[[jax.Array, jax.Array], jax.Array]) -> PyTree:
    """`params` with point(y, w) in place of each leaf y, from the leaf w of a state's tree that belongs to it.

    `tree` may lack leaves (None, `optax.MaskedNode`), which stay y, and may have other containers than `params`:
    leaves then match by flattened order.
    """
    params = trees.as_arrays(params)
    remedy = "pass the tree that `init` received"
    held = trees.leaves(tree)
    try:
        parts: list[Any] = trees.structure(tree).flatten_up_to(params)
    except (ValueError, TypeError):
        parts = trees.leaves(params)
    if len(parts) != len(held):
        found, expected = len(trees.leaves(params)), f"the parameters of this state, which has {len(held)} leaves"
        checks.reject("eval_params", "params", expected, f"{found} leaves", remedy)

    def leaf(y: Any, w: Any) -> Any:
        if trees.is_absent(w) or trees.is_absent(y):
            return y
        if not hasattr(y, "dtype"):
            checks.reject("eval_params", "params", f"one array of shape {w.shape} here", type(y).__name__, remedy)
        w = trees.as_complex(w) if jnp.iscomplexobj(y) else w
        if y.shape != w.shape:
            checks.reject("eval_params", "params", f"of shape {w.shape} here", y.shape, remedy)
        return point(y, w)

    answers = [part for y, w in zip(parts, held, strict=True) for part in trees.leaves(leaf(y, w))]
    return trees.rebuild(params, answers)


def check_floating(function: str, params: PyTree) -> None:
    """Raise TypeError where a parameter is neither floating-point nor complex."""
    for path, leaf in cast("list[tuple[Any, Any]]", jax.tree_util.tree_leaves_with_path(params)):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            found = f"{jnp.result_type(leaf)} at params{jax.tree_util.keystr(path)}"
            remedy = "cast it, or leave it out with optax.masked or optax.partition"
            checks.reject(function, "params", "floating-point or complex", found, remedy, TypeError)


def decode_checked(function: str, buffer: Storage, stored: PyTree, updates: PyTree) -> PyTree:
    """The stored velocity, after checking that updates have the structure and shapes of the parameters."""
    remedy = "pass gradients of the parameters that `init` received, with None for those that have none"
    try:
        velocity = buffer.decode(stored, updates)
    except (ValueError, TypeError, AttributeError) as error:
        expected = trees.structure(decode(stored))
        found = trees.structure(updates)
        if expected == found:
            raise
        raise ValueError(f"{function}: updates must be of the structure {expected}, got {found}; {remedy}.") from error
    for u, w in zip(trees.leaves(updates), trees.leaves(velocity), strict=True):
        if trees.is_absent(u):
            continue
        # Complex velocities are decoded to pairs for real updates, unless they are stored in full.
        if (jnp.iscomplexobj(w) and not jnp.iscomplexobj(u)) or w.shape == (*u.shape, 2):
            checks.reject(function, "updates", "complex like the parameters here", f"{u.dtype}{list(u.shape)}", remedy)
        if u.shape != w.shape:
            checks.reject(function, "updates", f"of shape {w.shape} here", u.shape, remedy)
    return velocity


def check_updates(function: str, updates: PyTree, like: PyTree, argument: str = "updates") -> None:
    """Raise ValueError where updates have another structure or other shapes than `like`; they may lack leaves."""
    remedy = "pass the tree that `init` received"
    if argument == "updates":
        remedy = "pass gradients of the parameters that `init` received, with None for those that have none"
    expected, found = trees.structure(like), trees.structure(updates)
    if expected != found:
        checks.reject(function, argument, f"of the structure {expected}", found, remedy)
    for u, w in zip(trees.leaves(updates), trees.leaves(like), strict=True):
        if trees.is_absent(u):
            continue
        if trees.is_absent(w):
            checks.reject(function, argument, "None where the parameters are", f"{u.dtype}{list(u.shape)}", remedy)
        if jnp.iscomplexobj(w) and not jnp.iscomplexobj(u):
            checks.reject(function, argument, "complex like the parameters here", f"{u.dtype}{list(u.shape)}", remedy)
        if u.shape != w.shape:
            checks.reject(function, argument, f"of shape {w.shape} here", u.shape, remedy)


def _select(fresh: jax.Array, initial: Carry, carry: Carry) -> Carry:
    def select(first: jax.Array, later: jax.Array) -> jax.Array:
        return jnp.where(fresh, first, later)

    return jax.tree.map(select, initial, carry)


def _as_dtype_of(update: jax.Array, value: jax.Array) -> jax.Array:
    return value.astype(update.dtype)


def _detached(flag: jax.Array, one: jax.Array) -> jax.Array:
    # XLA's CPU backend fuses the reductions behind a flag into the kernel of every leaf that uses it (161 leaves:
    # 24 s of compilation). It does not fuse across a conditional.
    return cast("jax.Array", jax.lax.cond(flag, lambda: one, lambda: jnp.zeros_like(one)))
