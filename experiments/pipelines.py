"""Input pipelines in Grain: seeded, random access, resumable in the middle of an epoch, from memory or from a file.

Every dataset here yields NumPy batches of one shape. Its order is a pure function of the seed and the position, so the
state of an iterator is one number, `iterator.get_state() == {"next_index": 17}`, and an iterator whose state is set
goes on with the very same batches. Positions run through epochs: a dataset of `epochs=None` has no end, and is cut by
`steps_per_epoch` where it is trained on.

`threads=0` reads when asked, the fastest way for what is in memory or in the file cache; a slow disk gains from some.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from nagjax import checks

if TYPE_CHECKING:
    import grain

PERMUTED = 1 << 24  # the longest permutation that is held, 128 MiB

Augment = Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]


def image_batches(
    images: NDArray[Any],
    labels: NDArray[Any],
    batch: int,
    seed: int,
    augment: Augment | None = None,
    epochs: int | None = None,
    *,
    threads: int = 0,
) -> grain.IterDataset:
    """Batches of rows in a seeded order that differs from epoch to epoch.

    Args:
        images: Rows, shape (n, ...), any dtype; an array in memory or of `memory_mapped`.
        labels: Shape (n, ...).
        batch: Rows of a batch, in [1, n]. The n % batch rows left over are others in every epoch.
        seed: Seed of the order and of the augmentation, at least 0.
        augment: Function of (row, generator) that returns the row changed, such as `shifted(2)`. The generator is a
            function of the seed and of the batch's position.
        epochs: How often to go through the rows; None: without end.
        threads: Threads that read ahead.

    Returns:
        Dataset of tuples (images, labels) of shapes (batch, ...).

    Raises:
        ValueError: Lengths that differ, or a number out of its range.
    """
    name = "image_batches"
    if len(images) != len(labels):
        checks.reject(name, "labels", f"as many as the {len(images)} images", len(labels), "give one label an image")
    _check_batch(name, batch, len(images), "rows", seed)

    def gather(rows: NDArray[np.intp], random: np.random.Generator | None = None) -> tuple[Any, Any]:
        inputs = np.asarray(images[rows])
        if augment is not None and random is not None:
            inputs = np.stack([augment(row, random) for row in inputs])
        return inputs, np.asarray(labels[rows])

    order = _shuffled(len(images), batch, seed)
    return _read(name, order.map(gather) if augment is None else order.random_map(gather), epochs, threads)


def text_windows(
    tokens: ArrayLike | str | os.PathLike[str],
    context: int,
    batch: int,
    seed: int,
    *,
    dtype: DTypeLike = np.uint8,
    stride: int | None = None,
    epochs: int | None = None,
    threads: int = 0,
) -> grain.IterDataset:
    """Batches of windows of a text in a seeded order that differs from epoch to epoch.

    Args:
        tokens: Token numbers, shape (n,), or the path of a file of them, which is mapped, not read.
        context: Tokens of a window, at least 1.
        batch: Windows of a batch.
        seed: Seed of the order, at least 0.
        dtype: That of the file: uint8, uint16, int32.
        stride: Tokens from one window to the next. Default: `context`, so that an epoch predicts each token once.
        epochs: How often to go through the windows; None: without end.
        threads: Threads that read ahead.

    Returns:
        Dataset of tuples (inputs, targets), int32, shapes (batch, context); a target is the token after its input.

    Raises:
        ValueError: A text that is too short for one batch, or a number out of its range.
    """
    name = "text_windows"
    text = _tokens(name, tokens, dtype, context)
    step = context if stride is None else stride
    checks.whole(name, "stride", step, 1, "give the distance of windows in tokens")
    windows = max((len(text) - 1 - context) // step + 1, 0)
    _check_batch(name, batch, windows, "windows", seed)
    offsets = np.arange(context + 1)

    def gather(numbers: NDArray[np.intp]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        rows = np.asarray(text[numbers[:, None] * step + offsets]).astype(np.int32)
        return rows[:, :-1], rows[:, 1:]

    return _read(name, _shuffled(windows, batch, seed).map(gather), epochs, threads)


def text_stream(
    tokens: ArrayLike | str | os.PathLike[str], context: int, batch: int = 1, *, dtype: DTypeLike = np.uint8
) -> grain.IterDataset:
    """One pass through a text in its order, in which each token but the first is predicted exactly once.

    For a loss measured before the text is trained on. Zeros of weight 0 fill the last batch up to the others' shape.

    Args:
        tokens: Token numbers, shape (n,), n at least 2, or the path of a file of them, which is mapped, not read.
        context: Tokens of a window, at least 1.
        batch: Consecutive windows of a batch.
        dtype: That of the file: uint8, uint16, int32.

    Returns:
        Dataset of tuples (inputs, targets, weights), int32, int32 and float32, shapes (batch, context).

    Raises:
        ValueError: A text that is too short, or a number out of its range.
    """
    import grain

    name = "text_stream"
    text = _tokens(name, tokens, dtype, context)
    checks.whole(name, "batch", batch, 1, "give the number of windows of a batch")
    if len(text) < 2:
        checks.reject(name, "tokens", "at least 2 tokens", len(text), "give a longer text")
    size, shape = batch * context, (batch, context)

    def gather(number: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        part = np.asarray(text[number * size : (number + 1) * size + 1]).astype(np.int32)
        inputs, targets, weights = (np.zeros(size, kind) for kind in (np.int32, np.int32, np.float32))
        length = len(part) - 1
        inputs[:length], targets[:length], weights[:length] = part[:-1], part[1:], 1
        return inputs.reshape(shape), targets.reshape(shape), weights.reshape(shape)

    return _read(name, grain.MapDataset.range(-(-(len(text) - 1) // size)).map(gather), 1, 0)


def memory_mapped(path: str | os.PathLike[str], dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Maps the rows of a file, which may be larger than memory; a batch reads its own rows.

    The pages that were read belong to the system's file cache, which gives them up when memory runs short.

    Args:
        path: A file of rows one after another, as `write_rows` makes it.
        dtype: Data type of the file.
        shape: (rows, ...); rows -1: as many as the file holds.

    Returns:
        A read-only array, shape `shape`.

    Raises:
        ValueError: The file's size is not that of the shape.
    """
    row = int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(dtype).itemsize
    size = Path(path).stat().st_size
    rows = size // row if shape[0] == -1 else shape[0]
    if rows * row != size or not size:
        remedy = f"the file has {size} bytes, a row of {tuple(shape[1:])} {np.dtype(dtype)} has {row}"
        checks.reject("memory_mapped", "shape", f"that of the file {path}", shape, remedy)
    return np.memmap(path, dtype, "r", shape=(rows, *shape[1:]))


def write_rows(path: str | os.PathLike[str], chunks: Iterable[NDArray[Any]], dtype: DTypeLike) -> tuple[int, ...]:
    """Writes rows chunk after chunk into a file for `memory_mapped`, which appears whole or not at all.

    Args:
        path: The file to make, or to replace.
        chunks: Arrays, shapes (any, ...) of one shape of row; each is dropped before the next one is asked for.
        dtype: Data type of the file, to which every value of the chunks converts without a change of kind.

    Returns:
        The shape of all rows, for `memory_mapped`.

    Raises:
        ValueError: The chunks differ in the shape of their rows, or there is none.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    rows, row = 0, None
    try:
        with partial.open("wb") as file:
            for chunk in chunks:
                if row is not None and chunk.shape[1:] != row:
                    checks.reject("write_rows", "chunks", f"of rows of shape {row}", chunk.shape[1:], "reshape them")
                rows, row = rows + len(chunk), chunk.shape[1:]
                file.write(np.ascontiguousarray(chunk.astype(dtype, casting="same_kind", copy=False)).data)
                del chunk
        if row is None or not rows:
            checks.reject("write_rows", "chunks", "at least one row", rows, "give the rows to write")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return (rows, *row)


def shifted(most: int) -> Augment:
    """A random shift of an image by at most `most` pixels along both axes; zeros come in. Rows (height, width, ...)."""
    checks.whole("shifted", "most", most, 0, "give the largest shift in pixels")

    def augment(row: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        to, of = zip(*map(_overlap, row.shape, random.integers(-most, most + 1, 2)), strict=False)
        moved = np.zeros_like(row)
        moved[to] = row[of]
        return moved

    return augment


def flipped(row: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """An image mirrored left to right with probability 1/2. Rows (height, width, ...)."""
    return row[:, ::-1] if random.random() < 0.5 else row


def chained(*augmentations: Augment) -> Augment:
    """Augmentations one after another."""

    def augment(row: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        for one in augmentations:
            row = one(row, random)
        return row

    return augment


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """What of an axis is filled, and from where, when its content is shifted."""
    to, of, length = max(shift, 0), max(-shift, 0), max(size - abs(shift), 0)
    return slice(to, to + length), slice(of, of + length)


def _check_batch(name: str, batch: int, available: int, unit: str, seed: int) -> None:
    checks.whole(name, "batch", batch, 1, f"give the number of {unit} of a batch")
    checks.whole(name, "seed", seed, 0, "give a seed")
    if batch > available:
        checks.reject(name, "batch", f"at most the {available} {unit} there are", batch, "take a smaller batch")


def _tokens(name: str, tokens: ArrayLike | str | os.PathLike[str], dtype: DTypeLike, context: int) -> NDArray[Any]:
    checks.whole(name, "context", context, 1, "give the length of a window in tokens")
    if isinstance(tokens, (str, os.PathLike)):
        return memory_mapped(tokens, dtype, (-1,))
    array = np.asarray(tokens)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        checks.reject(name, "tokens", "integers of shape (n,)", (array.shape, array.dtype), "encode the text first")
    return array


def _shuffled(count: int, batch: int, seed: int) -> Any:
    """Batches of the numbers below `count`, in an order that is another one in each epoch.

    Numbers are shuffled, and rows gathered by one call a batch, as Grain's cost for an element is that of many rows.
    Up to `PERMUTED` numbers, a batch is a slice of its epoch's permutation; beyond, Grain computes each number's place
    without one, which costs microseconds a number.
    """
    import grain

    if count > PERMUTED:
        # Without the hash of `seed()`, epoch 1 of seed 0 would be epoch 0 of seed 1.
        order = grain.MapDataset.range(count).seed(seed).shuffle()
        return order.batch(batch, drop_remainder=True, batch_fn=lambda numbers: np.asarray(numbers, np.intp))
    steps = count // batch

    @functools.lru_cache(maxsize=2)  # threads that read ahead are in two epochs at once
    def permutation(epoch: int) -> NDArray[np.intp]:
        return np.random.default_rng((seed, epoch)).permutation(count)

    def numbers(position: int, _: int) -> NDArray[np.intp]:
        epoch, step = divmod(position, steps)
        return permutation(epoch)[step * batch : (step + 1) * batch]

    return grain.MapDataset.range(steps).seed(seed).map_with_index(numbers)


def _read(name: str, dataset: Any, epochs: int | None, threads: int) -> Any:
    import grain

    if epochs is not None:
        checks.whole(name, "epochs", epochs, 1, "give the number of passes, or None")
    checks.whole(name, "threads", threads, 0, "give the number of threads that read ahead")
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    return dataset.repeat(epochs).to_iter_dataset(options)
