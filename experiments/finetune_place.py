"""Where `pretrain_finetune` keeps what it has done, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from experiments.output import UsageError, plain

LOCK = "lock"


class Place:
    """Finished rows and checkpoints of one part of a run.

    A row is a file of its own that appears whole or not at all. The folder's name holds a hash of everything that the
    rows depend on, so another configuration never finds them.
    """

    def __init__(self, folder: Path, part: str, definition: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(plain(definition), sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / f"{part}-{digest}"
        self.found = 0  # rows that were there

    def row(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the row of this name, made now unless an earlier run has made it."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            self.found += 1
            return json.loads(path.read_text(encoding="utf-8"))
        value = json.dumps(plain(make()), allow_nan=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return json.loads(value)  # as a run that goes on would read it

    def checkpoints(self, name: str) -> Path:
        """Returns a folder for checkpoints; nothing is made."""
        return self.folder / f"{name}-checkpoints"


class Workplace:
    """A folder in which one process works at a time, until the block ends; `done` removes what this run kept there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: list[Place] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / LOCK).open("w")
        except OSError as error:
            raise UsageError(
                f"pretrain_finetune: --work {folder} cannot be used ({error.strerror}); choose another folder."
            ) from None
        if not _locked(self._lock.fileno()):
            self._lock.close()
            raise UsageError(
                f"pretrain_finetune: another run works in --work {folder}; wait, or choose another folder."
            )

    def place(self, part: str, definition: Mapping[str, Any]) -> Place:
        """Returns the place of a part."""
        self._places.append(Place(self.folder, part, definition))
        return self._places[-1]

    def done(self) -> None:
        """Removes the places of this run, and the folder if nothing else is in it."""
        for place in self._places:
            shutil.rmtree(place.folder, ignore_errors=True)
        (self.folder / LOCK).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets other processes work here."""
        self._lock.close()


def _locked(descriptor: int) -> bool:
    """Tells whether this process has the file for itself now; the system gives it back however the process ends."""
    try:
        import fcntl
    except ImportError:
        # Elsewhere than on Unix two runs at once are the user's to avoid.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
