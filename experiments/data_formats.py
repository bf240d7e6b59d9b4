"""Reads the content of data sets' files: grey images, binary features, text; and the sets that Python brings along."""

from __future__ import annotations

import math
import struct
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.output import UsageError

TEXT_CAP = 1_000_000
A9A_FEATURES = 123
MNIST_ROWS = 20_000  # of the 60,000 for training


class Images(NamedTuple):
    """Rows in [0, 1], float32, shape (n, pixels), and classes, int32, shape (n,)."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.int32]


class Split(NamedTuple):
    """The official training and test parts."""

    train: Images
    test: Images


def digits(_: Mapping[str, bytes]) -> Images:
    """1,797 digits of 8 by 8 pixels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return Images((images / 16.0).astype(np.float32), labels.astype(np.int32))


def python_source(_: Mapping[str, bytes]) -> str:
    """The standard library's top-level modules in the order of their names, cut after `TEXT_CAP` characters.

    Characters outside ASCII become question marks. The text depends on the version of Python.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"), key=lambda path: path.name)
    parts: list[str] = []
    length = 0
    for path in files:
        parts.append(path.read_bytes().decode("ascii", "replace").replace("\ufffd", "?").replace("\r\n", "\n"))
        length += len(parts[-1])
        if length >= TEXT_CAP:
            break
    if not length:
        raise UsageError("the text python_source needs the standard library as .py files; choose another --text.")
    return "".join(parts)[:TEXT_CAP]


def python_topics(_: Mapping[str, bytes]) -> str:
    """The topics of `help()` in the order of their names, each under its name; it depends on the version of Python."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UsageError("the text python_topics needs Python's pydoc_data; choose another --text.") from None
    text = "\n\n".join(f"{name}\n\n{topics[name]}" for name in sorted(topics))
    return text.encode("ascii", "replace").decode("ascii")[:TEXT_CAP]


def _idx(content: bytes) -> NDArray[np.uint8]:
    """Reads the IDX format: a big-endian magic number whose last byte is the rank, the lengths, the bytes."""
    (magic,) = struct.unpack_from(">i", content)
    rank = magic & 0xFF
    shape = struct.unpack_from(f">{rank}i", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def idx_split(content: Mapping[str, bytes]) -> Split:
    """Reads training images and labels, then test images and labels."""
    arrays = [_idx(part) for part in content.values()]
    parts = [
        Images(images.reshape(len(images), -1) / np.float32(255), labels.astype(np.int32))
        for images, labels in (arrays[:2], arrays[2:])
    ]
    return Split(*parts)


def first_rows(content: bytes) -> bytes:
    """Cuts an IDX file after `MNIST_ROWS` rows; one that has no more, or no whole header, stays as it is."""
    rank = content[3] if len(content) > 3 else 0
    start = 4 + 4 * rank
    if not rank or len(content) < start:
        return content
    rows, *shape = struct.unpack_from(f">{rank}i", content, 4)
    if rows <= MNIST_ROWS:
        return content
    return content[:4] + struct.pack(">i", MNIST_ROWS) + content[8 : start + MNIST_ROWS * math.prod(shape)]


def a9a(content: Mapping[str, bytes]) -> Split:
    """Reads training rows, then test rows, of 0 and 1."""
    return Split(*(_libsvm(part.decode("ascii")) for part in content.values()))


def _libsvm(text: str) -> Images:
    """Reads lines `label index:value ...` of the labels -1 and +1, which become 0 and 1."""
    lines = text.splitlines()
    inputs = np.zeros((len(lines), A9A_FEATURES), np.float32)
    labels = np.zeros(len(lines), np.int32)
    for row, line in enumerate(lines):
        label, *features = line.split()
        labels[row] = float(label) > 0
        for feature in features:
            index, value = feature.split(":")
            inputs[row, int(index) - 1] = float(value)
    return Images(inputs, labels)


def text(content: Mapping[str, bytes]) -> str:
    """Reads one file of ASCII."""
    (only,) = content.values()
    return only.decode("ascii")
