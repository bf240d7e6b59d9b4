"""`diloco`: what travels and when, weights, wires, fragments, maps over workers, and workers that come and go."""

import functools
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
from nagjax import outer
from nagjax.outer.fragments import fragments_of
from tests.contract.support import avals, close, same_bits
from tests.unit.programs import branches, collectives, computations

M = 4
MESH = Mesh(np.array(jax.devices()[:M]), ("workers",))
AXES, SPECS = outer.per_worker(0, None), outer.per_worker(P("workers"), P())
TARGETS = jnp.asarray(np.random.default_rng(0).standard_normal((M, 10)))
PARAMS = {"a": jnp.zeros(6), "b": jnp.zeros(3), "c": jnp.zeros(())}
WIRES = {"int8": outer.wire.int8(4), "bfloat16": outer.wire.bfloat16()}
LANDS = nagjax.nesterov(0.7, 0.6)


def split(row):
    return {"a": row[:6], "b": row[6:9], "c": row[9]}


def diloco(inner=None, outside=LANDS, period=4, axis_name="workers", **options):
    return outer.diloco(optax.sgd(0.1, 0.9) if inner is None else inner, outside, period, axis_name, **options)


def stepper(tx, weighted=False):
    """A step of one worker on |x - target|^2 / 2."""

    def step(params, state, target):
        slope = jax.tree.map(lambda y, t: y - t.astype(y.dtype), params, split(target))
        extra = {"weight": jnp.abs(target[0]) + 0.1} if weighted else {}
        updates, state = tx.update(slope, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def unstacked(step):
    """A step for the inside of `shard_map`, where what differs between workers has a first axis of 1."""

    def shard(params, state, target):
        params, state = jax.tree.map(lambda leaf: leaf[0], params), outer.map_per_worker(lambda leaf: leaf[0], state)
        params, state = step(params, state, target[0])
        return jax.tree.map(lambda leaf: leaf[None], params), outer.map_per_worker(lambda leaf: leaf[None], state)

    return shard


def mapped(mode, step):
    """The compiled step of all workers."""
    if mode == "pmap":
        options = {"in_axes": (0, AXES, 0), "out_axes": (0, AXES), "devices": jax.devices()[:M]}
        return jax.pmap(step, "workers", **options)
    if mode == "shard_map":
        specs = {"in_specs": (P("workers"), SPECS, P("workers")), "out_specs": (P("workers"), SPECS)}
        return jax.jit(jax.shard_map(unstacked(step), mesh=MESH, **specs))
    axes = {"in_axes": (0, AXES, 0), "out_axes": (0, AXES)}
    vmapped = jax.vmap(step, **axes, axis_name="workers", spmd_axis_name="workers")
    whole = jax.tree.map(lambda spec: NamedSharding(MESH, spec), (P("workers"), SPECS, P("workers")))
    return jax.jit(vmapped, in_shardings=whole, out_shardings=whole[:2])


def stacked(tree, workers=M):
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * workers), tree)


def started(tx, params=PARAMS, workers=M):
    """Parameters and state of all workers."""
    return stacked(params, workers), outer.map_per_worker(lambda leaf: jnp.stack([leaf] * workers), tx.init(params))


def final(mode, tx, updates=11, weighted=False, params=PARAMS):
    step, carry = mapped(mode, stepper(tx, weighted)), started(tx, params)
    for _ in range(updates):
        carry = step(*carry, TARGETS)
    return jax.device_get(carry)


def program(tx, mode="shard_map", weighted=False):
    return mapped(mode, stepper(tx, weighted)).lower(*started(tx), TARGETS).compile().as_text()


ALL = {
    "plain": {},
    "start": {"phase": "start", "slow_dtype": jnp.float32},
    "fresh": {"reset_inner": True, "mixing": 0.3},
    "int8": {"wire": WIRES["int8"]},
    "streaming": {"fragments": 3, "delay": 1, "mixing": 0.5, "wire": WIRES["bfloat16"]},
    "tree": {"fragments": {"a": 1, "b": 0, "c": 1}, "delay": 3, "phase": "start"},
}


WEIGHTED = "plain", "int8", "streaming"


@functools.cache
def finished(mode, name):
    """The run of a row, which several tests share."""
    return final(mode, diloco(**ALL[name]), weighted=name in WEIGHTED)


@pytest.mark.parametrize("name", ALL)
def test_shard_map_vmap_and_pmap_agree(name):
    expected = finished("vmap", name)
    for mode in "shard_map", "pmap":
        close(finished(mode, name), expected, 2e-7 if name == "start" else 1e-13)


@pytest.mark.parametrize("options", [{}, {"phase": "start"}, {"reset_inner": True}, {"slow_dtype": jnp.bfloat16}])
def test_without_options_of_its_own_it_is_periodic_bit_for_bit(options):
    plain = outer.periodic(optax.sgd(0.1, 0.9), LANDS, 4, "workers", **options)

    def follow(tx):
        def run(target):
            def body(carry, _):
                return stepper(tx)(*carry, target), None

            params, state = jax.lax.scan(body, (PARAMS, tx.init(PARAMS)), length=11)[0]
            return params, tuple(state)[:4]

        return jax.jit(jax.vmap(run, axis_name="workers"))(TARGETS)

    same_bits(follow(diloco(**options)), follow(plain))


# What travels, and when.


@pytest.mark.parametrize("mode", ["shard_map", "vmap"])
def test_workers_communicate_once_and_within_the_conditional(mode):
    text = program(diloco(), mode)
    waiting, synchronizing = branches(text)
    assert [kind for kind, *_ in collectives(synchronizing)] == ["all-reduce"]
    assert collectives(waiting) == []
    assert len(collectives(text)) == 1


@pytest.mark.parametrize("delay", [0, 1])
def test_each_fragment_communicates_once_in_a_conditional_of_its_own(delay):
    text = program(diloco(fragments=3, delay=delay))
    pairs = re.findall(r"branch_computations=\{%?([\w.\-]+), %?([\w.\-]+)\}", text)
    found = [
        [collectives(computations(text)[name]) for name in pair] for pair in pairs
    ]  # fmt: skip
    talking = [yes for no, yes in found if yes]
    assert len(pairs) == (3 if not delay else 6)
    assert all(not no for no, _ in found)
    assert sorted(shapes for row in talking for _, shapes, _ in row) == [[("f64", 1)], [("f64", 3)], [("f64", 6)]]
    assert len(collectives(text)) == 3


def test_inner_collectives_join_one_workers_devices_and_outer_ones_one_place_of_each_worker():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(M, 2), ("workers", "data"))
    tx = diloco()

    def step(params, state, targets):
        slope = jax.lax.pmean(jax.tree.map(lambda y, t: y - t, params, split(jnp.mean(targets, axis=0))), "data")
        updates, state = tx.update(slope, state, params)
        return optax.apply_updates(params, updates), state

    specs = {"in_specs": (P("workers"), SPECS, P("workers", "data")), "out_specs": (P("workers"), SPECS)}
    whole = jax.jit(jax.shard_map(unstacked(step), mesh=mesh, **specs))
    text = whole.lower(*started(tx), jnp.ones((M, 6, 10))).compile().as_text()
    waiting, synchronizing = branches(text)
    inside = [groups for _, _, groups in collectives(synchronizing)]
    assert inside == [{frozenset({0, 2, 4, 6}), frozenset({1, 3, 5, 7})}]
    assert collectives(waiting) == []
    steps = [groups for _, _, groups in collectives(computations(text)["ENTRY"])]
    assert steps == [{frozenset({2 * worker, 2 * worker + 1}) for worker in range(M)}]
    assert len(collectives(text)) == 2


def test_a_step_that_is_a_number_leaves_no_conditional_around_the_reductions_of_unrolled_periods():
    tx = diloco(period=5, fragments=2, delay=2, mixing=0.5)
    step = stepper(tx)

    def period(params, state, target):
        state = state._replace(step=0)
        for _ in range(5):
            params, state = step(params, state, target)
        return params, state

    whole, carry = mapped("shard_map", period), started(tx)
    text = whole.lower(*carry, TARGETS).compile().as_text()
    whole_program, entered = collectives(text), collectives(computations(text)["ENTRY"])
    assert len(whole_program) == len(entered)
    # XLA may join reductions, as here, where a leaf's steps do not depend on other leaves.
    assert sorted(shape for _, shapes, _ in entered for shape in shapes) == [("f64", 1), ("f64", 3), ("f64", 6)]
    single, expected = mapped("shard_map", step), carry
    for _ in range(3):
        carry = whole(*carry, TARGETS)
        for _ in range(5):
            expected = single(*expected, TARGETS)
    assert avals(carry) == avals(expected)
    close(carry, expected)


def test_it_compiles_once_and_takes_donated_buffers():
    tx = diloco(**ALL["streaming"])
    params, state = PARAMS, tx.init(PARAMS)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
    assert len(pointers) == len(set(pointers))
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(n=1)(unstacked(stepper(tx, weighted=True)))
    specs = {"in_specs": (P("workers"), SPECS, P("workers")), "out_specs": (P("workers"), SPECS)}
    donating = jax.jit(jax.shard_map(traced, mesh=MESH, **specs), donate_argnums=(0, 1))
    expected = finished("shard_map", "streaming")
    whole = jax.tree.map(lambda spec: NamedSharding(MESH, spec), (P("workers"), SPECS))
    carry = jax.jit(lambda tree: tree, out_shardings=whole)(started(tx))
    for _ in range(11):
        carry = donating(*carry, TARGETS)
    close(jax.device_get(carry), expected)


# Fragments.


@pytest.mark.parametrize("seed", range(20))
def test_fragments_are_consecutive_and_not_empty(seed):
    rng = np.random.default_rng(seed)
    leaves = [np.zeros(int(n), np.float32) for n in rng.integers(0, 10 ** rng.integers(1, 5, 12), 12)]
    for count in range(2, 13):
        numbers = fragments_of("f", count).of(leaves).numbers
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(count))


def test_equal_leaves_make_equal_fragments_and_a_large_one_stands_alone():
    equal = [np.zeros(5)] * 12
    for count in 2, 3, 4, 6, 12:
        assert np.ptp(np.bincount(fragments_of("f", count).of(equal).numbers)) == 0
    assert fragments_of("f", 3).of([np.zeros(1), np.zeros(99), np.zeros(1)]).numbers == [0, 1, 2]


def test_more_fragments_than_leaves_are_empty_and_change_nothing():
    tx = diloco(optax.sgd(0.1), period=7, fragments=5, delay=1, wire=WIRES["int8"])
    assert fragments_of("f", 5).of([np.zeros(2)] * 3).numbers == [0, 1, 2]
    tree = diloco(optax.sgd(0.1), period=7, fragments=[0, 1, 2, 3, 4], delay=1, wire=WIRES["int8"])
    full, few, one = [jnp.zeros(2)] * 5, [jnp.zeros(2)] * 3, jnp.zeros(2)

    def run(tx, leaves):
        def worker(scale):
            def body(carry, _):
                y, state = carry
                updates, state = tx.update(jax.tree.map(lambda leaf: scale - leaf, y), state, y)
                return (optax.apply_updates(y, updates), state), None

            y, state = jax.lax.scan(body, (leaves, tx.init(leaves)), length=8)[0]
            return y, state.slow

        return jax.jit(jax.vmap(worker, axis_name="workers"))(jnp.array([1.0, 3.0]))

    found, expected = run(tx, few), run(tree, full)
    for k in range(3):
        same_bits([leaves[k] for leaves in found], [leaves[k] for leaves in expected])
    same_bits(list(run(tx, one)), [leaves[0] for leaves in expected])


def test_the_fragments_of_a_period_end_with_it_and_those_of_the_start_phase_begin_with_its_last():
    for phase, expected in ("end", [0, 2, 4, 6, 8]), ("start", [1, 3, 5, 7]):
        tx, params = outer.diloco(optax.sgd(1.0), optax.sgd(1.0), 4, fragments=2, phase=phase), [jnp.zeros(1)] * 2
        state, moved = tx.init(params), []
        for k in range(8):
            updates, after = tx.update([jnp.ones(1)] * 2, state, params)
            params = optax.apply_updates(params, updates)
            moved += [k + 1 for old, new in zip(state.slow, after.slow, strict=True) if old != new]
            state = after
        assert moved == [step for step in expected if step]


def test_frozen_and_late_leaves_wait_with_fragments_a_delay_and_a_wire():
    params = {"a": jnp.zeros(4), "frozen": jnp.ones(3), "late": jnp.zeros(2), "none": None}
    tx = diloco(optax.sgd(1.0), optax.sgd(1.0), 2, fragments=2, delay=1, wire=WIRES["bfloat16"])

    def worker(scale):
        y, state = params, tx.init(params)
        for k in range(6):
            late = None if k in (1, 2) else scale * jnp.ones(2)
            updates, state = tx.update({"a": scale * jnp.ones(4), "frozen": None, "late": late, "none": None}, state, y)
            y = jax.tree.map(lambda p, u: p if u is None else p + u, y, updates, is_leaf=lambda leaf: leaf is None)
        return y, state

    y, state = jax.jit(jax.vmap(worker, axis_name="workers"))(jnp.array([1.0, 3.0]))
    same_bits((y["frozen"][0], state.slow["frozen"][0]), (params["frozen"], params["frozen"]))
    assert y["none"] is None
    # With a mean step of -2: taken after steps 1, 3 and 5 as -2 each, what follows within the delay is lost.
    close(state.slow["a"], jnp.full((2, 4), -6.0), 0)
    # Taken after step 2 but not there when it should land, so taken again after step 4, as -4.
    close(state.slow["late"], jnp.full((2, 2), -4.0), 0)


# States, dtypes and workers.


def test_states_have_the_dtypes_of_their_parts_and_updates_those_of_the_parameters():
    params = {"a": jnp.ones(6, jnp.bfloat16), "b": jnp.ones(3, jnp.float32), "c": jnp.ones((), jnp.float16)}
    tx = diloco(optax.sgd(0.1), **ALL["streaming"])
    y, state = final("shard_map", tx, params=params, weighted=True)
    assert avals(y) == avals(stacked(params))
    for tree in state.slow, state.residual, state.waiting.mean:
        assert {leaf.dtype.name for leaf in jax.tree.leaves(tree)} == {"float32"}
    fresh = started(tx, params)
    assert avals((y, state)) == avals(fresh)


def test_answers_velocities_and_resets_reach_all_fragments():
    tx = outer.diloco(optax.sgd(0.1), LANDS, 3, fragments=3)
    params, state, step = PARAMS, tx.init(PARAMS), jax.jit(stepper(tx))
    for _ in range(7):
        params, state = step(params, state, TARGETS[0])
    velocities = nagjax.velocity(state)
    assert len(velocities) == 3
    answer = nagjax.eval_params(params, state)
    for number, name in enumerate(PARAMS):
        close(answer[name], state.slow[name] - 0.6 * velocities[number][name], 1e-15)
        assert np.any(velocities[number][name])
    reset = nagjax.reset_momentum(state)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(nagjax.velocity(reset)))
    same_bits(nagjax.eval_params(params, reset), state.slow)


@pytest.mark.parametrize("name", ["int8", "streaming", "tree"])
def test_tree_map_params_visits_what_is_like_the_parameters(name, standard_promotion):
    tx = diloco(**ALL[name])
    spec = optax.tree_utils.tree_map_params(tx, lambda _: "p", tx.init(PARAMS), transform_non_params=lambda _: "-")
    marked = dict.fromkeys(PARAMS, "p")
    assert spec.slow == marked
    assert spec.residual == (marked if "wire" in ALL[name] else ())
    assert spec.waiting == () or spec.waiting.mean == marked
    assert jax.tree.leaves(spec.outer).count("p") == len(PARAMS)


def test_injected_factories_make_the_steps_of_the_bare_ones():
    static = ("fragments", "delay", "period")
    options = {"inner": optax.sgd(0.1), "outer": LANDS, "period": 4, "fragments": 2, "delay": 1, "mixing": 0.5}
    injected = optax.inject_hyperparams(outer.diloco, static_args=static)(**options)
    bare = outer.diloco(**options)
    y, state, z, own = PARAMS, injected.init(PARAMS), PARAMS, bare.init(PARAMS)
    assert "mixing" in state.hyperparams
    steps = jax.jit(stepper(injected)), jax.jit(stepper(bare))
    for _ in range(7):
        y, state = steps[0](y, state, TARGETS[0])
        z, own = steps[1](z, own, TARGETS[0])
    close((y, state.inner_state), (z, own))


def test_eager_updates_are_the_compiled_ones():
    tx = outer.diloco(optax.sgd(0.1, 0.9), LANDS, 4, fragments=2, delay=1, mixing=0.5)
    y, state, z, own = PARAMS, tx.init(PARAMS), PARAMS, tx.init(PARAMS)
    compiled = jax.jit(stepper(tx))
    for k in range(9):
        y, state = stepper(tx)(y, state, TARGETS[k % M])
        z, own = compiled(z, own, TARGETS[k % M])
        close((y, state), (z, own))


def test_workers_that_stay_repeat_and_join():
    tx = diloco(wire=WIRES["int8"])
    params, state = finished("shard_map", "int8")
    after, made = outer.keep_workers(state, params, [2, None, 0, 2], tx)
    rows = np.array([2, 0, 2])
    same_bits(
        jax.tree.map(lambda leaf: leaf[jnp.array([0, 2, 3])], made), jax.tree.map(lambda leaf: leaf[rows], params)
    )
    close(jax.tree.map(lambda leaf: leaf[1], made), state.slow, 0)
    fresh = tx.init(PARAMS)
    for place, expected in (0, 2), (2, 0), (3, 2):
        one = jax.tree.map(lambda leaf, place=place: leaf[place], after.inner)
        close(one, jax.tree.map(lambda leaf, expected=expected: leaf[expected], state.inner), 0)
    same_bits(jax.tree.map(lambda leaf: leaf[1], after.inner), fresh.inner)
    residual = np.asarray(after.residual["a"])
    np.testing.assert_array_equal(residual[[0, 2]], state.residual["a"][[2, 0]])
    assert not np.any(residual[[1, 3]])
    same_bits((after.slow, after.outer, after.step), (state.slow, state.outer, state.step))


def test_new_workers_may_have_random_keys_in_their_inner_state():
    def init(params):
        return {"key": jax.random.key(3), "params": params}

    noisy = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    tx = outer.diloco(noisy, period=2, axis_name="workers")
    state = outer.map_per_worker(lambda leaf: jnp.stack([leaf] * 2), tx.init(jnp.ones(3)))
    after, _ = outer.keep_workers(state, jnp.ones((2, 3)), [1, None], tx)
    assert jnp.all(after.inner["key"] == jax.random.key(3))


@pytest.mark.parametrize(
    ("indices", "argument", "condition"),
    [
        ([], "indices", "at least one worker"),
        ([0, 4], "indices", "below the number of workers, 4"),
        ([-1], "indices", "an integer of at least 0"),
        ([1.0], "indices", "an integer of at least 0"),
        ([0, None], "optimizer", "given where an index is None"),
    ],
)
def test_workers_that_are_not_there_are_refused(indices, argument, condition):
    tx = diloco()
    params, state = started(tx)
    with pytest.raises((ValueError, TypeError), match=rf"^outer.keep_workers: {argument} must be {condition}, got "):
        outer.keep_workers(state, params, indices)


@pytest.mark.parametrize(
    ("error", "argument", "condition", "options"),
    [
        (TypeError, "inner", "an Optax gradient transformation", {"inner": optax.sgd}),
        (TypeError, "outer", "an Optax gradient transformation", {"outer": optax.sgd}),
        (TypeError, "period", "an integer of at least 1", {"period": 2.5}),
        (ValueError, "period", "an integer of at least 1", {"period": 0}),
        (ValueError, "period", "an integer of at least 3", {"period": 2, "fragments": 3}),
        (ValueError, "period", "an integer of at least 5", {"period": 4, "delay": 4}),
        (ValueError, "fragments", "an integer of at least 1", {"fragments": 0}),
        (TypeError, "fragments", "an integer of at least 1", {"fragments": 1.5}),
        (ValueError, "fragments", "a tree that uses every number from 0 on", {"fragments": {"a": 0, "b": 2}}),
        (TypeError, "fragments", "an integer of at least 0", {"fragments": {"a": "x"}}),
        (ValueError, "delay", "an integer of at least 0", {"delay": -1}),
        (ValueError, "mixing", "in [0, 1)", {"mixing": 1.0}),
        (TypeError, "wire", "a Wire or None", {"wire": "int8", "axis_name": "workers"}),
        (ValueError, "wire", "None without an axis_name", {"wire": outer.wire.int8()}),
        (ValueError, "phase", "'end' or 'start'", {"phase": "middle"}),
        (ValueError, "reset_inner", "False with fragments or a delay", {"reset_inner": True, "delay": 1}),
    ],
)
def test_bad_arguments_are_refused_with_the_remedy(error, argument, condition, options):
    with pytest.raises(error, match=rf"^outer\.diloco: {argument} must be {re.escape(condition)}, got .+; .+\.$"):
        outer.diloco(**({"inner": optax.sgd(0.1)} | options))


def test_a_tree_of_fragments_that_does_not_fit_the_parameters_is_refused_by_init():
    condition = "a tree of the structure of the parameters"
    with pytest.raises(ValueError, match=rf"^outer\.diloco: fragments must be {condition}, got "):
        outer.diloco(optax.sgd(0.1), fragments={"a": 0, "b": 1}).init(PARAMS)


@pytest.mark.parametrize(("error", "weight"), [(ValueError, -1.0), (ValueError, float("nan")), (TypeError, "2")])
def test_bad_weights_are_refused_where_they_are_known(error, weight):
    tx = outer.diloco(optax.sgd(0.1))
    with pytest.raises(error, match=r"^outer\.diloco: weight must be at least 0 and finite, got "):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, weight=weight)
