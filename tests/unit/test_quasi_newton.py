"""The product by the inverse Hessian of limited-memory BFGS, against the two-loop recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nagjax.solve import quasi_newton
from nagjax.solve.quasi_newton import SIZE


def two_loops(pairs, mask, vector):
    """Nocedal's recursion, in NumPy, with the pairs restricted to the mask and those without curvature left out."""
    q = np.where(mask, vector, 0.0)
    restricted = [(np.where(mask, s, 0.0), np.where(mask, y, 0.0)) for s, y in pairs[-SIZE:]]
    kept = [(s, y) for s, y in restricted if s @ y > 1e-10 * np.linalg.norm(s) * np.linalg.norm(y)]
    coefficients = []
    for s, y in reversed(kept):
        a = s @ q / (s @ y)
        q = q - a * y
        coefficients.append(a)
    r = q if not kept else kept[-1][0] @ kept[-1][1] / (kept[-1][1] @ kept[-1][1]) * q
    for (s, y), a in zip(kept, reversed(coefficients), strict=True):
        r = r + s * (a - y @ r / (s @ y))
    return r


def draw(count, size=14, negative=(), seed=0):
    """Pairs of a quadratic with curvature 0.1 to 10, some with the sign of the change turned."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((size, size)))[0]
    hessian = basis * np.geomspace(0.1, 10, size) @ basis.T
    moves = generator.standard_normal((count, size))
    return [(s, -hessian @ s if i in negative else hessian @ s) for i, s in enumerate(moves)], hessian


def remembered(pairs, size=14, keep=lambda i: True):
    memory = quasi_newton.no_pairs(jnp.zeros(size))
    for i, (s, y) in enumerate(pairs):
        memory = quasi_newton.push(memory, jnp.asarray(s), jnp.asarray(y), jnp.asarray(keep(i)))
    return memory


EVERYWHERE = np.ones(14, bool)
PARTLY = np.arange(14) % 3 != 0


@pytest.mark.parametrize("count", [0, 1, 2, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE + 3])
@pytest.mark.parametrize("mask", [EVERYWHERE, PARTLY], ids=["everywhere", "partly"])
def test_the_product_is_that_of_the_two_loop_recursion_for_every_fill_of_the_ring(count, mask):
    pairs, _ = draw(count)
    vector = np.random.default_rng(1).standard_normal(14)
    found = quasi_newton.multiply(remembered(pairs), jnp.asarray(mask), jnp.asarray(vector))
    np.testing.assert_allclose(found, two_loops(pairs, mask, vector), rtol=0, atol=1e-11 * np.linalg.norm(vector))
    assert np.all(np.asarray(found)[~mask] == 0)


@pytest.mark.parametrize("negative", [(0,), (4, 5), (11,), tuple(range(12))])
def test_pairs_without_curvature_on_the_face_take_no_part(negative):
    pairs, _ = draw(12, negative=negative)
    vector = np.random.default_rng(1).standard_normal(14)
    found = quasi_newton.multiply(remembered(pairs), jnp.asarray(PARTLY), jnp.asarray(vector))
    np.testing.assert_allclose(found, two_loops(pairs, PARTLY, vector), rtol=0, atol=1e-11 * np.linalg.norm(vector))


def test_the_newest_pair_fulfills_the_secant_equation():
    pairs, _ = draw(7)
    s, y = pairs[-1]
    found = quasi_newton.multiply(remembered(pairs), jnp.asarray(EVERYWHERE), jnp.asarray(y))
    np.testing.assert_allclose(found, s, rtol=0, atol=1e-12)


def test_conjugate_pairs_that_span_the_space_give_the_inverse_hessian():
    size = SIZE
    _, hessian = draw(0, size)
    _, basis = np.linalg.eigh(hessian)
    pairs = [(v, hessian @ v) for v in basis.T]
    vector = np.random.default_rng(1).standard_normal(size)
    found = quasi_newton.multiply(remembered(pairs, size), jnp.ones(size, bool), jnp.asarray(vector))
    np.testing.assert_allclose(found, np.linalg.solve(hessian, vector), rtol=1e-10)


def test_the_product_is_symmetric_and_positive_definite_on_the_face():
    pairs, _ = draw(13, negative=(3, 8))
    memory = remembered(pairs)
    product = jax.vmap(lambda v: quasi_newton.multiply(memory, jnp.asarray(PARTLY), v))(jnp.eye(14))
    on = np.asarray(product)[np.ix_(PARTLY, PARTLY)]
    np.testing.assert_allclose(on, on.T, rtol=0, atol=1e-12)
    assert np.min(np.linalg.eigvalsh(on)) > 0.01


def test_a_pair_that_is_not_kept_leaves_the_memory_as_it_is():
    pairs, _ = draw(15)
    some = remembered(pairs, keep=lambda i: i % 2 == 0)
    expected = remembered(pairs[::2])
    for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_the_product_scales_with_the_inverse_of_the_objective(factor):
    pairs, _ = draw(12)
    vector = jnp.asarray(np.random.default_rng(1).standard_normal(14))
    scaled = [(s, factor * y) for s, y in pairs]
    expected = quasi_newton.multiply(remembered(pairs), jnp.asarray(PARTLY), vector)
    found = quasi_newton.multiply(remembered(scaled), jnp.asarray(PARTLY), factor * vector)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_single_precision_keeps_its_dtype_and_six_digits(single_precision):
    pairs, _ = draw(12)
    memory = quasi_newton.no_pairs(jnp.zeros(14, jnp.float32))
    for s, y in pairs:
        memory = quasi_newton.push(memory, jnp.asarray(s, jnp.float32), jnp.asarray(y, jnp.float32), jnp.asarray(True))
    vector = np.random.default_rng(1).standard_normal(14)
    found = quasi_newton.multiply(memory, jnp.asarray(PARTLY), jnp.asarray(vector, jnp.float32))
    assert found.dtype == jnp.float32
    expected = two_loops(pairs, PARTLY, vector)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.linalg.norm(expected))
