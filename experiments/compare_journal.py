"""What a sweep has done so far: one line a finished run, so that an interrupted sweep goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.output import UsageError, plain


@dataclass(frozen=True)
class Record:
    """One finished run; arrays have shape (measurements,)."""

    optimizer: str
    setting: Mapping[str, float]
    seed: int
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    test_loss: float
    test_accuracy: float
    seconds: float  # of the whole run; NaN for a run that shared the machine with others

    @property
    def key(self) -> str:
        """What the run is known by."""
        return key(self.optimizer, self.setting, self.seed)


def key(optimizer: str, setting: Mapping[str, float], seed: int) -> str:
    """The identity of a run within one journal."""
    return json.dumps([optimizer, dict(sorted(setting.items())), seed])


def digest(definition: Mapping[str, Any]) -> str:
    """A short hash of everything that changes the numbers of a run beside its key."""
    return hashlib.sha256(json.dumps(plain(definition), sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Journal:
    """A file to which every finished run is appended as one line that is flushed to the disk.

    The file's name holds the hash of its definition, so another configuration never finds these runs. A line is written
    by one call under a lock: processes that share a journal do not mix their lines. Lines that cannot be read, such as
    the torn last line of a killed process, are left out and counted.
    """

    folder: Path
    task: str
    definition: Mapping[str, Any]
    fresh: bool = False  # whether runs that are there already are ignored
    runs: dict[str, Record] = field(default_factory=dict, init=False)
    torn: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Reads what is there, or makes the file."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self._append(json.dumps({"definition": plain(self.definition)}))
            if not self.fresh:
                self._read()
        except OSError as error:
            raise UsageError(
                f"compare: --journal {self.folder} cannot be used ({error.strerror}); choose another folder."
            ) from None

    @property
    def path(self) -> Path:
        """The file of this task and definition."""
        return self.folder / f"{self.task}-{digest(self.definition)}.jsonl"

    def add(self, record: Record) -> None:
        """Appends a finished run."""
        self.runs[record.key] = record
        self._append(json.dumps(plain(record), allow_nan=False))

    def _read(self) -> None:
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
                if "definition" in value:
                    continue
                record = Record(
                    value["optimizer"],
                    value["setting"],
                    value["seed"],
                    *(np.array([_number(item) for item in value[name]], np.float64) for name in ("loss", "accuracy")),
                    *(_number(value[name]) for name in ("test_loss", "test_accuracy", "seconds")),
                )
            except (ValueError, KeyError, TypeError):
                self.torn += bool(line.strip())
                continue
            self.runs[record.key] = record

    def _append(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            with _locked(descriptor):
                size = os.lseek(descriptor, 0, os.SEEK_END)
                # A process that was killed while it wrote leaves a line without an end.
                torn = size > 0 and _last_byte(descriptor, size) != b"\n"
                content = f"{chr(10) if torn else ''}{line}\n".encode()
                while content:
                    content = content[os.write(descriptor, content) :]
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _number(value: float | None) -> float:
    """JSON has no NaN and no infinity: null stands for both."""
    return math.nan if value is None else float(value)


def _last_byte(descriptor: int, size: int) -> bytes:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1)


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:
        # Elsewhere than on Unix, appending in one call has to be enough.
        yield
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
