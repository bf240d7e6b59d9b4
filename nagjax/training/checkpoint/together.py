"""What the processes of a program do together: what fails in one of them is raised in all, and none waits in vain."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from nagjax.training import peers
from nagjax.training.distributed import is_main

_T = TypeVar("_T")
_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (FileNotFoundError, OSError, TypeError, ValueError)
}
_BARRIERS = 2  # of a save: when all have written, and when process 0 has completed the checkpoint
_JOINING = 300.0  # seconds that a process with a failed save waits for the threads of the others


class Together:
    """The processes that make the same calls in the same order, told apart from others by `name`."""

    _made = 0

    def __init__(self, name: str) -> None:
        Together._made += 1
        self._name = f"{name}/{Together._made}"
        self._calls = 0

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        # Asked first, since counting starts the devices.
        return jax.distributed.is_initialized() and jax.process_count() > 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that owns the folder."""
        return is_main()

    def do(self, action: Callable[[], _T]) -> _T:
        """What `action` returns here, once it has succeeded in all; otherwise raises in all."""
        if not self.several:
            return action()
        results: list[_T] = []
        self._agreed(lambda: results.append(action()))
        return results[0]

    def of_main(self, action: Callable[[], _T]) -> _T:
        """What `action`, done by process 0 only, returns there as JSON."""
        if not self.several:
            return action()
        return self._agreed(lambda: action() if self.is_main else None)

    def _agreed(self, action: Callable[[], Any]) -> Any:
        """What an action returns, as JSON, in process 0."""
        failure: Exception | None = None
        result: Any = None
        try:
            result = action()
        except Exception as error:
            failure = error
        error = None if failure is None else [type(failure).__name__, str(failure)]
        said = {"error": error, "value": result if self.is_main else None}
        self._calls += 1
        heard = [json.loads(text) for text in peers.exchange(f"{self._name}/{self._calls}", json.dumps(said))]
        if failure is not None:
            raise failure
        for index, other in enumerate(heard):
            if other["error"] is not None:
                kind, message = other["error"]
                raise _ERRORS.get(kind, RuntimeError)(f"{message} (in process {index})")
        return heard[0]["value"]

    def save(self) -> "Save":
        """The processes' threads while they write one checkpoint."""
        self._calls += 1
        return Save(f"{self._name}/{self._calls}")


class Save:
    """The barriers of one asynchronous save, at which the threads of all processes hear of a failure in one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._joined = 0
        self._heard = False

    def join(self, *, key: str, timeout_ms: int) -> None:
        """The barrier that Orbax calls."""
        del key  # it counts the saves of one process
        self._pass(None, timeout_ms / 1000)

    def fail(self, error: Exception) -> None:
        """Let the others, who wait at the next barrier, hear of an error in this process."""
        if not self._heard and self._joined < _BARRIERS:
            self._pass(str(error), _JOINING)

    def _pass(self, error: str | None, seconds: float) -> None:
        self._joined += 1
        said = peers.exchange(f"{self._name}/{self._joined}", json.dumps(error), seconds)
        failed = [(index, text) for index, value in enumerate(said) if (text := json.loads(value)) is not None]
        if failed and error is None:
            self._heard = True
            raise OSError(f"{failed[0][1]} (in process {failed[0][0]})")
