"""Signals that ask a run to end: noted, so that it ends between two calls with its state saved."""

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MESSAGE = b"\nEnding after the current call; once more to end at once.\n"  # begins a line: a bar may be shown
_STANDARD_ERROR = 2


class Interrupts:
    """While entered, the first SIGINT or SIGTERM is noted in `received`; a second one acts at once.

    Outside the main thread, where Python allows no handlers, nothing is noted. In a run of several processes the signal
    of one is received by all, at the next `agree`, so that they end after the same step.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._noted = 0
        self._alone = jax.process_count() == 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        """Take over the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the handlers back."""
        self._restore()

    def agree(self) -> None:
        """Tell the other processes of a signal, and hear of theirs; all call this after the same step."""
        if not self._alone:
            noted: Any = multihost_utils.process_allgather(np.int32(self._noted))
            self.received = int(noted.max()) or None

    def leave(self) -> NoReturn:
        """Ends the program as the signal asks: KeyboardInterrupt, or the exit code 143 of SIGTERM."""
        self._restore()
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number
        if self._alone:
            self.received = number
        self._restore()
        # The signal may have come within a write to sys.stderr, which cannot be entered again.
        with contextlib.suppress(OSError):
            os.write(_STANDARD_ERROR, _MESSAGE)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
