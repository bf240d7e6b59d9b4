"""What the workers of `diloco` exchange: weighted means, and wires of 16 and 8 bits with error feedback."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nagjax import outer
from nagjax.outer.wire import compressed_sum
from tests.contract.support import close, same_bits
from tests.unit.programs import branches, collectives

M = 4
WIRES = {"int8": outer.wire.int8(4), "bfloat16": outer.wire.bfloat16()}


def diloco(inner, outside=None, period=4, **options):
    return outer.diloco(inner, outside, period, "workers", **options)


def fed(tx, gradients, weights=None, dtype=jnp.float64):
    """Slow weights and states of a run with given gradients, (updates, workers, dimension)."""

    def worker(rows, own):
        params = jnp.zeros(rows.shape[-1], dtype)

        def body(carry, inputs):
            (params, state), (row, weight) = carry, inputs
            extra = {} if weights is None else {"weight": weight}
            updates, state = tx.update(row.astype(dtype), state, params, **extra)
            return (params + updates, state), state.slow

        (params, state), slow = jax.lax.scan(body, (params, tx.init(params)), (rows, own))
        return params, slow, state

    own = jnp.ones(gradients.shape[:2]) if weights is None else jnp.asarray(weights)
    run = jax.vmap(worker, in_axes=1, axis_name="workers", out_axes=(0, None, outer.per_worker(0, None)))
    return jax.jit(run)(jnp.asarray(gradients), own)


@pytest.mark.parametrize(("name", "dtype", "size"), [("int8", "s8", 1 + 4 / 256), ("bfloat16", "u16", 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_wire_moves_narrow_integers_in_two_collectives(name, dtype, size, weighted):
    elements = 4096
    tx = diloco(optax.sgd(0.1), wire=outer.wire.int8() if name == "int8" else outer.wire.bfloat16())
    mesh, specs = Mesh(np.array(jax.devices()[:M]), ("workers",)), outer.per_worker(P(), P())

    def step(params, state, target):
        params = jax.lax.pcast(params, "workers", to="varying")
        state = state._replace(residual=jax.lax.pcast(state.residual, "workers", to="varying"))
        updates, state = tx.update(params - target[0], state, params, **({"weight": target[0, 0]} if weighted else {}))
        return updates[None], state.slow

    params = jnp.ones(elements, jnp.float32)
    run = jax.shard_map(step, mesh=mesh, in_specs=(P(), specs, P("workers")), out_specs=(P("workers"), P()))
    text = jax.jit(run).lower(params, tx.init(params), jnp.ones((M, elements), jnp.float32)).compile().as_text()
    found = {kind: shapes for kind, shapes, _ in collectives(text)}
    scalars = found.pop("all-reduce", [])
    assert scalars == ([("f64", 1)] if weighted else [])  # the sum of weights
    assert set(found) == {"all-to-all", "all-gather"}
    for shapes in found.values():
        assert {kind for kind, _ in shapes} == {dtype}
        assert sum(count for _, count in shapes) == elements * size
    assert len(collectives(branches(text)[1])) == len(collectives(text))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("workers", [1, 3, 4])
def test_what_was_applied_and_the_residuals_are_the_sum_of_exact_means(name, weighted, workers):
    """With unit inner and outer steps and a period of one, gradients are displacements and s is minus their sum."""
    rng = np.random.default_rng(1)
    gradients, weights = rng.standard_normal((9, workers, 13)), rng.uniform(0.5, 2.0, (9, workers))
    weights[3:5, 0] = 0.0 if workers > 1 else 1.0
    tx = diloco(optax.sgd(1.0), optax.sgd(1.0), 1, wire=WIRES[name])
    _, slow, state = fed(tx, gradients, weights if weighted else None)
    used = weights if weighted else np.ones_like(weights)
    exact = np.einsum("kw,kwd->kd", used / used.sum(axis=1, keepdims=True), gradients)
    owed = np.sum(state.residual, axis=0)
    np.testing.assert_allclose(-slow[-1] + owed, exact.sum(axis=0), rtol=0, atol=1e-14 * 9 * 13)
    assert 1e-5 < np.max(np.abs(owed)) < 0.1  # it rounds, and the error does not grow


def test_with_error_feedback_the_mean_of_many_rounds_is_exact_where_each_is_not():
    gradients = np.tile(np.random.default_rng(5).standard_normal((1, M, 13)), (60, 1, 1))
    tx = diloco(optax.sgd(1.0), optax.sgd(1.0), 1, wire=outer.wire.int8(13))
    _, slow, _ = fed(tx, gradients)
    mean = gradients[0].mean(axis=0)
    first, last = np.max(np.abs(-slow[0] - mean)), np.max(np.abs(-slow[-1] / 60 - mean))
    assert first > 2e-3
    assert last < first / 20


@pytest.mark.parametrize("name", WIRES)
def test_representable_displacements_arrive_exactly(name):
    row = np.array([127, -3, 64, 1, 0, 127, 5, -127, 127, 2, 8, -9, 127, 0, 0]) * 2.0**-9
    tx = diloco(optax.sgd(1.0), optax.sgd(1.0), 1, wire=WIRES[name])
    _, slow, state = fed(tx, np.tile(row, (3, M, 1)))
    np.testing.assert_array_equal(slow, -np.outer([1, 2, 3], row))
    assert not np.any(state.residual)


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("workers", [3, 8])
def test_a_compressed_sum_has_the_same_bits_on_all_workers(name, workers):
    mesh = Mesh(np.array(jax.devices()[:workers]), ("workers",))

    def worker(x):
        summed, residual = compressed_sum(x[0], jnp.zeros_like(x[0]), WIRES[name], "workers")
        return summed[None], residual[None]

    x = jnp.asarray(np.random.default_rng(2).standard_normal((workers, 29)), jnp.float32)
    run = jax.shard_map(worker, mesh=mesh, in_specs=P("workers"), out_specs=P("workers"), check_vma=False)
    summed, residual = jax.jit(run)(x)
    same_bits(summed, jnp.broadcast_to(summed[0], summed.shape))
    np.testing.assert_allclose(summed[0] + residual.sum(axis=0), x.sum(axis=0), rtol=0, atol=2e-6)
    assert np.max(np.abs(residual)) > 1e-4


def test_a_wire_in_single_precision_is_close_to_none(single_precision):
    gradients = np.random.default_rng(3).standard_normal((8, M, 300)).astype(np.float32)
    exact, *_ = fed(diloco(optax.sgd(0.1), period=2), gradients, dtype=jnp.float32)
    for wire, tolerance in (outer.wire.int8(), 4 / 127), (outer.wire.bfloat16(), 4 / 256):
        found, slow, _ = fed(diloco(optax.sgd(0.1), period=2, wire=wire), gradients, dtype=jnp.float32)
        assert slow.dtype == jnp.float32
        assert 0 < np.max(np.abs(found - exact)) < tolerance * np.max(np.abs(exact))


def test_complex_leaves_travel_as_pairs():
    z = np.random.default_rng(4).standard_normal((2, M, 5, 2))
    tx = diloco(optax.sgd(1.0), optax.sgd(1.0), 1, wire=outer.wire.int8(2))

    def follow(start, rows):
        def worker(row):
            updates, state = tx.update(row, tx.init(start), start)
            return updates, state.residual

        return jax.jit(jax.vmap(worker, axis_name="workers"))(jnp.asarray(rows))

    pairs = follow(jnp.zeros((5, 2)), z[0])
    numbers = follow(jnp.zeros(5, jnp.complex128), z[0, ..., 0] + 1j * z[0, ..., 1])
    same_bits(jax.tree.map(lambda leaf: jnp.stack([leaf.real, leaf.imag], axis=-1), numbers), pairs)


def three_of_four(gradients, change):
    """The run with the last worker at weight 0 and `change` in its gradients, and the run of the others alone."""
    spoiled = gradients.copy()
    change(spoiled)
    weights = np.ones(gradients.shape[:2])
    weights[:, -1] = 0.0
    return fed(diloco(optax.sgd(0.1)), spoiled, weights), fed(diloco(optax.sgd(0.1)), gradients[:, :-1])


def test_a_worker_of_weight_zero_counts_for_nothing_and_lands_on_the_slow_weights_even_from_a_step_to_nan():
    gradients = np.random.default_rng(6).standard_normal((8, M, 5))

    def change(rows):
        rows[7, -1] = np.nan  # the step of the second synchronization

    (params, slow, _), (expected, others, _) = three_of_four(gradients, change)
    close((params[:-1], slow), (expected, others))
    np.testing.assert_allclose(params[-1], slow[-1], rtol=0, atol=1e-15)


def test_parameters_that_are_nan_already_are_set_to_the_slow_weights_by_hand():
    gradients = np.random.default_rng(6).standard_normal((8, M, 5))

    def change(rows):
        rows[5, -1] = np.nan

    (params, slow, state), (expected, others, _) = three_of_four(gradients, change)
    close((params[:-1], slow), (expected, others))
    assert np.all(np.isnan(params[-1]))
    assert np.all(np.isfinite(state.slow))


@pytest.mark.parametrize("options", [{}, {"wire": WIRES["int8"]}, {"mixing": 0.5}])
def test_where_all_weights_are_zero_parameters_return_and_the_outer_state_stays(options):
    gradients = np.random.default_rng(7).standard_normal((8, M, 5))
    weights = np.ones((8, M))
    _, _, before = fed(diloco(optax.sgd(0.1), **options), gradients[:4], weights[:4])
    weights[7] = 0.0
    params, _, state = fed(diloco(optax.sgd(0.1), **options), gradients, weights)
    same_bits((state.slow, state.outer), (before.slow, before.outer))
    np.testing.assert_allclose(params, np.tile(state.slow, (M, 1)), rtol=0, atol=1e-15)


def test_the_weight_is_for_diloco_and_other_keyword_arguments_for_both_levels():
    seen = []

    def update(updates, state, params=None, **extra):
        del params
        seen.append(set(extra))
        return updates, state

    curious = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    tx = outer.diloco(curious, curious, 1)
    tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), weight=3, value=1.0)
    assert seen == [{"value"}, {"value"}]


def test_without_an_axis_a_weight_says_whether_the_worker_counts():
    tx, params = outer.diloco(optax.sgd(1.0), optax.sgd(0.5), 1), jnp.ones(3)
    for weight, expected in (2.0, 0.5), (0.0, 1.0):
        updates, state = tx.update(params, tx.init(params), params, weight=weight)
        close((params + updates, state.slow), (jnp.full(3, expected), jnp.full(3, expected)), 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wires_round_to_the_nearest(dtype):
    rows = jnp.asarray(np.random.default_rng(8).standard_normal((3, 24)) * np.logspace(-8, 8, 3)[:, None], dtype)
    slack = 1 + 2.0**-16  # the scale of a block is rounded to float32
    found = outer.wire.int8(8).decode(outer.wire.int8(8).encode(rows))
    largest = np.abs(np.asarray(rows).reshape(3, 3, 8)).max(axis=-1, keepdims=True)
    errors = np.abs(np.asarray(found, np.float64) - np.asarray(rows, np.float64)).reshape(3, 3, 8)
    assert np.all(errors <= largest / 254 * slack)
    wire = outer.wire.bfloat16()
    same_bits(wire.decode(wire.encode(rows)), rows.astype(jnp.bfloat16).astype(jnp.float32))


def test_blocks_of_zeros_arrive_as_zeros_and_others_that_are_not_finite_as_nan_alone():
    wire = outer.wire.int8(2)
    row = jnp.array([0.0, 0.0, 1.0, jnp.nan, 1.0, jnp.inf, 127.0, -1.0], jnp.float32)
    found = np.asarray(wire.decode(wire.encode(row)))
    np.testing.assert_array_equal(found[[0, 1, 6, 7]], [0.0, 0.0, 127.0, -1.0])
    assert np.all(np.isnan(found[2:6]))


def test_a_block_size_is_a_positive_integer():
    with pytest.raises(ValueError, match=r"^outer\.wire\.int8: block_size must be an integer of at least 1, got 0; "):
        outer.wire.int8(0)
