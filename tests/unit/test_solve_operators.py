"""`solve.minimize` with every proximal operator: the answer is optimal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nagjax import proximal, solve
from nagjax.solve import Status

GENERATOR = np.random.default_rng(1)
MATRIX = jnp.asarray(GENERATOR.standard_normal((20, 12)))
TARGET = jnp.asarray(3 * GENERATOR.standard_normal(20))
SMOOTHNESS = float(np.linalg.norm(MATRIX, 2)) ** 2
LASSO = proximal.l1(3.0)


def squares(x, matrix, target):
    return jnp.sum((matrix @ x.reshape(-1) - target) ** 2) / 2


def operators():
    ones = jnp.ones(12)
    flat, square, wide = (12,), (4, 3), (3, 4)
    rows = jnp.asarray(np.random.default_rng(8).standard_normal((3, 12)))
    return {
        "zero": (proximal.zero(), flat),
        "l1": (LASSO, flat),
        "squared_l2": (proximal.squared_l2(2.0), flat),
        "elastic_net": (proximal.elastic_net(3.0, 2.0), flat),
        "huber": (proximal.huber(3.0, 0.1), flat),
        "log_barrier": (proximal.log_barrier(0.3), flat),
        "box": (proximal.box(-0.1, 0.2), flat),
        "nonnegative": (proximal.nonnegative(), flat),
        "linf_ball": (proximal.linf_ball(0.2), flat),
        "l1_ball": (proximal.l1_ball(0.5), flat),
        "l2_ball": (proximal.l2_ball(0.3), flat),
        "simplex": (proximal.simplex(1.0), flat),
        "l2": (proximal.l2(5.0), flat),
        "linf": (proximal.linf(5.0), flat),
        "hyperplane": (proximal.hyperplane(ones, 1.0), flat),
        "half_space": (proximal.half_space(ones, -1.0), flat),
        "affine": (proximal.affine(rows, jnp.ones(3)), flat),
        "group_lasso": (proximal.group_lasso(4.0, group_size=3), flat),
        "sparse_group_lasso": (proximal.sparse_group_lasso(1.0, 3.0, group_size=3), flat),
        "total_variation": (proximal.total_variation(2.0), flat),
        "nuclear": (proximal.nuclear(4.0), wide),
        "total_variation_2d": (proximal.total_variation_2d(2.0), square),
        "translate": (proximal.translate(LASSO, ones), flat),
        "scale": (proximal.scale(LASSO, 2.0), flat),
        "per_leaf": (proximal.per_leaf(LASSO), flat),
    }


def check_operator(name, method):
    prox, shape = operators()[name]
    start = jnp.ones(shape) if name == "log_barrier" else jnp.zeros(shape)
    tol = 1e-6 if name == "total_variation_2d" else 1e-9  # its operator is a search of its own
    solution = solve.minimize(squares, start, args=(MATRIX, TARGET), prox=prox, method=method, tol=tol, max_iters=500)
    assert int(solution.status) == Status.CONVERGED
    x = solution.params
    gradient = jax.grad(squares)(x, MATRIX, TARGET)
    objective = squares(x, MATRIX, TARGET) + prox.value(x)
    assert float(solution.value) == pytest.approx(float(objective), rel=1e-9)
    noise = [jnp.asarray(np.random.default_rng(seed).standard_normal(shape)) for seed in range(5)]
    for other in [1.001 * x, 0.999 * x, *(prox.prox(x + 0.1 * e, 0.1) for e in noise)]:
        # h is convex: h(other) - h(x) >= <v, other - x> for the subgradient v = -gradient.
        gain = prox.value(other) - prox.value(x) + jnp.sum(gradient * (other - x))
        assert float(gain) >= -3 * tol * float(jnp.linalg.norm(MATRIX.T @ TARGET) * jnp.linalg.norm(other - x))
    for step in (0.3 / SMOOTHNESS, 3.0):
        moved = prox.prox(x - step * gradient, step)
        residual = float(jnp.linalg.norm((x - moved).reshape(-1))) / step
        assert residual <= 20 * tol * float(solution.state.report.scale)


# One of each kind, by either method in turn; all the others take minutes to compile.
SOME = {
    "l1": "boosted",
    "box": "default",
    "simplex": "boosted",
    "log_barrier": "default",
    "affine": "boosted",
    "group_lasso": "default",
    "nuclear": "boosted",
    "total_variation": "default",
}
OTHERS = [(name, method) for name in operators() for method in ("default", "boosted") if SOME.get(name) != method]


@pytest.mark.parametrize(("name", "method"), list(SOME.items()))
def test_the_answer_with_an_operator_of_every_kind_is_optimal(name, method):
    check_operator(name, method)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), OTHERS)
def test_the_answer_with_every_operator_is_optimal_by_both_methods(name, method):
    check_operator(name, method)
