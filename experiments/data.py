"""Data sets by name: two that are on every machine, and those of a folder given by ``--data``.

A folder holds each set's files at the paths of `Entry.files`. What is read is checked by its SHA-256 (of the content,
that is after decompression), so that a damaged or different file is refused instead of measured.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.output import UsageError

TEXT_CAP = 1_000_000
A9A_FEATURES = 123


class Images(NamedTuple):
    """Rows in [0, 1], float32, shape (n, pixels), and classes, int32, shape (n,)."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.int32]


class Split(NamedTuple):
    """The official training and test parts."""

    train: Images
    test: Images


@dataclass(frozen=True)
class Entry:
    """One data set: `read` takes the checked content of `files`, a map from path to SHA-256, and returns the set."""

    title: str
    read: Callable[[Mapping[str, bytes]], Images | Split | str]
    files: Mapping[str, str] = field(default_factory=dict)  # empty: the set needs no folder


def load(name: str, folder: Path | None = None) -> Images | Split | str:
    """Returns a data set; one with files is read from the folder.

    Raises:
        UsageError: The folder is not given, or a file of the set is absent, unreadable or not the published one.
    """
    entry = DATA_SETS[name]
    check(name, folder)
    return entry.read({path: _content(name, entry, folder, path) for path in entry.files} if folder else {})


def check(name: str, folder: Path | None) -> None:
    """Refuses a data set whose files are not at hand, before any work."""
    entry = DATA_SETS[name]
    if not entry.files:
        return
    first = next(iter(entry.files))
    if folder is None:
        raise UsageError(f"the data set {name} needs its files; give --data DIR, the folder that holds {first}.")
    for path in entry.files:
        if not (folder / path).is_file():
            raise UsageError(f"the data set {name} needs the file {path}, which --data {folder} does not hold.")


def fingerprint(value: Images | Split | str) -> str:
    """Returns a short hash of a data set's content."""
    digest = hashlib.sha256()
    if isinstance(value, str):
        digest.update(value.encode())
    else:
        for part in value if isinstance(value, Split) else (value,):
            for array in part:
                digest.update(f"{array.shape}{array.dtype}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _content(name: str, entry: Entry, folder: Path, path: str) -> bytes:
    try:
        content = (folder / path).read_bytes()
        if path.endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise UsageError(f"the data set {name} cannot be read from {path} in --data {folder} ({error}).") from None
    found = hashlib.sha256(content).hexdigest()
    if found != entry.files[path]:
        raise UsageError(
            f"the data set {name} expects another file than {path} in --data {folder}: the SHA-256 of its content is "
            f"{found[:12]}..., not {entry.files[path][:12]}...; fetch the published file again."
        )
    return content


def _digits(_: Mapping[str, bytes]) -> Images:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return Images((images / 16.0).astype(np.float32), labels.astype(np.int32))


def _python_source(_: Mapping[str, bytes]) -> str:
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


def _idx(content: bytes) -> NDArray[np.uint8]:
    """Reads the IDX format: a big-endian magic number whose last byte is the rank, the lengths, the bytes."""
    (magic,) = struct.unpack_from(">i", content)
    rank = magic & 0xFF
    shape = struct.unpack_from(f">{rank}i", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _fashion_mnist(content: Mapping[str, bytes]) -> Split:
    arrays = [_idx(content[path]) for path in FASHION_MNIST]
    parts = [
        Images(images.reshape(len(images), -1) / np.float32(255), labels.astype(np.int32))
        for images, labels in (arrays[:2], arrays[2:])
    ]
    return Split(*parts)


def _a9a(content: Mapping[str, bytes]) -> Split:
    return Split(*(_libsvm(content[path].decode("ascii")) for path in A9A))


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


def _text(content: Mapping[str, bytes]) -> str:
    (only,) = content.values()
    return only.decode("ascii")


# SHA-256 of the content after decompression.
FASHION_MNIST = {
    "fashion_mnist/train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "fashion_mnist/train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "fashion_mnist/t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "fashion_mnist/t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
A9A = {
    "a9a/a9a.gz": "f5d5ffd8d865ff41328e7ee043e4b020816914ff6843ff15b98905ddbedce906",
    "a9a/a9a.t.gz": "1f448a153f0320399a7e40836eb207655b0bde0f21fc941cc472193daa9f5de9",
}
TINY_SHAKESPEARE = {"text/tinyshakespeare.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"}

DATA_SETS: dict[str, Entry] = {
    "digits": Entry("handwritten digits of scikit-learn", _digits),
    "python_source": Entry("source of Python's standard library", _python_source),
    "fashion_mnist": Entry("Fashion-MNIST", _fashion_mnist, FASHION_MNIST),
    "a9a": Entry("a9a (Adult, binarized)", _a9a, A9A),
    "tinyshakespeare": Entry("Tiny Shakespeare", _text, TINY_SHAKESPEARE),
}
