"""Methods without a rate to tune: iterations against the best tuned Nesterov, and compositions with Optax's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from nagjax import adaptive, momentum, problems, restart, solve
from nagjax.theory.sequences import fista_momenta

WRONG = (1e-4, 1e-2, 1.0, 1e2, 1e4)
LIMIT = 1.5
RELATIVE = 1e-6  # of f(x_0) - f*
LONGEST = 600  # steps of the tuned runs


@functools.cache
def convex():
    """Problems that the best tuned method needs 40 to 600 steps for: fewer say how lucky a grid is."""
    generator = np.random.default_rng(101)
    features = generator.standard_normal((160, 24)) * np.logspace(0, -1, 24)
    chance = 1 / (1 + np.exp(-3 * features @ generator.standard_normal(24)))
    labels = np.where(generator.random(160) < chance, 1.0, -1.0)

    def point(size):
        return generator.standard_normal(size)

    return {
        "quadratic, 1e2": problems.quadratic(np.logspace(-2, 0, 40), seed=1, minimizer=point(40)),
        "quadratic, 1e4": problems.quadratic(3 * np.logspace(-4, 0, 40), seed=2, minimizer=point(40)),
        "chain": problems.nesterov_chain(80),
        "chain, 1e3": problems.nesterov_chain(120, 5.0, 5e-3),
        "logistic": problems.logistic(features, labels, 1e-3),
        "log_sum_exp": problems.log_sum_exp(80, 20, seed=3, minimizer=point(20)),
        "log_sum_exp, 0.2": problems.log_sum_exp(80, 20, seed=4, temperature=0.2, minimizer=point(20)),
        "huber": problems.huber(1e-3, minimizer=point(30) / 5),
        "log_cosh, 1e3": problems.log_cosh(np.logspace(-3, 0, 40), seed=5, minimizer=point(40)),
        "log_cosh, 1e4": problems.log_cosh(
            np.logspace(-4, 0, 40), scale=0.3, strong_convexity=1e-4, seed=6, minimizer=point(40)
        ),
    }


NAMES = (
    "quadratic, 1e2",
    "quadratic, 1e4",
    "chain",
    "chain, 1e3",
    "logistic",
    "log_sum_exp",
    "log_sum_exp, 0.2",
    "huber",
    "log_cosh, 1e3",
    "log_cosh, 1e4",
)

ONE_A_FAMILY = ("quadratic, 1e4", "chain, 1e3", "logistic", "log_sum_exp, 0.2", "huber", "log_cosh, 1e4")


def first_below(gaps, first):
    """The number of the first row of (steps,) whose gap is small enough, from 1; 10^9 where there is none."""
    reached = gaps <= RELATIVE * first
    return jnp.where(jnp.any(reached), jnp.argmax(reached) + 1, 10**9)


@functools.cache
def best_tuned(name):
    """The fewest steps over rates from 2^-6/L to 4/L and nine momenta."""
    problem = convex()[name]
    start = jnp.zeros_like(problem.minimizer)
    first, slope = problem.value(start) - problem.minimum, jax.grad(problem.value)
    rows = [np.full(LONGEST + 1, b) for b in (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)]
    rows.append(fista_momenta(LONGEST))
    if problem.strong_convexity > 0:
        root = (problem.smoothness / problem.strong_convexity) ** 0.5
        rows.append(np.full(LONGEST + 1, (root - 1) / (root + 1)))

    def count(rate, momenta):
        def step(carry, k):
            x, y = carry
            after = y - rate * slope(y)
            return (after, after + momenta[k + 1] * (after - x)), problem.value(after) - problem.minimum

        gaps = jax.lax.scan(step, (start, start), jnp.arange(LONGEST))[1]
        return first_below(gaps, first)

    counts = jax.vmap(jax.vmap(count, (0, None)), (None, 0))
    rates = jnp.asarray(2.0 ** np.arange(-6, 3)) / problem.smoothness
    return int(np.min(jax.jit(counts)(rates, jnp.asarray(np.stack(rows)))))


def counts(name, make, steps):
    """Steps to the accuracy of `make(factor)` for every wrong factor."""
    problem = convex()[name]
    start = jnp.zeros_like(problem.minimizer)
    first = problem.value(start) - problem.minimum

    def count(factor):
        tx = make(factor)

        def update(carry, _):
            params, state = carry
            value, slope = jax.value_and_grad(problem.value)(params)
            updates, state = tx.update(slope, state, params, value=value)
            params = optax.apply_updates(params, updates)
            return (params, state), problem.value(nagjax.eval_params(params, state)) - problem.minimum

        gaps = jax.lax.scan(update, (start, tx.init(start)), length=steps)[1]
        return first_below(gaps, first)

    return np.asarray(jax.jit(jax.vmap(count))(jnp.asarray(WRONG)))


@pytest.mark.parametrize("name", NAMES)
def test_the_tuned_count_is_one_that_a_comparison_can_stand_on(name):
    assert 40 <= best_tuned(name) <= LONGEST


@pytest.mark.parametrize(("test", "limit"), [(restart.gradient(), LIMIT), (None, 1.75)], ids=["restart", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_accelegrad_is_within_the_limit_from_every_wrong_distance(name, test, limit):
    best = best_tuned(name)
    radius = float(jnp.linalg.norm(convex()[name].minimizer))

    def make(factor):
        return adaptive.accelegrad(initial=0.37 * factor * radius, restart=test)

    assert np.max(counts(name, make, int(limit * best))) <= limit * best


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_the_boosted_solver_is_within_the_limit_from_every_wrong_first_step(name):
    problem, best = convex()[name], best_tuned(name)
    start = jnp.zeros_like(problem.minimizer)
    first = float(problem.value(start)) - problem.minimum
    steps = int(LIMIT * best) - 1  # the first value is that of the start
    for factor in WRONG:
        first_step = factor / problem.smoothness
        solution = solve.minimize(
            problem.value, start, method="boosted", step_size=first_step, tol=0.0, max_iters=steps
        )
        assert float(solution.value) - problem.minimum <= RELATIVE * first
        assert int(solution.evaluations) <= LIMIT * best


def slope_of_bowl(x):
    return jnp.asarray([1.0, 0.1, 0.01]).astype(x.dtype) * x


def bowl(x):
    return jnp.sum(slope_of_bowl(x) * x) / 2


def scanned(tx, start, steps, slope=slope_of_bowl, value=None):
    """Parameters, answers and states after 0, ..., `steps` updates."""

    @jax.jit
    def whole(params):
        def update(carry, _):
            params, state = carry
            extra = {} if value is None else {"value": value(params)}
            updates, state = tx.update(slope(params), state, params, **extra)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, nagjax.eval_params(params, state), state)

        return jax.lax.scan(update, (params, tx.init(params)), length=steps)[1]

    return whole(start)


START = jnp.asarray([3.0, -2.0, 5.0])


@pytest.mark.parametrize("make", [lambda s: adaptive.accelegrad(initial=s), lambda s: adaptive.accelegrad(7.0 * s)])
def test_a_run_scales_with_the_units_of_the_function_and_of_the_parameters(make):
    _, answers, _ = scanned(make(1.0), START, 60)
    _, steep, _ = scanned(make(1.0), START, 60, lambda x: 2.0**20 * slope_of_bowl(x))
    np.testing.assert_allclose(steep, answers, rtol=1e-9, atol=1e-12)
    _, long, _ = scanned(make(2.0**20), 2.0**20 * START, 60)
    np.testing.assert_allclose(long / 2.0**20, answers, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tx", [adaptive.accelegrad(), adaptive.accelegrad(2.0)])
def test_a_gradient_of_zero_at_the_start_moves_nothing_and_breaks_nothing(tx):
    state = tx.init(START)
    for _ in range(3):
        updates, state = tx.update(jnp.zeros_like(START), state, START)
        np.testing.assert_array_equal(updates, jnp.zeros_like(START))
    params, _, _ = scanned(tx, START, 200)
    assert np.max(np.abs(params[-1])) < 0.2


def test_a_point_where_the_gradient_is_not_finite_counts_as_too_far(single_precision):
    """exp(10 x) + exp(-10 x), whose gradient overflows beyond |x| = 9."""

    def slope(x):
        return 10 * jnp.exp(10 * x) - 10 * jnp.exp(-10 * x)

    params, _, states = scanned(adaptive.accelegrad(initial=1e4), jnp.ones(2), 150, slope)
    assert not np.all(np.isfinite(np.asarray(jax.vmap(slope)(params))))  # it has been there
    assert np.all(np.isfinite(params))
    assert states.opening.probes[-1] == -1
    assert np.max(np.abs(params[-1])) < 0.1


def test_with_noise_that_hides_the_slope_the_opening_ends_and_takes_the_first_distance():
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((60, 200)))
    tx = adaptive.accelegrad(initial=0.01)

    def update(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (params + updates, state), (state.opening.probes, state.distance, params)

    start = jnp.ones(200)
    probes, distances, params = jax.lax.scan(update, (start, tx.init(start)), noise)[1]
    assert np.argmin(probes > 0) == 40
    assert np.all(distances[38] < 1e-30)
    assert distances[40] == 0.01
    assert np.all(np.diff(distances[40:]) >= 0)
    assert np.all(np.isfinite(params))


def test_sums_over_a_mapped_axis_make_shards_one_vector():
    tx = adaptive.accelegrad(restart=restart.gradient("shard"), axis_name="shard")
    whole = adaptive.accelegrad(restart=restart.gradient())
    start, scales = jnp.asarray([[3.0, -2.0], [5.0, 1.0]]), jnp.asarray([[1.0, 0.1], [0.01, 0.4]])

    def run(scale, point):
        return scanned(tx, point, 80, lambda x: scale * x)[0]

    expected = scanned(whole, start.reshape(-1), 80, lambda x: scales.reshape(-1) * x)[0]
    found = jax.vmap(run, axis_name="shard")(scales, start)
    np.testing.assert_allclose(jnp.concatenate(list(found), axis=1), expected, rtol=1e-9, atol=1e-11)


def test_with_a_distance_no_parameters_are_needed_and_one_buffer_is_kept():
    tx = adaptive.accelegrad(2.0)
    state = tx.init(START)
    tx.update(START, state)
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if jnp.ndim(leaf)) == START.size
    with pytest.raises(ValueError, match=r"adaptive\.accelegrad: params must be passed to update"):
        adaptive.accelegrad().update(START, adaptive.accelegrad().init(START))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: adaptive.accelegrad(0.0), ValueError, "distance must be positive and finite, got 0.0"),
        (lambda: adaptive.accelegrad("far"), TypeError, "distance must be positive"),
        (lambda: adaptive.accelegrad(gradient_bound=-1.0), ValueError, "gradient_bound must be at least 0"),
        (lambda: adaptive.accelegrad(initial=-1.0), ValueError, "initial must be positive"),
        (lambda: adaptive.accelegrad(1.0, initial=1.0), ValueError, "initial must be left out beside distance"),
    ],
)
def test_arguments_out_of_range_are_rejected(make, error, message):
    with pytest.raises(error, match=f"adaptive.accelegrad: {message}"):
        make()


def nesterov_loop(start, step, count):
    """x' = y + step(y), y' = x' + b (x' - x) with FISTA's momenta; rows of y and of x."""
    b = fista_momenta(count)
    x = y = np.asarray(start)
    queries, answers = [], []
    for k in range(count):
        after = y + step(y)
        x, y = after, after + b[k + 1] * (after - x)
        queries.append(y)
        answers.append(x)
    return np.array(queries), np.array(answers)


def dog_step(estimate, weighted):
    """Optax's DoG and DoWG at query points, as their papers print them."""
    origin, state = np.asarray(START), {"reach": estimate, "sum": 0.0}

    def step(y):
        g = np.asarray(slope_of_bowl(y))
        state["reach"] = max(state["reach"], float(np.linalg.norm(y - origin)))
        state["sum"] += float(g @ g) * (state["reach"] ** 2 if weighted else 1)
        return -(state["reach"] ** (2 if weighted else 1)) / np.sqrt(state["sum"]) * g

    return step


def polyak_step(y):
    g = np.asarray(slope_of_bowl(y))
    return -float(g @ y) / 2 / float(g @ g) * g


COMPOSED = {
    "dowg": (lambda: optax.contrib.dowg(init_estim_sq_dist=0.3**2, eps=1e-15), lambda: dog_step(0.3, True)),
    "dog": (lambda: optax.contrib.dog(init_step=("distance", 0.3), eps=0.0), lambda: dog_step(0.3, False)),
    "polyak": (lambda: optax.polyak_sgd(1e9), lambda: polyak_step),
    "momo": (lambda: optax.contrib.momo(1e9, beta=0.0), lambda: polyak_step),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_accelerate_after_a_rate_of_optax_is_nesterov_with_the_steps_that_it_takes_at_query_points(
    name, standard_promotion
):
    make, loop = COMPOSED[name]
    tx = optax.chain(make(), nagjax.accelerate(momentum.fista()))
    queries, answers, states = scanned(tx, START, 30, value=bowl)
    expected = nesterov_loop(START, loop(), 30)
    np.testing.assert_allclose(queries, expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(answers, expected[1], rtol=0, atol=1e-9)
    # The velocity is in units of the parameters: the difference of successive answers.
    moved = np.diff(np.concatenate([np.asarray(START)[None], answers]), axis=0)
    np.testing.assert_allclose(jax.vmap(nagjax.velocity)(states), moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["quadratic, 1e2", "chain, 1e3", "logistic", "log_sum_exp"])
def test_polyak_steps_with_the_known_minimum_and_restarts_are_within_twice_the_best(name, standard_promotion):
    """No theorem covers them, and no rate is needed: any large `max_learning_rate` does."""
    problem, best = convex()[name], best_tuned(name)
    accelerated = nagjax.accelerate(momentum.fista(), restart=restart.gradient())

    def make(factor):
        rate = 1e8 * factor / problem.smoothness
        return optax.chain(optax.polyak_sgd(rate, f_min=problem.minimum), accelerated)

    assert np.max(counts(name, make, 2 * best)) <= 2 * best


def test_momentum_upon_momentum_is_another_method(standard_promotion):
    """MoMo's average of gradients before `accelerate` overshoots: take beta=0, or leave `accelerate` out."""
    accelerated = nagjax.accelerate(momentum.fista(), restart=restart.gradient())
    right = optax.chain(optax.contrib.momo(1e9, beta=0.0), accelerated)
    wrong = optax.chain(optax.contrib.momo(1e9, beta=0.9), accelerated)
    (_, good, _), (_, bad, _) = (scanned(tx, START, 150, value=bowl) for tx in (right, wrong))
    assert bowl(good[-1]) < 1e-8 * bowl(START) < 1e-2 * bowl(bad[-1])
