"""Nadam's three conventions and Adan: against their loops, against Optax, and against closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, from_table, run

from nagjax import adaptive, restart
from nagjax.conventions.pytorch_nadam import pytorch_nadam
from nagjax.theory import adam_loops

STEPS = 40
# About STEPS roundings of iterates of size 1 to 10, divided by roots of gradients as small as 0.01.
TOLERANCE = 1e-12

MATRIX = np.random.default_rng(0).standard_normal((7, 4)) * [1.0, 0.7, 0.4, 0.1]
SHIFT = np.linspace(-1, 1, 7)
START = np.array([2.0, -1.0, 3.0, 0.5])
RATES = 0.1 * (1 + np.sin(np.arange(STEPS)) ** 2)
DECAYS = np.array([0.3, 0.3, 0.0, 0.0])  # of a tree whose second half does not decay


def gradient(x):
    """Of the sum of log cosh(a_i^T x - b_i) plus a ridge."""
    return MATRIX.T @ np.tanh(MATRIX @ x - SHIFT) + 0.02 * x


def traced(x, k):
    return jnp.asarray(MATRIX.T) @ jnp.tanh(jnp.asarray(MATRIX) @ x - jnp.asarray(SHIFT)) + 0.02 * x


def assert_follows(optimizer, expected):
    found = run(optimizer, traced, expected[0], len(expected) - 1)
    assert_close(found.queries, expected, TOLERANCE)
    assert_close(found.answers, expected, TOLERANCE)
    assert np.max(np.abs(expected[-1] - expected[0])) > 0.5


# Where b2 is small a direction is almost a sign; without a larger eps it multiplies roundings by 1/|g|.
ODD = [
    {},
    {"b1": 0.7, "b2": 0.97, "eps": 0.03},
    {"b1": 0.0, "b2": 0.5, "eps": 0.1},
    {"b1": 0.99, "b2": 0.0, "eps": 0.5},
]
DECAY = [0.0, 0.3]


def over(name, values):
    return pytest.mark.parametrize(name, values, ids=str)


@over("decay", DECAY)
@over("numbers", ODD)
def test_dozats_nadamw_is_its_loop(numbers, decay):
    loop = {("momenta" if name == "b1" else name): value for name, value in numbers.items()}
    expected = adam_loops.nadamw_dozat(gradient, START, RATES, weight_decay=decay, **loop)
    assert_follows(adaptive.nadamw(from_table(RATES), weight_decay=decay, **numbers), expected)


@over("decay", DECAY)
@over("numbers", ODD)
def test_algoperfs_nadamw_is_its_loop(numbers, decay):
    expected = adam_loops.nadamw_algoperf(gradient, START, RATES, weight_decay=decay, **numbers)
    assert_follows(adaptive.nadamw(from_table(RATES), weight_decay=decay, convention="algoperf", **numbers), expected)


@over("decay", DECAY)
@over("numbers", ODD)
def test_pytorchs_nadamw_is_its_loop(numbers, decay):
    options = {"weight_decay": decay, "decoupled_weight_decay": True}
    expected = adam_loops.pytorch_nadam(gradient, START, RATES, **options, **numbers)
    assert_follows(adaptive.nadamw(from_table(RATES), weight_decay=decay, convention="pytorch", **numbers), expected)


@over("options", [{}, {"decoupled_weight_decay": True}, {"maximize": True}, {"momentum_decay": 0.3}])
@over("numbers", ODD)
def test_pytorch_nadam_is_its_loop(numbers, options):
    expected = adam_loops.pytorch_nadam(gradient, START, RATES, weight_decay=0.3, **numbers, **options)
    assert_follows(pytorch_nadam(from_table(RATES), weight_decay=0.3, **numbers, **options), expected)


ODD_ADAN = [{}, {"b1": 0.7, "b2": 0.4, "b3": 0.93, "eps": 1e-3}, {"b1": 0.0, "b2": 0.99, "b3": 0.5, "eps": 0.1}]


@over("no_prox", [False, True])
@over("decay", DECAY)
@over("numbers", ODD_ADAN)
def test_adan_is_its_loop(numbers, decay, no_prox):
    expected = adam_loops.adan(gradient, START, RATES, weight_decay=decay, no_prox=no_prox, **numbers)
    assert_follows(adaptive.adan(from_table(RATES), weight_decay=decay, no_prox=no_prox, **numbers), expected)


@over("period", [1, 7])
def test_adan_with_scheduled_restarts_is_its_loop(period):
    """Moments, the last gradient and the counts start again; the schedule of the rate goes on."""
    expected = adam_loops.adan(gradient, START, RATES, weight_decay=0.3, period=period)
    optimizer = adaptive.adan(from_table(RATES), weight_decay=0.3, restart=restart.every(period))
    assert_follows(optimizer, expected)
    without = adam_loops.adan(gradient, START, RATES, weight_decay=0.3)
    assert np.max(np.abs(without - expected)) > 0.1


@over("convention", ["dozat", "algoperf"])
def test_the_number_under_the_root_is_that_of_the_loop(convention):
    loop = {"dozat": adam_loops.nadamw_dozat, "algoperf": adam_loops.nadamw_algoperf}[convention]
    expected = loop(gradient, START, RATES, eps_root=0.01)
    direction = adaptive.scale_by_nadam(eps_root=0.01, convention=convention)
    assert_follows(optax.chain(direction, optax.scale_by_learning_rate(from_table(RATES))), expected)


MASKED = {
    "dozat": (adaptive.nadamw, adam_loops.nadamw_dozat, {}),
    "algoperf": (lambda *a, **o: adaptive.nadamw(*a, convention="algoperf", **o), adam_loops.nadamw_algoperf, {}),
    "pytorch": (
        lambda *a, **o: adaptive.nadamw(*a, convention="pytorch", **o),
        adam_loops.pytorch_nadam,
        {"decoupled_weight_decay": True},
    ),
    "adan": (adaptive.adan, adam_loops.adan, {}),
    "adan, no prox": (lambda *a, **o: adaptive.adan(*a, no_prox=True, **o), adam_loops.adan, {"no_prox": True}),
}


@over("mask", ["tree", "function"])
@over("name", MASKED)
def test_only_masked_leaves_decay(name, mask):
    build, loop, options = MASKED[name]
    chosen = {"w": True, "b": False}
    optimizer = build(from_table(RATES), weight_decay=0.3, mask=chosen if mask == "tree" else lambda _: chosen)
    params = {"w": jnp.asarray(START[:2]), "b": jnp.asarray(START[2:])}

    def body(carry, _):
        params, state = carry
        slope = traced(jnp.concatenate([params["w"], params["b"]]), 0)
        updates, state = optimizer.update({"w": slope[:2], "b": slope[2:]}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.concatenate([params["w"], params["b"]])

    _, found = jax.jit(lambda p: jax.lax.scan(body, (p, optimizer.init(p)), length=STEPS))(params)
    expected = loop(gradient, START, RATES, weight_decay=DECAYS, **options)
    assert_close(found, expected[1:], TOLERANCE)
    assert np.max(np.abs(loop(gradient, START, RATES, weight_decay=0.3, **options) - expected)) > 0.01


def same_as_optax(ours, theirs):
    with jax.numpy_dtype_promotion("standard"):
        expected = run(theirs, traced, START, STEPS, answer=lambda params, _: params).queries
    assert_follows(ours, expected)


@over("numbers", [{}, {"b1": 0.7, "b2": 0.93, "eps": 1e-3, "weight_decay": 0.3}])
def test_the_default_is_optax_nadamw_with_its_default_decay(numbers):
    same_as_optax(adaptive.nadamw(from_table(RATES), **numbers), optax.nadamw(from_table(RATES), **numbers))
    same_as_optax(adaptive.nadamw(0.07, **numbers), optax.nadamw(0.07, **numbers))


def test_without_decay_the_default_is_optax_nadam():
    same_as_optax(adaptive.nadamw(0.07, weight_decay=0.0), optax.nadam(0.07))


def test_the_other_conventions_are_not_optax_nadamw():
    theirs = adam_loops.nadamw_dozat(gradient, START, RATES)
    for other in adam_loops.nadamw_algoperf, adam_loops.pytorch_nadam:
        assert np.max(np.abs(other(gradient, START, RATES) - theirs)) > 0.05


def test_pytorchs_form_with_a_fast_momentum_schedule_is_dozats():
    """mu_t is b1 at once."""
    expected = adam_loops.nadamw_dozat(gradient, START, RATES, 0.8)
    assert_close(adam_loops.pytorch_nadam(gradient, START, RATES, 0.8, momentum_decay=1e6), expected, TOLERANCE)
    assert_follows(pytorch_nadam(from_table(RATES), 0.8, momentum_decay=1e6), expected)


def test_dozats_loop_with_pytorchs_momenta_is_not_pytorchs_whose_average_decays_with_b1():
    momenta = 0.9 * (1 - 0.5 * 0.96 ** (4e-3 * np.arange(1, STEPS + 2)))
    dozat = adam_loops.nadamw_dozat(gradient, START, RATES, momenta)
    assert np.max(np.abs(dozat - adam_loops.pytorch_nadam(gradient, START, RATES))) > 0.05


def test_adan_is_that_of_optax_where_b2_and_its_complement_are_equal_and_no_other():
    ours = {b2: adaptive.scale_by_adan(b2=b2) for b2 in (0.5, 0.92)}
    theirs = {b2: optax.scale_by_adan(b2=b2) for b2 in (0.5, 0.92)}
    scale = optax.scale_by_learning_rate(from_table(RATES))
    same_as_optax(optax.chain(ours[0.5], scale), optax.chain(theirs[0.5], scale))
    with pytest.raises(AssertionError):
        same_as_optax(optax.chain(ours[0.92], scale), optax.chain(theirs[0.92], scale))


def directions(tx, gradients):
    """All directions for a list of gradients."""
    gradients = jnp.asarray(gradients)

    def body(state, g):
        direction, state = tx.update(g, state)
        return state, direction

    return np.asarray(jax.jit(lambda g: jax.lax.scan(body, tx.init(g[0]), g)[1])(gradients))


def test_the_second_direction_of_adan_weighs_the_difference_with_b2():
    """Gradients 1 and 2; optax.scale_by_adan has 0.08 in the place of the 0.92 in `weighted`."""
    m = (0.98 * 0.02 + 0.02 * 2) / (1 - 0.98**2)
    v = 0.08 * 1 / (1 - 0.92**2)

    def weighted(weight):
        n = (0.99 * 0.01 + 0.01 * (2 + weight) ** 2) / (1 - 0.99**2)
        return (m + weight * v) / np.sqrt(n)

    found = directions(adaptive.scale_by_adan(eps=0.0), [[1.0], [2.0]])
    np.testing.assert_allclose(found[:, 0], [1, weighted(0.92)], rtol=1e-12)
    assert abs(weighted(0.92) - weighted(0.08)) > 0.03


PSI = 4e-3


def constant_gradient(convention, t, b1):
    """The direction in update t where the gradient is always 1: the average is 1 - b1^t."""
    m = 1 - b1**t
    if convention == "dozat":
        return b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) / m
    if convention == "algoperf":
        return b1 + (1 - b1) / m
    mu = b1 * (1 - 0.96 ** (PSI * np.arange(1, t + 2)) / 2)
    return mu[-1] * m / (1 - np.prod(mu)) + (1 - mu[-2]) / (1 - np.prod(mu[:-1]))


@over("convention", ["dozat", "algoperf", "pytorch"])
@over("b1", [0.0, 0.5, 0.9, 0.999])
def test_the_directions_for_a_constant_gradient_are_the_closed_form(convention, b1):
    found = directions(adaptive.scale_by_nadam(b1, eps=0.0, convention=convention), np.tile([3.0, -1e-6], (STEPS, 1)))
    expected = np.array([constant_gradient(convention, t, b1) for t in range(1, STEPS + 1)])
    np.testing.assert_allclose(found, expected[:, None] * [1, -1], rtol=1e-11)


def test_the_first_steps_are_not_of_the_size_of_the_learning_rate():
    first = {name: constant_gradient(name, 1, 0.9) for name in ("dozat", "algoperf", "pytorch")}
    np.testing.assert_allclose(list(first.values()), [1.474, 1.9, 1.056], atol=1e-3)
    for name, size in first.items():
        params = jnp.array([2.0, -7.0])
        tx = adaptive.nadamw(0.3, eps=0.0, weight_decay=0.0, convention=name)
        updates, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(updates, -0.3 * size * np.sign(params), rtol=1e-13)


def test_adan_under_a_constant_gradient_makes_steps_of_one_rate():
    found = directions(adaptive.scale_by_adan(eps=0.0), np.tile([3.0, -1e-6], (STEPS, 1)))
    np.testing.assert_allclose(found, np.tile([1.0, -1.0], (STEPS, 1)), rtol=1e-12)


SLOW = {
    "dozat": adaptive.scale_by_nadam(0.999, 0.9999, eps=0.0),
    "pytorch": adaptive.scale_by_nadam(0.999, 0.9999, eps=0.0, convention="pytorch", momentum_decay=1e6),
    "adan": adaptive.scale_by_adan(0.999, 0.998, 0.9999, eps=0.0),
}


@over("dtype", ["float32", "bfloat16", "float16"])
@over("name", SLOW)
def test_bias_corrections_are_exact_in_single_precision(name, dtype, single_precision):
    """1 - 0.9999^t as a difference is wrong by 3e-4 at t = 2 in float32, and 0 in bfloat16."""
    found = directions(SLOW[name], jnp.full((STEPS, 1), 0.5, dtype))
    expected = [1.0 if name == "adan" else constant_gradient("dozat", t, 0.999) for t in range(1, STEPS + 1)]
    np.testing.assert_allclose(found[:, 0].astype(np.float64), expected, rtol=max(3e-6, float(jnp.finfo(dtype).eps)))


@over("convention", ["dozat", "algoperf", "pytorch"])
def test_linear_warm_up_from_zero_makes_no_first_update(convention):
    tx = adaptive.nadamw(optax.linear_schedule(0.0, 0.1, 10), convention=convention)
    params = jnp.asarray(START)
    state = tx.init(params)
    first, state = tx.update(traced(params, 0), state, params)
    np.testing.assert_array_equal(first, 0)
    second, _ = tx.update(traced(params, 0), state, params)
    assert jnp.all(second != 0)


@over("decay", [0.5, 30.0])
def test_without_gradients_parameters_of_adan_are_divided_or_multiplied(decay):
    """Divided in the proximal form, which changes no sign, however long the step."""
    rates = [0.1, 0.0, 0.2]
    zero = {False: np.prod([1 / (1 + rate * decay) for rate in rates]), True: np.prod([1 - r * decay for r in rates])}
    for no_prox, factor in zero.items():
        tx = adaptive.adan(from_table(rates), weight_decay=decay, no_prox=no_prox)
        found = run(tx, lambda x, k: jnp.zeros_like(x), START, 3)
        np.testing.assert_allclose(found.queries[-1], factor * START, rtol=1e-13)


FAMILY = {
    **{name: adaptive.scale_by_nadam(convention=name) for name in ("dozat", "algoperf", "pytorch")},
    "adan": adaptive.scale_by_adan(),
}


@over("name", FAMILY)
def test_a_complex_entry_has_one_second_moment(name):
    """So directions turn with their gradients; and those of real numbers are the real ones."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(STEPS, 3)) + 1j * rng.normal(size=(STEPS, 3))
    turn, tx = np.exp(0.7j), FAMILY[name]
    np.testing.assert_allclose(directions(tx, turn * z), turn * directions(tx, z), rtol=1e-12)
    np.testing.assert_allclose(directions(tx, z.real + 0j), directions(tx, z.real) + 0j, rtol=1e-13)
    assert tx.init(jnp.asarray(z[0])).second_moment.dtype == jnp.float64


@over("name", FAMILY)
def test_directions_do_not_depend_on_the_scale_of_gradients(name):
    tx = adaptive.scale_by_adan(eps=0.0) if name == "adan" else adaptive.scale_by_nadam(eps=0.0, convention=name)
    slopes = np.random.default_rng(3).normal(size=(STEPS, 3))
    found = directions(tx, slopes)
    for scale in 2.0**40, 2.0**-40:
        np.testing.assert_array_equal(directions(tx, scale * slopes), found)


def test_the_loops_differ_from_each_other():
    loops = [adam_loops.nadamw_dozat, adam_loops.nadamw_algoperf, adam_loops.pytorch_nadam, adam_loops.adan]
    for first, second in itertools.combinations([loop(gradient, START, RATES) for loop in loops], 2):
        assert np.max(np.abs(first - second)) > 0.01
