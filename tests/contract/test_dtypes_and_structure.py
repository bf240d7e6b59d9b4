"""Updates look like their gradients, and the state keeps structure and dtypes for ever."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from tests.catalogue import METHODS, THREE, over
from tests.contract.support import DTYPES, RATE, gradient, loss, run, trees


def mixed(dtypes):
    """One tree with a leaf of every dtype."""
    return {dtype: trees((2, 3), dtype) for dtype in dtypes}


def described(tree):
    return jax.tree.structure(tree), [jax.typeof(leaf).str_short() for leaf in jax.tree.leaves(tree)]


def check_shapes(tx, params):
    """Trace two updates in a scan and a conditional, which refuse a state that changes; check the updates."""

    def body(carry, _):
        params, state = carry
        updates, new = tx.update(gradient(params), state, params, value=loss(params))
        new = jax.lax.cond(jnp.isfinite(loss(params)), lambda: new, lambda: state)
        return (params, new), updates

    state = jax.eval_shape(tx.init, params)
    (_, after), updates = jax.eval_shape(lambda s: jax.lax.scan(body, (params, s), length=2), state)
    assert described(after) == described(state)
    assert described(updates) == described(jax.tree.map(lambda y: jnp.stack([y, y]), params))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, after, updates)))
    answer = jax.eval_shape(nagjax.eval_params, params, state)
    assert described(answer) == described(params)


@over(METHODS)
def test_a_tree_of_all_dtypes_keeps_structure_shapes_and_dtypes_in_scan_and_cond(method):
    check_shapes(method.make(RATE), mixed(DTYPES))


@over(METHODS)
def test_without_64_bits_a_tree_of_all_dtypes_keeps_structure_shapes_and_dtypes(method, single_precision):
    params, tx = mixed(set(DTYPES) - {"float64", "complex128"}), method.make(RATE)
    check_shapes(tx, params)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(tx.init, params))}
    assert not dtypes & {"float64", "int64", "uint64", "complex128"}


@pytest.mark.parametrize("dtype", DTYPES)
@over(THREE)
def test_a_compiled_run_in_every_dtype_follows_the_run_in_float64(method, dtype):
    tx, params = method.make(0.25), trees((2, 3), dtype)
    after, state = run(tx, params, 4)
    assert described(after) == described(params)
    assert described(state) == described(tx.init(params))
    wide = "complex128" if dtype.startswith("complex") else "float64"
    exact, _ = run(tx, params.astype(wide), 4)
    # Four additions of numbers of size 4 at most; int8 adds one scale, 4/127, a step.
    tolerance = 40 * float(jnp.finfo(dtype).eps) + (4 * 4 / 127 if method.rounds else 0)
    np.testing.assert_allclose(after.astype(wide), exact, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_coefficients_do_not_round_to_the_dtype_of_parameters(dtype):
    """1 - 3/(k+3) is 1.0 in bfloat16 at k = 3000; the velocity must still decay."""
    tx = nagjax.accelerate(lambda k: 1 - 3 / (k + 3.0))
    params = jnp.zeros(2, dtype)
    state = tx.init(params)
    state = optax.tree_utils.tree_set(
        state, age=jnp.int32(3000), velocity=jnp.ones(2, jnp.float32), momentum=jnp.int32(3000)
    )
    _, state = tx.update(jnp.zeros(2, dtype), state)
    np.testing.assert_allclose(nagjax.velocity(state), 1 - 3 / 3003, rtol=1e-6)
