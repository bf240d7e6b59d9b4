"""Storages lose at most what they say, without bias where they say so, in the memory that they say."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import nagjax
from nagjax import storage

STORAGES = {
    "full": storage.full(),
    "bfloat16": storage.cast("bfloat16"),
    "float16 at random": storage.stochastic_rounding(jnp.float16),
    "bfloat16 at random": storage.stochastic_rounding(jnp.bfloat16),
    "int8": storage.int8(),
    "int8, blocks of 3": storage.int8(3),
    "int8, blocks of 1": storage.int8(1),
}
RANDOM = [name for name in STORAGES if "random" in name or "int8" in name]
# The largest error as a fraction of the largest magnitude of a leaf: one unit of the stored form.
ERROR = {"full": 0.0, "bfloat16": 2.0**-8, "float16 at random": 2.0**-10, "bfloat16 at random": 2.0**-7}
QUADRATIC = ["full", "int8", "bfloat16 at random", "bfloat16"]
SHAPES = [(), (1,), (7,), (257,), (1000,), (3, 700), (4, 300, 1), (5, 7, 11), (3, 3, 8, 64), (0,), (4, 0), (4, 0, 5)]


def normal(shape, dtype=np.float32, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape)
    if np.issubdtype(np.dtype(dtype), np.complexfloating):
        x = x + 1j * generator.standard_normal(shape)
    return jnp.asarray(x, dtype)


def round_trip(kept, velocity):
    return kept.decode(kept.encode(velocity, kept.init(velocity)), velocity)


def repeated(kept, velocity, count):
    """The velocity as stored at each of the first `count` steps of the noise."""
    stored = kept.init(velocity)

    def at(step):
        return kept.decode(kept.encode(velocity, stored._replace(step=step)), velocity)

    return jax.jit(jax.vmap(at))(jnp.arange(count, dtype=jnp.uint32))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("name", STORAGES)
def test_a_round_trip_errs_by_at_most_one_unit(name, dtype):
    kept = STORAGES[name]
    shapes = SHAPES if dtype in (np.float32, np.complex64) else SHAPES[::4]
    velocity = {str(shape): normal(shape, dtype) for shape in shapes}
    stored = kept.init(velocity)
    new = jax.jit(kept.encode)(velocity, stored)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, stored)
    decoded = kept.decode(new, velocity)
    for key, leaf in velocity.items():
        wide = np.float32 if jnp.finfo(dtype).bits < 32 else dtype
        assert decoded[key].dtype == wide
        assert decoded[key].shape == leaf.shape
        exact = np.asarray(leaf.astype(wide))
        parts = np.stack([exact.real, exact.imag])
        unit = ERROR.get(name, 1 / 127) * np.max(np.abs(parts), initial=0)
        error = np.asarray(decoded[key]) - exact
        assert np.max(np.abs(np.stack([error.real, error.imag])), initial=0) <= unit * (1 + 1e-6)


@pytest.mark.parametrize("name", STORAGES)
def test_the_first_velocity_is_zero_and_decodes_without_a_template(name):
    velocity = {"a": normal((5, 7)), "b": normal((5,), np.complex64)}
    decoded = storage.decode(STORAGES[name].init(velocity))
    assert decoded["a"].shape == (5, 7)
    assert decoded["b"].shape == ((5,) if name == "full" else (5, 2))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(decoded))


@pytest.mark.parametrize("name", RANDOM)
def test_rounding_is_unbiased(name):
    """The mean over steps deviates by less than five of its standard deviations, which are half a unit at most."""
    velocity, count = normal((2, 512)), 2048
    mean = np.mean(np.asarray(repeated(STORAGES[name], velocity, count), np.float64), axis=0)
    exact = np.asarray(velocity, np.float64)
    block = np.max(np.abs(exact).reshape(2, 2, 256), axis=-1).repeat(256).reshape(2, 512)
    unit = ERROR[name] * np.abs(exact) if name in ERROR else block / 127
    deviations = (mean - exact) / (unit / 2 / np.sqrt(count))
    assert np.max(np.abs(deviations)) < 5
    assert abs(np.mean(deviations)) * np.sqrt(deviations.size) < 5


@pytest.mark.parametrize("name", RANDOM)
def test_values_round_up_as_often_as_they_are_near_the_upper_neighbor(name):
    fractions, count = np.array([0.0, 0.125, 0.5, 0.9]), 8192
    base = 64.0 if "int8" in name else 1.0
    unit = 1.0 if "int8" in name else ERROR[name]
    velocity = jnp.asarray([127.0, *(base + unit * fractions)], jnp.float32)
    kept = storage.int8() if "int8" in name else STORAGES[name]
    drawn = np.asarray(repeated(kept, velocity, count))[:, 1:]
    frequency = np.mean(drawn > base + unit / 2, axis=0)
    assert np.all(np.abs(frequency - fractions) <= 5 * np.sqrt(fractions * (1 - fractions) / count))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_representable_values_stay_for_every_pattern_of_16_bits(dtype):
    patterns = jnp.arange(2**16, dtype=jnp.uint16)
    exact = jax.lax.bitcast_convert_type(patterns, dtype)
    found = round_trip(storage.stochastic_rounding(dtype), exact)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(exact.astype(jnp.float32)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_values_go_to_one_of_their_neighbors(dtype):
    """Over the whole range, subnormal numbers and overflow included."""
    exponents = np.linspace(-30, 17, 20_000) if dtype == jnp.float16 else np.linspace(-120, 120, 20_000)
    exact = (2.0**exponents * np.where(np.arange(20_000) % 2, 1, -1)).astype(np.float32)
    found = np.asarray(storage.decode(_encoded(storage.stochastic_rounding(dtype), exact)))
    with np.errstate(over="ignore"):
        nearest = exact.astype(dtype)
        other = np.nextafter(nearest, np.where(nearest.astype(np.float32) < exact, np.inf, -np.inf).astype(dtype))
        nearest, other = nearest.astype(np.float32), other.astype(np.float32)
    assert np.all((found == nearest) | (found == other))
    assert np.mean(found == other) > 0.1


def _encoded(kept, velocity):
    velocity = jnp.asarray(velocity)
    return kept.encode(velocity, kept.init(velocity))


def test_float16_overflows_in_proportion_and_subnormal_numbers_are_unbiased():
    velocity = jnp.asarray([65504.0 + 8.0, 1e6, -1e6, 2.0**-24 / 4, 2.0**-14 - 2.0**-24 / 2], jnp.float32)
    drawn = np.asarray(repeated(storage.stochastic_rounding("float16"), velocity, 8192))
    assert abs(np.mean(np.isinf(drawn[:, 0])) - 0.25) < 0.03
    assert np.all(drawn[:, 1] == np.inf)
    assert np.all(drawn[:, 2] == -np.inf)
    assert abs(np.mean(drawn[:, 3]) / 2.0**-24 - 0.25) < 0.03
    assert abs(np.mean(drawn[:, 4] == np.float32(2.0**-14)) - 0.5) < 0.03


@pytest.mark.parametrize("shape", [(1000,), (3, 257), (6, 40, 50)])
def test_8_bit_values_stay_when_they_are_rounded_again(shape):
    kept = storage.int8()
    stored = _encoded(kept, normal(shape))
    encode = jax.jit(kept.encode)
    for _ in range(20):
        again = encode(kept.decode(stored, None), stored)
        np.testing.assert_array_equal(again.values, stored.values)
        np.testing.assert_allclose(again.scales, stored.scales, rtol=2e-7)
        stored = again
    assert np.max(np.abs(stored.values)) == 127


@pytest.mark.parametrize(
    ("shape", "dtype", "block_size", "scales"),
    [
        ((), np.float32, 256, ()),
        ((5,), np.float32, 256, (1,)),
        ((512,), np.float32, 256, (2,)),
        ((1000,), np.float32, 256, (5,)),  # 200 is the longest multiple of 8 that divides 1000
        ((250,), np.float32, 200, (2,)),  # 125 is no multiple of 8, but divides
        ((257,), np.float32, 256, (2,)),  # a prime: the second block is filled up
        ((25_000_000,), np.float32, 256, (125_000,)),
        ((512, 3), np.float32, 256, (512, 1)),  # axis 0 is never merged
        ((64, 128, 256), np.float32, 256, (64, 128, 1)),
        ((3, 3, 64, 64), np.float32, 256, (3, 3, 1, 16)),
        ((7, 7, 3, 64), np.float32, 256, (7, 1, 1, 6)),
        ((4, 1, 300), np.float32, 256, (4, 1, 2)),
        ((8, 600), np.complex64, 256, (8, 3, 1)),
        ((600,), np.complex64, 256, (3, 1)),
        ((), np.complex64, 256, (1,)),
        ((4, 0, 5), np.float32, 256, (4, 1, 1)),
    ],
)
def test_scales_have_the_rank_of_values_and_blocks_run_along_trailing_axes(shape, dtype, block_size, scales):
    like = jax.ShapeDtypeStruct(shape, dtype)
    stored = jax.eval_shape(storage.int8(block_size).init, like)
    values = (*shape, 2) if np.issubdtype(dtype, np.complexfloating) else shape
    assert stored.values.shape == values
    assert stored.scales.shape == scales
    assert (stored.values.dtype, stored.scales.dtype) == (jnp.int8, jnp.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize(
    ("shape", "block_size"),
    [((6, 40), 8), ((6, 40), 7), ((23,), 5), ((3, 4, 5, 6), 32), ((3, 5, 2), 5), ((3, 5, 5), 5), ((9, 2), 1)],
)
def test_a_block_shares_its_scale_with_nothing_outside(shape, block_size, dtype):
    """One large element changes the values of its own block alone, which lies together in one row."""
    kept, quiet = storage.int8(block_size), jnp.ones(shape, dtype)
    for flat in (0, quiet.size // 2, quiet.size - 1):
        loud = quiet.at[np.unravel_index(flat, shape)].set(1e6)
        touched = np.flatnonzero(np.asarray(round_trip(kept, loud)).real != 1)
        assert flat in touched
        assert len(touched) <= block_size
        assert np.all(np.diff(touched) == 1)
        if len(shape) > 1:
            assert len(np.unique(np.unravel_index(touched, shape)[0])) == 1


@pytest.mark.parametrize(
    ("kept", "most"),
    [
        (storage.full(), 4.0),
        (storage.cast(jnp.bfloat16), 2.0),
        (storage.stochastic_rounding(jnp.bfloat16), 2.0001),
        (storage.int8(), 1.04),
    ],
)
def test_memory_in_bytes_a_parameter(kept, most):
    shapes = [(512, 1024), (3, 3, 128, 128), (1024,), (768, 50_257), (4096, 1000), (128, 128), (129, 257), (64, 200)]
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    for one in [[leaf] for leaf in params] + [params]:
        assert storage.bytes_per_parameter(jax.eval_shape(kept.init, one), one) <= most + 8 / one[0].size
    assert storage.bytes_per_parameter(jax.eval_shape(kept.init, params), params) > int(most) - 1e-9


def test_zero_blocks_stay_zero_and_tiny_ones_vanish():
    velocity = jnp.concatenate([jnp.zeros(256), jnp.full(256, 1e-35), jnp.ones(256)]).astype(jnp.float32)
    with jax.debug_nans(True), jax.debug_infs(True):
        found = round_trip(storage.int8(), velocity)
    np.testing.assert_array_equal(found, jnp.where(velocity == 1, velocity, 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", STORAGES)
def test_what_is_not_finite_does_not_become_finite(name, bad):
    velocity = normal((4, 512)).at[1, 300].set(bad)
    found = np.array(round_trip(STORAGES[name], velocity))
    assert np.isnan(found[1, 300]) if np.isnan(bad) else not np.isfinite(found[1, 300])
    if name == "int8":
        assert not np.any(np.isfinite(found[1, 256:]))
        assert np.all(np.isnan(found[1, 256:])) or np.isinf(bad)
        found[1, 256:] = 0
        assert np.all(np.isfinite(found))


@pytest.mark.parametrize("name", STORAGES)
def test_absent_leaves_keep_what_is_stored(name):
    kept = STORAGES[name]
    params = {"a": normal((6, 7)), "b": normal((5,)), "none": None, "masked": optax.MaskedNode()}
    stored = kept.encode(params, kept.init(params))
    updates = {"a": None, "b": params["b"] * 2, "none": None, "masked": optax.MaskedNode()}
    decoded = kept.decode(stored, updates)
    assert decoded["a"] is None
    after = jax.jit(kept.encode)(updates, stored)
    assert jax.tree.structure(after) == jax.tree.structure(stored)
    parts = [(stored, after)] if isinstance(stored, dict) else list(zip(stored, after, strict=True))
    for before, now in parts:
        if isinstance(before, dict):
            np.testing.assert_array_equal(before["a"], now["a"])
            assert isinstance(now["masked"], optax.MaskedNode)


@pytest.mark.parametrize("name", STORAGES)
def test_where_clears_the_velocity_and_not_the_counter(name):
    kept, velocity = STORAGES[name], {"a": normal((6, 7)).at[0, 0].set(np.nan), "b": normal((3,), np.complex64)}
    stored = kept.encode(velocity, kept.init(velocity))
    chex.assert_trees_all_equal(storage.where(stored, jnp.array(True)), stored)
    cleared = storage.where(stored, False)
    chex.assert_trees_all_equal_shapes_and_dtypes(cleared, stored)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(storage.decode(cleared, velocity)))
    assert getattr(cleared, "step", 1) == 1


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_and_a_step_decide_every_bit(name):
    kept, velocity = STORAGES[name], {"a": normal((64, 64)), "b": normal((64, 64))}
    velocity["b"] = velocity["a"]
    stored = kept.init(velocity)
    first, second = kept.encode(velocity, stored), jax.jit(kept.encode)(velocity, stored)
    chex.assert_trees_all_equal(first, second)
    later = kept.encode(velocity, first)
    assert later.step == 2
    if name != "int8, blocks of 1":
        assert np.any(first.values["a"] != later.values["a"])
        assert np.any(first.values["a"] != first.values["b"])


@pytest.mark.parametrize("name", RANDOM)
def test_bits_do_not_depend_on_compilation_or_sharding(name):
    kept, velocity = STORAGES[name], {"a": normal((16, 300)), "b": normal((16, 4, 5), np.complex64)}
    mesh = Mesh(np.array(jax.devices()[:8]), "data")
    sharded = jax.device_put(velocity, NamedSharding(mesh, P("data")))
    alone, apart = (jax.jit(kept.encode)(tree, kept.init(tree)) for tree in (velocity, sharded))
    chex.assert_trees_all_equal(jax.device_get(alone), jax.device_get(apart))


@pytest.mark.parametrize("name", STORAGES)
def test_sharding_over_the_first_axis_needs_no_communication(name):
    kept = STORAGES[name]
    velocity = {"a": normal((16, 300)), "b": normal((16, 4, 5), np.complex64), "c": normal((8, 3, 3, 64), np.float64)}
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:8]), "data"), P("data"))
    sharded = jax.device_put(velocity, sharding)
    stored = jax.eval_shape(kept.init, velocity)
    place = jax.tree.map(lambda x: sharding if x.ndim else NamedSharding(sharding.mesh, P()), stored)
    stored = jax.device_put(kept.init(velocity), place)

    def step(velocity, stored):
        stored = kept.encode(jax.tree.map(jnp.add, velocity, kept.decode(stored, velocity)), stored)
        return kept.decode(stored, velocity), stored

    compiled = jax.jit(step, out_shardings=(sharding, place)).lower(sharded, stored).compile().as_text()
    for collective in ("all-reduce", "all-gather", "collective-permute", "all-to-all", "reduce-scatter"):
        assert collective not in compiled


@pytest.mark.parametrize("shape", [(64, 512), (3, 3, 64, 64), (2000,)])
@pytest.mark.parametrize("name", ["bfloat16 at random", "int8"])
def test_a_step_writes_nothing_of_32_bits_but_the_parameters(name, shape):
    """XLA computes the velocity inside the kernels that round it; writing it out costs more than the step itself."""
    tx, params = nagjax.accelerate(0.9, storage=STORAGES[name]), normal(shape)

    def step(params, state, updates):
        updates, state = tx.update(updates, state)
        return params + updates, state

    program = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params).compile().as_text()
    written = re.findall(r" = [fsu](?:32|64)\[([\d,]+)\]\S* (?!parameter)", program[program.index("ENTRY") :])
    sizes = sorted(int(np.prod([int(n) for n in shape.split(",")])) for shape in written)
    assert sizes[-1] == params.size
    assert all(size <= params.size / 100 for size in sizes[:-1])


@pytest.mark.parametrize("name", RANDOM)
def test_shards_round_alike_unless_the_axis_is_named(name):
    build = storage.int8 if "int8" in name else lambda **options: storage.stochastic_rounding("bfloat16", **options)
    mesh = Mesh(np.array(jax.devices()[:4]), "data")
    velocity = jnp.broadcast_to(normal((1, 512)), (4, 512))

    def draw(kept):
        def one(velocity):
            return storage.decode(kept.encode(velocity, kept.init(velocity)))

        return np.asarray(jax.jit(jax.shard_map(one, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(velocity))

    same, different = draw(build()), draw(build(axis_name="data"))
    assert np.all(same == same[0])
    assert all(np.any(different[i] != different[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("name", STORAGES)
def test_storages_work_in_scan_and_vmap(name):
    kept, velocity = STORAGES[name], normal((3, 4, 70))

    def run(velocity):
        def body(stored, _):
            return kept.encode(0.5 * kept.decode(stored, velocity) + velocity, stored), None

        return kept.decode(jax.lax.scan(body, kept.init(velocity), length=12)[0], velocity)

    together = jax.jit(jax.vmap(run))(velocity)
    chex.assert_trees_all_equal(together, jnp.stack([jax.jit(run)(one) for one in velocity]))
    # Errors of one unit at a time add up to two, and 2 (1 - 2^-12) velocity is the sum of the series.
    bound = 2 * ERROR.get(name, 1 / 127) * 2 * np.max(np.abs(velocity)) + 0.01
    chex.assert_trees_all_close(together, 2 * velocity, atol=float(bound))


def test_optax_maps_over_the_parameters_of_a_state():
    tx, params = nagjax.accelerate(0.9, storage=storage.int8()), {"a": normal((4, 512)), "b": normal((512,))}
    specs = {"a": P("data", "model"), "b": P("data")}
    found = optax.tree_map_params(tx, lambda _, spec: spec, tx.init(params), specs, transform_non_params=lambda _: P())
    assert found.velocity == storage.Int8State(specs, specs, P())


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: storage.cast("float17"),
            TypeError,
            "cast: dtype must be a real floating dtype, got 'float17'; use jnp.",
        ),
        (
            lambda: storage.cast("int8"),
            ValueError,
            "cast: dtype must be a real floating dtype, got 'int8'; use .* int8()",
        ),
        (
            lambda: storage.cast(jnp.complex64),
            ValueError,
            "cast: dtype must be a real floating dtype, got 'complex64'; use",
        ),
        (lambda: storage.stochastic_rounding(None, seed=0), TypeError, "stochastic_rounding: dtype must be"),
        (
            lambda: storage.stochastic_rounding("float32"),
            ValueError,
            r"stochastic_rounding: dtype must be bfloat16 or float16, got 'float32'; use cast\(\)",
        ),
        (
            lambda: storage.stochastic_rounding("bfloat16", seed=0.5),
            TypeError,
            "stochastic_rounding: seed must be an integer of at least 0, got 0.5; pass a Python integer.",
        ),
        (lambda: storage.int8(0), ValueError, "int8: block_size must be an integer of at least 1, got 0; 256 costs"),
        (lambda: storage.int8(2.5), TypeError, "int8: block_size must be an integer of at least 1, got 2.5; 256 costs"),
        (lambda: storage.int8(True), TypeError, "int8: block_size must be an integer of at least 1, got True; 256"),
        (lambda: storage.int8(seed=-1), ValueError, "int8: seed must be an integer of at least 0, got -1; pass"),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_random_rounding_reaches_the_value_of_float32(decay, single_precision):
    """Nesterov's method on a quadratic of condition number 1000; rounding to nearest alters what it converges to."""
    curvature = jnp.asarray(np.geomspace(1e-3, 1.0, 4000), jnp.float32)
    start = normal((4000,), seed=3)

    def final(kept):
        tx = optax.chain(optax.scale(decay - 1.0), nagjax.accelerate(decay, storage=kept))

        def body(carry, _):
            params, state = carry
            updates, state = tx.update(curvature * params, state, params)
            return (optax.apply_updates(params, updates), state), None

        params, state = jax.lax.scan(body, (start, tx.init(start)), length=3000)[0]
        return jnp.sum(curvature * nagjax.eval_params(params, state) ** 2) / 2

    expected, *found = (float(jax.jit(final, static_argnums=0)(STORAGES[name])) for name in QUADRATIC)
    assert max(abs(value / expected - 1) for value in found[:2]) < 0.03
    assert found[2] < expected * (0.95 if decay == 0.9 else 0.5)
