"""Runs of an optimizer on a gradient function, as one compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nagjax
from nagjax.theory.convex_loops import Trajectory


def run(optimizer, gradient, start, steps, *, value=None, answer=nagjax.eval_params):
    """Parameters and answers after 0, ..., `steps` updates, as NumPy arrays.

    `gradient` takes (params, k), where k counts updates. `value`, of params, is passed on to restart tests.
    """
    start = jnp.asarray(start)

    def update(carry, k):
        params, state = carry
        extra = {} if value is None else {"value": value(params)}
        updates, state = optimizer.update(gradient(params, k), state, params, **extra)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, answer(params, state))

    @jax.jit
    def whole(params):
        _, (queries, answers) = jax.lax.scan(update, (params, optimizer.init(params)), jnp.arange(steps))
        return queries, answers

    queries, answers = whole(start)
    first = np.asarray(start)[None]
    return Trajectory(np.concatenate([first, queries]), np.concatenate([first, answers]))


def from_table(values):
    """A schedule that reads entry k of a table; its last entry stands for all later ones."""
    table = jnp.asarray(values)
    return lambda k: table[jnp.minimum(k, len(table) - 1)]


def assert_close(actual, expected, tolerance):
    """Equality relative to the largest expected entry, or to 1 where all are smaller."""
    expected = np.asarray(expected)
    scale = max(1.0, float(np.max(np.abs(expected))))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def assert_same_trajectory(actual, expected, tolerance):
    """Equality of both sequences."""
    assert_close(actual.queries, expected.queries, tolerance)
    assert_close(actual.answers, expected.answers, tolerance)
