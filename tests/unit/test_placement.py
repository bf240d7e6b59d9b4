"""Where state lies on a mesh: every buffer with its parameter, ZeRO-1 in exact parts, and global scalars on shards."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nagjax
from nagjax import outer, reductions, restart, storage, training
from nagjax.training import TrainStep, sharding

DEVICES = 8
SHAPES = {"first": (16, 24), "second": (5, 64), "conv": (3, 3, 16, 32), "odd": (5, 7), "bias": (24,), "scalar": ()}
SPECS = {
    "first": P("data", None),
    "second": P(None, "data"),
    "conv": P(None, None, "data", None),
    "odd": P(None, None),
    "bias": P("data"),
    "scalar": P(),
}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def parameters(mesh, dtype=np.float32, axis=None):
    rng = np.random.default_rng(1)
    params = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    return jax.device_put(params, sharding.param_sharding(params, mesh, axis))


def buffer_of(state):
    return optax.tree_utils.tree_get(state, "velocity")


def specs_of(tree):
    return jax.tree.map(lambda place: place.spec, tree)


def test_parameters_lie_whole_or_cut_along_the_first_axis_that_divides(mesh):
    assert all(place.is_fully_replicated for place in sharding.param_sharding(parameters(mesh), mesh).values())
    assert specs_of(sharding.param_sharding(parameters(mesh), mesh, "data")) == SPECS


OPTIMIZERS = {
    "nesterov": nagjax.nesterov(0.1),
    "chain": optax.chain(optax.scale_by_adam(), nagjax.nesterov(0.1, restart=restart.gradient())),
    "masked": optax.masked(nagjax.nesterov(0.1), {name: name != "odd" for name in SHAPES}),
    "partition": optax.partition(
        {"a": nagjax.nesterov(0.1), "b": optax.adam(0.1)}, {name: "ab"[len(name) % 2] for name in SHAPES}
    ),
    "several steps": optax.MultiSteps(nagjax.nesterov(0.1), 2).gradient_transformation(),
    "injected": optax.inject_hyperparams(nagjax.nesterov)(0.1),
    "outer": outer.snoo(optax.sgd(0.1, 0.9), period=3),
    "adan": nagjax.adan(0.1),
    "averaging": nagjax.schedule_free(optax.identity(), 0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_buffer_follows_its_parameter_and_scalars_are_replicated(name, mesh, standard_promotion):
    tx, params = OPTIMIZERS[name], parameters(mesh, axis="data")
    places = sharding.state_sharding(tx, params)
    shapes = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(places) == jax.tree.structure(shapes)
    buffers = 0
    for (path, place), leaf in zip(jax.tree_util.tree_leaves_with_path(places), jax.tree.leaves(shapes), strict=True):
        parameter = next((key for key in SHAPES if f"['{key}']" in jax.tree_util.keystr(path)), None)
        assert place.spec == (P() if parameter is None else SPECS[parameter]), path
        assert parameter is not None or leaf.shape == ()
        buffers += parameter is not None
    assert buffers >= 4
    state = sharding.init_sharded(tx, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == places
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(tx.init(params)))


def test_zero_1_takes_an_eighth_of_the_bytes_and_lists_the_rest(mesh):
    params = parameters(mesh)
    state = sharding.init_sharded(optax.chain(optax.scale_by_adam(), nagjax.nesterov(0.1)), params, axis="data")
    cut = [name for name, spec in SPECS.items() if "data" in spec]
    for buffer in state[0].mu, state[0].nu, nagjax.velocity(state):
        for name in SHAPES:
            parts = DEVICES if name in cut else 1
            assert {piece.data.nbytes for piece in buffer[name].addressable_shards} == {buffer[name].nbytes // parts}
    whole = sharding.replicated(state)
    names = {name.rsplit("/", 1)[-1] for name in whole}
    assert names == {"odd", "scalar", "count", "readout", "age"}
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.sharding.is_fully_replicated)
    assert sharding.bytes_per_device(state) == kept + (total - kept) // DEVICES
    assert sharding.bytes_per_device(params) == sum(leaf.nbytes for leaf in params.values())


def test_zero_1_takes_a_free_axis_beside_that_of_the_model():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    place = functools.partial(NamedSharding, mesh)
    params = {"in": np.zeros((8, 6)), "out": np.zeros((8, 6)), "small": np.zeros((2, 3)), "both": np.zeros((8,))}
    given = {"in": P("model"), "out": P(None, "model"), "small": P("model"), "both": P(("data", "model"))}
    params = jax.device_put(params, {name: place(spec) for name, spec in given.items()})
    velocity = specs_of(buffer_of(sharding.state_sharding(nagjax.nesterov(0.1), params, "data")))
    assert velocity == {
        "in": P("model", None),  # 6 is not divided by 4
        "out": P("data", "model"),
        "small": P("model", None),
        "both": P(("data", "model")),
    }
    moved = sharding.param_sharding(params, mesh, "data")
    assert specs_of(moved)["out"] == P("data", "model")
    explicit = jax.make_mesh((4, 2), ("data", "model"))
    assert specs_of(sharding.param_sharding(params, explicit))["out"] == P(None, "model")
    with pytest.raises(ValueError, match="param_sharding: params must be whole, or cut over this mesh"):
        sharding.param_sharding(params, jax.make_mesh((2, 4), ("data", "model")))


@pytest.mark.parametrize("block_size", [8, 16, 64])
@pytest.mark.parametrize("name", ["first", "second", "conv", "bias"])
def test_scales_of_8_bits_are_cut_with_their_values_where_blocks_divide_shards(name, block_size, mesh):
    tx = nagjax.nesterov(0.1, storage=storage.int8(block_size))
    state = sharding.init_sharded(tx, {name: parameters(mesh)[name]}, axis="data")
    kept = buffer_of(state)
    values, scales = kept.values[name], kept.scales[name]
    assert {piece.data.size for piece in values.addressable_shards} == {values.size // DEVICES}
    # A block is whole on one device if every shard of values is made of blocks.
    row = {"first": 24, "second": 64, "conv": 16 * 32, "bias": 24}[name]
    length = row if row <= block_size else math.prod(values.shape) // scales.size
    first = name == "first"
    divides = first or (row // DEVICES) % length == 0
    parts = {piece.data.size for piece in scales.addressable_shards}
    assert parts == {scales.size // (DEVICES if divides else 1)}


@pytest.mark.parametrize("name", ["first", "conv"])
def test_an_update_of_cut_8_bit_state_communicates_nothing(name, mesh):
    tx = nagjax.nesterov(0.1, storage=storage.int8(16))
    params = {name: parameters(mesh, axis="data")[name]}
    state = sharding.init_sharded(tx, params)
    assert len(sharding.replicated(state)) == 3  # noise counter, readout and age
    text = jax.jit(tx.update).lower(params, state, params).compile().as_text()
    assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_results_stay_in_their_places_on_meshes_of_both_types(kind):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,))
    step = TrainStep({"w": jnp.ones((16, 3))}, lambda params, x: jnp.mean((x @ params["w"]) ** 2), nagjax.nesterov(0.1))
    layout = sharding.zero1(mesh)
    state = layout.init(step)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    assert places == layout.of(step)
    assert buffer_of(places.opt_state)["w"].spec == P("data", None)
    assert places.params["w"].is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(step.init()))


def test_states_without_buffers_empty_arrays_and_histories_are_placed_too(mesh):
    params = {"w": np.ones((16, 4), np.float32), "none": np.ones((0, 8), np.float32)}
    params = jax.device_put(params, sharding.param_sharding(params, mesh))
    assert jax.tree.leaves(sharding.init_sharded(optax.sgd(0.1), params, axis="data")) == []
    assert specs_of(sharding.param_sharding(params, mesh, "data")) == {"w": P("data", None), "none": P(None, None)}
    memory = sharding.state_sharding(optax.lbfgs(memory_size=5), params, "data")
    assert specs_of(optax.tree_utils.tree_get(memory, "diff_params_memory"))["w"] == P(None, "data", None)


def test_what_is_no_mesh_or_no_layout_is_refused(mesh):
    step = TrainStep({"w": jnp.ones(8)}, lambda params, x: jnp.sum(params["w"] * x), nagjax.nesterov(0.1))
    with pytest.raises(TypeError, match=r"Layout: mesh must be a jax.sharding.Mesh, got .*jax.make_mesh"):
        sharding.zero1(jax.devices())
    with pytest.raises(TypeError, match=r"compiled: layout must be a Layout or None, got Mesh.*data_parallel\(mesh\)"):
        training.compiled(step, layout=mesh)
    with pytest.raises(TypeError, match="fit: layout must be a Layout or None"):
        training.fit({"w": jnp.ones(8)}, lambda params, x: jnp.sum(params["w"]), nagjax.nesterov(0.1), [], layout=mesh)


def test_unplaced_parameters_and_unknown_axes_are_refused(mesh):
    tx, other = nagjax.nesterov(0.1), jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    with pytest.raises(ValueError, match=r"state_sharding: params must be arrays that lie on a mesh, got .*\['w'\]"):
        sharding.state_sharding(tx, {"w": jnp.ones(8)})
    two = {"a": parameters(mesh)["bias"], "b": jax.device_put(np.ones(8), NamedSharding(other, P()))}
    with pytest.raises(ValueError, match="that lie on one mesh"):
        sharding.state_sharding(tx, two)
    for call in (
        lambda: sharding.state_sharding(tx, parameters(mesh), "model"),
        lambda: sharding.param_sharding(parameters(mesh), mesh, "model"),
        lambda: sharding.fsdp(mesh, "model"),
    ):
        with pytest.raises(ValueError, match=r"axis must be one of \('data',\), got 'model'"):
            call()


def on_shards(function, mesh, specs, *, check_vma=True):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma))


def test_arrays_that_every_device_has_count_once_in_a_global_sum(mesh):
    params = {name: np.asarray(leaf, np.float64) for name, leaf in parameters(mesh).items()}
    norm = on_shards(lambda tree: reductions.squared_norm(tree, "data"), mesh, (SPECS,))
    total = sum(np.sum(leaf**2) for leaf in params.values())
    np.testing.assert_allclose(norm(params), total, rtol=1e-13)
    whole = on_shards(lambda tree: reductions.squared_norm(tree, "data"), mesh, (P(),))
    np.testing.assert_allclose(whole(params), total, rtol=1e-13)
    cut = {name: leaf for name, leaf in params.items() if "data" in SPECS[name]}
    untracked = on_shards(
        lambda tree: reductions.squared_norm(tree, "data"),
        mesh,
        ({name: SPECS[name] for name in cut},),
        check_vma=False,
    )
    np.testing.assert_allclose(untracked(cut), sum(np.sum(leaf**2) for leaf in cut.values()), rtol=1e-13)


def test_long_shards_are_summed_in_rows_on_their_device(mesh):
    x = np.random.default_rng(4).normal(size=DEVICES * (2**16 + 3)).astype(np.float32)
    norm = on_shards(lambda leaf: reductions.squared_norm(leaf, "data"), mesh, (P("data"),))
    assert "select" in norm.lower(x).as_text()  # of the sum in rows
    np.testing.assert_allclose(norm(x), np.sum(x.astype(np.float64) ** 2), rtol=1e-5)


def test_over_two_axes_each_array_is_summed_over_those_that_cut_it():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    arrays = [np.arange(1.0, 17.0).reshape(8, 2) for _ in range(4)]
    specs = [P("data"), P("data", "model"), P(None, "model"), P()]
    norm = on_shards(lambda tree: reductions.squared_norm(tree, ("data", "model")), mesh, (specs,))
    assert norm(arrays) == 4 * np.sum(arrays[0] ** 2)


def test_clipping_is_by_the_norm_of_all_shards(mesh):
    gradient = {name: np.asarray(leaf, np.float64) for name, leaf in parameters(mesh).items()}
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in gradient.values()))
    for most, factor in ((norm / 3, 1 / 3), (norm * 1.001, 1.0)):
        clip = nagjax.clip_by_global_norm(most, "data")
        run = jax.shard_map(
            lambda g, clip=clip: clip.update(g, clip.init(g))[0], mesh=mesh, in_specs=(SPECS,), out_specs=SPECS
        )
        jax.tree.map(
            lambda a, g, factor=factor: np.testing.assert_allclose(a, factor * g, rtol=1e-14),
            jax.device_get(jax.jit(run)(gradient)),
            gradient,
        )
        alone = nagjax.clip_by_global_norm(most).update(gradient, optax.EmptyState())[0]
        wanted = optax.clip_by_global_norm(most).update(gradient, optax.EmptyState())[0]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), alone, wanted)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_norm_of_a_long_leaf_is_summed_on_its_devices(kind):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,))
    gradient = np.random.default_rng(2).normal(size=(512, 256))
    clip = nagjax.clip_by_global_norm(1.0)
    run = jax.jit(lambda g: clip.update(g, clip.init(g))[0])
    cut = jax.device_put(gradient, NamedSharding(mesh, P("data")))
    np.testing.assert_allclose(run(cut), gradient / np.linalg.norm(gradient), rtol=1e-12)
    text = run.lower(cut).compile().as_text()
    moved = re.findall(r"= (\S+) (?:all-reduce|all-gather|all-to-all|collective-permute)\(", text)
    assert moved == ["f64[]"]


def test_clipping_leaves_dtypes_and_missing_gradients_alone_and_refuses_norms_that_are_not_positive():
    gradient = {"a": jnp.full(4, 3.0, jnp.bfloat16), "b": None, "c": jnp.full(2, 4.0 + 3.0j, jnp.complex64)}
    clip = nagjax.clip_by_global_norm(1.0)
    clipped, _ = clip.update(gradient, clip.init(gradient))
    assert clipped["b"] is None
    assert (clipped["a"].dtype, clipped["c"].dtype) == (jnp.bfloat16, jnp.complex64)
    np.testing.assert_allclose(clipped["c"], np.full(2, 4 + 3j) / np.sqrt(36 + 50), rtol=1e-6)
    nothing = {"a": jnp.zeros(3)}
    assert not np.any(clip.update(nothing, clip.init(nothing))[0]["a"])
    with pytest.raises(ValueError, match="max_norm must be positive and finite, got 0"):
        nagjax.clip_by_global_norm(0.0)


def test_a_gradient_restart_on_shards_is_that_of_the_whole(mesh):
    curvature = {name: np.linspace(0.01, 1.0, math.prod(shape)).reshape(shape) for name, shape in SHAPES.items()}
    start = {name: np.asarray(leaf, np.float64) for name, leaf in parameters(mesh).items()}

    def run(params, curvature, axis_name=None):
        tx = nagjax.nesterov(1.0, 0.99, restart=restart.gradient(axis_name))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.tree.map(jnp.multiply, curvature, params), state, params)
            return (optax.apply_updates(params, updates), state), state.age if hasattr(state, "age") else state[-1].age

        (params, _), ages = jax.lax.scan(step, (params, tx.init(params)), length=40)
        return params, ages

    wanted, ages = jax.jit(run)(start, curvature)
    shards = jax.shard_map(
        functools.partial(run, axis_name="data"), mesh=mesh, in_specs=(SPECS, SPECS), out_specs=(SPECS, P())
    )
    found, found_ages = jax.jit(shards)(start, curvature)
    assert np.any(np.asarray(ages)[1:] == 0)
    np.testing.assert_array_equal(found_ages, ages)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, wanted)
