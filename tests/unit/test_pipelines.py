"""Input pipelines: orders, resumption in the middle of an epoch, windows of text, files larger than memory."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from experiments import pipelines
from experiments.pipelines import image_batches, memory_mapped, text_stream, text_windows, write_rows

ROOT = Path(__file__).parents[2]
N, BATCH = 23, 5
STEPS = N // BATCH


@pytest.fixture
def rows():
    """Images whose every pixel tells their row, and labels that do."""
    images = np.arange(N, dtype=np.uint8)[:, None, None] + np.zeros((1, 3, 4), np.uint8)
    return images, np.arange(N, dtype=np.int32)


@pytest.fixture(params=["permuted", "computed"])
def order(request, monkeypatch):
    """The two ways to an order: a permutation in memory, and Grain's, for more rows than one would hold."""
    if request.param == "computed":
        monkeypatch.setattr(pipelines, "PERMUTED", 0)


def labels(dataset, count: int) -> np.ndarray:
    return np.stack([batch[1] for batch in islice(iter(dataset), count)])


def same(one, two) -> bool:
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True))


def noisy(row, random):
    return row + random.random(row.shape)


@pytest.mark.usefixtures("order")
class TestImageBatches:
    def test_an_epoch_has_no_row_twice_and_leaves_only_the_remainder_out(self, rows):
        seen = labels(image_batches(*rows, BATCH, 0), 20 * STEPS).reshape(20, -1)
        assert all(len(set(epoch.tolist())) == STEPS * BATCH for epoch in seen)

    def test_an_epoch_without_a_remainder_is_a_permutation(self, rows):
        images, numbers = rows
        seen = labels(image_batches(images[:20], numbers[:20], BATCH, 0), 12).reshape(3, -1)
        assert [sorted(epoch.tolist()) for epoch in seen] == [list(range(20))] * 3

    def test_epochs_have_different_orders_and_leave_different_rows_out(self, rows):
        seen = labels(image_batches(*rows, BATCH, 0), 100 * STEPS).reshape(100, -1)
        assert len({epoch.tobytes() for epoch in seen}) == 100
        left_out = {frozenset(range(N)) - frozenset(epoch.tolist()) for epoch in seen}
        assert len(left_out) > 10
        assert frozenset().union(*left_out) == set(range(N))

    def test_a_seed_gives_the_same_batches_and_no_seed_those_of_another_ones_later_epoch(self, rows):
        orders = {seed: labels(image_batches(*rows, BATCH, seed), 3 * STEPS).reshape(3, -1) for seed in range(4)}
        np.testing.assert_array_equal(orders[0], labels(image_batches(*rows, BATCH, 0), 3 * STEPS).reshape(3, -1))
        assert len({epoch.tobytes() for order in orders.values() for epoch in order}) == 12

    def test_images_belong_to_their_labels_and_keep_their_dtype(self, rows):
        images, numbers = next(iter(image_batches(*rows, BATCH, 0)))
        assert (images.dtype, images.shape, numbers.dtype) == (np.uint8, (BATCH, 3, 4), np.int32)
        np.testing.assert_array_equal(images, np.broadcast_to(numbers[:, None, None], images.shape))

    def test_a_number_of_epochs_ends_the_dataset(self, rows):
        assert len(list(image_batches(*rows, BATCH, 0, epochs=3))) == 3 * STEPS

    @pytest.mark.parametrize("threads", [0, 2])
    @pytest.mark.parametrize("augment", [None, noisy], ids=["plain", "augmented"])
    @pytest.mark.parametrize("taken", [0, 1, STEPS - 1, STEPS, 2 * STEPS + 3])
    def test_a_restored_iterator_goes_on_with_the_very_same_batches(self, rows, threads, augment, taken):
        def build():
            return iter(image_batches(*rows, BATCH, 7, augment, threads=threads))

        whole = list(islice(build(), taken + 2 * STEPS))
        iterator = build()
        for _ in range(taken):
            next(iterator)
        state = json.dumps(iterator.get_state())
        resumed = build()
        next(resumed)
        resumed.set_state(json.loads(state))
        rest = list(islice(resumed, 2 * STEPS))
        assert len(rest) == 2 * STEPS
        assert all(same(one, two) for one, two in zip(whole[taken:], rest, strict=True))

    def test_a_state_is_the_number_of_batches_handed_out_however_far_threads_read_ahead(self, rows):
        iterator = iter(image_batches(*rows, BATCH, 0, threads=2))
        next(iterator)
        next(iterator)
        assert iterator.get_state() == {"next_index": 2}
        iterator.close()

    def test_threads_change_no_batch(self, rows):
        plain, threaded = (image_batches(*rows, BATCH, 0, noisy, epochs=2, threads=threads) for threads in (0, 3))
        assert all(same(one, two) for one, two in zip(plain, threaded, strict=True))

    def test_augmentation_differs_between_rows_and_epochs_and_seeds(self, rows):
        images, numbers = np.zeros((4, 2, 2)), rows[1][:4]
        drawn = [
            next(iterator)[0].tobytes()
            for seed in (0, 1)
            for iterator in [iter(image_batches(images, numbers, 4, seed, noisy))]
            for _ in range(3)
        ]
        assert len(set(drawn)) == 6
        first = next(iter(image_batches(images, numbers, 4, 0, noisy)))[0]
        assert len({row.tobytes() for row in first}) == 4

    def test_augmentation_leaves_the_order_as_it_is(self, rows):
        np.testing.assert_array_equal(
            labels(image_batches(*rows, BATCH, 3), 9), labels(image_batches(*rows, BATCH, 3, noisy), 9)
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"batch": 0}, "image_batches: batch must be an integer of at least 1, got 0"),
            ({"batch": N + 1}, "image_batches: batch must be at most the 23 rows there are, got 24"),
            ({"seed": -1}, "image_batches: seed must be an integer of at least 0, got -1"),
            ({"labels": np.zeros(3)}, "image_batches: labels must be as many as the 23 images, got 3"),
            ({"epochs": 0}, "image_batches: epochs must be an integer of at least 1, got 0"),
            ({"threads": -1}, "image_batches: threads must be an integer of at least 0, got -1"),
        ],
    )
    def test_what_makes_no_batch_is_refused(self, rows, change, message):
        arguments = {"images": rows[0], "labels": rows[1], "batch": BATCH, "seed": 0, **change}
        with pytest.raises(ValueError, match=message):
            image_batches(**arguments)


class TestAugmentation:
    IMAGE = np.arange(1, 21, dtype=np.float32).reshape(4, 5)

    def test_a_shift_gives_every_displacement_with_zeros_coming_in(self):
        padded = np.pad(self.IMAGE, 1)
        expected = {padded[i : i + 4, j : j + 5].tobytes() for i in range(3) for j in range(3)}
        random = np.random.default_rng(0)
        assert {pipelines.shifted(1)(self.IMAGE, random).tobytes() for _ in range(200)} == expected

    def test_a_shift_may_be_larger_than_the_image(self):
        random = np.random.default_rng(0)
        shifted = [pipelines.shifted(9)(self.IMAGE[..., None], random) for _ in range(100)]
        assert {image.shape for image in shifted} == {(4, 5, 1)}
        assert 0 < sum(not image.any() for image in shifted) < 100

    def test_a_flip_mirrors_half_of_the_images(self):
        random = np.random.default_rng(0)
        flipped = [pipelines.flipped(self.IMAGE, random) for _ in range(400)]
        mirrored = sum(np.array_equal(image, self.IMAGE[:, ::-1]) for image in flipped)
        assert mirrored + sum(np.array_equal(image, self.IMAGE) for image in flipped) == 400
        assert 150 < mirrored < 250  # 5 deviations of a binomial around 200

    def test_a_chain_applies_its_parts_in_order_to_color_images_too(self):
        image = np.stack([self.IMAGE] * 3, axis=-1)
        chain = pipelines.chained(lambda row, _: row + 1, lambda row, _: 2 * row, pipelines.shifted(0))
        np.testing.assert_array_equal(chain(image, np.random.default_rng(0)), 2 * (image + 1))


TEXT = np.random.default_rng(1).integers(0, 250, 100)


@pytest.fixture(params=["array", "uint8", "uint16", "int32"])
def text(request, tmp_path):
    """The tokens in memory or in a file, and the arguments that say which."""
    if request.param == "array":
        return TEXT, {}
    TEXT.astype(request.param).tofile(tmp_path / "tokens")
    return tmp_path / "tokens", {"dtype": request.param}


@pytest.mark.usefixtures("order")
class TestTextWindows:
    def test_an_epoch_predicts_every_token_of_a_whole_window_once(self, text):
        tokens, options = text
        batches = list(text_windows(tokens, 9, 11, 0, epochs=2, **options))  # 99 = 11 windows of 9
        assert [part.dtype for part in batches[0]] == [np.int32, np.int32]
        windows = {tuple(TEXT[i : i + 10]) for i in range(0, 99, 9)}
        for inputs, targets in batches:
            assert {(*one, two[-1]) for one, two in zip(inputs.tolist(), targets.tolist(), strict=True)} == windows
            np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        assert not np.array_equal(batches[0][0], batches[1][0])

    def test_a_stride_of_one_gives_every_window(self):
        batches = list(text_windows(TEXT, 9, 7, 0, stride=1, epochs=1))
        starts = {tuple(TEXT[i : i + 10]) for i in range(91)}
        assert len(batches) == 13
        assert {(*x, y[-1]) for xs, ys in batches for x, y in zip(xs.tolist(), ys.tolist(), strict=True)} == starts

    def test_a_restored_iterator_goes_on_with_the_very_same_batches(self, text):
        tokens, options = text
        dataset = text_windows(tokens, 9, 4, 5, **options)
        whole = list(islice(dataset, 7))
        iterator = iter(dataset)
        for _ in range(3):
            next(iterator)
        resumed = iter(text_windows(tokens, 9, 4, 5, **options))
        resumed.set_state(json.loads(json.dumps(iterator.get_state())))
        assert all(same(one, two) for one, two in zip(whole[3:], islice(resumed, 4), strict=True))

    @pytest.mark.parametrize(
        ("tokens", "context", "message"),
        [
            (TEXT[:9], 9, "text_windows: batch must be at most the 0 windows there are, got 1"),
            (TEXT, 0, "text_windows: context must be an integer of at least 1, got 0"),
            (TEXT / 2, 9, "text_windows: tokens must be integers of shape"),
        ],
    )
    def test_a_text_without_windows_is_refused(self, tokens, context, message):
        with pytest.raises(ValueError, match=message):
            text_windows(tokens, context, 1, 0)


class TestTextStream:
    @pytest.mark.parametrize(("context", "batch"), [(9, 11), (9, 1), (7, 3), (200, 2), (1, 1)])
    def test_every_token_but_the_first_is_predicted_once_and_in_order(self, text, context, batch):
        tokens, options = text
        batches = list(text_stream(tokens, context, batch, **options))
        assert {part.shape for parts in batches for part in parts} == {(batch, context)}
        inputs, targets, weights = (
            np.concatenate([part.ravel() for part in parts]) for parts in zip(*batches, strict=True)
        )
        counted = weights == 1
        np.testing.assert_array_equal(targets[counted], TEXT[1:])
        np.testing.assert_array_equal(inputs[counted], TEXT[:-1])
        assert weights.sum() == 99
        assert len(batches) == -(-99 // (context * batch))
        assert not np.any(targets[~counted])

    def test_a_restored_stream_goes_on_where_it_was(self):
        whole = list(text_stream(TEXT, 9, 2))
        iterator = iter(text_stream(TEXT, 9, 2))
        next(iterator)
        resumed = iter(text_stream(TEXT, 9, 2))
        resumed.set_state(json.loads(json.dumps(iterator.get_state())))
        assert all(same(one, two) for one, two in zip(whole[1:], resumed, strict=True))

    def test_a_text_with_nothing_to_predict_is_refused(self):
        with pytest.raises(ValueError, match="text_stream: tokens must be at least 2 tokens, got 1"):
            text_stream(TEXT[:1], 9)


class TestFiles:
    def test_written_chunks_are_read_back_as_one_array(self, tmp_path):
        chunks = [np.arange(12).reshape(3, 4), np.zeros((0, 4), int), np.arange(8).reshape(2, 4)[:, ::-1]]
        shape = write_rows(tmp_path / "rows", iter(chunks), np.int32)
        assert shape == (5, 4)
        for asked in (shape, (-1, 4)):
            found = memory_mapped(tmp_path / "rows", np.int32, asked)
            np.testing.assert_array_equal(found, np.concatenate(chunks))
            assert (found.dtype, found.flags.writeable) == (np.int32, False)

    def test_a_failure_leaves_the_file_as_it_was(self, tmp_path):
        write_rows(tmp_path / "rows", [np.ones((2, 3))], np.float32)

        def failing():
            yield np.zeros((4, 3))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_rows(tmp_path / "rows", failing(), np.float32)
        assert [path.name for path in tmp_path.iterdir()] == ["rows"]
        assert memory_mapped(tmp_path / "rows", np.float32, (2, 3)).sum() == 6

    def test_rows_that_fit_no_file_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"write_rows: chunks must be of rows of shape \(3,\), got \(2,\)"):
            write_rows(tmp_path / "rows", [np.zeros((1, 3)), np.zeros((1, 2))], np.float32)
        with pytest.raises(ValueError, match="write_rows: chunks must be at least one row"):
            write_rows(tmp_path / "rows", [], np.float32)
        with pytest.raises(TypeError, match="Cannot cast"):
            write_rows(tmp_path / "rows", [np.full((1, 3), 0.5)], np.uint8)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("shape", [(5, 3), (-1, 5), (4, 4)])
    def test_a_shape_that_is_not_the_files_is_refused(self, tmp_path, shape):
        np.zeros(12, np.uint8).tofile(tmp_path / "rows")
        with pytest.raises(ValueError, match=r"memory_mapped: shape must be that of the file .* the file has 12 bytes"):
            memory_mapped(tmp_path / "rows", np.uint8, shape)

    def test_batches_of_a_mapped_file_are_those_of_memory(self, rows, tmp_path):
        shape = write_rows(tmp_path / "rows", [rows[0][:7], rows[0][7:]], np.uint8)
        mapped = memory_mapped(tmp_path / "rows", np.uint8, shape)
        batches = islice(image_batches(mapped, rows[1], BATCH, 0), 6)
        assert all(same(a, b) for a, b in zip(batches, islice(image_batches(*rows, BATCH, 0), 6), strict=True))

    @pytest.mark.skipif(sys.platform != "linux", reason="limits on the data segment are Linux's")
    @pytest.mark.slow
    def test_a_file_larger_than_the_memory_allowed_is_written_and_gone_through(self, tmp_path):
        # 128 MiB of rows and of tokens, with 32 MiB to spare beyond what is in use once everything is imported.
        code = """
import resource, sys
import numpy as np
from experiments.pipelines import image_batches, memory_mapped, text_windows, write_rows
path, rows, width = sys.argv[1], 1 << 14, 1 << 13
labels = np.arange(rows)
next(iter(image_batches(labels[:8], labels[:8], 4, 0)))
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + (32 << 20), resource.RLIM_INFINITY))
chunk = lambda first: (np.arange(first, first + 256) % 251).astype(np.uint8)[:, None] + np.zeros((1, width), np.uint8)
shape = write_rows(path, (chunk(first) for first in range(0, rows, 256)), np.uint8)
assert shape == (rows, width)
try:
    np.fromfile(path, np.uint8)
except MemoryError:
    print("too large for memory")
seen = 0
for images, numbers in image_batches(memory_mapped(path, np.uint8, shape), labels, 64, 0, epochs=1):
    assert (images == (numbers % 251).astype(np.uint8)[:, None]).all()
    seen += len(numbers)
for inputs, targets in text_windows(path, width, 64, 0, epochs=1):
    seen += len(inputs)
print(seen)
"""
        run = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "rows")], cwd=ROOT, capture_output=True, text=True, check=False
        )
        (tmp_path / "rows").unlink(missing_ok=True)
        assert run.stdout.split("\n")[:2] == ["too large for memory", str((1 << 14) + (1 << 14) - 64)], run.stderr
