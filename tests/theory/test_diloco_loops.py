"""DiLoCo and its streaming variant against their published loops, and the methods that they are special cases of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, from_table
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import nagjax
from nagjax import outer, restart
from nagjax.descent import scale_by_learning_rate
from nagjax.theory import diloco_loops

WORKERS = 4
UPDATES = 45
TOLERANCE = 1e-12
EXACT = 1e-14
RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((7, 5)) * [1.0, 0.7, 0.4, 0.1, 0.9]
START = np.array([2.0, -1.0, 3.0, 0.5, -0.7])
RATE = 0.5 / float(np.linalg.norm(MATRIX, 2)) ** 2
INNER_RATES = RATE / (1 + np.arange(UPDATES + 1) / 30)
SHIFTS = RNG.standard_normal((WORKERS, 7))
SIZES = {"a": (2,), "b": (2,), "c": (1,)}  # leaves, in the order of the coordinates
FRAGMENTS = {1: [range(5)], 2: [[0, 1], [2, 3, 4]], 3: [[0, 1], [2, 3], [4]]}
RATES = {"rate": 0.83, "momentum": 0.71}


def slope(x, shift=0.0):
    """The gradient of a function that is neither quadratic nor separable, for NumPy."""
    return MATRIX.T @ np.tanh(MATRIX @ x - 0.3 + shift) + 0.02 * x


def smooth(params, shift=0.0):
    """The same for JAX, on leaves."""
    x = jnp.concatenate(jax.tree.leaves(params))
    return split(jnp.asarray(MATRIX.T) @ jnp.tanh(jnp.asarray(MATRIX) @ x - 0.3 + shift) + 0.02 * x)


def split(x):
    return dict(zip(SIZES, jnp.split(jnp.asarray(x), [2, 4]), strict=True))


def joined(tree):
    return jnp.concatenate(jax.tree.leaves(tree), axis=-1)


def steps(workers=WORKERS):
    """The inner step of each worker, for NumPy."""
    return [lambda x, n, shift=shift: x - INNER_RATES[n] * slope(x, shift) for shift in SHIFTS[:workers]]


def inner():
    return optax.chain(scale_by_learning_rate(from_table(INNER_RATES)))


def nesterov(**options):
    return nagjax.nesterov(RATES["rate"], RATES["momentum"], **options)


def run(tx, updates=UPDATES, weights=None, workers=WORKERS, change=lambda state, k: state):
    """Fast weights of all workers, s and answers after 0, 1, ... updates, and the last state, of a mapped run."""
    weighted = np.ones((updates, workers)) if weights is None else np.asarray(weights)

    def worker(shift, own):
        def body(carry, inputs):
            k, w = inputs
            params, state = carry
            extra = {} if weights is None else {"weight": w}
            changes, state = tx.update(smooth(params, shift), change(state, k), params, **extra)
            params = optax.apply_updates(params, changes)
            return (params, state), (joined(params), joined(state.slow), joined(nagjax.eval_params(params, state)))

        carry = split(START), tx.init(split(START))
        (_, state), rows = jax.lax.scan(body, carry, (jnp.arange(updates), own))
        return rows, state

    mapped = jax.jit(jax.vmap(worker, axis_name="workers", in_axes=(0, 1)))
    rows, state = mapped(jnp.asarray(SHIFTS[:workers]), jnp.asarray(weighted))
    first = np.broadcast_to(START, (workers, 1, 5))
    return [np.moveaxis(np.concatenate([first, row], axis=1), 0, 1) for row in rows], state


def assert_rounds(found, expected):
    fast, slow, answers = found
    assert_close(fast, expected.fast, TOLERANCE)
    for rows, loop in (slow, expected.slow), (answers, expected.answers):
        assert_close(rows, np.broadcast_to(loop[:, None], rows.shape), TOLERANCE)


def round_weights(rounds):
    """Weights of rounds: unequal, with workers left out, and one round that nobody counts in."""
    weights = np.random.default_rng(2).uniform(0.2, 3.0, (rounds, WORKERS))
    weights[1, 2] = weights[2, :3] = weights[4] = 0.0
    return weights


@pytest.mark.parametrize("period", [1, 3, 5])
def test_with_weights_it_is_the_published_loop(period):
    weights = round_weights(UPDATES // period)
    found, _ = run(outer.diloco(inner(), nesterov(), period, "workers"), weights=np.repeat(weights, period, axis=0))
    assert_rounds(found, diloco_loops.diloco(steps(), START, period, weights, **RATES))


def test_its_defaults_are_those_of_the_paper():
    expected = diloco_loops.diloco(steps(), START, 5, np.ones((9, WORKERS)), rate=0.7, momentum=0.9)
    assert_rounds(run(outer.diloco(inner(), period=5, axis_name="workers"))[0], expected)
    state = outer.diloco(inner()).init(split(START))
    assert int(outer.diloco(inner(), phase="start").init(split(START)).step) == 99
    assert int(state.step) == 0


def test_equal_weights_are_no_weights_whatever_their_size():
    tx = outer.diloco(inner(), nesterov(), 3, "workers")
    expected, _ = run(tx)
    for size in 1.0, 1e-30, 7e20:
        found, _ = run(tx, weights=np.full((UPDATES, WORKERS), size))
        for column, loop in zip(found, expected, strict=True):
            assert_close(column, loop, EXACT)


@pytest.mark.parametrize(
    ("count", "period", "delay", "mixing"),
    [(1, 4, 3, 0.0), (1, 5, 0, 0.37), (2, 5, 0, 0.0), (2, 4, 1, 0.5), (3, 3, 2, 0.25), (3, 7, 6, 0.0), (3, 8, 2, 0.6)],
)
def test_streaming_is_its_published_loop(count, period, delay, mixing):
    tx = outer.diloco(inner(), nesterov(), period, "workers", fragments=count, delay=delay, mixing=mixing)
    expected = diloco_loops.streaming_diloco(
        steps(), START, period, UPDATES, FRAGMENTS[count], delay=delay, mixing=mixing, **RATES
    )
    assert_rounds(run(tx)[0], expected)


def test_streaming_with_a_tree_of_fragments_and_weights_is_its_published_loop():
    weights = np.random.default_rng(3).uniform(0.1, 2.0, (UPDATES, WORKERS))
    weights[::4, 1] = 0.0  # also at steps that are not read
    groups = {"a": 1, "b": 0, "c": 1}
    tx = outer.diloco(inner(), nesterov(), 7, "workers", fragments=groups, delay=2)
    expected = diloco_loops.streaming_diloco(
        steps(), START, 7, UPDATES, [[2, 3], [0, 1, 4]], delay=2, mixing=0.0, weights=weights, **RATES
    )
    assert_rounds(run(tx, weights=weights)[0], expected)


def test_the_two_published_loops_agree_for_one_fragment_without_a_delay():
    plain = diloco_loops.diloco(steps(), START, 5, np.ones((9, WORKERS)), **RATES)
    streamed = diloco_loops.streaming_diloco(steps(), START, 5, 45, FRAGMENTS[1], delay=0, mixing=0.0, **RATES)
    for found, expected in zip(plain, streamed, strict=True):
        assert_close(found, expected, EXACT)


def test_a_delayed_mean_without_any_weight_moves_nothing():
    weights = np.ones((UPDATES, WORKERS))
    weights[9:20] = 0.0  # the means of steps 10, 15 and 20
    tx = outer.diloco(inner(), nesterov(), 5, "workers", delay=2)
    (fast, slow, _), _ = run(tx, weights=weights)
    for landing in 12, 17, 22:
        np.testing.assert_array_equal(slow[landing], slow[landing - 1])
        assert_close(fast[landing], slow[landing], EXACT)
    assert np.max(np.abs(slow[7] - slow[6])) > 1e-3
    assert np.max(np.abs(slow[27] - slow[26])) > 1e-3


def test_the_restart_test_forgets_the_momentum_of_all_workers_alike():
    period, options = 3, {"rate": 1.1, "momentum": 0.95}
    weights = np.ones((UPDATES // period, WORKERS))
    tx = outer.diloco(inner(), nagjax.nesterov(1.1, 0.95, restart=restart.gradient()), period, "workers")
    found, state = run(tx)
    assert_rounds(found, diloco_loops.diloco(steps(), START, period, weights, restart=True, **options))
    ages = np.asarray(state.outer[-1].age)
    assert np.ptp(ages) == 0
    assert ages[0] < UPDATES // period  # it has restarted
    without = diloco_loops.diloco(steps(), START, period, weights, **options)
    assert np.max(np.abs(without.slow[-1] - found[1][-1, 0])) > 1e-3


def test_a_reset_of_the_momentum_starts_the_published_loop_again_from_there():
    tx = outer.diloco(inner(), nesterov(), 3, "workers")

    def reset(state, k):
        cleared = nagjax.reset_momentum(state.outer)
        return state._replace(outer=jax.tree.map(lambda a, b: jnp.where(k == 21, a, b), cleared, state.outer))

    (_, slow, _), _ = run(tx, change=reset)
    before = diloco_loops.diloco(steps(), START, 3, np.ones((7, WORKERS)), **RATES)
    later = [lambda x, n, step=step: step(x, n + 21) for step in steps()]
    after = diloco_loops.diloco(later, before.slow[-1], 3, np.ones((8, WORKERS)), **RATES)
    assert_close(slow[:, 0], np.concatenate([before.slow, after.slow[1:]]), TOLERANCE)


def test_one_worker_is_snoo():
    found, _ = run(outer.diloco(inner(), nesterov(), 4), 12, workers=1)
    expected, _ = run(outer.snoo(inner(), 0.83, 0.71, 4), 12, workers=1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@functools.cache
def data_parallel(updates):
    x, rows = START, [START]
    for _ in range(updates):
        x = x - RATE * np.mean([slope(x, shift) for shift in SHIFTS], axis=0)
        rows.append(x)
    return rows


def mapped_step(mode, tx):
    """A compiled step of all workers, from stacked parameters and a state with a shared part."""
    mesh = Mesh(np.array(jax.devices()[:WORKERS]), ("workers",))
    axes, specs = outer.per_worker(0, None), outer.per_worker(P("workers"), P())

    def step(params, state, shift):
        updates, state = tx.update(smooth(params, shift), state, params)
        return optax.apply_updates(params, updates), state

    def shard(params, state, shift):
        params, state = jax.tree.map(lambda leaf: leaf[0], params), outer.map_per_worker(lambda leaf: leaf[0], state)
        params, state = step(params, state, shift[0])
        return jax.tree.map(lambda leaf: leaf[None], params), outer.map_per_worker(lambda leaf: leaf[None], state)

    if mode == "pmap":
        options = {"in_axes": (0, axes, 0), "out_axes": (0, axes), "devices": jax.devices()[:WORKERS]}
        return jax.pmap(step, "workers", **options)
    if mode.startswith("shard_map"):
        options = {"in_specs": (P("workers"), specs, P("workers")), "out_specs": (P("workers"), specs)}
        return jax.jit(jax.shard_map(shard, mesh=mesh, check_vma=mode == "shard_map", **options))
    vmapped = jax.vmap(
        step, in_axes=(0, axes, 0), out_axes=(0, axes), axis_name="workers", spmd_axis_name="workers"
    )  # fmt: skip
    with_mesh = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), (P("workers"), specs, P("workers")))
    return jax.jit(vmapped, in_shardings=with_mesh, out_shardings=with_mesh[:2])


def stacked(tree):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (WORKERS, *leaf.shape)), tree)


MODES = ["shard_map", "shard_map, unchecked", "vmap", "pmap"]


@pytest.mark.parametrize("mode", MODES)
def test_with_period_one_and_a_unit_outer_step_it_is_data_parallel(mode):
    tx = outer.diloco(optax.sgd(RATE), optax.sgd(1.0), 1, "workers")
    step, params = mapped_step(mode, tx), stacked(split(START))
    state = outer.map_per_worker(lambda leaf: jnp.stack([leaf] * WORKERS), tx.init(split(START)))
    for expected in data_parallel(20)[1:]:
        params, state = step(params, state, jnp.asarray(SHIFTS))
        assert_close(joined(params), np.broadcast_to(expected, (WORKERS, 5)), EXACT)
        assert_close(joined(state.slow), expected, EXACT)


@pytest.mark.parametrize("mode", MODES)
def test_on_devices_streaming_is_its_published_loop(mode):
    tx = outer.diloco(inner(), nesterov(), 4, "workers", fragments=2, delay=1, mixing=0.5)
    step, params = mapped_step(mode, tx), stacked(split(START))
    state = outer.map_per_worker(lambda leaf: jnp.stack([leaf] * WORKERS), tx.init(split(START)))
    expected = diloco_loops.streaming_diloco(steps(), START, 4, 42, FRAGMENTS[2], delay=1, mixing=0.5, **RATES)
    for fast, slow in zip(expected.fast[1:], expected.slow[1:], strict=True):
        params, state = step(params, state, jnp.asarray(SHIFTS))
        assert_close(joined(params), fast, TOLERANCE)
        assert_close(joined(state.slow), slow, TOLERANCE)


def test_a_run_goes_on_without_a_lost_worker_as_in_the_loop_that_drops_it():
    tx = outer.diloco(inner(), nesterov(), 3, "workers")
    axes = outer.per_worker(0, None)

    @jax.jit
    def follow(params, state, shifts):
        def step(params, state, shift):
            updates, state = tx.update(smooth(params, shift), state, params)
            return optax.apply_updates(params, updates), state

        mapped = jax.vmap(step, in_axes=(0, axes, 0), out_axes=(0, axes), axis_name="workers")
        return mapped(params, state, shifts)

    state = outer.map_per_worker(lambda leaf: jnp.stack([leaf] * WORKERS), tx.init(split(START)))
    params, shifts = stacked(split(START)), jnp.asarray(SHIFTS)
    weights = np.ones((14, WORKERS))
    weights[4:, 1] = 0.0
    expected = diloco_loops.diloco(steps(), START, 3, weights, **RATES)
    kept = list(range(WORKERS))
    for k in range(42):
        if k == 13:  # within a round
            kept = [3, 0, 2]
            state, params = outer.keep_workers(state, params, kept)
            shifts = shifts[np.array(kept)]
        params, state = follow(params, state, shifts)
        assert_close(joined(params), expected.fast[k + 1][kept], TOLERANCE)
        assert_close(joined(state.slow), expected.slow[k + 1], TOLERANCE)
