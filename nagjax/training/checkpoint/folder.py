"""The folder of checkpoints: names on disk, one writer at a time, and what a killed process left behind."""

import contextlib
import os
import re
import shutil
import weakref
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from nagjax import checks

try:
    import fcntl
except ImportError:  # Windows has none; two writers are not noticed there
    fcntl = None

_LOCK = ".nagjax-checkpoints"  # says that the folder is one of checkpoints, and is locked by the run that writes there
_TEMPORARY = ".orbax-checkpoint-tmp"
_NAME = re.compile(rf"(\d+)-step-(\d+)({re.escape(_TEMPORARY)}.*|\.deleted)?")
_held: set[Path] = set()  # locks of the system do not exclude another object of the same process


class Saved(NamedTuple):
    """A complete checkpoint."""

    serial: int  # order of writing, which that of steps is not where a run went back to an earlier step
    step: int
    path: Path


class Folder:
    """Complete checkpoints in `path`, and the right to write there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._release: Any = None

    def saved(self) -> list[Saved]:
        """All complete checkpoints in the order of writing.

        Raises:
            ValueError: The folder holds something else.
        """
        whole: list[Saved] = []
        foreign: list[str] = []
        names = sorted(entry.name for entry in self.path.iterdir()) if self.path.exists() else []
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None:
                foreign.append(name)
            elif match[3] is None:
                whole.append(Saved(int(match[1]), int(match[2]), self.path / name))
        if foreign and _LOCK not in names:
            found = f"{self.path} with {foreign[0]!r}"
            checks.reject(
                "Checkpoints", "folder", "absent, empty or one of checkpoints", found, "choose another folder"
            )
        return sorted(whole)

    def claim(self) -> int:
        """Take the right to write, clear what a killed process left, and return the next serial.

        Raises:
            ValueError: The folder holds something else, or another run writes there.
            OSError: The folder cannot be made or written.
        """
        serials = [0]
        try:
            if self._release is None:
                self.path.mkdir(parents=True, exist_ok=True)
                self.saved()
                self._release = weakref.finalize(self, *_locked(self.path))
            for entry in list(self.path.iterdir()):
                if match := _NAME.fullmatch(entry.name):
                    serials.append(int(match[1]))
                    if match[3] is not None:
                        shutil.rmtree(entry)
        except OSError as error:
            unwritable("Checkpoints.save", self.path, error)
        return max(serials) + 1

    def unfinished(self) -> Path:
        """The folder that Orbax is writing."""
        return next(entry for entry in self.path.iterdir() if _TEMPORARY in entry.name)

    def remove(self, saved: Saved) -> None:
        """Delete a checkpoint; renamed first, so that half of one is never taken for a checkpoint."""
        trash = saved.path.with_name(f"{saved.path.name}.deleted")
        saved.path.rename(trash)
        shutil.rmtree(trash)

    def release(self) -> None:
        """Let others write."""
        if self._release is not None:
            self._release()
            self._release = None


def unwritable(function: str, path: Path, error: Exception) -> NoReturn:
    """Raise OSError for a failed write."""
    raise OSError(
        f"{function}: folder must be one that can be written and has space, got {path} ({reason(error)});"
        " free space or choose another folder: the checkpoints before are as they were."
    ) from error


def reason(error: Exception) -> str:
    """The first line of an error's message; TensorStore's and Orbax's have many."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _locked(path: Path) -> tuple[Any, ...]:
    """Lock the folder; the function that unlocks it, and its arguments."""
    path = path.resolve()
    remedy = "close() that one or choose another folder"
    condition = "one that no other run writes to"
    if path in _held:
        checks.reject("Checkpoints", "folder", condition, f"{path}, open in this process", remedy)
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            # A POSIX lock, which the workers that a killed run has forked do not go on holding.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        owner = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        checks.reject("Checkpoints", "folder", condition, f"{path}, open in process {owner}", remedy)
    except OSError:
        pass  # some network file systems have no locks
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    _held.add(path)
    return _unlock, path, descriptor


def _unlock(path: Path, descriptor: int) -> None:
    _held.discard(path)
    with contextlib.suppress(OSError):
        os.close(descriptor)
