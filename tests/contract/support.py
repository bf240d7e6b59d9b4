"""The problem of the contract suite, and the loops that run a method on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.catalogue import STRONG_CONVEXITY

RATE = 0.5
STEPS = 30  # enough for every restart of the catalogue to happen
SHAPES = {"matrix": (3, 5), "nest": {"vector": (7,), "scalar": ()}}
DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")


def trees(shapes=None, dtype="float64", seed=0):
    """Random parameters of the given shapes."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        real, imaginary = rng.normal(size=(2, *shape))
        return jnp.asarray(real + 1j * imaginary if dtype.startswith("complex") else real).astype(dtype)

    return jax.tree.map(draw, SHAPES if shapes is None else shapes, is_leaf=lambda node: isinstance(node, tuple))


def curvature(leaf):
    """The diagonal of the Hessian: from 1 to STRONG_CONVEXITY along the flattened leaf."""
    return jnp.linspace(1.0, STRONG_CONVEXITY, leaf.size, dtype=leaf.real.dtype).reshape(leaf.shape)


def gradient(params):
    """The conjugated gradient of the loss, in the dtypes of the parameters."""
    return jax.tree.map(lambda y: curvature(y).astype(y.dtype) * y, params)


def loss(params):
    """The quadratic |params|^2_H / 2, in float32 as losses of training are."""
    parts = [jnp.sum(curvature(y) * jnp.abs(y) ** 2).astype(jnp.float32) for y in jax.tree.leaves(params)]
    return sum(parts, jnp.float32(0)) / 2


def step(tx, params, state, slope=gradient):
    """One update of training: parameters and state."""
    updates, state = tx.update(slope(params), state, params, value=loss(params))
    return optax.apply_updates(params, updates), state


def compiled(tx, steps=STEPS, slope=gradient):
    """A compiled run: from parameters and state to parameters and state."""

    def body(carry, _):
        return step(tx, *carry, slope), None

    return jax.jit(lambda params, state: jax.lax.scan(body, (params, state), length=steps)[0])


def run(tx, params, steps=STEPS):
    """Parameters and state after a compiled run from a fresh state."""
    return compiled(tx, steps)(params, tx.init(params))


@functools.cache
def runner(method):
    """A row's transformation, and its compiled run of STEPS updates, which all tests share."""
    tx = method.make(RATE)
    return tx, compiled(tx)


@functools.cache
def finished(method):
    """Transformation, parameters and state after a run from the suite's parameters."""
    tx, follow = runner(method)
    return tx, *follow(trees(), tx.init(trees()))


def same_bits(actual, expected):
    """Assert equal structures, dtypes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert avals(actual) == avals(expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), actual, expected)


def close(actual, expected, tolerance=1e-13):
    """Assert equal structures and close leaves; the default is rounding of float64 on numbers near 1."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def avals(tree):
    """Shapes, dtypes and weak types, in a tree that compares with ==."""
    return jax.tree.map(lambda leaf: jax.typeof(jnp.asarray(leaf)).str_short() + str(jnp.asarray(leaf).weak_type), tree)
