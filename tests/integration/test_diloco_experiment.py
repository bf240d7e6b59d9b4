"""What the experiment `diloco` is made of: its programs against loops by hand, bytes, tuning, tables, one small run."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import __main__ as command_line
from experiments import data, diloco, diloco_figures, diloco_methods, diloco_report, diloco_runs, diloco_training
from experiments.diloco_methods import BATCH, METHODS, PARALLEL, RATES, Grid, sent_bytes
from experiments.diloco_runs import TUNING_SEED, Amount, Cell, Runs
from experiments.diloco_training import CONTEXT, DRAWN, WORKERS, Losses, Plan, Program, Setting
from experiments.finetune_place import Place

SEED, RATE, STEPS = 3, 0.3, 20
AMOUNT = Amount((1, 2, 4, 8), (1, 10, 30, 100), 500, (1, 8), 30, 5, 200)


@pytest.fixture(scope="module")
def text():
    return diloco_training.encode(data.load("python_topics")[:60_000])


@pytest.fixture
def ordinary():
    """The settings of a run from the command line."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def trained(text):
    """Gives the parameters of all workers of a plan, stacked, by the experiment's own code."""
    compiled = {}

    def run(plan, setting, period):
        if plan not in compiled:
            worker = jax.vmap(Program(plan, text, optax.sgd).train, in_axes=(0, *[None] * 4), axis_name=WORKERS)
            # Compiling takes nearly all of the time.
            compiled[plan] = jax.jit(worker, compiler_options={"xla_backend_optimization_level": 0})
        setting = Setting(*(jnp.asarray(value) for value in setting))
        counts = jnp.asarray(period, jnp.int32), jnp.asarray(STEPS, jnp.int32)
        return compiled[plan](jnp.arange(plan.workers), setting, *counts, text.train)[0]

    return run


def windows_of(text, seed, step):
    """The windows of one step for all workers, as `Program` promises them: by seed and step only."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step // DRAWN)
    places = jax.random.randint(key, (DRAWN, BATCH), 0, len(text.train) - CONTEXT)[step % DRAWN]
    return np.stack([text.train[place : place + CONTEXT + 1] for place in np.asarray(places)]).astype(np.int32)


@pytest.mark.usefixtures("standard_promotion")
class TestPrograms:
    """In float64."""

    def test_averaging_after_every_step_of_sgd_is_data_parallel(self, text, trained):
        one = trained(Plan(PARALLEL, 1, BATCH), Setting(SEED, RATE), 1)
        several = trained(Plan(PARALLEL, 4, BATCH), Setting(SEED, RATE), 1)
        averaged = trained(Plan("averaging", 4, BATCH), Setting(SEED, RATE, 1.0), 1)
        start = diloco_training.initial(jax.random.fold_in(jax.random.key(SEED), 0), text.characters)
        for name, leaf in one.items():
            assert leaf.dtype == np.float64
            assert float(abs(leaf[0] - start[name]).max()) > 1e-3
            for other in (*several[name], *averaged[name]):
                np.testing.assert_allclose(other, leaf[0], rtol=0, atol=1e-14)

    def test_with_a_period_above_one_it_is_not(self, trained):
        averaged = trained(Plan("averaging", 4, BATCH), Setting(SEED, RATE, 1.0), 10)
        one = trained(Plan(PARALLEL, 1, BATCH), Setting(SEED, RATE), 1)
        assert float(abs(averaged["hidden"][0] - one["hidden"][0]).max()) > 1e-6

    def test_nesterov_outside_is_the_loop_of_the_paper(self, text, trained):
        period, workers, outer_rate, momentum = 4, 2, 0.7, 0.6
        gradient = jax.jit(jax.grad(diloco_training.loss))
        slow = diloco_training.initial(jax.random.fold_in(jax.random.key(SEED), 0), text.characters)
        slow = {name: np.array(leaf) for name, leaf in slow.items()}
        velocity = {name: np.zeros_like(leaf) for name, leaf in slow.items()}
        fast = [dict(slow) for _ in range(workers)]
        for step in range(STEPS):
            rate = float(diloco_training.rate_at(jnp.asarray(step), RATE, STEPS))
            for worker, windows in enumerate(np.split(windows_of(text, SEED, step), workers)):
                slope = gradient(fast[worker], windows)
                fast[worker] = {name: leaf - rate * np.array(slope[name]) for name, leaf in fast[worker].items()}
            if (step + 1) % period == 0:
                for name in slow:
                    displacement = np.mean([slow[name] - each[name] for each in fast], axis=0)
                    velocity[name] = momentum * velocity[name] + displacement
                    slow[name] = slow[name] - outer_rate * (displacement + momentum * velocity[name])
                fast = [dict(slow) for _ in range(workers)]
        params = trained(Plan("nesterov", workers, BATCH), Setting(SEED, RATE, outer_rate, momentum), period)
        for name, leaf in params.items():
            for each in leaf:
                np.testing.assert_allclose(each, slow[name], rtol=0, atol=1e-12)

    def test_the_outer_steps_are_those_of_their_names(self):
        displacements = np.random.default_rng(0).normal(size=(12, 3))
        rate, momentum = 0.7, 0.8
        for method in METHODS:
            optimizer = METHODS[method].build(rate, momentum)
            params, v, second = np.ones(3), np.zeros(3), np.zeros(3)
            found = jnp.asarray(params)
            state = optimizer.init(found)
            for count, d in enumerate(displacements, 1):
                updates, state = optimizer.update(jnp.asarray(d), state, found)
                found = optax.apply_updates(found, updates)
                if method == "averaging":
                    params = params - rate * d
                elif method == "adam":
                    v, second = momentum * v + (1 - momentum) * d, 0.95 * second + 0.05 * d**2
                    corrected = second / (1 - 0.95**count)
                    params = params - rate * v / (1 - momentum**count) / (np.sqrt(corrected) + 1e-8)
                else:
                    v = momentum * v + d
                    params = params - rate * (v if method == "heavy_ball" else d + momentum * v)
                np.testing.assert_allclose(found, params, rtol=0, atol=1e-12)

    def test_the_loss_is_the_cross_entropy_of_the_last_character(self, text):
        params = diloco_training.initial(jax.random.key(1), text.characters)
        windows = text.held_out[0, :7]
        p = {name: np.array(leaf) for name, leaf in params.items()}
        hidden = np.tanh(p["embed"][windows[:, :-1]].reshape(7, -1) @ p["hidden"] + p["hidden_bias"])
        logits = hidden @ p["logits"] + p["logits_bias"]
        expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(7), windows[:, -1]])
        assert float(diloco_training.loss(params, jnp.asarray(windows))) == pytest.approx(expected, rel=1e-12)
        assert diloco_training.size(text.characters) == sum(leaf.size for leaf in p.values())

    def test_the_rate_rises_linearly_and_falls_as_a_cosine_to_its_twentieth(self):
        rates = np.array(diloco_training.rate_at(jnp.arange(1000), 2.0, 1000))
        gone = np.arange(1, 1001) / 1000
        np.testing.assert_allclose(rates, 2 * np.minimum(gone / 0.05, 1) * (0.525 + 0.475 * np.cos(np.pi * gone)))
        assert rates[-1] == pytest.approx(0.1)


@pytest.mark.usefixtures("ordinary")
def test_one_program_is_traced_once_for_all_periods_lengths_and_settings(text):
    program = Program(Plan("nesterov", 2, 4, lanes=2), text)
    settings = [Setting(0, 0.01, 0.7, 0.9), Setting(1, 0.01, 0.7, 0.5), Setting(1, 0.02, 0.7, 0.5)]
    three = program.run(settings, 5, 20)
    assert program.run(settings[1:2], 5, 20) == three[1:2]
    assert program.run(settings[:1], 10, 20) != three[:1]
    assert program.traces == 1
    # An untrained model knows no more than the number of characters.
    assert all(2 < loss < 2 * math.log(text.characters) for found in three for loss in found)


def test_the_held_out_halves_and_the_training_text_share_no_place():
    text = diloco_training.encode("".join(chr(33 + index % 90) for index in range(90 * 40)))
    assert text.characters == 90
    assert len(text.train) == 3240
    assert text.held_out.shape == (2, 172, CONTEXT + 1)
    # The text counts, so a window's first character gives its place modulo 90, and a half has 180 characters.
    assert (text.held_out[:, 0, 0] == [0, 0]).all()
    np.testing.assert_array_equal(np.diff(text.held_out, axis=2) % 90, 1)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_the_bytes_are_those_of_a_ring_that_passes_one_part_on_in_each_turn(workers):
    parts = np.random.default_rng(0).normal(size=(workers, workers, 6))  # worker, part, elements
    total, sent = parts.sum(axis=0), np.zeros(workers)
    held = parts.copy()
    for turn in range(2 * (workers - 1)):  # sums travel in the first half, results in the second
        before = held.copy()
        for worker in range(workers):
            part = (worker - turn) % workers if turn < workers - 1 else (worker - turn + workers) % workers
            right = (worker + 1) % workers
            held[right, part] = before[worker, part] + (before[right, part] if turn < workers - 1 else 0)
            sent[worker] += 4 * parts.shape[2]
    np.testing.assert_allclose(held, np.broadcast_to(total, held.shape), atol=1e-12)
    np.testing.assert_array_equal(sent, sent_bytes(parts[0].size, workers, 1))
    assert sent_bytes(1000, workers, 7) == 7 * sent_bytes(1000, workers, 1)


class TestAmount:
    def test_every_run_but_those_with_few_has_200_outer_steps_of_whole_periods(self):
        cells = [cell for task in AMOUNT.tasks() if task.plan.method != PARALLEL for cell in task.cells]
        assert {cell.period for cell in cells} == {1, 10, 30, 100, 500}
        for cell in cells:
            assert cell.steps % cell.period == 0
            assert (cell.steps // cell.period >= 200) == (cell.part != "few")

    def test_data_parallel_sees_as_many_characters(self):
        tokens = {cell.part: set() for task in AMOUNT.tasks() for cell in task.cells}
        for task in AMOUNT.tasks():
            for cell in task.cells:
                tokens[cell.part].add(task.plan.batch // task.plan.share * cell.steps)
        assert tokens["periods"] == tokens["few"] == tokens["parallel"] == {AMOUNT.steps * BATCH}
        assert tokens["long"] == {AMOUNT.long_steps * BATCH}
        assert tokens["alone"] == {AMOUNT.steps * BATCH // 8}

    def test_every_number_of_workers_meets_every_period(self):
        cells = [(task.plan.workers, cell.period) for task in AMOUNT.tasks() if task.plan.method == "nesterov"
                 for cell in task.cells if cell.part == "periods"]  # fmt: skip
        assert sorted(cells) == [(workers, period) for workers in AMOUNT.workers for period in AMOUNT.periods]

    def test_all_methods_have_as_many_trials(self):
        for method in (PARALLEL, *METHODS):
            rates = [rate for grid in diloco_methods.grids(method, BATCH) for rate in grid.rates()]
            assert len(rates) == 2 * RATES
        plain, large = (diloco_methods.grids(PARALLEL, batch) for batch in (BATCH, 4 * BATCH))
        np.testing.assert_allclose(
            np.array([grid.rates() for grid in plain]).T.ravel(), 1e-3 * 2 ** (np.arange(10) / 2)
        )
        assert large[0].rates() == [2 * rate for rate in plain[0].rates()]


class Fake:
    """A program whose losses are known: lowest at one rate, and a little higher with another seed."""

    plan = Plan("nesterov", 2, BATCH)

    def __init__(self):
        self.calls = 0

    def run(self, settings, period, steps):
        self.calls += 1
        return [
            Losses(math.nan, 9.0) if one.rate > 0.003
            else Losses(2 + abs(math.log2(one.rate / 0.002)) + one.outer_momentum, 2.5 + 0.1 * one.seed)
            for one in settings
        ]  # fmt: skip


class TestTuning:
    def runs(self, tmp_path, program=None):
        return Runs(program or Fake(), 3, Place(tmp_path, "runs", {}), lambda: None)

    def test_the_lowest_loss_of_the_other_seed_decides_and_a_lost_run_never_does(self, tmp_path):
        (row,) = self.runs(tmp_path).cell(Cell("periods", 10, 100))
        assert (row["outer_momentum"], row["rate"], row["best"], row["at_edge"]) == (0.5, 0.002, True, False)
        assert row["losses"] == [2.5, 2.6, 2.7]
        assert row["trials"] == 10
        assert row["tuning"]["0.5"]["0.001"] == 3.5
        assert TUNING_SEED >= diloco.MOST_SEEDS

    def test_all_grids_are_reported_where_asked_and_only_the_winner_is_tried_again(self, tmp_path):
        runs = self.runs(tmp_path)
        rows = runs.cell(Cell("periods", 10, 100, every=True))
        assert [(row["outer_momentum"], row["best"]) for row in rows] == [(0.9, False), (0.5, True)]
        (again,) = runs.cell(Cell("long", 50, 500, again=True))
        assert (again["outer_momentum"], again["trials"]) == (0.5, 5)

    def test_a_run_that_goes_on_makes_nothing_twice(self, tmp_path):
        first, second = Fake(), Fake()
        rows = self.runs(tmp_path, first).cell(Cell("periods", 10, 100))
        assert first.calls == 3
        assert self.runs(tmp_path, second).cell(Cell("periods", 10, 100)) == rows
        assert second.calls == 0

    def test_a_rate_at_the_edge_is_marked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(diloco_runs, "grids", lambda method, batch: (Grid(1, 0, 2e-3), Grid(1, 0, 3e-3)))
        (row,) = self.runs(tmp_path).cell(Cell("periods", 10, 100))
        assert row["at_edge"]


@pytest.fixture(scope="module")
def study():
    """Rows as of a whole run, whose losses follow a formula."""
    rows = []
    for task in AMOUNT.tasks():
        plan = task.plan
        for cell in task.cells:
            grids = diloco_methods.grids(plan.method, plan.batch)
            for grid in grids if cell.every else grids[1:]:
                worse = 0.0 if plan.method == PARALLEL else 0.01 * math.log2(2 * plan.workers)
                worse += 0.05 * (["nesterov", "heavy_ball", "averaging", "adam"].index(plan.method) if worse else 0)
                worse += 0.02 * math.log10(plan.batch // plan.share / BATCH) ** 2
                spread = [0.003 * seed * (1 if worse else -1) for seed in range(5)]
                rows.append(
                    {"part": cell.part, "method": plan.method, "workers": plan.workers,
                     "period": 1 if plan.method == PARALLEL else cell.period,
                     "batch": plan.batch // plan.share, "steps": cell.steps, "outer_rate": grid.outer_rate,
                     "outer_momentum": grid.outer_momentum, "best": grid == grids[1], "rate": 0.004,
                     "at_edge": False, "trials": 10, "losses": [2 * (1 + worse) + each for each in spread]}
                )  # fmt: skip
    return diloco_report.Study(rows, AMOUNT, 7325, "a text")


class TestTables:
    def test_the_excess_is_in_percent_of_data_parallel_of_the_same_seed(self, study):
        (row,) = study.chosen(part="periods", method="nesterov", workers=4, period=10)
        expected = [100 * ((2 * 1.03 + 0.003 * seed) / (2 - 0.003 * seed) - 1) for seed in range(5)]
        np.testing.assert_allclose(study.excess(row), expected, rtol=1e-12)
        (long,) = study.chosen(part="long", method="nesterov", workers=8)
        assert study.reference(long)["steps"] == 100_000
        for row in study.rows:
            if row["part"] in ("periods", "few", "parallel"):
                assert study.reference(row)["steps"] == AMOUNT.steps

    def test_what_is_sent_counts_the_synchronizations(self, study):
        (row,) = study.chosen(part="periods", method="nesterov", workers=8, period=100)
        assert study.sent(row) == 210 * 4 * 7325 * 14 / 8
        (parallel,) = study.chosen(part="parallel", batch=BATCH)
        assert study.sent(parallel) == 100 * study.sent(row)
        (large,) = study.chosen(part="parallel", batch=100 * BATCH)
        assert study.sent(large) == study.sent(row)
        assert all(study.sent(row) == 0 for row in study.chosen(part="periods", workers=1))
        (long,) = study.chosen(part="long", method=PARALLEL)
        assert study.sent(long) == 100_000 * 4 * 7325 * 14 / 8

    def test_the_findings_say_the_order(self, study):
        found = "\n".join(study.findings())
        assert "H = 10, percent above data parallel: M = 1:" in found
        assert "(grows with M)" in found
        assert "does not grow" not in found
        # Of 2 (1 + 0.05) over 2 (1 + 0), for each seed in percent of its own reference.
        assert "heavy ball +5.02 ± 0.01 (clear); Adam" in found
        assert "(clear)" in found
        few = dataclasses.replace(study, amount=dataclasses.replace(AMOUNT, seeds=2))
        assert few.findings() == ["2 seeds are too few to compare."]

    def test_tables_csv_and_figure_are_made_from_all_rows(self, study, capsys, tmp_path):
        study.show()
        shown = capsys.readouterr().out
        assert "8 workers, H = 30, 700 outer steps" in shown
        assert "8 workers, H = 500, 42 outer steps" in shown
        assert max(map(len, shown.splitlines())) <= diloco_report.WIDTH
        diloco_report.write_csv(tmp_path / "diloco.csv", study)
        lines = (tmp_path / "diloco.csv").read_text().splitlines()
        assert len(lines) == 1 + len(study.rows)
        diloco_figures.draw(tmp_path / "diloco.png", study)
        assert (tmp_path / "diloco.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": (1, 3)}, "powers of 2 and at most 32, got 3"),
        ({"long_workers": (64,)}, "--long-workers must be powers of 2"),
        ({"periods": ()}, "--periods needs at least one number"),
        ({"periods": (0, 30)}, "--periods must be at least 1"),
        ({"long_period": 100}, "--long-period must be 0 or above"),
        ({"compared_period": 20}, "--compared-period must be one of"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"seeds": 1001}, "--seeds must be at most"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        diloco.Config(**arguments)


@pytest.mark.usefixtures("ordinary")
def test_a_small_run_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diloco_runs, "METHODS", {name: METHODS[name] for name in ("nesterov",)})
    options = "--text python_topics --workers 2 --periods 2 --compared-period 2 --long-period 0 --outer-steps 5"
    # In one thread: JAX's settings of this test hold in its own.
    assert command_line.main(["diloco", *options.split(), "--seeds", "3", "--jobs", "1"]) == 0
    assert "Nesterov outside over AdamW inside" in capsys.readouterr().out
    found = tmp_path / "results" / "diloco"
    assert {path.name for path in found.iterdir()} == {"diloco.csv", "diloco.png", "metrics.jsonl", "results.json"}
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["diloco"]
    record = json.loads((found / "results.json").read_text())
    assert record["seeds"] == [0, 1, 2]
    rows = record["results"]["rows"]
    assert sorted((row["part"], row["method"], row["period"], row["steps"]) for row in rows) == [
        ("alone", PARALLEL, 1, 10),
        ("parallel", PARALLEL, 1, 10),
        *[("periods", "nesterov", 2, 10)] * 2,
    ]
    for row in rows:
        assert len(set(row["losses"])) == 3
        assert 2 < min(row["losses"]) < 6
