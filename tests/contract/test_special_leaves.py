"""Absent leaves, empty trees, scalars, zero-size arrays, odd shapes and NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from nagjax import restart
from tests.catalogue import CONVENTIONS, METHODS, REPRESENTATIVES, RESTARTS, STORAGES, THREE, over
from tests.contract.support import RATE, close, finished, gradient, loss, run, same_bits, trees

tree_get = optax.tree_utils.tree_get
STATES = (REPRESENTATIVES[0], *RESTARTS, *STORAGES, *CONVENTIONS)  # rules see no leaves


@over(STATES)
def test_a_leaf_without_gradient_keeps_its_velocity_and_gets_no_update(method):
    tx, params, state = finished(method)
    slope = gradient(params) | {"matrix": None}
    updates, after = jax.jit(lambda s: tx.update(slope, s, params, value=jnp.float32(0)))(state)
    assert updates["matrix"] is None
    assert jax.tree.structure(after) == jax.tree.structure(state)
    before, now = nagjax.velocity(state), nagjax.velocity(after)
    assert jnp.any(before["matrix"] != 0)
    same_bits(now["matrix"], before["matrix"])
    assert jnp.any(now["nest"]["vector"] != before["nest"]["vector"])


@over(REPRESENTATIVES)
def test_absent_leaves_do_not_change_the_others(method):
    """Parameters without gradients, and masked ones, could as well not be there."""
    tx = method.make(RATE)
    absent = {"frozen": None, "masked": optax.MaskedNode()}

    def body(_, carry):
        params, state = carry
        slope = gradient({"active": params["active"]}) | {name: absent[name] for name in params if name in absent}
        updates, state = tx.update(slope, state, params, value=jnp.float32(1))
        return params | {"active": params["active"] + updates["active"]}, state

    def three_steps(params):
        return jax.jit(lambda p: jax.lax.fori_loop(0, 3, body, (p, tx.init(p))))(params)

    params = {"active": trees((7,)), "frozen": trees((3, 5)), "masked": optax.MaskedNode()}
    after, state = three_steps(params)
    answer = nagjax.eval_params(after, state)
    assert jax.tree.structure(answer) == jax.tree.structure(params)
    same_bits((answer["frozen"], answer["masked"]), (params["frozen"], params["masked"]))
    alone, alone_state = three_steps({"active": params["active"]})
    close((after["active"], answer["active"]), (alone["active"], nagjax.eval_params(alone, alone_state)["active"]))


ODD_SHAPES = {"scalar": (), "row": (1, 7), "empty": (0,), "hollow": (3, 0), "prime": (2, 3, 5)}


@over([*STORAGES, *CONVENTIONS[:2]])
def test_a_scalar_a_zero_size_array_and_odd_shapes_work(method):
    tx, params = method.make(RATE), trees(ODD_SHAPES, "float32")
    updates, state = jax.jit(lambda p: tx.update(gradient(p), tx.init(p), p, value=loss(p)))(params)
    answer = nagjax.eval_params(optax.apply_updates(params, updates), state)
    assert jax.tree.map(jnp.shape, (updates, answer)) == jax.tree.map(jnp.shape, (params, params))
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((updates, answer)))


@pytest.mark.parametrize("shape", ODD_SHAPES.values(), ids=str)
@over(THREE)
def test_complex_leaves_of_odd_shapes_decode_to_their_shape(method, shape):
    tx, params = method.make(RATE), trees(shape, "complex64")
    after, state = jax.jit(lambda p: tx.update(gradient(p), tx.init(p), p, value=loss(p)))(params)
    assert after.shape == nagjax.eval_params(after, state).shape == shape


@pytest.mark.parametrize("params", [{}, (), {"a": {}, "b": None}], ids=repr)
@over(METHODS)
def test_empty_trees_are_updated_to_empty_trees(method, params):
    tx = method.make(RATE)
    state = tx.init(params)
    updates, after = jax.eval_shape(lambda s: tx.update(params, s, params, value=jnp.float32(0)), state)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.structure(after) == jax.tree.structure(nagjax.reset_momentum(state)) == jax.tree.structure(state)
    assert jax.tree.structure(nagjax.eval_params(params, state)) == jax.tree.structure(params)


@over(THREE)
def test_python_and_numpy_numbers_are_parameters_as_in_optax(method):
    """Eagerly, with a state that was fetched to the host."""
    tx = method.make(RATE)
    for params in {"a": 1.0}, {"a": np.ones(3)}, {"a": np.float32(1)}:
        state = jax.device_get(tx.init(params))
        updates, state = tx.update(params, state, params, value=1.0)
        answer = nagjax.eval_params(optax.apply_updates(params, updates), jax.device_get(state))
        np.testing.assert_allclose(answer["a"], 0.5 * params["a"], rtol=1e-6)  # x = y - RATE y
        assert jnp.shape(updates["a"]) == np.shape(params["a"])


@over(REPRESENTATIVES)
def test_a_bare_array_is_a_tree(method):
    tx, params = method.make(RATE), trees((4,))
    after, state = run(tx, params, 3)
    boxed, boxed_state = run(tx, [params], 3)
    same_bits([after, nagjax.eval_params(after, state)], [*boxed, *nagjax.eval_params(boxed, boxed_state)])


@over(STATES)
def test_a_nan_in_a_step_reaches_its_parameter_and_no_other_leaf(method):
    tx, params, state = finished(method)
    broken = gradient(params)
    broken["nest"]["vector"] = broken["nest"]["vector"].at[2].set(jnp.nan)
    updates, after = jax.jit(lambda s: tx.update(broken, s, params, value=loss(params)))(state)
    hit = jnp.isnan(updates["nest"]["vector"])
    assert hit[2]
    assert jnp.sum(hit) == 1 or method.rounds  # a block of 8-bit numbers shares its scale
    assert jnp.isnan(nagjax.velocity(after)["nest"]["vector"][2])
    assert jnp.all(jnp.isfinite(updates["matrix"]))


TESTS = {"gradient": restart.gradient, "speed": restart.speed, "value": restart.value}


@pytest.mark.parametrize("storage", [nagjax.storage.full(), nagjax.storage.int8()], ids=["full", "int8"])
@pytest.mark.parametrize("test", TESTS)
def test_nan_never_restarts(test, storage):
    """Steps and values that restart every test, were it not for a NaN in the first step and in every other value."""
    tx, k = nagjax.accelerate(0.9, restart=TESTS[test](), storage=storage), jnp.arange(30.0)
    steps = jnp.where(k < 15, 1.0, -0.5)[:, None] * jnp.ones((1, 3))

    def ages(steps, values):
        def body(state, inputs):
            _, state = tx.update(inputs[0], state, value=inputs[1])
            return state, state.age

        return jax.lax.scan(body, tx.init(steps[0]), (steps, values))[1]

    assert 0 in jax.jit(ages)(steps, k).tolist()
    broken = jax.jit(ages)(steps.at[0, 0].set(jnp.nan), jnp.where(k % 2 == 0, k, jnp.nan))
    assert broken.tolist() == list(range(1, 31))
