"""The minimiser and the adjoint for Optimistix: the steps of `solve.minimize` in the interface of that library."""

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nagjax
from nagjax import proximal, solve
from nagjax.interop import optimistix as interop

WEIGHT = 3.0
STEPS = 40


def test_without_the_library_building_a_solver_names_the_extra():
    code = (
        "import sys; sys.modules['optimistix'] = None\n"
        "import nagjax.interop.optimistix as interop\n"
        "for make in (lambda: interop.AcceleratedProximalGradient(1e-6, 0.0), interop.ProximalAdjoint):\n"
        "    try: make()\n"
        "    except ImportError as error: print('nagjax[interop]' in str(error))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True"]


def test_import_nagjax_loads_neither_the_module_nor_optimistix():
    code = "import sys, nagjax; print({'optimistix', 'nagjax.interop.optimistix'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.fixture
def optimistix():
    return pytest.importorskip("optimistix", reason="needs the extra nagjax[interop]")


@pytest.fixture
def data():
    rng = np.random.default_rng(7)
    return jnp.asarray(rng.standard_normal((20, 8))), jnp.asarray(rng.standard_normal(20))


def loss(y, data):
    matrix, target = data
    return jnp.sum((matrix @ y - target) ** 2) / 2


def lasso_on_the_support(y, data, weight):
    """The minimizer from the support and signs of y, by linear algebra: independent of all solvers here."""
    matrix, target = (np.asarray(part) for part in data)
    support = np.flatnonzero(np.asarray(y))
    part, signs = matrix[:, support], np.sign(np.asarray(y)[support])
    exact = np.zeros(matrix.shape[1])
    exact[support] = np.linalg.solve(part.T @ part, part.T @ target - weight * signs)
    # The conditions of optimality off and on the support.
    slope = matrix.T @ (matrix @ exact - target)
    assert np.all(np.abs(slope) <= weight * (1 + 1e-12))
    assert np.all(np.sign(exact[support]) == signs)
    return exact, support


@functools.lru_cache
def chain_of(step_size):
    return nagjax.fista(step_size, proximal.l1(WEIGHT))


@pytest.mark.parametrize("method", ["default", "boosted", "fista", "chain"])
def test_each_step_has_the_answer_of_solve_minimize(optimistix, data, method):
    matrix = data[0]
    chosen = chain_of(float(1 / jnp.linalg.norm(matrix, 2) ** 2)) if method == "chain" else method
    prox = proximal.l1(WEIGHT)
    solver = interop.AcceleratedProximalGradient(0.0, 0.0, prox=prox, method=chosen)

    def fn(y, args):
        return loss(y, args), None

    options, tags = {"derivative": "none"}, frozenset()

    @jax.jit
    def steps(data):
        start = jnp.zeros(8)

        def step(carry, _):
            y, state = carry
            y, state, _ = solver.step(fn, y, data, options, state, tags)
            return (y, state), solver.postprocess(fn, y, None, data, options, state, tags, None)[0]

        state = solver.init(fn, start, data, options, None, None, tags)
        return jax.lax.scan(step, (start, state), length=STEPS)[1]

    def reference(data, count):
        return solve.minimize(loss, jnp.zeros(8), args=(data,), prox=prox, method=chosen, tol=0.0, max_iters=count)

    answers = steps(data)
    counts = jnp.arange(1, STEPS + 1, dtype=jnp.int32)
    expected = jax.jit(jax.vmap(reference, (None, 0)))(data, counts).params
    np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-12)
    assert len({tuple(np.round(row, 12)) for row in np.asarray(answers)}) > 4  # not one point 40 times


@pytest.mark.parametrize("prox", [proximal.zero(), proximal.box(-0.05, 0.1)])
def test_a_run_ends_where_that_of_solve_minimize_does(optimistix, data, prox):
    solver = interop.AcceleratedProximalGradient(1e-9, 0.0, prox=prox)
    found = optimistix.minimise(loss, solver, jnp.zeros(8), data, adjoint=interop.ProximalAdjoint())
    expected = solve.minimize(loss, jnp.zeros(8), args=(data,), prox=prox, tol=1e-9)
    np.testing.assert_allclose(found.value, expected.params, rtol=0, atol=1e-14)
    assert found.result == optimistix.RESULTS.successful
    assert found.stats["num_steps"] == expected.iterations + 1
    assert found.stats["evaluations"] == expected.evaluations
    assert found.stats["status"] == solve.Status.CONVERGED
    np.testing.assert_allclose(found.stats["value"], expected.value, rtol=1e-14)
    np.testing.assert_allclose(found.stats["residual"], expected.residual, rtol=1e-6)
    np.testing.assert_allclose(found.stats["step_size"], expected.state.report.step_size, rtol=1e-12)


@pytest.mark.parametrize("most", [7, 500])
def test_every_step_takes_one_value_and_gradient_and_aux_belongs_to_the_answer(optimistix, data, most):
    calls = []

    def counted(y, data):
        jax.debug.callback(lambda: calls.append(None))
        return loss(y, data), y

    solver = interop.AcceleratedProximalGradient(1e-8, 0.0)
    found = optimistix.minimise(counted, solver, jnp.zeros(8), data, has_aux=True, max_steps=most, throw=False)
    jax.effects_barrier()
    cut = most == 7
    assert (found.result == optimistix.RESULTS.nonlinear_max_steps_reached) == cut
    assert len(calls) == found.stats["evaluations"] == int(found.stats["num_steps"]) + cut
    np.testing.assert_array_equal(found.aux, found.value)
    np.testing.assert_allclose(found.stats["value"], loss(found.value, data), rtol=1e-12)


def test_atol_bounds_the_norm_of_the_gradient_at_the_answer(optimistix, data):
    def scaled(y, args):
        scale, data = args
        return scale * loss(y, data)

    @jax.jit
    def run(scale):
        found = optimistix.minimise(scaled, interop.AcceleratedProximalGradient(0.0, 1e-2), jnp.zeros(8), (scale, data))
        return found.stats["num_steps"], jnp.linalg.norm(jax.grad(scaled)(found.value, (scale, data)))

    (few, loose), (many, tight) = run(1.0), run(1e4)
    assert loose <= 1e-2
    assert tight <= 1e-2
    assert few < many  # absolute: a larger objective needs more steps


def test_a_start_at_the_minimizer_takes_the_three_steps_that_atol_needs(optimistix, data):
    solver = interop.AcceleratedProximalGradient(0.0, 1e-6)
    start = jnp.linalg.lstsq(*data)[0]
    found = optimistix.minimise(loss, solver, start, data)
    assert found.stats["num_steps"] <= 4
    np.testing.assert_allclose(found.value, start, rtol=0, atol=1e-12)


def test_each_status_has_the_result_of_its_name(optimistix):
    names = {
        solve.Status.CONVERGED: (True, "successful"),
        solve.Status.MAX_ITERS: (False, "successful"),  # running; the loop of Optimistix counts
        solve.Status.DIVERGED: (True, "nonlinear_divergence"),
        solve.Status.NON_FINITE: (True, "nonfinite"),
        solve.Status.STALLED: (True, "stagnation"),
    }
    assert set(names) == set(solve.Status)
    solver = interop.AcceleratedProximalGradient(1e-6, 0.0)
    for status, (done, name) in names.items():
        state = interop.MinimiserState(None, jnp.int32(5), jnp.int32(status))
        over, result = solver.terminate(None, None, None, {}, state, frozenset())
        assert bool(over) == done
        assert result == getattr(optimistix.RESULTS, name)


@pytest.mark.parametrize(
    ("fn", "start", "result", "status"),
    [
        (lambda y, _: jnp.sum(y) - jnp.sum(y**2), 0.0, "nonlinear_divergence", solve.Status.DIVERGED),
        (lambda y, _: jnp.sum(jnp.log(y)), -1.0, "nonfinite", solve.Status.NON_FINITE),
    ],
    ids=["unbounded", "outside of the domain"],
)
def test_failures_are_found(optimistix, fn, start, result, status):
    solver = interop.AcceleratedProximalGradient(1e-6, 0.0)
    found = optimistix.minimise(fn, solver, jnp.full(3, start), throw=False)
    assert found.result == getattr(optimistix.RESULTS, result)
    assert found.stats["status"] == status


def test_throw_raises_where_a_run_fails(optimistix, data):
    solver = interop.AcceleratedProximalGradient(1e-9, 0.0)
    with pytest.raises(RuntimeError, match="maximum number of steps"):
        optimistix.minimise(loss, solver, jnp.zeros(8), data, max_steps=3)


def test_a_run_of_no_steps_returns_the_start(optimistix, data):
    solver = interop.AcceleratedProximalGradient(1e-9, 0.0)
    found = optimistix.minimise(loss, solver, jnp.ones(8), data, max_steps=0, throw=False)
    np.testing.assert_array_equal(found.value, np.ones(8))
    assert (found.stats["evaluations"], found.stats["residual"]) == (1, 1)


def solved(optimistix, data, weight, adjoint):
    prox = None if weight is None else proximal.l1(weight)
    solver = interop.AcceleratedProximalGradient(1e-13, 0.0, prox=prox)
    return optimistix.minimise(loss, solver, jnp.zeros(8), data, adjoint=adjoint).value


def test_answer_and_derivatives_with_a_prox_are_those_on_the_support(optimistix, data):
    matrix, target = data
    adjoint = interop.ProximalAdjoint()

    def answer(target, weight):
        return solved(optimistix, (matrix, target), weight, adjoint)

    found, pull = jax.vjp(answer, target, WEIGHT)
    backward = jax.jit(jax.vmap(pull))(jnp.eye(8))
    forward = jax.jit(jax.jacfwd(answer, (0, 1)))(target, WEIGHT)
    exact, support = lasso_on_the_support(found, data, WEIGHT)
    assert 0 < len(support) < 8
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-10)
    part = np.asarray(matrix)[:, support]
    inverse = np.linalg.inv(part.T @ part)
    by_target, by_weight = np.zeros((8, 20)), np.zeros(8)
    by_target[support], by_weight[support] = inverse @ part.T, -inverse @ np.sign(exact[support])
    for derivative in (backward, forward):
        np.testing.assert_allclose(derivative[0], by_target, rtol=0, atol=1e-10)
        np.testing.assert_allclose(derivative[1], by_weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("own", [True, False])
def test_without_a_prox_both_adjoints_give_the_derivative(optimistix, data, own):
    matrix, target = data
    adjoint = interop.ProximalAdjoint() if own else optimistix.ImplicitAdjoint()
    found = jax.jacrev(lambda target: solved(optimistix, (matrix, target), None, adjoint))(target)
    np.testing.assert_allclose(found, np.linalg.pinv(matrix), rtol=0, atol=1e-10)


def test_the_implicit_adjoint_of_optimistix_is_wrong_with_a_prox_and_so_refused(optimistix, data):
    matrix, target = data
    solver = interop.AcceleratedProximalGradient(1e-12, 0.0, prox=proximal.l1(WEIGHT))

    def total(target, **options):
        return jnp.sum(optimistix.minimise(loss, solver, jnp.zeros(8), (matrix, target), **options).value)

    with pytest.raises(ValueError, match=r"adjoint must be ProximalAdjoint\(\) where there is a prox"):
        total(target)
    right = jax.grad(lambda target: total(target, adjoint=interop.ProximalAdjoint()))(target)
    wrong = jax.grad(lambda target: total(target, options={"derivative": "none"}))(target)
    assert jnp.max(jnp.abs(right - wrong)) > 1e-2


def test_what_the_function_closes_over_is_differentiated(optimistix):
    def answer(center):
        solver = interop.AcceleratedProximalGradient(1e-12, 0.0, prox=proximal.l1(1.0))
        start = {"a": jnp.zeros(3), "b": jnp.ones(())}

        def fn(y, _):
            return jnp.sum((y["a"] - center) ** 2) / 2 + (y["b"] - jnp.sum(center)) ** 2

        return optimistix.minimise(fn, solver, start, adjoint=interop.ProximalAdjoint()).value["a"]

    center = jnp.array([3.0, 0.5, -2.0])
    found, pull = jax.vjp(answer, center)
    np.testing.assert_allclose(found, [2, 0, -1], atol=1e-10)
    np.testing.assert_allclose(jax.vmap(pull)(jnp.eye(3))[0], np.diag([1.0, 0.0, 1.0]), atol=1e-10)


def test_lanes_of_a_vmap_stop_on_their_own(optimistix, data):
    matrix, target = data

    def run(target, weight):
        solver = interop.AcceleratedProximalGradient(1e-10, 0.0, prox=proximal.l1(weight))
        return optimistix.minimise(loss, solver, jnp.zeros(8), (matrix, target), adjoint=interop.ProximalAdjoint())

    def alone(target, weight):
        return solve.minimize(loss, jnp.zeros(8), args=((matrix, target),), prox=proximal.l1(weight), tol=1e-10)

    targets, weights = jnp.stack([target, -2 * target, target**2]), jnp.array([0.5, 3.0, 10.0])
    found = jax.jit(jax.vmap(run))(targets, weights)
    expected = [alone(*lane) for lane in zip(targets, weights, strict=True)]
    np.testing.assert_allclose(found.value, [solution.params for solution in expected], rtol=0, atol=1e-9)
    assert len({int(n) for n in found.stats["num_steps"]}) > 1


def test_it_stands_where_bfgs_stands(optimistix, data):
    """A caller that knows the interface alone, with another solver inside of a wrapper of that library."""
    exact = np.linalg.lstsq(*(np.asarray(part) for part in data))[0]
    solvers = [
        interop.AcceleratedProximalGradient(1e-10, 1e-10),
        optimistix.BestSoFarMinimiser(interop.AcceleratedProximalGradient(1e-10, 1e-10, method="boosted")),
    ]
    for solver in solvers:
        assert isinstance(solver, optimistix.AbstractMinimiser)
        assert solver.norm(jnp.array([3.0, 4.0])) == 5
        found = optimistix.minimise(loss, solver, jnp.zeros(8), data, max_steps=500)
        np.testing.assert_allclose(found.value, exact, rtol=0, atol=1e-8)


@pytest.mark.usefixtures("single_precision")
def test_single_precision_stays_single(optimistix):
    solver = interop.AcceleratedProximalGradient(1e-4, 0.0, prox=proximal.l1(1.0))

    def fn(y, center):
        return jnp.sum((y - center) ** 2) / 2

    found = optimistix.minimise(fn, solver, jnp.zeros(2), jnp.array([3.0, 0.5]), adjoint=interop.ProximalAdjoint())
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, [2.0, 0.0], atol=1e-4)


def test_bad_input_is_refused_with_a_remedy(optimistix, data):
    make = interop.AcceleratedProximalGradient
    with pytest.raises(ValueError, match="rtol must be at least 0"):
        make(-1.0, 0.0)
    with pytest.raises(ValueError, match="atol must be at least 0"):
        make(0.0, float("nan"))
    with pytest.raises(TypeError, match=r"prox must be a nagjax.proximal.Prox"):
        make(0.0, 0.0, prox=1.0)
    with pytest.raises(TypeError, match="method must be a method"):
        make(0.0, 0.0, method=None)
    with pytest.raises(ValueError, match="method must be one of default, boosted, fista"):
        make(0.0, 0.0, method="lbfgs")
    with pytest.raises(TypeError, match="solver must be an AcceleratedProximalGradient, got 'BFGS'"):
        optimistix.minimise(loss, optimistix.BFGS(1e-6, 1e-6), jnp.zeros(8), data, adjoint=interop.ProximalAdjoint())
    with pytest.raises(TypeError, match="y0 must be of 32 or 64 bits, got dtype"):
        optimistix.minimise(lambda y, _: jnp.sum(y), make(1e-2, 0.0), jnp.ones(2, jnp.bfloat16))


def test_the_example_of_the_docstring_runs(optimistix):
    (example,) = re.findall(r"Example::\n\n(.*?)\n\n?    \Z", interop.AcceleratedProximalGradient.__doc__, re.DOTALL)
    lines = [line[8:] for line in example.split("\n")]
    assert lines[-1].startswith("assert ")
    exec("\n".join(lines), {})
