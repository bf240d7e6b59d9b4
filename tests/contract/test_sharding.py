"""States take the sharding of the parameters and keep it, and 8-bit rounding needs no communication."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import nagjax
from nagjax import storage
from nagjax.mapped import differs_over
from tests.catalogue import METHODS, STORAGES, THREE, named, over
from tests.contract.support import RATE, close, compiled, same_bits, trees

tree_get = optax.tree_utils.tree_get
SHAPES = {"block": (8, 8), "bias": (5,)}
SPECS = {"block": P("data", "model"), "bias": P()}


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))


def shard(params, mesh):
    specs = {name: NamedSharding(mesh, SPECS.get(name, P("data"))) for name in params}
    return jax.tree.map(jax.device_put, params, specs)


def lie_alike(tree, params):
    """Assert that every array lies on devices as the parameter does; complex ones may be pairs in a trailing axis."""
    for name, leaf in params.items():
        shards = {piece.device: piece.data.shape[: leaf.ndim] for piece in tree[name].addressable_shards}
        assert shards == {piece.device: piece.data.shape for piece in leaf.addressable_shards}, name


def stored(state):
    kept = tree_get(state, "velocity", tree_get(state, "momentum_buffer"))
    return kept if isinstance(kept, dict) else kept.values


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@over([method for method in STORAGES if not method.restarts])
def test_an_eager_init_keeps_the_sharding_of_parameters(method, dtype, mesh):
    params = shard(trees(SHAPES, dtype), mesh)
    lie_alike(stored(method.make(RATE).init(params)), params)


@over([*THREE, *named("stochastic bfloat16", "pytorch_sgd, nesterov")])
def test_compiled_steps_keep_shardings_and_make_the_steps_of_one_device(method, mesh):
    tx, params = method.make(RATE), trees(SHAPES)
    follow = compiled(tx, 12)
    expected = follow(params, tx.init(params))
    sharded = shard(params, mesh)
    after, state = follow(sharded, tx.init(sharded))
    for tree in after, stored(state), nagjax.eval_params(after, state):
        lie_alike(tree, sharded)
    # Global sums are added in another order, which 8-bit rounding can turn into one unit of 1/127.
    found, alone = ((p, nagjax.eval_params(p, s)) for p, s in ((after, state), expected))
    close(jax.device_get(found), jax.device_get(alone), 4e-2 if method.rounds else 1e-12)


CUT = [
    ((64,), P("data"), "float32"),
    ((4, 64), P(None, "model"), "complex64"),
    ((2, 4, 40), P(None, "data", "model"), "float32"),
    ((8, 1024), P(None, "data"), "float32"),
]


@pytest.mark.parametrize(("shape", "spec", "dtype"), CUT, ids=str)
def test_8_bit_blocks_that_are_cut_across_devices_round_as_whole_ones(shape, spec, dtype, mesh):
    tx, steps = nagjax.accelerate(0.9, storage=storage.int8()), trees(shape, dtype)

    @jax.jit
    def rounded(steps):
        return nagjax.velocity(tx.update(steps, tx.init(steps))[1])

    same_bits(jax.device_get(rounded(jax.device_put(steps, NamedSharding(mesh, spec)))), jax.device_get(rounded(steps)))


COLLECTIVE = re.compile(r"= \S+ (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)", re.ASCII)


@pytest.mark.parametrize(
    "kept",
    [storage.full(), storage.stochastic_rounding(jnp.bfloat16), storage.int8()],
    ids=["full", "stochastic", "int8"],
)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_a_velocity_sharded_over_its_first_axis_is_updated_without_communication(kept, dtype, mesh):
    tx = nagjax.accelerate(0.9, storage=kept)
    params = shard({"rows": trees((8, 600), dtype), "deep": trees((8, 2, 3), dtype)}, mesh)
    state = tx.init(params)
    program = jax.jit(tx.update).lower(params, state).compile().as_text()
    assert not COLLECTIVE.findall(program)


def test_the_gradient_restart_sums_over_all_devices(mesh):
    """The program of the sharded test holds a sum over devices, of a scalar."""
    tx = nagjax.accelerate(0.9, restart=nagjax.restart.gradient())
    params = shard({"rows": trees((8, 6))}, mesh)
    program = jax.jit(tx.update).lower(params, tx.init(params)).compile().as_text()
    assert set(COLLECTIVE.findall(program)) == {"all-reduce"}
    assert re.findall(r"= (\S+) all-reduce", program) == ["f64[]"]


@over(METHODS)
def test_states_of_workers_keep_the_types_that_shard_map_gives_them(method, mesh):
    tx, params = optax.with_extra_args_support(method.make(RATE)), trees(SHAPES)
    workers = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), (params, tx.init(params)))
    axes = P(("data", "model"))

    def check(workers):
        params, state = jax.tree.map(lambda leaf: leaf[0], workers)
        value = jnp.sum(params["bias"])
        _, after = tx.update(params, state, params, value=value, grad=params, value_fn=lambda _: value)
        jax.tree.map(lambda old, new: types.append((differs_over(old), differs_over(new))), state, after)
        return workers

    types = []
    jax.eval_shape(jax.shard_map(check, mesh=mesh, in_specs=axes, out_specs=axes), workers)
    assert set(types) == {(frozenset({"data", "model"}),) * 2}
