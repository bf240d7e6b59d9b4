"""Step-size rules on scalars, what the wrappers hand on, and what they refuse."""

import inspect
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from nagjax import adaptive, momentum, proximal, restart, step_sizes
from nagjax.proximal import Prox
from nagjax.step_sizes.curvature import local_smoothness, next_step, probe, rounding_unit
from nagjax.theory import sequences
from tests.contract.support import same_bits

tree_get = optax.tree_utils.tree_get
EPS = float(jnp.finfo(jnp.float64).eps)
SHRINK = Prox(
    lambda x: 0.1 * sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(x)),
    lambda x, s: jax.tree.map(lambda v: jnp.sign(v) * jnp.maximum(jnp.abs(v) - (0.1 * s).astype(v.dtype), 0), x),
)


def test_the_local_smoothness_is_the_short_step_of_barzilai_and_borwein_capped():
    assert local_smoothness(4.0, 36.0, 10.0) == pytest.approx(3.6)  # b^2 / c
    assert local_smoothness(4.0, 36.0, 1.0) == pytest.approx(30.0)  # 10 b / a
    assert local_smoothness(4.0, 36.0, -1.0) == pytest.approx(3.0)  # b / a where the function is not convex
    assert local_smoothness(4.0, 36.0, 0.0) == pytest.approx(3.0)
    assert local_smoothness(0.0, 0.0, 0.0) == 0
    assert local_smoothness(1e-30, 1e-14, 1e-22) == pytest.approx(1e8)


def test_the_local_smoothness_of_a_quadratic_lies_between_its_extreme_curvatures():
    generator = np.random.default_rng(0)
    curved = np.geomspace(0.5, 4.0, 5)
    for _ in range(50):
        move = generator.standard_normal(5)
        change = curved * move
        found = float(local_smoothness(move @ move, change @ change, move @ change))
        assert np.linalg.norm(change) / np.linalg.norm(move) * (1 - 1e-12) <= found <= 4 * (1 + 1e-12)


def test_the_probe_moves_by_a_thousandth_of_one_plus_the_norm():
    assert float(probe(9.0, 4.0)) * 2 == pytest.approx(1e-3 * 4)
    assert float(probe(0.0, 0.0)) == pytest.approx(1e-3)


class Seen(NamedTuple):
    """Arguments of `next_step`: step, samples, move, change, product, gradient; and what comes out, in words."""

    step: float
    window: tuple[float, float]
    pair: tuple[float, float, float, float]
    expected: float
    following: tuple[float, float]


TINY = 1e-20  # a change far below 10 eps |g| for |g| = 1
RULE = {
    "the first sample sets the step whatever the growth": Seen(1e-3, (-1, -1), (1, 4, 2, 1), 0.5, (-1, 2)),
    "growth is limited": Seen(0.1, (-1, 2), (1, 1, 1, 1), 0.12, (2, 1)),
    "the larger of two samples counts": Seen(1.0, (9, 2), (1, 1, 1, 1), 0.5, (2, 1)),
    "a large sample shrinks at once": Seen(1.0, (1, 1), (1, 64, 8, 1), 1 / 8, (1, 8)),
    "rounding keeps step and window": Seen(1.0, (3, 2), (1e-34, TINY**2, TINY, 1), 1.0, (3, 2)),
    "a linear function makes the probe grow": Seen(1e-3, (-1, -1), (1e-6, 0, 0, 1), 1e-2, (-1, -1)),
    "flatness that would be seen is a sample": Seen(1.0, (3, 2), (1, 0, 0, 1), 0.5, (2, 0)),
    "two flat samples let the step grow": Seen(1.0, (2, 0), (1, 0, 0, 1), 1.2, (0, 0)),
    "on a flat piece growth goes on": Seen(1.0, (0, 0), (1, 0, 0, 1), 1.2, (0, 0)),
    "without a move nothing changes": Seen(1.0, (3, 2), (0, 0, 0, 1), 1.0, (3, 2)),
    "without a move the probe stays": Seen(1.0, (-1, -1), (0, 0, 0, 0), 1.0, (-1, -1)),
    "an infinite change is ignored": Seen(1.0, (3, 2), (1, np.inf, np.inf, 1), 1.0, (3, 2)),
}


@pytest.mark.parametrize("name", RULE)
def test_the_curvature_step(name):
    case = RULE[name]
    step, window = next_step(case.step, jnp.asarray(case.window, jnp.float64), *case.pair, growth=1.2, unit=EPS)
    assert float(step) == pytest.approx(case.expected, rel=1e-12)
    np.testing.assert_allclose(window, case.following, rtol=1e-12)


def test_the_rounding_unit_is_that_of_the_coarsest_leaf():
    assert rounding_unit({"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(2), "c": None}) == 2**-7
    assert rounding_unit({}) == EPS
    assert rounding_unit(jnp.zeros(1, jnp.complex64)) == 2**-23


def test_a_package_and_its_module_may_share_a_name():
    assert callable(step_sizes.curvature)
    assert inspect.getmodule(next_step).__name__ == "nagjax.step_sizes.curvature"


def spied():
    """A transformation that keeps the keyword arguments of its last update in its state."""

    def update(updates, state, params=None, *, step_size, step_ratio, **extra):
        del state, params
        return updates, {"seen": step_size, "ratio": step_ratio, "objective": extra.get("objective", step_size)}

    return optax.GradientTransformationExtraArgs(
        lambda _: {name: jnp.zeros(()) for name in ("seen", "ratio", "objective")}, update
    )


def follow(tx, value, params, steps):
    """Parameters and states after every update."""

    @jax.jit
    def update(params, state):
        updates, state = tx.update(jax.grad(value)(params), state, params, value=value(params), value_fn=value)
        return optax.apply_updates(params, updates), state

    found = [update(params, tx.init(params))]
    while len(found) < steps:
        found.append(update(*found[-1]))
    return found


def bowl(x):
    return jnp.sum(jnp.asarray([1.0, 4.0], x.dtype) * x**2) / 2


def test_the_curvature_wrapper_hands_on_its_step_and_the_ratio_to_the_step_before():
    params = jnp.array([1.0, 1.0])
    found = follow(step_sizes.curvature(spied(), growth=1.5), bowl, params, 6)
    sizes = [float(state.step_size) for _, state in found]
    assert sizes == [float(state.inner["seen"]) for _, state in found]
    assert sizes[0] == pytest.approx(1e-3 * (1 + 2**0.5) / 17**0.5, rel=1e-12)
    assert all(1 / 4 <= s <= 1 for s in sizes[1:])
    ratios = [float(state.inner["ratio"]) for _, state in found]
    np.testing.assert_allclose(ratios, [1, *(a / b for a, b in itertools.pairwise(sizes))], rtol=1e-14)
    queries = [params, *(p for p, _ in found)]
    for (before, after), s in zip(itertools.pairwise(queries), sizes, strict=True):
        np.testing.assert_allclose(after, before - s * jax.grad(bowl)(before), rtol=1e-14)


@pytest.mark.parametrize("where", ["wrapper", "chain"])
def test_a_prox_works_in_the_wrapper_and_as_a_proximal_step_behind_it(where):
    inner, prox = nagjax.accelerate(momentum.fista()), SHRINK
    tx = step_sizes.curvature(inner, prox=prox)
    if where == "chain":
        tx = step_sizes.curvature(optax.chain(proximal.step(prox), inner))
    found = follow(tx, bowl, jnp.array([2.0, -1.0]), 200)
    params, state = found[-1]
    answer = nagjax.eval_params(params, state)
    np.testing.assert_allclose(answer, [0.0, 0.0], atol=1e-12)
    again = follow(step_sizes.curvature(inner, prox=prox), bowl, jnp.array([2.0, -1.0]), 10)
    np.testing.assert_allclose(found[9][0], again[9][0], atol=1e-13)


def test_fista_without_a_ratio_and_with_ratio_one_make_the_same_bits():
    rule = momentum.fista()
    carry = plain = rule.init()
    for k in range(30):
        given, carry = rule.next(carry, step_ratio=jnp.ones(()))
        expected, plain = rule.next(plain)
        same_bits((given, carry), (expected, plain))
        assert float(carry.t) == pytest.approx(sequences.fista_t(k + 2)[-1], rel=1e-14)


def test_the_ratio_of_steps_corrects_the_sequence_of_fista():
    """s_{k+1} t_{k+1} (t_{k+1} - 1) = s_k t_k^2."""
    rule, generator = momentum.fista(), np.random.default_rng(0)
    carry, s = rule.init(), 1.0
    for _ in range(20):
        following = s * generator.uniform(0.2, 3)
        t = float(carry.t)
        coefficients, carry = rule.next(carry, step_ratio=s / following)
        after = float(carry.t)
        assert following * after * (after - 1) == pytest.approx(s * t**2, rel=1e-12)
        assert float(coefficients.gain) == pytest.approx((t - 1) / after, rel=1e-12)
        s = following


def test_backtracking_hands_on_the_ratio_to_the_next_trial_and_the_objective():
    params = jnp.array([3.0, 0.0])
    tx = step_sizes.backtracking(spied(), prox=SHRINK, growth=1.25, initial=0.1)
    found = follow(tx, bowl, params, 12)
    queries = [params, *(p for p, _ in found)]
    for query, (_, state) in zip(queries, found, strict=False):
        inner = state.inner
        assert float(inner["seen"]) == float(state.step_size)
        assert float(inner["ratio"]) == pytest.approx(float(state.step_size / state.trial), rel=1e-14)
        assert float(inner["objective"]) == pytest.approx(float(bowl(query) + SHRINK.value(query)), rel=1e-14)
    # The curvature along this axis is 1: steps grow by 1.25 while the longer one would pass.
    sizes = np.array([float(state.step_size) for _, state in found])
    np.testing.assert_allclose(sizes[:10], 0.1 * 1.25 ** np.arange(10), rtol=1e-12)
    assert sizes[10] == pytest.approx(0.1 * 1.25**10)
    assert sizes[11] == sizes[10]


def test_backtracking_counts_its_function_values_and_stops_at_the_limit():
    tx = step_sizes.backtracking(nagjax.accelerate(0.0), initial=1.0, shrink=0.5)
    _, state = follow(tx, lambda x: 50 * jnp.sum(x**2), jnp.array([1.0]), 1)[0]
    assert int(state.function_evaluations) == 8  # 1, ..., 1/128 <= 1/100
    assert float(state.step_size) == 1 / 128
    tx = step_sizes.backtracking(nagjax.accelerate(0.0), initial=1.0, max_trials=3)
    _, state = follow(tx, lambda x: 50 * jnp.sum(x**2), jnp.array([1.0]), 1)[0]
    assert int(state.function_evaluations) == 3


def test_backtracking_leaves_where_the_function_is_infinite():
    def barrier(x):
        return jnp.sum(jnp.where(x > 0, x - jnp.log(jnp.where(x > 0, x, 1)), jnp.inf))

    tx = step_sizes.backtracking(nagjax.accelerate(0.0), initial=100.0)
    params, state = follow(tx, barrier, jnp.array([3.0]), 60)[-1]
    assert float(params[0]) == pytest.approx(1.0, abs=1e-6)
    assert jnp.isfinite(state.step_size)


def test_keyword_arguments_of_the_function_are_handed_on_as_in_optax():
    def value(x, scale):
        return scale * bowl(x)

    tx = step_sizes.backtracking(nagjax.accelerate(0.0), initial=4.0)
    params = jnp.array([0.0, 1.0])
    slope = 3 * jax.grad(bowl)(params)
    _, state = tx.update(slope, tx.init(params), params, value=3 * bowl(params), value_fn=value, scale=3.0)
    assert float(state.step_size) == 1 / 16  # the largest of 4, 2, ... that is at most 1/12


def test_values_within_their_rounding_pass_the_descent_test():
    """At the optimum of a shifted function in float32 the step stays, whatever the noise of the values."""

    def shifted(x):
        return bowl(x) + jnp.float32(1e4)

    tx = step_sizes.backtracking(nagjax.accelerate(0.0), growth=1.5, initial=0.25)
    params = jnp.asarray([1e-3, 1e-3], jnp.float32)
    found = follow(tx, shifted, params, 30)
    assert {float(state.step_size) for _, state in found} == {0.25}


INNER = nagjax.accelerate(momentum.fista(), restart=restart.gradient())
REFUSED = {
    "step_sizes.curvature: growth": (lambda v: step_sizes.curvature(INNER, growth=v), [0.9, np.nan, np.inf]),
    "step_sizes.curvature: initial": (lambda v: step_sizes.curvature(INNER, initial=v), [0.0, -1.0, np.inf]),
    "step_sizes.backtracking: shrink": (lambda v: step_sizes.backtracking(INNER, shrink=v), [0.0, 1.0, np.nan]),
    "step_sizes.backtracking: growth": (lambda v: step_sizes.backtracking(INNER, growth=v), [0.5, np.inf]),
    "step_sizes.backtracking: max_trials": (lambda v: step_sizes.backtracking(INNER, max_trials=v), [0]),
    "step_sizes.backtracking: initial": (lambda v: step_sizes.backtracking(INNER, initial=v), [0.0]),
    "adaptive.acfgm: alpha": (lambda v: adaptive.acfgm(alpha=v), [-0.1, 1.1]),
    "adaptive.acfgm: beta": (lambda v: adaptive.acfgm(beta=v), [0.0, 0.2]),
    "adaptive.acfgm: initial": (lambda v: adaptive.acfgm(initial=v), [0.0]),
    "adaptive.adgd: initial": (lambda v: adaptive.adgd(initial=v), [-1.0]),
    "adaptive.adgd_accelerated: growth": (lambda v: adaptive.adgd_accelerated(growth=v), [-1.0]),
    "adaptive.adgd_accelerated: fraction": (lambda v: adaptive.adgd_accelerated(fraction=v), [0.0]),
    "adaptive.adaptive_proximal_gradient: version": (lambda v: adaptive.adaptive_proximal_gradient(version=v), [0, 3]),
    "adaptive.greedy_fista: smoothness": (adaptive.greedy_fista, [0.0, np.inf]),
    "adaptive.greedy_fista: relaxation": (lambda v: adaptive.greedy_fista(1.0, relaxation=v), [0.9, 2.0]),
    "adaptive.greedy_fista: shrink": (lambda v: adaptive.greedy_fista(1.0, shrink=v), [0.0, 1.0]),
    "adaptive.monotone_fista: step_size": (adaptive.monotone_fista, [0.0, -1.0]),
}


@pytest.mark.parametrize("place", REFUSED)
def test_a_number_out_of_its_range_is_refused(place):
    build, values = REFUSED[place]
    for value in values:
        with pytest.raises(ValueError, match=rf"^{re.escape(place)} must be .+, got .+; .+\.$"):
            build(value)


@pytest.mark.parametrize(
    "build",
    [
        lambda prox: step_sizes.curvature(INNER, prox=prox),
        lambda prox: step_sizes.backtracking(INNER, prox=prox),
        adaptive.acfgm,
        adaptive.adaptive_proximal_gradient,
        lambda prox: adaptive.greedy_fista(1.0, prox),
        lambda prox: adaptive.monotone_fista(1.0, prox),
    ],
)
def test_what_is_no_prox_is_refused(build):
    with pytest.raises(TypeError, match=r"prox must be a nagjax\.proximal\.Prox, got 0\.1"):
        build(0.1)
