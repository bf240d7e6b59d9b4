"""Averaging as complete optimizers, against the authors' loops over a gradient and over Adam's direction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same_trajectory, from_table, run

import nagjax
from nagjax import storage
from nagjax.theory import averaging_loops

STEPS = 40
TOLERANCE = 1e-12  # some 40 roundings of iterates of size 1 to 10 on either side
MATRIX = np.random.default_rng(3).standard_normal((6, 4)) * [1.0, 0.6, 0.3, 0.1]
START = np.array([2.0, -1.0, 3.0, 0.5])
RATES = 0.05 * (1 + np.sin(np.arange(STEPS)) ** 2)


def gradient(x):
    return MATRIX.T @ np.tanh(MATRIX @ x) + 0.02 * x


def traced(x, k):
    return jnp.asarray(MATRIX.T) @ jnp.tanh(jnp.asarray(MATRIX) @ x) + 0.02 * x


def second_moments(b2=0.9, eps=1e-3):
    """Adam's direction without a first moment, as a function that remembers."""
    memory = {"v": 0.0, "t": 0}

    def direction(x):
        g = gradient(x)
        memory["t"] += 1
        memory["v"] = b2 * memory["v"] + (1 - b2) * g**2
        return g / (np.sqrt(memory["v"] / (1 - b2 ** memory["t"])) + eps)

    return direction


BASES = {
    "identity": (optax.identity(), lambda: gradient),
    "adam": (optax.scale_by_adam(b1=0.0, b2=0.9, eps=1e-3), second_moments),
}
over_bases = pytest.mark.parametrize(("base", "direction"), BASES.values(), ids=list(BASES))


@pytest.fixture(autouse=True)
def standard_promotion():
    """The bias correction of optax.scale_by_adam mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize(
    ("warm_up", "b", "r", "p", "decay"),
    [(0, 0.9, 0.0, 2.0, 0.0), (7, 0.85, 0.0, 2.0, 0.03), (13, 0.95, 1.5, 1.0, 0.1), (60, 0.0, 0.5, 0.0, 0.0)],
)
@over_bases
def test_schedule_free_is_the_authors_loop(base, direction, warm_up, b, r, p, decay):
    optimizer = nagjax.schedule_free(
        base, 0.13, b, warmup_steps=warm_up, weight_power=p, count_power=r, weight_decay=decay
    )
    loop = averaging_loops.schedule_free(
        direction(), START, 0.13, STEPS, momentum=b, warm_up=warm_up, count_power=r, weight_power=p, weight_decay=decay
    )
    assert_same_trajectory(run(optimizer, traced, START, STEPS), loop, TOLERANCE)


def test_the_first_rate_of_a_warm_up_is_not_zero():
    optimizer = nagjax.schedule_free(optax.identity(), 0.5, 0.9, warmup_steps=10)
    found = run(optimizer, traced, START, 1)
    np.testing.assert_allclose(found.answers[1], START - 0.05 * gradient(START), rtol=1e-14)


def test_a_schedule_of_the_rate_is_warmed_up_too():
    table = from_table(RATES)
    optimizer = nagjax.schedule_free(optax.identity(), table, warmup_steps=10)
    warmed = RATES * np.minimum((np.arange(STEPS) + 1) / 10, 1)
    same = nagjax.schedule_free(optax.identity(), from_table(warmed))
    assert_same_trajectory(run(optimizer, traced, START, STEPS), run(same, traced, START, STEPS), 1e-13)


@pytest.mark.parametrize("decay_query", [False, True], ids=["z", "y"])
@pytest.mark.parametrize(("mu_x", "mu_y", "decay"), [(0.9, 0.7, 0.0), (0.93, 0.6, 0.4), (0.5, 1.0, 0.2)])
@over_bases
def test_primal_averaging_is_the_authors_loop(base, direction, mu_x, mu_y, decay, decay_query):
    optimizer = nagjax.primal_averaging(
        base, from_table(RATES), mu_x, mu_y, weight_decay=decay, decay_query=decay_query
    )
    loop = averaging_loops.primal_averaging_in_place(
        direction(), START, RATES, mu_x, mu_y, weight_decay=decay, decay_query=decay_query
    )
    assert_same_trajectory(run(optimizer, traced, START, STEPS), loop, TOLERANCE)


def test_the_two_decays_of_primal_averaging_are_different_methods():
    loops = [
        averaging_loops.primal_averaging_in_place(
            gradient, START, RATES, 0.9, 0.7, weight_decay=0.5, decay_query=decay_query
        )
        for decay_query in (False, True)
    ]
    assert np.max(np.abs(loops[0].answers[-1] - loops[1].answers[-1])) > 1e-2


def test_constant_schedules_of_the_interpolation_change_nothing():
    constant = nagjax.primal_averaging(optax.identity(), 0.1, 0.9, 0.7, weight_decay=0.4)
    scheduled = nagjax.primal_averaging(optax.identity(), 0.1, lambda _: 0.9, lambda _: 0.7, weight_decay=0.4)
    assert_same_trajectory(run(scheduled, traced, START, STEPS), run(constant, traced, START, STEPS), 1e-14)


@pytest.mark.parametrize("m", [0.5, 0.9])
def test_equal_averages_are_nesterovs_method_at_a_longer_rate(m):
    averaged = nagjax.primal_averaging(optax.identity(), 0.05 / (1 - m), m, m)
    nesterov = nagjax.nesterov(0.05, m)
    assert_same_trajectory(run(averaged, traced, START, STEPS), run(nesterov, traced, START, STEPS), 1e-13)


OPTIMIZERS = {
    "schedule_free": lambda **options: nagjax.schedule_free(optax.identity(), 0.2, **options),
    "primal_averaging": lambda **options: nagjax.primal_averaging(optax.identity(), 0.2, 0.9, **options),
    "primal_averaging, y": lambda **options: nagjax.primal_averaging(
        optax.identity(), 0.2, 0.9, decay_query=True, **options
    ),
}
over_optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=list(OPTIMIZERS))


@over_optimizers
def test_only_leaves_of_the_mask_decay(make):
    """Two equal leaves: one decays as it does alone, the other as without decay."""

    def tree(x, k):
        return {name: traced(leaf, k) for name, leaf in x.items()}

    def follow(optimizer, slope, start):
        def body(_, carry):
            updates, state = optimizer.update(slope(carry[0], 0), carry[1], carry[0])
            return optax.apply_updates(carry[0], updates), state

        params, state = jax.jit(lambda x: jax.lax.fori_loop(0, 20, body, (x, optimizer.init(x))))(start)
        return nagjax.eval_params(params, state)

    start = jnp.asarray(START)
    masked = follow(make(weight_decay=0.3, mask={"a": True, "b": False}), tree, {"a": start, "b": start})
    np.testing.assert_allclose(masked["a"], follow(make(weight_decay=0.3), traced, start), rtol=1e-13)
    np.testing.assert_allclose(masked["b"], follow(make(), traced, start), rtol=1e-13)


@over_optimizers
def test_the_answer_is_exact_however_coarse_the_velocity_is_kept(make):
    """The answer of Schedule-Free with constant rate is the mean of its fast points."""
    fine = run(make(weight_decay=0.01), traced, START, STEPS)
    coarse = run(make(weight_decay=0.01, storage=storage.int8()), traced, START, STEPS)
    # A velocity of at most 10 is kept to 1/127 of its largest entry, and 40 steps forget half of that.
    np.testing.assert_allclose(coarse.answers[-1], fine.answers[-1], atol=0.05)


@over_optimizers
def test_two_thousand_steps_in_bfloat16_average_within_one_percent_of_float32(make):
    """optax.contrib.schedule_free stalls here: its sum of weights stops at 4 of 20."""
    target = 3.0 + jax.random.normal(jax.random.key(0), (2000, 64), jnp.float32)

    def average(dtype):
        optimizer = make()
        start = jnp.zeros((64,), dtype)

        def body(carry, noisy):
            params, state = carry
            updates, state = optimizer.update((params.astype(jnp.float32) - noisy).astype(dtype), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.jit(lambda p: jax.lax.scan(body, (p, optimizer.init(p)), target))(start)
        return nagjax.eval_params(params, state).astype(jnp.float32), state

    (half, half_state), (single, single_state) = average(jnp.bfloat16), average(jnp.float32)
    np.testing.assert_allclose(half, single, rtol=0.01)
    tree_get = optax.tree_utils.tree_get
    if (total := tree_get(single_state, "weight_sum")) is not None:
        np.testing.assert_allclose(total, 2000 * 0.2**2, rtol=1e-4)
        assert tree_get(half_state, "weight_sum") == total


@over_optimizers
def test_a_reset_in_the_middle_lands_on_params_and_goes_on_as_afresh(make):
    optimizer = make(weight_decay=0.1)

    def advance(params, state, count):
        for _ in range(count):
            updates, state = optimizer.update(traced(params, 0), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = advance(jnp.asarray(START), optimizer.init(jnp.asarray(START)), 5)
    resumed, _ = advance(params, nagjax.reset_momentum(state), 5)
    fresh, _ = advance(params, optimizer.init(params), 5)
    np.testing.assert_array_equal(resumed, fresh)
