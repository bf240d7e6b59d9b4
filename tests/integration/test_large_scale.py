"""What the experiment `large_scale` is made of: the rate setter, counted clipping, timed runs, cost and stream."""

import dataclasses
import functools
import itertools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import (
    data,
    large_scale_cost,
    large_scale_figures,
    large_scale_newton,
    large_scale_runs,
    large_scale_stream,
    large_scale_training,
)
from experiments import large_scale_report as report
from experiments.large_scale import Config, main
from experiments.large_scale_methods import (
    LBFGS,
    METHODS,
    Clip,
    RateSetter,
    build,
    clipped_shares,
    counted_clip,
    with_settings,
)
from experiments.large_scale_newton import multiplied_patches
from experiments.large_scale_training import Curve, Evaluation, Task, Trainer
from experiments.output import Run, UsageError
from nagjax.models import CNN
from nagjax.training import Checkpoints

SMALL = functools.partial(CNN, channels=(4, 4), hidden=8)


@pytest.fixture(scope="module")
def ordinary():
    """The settings of a run from the command line."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def images():
    found = data.load("digits")
    parts = [slice(0, 100), slice(100, 150)]
    return [data.Images(found.inputs[part].reshape(-1, 8, 8, 1), found.labels[part]) for part in parts]


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_scale_training, "CNN", SMALL)
        yield


@pytest.fixture(scope="module")
def trainer(ordinary, small, images):
    return Trainer("nesterov", RateSetter(), 0.9, *images, batch=32)


class TestRateSetter:
    def test_the_rate_rises_to_the_peak_and_falls_to_the_lower_bound(self):
        setter = RateSetter(warm_up=0.1, lowest=1e-4, highest=1.0)
        rates = np.array(setter.rate(np.arange(100), 0.4, 100))
        np.testing.assert_allclose(rates[:10], 0.4 * np.arange(1, 11) / 10, rtol=1e-6)
        # Half way from step 9, the last of the warm-up, to step 99.
        assert rates[54] == pytest.approx(0.2, rel=1e-6)
        assert rates[99] == np.float32(1e-4)
        gone = np.arange(1, 90) / 90
        np.testing.assert_allclose(rates[10:99], 0.4 * (1 + np.cos(np.pi * gone)) / 2, rtol=1e-4)

    def test_the_exponential_decay_is_geometric_and_ends_at_a_hundredth(self):
        rates = np.array(RateSetter(0.1, "exponential", 0.0, 1.0).rate(np.arange(100), 0.4, 100))
        np.testing.assert_allclose(rates[10:] / rates[9:-1], 0.01 ** (1 / 90), rtol=1e-5)
        assert rates[9] == pytest.approx(0.4, rel=1e-6)
        assert rates[99] == pytest.approx(0.004, rel=1e-5)

    def test_no_rate_leaves_the_bounds(self):
        rates = np.array(RateSetter(0.2, "cosine", 0.01, 0.25).rate(np.arange(50), 1.0, 50))
        assert rates.min() == np.float32(0.01)
        assert rates.max() == np.float32(0.25)

    @pytest.mark.parametrize("decay", ["cosine", "exponential"])
    def test_without_warm_up_the_first_step_has_the_peak(self, decay):
        setter = RateSetter(0.0, decay)
        assert setter.rate(0, 0.3, 20) == np.float32(0.3)
        assert setter.rate(0, 0.3, 1) == np.float32(0.3)


class TestClipping:
    def state(self, clip, gradient):
        return with_settings_of_clip(counted_clip().init(gradient), clip)

    def test_by_value_elements_are_moved_to_the_bound_and_their_share_is_counted(self):
        gradient = {"a": jnp.array([3.0, -4.0], jnp.float32), "b": jnp.array([0.5, 0.0], jnp.float32)}
        clipped, state = counted_clip().update(gradient, self.state(Clip(value=1.0), gradient))
        np.testing.assert_array_equal(clipped["a"], [1, -1])
        np.testing.assert_array_equal(clipped["b"], [0.5, 0])
        assert clipped_shares(state) == (1.0, 0.5)
        _, state = counted_clip().update(jax.tree.map(lambda g: g / 8, gradient), state)
        assert clipped_shares(state) == (0.5, 0.25)

    def test_by_norm_the_direction_stays_and_steps_are_counted(self):
        gradient = {"a": jnp.array([3.0, -4.0], jnp.float32), "b": jnp.zeros(2, jnp.float32)}
        clipped, state = counted_clip().update(gradient, self.state(Clip(norm=2.5), gradient))
        np.testing.assert_allclose(clipped["a"], [1.5, -2], rtol=1e-6)
        small = jax.tree.map(lambda g: g / 4, gradient)
        kept, state = counted_clip().update(small, state)
        np.testing.assert_array_equal(kept["a"], small["a"])
        assert clipped_shares(state) == (0.5, 0.0)

    def test_without_bounds_nothing_changes(self):
        gradient = {"a": jnp.array([3.0, -1e30], jnp.float32)}
        same, state = counted_clip().update(gradient, self.state(Clip(), gradient))
        np.testing.assert_array_equal(same["a"], gradient["a"])
        assert clipped_shares(state) == (0.0, 0.0)

    def test_it_stands_before_the_rate_and_the_momentum(self):
        setter, momentum, steps = RateSetter(0.4), 0.8, 10
        optimizer = build("nesterov", setter, momentum)
        params = {"a": jnp.zeros(2, jnp.float32)}
        state = with_settings(optimizer.init(params), 0.5, steps, Clip(value=1.0))
        y, w = np.zeros(2), np.zeros(2)
        for k in range(steps):
            gradient = np.array([3.0 * (-1) ** k, 0.25 * k])
            updates, state = optimizer.update({"a": jnp.asarray(gradient, jnp.float32)}, state, params)
            params = optax.apply_updates(params, updates)
            step = -float(setter.rate(k, 0.5, steps)) * np.clip(gradient, -1, 1)
            w = momentum * w + step
            y = y + step + momentum * w
            np.testing.assert_allclose(params["a"], y, rtol=1e-5, atol=1e-6)
        # The first element is beyond the bound in all ten steps, the second in the last five.
        assert clipped_shares(state) == pytest.approx((1.0, 0.75))


def with_settings_of_clip(state, clip):
    return state._replace(clip_value=jnp.float32(clip.value), clip_norm=jnp.float32(clip.norm))


class TestTuning:
    def test_the_grid_is_geometric_and_ends_at_the_range(self):
        method = METHODS["adam"]
        grid = method.grid(5)
        np.testing.assert_allclose(np.diff(np.log(grid)), np.log(method.rates[1] / method.rates[0]) / 4)
        assert (grid[0], grid[-1]) == pytest.approx(method.rates)
        assert method.grid(1) == pytest.approx([math.sqrt(method.rates[0] * method.rates[1])])

    def test_a_lost_trial_is_never_the_best(self, trainer, monkeypatch):
        losses = iter([math.nan, 0.5])

        def run(seed, rate, epochs):
            return Curve(seed, rate, Clip(), [0.0, 1.0], [0, 3], [2.3, next(losses)], [0.1, 0.2])

        monkeypatch.setattr(trainer, "run", run)
        trials = large_scale_training.tune(trainer, METHODS["nesterov"], 2, (0,), 1)
        assert min(trials, key=lambda trial: trial["loss"]) is trials[1]
        assert "0.01: inf" in report.tuned("Nesterov", trials)


class TestRuns:
    def test_the_convolution_by_matrix_products_is_the_convolution(self):
        generator = np.random.default_rng(0)
        inputs, kernel = (generator.normal(size=shape).astype(np.float32) for shape in ((3, 5, 4, 2), (3, 3, 2, 7)))
        names = ("NHWC", "HWIO", "NHWC")
        expected = jax.lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=names)
        np.testing.assert_allclose(multiplied_patches(jnp.asarray(inputs), kernel), expected, rtol=1e-5, atol=1e-5)

    def test_the_convolutions_of_l_bfgs_are_matrix_products(self):
        model = object.__new__(large_scale_newton.QuasiNewton)
        model._shape, model._classes = (8, 8, 1), 10
        layers = nnx.eval_shape(lambda: model._model(0)).convolutions
        assert [layer.conv_general_dilated for layer in layers] == [multiplied_patches] * 2

    @pytest.mark.parametrize("count", [7, 1000, 2500])
    def test_an_evaluation_counts_every_image_once(self, count):
        generator = np.random.default_rng(0)
        table = generator.normal(size=(count, 3)).astype(np.float32)
        labels = generator.integers(0, 3, count).astype(np.int32)
        found = Evaluation(lambda scale: lambda rows: scale * rows, data.Images(table, labels))(jnp.float32(2))
        losses = np.log(np.exp(2 * table).sum(axis=1)) - 2 * table[np.arange(count), labels]
        assert found[0] == pytest.approx(losses.mean(), rel=1e-5)
        assert found[1] == pytest.approx((table.argmax(axis=1) == labels).mean())

    def test_a_run_measures_the_answer_after_every_epoch(self, trainer, images):
        seen = []
        curve = trainer.run(3, 0.1, 4, each=lambda curve: seen.append(len(curve.losses)))
        assert seen == [2, 3, 4, 5]
        assert curve.steps == [0, 3, 6, 9, 12]
        assert trainer.steps_per_epoch == 3
        assert curve.seconds == sorted(curve.seconds)
        assert curve.losses[0] == pytest.approx(math.log(10), rel=0.15)

    def test_runs_of_a_seed_agree_and_seeds_differ_in_weights_and_order(self, trainer):
        first, again, other = (trainer.run(seed, 0.1, 1) for seed in (0, 0, 1))
        assert first.losses == again.losses
        assert first.losses[0] != other.losses[0]
        orders = [np.concatenate(list(trainer._rows(*at))) for at in ((0, 0), (0, 1), (1, 0))]
        assert all(len(set(order)) == 96 for order in orders)
        assert not any(np.array_equal(orders[0], order) for order in orders[1:])

    def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(self, trainer, tmp_path):
        whole = trainer.run(0, 0.1, 3, Clip(norm=1.0))

        def interrupt(curve):
            if len(curve.losses) == 3:
                raise KeyboardInterrupt

        with Checkpoints(tmp_path / "run", asynchronous=False) as checkpoints, pytest.raises(KeyboardInterrupt):
            trainer.run(0, 0.1, 3, Clip(norm=1.0), each=interrupt, checkpoints=checkpoints)
        epochs = []
        with Checkpoints(tmp_path / "run", asynchronous=False) as checkpoints:
            resumed = trainer.run(
                0, 0.1, 3, Clip(norm=1.0), each=lambda curve: epochs.append(len(curve.losses)), checkpoints=checkpoints
            )
        assert epochs == [4]
        assert (resumed.losses, resumed.steps) == (whole.losses, whole.steps)
        assert (resumed.clipped_steps, resumed.clip) == (whole.clipped_steps, whole.clip)
        with Checkpoints(tmp_path / "run") as checkpoints, pytest.raises(ValueError, match=r"rate.*0\.1.*0\.2"):
            trainer.run(0, 0.2, 3, Clip(norm=1.0), checkpoints=checkpoints)

    @pytest.mark.slow
    @pytest.mark.usefixtures("ordinary", "small")
    def test_l_bfgs_never_raises_its_own_loss_and_ends_with_the_budget(self, images, monkeypatch):
        train, _ = images
        newton = large_scale_newton.QuasiNewton(train, train, examples=1000, memory=5)
        assert newton.examples == 100
        ticks = itertools.count()
        monkeypatch.setattr(large_scale_newton.time, "perf_counter", lambda: float(next(ticks)))
        curve = newton.run(0, 20.0, points=5)
        # Between the two looks at the clock around an iteration passes one second.
        assert curve.steps == [0, 4, 8, 12, 16, 20]
        assert curve.seconds == curve.steps
        # The Armijo condition of the line search.
        assert curve.losses == sorted(curve.losses, reverse=True)
        assert curve.losses[-1] < curve.losses[0] - 0.5
        assert newton._train._cache_size() == 1  # nothing is compiled in the seconds that count

    @pytest.mark.usefixtures("ordinary", "small")
    def test_all_parts_of_training_end_in_tables_and_figures(self, images, tmp_path, monkeypatch, capsys):
        class Newton:  # the real one takes seconds to compile
            compile_seconds = 1.0

            def __init__(self, train, measured, examples, memory):
                assert (examples, memory) == (64, 10)

            def run(self, seed, budget):
                return Curve(seed, math.nan, Clip(), [0.0, budget / 2, budget], [0, 1, 2], [2.3, 2.2, 2.1], [0.1] * 3)

        monkeypatch.setattr(large_scale_runs, "QuasiNewton", Newton)
        monkeypatch.setattr(large_scale_training, "load", lambda name, folder: Task("stub", *images, *images))
        config = Config(parts=("training", "clipping"), optimizers=("nesterov", "lbfgs"), epochs=2, tuning_epochs=1)
        config = dataclasses.replace(config, seeds=2, trials=2, batch=32, lbfgs_examples=64)
        config = dataclasses.replace(config, clip_values=(1e-3,), clip_norms=(1e-3,))
        results = main(config, Run(tmp_path))
        assert results["seeds"] == [0, 1, 1000]
        entries = {entry["optimizer"]: entry for entry in results["entries"]}
        assert list(entries) == ["nesterov", LBFGS]
        np.testing.assert_array_equal(entries["nesterov"]["last"]["steps"], [6, 6])
        # Both K are far below the gradients of a new network.
        shares = {(one["clip"], one["factor"]): one["clipped_steps"] for one in results["clips"]}
        assert shares == {(clip, factor): float(clip != "none") for factor in (1.0, 10.0) for clip in (
            "none", "by value, K = 0.001", "by norm, K = 0.001")}  # fmt: skip
        assert {path.name for path in tmp_path.iterdir()} == {"training.png", "clipping.png", "metrics.jsonl"}
        said = capsys.readouterr().out
        assert "Nesterov against L-BFGS at equal time" in said
        assert "Mean ± standard deviation over 2 seeds" in said
        parts = [json.loads(line)["part"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert {part: parts.count(part) for part in parts} == {"tuning": 2, "training": 4, "clipping": 6}


def entry(name, losses, accuracies):
    curves = [
        Curve(seed, 0.1, Clip(), [0.0, 2.0], [0, 9], [2.3, loss], [0.1, accuracy])
        for seed, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    return report.Entry(name, 0.1, [], 1.0, curves)


class TestFindings:
    def test_they_say_where_nesterov_loses(self):
        own, other = entry("nesterov", [0.3, 0.5], [0.9, 0.8]), entry("adam", [0.2, 0.3], [0.8, 0.85])
        (line,) = report.findings([own, other])
        assert "test loss worse by 0.1500 (every seed)" in line
        assert "test accuracy better by 2.50 points (1 of 2 seeds better)" in line

    def test_without_nesterov_or_a_rival_there_is_nothing_to_say(self):
        assert report.findings([entry("adam", [0.2], [0.8])]) == []
        assert report.findings([entry("nesterov", [0.2], [0.8])]) == []

    def test_of_clipping_name_the_best_bound_and_lost_runs(self):
        def sweep(clip, factor, loss):
            return report.Clipping(clip, factor, [Curve(0, 0.1, clip, [0.0, 1.0], [0, 9], [2.3, loss], [0.1, 0.5])])

        some = Clip(norm=0.3)
        lines = report.clip_findings([sweep(*one) for one in (
            (Clip(), 1.0, 0.2), (some, 1.0, 0.3), (Clip(), 10.0, math.nan), (some, 10.0, 0.4))])  # fmt: skip
        assert "no clipping ends at 0.2000; the lowest mean test loss is 0.2000 with clipping none" in lines[0]
        assert "1 of 1 runs without clipping are lost; the lowest mean test loss is 0.4000" in lines[1]
        assert "by norm, K = 0.3" in lines[1]


class TestCost:
    def test_sizes_are_met(self):
        for size in (1e4, 1e5, 1e6, 1e7, 1e8):
            width, hidden = large_scale_cost.widths(int(size))
            assert 2 * width * hidden == pytest.approx(size, rel=0.01)

    @pytest.mark.usefixtures("ordinary")
    def test_a_donated_step_holds_parameters_gradients_and_state_once(self):
        # The buffers of a batch of 16 are some percent of 100,000 parameters.
        for name, numbers in (("nesterov", 3), ("adam", 4)):
            cost = large_scale_cost.measure(name, 100_000, repeats=1)
            assert cost.expected_bytes == 4 * numbers * cost.parameters
            assert 1 <= cost.ratio < 1.1
            assert 0 < cost.step_seconds < 1

    def test_the_figure_is_drawn_from_either_part(self, tmp_path):
        costs = [large_scale_cost.Cost(name, name, size, 1e-3, 1e-3, 12 * size, 12 * size, 1.0)
                 for name in large_scale_cost.OPTIMIZERS for size in (10**4, 10**5)]  # fmt: skip
        tenths = [{"share": share, "anonymous_mb": 100.0} for share in (0.0, 0.5, 1.0)]
        found = large_scale_stream.Stream(200, 300.0, tenths, 150.0)
        large_scale_figures.growth(tmp_path / "both.png", costs, found)
        large_scale_figures.growth(tmp_path / "one.png", None, found)
        assert (tmp_path / "both.png").stat().st_size > (tmp_path / "one.png").stat().st_size > 5000


class TestStream:
    def test_growth_is_that_from_the_first_tenth_to_the_largest(self):
        held = [50.0, 100.0, 104.0, 103.0]
        found = large_scale_stream.Stream(1, 2.0, [{"anonymous_mb": mb} for mb in held], 150.0)
        assert found.growth == pytest.approx(4.0)

    def test_the_rows_carry_the_class_of_a_linear_map(self):
        chunks = list(large_scale_stream._chunks(5000))
        assert [len(chunk) for chunk in chunks] == [4096, 904]
        rows = np.concatenate(chunks)
        teacher = np.random.default_rng(0).standard_normal((1023, 10), np.float32)
        np.testing.assert_array_equal(rows[:, -1], (rows[:, :-1] @ teacher).argmax(axis=1))
        assert np.bincount(rows[:, -1].astype(int), minlength=10).min() > 0

    @pytest.mark.slow
    def test_a_pass_reads_every_batch_under_the_limit_and_leaves_no_file(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(large_scale_stream.tempfile, "tempdir", None)
        monkeypatch.delenv("XLA_FLAGS")  # eight devices take the memory of eight
        seen = []
        found = large_scale_stream.stream(700, 16, seen.append, batch=64)
        assert found.tenths == seen
        assert len(seen) == 11
        rows = 16_000_000 // 4096
        assert seen[-1]["rows"] == rows // 64 * 64
        # Guessing has log 10 = 2.30; a pass of 3,900 rows brings the model below it.
        assert seen[-1]["loss"] < 2.2 < 2.25 < seen[1]["loss"]
        assert 0 < seen[-1]["anonymous_mb"] < 700
        assert list(tmp_path.iterdir()) == []

    def test_a_limit_that_is_too_low_ends_in_a_message(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(large_scale_stream.tempfile, "tempdir", None)
        with pytest.raises(UsageError, match=r"did not get through with --stream-limit-mb 60 .*raise the limit"):
            large_scale_stream.stream(60, 1, lambda tenth: None, batch=64)
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_without_room_is_refused_before_anything_is_written(self, monkeypatch):
        full = shutil._ntuple_diskusage(10**12, 10**12, 10**8)
        monkeypatch.setattr(large_scale_stream.shutil, "disk_usage", lambda folder: full)
        with pytest.raises(UsageError, match=r"needs 840 MB of disk in .*, which has 100; take a smaller --stream-mb"):
            large_scale_stream.stream(512, 700, lambda tenth: None)


class TestConfig:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epochs": 0}, "--epochs must be at least 1, got 0"),
            ({"trials": -1}, "--trials must be at least 0, got -1"),
            ({"seconds": 0.0}, "--seconds must be positive, got 0.0"),
            ({"momentum": 1.0}, r"--momentum must be in \[0, 1\), got 1.0"),
            ({"warm_up": -0.1}, r"--warm-up must be in \[0, 1\), got -0.1"),
            ({"rate_bounds": (0.1, 0.1)}, "--rate-bounds must be 0 <= lowest < highest, got 0.1 0.1"),
            ({"clip_norms": (1.0, 0.0)}, "--clip-norms must be positive"),
            ({"parts": ()}, "--parts needs at least one name"),
            ({"optimizers": ("sgd", "sgd")}, "--optimizers needs at least one name, each once"),
            ({"optimizers": ("sgd",)}, "--parts clipping needs nesterov among the --optimizers"),
            ({"sizes": (10,)}, "--sizes must be at least 100"),
            ({"stream_mb": 512}, "--stream-mb must be more than --stream-limit-mb 512"),
        ],
    )
    def test_values_that_make_no_sense_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            Config(**options)

    def test_quick_runs_less_of_everything_and_fills_the_defaults_in(self):
        full, quick = Config().reduced(), Config(quick=True).reduced()
        assert (full.epochs, full.tuning_epochs, full.seeds, full.lbfgs_examples) == (45, 20, 3, 1437)
        assert (quick.epochs, quick.seeds, quick.trials) == (4, 1, 0)
        assert quick.sizes == (10_000, 100_000, 1_000_000)
        assert quick.stream_limit_mb < quick.stream_mb < full.stream_mb
        assert Config(data_set="fashion_mnist", quick=False).reduced().epochs == 10

    def test_a_resumed_run_keeps_the_epochs_that_were_planned_at_its_own_pace(self, tmp_path):
        config = Config(checkpoints=tmp_path / "new")
        assert [large_scale_runs._planned(config, "adam", epochs) for epochs in (7, 9)] == [7, 7]
        assert large_scale_runs._planned(config, "sgd", 9) == 9
        assert [large_scale_runs._planned(config, "nesterov", epochs) for epochs in (7, 9)] == [7, 9]

    def test_fashion_mnist_without_its_folder_is_refused_before_any_work(self, tmp_path):
        config = Config(data_set="fashion_mnist", parts=("training",))
        with pytest.raises(UsageError, match=r"--data-set fashion_mnist: .* give --data DIR"):
            main(config, Run(tmp_path))
        with pytest.raises(UsageError, match="does not hold"):
            main(dataclasses.replace(config, data=tmp_path), Run(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("single_precision", "standard_promotion")
def test_the_quick_run_writes_its_results(tmp_path):
    from experiments import __main__ as command_line

    out = tmp_path / "result"
    assert command_line.main(["large_scale", "--quick", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())["results"]
    assert {"entries", "clips", "cost", "stream", "findings"} <= set(results)
    assert {path.name for path in out.glob("*.png")} == {"training.png", "clipping.png", "growth.png"}
