"""The convex problems, the counting of evaluations, and the two experiments on small sizes."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("tyro")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from experiments import __main__ as command_line
from experiments import (
    bench_convex,
    bench_convex_extras,
    bench_convex_report,
    bench_convex_runs,
    convex,
    convex_curves,
    convex_deblurring,
    convex_held_out,
    convex_methods,
    convex_peers,
    convex_problems,
    convex_reference,
    convex_report,
    convex_runs,
)

A9A = "+1 1:1 3:1 123:1\n-1 2:1 4:1\n-1 1:1 4:1\n+1 3:1 5:1\n"
EPSILON = np.finfo(np.float64).eps

SMALL = {
    **{f"small_{name}": build for name, build in convex_problems.SMALL.items()},
    "iid": lambda: convex_problems.lasso("iid", 0.0, 0.1, rows=60, columns=30),
    "cancer": convex_problems.cancer,
    "group_lasso": lambda: convex_held_out.group_lasso(rows=60, groups=20),
    "huber": lambda: convex_held_out.huber_elastic_net(rows=80, columns=40),
    "tv_dual": lambda: convex_held_out.total_variation_dual(length=50),
    "completion": lambda: convex_held_out.matrix_completion(rows=12, columns=10),
    "poisson": lambda: convex_held_out.poisson_regression(rows=60, columns=20),
}
DEBLUR = "small_deblur"
BOTH = ("iid", "small_nnls", "cancer")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@functools.cache
def optimum(name):
    """The problem, its reference and the best answer; both methods where compiling them is cheap."""
    problem = SMALL[name]()
    steppers = [convex_methods.solver(method) for method in (("boosted", "default") if name in BOTH else ("default",))]
    found, curves = convex_reference.reference(problem, steppers, limit=6000, chunk=100)
    return problem, found, min(curves, key=lambda curve: curve.values.min()).answer


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape)), tree)


def tiny_lasso():
    return convex_problems.lasso("tiny", 0.0, 0.1, rows=60, columns=30)


@pytest.mark.slow
class TestProblems:
    @pytest.mark.parametrize("name", SMALL)
    def test_the_smoothness_bounds_the_change_of_the_gradient(self, name):
        problem = SMALL[name]()
        if not np.isfinite(problem.smoothness):
            pytest.skip("not globally smooth")
        gradient = jax.jit(jax.grad(problem.fun))
        # Power iteration on differences finds the largest curvature near the start.
        direction, change = random_like(problem.init), 0.0
        base = gradient(problem.init, *problem.args)
        for _ in range(20):
            scale = 1e-3 / np.linalg.norm(flat(direction))
            point = jax.tree.map(lambda x, d, scale=scale: x + scale * d, problem.init, direction)
            direction = jax.tree.map(jnp.subtract, gradient(point, *problem.args), base)
            change = np.linalg.norm(flat(direction)) / 1e-3
        assert change <= problem.smoothness * (1 + 1e-6)
        # It is not a wild overestimate either: methods that are told it would look slow.
        assert change >= problem.smoothness / (1e3 if problem.kind in ("logistic", "softmax") else 5)

    @pytest.mark.parametrize("name", [name for name in SMALL if name != DEBLUR])
    def test_a_reference_optimum_satisfies_the_optimality_condition(self, name):
        problem, found, answer = optimum(name)
        data = convex_curves.composite(problem)
        gradient = jax.grad(problem.fun)

        def residual(x):
            step = jax.tree.map(lambda a, g: a - 0.1 * g, x, gradient(x, *problem.args))
            return np.linalg.norm(flat(jax.tree.map(jnp.subtract, x, data.prox.prox(step, 0.1))))

        assert residual(answer) <= 1e-7 * residual(problem.init)
        assert found.agreement <= 1e-12
        assert found.scale > 0
        assert found.minimum <= float(problem.objective(answer)) + 4 * EPSILON * abs(found.minimum)

    def test_the_minimum_of_the_quadratic_is_that_of_its_solution(self):
        problem = convex_problems.quadratic(dimension=50, condition_number=1e4)
        solution = jnp.asarray(problem.facts["solution"])
        np.testing.assert_allclose(float(problem.objective(solution)), problem.minimum, rtol=1e-12)
        assert np.linalg.norm(jax.grad(problem.fun)(solution, *problem.args)) < 1e-13
        np.testing.assert_allclose(np.linalg.cond(problem.args[0]), 1e4, rtol=1e-8)

    def test_the_wavelet_is_orthonormal_and_the_blur_keeps_the_mean(self):
        image = jnp.asarray(np.random.default_rng(0).standard_normal((64, 64)))
        coefficients = convex_deblurring.analyze(image)
        np.testing.assert_allclose(convex_deblurring.synthesize(coefficients), image, atol=1e-13)
        np.testing.assert_allclose(jnp.sum(coefficients**2), jnp.sum(image**2), rtol=1e-13)
        # Two vanishing moments: the details of a plane are zero but at the seam of the ring.
        plane = jnp.asarray(np.add.outer(2.0 * np.arange(64), np.zeros(64)))
        details = convex_deblurring.analyze(plane, levels=1)[32:63]
        np.testing.assert_allclose(details, 0, atol=1e-12)
        blur = convex_deblurring.blur_matrix(64)
        np.testing.assert_allclose(blur.sum(axis=1), 1, rtol=1e-14)
        np.testing.assert_array_equal(blur, blur.T)
        assert np.linalg.norm(blur, 2) <= 1 + 1e-12

    def test_the_scaled_problem_has_the_scaled_objective(self):
        problem = tiny_lasso()
        point = random_like(problem.init)
        for factor in (1e-8, 1e8):
            scaled = problem.scaled(factor)
            np.testing.assert_allclose(
                float(scaled.objective(point)), factor * float(problem.objective(point)), rtol=1e-13
            )

    def test_a9a_is_read_as_libsvm_writes_it(self, tmp_path):
        import gzip

        (tmp_path / "a9a").mkdir()
        with gzip.open(tmp_path / "a9a" / "a9a.gz", "wt") as file:
            file.write(A9A)
        matrix, labels = convex_held_out.read_a9a(tmp_path, 4)
        assert labels.tolist() == [1, -1, -1, 1]
        assert [np.flatnonzero(row).tolist() for row in matrix] == [[0, 2, 122], [1, 3], [0, 3], [2, 4]]
        with pytest.raises(ValueError, match="holds no a9a"):
            convex_held_out.read_a9a(tmp_path / "elsewhere", 4)


class TestCounts:
    def check(self, stepper, problem, steps=12):
        claimed = convex_curves.curve(stepper, problem, limit=steps, chunk=steps)
        seen = convex_curves.witnessed(stepper, problem, limit=steps)
        np.testing.assert_array_equal(claimed.costs, seen.costs)
        np.testing.assert_allclose(claimed.values, seen.values, rtol=1e-9)

    @pytest.mark.parametrize("name", ["default", "boosted"])
    def test_a_step_of_the_solver_costs_one_gradient_and_nothing_else(self, name):
        self.check(convex_methods.solver(name), tiny_lasso(), steps=20)

    def test_a_step_of_a_chain_costs_one_gradient(self):
        problem = tiny_lasso()
        self.check(convex_methods.fista(problem.smoothness, restarted=True), problem)
        self.check(convex_methods.acfgm(), problem)

    def test_a_trial_of_optax_costs_one_gradient(self, standard_promotion):
        self.check(convex_methods.optax_lbfgs(), convex_problems.cancer())

    def test_every_trial_of_jaxopt_is_counted(self):
        pytest.importorskip("jaxopt")
        problem = tiny_lasso()
        self.check(convex_methods.jaxopt_proximal_gradient(), problem)
        # Steps far above 1 / L are halved fifteen times at most, and step sizes are then reset.
        self.check(convex_methods.jaxopt_proximal_gradient(), problem.scaled(1e7), steps=6)

    def test_counted_jaxopt_makes_the_steps_of_jaxopt(self):
        pytest.importorskip("jaxopt")
        problem = tiny_lasso()
        data = convex_curves.composite(problem)
        found = convex_curves.curve(convex_methods.jaxopt_proximal_gradient(), problem, limit=10, chunk=10)
        with convex_methods.standard_promotion():
            run = convex_methods.jaxopt_solver(data, maxiter=10, tol=0.0).run(problem.init, data.prox, *problem.args)
        np.testing.assert_allclose(found.answer, run.params, rtol=1e-9, atol=1e-12)

    def test_the_cost_to_a_target_is_that_of_the_first_step_there(self):
        found = convex_curves.Curve("x", np.array([0.0, 2, 5, 7]), np.array([9.0, 3, 1.5, 1.1]), np.arange(4.0))
        assert found.cost_to(0.5, 1.0, 1.0) == 5
        assert found.cost_to(0.5, 1.0, 4.0) == 2
        assert found.steps_to(0.5, 1.0, 1.0) == 2
        assert found.seconds_to(0.2, 1.0, 1.0) == 3
        assert found.cost_to(0.01, 1.0, 1.0) is None


@pytest.mark.slow
class TestPeers:
    @pytest.mark.parametrize("name", ["small_lasso_corr_0.01", "small_nnls", "cancer"])
    def test_every_peer_solves_the_same_problem(self, name):
        problem, best, _ = optimum(name)
        runs = convex_peers.endpoints(problem)
        assert runs
        values = {peer: min(run.value for run in found) for peer, found in runs.items()}
        if problem.smooth or problem.kind == "nnls":
            values["scipy_lbfgs"] = convex_peers.scipy_lbfgs(problem).values[-1]
        for peer, value in values.items():
            assert (value - best.minimum) / best.scale < 1e-8, peer
            assert (value - best.minimum) / best.scale > -1e-11, peer

    def test_sparse_logistic_regression_is_that_of_the_peers(self):
        problem = tiny_logistic()
        best, _ = convex_reference.reference(problem, [convex_methods.solver("default")], limit=4000, chunk=100)
        for runs in convex_peers.endpoints(problem).values():
            assert abs(min(run.value for run in runs) - best.minimum) < 1e-7 * best.scale


def tiny_logistic():
    rng = np.random.default_rng(0)
    matrix = (rng.random((80, 10)) < 0.4).astype(np.float64)
    labels = np.where(matrix[:, 0] + 0.5 * rng.standard_normal(80) > 0.5, 1.0, -1.0)
    signed = labels[:, None] * matrix
    weight = 1e-2
    return convex_problems.Problem(
        "a9a", "tiny", convex_held_out._margins, (jnp.asarray(signed),), jnp.zeros(10), 1.0,
        convex_problems.proximal.l1(weight), "logistic_l1", {"matrix": matrix, "labels": labels, "weight": weight},
    )  # fmt: skip


@pytest.fixture(scope="module")
def entry():
    return convex_runs.compare(tiny_lasso(), 2.0, most=400, chunk=50)


@pytest.fixture(scope="module")
def row():
    return bench_convex_runs.measure(tiny_lasso(), 1, 500)


class TestConvex:
    def test_fista_stays_below_its_theorem_and_the_bound_is_not_vacuous(self, entry):
        gaps = entry.gaps("fista")[1:]
        assert (gaps <= entry.bound).all()
        # R is the distance to the minimizer, so the bound at the first step is of the order of the gap.
        assert entry.bound[0] < 100 * entry.gaps("fista")[0]

    def test_ratios_are_over_the_default(self, entry):
        found = convex_report.ratios(entry)
        assert found["default"] == {"evaluations": [1.0] * 3, "seconds": [1.0] * 3}
        expected = entry.cost_to("fista", 1e-3) / entry.cost_to("default", 1e-3)
        assert found["fista"]["evaluations"][0] == expected
        assert set(found["scikit-learn"]["evaluations"]) == {None}

    def test_findings_name_exactly_those_who_are_ahead(self, entry):
        faster = dataclasses.replace(
            entry,
            endpoints={
                "scikit-learn": [convex_peers.Endpoint(1e-3, 1e-9, entry.reference.minimum)],
                "celer": [convex_peers.Endpoint(1e-3, 1e9, entry.reference.minimum)],
            },
        )
        (line,) = convex_report.findings([faster])
        assert "scikit-learn (coordinate descent)" in line
        assert "celer" not in line
        alone = dataclasses.replace(entry, endpoints={}, curves={"default": entry.curves["default"]})
        (line,) = convex_report.findings([alone])
        assert "nobody needs fewer seconds; nobody needs fewer evaluations" in line

    def test_times_of_a_curve_grow_with_its_cost(self, entry):
        for name in ("default", "boosted", "fista"):
            curve = entry.curves[name]
            assert (np.diff(curve.seconds) > 0).all()

    @pytest.mark.slow
    def test_a_run_writes_tables_figures_and_records(self, entry, folder, capsys, monkeypatch):
        def compare(problem, seconds):
            # The runs of the tiny lasso stand in for those of every problem.
            curves = {**entry.curves, "default": dataclasses.replace(entry.curves["default"], answer=problem.init)}
            return dataclasses.replace(entry, problem=problem, curves=curves)

        monkeypatch.setattr(convex_runs, "compare", compare)
        monkeypatch.setitem(convex_problems.SMALL, "deblur", lambda: convex_deblurring.problem(32))
        assert command_line.main(["convex", "--quick", "--problems", "lasso_corr_0.01", "deblur"]) == 0
        shown = capsys.readouterr().out
        assert "nagjax default" in shown
        assert "scikit-learn (coordinate descent)" in shown
        found = folder / "results" / "convex"
        for figure in ("convergence.png", "seconds.png", "deblurring.png"):
            assert (found / figure).read_bytes().startswith(b"\x89PNG")
        results = json.loads((found / "results.json").read_text())["results"]
        assert set(results["ratios"]) == {"lasso_corr_0.01", "deblur"}
        assert len(results["findings"]) == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--seconds", "0"], "--seconds must be positive"),
            (["--data", "nowhere"], "is not a folder"),
        ],
    )
    def test_nonsense_is_refused_before_any_work(self, folder, capsys, options, message):
        with pytest.raises(SystemExit) as end:
            command_line.main(["convex", *options])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
        assert list(folder.iterdir()) == []

    def test_the_names_of_both_command_lines_are_problems(self):
        from typing import get_args

        assert set(get_args(bench_convex.Name)) == set(convex_problems.PROBLEMS)
        assert set(get_args(convex.Name)) <= set(convex_problems.PROBLEMS)
        assert set(convex_problems.SMALL) <= set(convex_problems.PROBLEMS)


@pytest.mark.slow
class TestBenchConvex:
    def test_a_row_holds_counts_and_times(self, row):
        for name in ("default", "boosted"):
            method = row["methods"][name]
            assert method["counts"] == sorted(method["counts"])
            assert [2 * steps for steps in method["steps"]] == method["counts"]
            assert method["seconds"] > 0
            assert method["compile_seconds"] > 0
        if convex_methods.installed("jaxopt"):
            assert row["methods"]["jaxopt"]["counts"][0] > 0

    def test_gains_are_geometric_means_where_jaxopt_arrives(self):
        def row(name, own, other):
            method = {"counts": own, "seconds": 1.0}
            return {
                "problem": name,
                "methods": {
                    "default": method,
                    "boosted": method,
                    "jaxopt": {"counts": other, **({"seconds": 4.0} if other[1] else {})},
                },
            }

        found = bench_convex_report.gains([row("a", [1, 2, 4], [8, 8, 8]), row("b", [1, 1, 1], [2, None, None])])
        assert found["default"]["mean_counts"] == pytest.approx([4.0, 4.0, 2.0])
        assert found["default"]["arrived"] == [2, 1, 1]
        assert found["default"]["mean_time"] == pytest.approx(4.0)
        assert found["default"]["counts"]["b"] == [2.0, None, None]

    def test_verdicts_say_met_and_missed(self):
        def extras(iterations):
            methods = {"default": {"seconds": 2.0}, "jaxopt": {"seconds": 1.0}}
            return {
                "iterations_by_factor": {"default": iterations},
                "total_variation": {"methods": methods},
                "batch": {"problems": 3, "ratio": 6.0},
            }

        counts = {"default": [10, 10, 10], "boosted": [10, 10, 10], "jaxopt": [30, 30, 100], "optax_lbfgs": [5, 9, 9]}
        methods = {name: {"counts": values, "seconds": 1.0} for name, values in counts.items()}
        lines = bench_convex_report.verdicts([{"problem": "cancer", "methods": methods}], extras({"1": 3, "2": 4}))
        met = {line["target"]: line["met"] for line in lines}
        assert met["default: mean gain in counts at 0.001"] is True
        assert met["default: mean gain in counts at 1e-06"] is False
        assert met["boosted: mean gain in counts at 1e-09"] is True
        assert met["default: mean gain in time at 1e-6"] is False
        assert met["default: least gain in time of a problem"] is True
        assert met["cancer: counts of the default over Optax L-BFGS at 0.001"] is False
        assert met["cancer: counts of the default over Optax L-BFGS at 1e-06"] is True
        assert met["default: spread of iterations over factors of the objective"] is False
        assert met["total variation, dual: gain in time of the default"] is False
        assert met["3 problems under vmap: gain over a loop of minimize"] is True
        assert bench_convex_report.verdicts([], extras({"1": 3}))[0]["met"] is None

    def test_a_factor_of_the_objective_changes_no_iteration(self):
        found = bench_convex_extras.scaled_iterations((1e-8, 1.0, 1e8))
        for iterations in found.values():
            assert len(set(iterations.values())) == 1
            assert 5 < next(iter(iterations.values())) < 100

    def test_a_batch_has_the_answers_of_the_loop(self):
        found = bench_convex_extras.batch(4, 1)
        # Both stop on a relative residual of 1e-6; lanes that have stopped stay as they are.
        assert found["largest_difference"] < 1e-9
        assert found["ratio"] > 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--rounds", "0"], "--rounds must be at least 1"),
            (["--cap", "3"], "--cap must be at least 250"),
            (["--data", "."], "read with --held-out only"),
            (["--held-out", "--data", "nowhere"], "is not a folder"),
        ],
    )
    def test_nonsense_is_refused_before_any_work(self, folder, capsys, options, message):
        with pytest.raises(SystemExit) as end:
            command_line.main(["bench_convex", *options])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
        assert list(folder.iterdir()) == []

    def test_quick_takes_fewer_problems_and_rounds(self):
        quick = bench_convex.Config(quick=True).reduced()
        assert quick.problems == bench_convex.QUICK
        assert quick.rounds == 3
        assert bench_convex.Config(quick=True, problems=("quad",)).reduced().problems == ("quad",)
        assert convex.Config(quick=True, data=Path()).reduced().problems == convex.QUICK


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ["convex", "bench_convex"])
def test_a_quick_run_ends_with_its_tables(name, folder, capsys):
    assert command_line.main([name, "--quick"]) == 0
    assert "default" in capsys.readouterr().out
    assert (folder / "results" / name / "results.json").is_file()
