"""The callbacks that write a run down, and the note on a signal, without a run."""

import json
import os
import signal
import sys
import time

import pytest

from nagjax.training import Record, early_stopping, jsonl, tensorboard
from nagjax.training.signals import Interrupts


def record(kind, step, metrics=None, **options):
    return Record(kind, step, step // 10, float(step), metrics or {}, **options)


def tell(callback, *records):
    return [callback(told) for told in records]


def lines(path):
    return [(line["kind"], line["step"]) for line in map(json.loads, path.read_text().splitlines())]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


class TestJsonLines:
    def test_a_resumed_run_leaves_the_lines_of_earlier_runs(self, path):
        first = [record("start", 0), record("train", 100), record("eval", 100), record("end", 100)]
        tell(jsonl(path), *first)
        before = path.read_bytes()
        tell(jsonl(path), record("start", 0), record("train", 10), record("train", 20), record("eval", 20))
        tell(jsonl(path), record("resume", 10), record("train", 15))
        assert path.read_bytes()[: len(before)] == before
        assert lines(path)[4:] == [("start", 0), ("train", 10), ("resume", 10), ("train", 15)]

    def test_the_lines_of_exactly_the_resumed_step_stay_once(self, path):
        write = jsonl(path)
        tell(write, record("start", 0), record("train", 20), record("eval", 20, {"loss": 1.0}), record("end", 20))
        tell(write, record("train", 21), record("eval", 30), record("end", 30))
        tell(jsonl(path), record("resume", 20), record("eval", 20, {"loss": 1.0}, replayed=True), record("train", 30))
        assert lines(path) == [("start", 0), ("train", 20), ("eval", 20), ("end", 20), ("resume", 20), ("train", 30)]

    def test_without_a_start_the_whole_file_is_the_run(self, path):
        tell(jsonl(path), record("resume", 5), record("train", 6), record("train", 9))
        tell(jsonl(path), record("resume", 6))
        assert lines(path) == [("resume", 5), ("train", 6), ("resume", 6)]

    @pytest.mark.parametrize("kind", ["start", "resume"])
    def test_a_line_that_was_cut_off_does_not_spoil_the_next(self, path, kind):
        tell(jsonl(path), record("start", 0), record("train", 3))
        whole = path.read_bytes()
        path.write_bytes(whole + whole.splitlines()[1][:20])
        tell(jsonl(path), record(kind, 5))
        assert lines(path) == [("start", 0), ("train", 3), (kind, 5)]
        assert path.read_bytes().startswith(whole)
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    @pytest.mark.parametrize("name", ["kind", "step", "epoch", "seconds"])
    def test_a_metric_that_is_named_as_a_field_is_refused(self, path, name):
        write = jsonl(path)
        write(record("start", 0))
        condition = "'kind', 'step', 'epoch', 'seconds'"
        with pytest.raises(
            ValueError, match=f"jsonl: the eval metric must be named other than {condition}, got '{name}'"
        ):
            write(record("eval", 7, {"loss": 1.0, name: 3.0}))
        assert lines(path) == [("start", 0)]


def events(path):
    """The events of a file of TensorBoard's, whose format is TFRecord: length, checksum, content, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = path.read_bytes(), []
    while len(data) >= 12 and len(data) >= 16 + (length := int.from_bytes(data[:8], "little")):
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def shown(folder):
    """The points that TensorBoard shows: a start of a session hides those at its step and after it."""
    points = []
    for path in sorted(folder.iterdir()):
        for event in events(path):
            if event.session_log.status == event.session_log.START:
                points = [point for point in points if point[0] < event.step]
            points += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return points


class TestTensorBoard:
    @pytest.mark.parametrize("again", [False, True], ids=["another process", "the same callback"])
    def test_a_resumed_run_hides_the_points_after_its_checkpoint_only(self, tmp_path, again):
        callback = tensorboard(tmp_path)
        tell(callback, record("start", 0), record("train", 10, {"loss": 4.0}), record("eval", 10, {"loss": 5.0}))
        tell(callback, record("train", 11, {"loss": 3.0}), record("train", 12, {"loss": 2.0}))
        if not again:
            callback(record("end", 12))
            callback = tensorboard(tmp_path)
        tell(callback, record("resume", 10), record("eval", 10, {"loss": 5.0}, replayed=True))
        tell(callback, record("train", 12, {"loss": 1.0}), record("end", 12))
        assert shown(tmp_path) == [(10, "train/loss", 4.0), (10, "eval/loss", 5.0), (12, "train/loss", 1.0)]

    def test_points_that_a_flush_came_too_early_for_are_written_soon(self, tmp_path, monkeypatch):
        from tensorboardX.event_file_writer import EventFileWriter

        monkeypatch.setattr(EventFileWriter, "flush", lambda self: None)
        callback = tensorboard(tmp_path)
        points = [(step, "train/loss", 1.0) for step in (1, 2)]
        tell(callback, *(record("train", step, {"loss": 1.0}) for step, _, _ in points))
        deadline = time.monotonic() + 10
        while shown(tmp_path) != points and time.monotonic() < deadline:
            time.sleep(0.05)
        assert shown(tmp_path) == points


class TestEarlyStopping:
    def test_a_callback_that_is_used_again_counts_a_resumed_runs_evaluations_once(self):
        watch = early_stopping(patience=2)
        told = [record("eval", 10, {"loss": 1.0}), record("eval", 20, {"loss": 1.0})]
        assert tell(watch, record("start", 0), *told) == [None] * 3
        again = [evaluation._replace(replayed=True) for evaluation in told]
        assert tell(watch, record("resume", 20), *again) == [None] * 3
        assert watch(record("eval", 30, {"loss": 0.5})) is None


class TestSignals:
    def test_the_note_has_lines_of_its_own_beside_a_bar(self, capfd):
        with Interrupts():
            os.write(2, b"epoch 1 ---->")
            signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err.split("\n") == [
            "epoch 1 ---->",
            "Ending after the current call; once more to end at once.",
            "",
        ]

    def test_a_signal_within_a_write_to_the_standard_error_is_noted(self, monkeypatch):
        class Busy:
            def write(self, text):
                raise RuntimeError("reentrant call")

            flush = write

        monkeypatch.setattr(sys, "stderr", Busy())
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGTERM)
            assert interrupts.received == signal.SIGTERM

    def test_a_closed_standard_error_does_not_end_the_run(self, monkeypatch):
        def closed(*_):
            raise OSError(9, "Bad file descriptor")

        monkeypatch.setattr(os, "write", closed)
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.received == signal.SIGTERM
