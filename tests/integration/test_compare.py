"""What the experiment `compare` claims: its search, its scores, its journal, its data and its runs."""

import dataclasses
import gzip
import inspect
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import __main__ as command_line
from experiments import compare, compare_journal, compare_optimizers, compare_search, data
from experiments.compare_journal import Journal, Record
from experiments.compare_optimizers import OPTIMIZERS
from experiments.compare_search import Range
from experiments.output import UsageError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of data sets is not beside the repository")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def fashion_mnist():
    """Read once: it has 55 million pixels."""
    return data.load("fashion_mnist", SHARED)


class TestSearch:
    def test_a_range_is_even_in_the_logarithm(self):
        span = Range(1e-3, 10.0)
        np.testing.assert_allclose([span.at(0), span.at(0.5), span.at(1)], [1e-3, 0.1, 10.0], rtol=1e-12)
        assert span.fraction(0.1) == pytest.approx(0.5, rel=1e-12)

    def test_a_momentum_is_even_in_the_logarithm_of_one_minus_it(self):
        span = Range(0.5, 0.99, complement=True)
        np.testing.assert_allclose([span.at(0), span.at(0.5), span.at(1)], [0.5, 1 - 0.005**0.5, 0.99], rtol=1e-12)
        assert span.fraction(span.at(0.3)) == pytest.approx(0.3, rel=1e-12)

    def test_points_are_haltons_after_one_shift(self):
        found = compare_search.points(4, 7)
        # Halton's points 1 to 4 in the bases 2, 3, 5, 7.
        plain = np.array(
            [[1 / 2, 1 / 3, 1 / 5, 1 / 7], [1 / 4, 2 / 3, 2 / 5, 2 / 7], [3 / 4, 1 / 9, 3 / 5, 3 / 7],
             [1 / 8, 4 / 9, 4 / 5, 4 / 7]]
        )  # fmt: skip
        assert (found >= 0).all()
        assert (found < 1).all()
        np.testing.assert_allclose((found - found[0]) % 1, (plain - plain[0]) % 1, atol=1e-12)
        assert not np.allclose(found, compare_search.points(4, 8))

    def test_a_larger_budget_only_adds_points(self):
        np.testing.assert_array_equal(compare_search.points(5, 0), compare_search.points(20, 0)[:5])

    def test_every_optimizer_tries_the_same_points_of_the_cube(self):
        nesterov, adamw, nadamw = (
            compare_search.trials(OPTIMIZERS[name].space, 6, 0) for name in ("nesterov", "adamw", "nadamw")
        )
        assert adamw == nadamw
        assert [trial["momentum"] for trial in nesterov] == [trial["momentum"] for trial in adamw]
        for one, other in zip(nesterov, adamw, strict=True):
            fractions = [
                space.space["learning_rate"].fraction(trial["learning_rate"])
                for space, trial in ((OPTIMIZERS["nesterov"], one), (OPTIMIZERS["adamw"], other))
            ]
            # Settings have four digits.
            assert fractions[0] == pytest.approx(fractions[1], abs=1e-4)

    def test_the_sensitivity_goes_from_end_to_end_and_changes_the_rate_alone(self):
        space = OPTIMIZERS["nesterov"].space
        tuned = {"learning_rate": 0.3, "momentum": 0.9, "weight_decay": 1e-4}
        found = compare_search.sweep(space, tuned, 5)
        assert [trial["learning_rate"] for trial in found] == [0.001, 0.01, 0.1, 1.0, 10.0]
        assert all({**trial, "learning_rate": 0.3} == tuned for trial in found)

    def test_the_edge_of_a_range_is_flagged(self):
        space = OPTIMIZERS["nesterov"].space
        setting = {"learning_rate": 9.0, "momentum": 0.9, "weight_decay": 1.1e-6}
        assert compare_search.edges(space, setting) == ["learning_rate", "weight_decay"]

    def test_the_middle_is_the_lower_median_and_what_is_not_finite_comes_last(self):
        assert compare_search.middle([3.0, math.inf, 1.0, math.nan]) == 0
        assert compare_search.middle([3.0, math.inf, 1.0, math.nan, math.inf]) in (1, 3, 4)
        assert compare_search.middle([3.0, 2.0, 1.0]) == 1


class TestTable:
    def test_every_row_has_a_builder_of_its_name_and_every_builder_a_row(self):
        from experiments import compare_builders

        public = {
            name
            for name, value in vars(compare_builders).items()
            if inspect.isfunction(value) and value.__module__ == compare_builders.__name__ and name[0] != "_"
        }
        assert public == set(OPTIMIZERS)

    def test_families_have_as_many_looks_as_members(self):
        from experiments import compare_figures

        for family in compare_optimizers.FAMILIES:
            members = [
                name
                for name, row in OPTIMIZERS.items()
                if row.family == family and name != compare_optimizers.REFERENCE
            ]
            assert 0 < len(members) <= len(compare_figures.LOOKS)
        assert {row.family for row in OPTIMIZERS.values()} == set(compare_optimizers.FAMILIES)

    def test_the_table_loads_without_jax(self):
        code = "import sys, experiments.compare; sys.exit('jax' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

    @pytest.mark.slow
    @pytest.mark.usefixtures("single_precision", "standard_promotion")
    @pytest.mark.parametrize("decay", [True, False])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_a_row_trains_with_traced_hyper_parameters(self, name, decay):
        from experiments.compare_training import Program

        optimizer = OPTIMIZERS[name]
        if not decay and optimizer.space_of(decay=False) == optimizer.space:
            pytest.skip("no weight decay to leave out")
        program = Program(_small(), compare_optimizers.builder(name), optimizer.has_answer)
        setting = compare_search.trials(optimizer.space_of(decay=decay), 1, 0)[0]
        found = jax.eval_shape(program._train, *program._arguments(setting, 0))
        assert found.loss.shape == (3,)
        assert found.loss.dtype == jnp.float32


def _small():
    """A workload of eight points, to trace programs."""
    from experiments.compare_training import Plan, Workload
    from nagjax.models import MLP

    plan = Plan(steps=20, batch=2, every=10)
    part = (jnp.ones((8, 3), jnp.float32), jnp.ones(8, jnp.float32))

    def objective(model, part, deterministic):
        gap = model(part[0], deterministic=deterministic)[:, 0] - part[1]
        return (gap**2).mean(), (gap**2 < 1).mean(dtype=jnp.float32)

    return Workload(
        name="small",
        title="small",
        loss_label="loss",
        fingerprint="",
        definition="",
        plan=plan,
        train=part,
        measured=part,
        test=part,
        model=lambda rngs: MLP((3, 2, 1), dropout=0.1, rngs=rngs),
        objective=objective,
        order=lambda key: jax.random.randint(key, (plan.steps, plan.batch), 0, 8),
        take=lambda train, indices: tuple(array[indices] for array in train),
    )


class TestSchedules:
    def test_the_cosine_rises_in_a_twentieth_and_falls_to_zero(self):
        from experiments.compare_training import Plan

        rate = Plan(steps=100, batch=1, every=10).cosine(2.0)
        expected = [2 / 5, 4 / 5, 2.0, 2.0, 1 + math.cos(math.pi * 40 / 95)]
        np.testing.assert_allclose([rate(k) for k in (0, 1, 4, 5, 45)], expected, rtol=1e-6)
        assert rate(99) < 2e-3

    def test_one_cycle_is_pytorchs_shape(self, monkeypatch):
        import nagjax
        from experiments import compare_builders
        from experiments.compare_training import Plan

        taken = {}
        monkeypatch.setattr(nagjax, "nesterov", lambda rate, rule, **_: taken.update(rate=rate, rule=rule))
        compare_builders.one_cycle({"learning_rate": 0.5, "momentum": 0.95}, Plan(steps=50, batch=1, every=10))
        rise, fall = 0.3 * 50 - 1, 49.0

        def cosine(start, end, share):
            return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

        for count in range(50):
            if count <= rise:
                rate, momentum = cosine(0.02, 0.5, count / rise), cosine(0.95, 0.85, count / rise)
            else:
                share = (count - rise) / (fall - rise)
                rate, momentum = cosine(0.5, 2e-6, share), cosine(0.85, 0.95, share)
            assert float(taken["rate"](count)) == pytest.approx(rate, rel=1e-5, abs=1e-7)
            assert float(taken["rule"](count)) == pytest.approx(momentum, rel=1e-6)


class TestScores:
    def test_the_target_is_the_median_of_what_the_reference_ends_at(self):
        from experiments import compare_scores

        trial = _trial([[9.0, 0.3], [9.0, 0.1], [0.0, 0.2]])
        assert compare_scores.target_of(trial) == 0.2
        with pytest.raises(UsageError, match="reference diverges, so there is no target"):
            compare_scores.target_of(_trial([[9.0, math.nan], [9.0, 0.1]]))

    def test_steps_to_the_target_are_those_of_the_first_measurement_at_it(self):
        from experiments import compare_scores

        losses = np.array([[1.0, 0.5, 0.2, 0.4], [1.0, 0.6, 0.51, 0.5], [1.0, np.nan, np.nan, np.nan]])
        found = compare_scores.steps_to_target(losses, np.array([0, 10, 20, 30]), 0.5)
        assert found.tolist() == [10, 30, math.inf]
        assert compare_scores.half(found) == 30
        assert compare_scores.half(found[:2]) == 10
        assert compare_scores.half(np.array([10, math.inf, math.inf])) == math.inf

    def test_profiles_are_those_computed_by_hand(self):
        from experiments import compare_scores

        steps = {
            "a": np.array([10, 30, math.inf, math.inf]),
            "b": np.array([20, 20, 40, math.inf]),
        }
        # Ratios: a 1, 1.5, -, -; b 2, 1, 1, -. The last workload is solved by none.
        found = compare_scores.profiles(steps, np.array([1, 1.4, 1.5, 2]))
        assert found["a"].tolist() == [0.25, 0.25, 0.5, 0.5]
        assert found["b"].tolist() == [0.5, 0.5, 0.5, 0.75]
        assert compare_scores.largest_factor(steps) == 2.0

    def test_differences_are_paired_by_seed(self):
        from experiments import compare_scores

        found = compare_scores.paired(np.array([5.0, 3.0, 10.0]), np.array([4.0, 1.0, 7.0]))
        # Gaps 1, 2, 3: mean 2, standard deviation 1, and 4.302653 is the 97.5 % point of Student's t with 2 degrees.
        assert found.mean == 2.0
        assert found.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
        assert not found.clear
        assert compare_scores.paired(np.array([2.0, 2.1]), np.array([1.0, 1.1])).clear
        one = compare_scores.paired(np.array([2.0]), np.array([1.0]))
        assert (one.mean, math.isnan(one.half_width), one.clear) == (1.0, True, False)
        assert compare_scores.paired(np.array([np.nan, 1.0]), np.array([1.0, 1.0])).mean == math.inf

    def test_the_range_of_rates_is_the_stretch_around_the_best(self):
        from experiments import compare_scores

        # Each rate stands for one decade; 1.1 and 1.0 further up are no part of the stretch around the first 1.0.
        rates = [0.01, 0.1, 1.0, 10.0, 100.0]
        assert compare_scores.rate_range(rates, [1.0, 2.0, 1.1, 1.0, 1.3], 1.2) == pytest.approx(1.0)
        assert compare_scores.rate_range(rates, [2.0, 1.2, 1.0, 1.1, math.inf], 1.2) == pytest.approx(3.0)
        assert compare_scores.rate_range(rates, [math.inf] * 5, 1.2) == 0.0

    def test_a_run_that_ends_above_its_start_has_diverged(self):
        trial = _trial([[1.0, 0.5], [1.0, 1.5], [1.0, np.nan], [1.0, np.inf]])
        assert trial.diverged.tolist() == [False, True, True, True]
        assert trial.mean == math.inf


def _trial(losses, **setting):
    from experiments.compare_sweep import Trial

    return Trial(setting, tuple(_record(seed, loss) for seed, loss in enumerate(losses)))


class TestReport:
    @pytest.fixture
    def scores(self):
        """Nesterov is first at the target, AdamW ends with a higher loss, and SGD diverges."""
        from experiments import compare_scores

        curves = {
            "nadamw": [[1.0, 0.8, 0.5], [1.0, 0.9, 0.4], [1.0, 0.8, 0.6]],
            "nesterov": [[1.0, 0.5, 0.5], [1.0, 0.4, 0.6], [1.0, 0.3, 0.4]],
            "adamw": [[1.0, 0.9, 0.71], [1.0, 0.9, 0.6], [1.0, 0.9, 0.79]],
            "sgd": [[1.0, np.inf, np.nan], [1.0, 2.0, 3.0], [1.0, np.nan, np.nan]],
        }
        results = [self.result(name, losses) for name, losses in curves.items()]
        return compare_scores.scores(_small(), results)

    def result(self, name, losses):
        from experiments.compare_sweep import Result

        best = _trial(losses, learning_rate=0.1)
        sweep = [_trial(losses, learning_rate=rate) for rate in (0.01, 0.1)]
        row = OPTIMIZERS[name]
        return Result(name, row, [best, best], sweep, best, best, ["learning_rate"], 1.0, 1, "learning_rate")

    def test_scores_are_sorted_by_the_final_loss_and_divergence_comes_last(self, scores):
        target, found = scores
        assert target == 0.5
        names = [score.result.name for score in found]
        assert set(names[:2]) == {"nadamw", "nesterov"}
        assert names[2:] == ["adamw", "sgd"]
        assert [score.diverged for score in found] == [0, 0, 0, 1]
        steps = {score.result.name: score.steps.tolist() for score in found}
        assert steps == {
            "nadamw": [20, 20, math.inf],
            "nesterov": [10, 10, 10],
            "adamw": [math.inf] * 3,
            "sgd": [math.inf] * 3,
        }

    def test_findings_follow_from_the_numbers(self, scores):
        from experiments import compare_report

        target, found = scores
        first, second, third, *_, last = compare_report.findings(_small(), target, found)
        assert first == (
            "NAdamW reaches the target of 0.5 in 20 of 20 updates (half of the seeds). Sooner: Nesterov 10. "
            "With no seed: AdamW, SGD."
        )
        # AdamW's gaps from NAdamW are 0.21, 0.2 and 0.19.
        assert "lower with none; higher with AdamW; 2 of 3 cannot be told apart" in second
        # Nesterov's gaps from AdamW are -0.21, 0, -0.39, of standard deviation 0.19519; from NAdamW 0, 0.2, -0.2.
        assert third.endswith("SGD cannot be compared (a run diverges); AdamW -0.2 ± 0.48 (~); NAdamW +0 ± 0.5 (~).")
        assert last.startswith("Tuned to an edge of the range, where a wider one might do better: ")

    def test_tables_and_figures_stand_a_method_that_diverges(self, scores, tmp_path, capsys):
        from experiments import compare_figures, compare_report, compare_scores
        from experiments.compare_sweep import Amount

        target, found = scores
        compare_report.show(_small(), Amount(2, 0, (1000,), (0, 1, 2), 2, 1), target, found)
        shown = capsys.readouterr().out
        assert "100 %" in shown
        assert "10 (3/3)" in shown
        compare_figures.learning_curves(tmp_path / "a.png", _small(), target, found)
        compare_figures.sensitivity(tmp_path / "b.png", _small(), target, found)
        compare_figures.best_and_median(tmp_path / "c.png", _small(), target, found)
        labels = {score.result.name: score for score in found}
        shares = compare_scores.profiles({name: score.steps for name, score in labels.items()}, np.array([1.0, 2.0]))
        compare_figures.performance_profiles(tmp_path / "d.png", "profiles", labels, np.array([1.0, 2.0]), shares)
        assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in "abcd")


def _record(seed=0, loss=(2.0, 1.0), name="nesterov"):
    return Record(name, {"learning_rate": 0.1}, seed, np.array(loss), np.array([0.1, 0.9]), 1.5, 0.8, math.nan)


class TestJournal:
    def test_a_run_comes_back_bit_for_bit(self, tmp_path):
        Journal(tmp_path, "digits", {"plan": 1}).add(_record(3, [1 / 3, np.nan]))
        found = Journal(tmp_path, "digits", {"plan": 1}).runs
        record = found[compare_journal.key("nesterov", {"learning_rate": 0.1}, 3)]
        assert record.loss[0] == 1 / 3
        assert math.isnan(record.loss[1])
        assert math.isnan(record.seconds)
        assert (record.test_loss, record.test_accuracy) == (1.5, 0.8)

    def test_another_configuration_finds_nothing(self, tmp_path):
        Journal(tmp_path, "digits", {"plan": 1}).add(_record())
        assert Journal(tmp_path, "digits", {"plan": 2}).runs == {}
        assert len(Journal(tmp_path, "digits", {"plan": 1}).runs) == 1
        assert Journal(tmp_path, "digits", {"plan": 1}, fresh=True).runs == {}

    @pytest.mark.parametrize("lost", [1, 5, 40])
    def test_a_torn_last_line_costs_one_run_and_no_later_one(self, tmp_path, lost):
        journal = Journal(tmp_path, "digits", {})
        for seed in range(3):
            journal.add(_record(seed))
        journal.path.write_bytes(journal.path.read_bytes()[:-lost])
        again = Journal(tmp_path, "digits", {})
        # Without its newline alone, the last line is whole.
        assert (len(again.runs), again.torn) == ((3, 0) if lost == 1 else (2, 1))
        again.add(_record(7))
        assert [record.seed for record in Journal(tmp_path, "digits", {}).runs.values()][-1] == 7

    def test_processes_that_share_a_journal_keep_each_others_lines_whole(self, tmp_path):
        code = (
            "import sys, pathlib, numpy as np\n"
            "from experiments.compare_journal import Journal, Record\n"
            "journal = Journal(pathlib.Path(sys.argv[1]), 'digits', {})\n"
            "for seed in range(60):\n"
            "    values = np.arange(3000) / 7 + seed\n"
            "    journal.add(Record(sys.argv[2], {}, seed, values, values, 1.0, 1.0, 1.0))\n"
        )
        processes = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT) for name in ("one", "two")
        ]
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
        journal = Journal(tmp_path, "digits", {})
        assert (len(journal.runs), journal.torn) == (120, 0)

    def test_a_folder_that_cannot_be_written_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(UsageError, match=r"--journal .* cannot be used"):
            Journal(tmp_path / "file", "digits", {})


class TestData:
    def test_a_set_without_its_folder_or_file_names_set_file_and_flag(self, tmp_path):
        with pytest.raises(UsageError, match=r"data set a9a needs its files; give --data DIR, .* a9a/a9a\.gz"):
            data.load("a9a")
        with pytest.raises(UsageError, match=r"fashion_mnist needs the file fashion_mnist/train-images.* --data"):
            data.load("fashion_mnist", tmp_path)

    @pytest.mark.parametrize("content", [gzip.compress(b"+1 3:1\n"), b"not gzip", gzip.compress(b"x" * 99)[:-9]])
    def test_another_file_than_the_published_one_is_refused(self, tmp_path, content):
        (tmp_path / "a9a").mkdir()
        for name in ("a9a.gz", "a9a.t.gz"):
            (tmp_path / "a9a" / name).write_bytes(content)
        with pytest.raises(UsageError, match=r"data set a9a .*a9a/a9a\.gz in --data"):
            data.load("a9a", tmp_path)

    def test_the_source_of_python_is_the_same_text_every_time(self):
        text = data.load("python_source")
        assert len(text) == data.TEXT_CAP
        assert text == data.load("python_source")
        assert text.isascii()
        assert "def " in text

    def test_digits_have_grey_values_in_the_unit_interval(self):
        images = data.load("digits")
        assert images.inputs.shape == (1797, 64)
        assert (images.inputs.min(), images.inputs.max()) == (0, 1)

    def test_a_fingerprint_sees_one_changed_value(self):
        images = data.load("digits")
        changed = images.inputs.copy()
        changed[5, 5] += 1
        assert data.fingerprint(images) != data.fingerprint(images._replace(inputs=changed))
        assert data.fingerprint(images) == data.fingerprint(data.load("digits"))

    @needs_shared
    def test_a9a_has_its_published_counts(self):
        split = data.load("a9a", SHARED)
        assert [part.inputs.shape for part in split] == [(32_561, 123), (16_281, 123)]
        assert [int(part.labels.sum()) for part in split] == [7_841, 3_846]
        assert [int(part.inputs.sum()) for part in split] == [451_592, 225_731]

    @needs_shared
    def test_fashion_mnist_has_its_published_mean_and_deviation(self, fashion_mnist):
        split = fashion_mnist
        assert [part.inputs.shape for part in split] == [(60_000, 784), (10_000, 784)]
        assert np.bincount(split.train.labels).tolist() == [6000] * 10
        values = split.train.inputs
        mean, square = values.mean(dtype=np.float64), (values**2).mean(dtype=np.float64)
        assert (round(float(mean), 4), round(float(square - mean**2) ** 0.5, 4)) == (0.2860, 0.3530)

    @needs_shared
    def test_tiny_shakespeare_has_its_published_alphabet(self):
        text = data.load("tinyshakespeare", SHARED)
        assert (len(text), len(set(text))) == (1_115_394, 65)


class TestCharTransformer:
    def build(self, **changes):
        from nagjax.models import CharTransformer

        sizes = {"context": 8, "width": 12, "layers": 2, "heads": 3, **changes}
        return CharTransformer(10, **sizes, rngs=nnx.Rngs(params=0))

    def test_a_logit_depends_on_the_past_alone_and_on_all_of_it(self):
        model = jax.jit(self.build())
        tokens = jnp.arange(8, dtype=jnp.int32)
        logits = model(tokens)
        for place in range(8):
            changed = np.abs(model(tokens.at[place].set(9)) - logits).max(axis=-1) > 0
            assert changed.tolist() == [other >= place for other in range(8)]

    def test_it_has_the_parameters_of_its_formula(self):
        width, vocabulary, context = 12, 10, 8
        block = 3 * width**2 + width**2 + 8 * width**2 + 4 * width + width + 4 * width
        expected = (vocabulary + context) * width + 2 * block + 2 * width + width * vocabulary
        assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.build(), nnx.Param))) == expected

    def test_batches_and_short_sequences_agree_with_single_ones(self):
        model = jax.jit(self.build())
        tokens = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
        # float32: sums in another order.
        np.testing.assert_allclose(model(tokens)[1], model(tokens[1]), rtol=1e-5, atol=1e-6)

    def test_bad_sizes_and_long_sequences_are_refused(self):
        with pytest.raises(ValueError, match=r"CharTransformer: width must be a multiple of heads = 5, got 12"):
            self.build(heads=5)
        with pytest.raises(ValueError, match=r"CharTransformer: layers must be an integer of at least 1, got 0"):
            self.build(layers=0)
        with pytest.raises(TypeError, match=r"CharTransformer: context must be an integer"):
            self.build(context=8.0)
        with pytest.raises(ValueError, match=r"CharTransformer: tokens must be at most 8 long"):
            self.build()(jnp.zeros(9, jnp.int32))


class TestRequests:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--budget", "0"], "--budget must be at least 1, got 0"),
            (["--seeds", "0"], "--seeds must be at least 1, got 0"),
            (["--seeds", "1001"], "--seeds must be at most 1000"),
            (["--threads", "0"], "--threads must be at least 1"),
            (["--optimizers", "nestrov"], "unknown optimizer 'nestrov'; did you mean nesterov"),
            (["--optimizers", "sgd", "sgd"], "names an optimizer twice"),
            (["--task", "digits", "digits"], "names a task twice"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, folder, capsys, arguments, message):
        try:
            code = command_line.main(["compare", *arguments])
        except SystemExit as end:
            code = end.code
        assert code == 2
        # tyro breaks lines inside a frame.
        shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert message in shown
        assert list(folder.iterdir()) == []

    def test_a_task_whose_data_is_absent_names_the_remedy(self, folder, capsys):
        assert command_line.main(["compare", "--task", "a9a"]) == 2
        assert "compare --task a9a: the data set a9a needs its files; give --data DIR" in capsys.readouterr().err
        assert command_line.main(["compare", "--task", "charlm", "--text", "tinyshakespeare"]) == 2
        assert "tinyshakespeare needs its files; give --data DIR" in capsys.readouterr().err
        assert list(folder.iterdir()) == []

    def test_the_reference_always_takes_part(self):
        assert compare.Config(optimizers=("sgd",)).names() == ("sgd", "nadamw")
        assert compare.Config(quick=True).names() == ("nesterov", "adamw", "nadamw")


SMALL = ("--quick", "--budget", "2", "--seeds", "2", "--optimizers", "sgd")
RUNS = 2 * (2 + 5 + 2 + 2)  # optimizers times tuning, rates, best and median setting


def _scores(folder):
    """results.json without times."""
    record = json.loads((folder / "results.json").read_text())["results"]
    for task in record["tasks"].values():
        for entry in task["optimizers"]:
            for name in ("step_seconds", "compile_seconds", "traces"):
                del entry[name]
    runs = {name: task.pop("runs") for name, task in record["tasks"].items()}
    return record, runs


def _run(*arguments):
    """The command in this process, in the default precision."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return command_line.main(["compare", *SMALL, *arguments])


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A sweep that a real Ctrl-C stopped, then the same command again: folder, exit code, stderr, what was left."""
    folder = tmp_path_factory.mktemp("sweep")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "0"}
    command = [sys.executable, "-m", "experiments", "compare", *SMALL]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while _lines(folder) < 4:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    left = [path.name for path in (folder / "results").iterdir()]
    kept = _lines(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert _run() == 0
    return folder, process.returncode, errors, left, kept


@pytest.fixture
def without_figures(monkeypatch):
    """For runs whose figures no test looks at."""
    from experiments import plots

    monkeypatch.setattr(plots, "save", lambda figure, path: plots.plt.close(figure))


def _lines(folder):
    files = list(folder.glob("results/compare_trials/digits-*.jsonl"))
    return files[0].read_text().count('"seed"') if files else 0


@pytest.mark.slow
class TestSweep:
    def test_ctrl_c_keeps_finished_runs_and_nothing_else(self, interrupted):
        _, code, errors, left, kept = interrupted
        assert code == 130
        assert errors.endswith("experiments: compare interrupted; earlier results are as they were.\n")
        assert left == ["compare_trials"]
        assert 4 <= kept < RUNS

    @pytest.mark.usefixtures("without_figures")
    def test_the_same_command_goes_on_and_ends_like_an_uninterrupted_one(self, interrupted, monkeypatch):
        folder, _, _, _, kept = interrupted
        monkeypatch.chdir(folder)
        resumed, runs = _scores(folder / "results" / "compare")
        new = runs["digits"]["new"]
        assert new + runs["digits"]["found"] == RUNS
        assert _lines(folder) == kept + new
        assert _run("--journal", "another", "--out", "uninterrupted") == 0
        uninterrupted, runs = _scores(folder / "uninterrupted")
        assert runs["digits"]["new"] == kept + new
        assert resumed == uninterrupted

    def test_its_results_hold_figures_and_what_the_runs_say(self, interrupted):
        found = interrupted[0] / "results" / "compare"
        for figure in ("curves_digits", "sensitivity_digits", "tuning_digits", "profiles"):
            assert (found / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        record, _ = _scores(found)
        entries = {entry["name"]: entry for entry in record["tasks"]["digits"]["optimizers"]}
        assert set(entries) == {"sgd", "nadamw"}
        assert record["tasks"]["digits"]["target"] == pytest.approx(np.median(entries["nadamw"]["final_loss"]))
        assert json.loads((found / "results.json").read_text())["seeds"] == [0, 1, 1000]
        for entry in entries.values():
            losses = [loss for _, loss in entry["tuning"]]
            assert entry["best"] == entry["tuning"][int(np.argmin(losses))][0]

    @pytest.mark.usefixtures("without_figures")
    def test_a_rerun_repeats_nothing_and_more_seeds_only_what_is_new(self, interrupted, monkeypatch, capsys):
        folder = interrupted[0]
        monkeypatch.chdir(folder)
        assert _run("--seeds", "3", "--out", "more") == 0
        shown = capsys.readouterr().out
        assert "Target: validation loss" in shown
        record, runs = _scores(folder / "more")
        # Where the best setting of two is also the median one, its runs are there already.
        same = sum(entry["best"] == entry["median"] for entry in record["tasks"]["digits"]["optimizers"])
        assert runs["digits"]["new"] == 4 - same
        assert _run("--seeds", "3", "--out", "more", "--overwrite") == 0
        again, runs = _scores(folder / "more")
        assert (again, runs["digits"]["new"]) == (record, 0)


@pytest.mark.usefixtures("single_precision", "standard_promotion")
class TestPrograms:
    def test_a_program_is_traced_once_for_all_settings_and_repeats_its_bits(self):
        from experiments import compare_tasks
        from experiments.compare_training import Program

        workload = compare_tasks.load("digits", "python_source", None, True)
        workload = dataclasses.replace(workload, plan=dataclasses.replace(workload.plan, steps=40))
        workload = dataclasses.replace(workload, order=lambda key: jax.random.randint(key, (40, 32), 0, 1149))
        program = Program(workload, compare_optimizers.builder("nesterov"), True)
        setting = {"learning_rate": 0.3, "momentum": 0.9, "weight_decay": 1e-4}
        first = program.run(setting, 0)
        other = program.run({**setting, "momentum": 0.5}, 1)
        for one, two in zip(first, program.run(setting, 0), strict=True):
            np.testing.assert_array_equal(one, two)
        assert program.traces == 1
        assert first.loss[0] != other.loss[0]

    def test_batches_of_an_epoch_hold_each_row_once(self):
        from experiments import compare_tasks
        from experiments.compare_training import Plan

        order = compare_tasks._epochs(jax.random.key(0), Plan(steps=9, batch=3, every=3), 13)
        assert order.shape == (9, 3)
        epochs = [order[:4].ravel().tolist(), order[4:8].ravel().tolist()]
        assert [len(set(epoch)) for epoch in epochs] == [12, 12]
        assert epochs[0] != epochs[1]

    @pytest.mark.parametrize(
        ("name", "classes"),
        [
            ("charlm", None),
            pytest.param("fashion_mnist", 10, marks=needs_shared),
            pytest.param("a9a", 2, marks=needs_shared),
        ],
    )
    def test_other_workloads_start_near_a_uniform_guess(self, name, classes, request, monkeypatch):
        from experiments import compare_tasks

        if name == "fashion_mnist":
            images = request.getfixturevalue("fashion_mnist")
            monkeypatch.setattr(data, "load", lambda *_: images)
        workload = compare_tasks.load(name, "python_source", SHARED, True)
        model = workload.model(nnx.Rngs(params=0, dropout=1))
        loss, accuracy = jax.jit(workload.objective, static_argnums=2)(model, workload.measured, True)
        classes = classes or len(set(data.load("python_source")))
        assert float(loss) == pytest.approx(math.log(classes), rel=0.25)
        assert 0 <= float(accuracy) <= 1
        batch = workload.take(workload.train, workload.order(jax.random.key(0))[0])
        assert jax.tree.leaves(batch)[0].shape[0] == workload.plan.batch
        assert workload.plan.steps % workload.plan.every == 0
