"""The contract of the wrappers of step sizes and of the adaptive methods, over their rows of the catalogue.

The suite of tests/contract asks for states with one velocity; these hold more, or none.
"""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import nagjax
from tests.catalogue import ADAPTIVE, over
from tests.contract.support import DTYPES, avals, close, gradient, loss, same_bits, trees

tree_get = optax.tree_utils.tree_get
# One a method: what the prox adds is the same in all.
PLAIN = [method for method in ADAPTIVE if "," not in method.name]
SOME = [method for method in PLAIN if method.name in ("curvature", "backtracking", "acfgm", "adgd_accelerated")]


def bowl(x):
    return jnp.sum(jnp.asarray([1.0, 4.0], x.dtype) * x**2) / 2


def update(tx, params, state, slope=gradient):
    updates, state = tx.update(slope(params), state, params, value=loss(params), value_fn=loss)
    return optax.apply_updates(params, updates), state


def scanned(tx, params, steps):
    def body(carry, _):
        return update(tx, *carry), None

    return jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=steps)[0])(params)


@functools.cache
def runner(method):
    """A row's transformation, and its compiled run, which the tests share: parameters, state, and the largest loss."""
    tx = method.make(0.5)

    def body(_, carry):
        params, state, largest = carry
        return *update(tx, params, state), jnp.maximum(largest, loss(params))

    return tx, jax.jit(lambda params, state, n: jax.lax.fori_loop(0, n, body, (params, state, jnp.float32(0))))


@functools.cache
def finished(method):
    """Transformation, parameters and state after 10 updates from the suite's parameters."""
    tx, follow = runner(method)
    params, state, _ = follow(trees(), tx.init(trees()), 10)
    return tx, params, state


def mixed(dtypes):
    return {dtype: trees((2, 3), dtype) for dtype in dtypes}


@over(ADAPTIVE)
def test_a_tree_of_all_dtypes_keeps_structure_shapes_and_dtypes_in_scan_and_cond(method):
    tx, params = method.make(0.5), mixed(DTYPES)

    def body(carry, _):
        params, state = carry
        updates, new = tx.update(gradient(params), state, params, value=loss(params), value_fn=loss)
        new = jax.lax.cond(jnp.isfinite(loss(params)), lambda: new, lambda: state)
        return (params, new), updates

    state = jax.eval_shape(tx.init, params)
    (_, after), updates = jax.eval_shape(lambda s: jax.lax.scan(body, (params, s), length=2), state)
    assert after == state
    assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, params)
    assert jax.eval_shape(nagjax.eval_params, params, state) == jax.eval_shape(lambda p: p, params)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, after, updates)))


@over(PLAIN)
def test_without_64_bits_no_state_has_64(method, single_precision):
    params, tx = mixed(set(DTYPES) - {"float64", "complex128"}), method.make(0.5)
    after, state = jax.eval_shape(lambda p: update(tx, p, tx.init(p)), params)
    assert after == jax.eval_shape(lambda p: p, params)
    assert not {leaf.dtype.name for leaf in jax.tree.leaves(state)} & {"float64", "int64", "complex128"}


@over(ADAPTIVE)
def test_states_name_their_step_size_once_and_count_function_values(method):
    _, after, state = finished(method)
    params = trees()
    assert len(optax.tree_utils.tree_get_all_with_path(state, "step_size")) == 1
    size = tree_get(state, "step_size")
    assert size.shape == ()
    assert size.dtype == jnp.float64
    assert float(size) > 0
    count = tree_get(state, "function_evaluations")
    assert count is None or (count.dtype == jnp.int32 and int(count) >= 10)
    assert float(loss(nagjax.eval_params(after, state))) < float(loss(params)) / 2


@over(ADAPTIVE)
def test_a_fresh_state_answers_with_params_and_shares_no_buffer(method):
    params = trees()
    state = method.make(0.5).init(params)
    same_bits(nagjax.eval_params(params, state), params)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state)) if leaf.size]
    assert len(buffers) == len(set(buffers))


@over([method for method in ADAPTIVE if method.holds_momentum])
def test_a_reset_puts_the_answer_at_params_and_keeps_the_step_size(method):
    _, params, state = finished(method)
    assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(nagjax.velocity(state)))
    reset = nagjax.reset_momentum(state)
    assert avals(reset) == avals(state)
    same_bits(nagjax.eval_params(params, reset), params)
    assert not any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(nagjax.velocity(reset)))
    assert float(tree_get(reset, "step_size")) == float(tree_get(state, "step_size"))


@over(ADAPTIVE)
def test_after_a_jump_of_params_and_a_reset_a_run_still_converges(method):
    """Curvature is measured between query points, not from the last update."""
    _, params, state = finished(method)
    start = jax.tree.map(lambda leaf: leaf + 50.0, params)
    state = nagjax.reset_momentum(state) if method.holds_momentum else state
    params, state, largest = runner(method)[1](start, state, 120)
    assert float(loss(nagjax.eval_params(params, state))) < 1e-3 * float(loss(start))
    assert float(largest) <= 1.5 * float(loss(start))


@over(ADAPTIVE)
def test_no_step_makes_a_nan_where_gradients_vanish_are_constant_or_parameters_stand_still(method):
    """Eagerly, so that every intermediate result is looked at."""
    tx = method.make(0.5)

    def linear(x):
        return jnp.sum(x)

    with jax.debug_nans(True):
        for start, value in (jnp.zeros(2), bowl), (jnp.ones(2), bowl), (jnp.ones(2), linear):
            params, state = start, tx.init(start)
            for _ in range(4):
                updates, state = tx.update(jax.grad(value)(params), state, params, value=value(params), value_fn=value)
                params = optax.apply_updates(params, updates)
        state = tx.init(start)
        for _ in range(3):  # parameters that do not move
            updates, state = tx.update(jnp.ones(2), state, start, value=bowl(start), value_fn=bowl)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((updates, state.step_size)))


@over(PLAIN)
def test_absent_leaves_do_not_change_the_others(method):
    tx = method.make(0.5)
    absent = {"frozen": None, "masked": optax.MaskedNode()}

    def body(_, carry):
        params, state = carry
        slope = gradient({"active": params["active"]}) | {name: absent[name] for name in params if name in absent}
        updates, state = tx.update(slope, state, params, value=value(params), value_fn=value)
        return params | {"active": params["active"] + updates["active"]}, state

    def value(params):
        return loss(params["active"])

    def four_steps(params):
        return jax.jit(lambda p: jax.lax.fori_loop(0, 4, body, (p, tx.init(p))))(params)

    params = {"active": trees((7,)), "masked": optax.MaskedNode()}
    # A prox and the norm of x_0 see every parameter, so the frozen one is 0.
    params["frozen"] = jnp.zeros((3, 5))
    after, state = four_steps(params)
    same_bits(after["frozen"], params["frozen"])
    alone, alone_state = four_steps({"active": params["active"]})
    close((after["active"]), (alone["active"]))
    close(nagjax.eval_params(after, state)["active"], nagjax.eval_params(alone, alone_state)["active"])


@pytest.mark.parametrize("params", [{}, (), {"a": {}, "b": None}], ids=repr)
@over(ADAPTIVE)
def test_empty_trees_are_updated_to_empty_trees(method, params):
    tx = method.make(0.5)
    state = tx.init(params)

    def nothing(_):
        return jnp.float32(0)

    updates, after = jax.eval_shape(
        lambda s: tx.update(params, s, params, value=jnp.float32(0), value_fn=nothing), state
    )
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@over(SOME)
def test_vmapped_runs_are_the_runs_one_by_one(method):
    tx = method.make(0.5)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(trees((5,), seed=seed) for seed in range(3)))

    def whole(p):
        return jax.lax.fori_loop(0, 8, lambda _, carry: update(tx, *carry), (p, tx.init(p)))

    after, state = jax.jit(jax.vmap(whole))(params)
    for index in range(3):
        alone, alone_state = jax.jit(whole)(params[index])
        close(after[index], alone, 1e-10)
        close(tree_get(state, "step_size")[index], tree_get(alone_state, "step_size"), 1e-6)


@over(PLAIN)
def test_complex_parameters_with_conjugated_gradients_run_as_pairs_of_real_ones(method):
    tx, z = method.make(0.5), trees((3,), "complex128")
    after, state = scanned(tx, z, 8)
    pair, _ = scanned(tx, {"a": z.real, "b": z.imag}, 8)
    close((after.real, after.imag), (pair["a"], pair["b"]), 1e-6)  # the loss is a float32
    assert nagjax.eval_params(after, state).dtype == z.dtype


@over(ADAPTIVE)
def test_states_survive_pickle_lower_for_all_platforms_and_are_compiled_once(method):
    (tx, follow), params = runner(method), trees(dtype="float32")
    state = tx.init(params)
    same_bits(pickle.loads(pickle.dumps(state)), state)
    step = jax.jit(lambda p, s: update(tx, p, s))
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(params, state)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    params = trees()
    state = tx.init(params)
    for _ in range(3):
        params, state, _ = follow(params, state, 1)
    assert follow._cache_size() == 1


@over([method for method in ADAPTIVE if method.takes_axis])
def test_runs_on_shards_are_the_runs_of_the_whole(method):
    """Every shard alone would find another curvature."""
    params, curved = trees((8, 5)), jnp.linspace(0.02, 1.0, 8)[:, None] * jnp.ones((1, 5))

    def whole(axis, params, curved):
        tx = method.sharded(axis)

        def value(p):
            total = jnp.sum(curved * p**2) / 2
            return total if axis is None else jax.lax.psum(total, axis)

        def body(_, carry):
            params, state = carry
            updates, state = tx.update(curved * params, state, params, value=value(params), value_fn=value)
            return params + updates, state

        params, state = jax.lax.fori_loop(0, 15, body, (params, tx.init(params)))
        return params, tree_get(state, "step_size")

    expected, size = jax.jit(lambda p, c: whole(None, p, c))(params, curved)
    mesh = Mesh(np.array(jax.devices()[:8]), ("axis",))
    found, sizes = jax.jit(
        jax.shard_map(
            lambda p, c: whole("axis", p, c),
            mesh=mesh,
            in_specs=P("axis"),
            out_specs=(P("axis"), P()),
            check_vma=False,
        )
    )(params, curved)
    close(jax.device_get(found), jax.device_get(expected), 1e-9)
    assert float(sizes) == pytest.approx(float(size), rel=1e-6)


@over(ADAPTIVE)
def test_what_is_missing_in_update_is_named_with_the_remedy(method):
    tx, params = method.make(0.5), jnp.ones(2)
    state, given = tx.init(params), {"value": bowl(params), "value_fn": bowl}
    with pytest.raises(ValueError, match=r"params must be passed to update, got None; .*update\(gradients"):
        tx.update(params, state, **given)
    for name in method.needs:
        with pytest.raises(ValueError, match=rf"{name} must be given to every update, got None; pass `{name}="):
            tx.update(params, state, params, **{key: v for key, v in given.items() if key != name})
    tx.update(params, state, params, **{name: given[name] for name in method.needs})


@over(ADAPTIVE)
def test_integer_parameters_and_foreign_gradients_are_refused(method):
    tx = method.make(0.5)
    with pytest.raises(TypeError, match="must be floating-point or complex"):
        tx.init({"a": jnp.arange(3)})
    state = tx.init({"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"updates must be of (the structure|shape)"):
        tx.update({"b": jnp.ones(3)}, state, {"b": jnp.ones(3)}, value=1.0, value_fn=lambda p: jnp.float64(1))
