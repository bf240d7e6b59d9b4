"""The benchmark of training loops: its loops do the same work, and its verdicts are what they say."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

import nagjax
from experiments import __main__ as command_line
from experiments import bench_training, bench_training_cases, bench_training_loops, bench_training_report
from experiments import bench_training_models as models
from experiments.bench_training_memory import memory
from experiments.bench_training_packed import Packing, packed_step
from nagjax import training

pytestmark = pytest.mark.usefixtures("single_precision", "standard_promotion")


@pytest.fixture
def small():
    return models.transformer(layers=1, width=8, batch=2, length=4)


def trained(step, problem, steps):
    train = training.compiled(step)
    state = step.init()
    for batch in problem.batches(steps):
        state, _ = train(state, batch)
    return state


class TestPacking:
    def test_unpacking_undoes_packing_bit_for_bit_with_one_vector_a_dtype(self):
        tree = {
            "a": jax.numpy.arange(6, dtype="float32").reshape(2, 3),
            "b": [jax.numpy.int32(7), jax.numpy.zeros((0, 2), "float32")],
            "c": jax.numpy.ones(4, "float32") / 3,
        }
        packing = Packing(tree)
        vectors = packing.pack(tree)
        assert {name: vector.shape for name, vector in vectors.items()} == {"float32": (10,), "int32": (1,)}
        back = packing.unpack(vectors)
        assert jax.tree.structure(back) == jax.tree.structure(tree)
        for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(back), strict=True):
            assert one.shape == other.shape
            np.testing.assert_array_equal(one, other)

    @pytest.mark.slow
    def test_the_packed_trajectory_is_that_of_the_tree(self, small):
        tree = bench_training_loops.tree_step(small)
        packed = packed_step(small.build(), models.cross_entropy, bench_training_loops.optimizer(small))
        ended, vectors = trained(tree, small, 10), trained(packed, small, 10)
        expected = Packing(ended.params).pack(ended.params)
        # Both round to float32, in another order.
        np.testing.assert_allclose(vectors.params["float32"], expected["float32"], rtol=0, atol=1e-6)
        velocity = nagjax.velocity(vectors.opt_state)["float32"]
        expected = Packing(ended.params).pack(nagjax.velocity(ended.opt_state))["float32"]
        np.testing.assert_allclose(velocity, expected, rtol=0, atol=1e-6)
        assert float(np.abs(velocity).max()) > 1e-3


class TestLoops:
    def test_a_transformer_has_sixteen_arrays_a_layer_and_four_more(self):
        for name, layers in models.LAYERS.items():
            problem = models.transformer(layers, width=2, batch=1, length=2)
            count = len(jax.tree.leaves(nnx.state(problem.build(), nnx.Param)))
            assert count == 16 * layers + 4 == int(name.removeprefix("transformer"))

    @pytest.mark.parametrize("per_call", [1, 4])
    def test_the_nnx_loop_and_the_compiled_one_reach_the_same_parameters(self, per_call):
        problem = models.digits(dropout=0.0)
        model = problem.build()
        loop = bench_training_loops.nnx_loop(models.Problem(lambda: model, problem.inputs, problem.labels, 32), 44)
        loop.measure()
        step = bench_training_loops.tree_step(problem)
        train, state = training.compiled(step, steps_per_call=per_call), step.init()
        for batch in problem.batches(44, per_call):
            state, _ = train(state, batch)
        usual = nnx.as_pure(nnx.state(model, nnx.Param))
        assert int(state.step) == 44
        moved = 0.0
        for one, other, start in zip(*map(jax.tree.leaves, (usual, state.params, step.init().params)), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
            moved = max(moved, float(np.abs(one - start).max()))
        assert moved > 0.05

    def test_stacked_batches_are_the_single_ones(self, small):
        single = list(small.batches(8))
        ((inputs, labels), (more, _)) = small.batches(8, 4)
        np.testing.assert_array_equal(np.stack([batch[0] for batch in single]), np.concatenate([inputs, more]))
        np.testing.assert_array_equal(labels, np.stack([batch[1] for batch in single[:4]]))

    def test_every_loop_takes_the_steps_that_it_says(self, small):
        step = bench_training_loops.tree_step(small)
        for loop in (
            bench_training_loops.step_loop(small, 8, step, per_call=4),
            bench_training_loops.epoch_loop(small, 32, step),
            bench_training_cases._epochs(small, 32, "silent", None),
        ):
            taken = []
            call = loop.call
            loop.call = lambda batch, call=call, taken=taken: (taken.append(batch), call(batch))
            loop.start()
            loop.measure()
            one = {"one step a call": 4, "compiled epoch": 16, "silent": 16}[loop.name]
            measured = [one if batch is None or one > 1 else np.shape(batch[0])[0] // 2 for batch in taken[1:]]
            assert sum(measured) == loop.steps
            assert len(loop.seconds) == len(loop.cpu_seconds) == 1
            assert loop.first_call_seconds > 0

    def test_the_same_network_has_the_same_parameters_in_torch(self, small):
        pytest.importorskip("torch")
        from experiments import bench_training_torch as torch

        for problem, module in (
            (models.digits(), torch.mlp(0.2)),
            (models.cnn(2), torch.cnn()),
            (small, torch.transformer(1, 8, 4)),
        ):
            leaves = jax.tree.leaves(nnx.state(problem.build(), nnx.Param))
            assert torch.parameters(module) == (len(leaves), sum(leaf.size for leaf in leaves))

    def test_memory_counts_what_a_donated_step_holds(self, small):
        step = bench_training_loops.tree_step(small)
        found = memory(step, small)
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(step.init().params))
        parts = found["bound_parts"]
        assert parts["gradients"] == weights
        assert 2 * weights < parts["arguments"] < 2 * weights + 1000  # parameters, velocity, and the batch
        assert found["bound_bytes"] == sum(parts.values())
        assert found["peak_bytes"] >= 2 * weights


class TestVerdicts:
    @pytest.mark.parametrize(
        ("value", "spread", "expected"),
        [(6.0, 0.0, "met"), (7.0, 0.5, "met"), (5.9, 0.02, "within noise"), (5.9, 0.01, "missed"), (1, 0.1, "missed")],
    )
    def test_at_least_six_times_as_fast(self, value, spread, expected):
        assert bench_training_cases.verdict(value, 6, spread, at_least=True) == expected

    @pytest.mark.parametrize(
        ("value", "spread", "expected"), [(1.2, 0.0, "met"), (1.23, 0.02, "within noise"), (1.3, 0.02, "missed")]
    )
    def test_at_most_one_fifth_more(self, value, spread, expected):
        assert bench_training_cases.verdict(value, 1.2, spread, at_least=False) == expected

    def test_ratios_are_taken_round_by_round_for_one_step(self):
        def loop(name, steps, seconds):
            return bench_training_loops.Loop(name, print, list, list, steps, seconds=seconds)

        loops = {"a": loop("a", 10, [1.0, 4.0]), "b": loop("b", 20, [1.0, 2.0])}
        np.testing.assert_allclose(bench_training_cases.ratios(loops, row="b", against="a"), [2.0, 4.0])

    def test_a_target_in_words(self):
        judged = bench_training_cases._judged("a against b", 1.4, 1.3, 1.5, 1.5, 0.01, at_least=True)
        said = bench_training_report.sentence(judged)
        assert said == "a against b: 1.4 (1.3 to 1.5), target at least 1.5: missed"


class TestCommand:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"rounds": 2}, "--rounds must be at least 3, got 2."),
            ({"epochs": 0}, "--epochs must be at least 1, got 0."),
            ({"threads": 0}, "--threads must be at least 1, got 0."),
            ({"width": 3}, "--width must be even"),
            ({"cases": ()}, "--cases must name at least one case"),
        ],
    )
    def test_values_that_make_no_sense_are_refused(self, values, message):
        with pytest.raises(ValueError, match=message):
            bench_training.Config(**values)

    def test_quick_keeps_what_was_asked_where_it_can(self):
        quick = bench_training.Config(quick=True).reduced()
        assert (quick.rounds, quick.epochs, quick.cases) == (3, 5, ("digits", "transformer100"))
        assert bench_training.Config(quick=True, cases=("metrics",)).reduced().cases == ("metrics",)

    @pytest.mark.slow
    def test_a_run_without_torch_says_so_and_writes_table_figure_and_records(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)

        def absent(*arguments):
            raise ModuleNotFoundError(name="torch")

        monkeypatch.setattr(bench_training_cases.torch, "loop", absent)
        command = ["bench_training", "--quick", "--cases", "digits", "--epochs", "1", "--out", "here"]
        assert command_line.main(command) == 0
        shown = capsys.readouterr().out
        assert "torch: not installed; pip install 'nagjax[bench]' brings it" in shown
        assert "compiled epoch against nnx loop" in shown
        assert (tmp_path / "here" / "training_speed.png").read_bytes().startswith(b"\x89PNG")
        record = json.loads((tmp_path / "here" / "results.json").read_text())["results"]["cases"]["digits"]
        assert record["arrays"] == 4
        assert record["parameters"] == 64 * 128 + 128 + 128 * 10 + 10
        names = ["nnx loop", "nnx loop again", "one step a call", "11 steps a call", "compiled epoch", "fit"]
        assert list(record["rows"]) == names
        assert record["rows"]["nnx loop"]["ratio"] == 1
        lines = [json.loads(line) for line in (tmp_path / "here" / "metrics.jsonl").read_text().splitlines()]
        assert [line["row"] for line in lines] == names
        assert {line["steps"] for line in lines} == {44}
        for line in lines:
            row = record["rows"][line["row"]]
            assert row["milliseconds"] == pytest.approx(1e3 * np.median(line["seconds"]) / 44)
