"""The loop: the same steps as without it, its reports, its ends, and its continuation bit for bit."""

import json
import os
import signal
import subprocess
import sys

import chex
import grain
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import nagjax
from nagjax.models import MLP
from nagjax.training import (
    Checkpoints,
    DeviceData,
    Record,
    TrainStep,
    compiled,
    early_stopping,
    fit,
    jsonl,
    tensorboard,
)

ROWS, BATCH = 40, 4  # 10 batches an epoch
PARAMS = {"w": np.zeros(3)}


def rows():
    return np.random.default_rng(0).standard_normal((ROWS, 3)) + 1


def loss(params, batch):
    return jnp.mean((params["w"][None] - batch) ** 2)


def tx():
    return nagjax.nesterov(0.02, 0.9)


def grain_data(seed=5):
    return grain.MapDataset.source(rows()).seed(seed).shuffle().repeat().batch(BATCH)


class Remember:
    """A callback that keeps the records, and may end the run or raise a signal at a step."""

    def __init__(self, at=None, act=lambda: "enough"):
        self.records, self.at, self.act = [], at, act

    def __call__(self, record):
        self.records.append(record)
        reached = self.at is not None and record.kind == "train" and record.step >= self.at
        return self.act() if reached else None


def quiet(data, **options):
    return fit(PARAMS, loss, tx(), data, progress=False, **options)


def reference(batches):
    step = TrainStep(PARAMS, loss, tx())
    train, state = compiled(step), step.init()
    for batch in batches:
        state, _ = train(state, jnp.asarray(batch))
    return state


def sources():
    return {
        "device": (DeviceData(rows(), BATCH, seed=3), {}),
        "list": ([rows()[4 * k : 4 * k + 4] for k in range(10)], {}),
        "grain": (grain_data(), {"steps_per_epoch": 10}),
    }


@pytest.mark.parametrize("name", sources())
@pytest.mark.parametrize("steps_per_call", [None, 1, 4])
def test_a_fit_makes_the_steps_of_a_plain_loop(name, steps_per_call):
    data, options = sources()[name]
    if name == "device":
        batches = rows()[np.concatenate([data.order(epoch) for epoch in range(3)])]
    else:
        batches = list(data) * 3 if name == "list" else [grain_data()[k] for k in range(30)]
    found = quiet(data, epochs=3, steps_per_call=steps_per_call, **options)
    chex.assert_trees_all_close(found.state, reference(batches), rtol=1e-12)
    assert (found.status, found.steps, found.epochs) == ("completed", 30, 3)
    chex.assert_trees_all_equal(found.model, found.step.model(found.state))


def test_train_records_are_means_over_the_steps_since_the_last_one():
    batches = [rows()[4 * k : 4 * k + 4] for k in range(10)]
    each = quiet(batches, epochs=2, log_every=1).history
    assert [record.step for record in each] == list(range(1, 21))
    some = quiet(batches, epochs=2, log_every=4).history
    assert [(record.step, record.epoch) for record in some] == [(4, 0), (8, 0), (10, 1), (14, 1), (18, 1), (20, 2)]
    losses = [record.metrics["loss"] for record in each]
    means = [np.mean(part) for part in np.split(losses, [4, 8, 10, 14, 18])]
    np.testing.assert_allclose([record.metrics["loss"] for record in some], means, rtol=1e-12)


def test_evaluation_is_at_the_answer_in_evaluation_mode_after_the_epochs_asked_for(single_precision):
    seen = []

    def evaluate(model):
        seen.append((model.dropout.deterministic, np.asarray(model.layers[0].kernel[...])))
        return {"zero": 0}

    def classify(model, batch):
        return jnp.mean(model(batch) ** 2)

    model = MLP((3, 4, 1), dropout=0.5, rngs=nnx.Rngs(params=0, dropout=1))
    data = DeviceData(rows().astype(np.float32), BATCH)
    found = fit(model, classify, tx(), data, epochs=5, eval_fn=evaluate, eval_every=2, progress=False)
    evaluations = [record for record in found.history if record.kind == "eval"]
    assert [(record.epoch, record.metrics) for record in evaluations] == [
        (2, {"zero": 0}),
        (4, {"zero": 0}),
        (5, {"zero": 0}),
    ]
    assert all(deterministic for deterministic, _ in seen)
    answer = nagjax.eval_params(found.state.params, found.state.opt_state)["layers"][0]["kernel"]
    np.testing.assert_array_equal(seen[-1][1], answer)
    at_params = fit(model, classify, tx(), data, epochs=1, eval_fn=evaluate, eval_at="params", progress=False)
    np.testing.assert_array_equal(seen[-1][1], at_params.state.params["layers"][0]["kernel"])
    assert not model.dropout.deterministic


def test_a_fit_can_start_from_the_state_of_another():
    batches = [rows()[4 * k : 4 * k + 4] for k in range(10)]
    first = quiet(batches)
    second = quiet(batches, state=first.state)
    chex.assert_trees_all_close(second.state._replace(step=0), reference(batches * 2)._replace(step=0), rtol=1e-12)
    assert int(second.state.step) == 10
    assert not first.state.params["w"].is_deleted()


@pytest.mark.parametrize("name", sources())
@pytest.mark.parametrize("stop", [7, 10])
def test_a_run_that_was_ended_continues_bit_for_bit(name, stop, tmp_path):
    def run(callback, checkpoint=None):
        data, options = sources()[name]
        return quiet(
            data,
            epochs=3,
            steps_per_call=1,
            log_every=1,
            checkpoint=checkpoint,
            config={"rate": 0.02},
            eval_fn=lambda params: {"distance": jnp.abs(params["w"] - 1).max()},
            callbacks=[callback],
            **options,
        )

    whole = run(Remember())
    checkpoint = Checkpoints(tmp_path, every=3, best="distance")
    first = run(Remember(stop), checkpoint)
    assert first.status == "stopped: enough"
    assert stop <= first.steps <= stop + 2  # a record is read while the steps after it run
    remember = Remember()
    second = run(remember, checkpoint)
    chex.assert_trees_all_equal(second.state, whole.state)
    evaluations = [[r.metrics for r in part.history if r.kind == "eval"] for part in (whole, second)]
    assert evaluations[0] == evaluations[1]
    assert remember.records[0][:2] == ("resume", first.steps)
    assert [r.replayed for r in remember.records if r.kind == "eval"].count(True) == first.epochs


@pytest.mark.parametrize("name", sources())
def test_means_that_a_checkpoint_cuts_in_two_are_those_of_a_whole_run(name, tmp_path):
    def run(checkpoint=None, callback=None):
        data, options = sources()[name]
        callbacks = [callback] if callback else []
        found = quiet(
            data, epochs=3, steps_per_call=1, log_every=5, checkpoint=checkpoint, callbacks=callbacks, **options
        )
        return [(record.step, record.epoch, record.metrics) for record in found.history]

    def fail(record):
        if record.kind == "train" and record.step == 10:
            raise RuntimeError("killed")

    whole = run()
    with pytest.raises(RuntimeError, match="killed"):
        run(Checkpoints(tmp_path, every=4), fail)
    assert Checkpoints(tmp_path).latest() == 8
    assert run(Checkpoints(tmp_path)) == whole[1:]


def test_a_completed_run_is_not_trained_again(tmp_path):
    first, again = (quiet(DeviceData(rows(), BATCH), epochs=2, checkpoint=Checkpoints(tmp_path)) for _ in range(2))
    assert (again.status, again.steps, again.history) == ("completed", 20, [])
    chex.assert_trees_all_equal(again.state, first.state)


def test_a_run_with_another_configuration_does_not_continue(tmp_path):
    data = DeviceData(rows(), BATCH)
    quiet(data, checkpoint=Checkpoints(tmp_path / "run"), config={"rate": 0.02, "width": 3})
    with pytest.raises(ValueError, match=r"(?s)config .*width: 3 in the checkpoint, 4 now"):
        quiet(data, checkpoint=Checkpoints(tmp_path / "run"), config={"rate": 0.02, "width": 4})


def test_a_run_over_other_data_does_not_continue(tmp_path):
    quiet(DeviceData(rows(), BATCH), checkpoint=Checkpoints(tmp_path / "device"))
    with pytest.raises(ValueError, match="data must be those of the checkpoint, got 'batch_size: 4 in the"):
        quiet(DeviceData(rows(), 8), checkpoint=Checkpoints(tmp_path / "device"))
    quiet(grain_data(), steps_per_epoch=10, checkpoint=Checkpoints(tmp_path / "grain"))
    with pytest.raises(ValueError, match="steps_per_epoch: 10 in the checkpoint, 20 now"):
        quiet(grain_data(), steps_per_epoch=20, checkpoint=Checkpoints(tmp_path / "grain"))


def test_a_state_of_another_model_or_optimizer_is_refused_and_scales_are_the_runs_own():
    data = DeviceData(rows(), BATCH)
    state = quiet(data).state
    with pytest.raises(ValueError, match=r"(?s)state must be one of this model and optimizer.*only in the state"):
        fit(PARAMS, loss, optax.sgd(0.1), data, state=state, progress=False)
    assert float(quiet(data, state=state, loss_scale=8.0).state.scaling.scale) == 8
    assert quiet(data, state=quiet(data, loss_scale=8.0).state).state.scaling is None


class Reused:
    """Batches in one buffer, which is filled again and again."""

    def __iter__(self):
        buffer = np.zeros((BATCH, 3))
        for k in range(10):
            buffer[:] = rows()[4 * k : 4 * k + 4]
            yield buffer


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_a_source_may_use_its_buffer_again(steps_per_call):
    found = quiet(Reused(), steps_per_call=steps_per_call)
    chex.assert_trees_all_close(found.state, reference([batch.copy() for batch in Reused()]), rtol=1e-12)


def test_no_batch_is_read_that_is_not_trained_on():
    source = iter([rows()[4 * (k % 10) : 4 * (k % 10) + 4] for k in range(20)])
    for _ in range(2):
        quiet(source, steps_per_epoch=10, steps_per_call=4)
    assert next(source, None) is None


def test_checkpoints_and_records_come_when_they_are_due_in_long_epochs(tmp_path):
    data = DeviceData(np.zeros((1200, 3)), BATCH)  # 300 steps an epoch
    saved = []

    class Watched(Checkpoints):
        def save(self, step, *arguments, **options):
            saved.append(step)
            super().save(step, *arguments, **options)

    found = quiet(data, checkpoint=Watched(tmp_path, every=70, keep=99), log_every=90)
    assert saved == [70, 140, 210, 280, 300]
    assert [record.step for record in found.history] == [90, 180, 270, 300]


def test_a_data_loader_of_grain_continues_in_place(tmp_path):
    class Source:
        def __len__(self):
            return ROWS

        def __getitem__(self, index):
            return rows()[index]

        def __repr__(self):
            return "rows"

    def run(folder, callback):
        sampler = grain.samplers.IndexSampler(ROWS, shuffle=True, seed=3, num_epochs=None)
        loader = grain.DataLoader(data_source=Source(), sampler=sampler, operations=[grain.transforms.Batch(BATCH)])
        return quiet(loader, epochs=2, steps_per_epoch=10, log_every=1, callbacks=[callback], checkpoint=folder)

    whole = run(None, Remember())
    first = run(Checkpoints(tmp_path), Remember(7))
    assert 7 <= first.steps < 10
    chex.assert_trees_all_equal(run(Checkpoints(tmp_path), Remember()).state, whole.state)


def test_a_model_kept_from_an_evaluation_outlives_the_steps_after_it():
    kept = []
    quiet(DeviceData(rows(), BATCH), epochs=3, eval_fn=lambda params: kept.append(params) or {})
    assert len({float(params["w"][0]) for params in kept}) == 3


def test_going_on_from_a_fitted_model_trains_it_as_before(single_precision):
    def classify(model, batch):
        return jnp.mean(model(batch) ** 2)

    model = MLP((3, 4, 1), dropout=0.5, rngs=nnx.Rngs(params=0, dropout=1))
    data = DeviceData(rows().astype(np.float32), BATCH)
    first = fit(model, classify, tx(), data, eval_fn=lambda model: {}, progress=False)
    second = fit(first.model, classify, tx(), data, progress=False)
    assert [int(found.model.dropout.rngs.count[...]) for found in (first, second)] == [10, 20]


def test_early_stopping_counts_evaluations_without_a_new_best():
    def told(values, **options):
        watch = early_stopping("loss", **options)
        watch(Record("start", 0, 0, 0.0, {}))
        reasons = [watch(Record("eval", k, k, 0.0, {"loss": value})) for k, value in enumerate(values)]
        return [reason is not None for reason in reasons].index(True) if any(reasons) else None

    assert told([5, 4, 4, 3, 3, 3], patience=2) == 5
    assert told([5, 4, 3, 2, 1], patience=1) is None
    assert told([1, 2, 3, 3], patience=1, mode="max") == 3
    assert told([5, 4.9, 4.8, 4.7], patience=2, min_delta=0.5) == 2
    assert told([float("nan"), float("nan")], patience=2) == 1
    with pytest.raises(ValueError, match=r"metric must be one of \['loss'\], got 'accuracy'"):
        early_stopping("accuracy", patience=1)(Record("eval", 0, 0, 0.0, {"loss": 1.0}))


def test_early_stopping_ends_a_run_and_a_resumed_one(tmp_path):
    def run():
        return quiet(
            DeviceData(rows(), BATCH),
            epochs=9,
            eval_fn=lambda params: {"loss": 1.0},
            callbacks=[early_stopping(patience=2)],
            checkpoint=Checkpoints(tmp_path / "run"),
        )

    assert [run().epochs, run().epochs] == [3, 3]
    assert run().status == "stopped: loss has not become better for 2 evaluations"


def test_a_json_lines_file_has_every_step_once_after_a_resumption(tmp_path):
    path = tmp_path / "logs" / "metrics.jsonl"
    write = jsonl(path)
    for record in (Record("start", 0, 0, 0.0, {}), Record("train", 5, 0, 1.0, {"loss": float("inf")})):
        write(record)
    write(Record("train", 9, 0, 2.0, {"loss": 1.0}))
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    write = jsonl(path)
    write(Record("resume", 7, 0, 1.5, {}))
    write(Record("eval", 3, 0, 1.0, {"loss": 9.0}, replayed=True))
    write(Record("train", 9, 0, 2.0, {"loss": 2.0}))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("start", 0), ("train", 5), ("resume", 7), ("train", 9)]
    assert lines[1]["loss"] is None
    assert lines[3]["loss"] == 2.0


def test_event_files_hold_the_metrics(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    found = quiet(DeviceData(rows(), BATCH), epochs=2, callbacks=[tensorboard(tmp_path)])
    (path,) = tmp_path.glob("events*")
    data, events = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    told = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    expected = [(r.step, "train/loss", pytest.approx(r.metrics["loss"], rel=1e-6)) for r in found.history]
    assert told == expected


def test_a_gradient_that_is_not_finite_ends_the_run_if_asked():
    batches = [rows()[4 * k : 4 * k + 4] for k in range(10)]
    batches[6] = batches[6] * np.nan
    found = quiet(batches, epochs=3, nonfinite="stop", log_every=1)
    assert found.status == "nonfinite"
    assert 7 <= found.steps <= 9
    expected = reference([batch for k, batch in enumerate(batches[: found.steps]) if k != 6])
    chex.assert_trees_all_close(found.state.params, expected.params, rtol=1e-12)


def test_a_data_source_that_ends_too_early_is_named():
    with pytest.raises(ValueError, match=r"data must be long enough for epochs of steps_per_epoch = 7.*repeat it"):
        quiet([rows()[:4]] * 5, steps_per_epoch=7)
    with pytest.raises(ValueError, match="data must be an iterable for more than one epoch"):
        quiet(iter([rows()[:4]] * 5), epochs=2)
    for arrays in (rows(), (rows(), rows()), {"x": rows()}, 3):
        with pytest.raises(TypeError, match=r"data must be DeviceData or an iterable of batches.*DeviceData\(arrays"):
            quiet(arrays)
    with pytest.raises(ValueError, match="data must be an iterable of at least one batch, got 'an empty one'"):
        quiet([])
    with pytest.raises(ValueError, match=r"batches of one shape where a call takes several.*drop_remainder"):
        quiet([rows()[:4], rows()[:3]], steps_per_call=2)
    with pytest.raises(ValueError, match="steps_per_epoch must be None for data on the device"):
        quiet(DeviceData(rows(), BATCH), steps_per_epoch=3)
    with pytest.raises(ValueError, match="epochs must be an integer of at least 1, got 0"):
        quiet(DeviceData(rows(), BATCH), epochs=0)
    with pytest.raises(TypeError, match="eval_fn must be a function that returns a dictionary"):
        quiet(DeviceData(rows(), BATCH), eval_fn=lambda params: 3.0)


def test_progress_off_a_terminal_is_a_line_an_epoch_and_a_summary(capsys):
    fit(PARAMS, loss, tx(), DeviceData(rows(), BATCH), epochs=2, eval_fn=lambda params: {"accuracy": 0.5})
    out, err = capsys.readouterr()
    lines, _, summary = err.partition("completed after 2 epochs, 20 steps\n")
    assert out == ""
    assert "epoch 1, step 10; train loss" in lines
    assert "eval accuracy 0.5" in lines
    assert "3 parameters in 24 bytes" in summary


SCRIPT = """
import signal, sys, os, numpy as np, jax.numpy as jnp
import nagjax
from nagjax.training import Checkpoints, DeviceData, fit
def loss(params, batch):
    return jnp.mean((params["w"] - batch) ** 2)
number = getattr(signal, sys.argv[2]) if len(sys.argv) > 2 else None
def hit(record):
    if number is not None and record.kind == "train" and record.step == 20:
        os.kill(os.getpid(), number)
rows = np.arange(40, dtype=np.float32)
found = fit({"w": np.float32(0)}, loss, nagjax.nesterov(0.02), DeviceData(rows, 4), epochs=8, log_every=1,
    callbacks=[hit], checkpoint=Checkpoints(sys.argv[1]), progress=False)
print("done", found.steps, float(found.state.params["w"]).hex())
"""


def script(folder, *arguments):
    command = [sys.executable, "-c", SCRIPT, str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""}, check=False)


@pytest.mark.slow
def test_a_signal_ends_a_run_with_its_code_after_saving(tmp_path):
    whole = script(tmp_path / "whole")
    assert whole.stdout.startswith("done 80 ")
    for name, code in (("SIGTERM", 143), ("SIGINT", -signal.SIGINT)):
        ended = script(tmp_path / name, name)
        assert ended.returncode == code
        assert "Ending after the current call" in ended.stderr
        assert ended.stdout == ""
        assert Checkpoints(tmp_path / name).latest() in range(20, 40)
    assert script(tmp_path / "SIGTERM").stdout == whole.stdout


def test_a_second_signal_acts_at_once():
    from nagjax.training.signals import Interrupts

    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
