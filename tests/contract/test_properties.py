"""Properties that hold for every tree, dtype, hyper-parameter and number of steps."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import nagjax
from nagjax import momentum
from nagjax.descent import scale_by_learning_rate
from tests.contract.support import close, compiled, same_bits

# Few shapes, and few compiled scans an example: compilation is what costs here.
SHAPES = st.sampled_from([(), (1,), (3,), (2, 3), (0,), (2, 1, 2)])
TREES = st.recursive(
    SHAPES,
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
    max_leaves=4,
)
STEPS = st.integers(1, 8)
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from(["float32", "float64", "complex64", "complex128"])
RATES = st.floats(0.01, 1.0)
MOMENTA = st.floats(0.0, 0.99)
few, fewer = hypothesis.settings(max_examples=10), hypothesis.settings(max_examples=4)


def draws(shapes, dtype, seed, count):
    """A tree with `count` normal arrays stacked in every leaf."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        real, imaginary = rng.normal(size=(2, count, *shape))
        return (real + 1j * imaginary if dtype.startswith("complex") else real).astype(dtype)

    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def scripted(table, demands):
    """The rule and the restart test that play back four numbers and one flag a step."""
    table, demands = jnp.asarray(table), jnp.asarray(demands)

    def play(k, **_):
        return nagjax.Coefficients(*table[k]), k + 1

    rule = nagjax.Momentum(lambda: jnp.int32(0), play)
    return rule, nagjax.Restart(lambda: (), lambda carry, *, index, **_: (demands[index], carry))


def engine(tx, params, steps):
    """Query points and answers of all steps, from one compiled scan."""

    def body(carry, inputs):
        params, state = carry
        updates, state = tx.update(inputs[0], state, params, index=inputs[1])
        params = optax.apply_updates(params, updates)
        return (params, state), (params, nagjax.eval_params(params, state))

    count = jax.tree.leaves(steps)[0].shape[0]
    return jax.jit(lambda p, u: jax.lax.scan(body, (p, tx.init(p)), (u, jnp.arange(count)))[1])(params, steps)


@few
@hypothesis.given(TREES, DTYPES, STEPS, SEEDS)
def test_the_engine_is_the_recursion_of_four_numbers_with_restarts(shapes, dtype, count, seed):
    rng = np.random.default_rng(seed)
    table, demands = rng.uniform(-1, 1, size=(count, 4)), rng.random(count) < 0.3
    start, steps = draws(shapes, dtype, seed, 1), draws(shapes, dtype, seed + 1, count)
    rule, test = scripted(table, demands)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), start)
    queries, answers = engine(nagjax.accelerate(rule, restart=test), params, jax.tree.map(jnp.asarray, steps))

    def recursion(y, u):
        y, w, k, found = y[0], np.zeros_like(y[0]), 0, []
        for index in range(count):
            decay, direct, gain, readout = table[k]
            w = decay * w + u[index]
            y = y + direct * u[index] + gain * w
            x, k = y - readout * w, k + 1
            if demands[index]:
                y, w, k = x, np.zeros_like(w), 0
            found.append((y, x))
        return found

    # Sums of at most 40 numbers of size 5: rounding of the dtype, with a margin of 4.
    tolerance = 40 * 5 * 4 * float(np.finfo(dtype).eps)
    expected = [recursion(y, u) for y, u in zip(jax.tree.leaves(start), jax.tree.leaves(steps), strict=True)]
    for q, a, run in zip(jax.tree.leaves(queries), jax.tree.leaves(answers), expected, strict=True):
        np.testing.assert_allclose(q, [y for y, _ in run], atol=tolerance)
        np.testing.assert_allclose(a, [x for _, x in run], atol=tolerance)


@few
@hypothesis.given(st.lists(RATES, min_size=1, max_size=8), SEEDS)
def test_answers_are_the_textbook_iterates_for_every_schedule_of_rate_and_momentum(rates, seed):
    """x' = y - s_k f'(y), y' = x' + b_{k+1} (x' - x), on a random quadratic."""
    rng, size = np.random.default_rng(seed), 4
    factor, momenta = rng.normal(size=(size, size)), rng.uniform(0, 1, size=len(rates) + 1)
    hessian = factor @ factor.T / np.trace(factor @ factor.T)
    x = y = start = rng.normal(size=size)
    tx = nagjax.nesterov(lambda k: jnp.asarray(rates)[k], lambda k: jnp.asarray(momenta)[k])
    found, state = compiled(tx, len(rates), lambda p: jnp.asarray(hessian) @ p)(jnp.asarray(start), tx.init(start))
    for k, rate in enumerate(rates):
        x, last = y - rate * hessian @ y, x
        y = x + momenta[k + 1] * (x - last)
    close((found, nagjax.eval_params(found, state)), (jnp.asarray(y), jnp.asarray(x)))


LINEAR = {
    "nesterov": momentum.constant,
    "heavy ball": momentum.heavy_ball,
    "fista": lambda b: momentum.fista(),
    "ogm": lambda b: momentum.ogm(),
    "schedule_free": momentum.schedule_free,
    "primal averaging": momentum.primal_averaging,
}


@few
@hypothesis.given(st.sampled_from(list(LINEAR)), TREES, MOMENTA, st.floats(-3, 3), st.floats(-3, 3), SEEDS)
def test_displacements_are_linear_in_the_steps(name, shapes, b, left, right, seed):
    tx = nagjax.accelerate(LINEAR[name](b))
    u, v = (jax.tree.map(jnp.asarray, draws(shapes, "float64", seed + i, 4)) for i in range(2))

    def combined(a, b):
        return jax.tree.map(lambda a, b: left * a + right * b, a, b)

    steps = {"u": u, "v": v, "both": combined(u, v)}  # without a restart leaves do not meet
    for found in engine(tx, jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), steps), steps):
        close(found["both"], combined(found["u"], found["v"]), 1e-12)


@fewer
@hypothesis.given(TREES, DTYPES, MOMENTA, SEEDS)
def test_how_leaves_are_nested_does_not_matter(shapes, dtype, b, seed):
    """With a restart, whose test sums over all leaves."""
    steps = jax.tree.map(jnp.asarray, draws(shapes, dtype, seed, 4))
    params, tx = jax.tree.map(lambda leaf: leaf[0], steps), nagjax.accelerate(b, restart=nagjax.restart.gradient())
    nested, flat = engine(tx, params, steps), engine(tx, jax.tree.leaves(params), jax.tree.leaves(steps))
    same_bits(jax.tree.leaves(nested), jax.tree.leaves(flat))


@fewer
@hypothesis.given(st.lists(st.sampled_from("ab"), min_size=2, max_size=5), RATES, MOMENTA, SEEDS)
def test_a_tree_in_two_parts_is_accelerated_as_the_whole(labels, rate, b, seed):
    """Without a restart, the only place where leaves meet."""
    tx = optax.chain(scale_by_learning_rate(rate), nagjax.accelerate(b))
    steps = [jnp.asarray(leaf) for leaf in draws([(3,)] * len(labels), "float64", seed, 4)]
    params = [leaf[0] for leaf in steps]
    same_bits(engine(optax.partition({"a": tx, "b": tx}, labels), params, steps), engine(tx, params, steps))


@fewer
@hypothesis.given(TREES, MOMENTA, STEPS, STEPS, SEEDS)
def test_a_reset_is_a_restart_with_the_answer_left_where_it_is(shapes, b, before, after, seed):
    """eval_params, then reset_momentum: what a demanded restart does within a step."""
    steps = jax.tree.map(jnp.asarray, draws(shapes, "float64", seed, before + after))
    params = jax.tree.map(lambda leaf: leaf[0], steps)
    demands = np.arange(before + after) == before - 1
    restarted = nagjax.accelerate(b, restart=scripted(np.zeros((1, 4)), demands)[1])
    tx = nagjax.accelerate(b)

    @jax.jit
    def by_hand(params):
        state = tx.init(params)
        for k in range(before + after):
            updates, state = tx.update(jax.tree.map(lambda leaf, k=k: leaf[k], steps), state)
            params = optax.apply_updates(params, updates)
            if k == before - 1:
                params, state = nagjax.eval_params(params, state), nagjax.reset_momentum(state)
        return params

    queries, _ = engine(restarted, params, steps)
    close(by_hand(params), jax.tree.map(lambda leaf: leaf[-1], queries), 1e-12)
