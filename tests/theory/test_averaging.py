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


CONVENTIONS = ("dozat", "pytorch", "algoperf")
BASES = {
    "identity": (optax.identity(), lambda: gradient),
    "adam": (optax.scale_by_adam(b1=0.0, b2=0.9, eps=1e-3), second_moments),
    **{
        name: (nagjax.adaptive.scale_by_nadam(b1=0.0, b2=0.9, eps=1e-3, convention=name), second_moments)
        for name in CONVENTIONS
    },
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


@pytest.mark.parametrize(("size", "p"), [(1e-5, 8.0), (1e-20, 2.0), (1e5, 8.0)])
@pytest.mark.parametrize("r", [0.0, 1.5])
def test_the_weights_of_any_rate_neither_underflow_nor_overflow(size, p, r, single_precision):
    """They are ratios: a unit of the rate changes none of the four numbers, here by a power of 2."""

    def numbers(unit):
        rule = nagjax.momentum.schedule_free(0.9, from_table(np.float32(RATES) * unit), weight_power=p, count_power=r)

        def body(carry, _):
            four, carry = rule.next(carry)
            return carry, jnp.stack(jax.tree.map(jnp.float32, list(four)))

        return jax.lax.scan(body, rule.init(), length=STEPS)[1]

    found = numbers(np.float32(2.0 ** np.round(np.log2(size))))
    np.testing.assert_array_equal(found, numbers(np.float32(1)))
    assert found[-1, 2] > 0.01


@pytest.mark.parametrize("p", [0.0, 2.0])
def test_rates_that_are_zero_at_first_and_in_between_have_the_weights_of_the_authors(p):
    rates = np.where(np.isin(np.arange(STEPS), [0, 1, 5]), 0.0, RATES)
    rule = nagjax.momentum.schedule_free(0.9, from_table(rates), weight_power=p, count_power=0.5)
    weights = (np.arange(STEPS) + 1.0) ** 0.5 * np.maximum.accumulate(rates) ** p
    sums = np.cumsum(weights)
    carry, found = rule.init(), []
    for _ in range(STEPS):
        four, carry = rule.next(carry)
        found.append(float(four.gain) / 0.9)
    np.testing.assert_allclose(found, np.divide(weights, sums, out=np.zeros(STEPS), where=sums > 0), rtol=1e-13)


def test_a_reset_starts_the_schedule_of_the_weights_again():
    """As documented: the steps keep the count of the rate's schedule."""
    table = from_table(RATES)
    optimizer = nagjax.schedule_free(optax.identity(), table)
    params = jnp.asarray(START)
    state = optimizer.init(params)
    for k in range(8):
        state = nagjax.reset_momentum(state) if k == 5 else state
        updates, state = optimizer.update(traced(params, 0), state, params)
        params = optax.apply_updates(params, updates)
    tree_get = optax.tree_utils.tree_get
    np.testing.assert_allclose(tree_get(state, "largest_rate"), RATES[:3].max())
    assert tree_get(state, "count") == 8


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


@pytest.mark.parametrize("warm_up", [0, 10])
def test_a_warm_up_may_be_an_array_or_traced(warm_up):
    static = run(nagjax.schedule_free(optax.identity(), 0.2, warmup_steps=warm_up), traced, START, STEPS)
    for number in jnp.int32(warm_up), jnp.float32(warm_up):
        found = run(nagjax.schedule_free(optax.identity(), 0.2, warmup_steps=number), traced, START, STEPS)
        assert_same_trajectory(found, static, 1e-14)

    @jax.jit
    def last(number):
        optimizer = nagjax.schedule_free(optax.identity(), 0.2, warmup_steps=number)

        def body(_, carry):
            updates, state = optimizer.update(traced(carry[0], 0), carry[1], carry[0])
            return optax.apply_updates(carry[0], updates), state

        return jax.lax.fori_loop(0, STEPS, body, (jnp.asarray(START), optimizer.init(jnp.asarray(START))))[0]

    np.testing.assert_allclose(last(warm_up), static.queries[-1], rtol=1e-13)


INJECTED = {
    "schedule_free": (nagjax.schedule_free, {"base": optax.identity(), "learning_rate": 0.1}),
    "primal_averaging": (nagjax.primal_averaging, {"base": optax.identity(), "learning_rate": 0.1}),
    "nadamw": (nagjax.adaptive.nadamw, {"learning_rate": 0.1}),
    "adan": (nagjax.adaptive.adan, {"learning_rate": 0.1}),
    "nesterov": (nagjax.nesterov, {"learning_rate": 0.1}),
    "agnes": (nagjax.agnes, {"smoothness": 10.0, "noise": 0.5}),
    "agnes, mu": (nagjax.agnes, {"smoothness": 10.0, "noise": 0.5, "strong_convexity": 0.1}),
    "mass": (nagjax.mass, {"smoothness": 10.0, "strong_convexity": 0.1, "statistical_condition_number": 6.0}),
}


@pytest.mark.parametrize(("factory", "arguments"), INJECTED.values(), ids=list(INJECTED))
def test_a_factory_with_its_defaults_can_be_injected(factory, arguments):
    injected = optax.inject_hyperparams(factory)(**arguments)
    assert_same_trajectory(
        run(injected, traced, START, STEPS), run(factory(**arguments), traced, START, STEPS), TOLERANCE
    )


def test_the_warm_up_of_an_injected_factory_can_be_changed():
    arguments = {"base": optax.identity(), "learning_rate": 0.1}
    injected = optax.inject_hyperparams(nagjax.schedule_free)(**arguments, warmup_steps=10)
    state = injected.init(jnp.asarray(START))
    state.hyperparams["warmup_steps"] = jnp.asarray(4, state.hyperparams["warmup_steps"].dtype)
    updates, _ = injected.update(jnp.ones(4), state, jnp.asarray(START))
    np.testing.assert_allclose(updates, -0.1 / 4 * np.ones(4), rtol=1e-13)


@pytest.mark.parametrize("kept", [storage.full(), storage.int8()], ids=["full", "int8"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_gradients_of_another_structure_or_shape_are_refused_with_decay_too(kept, decay):
    tx = nagjax.primal_averaging(optax.identity(), 0.1, weight_decay=decay, storage=kept)
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    state = tx.init(params)
    for wrong in {"a": jnp.ones((2, 3))}, [jnp.ones((2, 3)), jnp.ones(4)]:
        with pytest.raises(ValueError, match=r"^(accelerate|primal_averaging): updates must be of the structure "):
            tx.update(wrong, state, wrong)
    wrong = params | {"a": jnp.ones((1, 3))}
    with pytest.raises(ValueError, match=r"^(accelerate|primal_averaging): updates must be of shape \(2, 3\) here"):
        tx.update(wrong, state, wrong)


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
        assert total == 2000  # in units of the weight of the largest rate
        assert tree_get(half_state, "weight_sum") == total


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_two_thousand_steps_of_schedule_free_adamw_in_bfloat16_end_within_one_percent_of_float32(convention):
    """Gradients that are constant but for signs; the last entries have scales that bfloat16 still resolves."""
    scales = 10.0 ** jnp.linspace(-3, 3, 64, dtype=jnp.float32)
    noise = jax.random.normal(jax.random.key(1), (2000, 64), jnp.float32)

    def average(dtype):
        base = nagjax.adaptive.scale_by_nadam(b1=0.0, convention=convention)
        optimizer = nagjax.schedule_free(base, 0.05, weight_decay=0.01)
        start = jnp.zeros((64,), dtype)

        def body(carry, noise):
            params, state = carry
            slope = scales * (params.astype(jnp.float32) - 3.0 - noise)
            updates, state = optimizer.update(slope.astype(dtype), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.jit(lambda p: jax.lax.scan(body, (p, optimizer.init(p)), noise))(start)
        return nagjax.eval_params(params, state).astype(jnp.float32)

    np.testing.assert_allclose(average(jnp.bfloat16), average(jnp.float32), rtol=0.01)


def test_a_second_moment_of_bfloat16_parameters_is_the_one_of_float32():
    """After 1,000 equal gradients optax.scale_by_adam is 5 % away."""

    def length(base):
        optimizer, start = nagjax.schedule_free(base, 1e-3), jnp.zeros((), jnp.bfloat16)

        def body(_, carry):
            updates, state = optimizer.update(jnp.ones((), jnp.bfloat16), carry[1], carry[0])
            return optax.apply_updates(carry[0], updates), state

        params, state = jax.jit(lambda p: jax.lax.fori_loop(0, 1000, body, (p, optimizer.init(p))))(start)
        return -float(nagjax.eval_params(params, state))

    expected = 1e-3 * (1000 + 1) / 2  # the mean of 1,000 points in steps of 1e-3
    np.testing.assert_allclose(length(nagjax.adaptive.scale_by_nadam(b1=0.0)), expected, rtol=0.01)


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
