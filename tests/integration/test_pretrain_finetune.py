"""What `pretrain_finetune` claims: frozen layers, momentum at the switch, the queue, the rate, resuming."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import nagjax
from experiments import finetune_arrival, finetune_shift, finetune_text, pretrain_finetune
from experiments import finetune_optimizers as optimizers
from experiments.finetune_optimizers import GROUPS, SLOW
from experiments.finetune_place import Place, Workplace
from experiments.finetune_queue import BoundedQueue
from experiments.finetune_training import one_pass, stacked
from experiments.output import UsageError
from nagjax.training import Checkpoints

ROOT = Path(__file__).parents[2]
CHARACTERS = 30
UPDATES = 5


def tokens(length, seed=0):
    """A text that can be learned: each character depends on the one before."""
    steps = np.random.default_rng(seed).integers(1, 4, length)
    return (np.cumsum(steps) % CHARACTERS).astype(np.uint8)


def batches(count, seed=0):
    length = count * finetune_text.BATCH * finetune_text.CONTEXT + 1
    return finetune_text.Lanes(tokens(length, seed), finetune_text.BATCH, finetune_text.CONTEXT)


@pytest.fixture(scope="module")
def trainers():
    return {layers: finetune_text.trainer(CHARACTERS, layers) for layers in ("all", "frozen", "slow")}


def advanced(trainer, state, parts, rate=0.1, warm_up=1.0):
    """The state after the batches, one a call, so that each kind of layers is compiled once; and the losses."""
    losses = []
    for part in parts:
        state, new, _ = trainer.advance(state, stacked([part]), rate, warm_up)
        losses.extend(new)
    return state, losses


@pytest.fixture(scope="module")
def pretrained(trainers):
    """A state in motion; tests must not donate it."""
    trainer = trainers["all"]
    return advanced(trainer, trainer.init(), batches(UPDATES), warm_up=3.0)[0]


evaluate = nnx.jit(finetune_text.loss)


def switched(trainers, pretrained, layers, factor):
    factors = dict.fromkeys(GROUPS, factor)
    state = optimizers.switched(pretrained, trainers[layers].init(), layers, finetune_text.LABELS, factors)
    return jax.tree.map(jnp.copy, state)


def group(tree, name):
    """The leaves of one group."""
    flags = jax.tree.leaves(finetune_text.LABELS(tree))
    return [np.asarray(leaf) for leaf, flag in zip(jax.tree.leaves(tree), flags, strict=True) if flag == name]


def assert_same(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def assert_near(found, expected, tolerance=1e-6):
    """Leaves of float32, after a few operations."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=tolerance, atol=tolerance)


class TestLayers:
    def test_lower_layers_are_the_embeddings_and_the_first_block(self, trainers):
        flags = jax.tree_util.tree_flatten_with_path(finetune_text.LABELS(trainers["all"].init().params))[0]
        lower = {jax.tree_util.keystr(path) for path, flag in flags if flag == GROUPS[0]}
        upper = {jax.tree_util.keystr(path) for path, flag in flags} - lower
        assert {path.split("'")[1] for path in upper} == {"blocks", "norm", "logits"}
        assert all(path.startswith(("['tokens']", "['positions']", "['blocks'][0]")) for path in lower)
        assert not any(path.startswith("['blocks'][0]") for path in upper)

    def test_frozen_layers_keep_every_bit_and_the_others_all_move(self, trainers, pretrained):
        start = switched(trainers, pretrained, "frozen", 0.0)
        lower, upper = (group(start.params, name) for name in GROUPS)
        end, _ = advanced(trainers["frozen"], start, batches(UPDATES, 1))
        assert_same(group(end.params, GROUPS[0]), lower)
        assert all((one != other).any() for one, other in zip(group(end.params, GROUPS[1]), upper, strict=True))
        assert_same(group(nagjax.eval_params(end.params, end.opt_state), GROUPS[0]), lower)

    def test_slow_layers_take_a_tenth_of_the_step_and_the_others_the_same(self, trainers, pretrained):
        moves = {}
        for layers in ("all", "slow"):
            start = switched(trainers, pretrained, layers, 0.0)
            before = jax.tree.map(np.asarray, start.params)
            end, _ = advanced(trainers[layers], start, batches(1))
            moves[layers] = jax.tree.map(lambda one, other: np.asarray(one) - other, end.params, before)
        slow, full = (group(moves[layers], GROUPS[0]) for layers in ("slow", "all"))
        # Moves of parameters of size 1 are known to 1e-7.
        assert_near(slow, [SLOW * move for move in full], 3e-7)
        assert_same(*(group(moves[layers], GROUPS[1]) for layers in ("slow", "all")))
        assert max(np.abs(move).max() for move in full) > 1e-3


class TestSwitch:
    def test_momentum_kept_is_the_same_state_bit_for_bit(self, trainers, pretrained):
        state = switched(trainers, pretrained, "all", 1.0)
        assert_same(state.params, pretrained.params)
        assert_same(state.opt_state, pretrained.opt_state)
        assert int(state.step) == 0

    def test_momentum_kept_goes_on_as_if_nothing_had_happened(self, trainers, pretrained):
        starts = switched(trainers, pretrained, "all", 1.0), jax.tree.map(jnp.copy, pretrained)
        (one, losses), (other, expected) = (advanced(trainers["all"], start, batches(2, 1)) for start in starts)
        assert_same(one.params, other.params)
        assert losses == expected

    def test_momentum_reset_starts_at_the_answer_without_velocity(self, trainers, pretrained):
        state = switched(trainers, pretrained, "all", 0.0)
        assert_same(state.params, nagjax.eval_params(pretrained.params, pretrained.opt_state))
        assert_same(state.params, nagjax.eval_params(state.params, state.opt_state))
        assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(nagjax.velocity(state.opt_state)))
        assert any((group(state.params, name)[0] != group(pretrained.params, name)[0]).any() for name in GROUPS)

    def test_momentum_rescaled_leaves_the_answer_and_scales_velocity_and_distance(self, trainers, pretrained):
        state = switched(trainers, pretrained, "all", 0.3)
        answer = nagjax.eval_params(pretrained.params, pretrained.opt_state)
        assert_near(nagjax.eval_params(state.params, state.opt_state), answer)
        old, new = (nagjax.velocity(one.opt_state) for one in (pretrained, state))
        assert_near(new, jax.tree.map(lambda leaf: np.float32(0.3) * np.asarray(leaf), old))
        gap = jax.tree.map(lambda y, x: np.float32(0.3) * (np.asarray(y) - np.asarray(x)), pretrained.params, answer)
        found = jax.tree.map(lambda y, x: np.asarray(y) - np.asarray(x), state.params, answer)
        assert_near(found, gap)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gap)) > 1e-3

    def test_momentum_can_be_kept_in_the_layers_above_frozen_ones(self, trainers, pretrained):
        state = switched(trainers, pretrained, "frozen", 1.0)
        answer = nagjax.eval_params(pretrained.params, pretrained.opt_state)
        assert_same(group(state.params, GROUPS[0]), group(answer, GROUPS[0]))
        assert_same(group(state.params, GROUPS[1]), group(pretrained.params, GROUPS[1]))
        inner = [one.opt_state.inner_states[GROUPS[1]] for one in (state, pretrained)]
        assert_same(*inner)
        assert not jax.tree.leaves(state.opt_state.inner_states[GROUPS[0]])


class TestStream:
    def test_each_loss_is_that_of_the_model_before_the_update(self, trainers, pretrained):
        state = jax.tree.map(jnp.copy, pretrained)
        for batch in batches(2, 1):
            before = float(evaluate(trainers["all"].model(state, at="params"), batch))
            answer = float(evaluate(trainers["all"].model(state), batch))
            state, (loss,) = advanced(trainers["all"], state, [batch])
            after = float(evaluate(trainers["all"].model(state, at="params"), batch))
            assert loss == pytest.approx(before, rel=1e-5)
            assert min(abs(after - before), abs(answer - before)) > 1e-3 * before

    def test_padding_of_weight_zero_does_not_change_the_loss(self, trainers, pretrained):
        model = trainers["all"].model(pretrained)
        inputs, targets, weights = next(batches(1))
        weights[3:] = 0
        others = inputs.copy(), targets.copy(), weights
        others[0][3:] = others[1][3:] = 0
        assert not np.array_equal(others[1], targets)
        assert evaluate(model, others) == evaluate(model, (inputs, targets, weights))
        assert evaluate(model, others) != evaluate(model, (inputs, targets, np.ones_like(weights)))

    def test_lanes_predict_each_character_but_the_first_once(self):
        text = np.arange(3 * 4 * 5 + 1).astype(np.uint8)
        found = list(finetune_text.Lanes(text, 3, 5))
        assert len(found) == 4
        assert sorted(np.concatenate([targets.ravel() for _, targets, _ in found])) == list(range(1, 61))
        for inputs, targets, weights in found:
            assert inputs.shape == targets.shape == weights.shape == (3, 5)
            np.testing.assert_array_equal(targets, inputs + 1)
            assert (weights == 1).all()
        # Lane by lane the text is read in its order.
        assert [int(inputs[1, 0]) for inputs, _, _ in found] == [20, 25, 30, 35]

    def test_lanes_go_on_where_their_state_was_taken(self):
        one, other = batches(4), batches(4)
        for _ in range(2):
            next(one)
        other.set_state(json.loads(json.dumps(one.get_state())))
        for found, expected in zip(other, one, strict=True):
            assert_same(found, expected)

    def test_a_segment_is_of_the_text_and_long_enough_for_its_updates(self):
        text = tokens(5000)
        found = finetune_text.segment(text, 2, seed=1)
        assert len(found) == 2 * finetune_text.BATCH * finetune_text.CONTEXT + 1
        assert found.tobytes() in text.tobytes()
        assert len(list(finetune_text.Lanes(found, finetune_text.BATCH, finetune_text.CONTEXT))) == 2
        assert finetune_text.segment(text, 2, seed=2).tobytes() != found.tobytes()

    def test_updates_are_those_of_whole_calls_and_of_the_text_at_most(self):
        size = finetune_text.BATCH * finetune_text.CONTEXT * finetune_text.CALL
        text = tokens(3 * size + 1)
        wanted = (1, size, 3 * size - 1, 10 * size)
        found = [finetune_text.updates_of(text, characters) for characters in wanted]
        assert found == [count * finetune_text.CALL for count in (1, 1, 2, 3)]
        with pytest.raises(UsageError, match="needs texts of more than"):
            finetune_text.updates_of(text[:size], 1)

    def test_texts_share_one_alphabet_and_the_last_tenth_is_held_out(self):
        first, second = "ab" * 500, "bc" * 500
        texts = finetune_text.encode(first, second)
        assert texts.characters == 3
        assert set(texts.first) == {0, 1}
        assert set(texts.second) == {1, 2}
        assert len(texts.second) == 900
        assert texts.held_out[2].sum() == 99  # all of the last 100 but the first


class TestResume:
    def test_a_pass_that_broke_off_goes_on_to_the_same_numbers(self, trainers, tmp_path):
        trainer = trainers["all"]
        options = {"rate": 0.1, "warm_up": 3.0, "call": 1, "every": 2}

        def run(name, tick):
            return one_pass(trainer, trainer.init(), batches(6), 6, tmp_path / name, tick=tick, **options)

        def break_off():
            if next(calls) == 4:
                raise KeyboardInterrupt

        whole = run("whole", int)
        calls = itertools.count()
        with pytest.raises(KeyboardInterrupt):
            run("part", break_off)
        calls = itertools.count()
        rest = run("part", calls.__next__)
        assert next(calls) == 2  # four updates were in the checkpoint
        np.testing.assert_array_equal(rest.losses, whole.losses)
        assert_same(rest.state, whole.state)
        assert_same(run("part", int).state, whole.state)

    def test_a_row_is_made_once_and_found_by_the_same_definition_only(self, tmp_path):
        made = itertools.count()

        def make():
            return {"number": next(made), "bad": float("nan")}

        place = Place(tmp_path, "text", {"rate": 0.1})
        assert place.row("one", make) == {"number": 0, "bad": None}
        (place.folder / "two.partial").write_text('{"torn')
        again = Place(tmp_path, "text", {"rate": 0.1})
        assert again.row("one", make)["number"] == 0
        assert again.row("two", make)["number"] == 1
        assert again.found == 1
        assert Place(tmp_path, "text", {"rate": 0.2}).row("one", make)["number"] == 2

    def test_one_run_works_in_a_folder_at_a_time_and_removes_what_is_its_own(self, tmp_path):
        folder = tmp_path / "work"
        with Workplace(folder) as work:
            with pytest.raises(UsageError, match="another run works in --work"):
                Workplace(folder)
            work.place("text", {}).row("one", dict)
            (folder / "other").mkdir()
            work.done()
        assert [path.name for path in folder.iterdir()] == ["other"]
        (folder / "other").rmdir()
        with Workplace(folder) as work:
            work.done()
        assert not folder.exists()

    @pytest.mark.slow
    def test_a_killed_run_goes_on_to_the_numbers_of_one_that_was_not(self, tmp_path):
        def command(name):
            options = f"--parts text --seeds 1 --trials 1 --characters 300000 --tuned-characters 13000 --out {name}"
            arguments = [*options.split(), "--work", f"{name}-work", "--checkpoint-every", "50"]
            return [sys.executable, "-m", "experiments", "pretrain_finetune", *arguments]

        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        for name in ("XLA_FLAGS", "JAX_ENABLE_X64"):
            environment.pop(name, None)
        start = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL}
        killed = subprocess.Popen(command("killed"), **start)
        deadline = time.monotonic() + 120
        while not (saved := [path for path in tmp_path.rglob("*-step-*") if re.fullmatch(r"\d+-step-\d+", path.name)]):
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert not (tmp_path / "killed").exists()
        with Checkpoints(saved[0].parent) as checkpoints:
            assert 0 < checkpoints.latest() < 575
        for name in ("killed", "whole"):
            subprocess.run(command(name), check=True, timeout=240, **start)
        killed, whole = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("killed", "whole"))
        for record in (killed, whole):
            assert len(record["results"]["text"]["pretraining"][0]["stream"]) == 575
        assert killed["results"] == whole["results"]
        assert not list(tmp_path.glob("*-work"))


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now = 10.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class TestQueue:
    def test_dropping_the_oldest_keeps_the_newest(self):
        queue = BoundedQueue(3, "drop oldest", FakeTime())
        assert [queue.put(sample) for sample in range(8)] == [True] * 8
        assert [arrival.sample for arrival in queue.take(2)] == [5, 6]
        queue.put(8)
        queue.close()
        assert [arrival.sample for arrival in queue.take(9)] == [7, 8]
        assert queue.take(9) == []
        counts = queue.counts
        assert (counts.offered, counts.accepted, counts.evicted, counts.refused) == (9, 9, 5, 0)
        assert (counts.taken, counts.dropped, counts.longest, counts.blocked) == (4, 5, 3, 0)

    def test_dropping_the_newest_keeps_the_oldest(self):
        queue = BoundedQueue(3, "drop newest", FakeTime())
        assert [queue.put(sample) for sample in range(8)] == [True] * 3 + [False] * 5
        assert [arrival.sample for arrival in queue.take(2)] == [0, 1]
        assert queue.put(8)
        assert [arrival.sample for arrival in queue.take(9)] == [2, 8]
        counts = queue.counts
        assert (counts.offered, counts.accepted, counts.evicted, counts.refused) == (9, 4, 0, 5)
        assert (counts.taken, counts.dropped, counts.longest) == (4, 5, 3)

    def test_slowing_down_loses_nothing_and_counts_the_time(self):
        clock = FakeTime()
        queue = BoundedQueue(2, "slow down", clock)

        def produce():
            for sample in range(4):
                queue.put(sample)
            queue.close()

        producer = threading.Thread(target=produce)
        producer.start()
        queue.wait_until_blocked()  # by sample 2
        clock.now += 1.5
        found = queue.take(1)
        queue.wait_until_blocked()  # by sample 3
        clock.now += 0.25
        while taken := queue.take(1):
            found += taken
        producer.join()
        assert [arrival.sample for arrival in found] == [0, 1, 2, 3]
        assert [arrival.time for arrival in found] == [10.0, 10.0, 10.0, 11.5]
        assert queue.counts.blocked == 1.75
        assert (queue.counts.offered, queue.counts.taken, queue.counts.dropped, queue.counts.longest) == (4, 4, 0, 2)

    def test_closing_lets_a_producer_go_that_is_slowed_down(self):
        queue = BoundedQueue(1, "slow down", FakeTime())
        queue.put(0)
        answers = []
        producer = threading.Thread(target=lambda: answers.append(queue.put(1)))
        producer.start()
        queue.wait_until_blocked()
        queue.close()
        producer.join()
        assert answers == [False]
        assert queue.counts.refused == 1

    def test_samples_come_at_the_times_that_the_rate_says(self):
        clock = FakeTime()
        queue = BoundedQueue(100, "drop newest", clock)
        finetune_arrival.produce(queue, itertools.count(), 8.0, 2.0, clock.sleep)
        found = queue.take(100)
        assert [arrival.sample for arrival in found] == list(range(16))
        np.testing.assert_allclose([arrival.time for arrival in found], 10 + np.arange(16) / 8, rtol=1e-12)

    def test_a_producer_that_looks_up_late_offers_all_that_came_meanwhile(self):
        clock = FakeTime()
        queue = BoundedQueue(5, "drop oldest", clock)
        late = itertools.chain([0.6], itertools.repeat(1e-3))
        finetune_arrival.produce(queue, itertools.count(), 10.0, 1.0, lambda _: clock.sleep(next(late)))
        assert [arrival.sample for arrival in queue.take(9)] == [5, 6, 7, 8, 9]
        assert queue.counts.evicted == 5

    def test_a_queue_has_room(self):
        with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
            BoundedQueue(0, "drop oldest")


def reference_factors(norms, fast, slow, limit):
    """The docstring's recursion, in NumPy."""
    present = usual = 0.0
    for k, norm in enumerate(norms, 1):
        present = fast * present + (1 - fast) * norm**2
        usual = slow * usual + (1 - slow) * norm**2
        yield float(np.clip(np.sqrt(usual / (1 - slow**k) / (present / (1 - fast**k))), 1 / limit, limit))


def factors(gradients, **options):
    tx = optimizers.adaptive_rate(**options)
    state = tx.init(gradients[0])
    for gradient in gradients:
        updates, state = tx.update(gradient, state)
        yield updates, float(state.factor)


class TestRate:
    def test_the_factors_are_those_of_the_recursion(self):
        random = np.random.default_rng(0)
        scale = np.repeat([1.0, 7.0, 0.05, 1.3], 10)
        gradients = [{"a": s * random.normal(size=3), "b": s * random.normal(size=(2, 2))} for s in scale]
        norms = [np.sqrt((g["a"] ** 2).sum() + (g["b"] ** 2).sum()) for g in gradients]
        for options in ({"fast": 0.37, "slow": 0.93, "limit": 3.1}, {"fast": 0.0, "slow": 0.8, "limit": 50.0}):
            found = list(factors([jax.tree.map(jnp.asarray, g) for g in gradients], **options))
            expected = list(reference_factors(norms, **options))
            np.testing.assert_allclose([factor for _, factor in found], expected, rtol=1e-12)
            for (updates, _), gradient, factor in zip(found, gradients, expected, strict=True):
                np.testing.assert_allclose(updates["a"], factor * gradient["a"], rtol=1e-12)
                np.testing.assert_allclose(updates["b"], factor * gradient["b"], rtol=1e-12)

    def test_the_rate_falls_where_the_gradient_is_large_and_grows_where_it_is_small(self):
        for size, low, high in ((10.0, 0.25, 0.5), (0.1, 3.0, 4.0), (1.0, 1.0, 1.0)):
            gradients = [jnp.ones(4)] * 50 + [size * jnp.ones(4)] * 5
            found = [factor for _, factor in factors(gradients)]
            np.testing.assert_allclose(found[:50], 1, rtol=1e-12)
            assert low - 1e-12 <= found[-1] <= high + 1e-12

    def test_a_gradient_of_zero_and_one_of_16_bits_stay_what_they_are(self):
        (updates, factor), *_ = factors([jnp.zeros(3)])
        assert factor == 1
        assert not updates.any()
        (updates, _), *_ = factors([jnp.ones(3, jnp.bfloat16)])
        assert updates.dtype == jnp.bfloat16

    def test_what_is_watched_is_the_factor_of_the_update(self):
        rivals = {name: make() for name, (_, make) in finetune_shift.RIVALS.items()}
        gradient = {"w": jnp.full(3, 2.0)}
        for name, tx in rivals.items():
            chain = optax.chain(tx, nagjax.nesterov(0.1))
            _, state = chain.update(gradient, chain.init(gradient))
            _, state = chain.update({"w": jnp.full(3, 200.0)}, state)
            assert float(finetune_shift.factor_of(state)) == (
                pytest.approx(next(itertools.islice(reference_factors([12**0.5, 120000**0.5], 0.5, 0.99, 4.0), 1, 2)))
                if name == "adaptive"
                else 1
            )


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"parts": ()}, "--parts needs at least one name"),
            ({"seeds": 0}, "--seeds must be at least 1, got 0"),
            ({"seeds": 1001}, "--seeds and --image-seeds must be at most 1000"),
            ({"tuned_characters": -1}, "--tuned-characters must be at least 1, got -1"),
            ({"trials": 4}, "--trials must be at most 3, got 4"),
            ({"arrival_seconds": 0.0}, "--arrival-seconds must be more than 0"),
            ({"image_examples": (10, 0)}, "--image-examples needs numbers of at least 1"),
        ],
    )
    def test_values_that_make_no_sense_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            pretrain_finetune.Config(**options)

    def test_the_defaults_follow_the_folder_of_data(self):
        bundled = pretrain_finetune.Config().completed()
        assert (bundled.first_text, bundled.second_text) == ("python_source", "python_topics")
        given = pretrain_finetune.Config(data=Path("data"), quick=True, first_text="python_source").completed()
        assert (given.first_text, given.second_text) == ("python_source", "pride_and_prejudice")
        assert given.image_examples == (1000,)
        assert given.seeds == 2
