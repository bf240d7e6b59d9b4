"""How a process learns that another has failed, and says so before it ends.

JAX ends the processes of a program when one of them dies, but by an abort in C++ that runs no Python and leaves a stack
of frames as the last line; and a process that raises an exception is waited for. What JAX offers besides is used here:
the barriers of its coordination service, which fail with a message when a process dies; its key-value store, where a
process that raises says so; and its callback in place of the abort. That one gets a status that Python cannot take, so
that C++ ends the process as after any exception that nothing catches, and calls a function of ours (where the library
of C++ is GNU's; elsewhere its own message is the last line).
"""

import atexit
import contextlib
import ctypes
import functools
import importlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, NoReturn, cast

import jax

MARGIN = 10  # seconds that a process goes on waiting for an answer, so that it hears who is missing
_KEY = "nagjax/failure"
_FOREVER = 10**9  # milliseconds
_ANSWER = 60_000  # milliseconds
_TELLING = 1.0  # seconds that a process stays after an exception, for the others to hear of it; process 0 longer
_HEARING = 2.0  # seconds that a barrier has to say who has failed
_LONG = 300  # characters
_STANDARD_ERROR = 2
_INTERRUPTED = 130  # exit code
_kept: list[Any] = []  # what C++ has pointers to
_DEAD = ("heartbeat", "set to ERROR", "UNAVAILABLE", "unhealthy")  # in messages of barriers that a death has ended


def _engine() -> Any:
    """The state of `jax.distributed`: JAX has no public name for its client, which Orbax and Flax use as well."""
    return cast("Any", importlib.import_module("jax._src.distributed"))


def address() -> str | None:
    """The coordinator's address."""
    return _engine().global_state.coordinator_address


def used() -> bool:
    """Whether a device has been used, after which JAX refuses to connect."""
    return _engine().xla_bridge.backends_are_initialized()


def detected(
    address: str | None,
    count: int | None,
    index: int | None,
    local_device_ids: Sequence[int] | None,
    cluster: str | None,
    timeout: int,
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """What is given, completed by what JAX detects of a cluster."""
    environment: Any = _engine().clusters.ClusterEnv
    return environment.auto_detect_unset_distributed_params(address, count, index, local_device_ids, cluster, timeout)


@contextlib.contextmanager
def reported(timeout: int) -> Generator[None]:
    """While entered, `jax.distributed.initialize` raises where it would abort, and the service says who is missing."""
    library = _engine()._jax
    service, client = library.get_distributed_runtime_service, library.get_distributed_runtime_client

    def ignore(status: object) -> None:
        """In place of an abort; never called, since JAX cannot hand its status to Python, and raises instead."""

    library.get_distributed_runtime_service = functools.partial(service, cluster_register_timeout=timeout)
    library.get_distributed_runtime_client = functools.partial(client, missed_heartbeat_callback=ignore)
    try:
        yield
    finally:
        library.get_distributed_runtime_service, library.get_distributed_runtime_client = service, client


def abandon() -> str:
    """Forget a connection that has failed; why it did."""
    state = _engine().global_state
    status = ""
    try:
        state.shutdown()
    except Exception as error:
        status = str(error)
    state.client = None
    with contextlib.suppress(Exception):
        state.shutdown()
    return status


def exchange(key: str, text: str, seconds: float | None = None) -> list[str]:
    """What all processes say under a key that is used once, by process."""
    client = _engine().global_state.client
    client.key_value_set(f"{key}/{jax.process_index()}", text)
    client.wait_at_barrier(key, _FOREVER if seconds is None else max(1, int(1000 * seconds)))
    return [client.blocking_key_value_get(f"{key}/{index}", _ANSWER) for index in range(jax.process_count())]


def watch(index: int, count: int) -> None:
    """From now on, end this process with a line when another fails, and tell the others when this one raises."""
    client = _engine().global_state.client
    threads: list[threading.Thread] = []
    ending = threading.Event()

    def start(wait: Callable[[], str | None]) -> None:
        thread = threading.Thread(target=_listen, args=(wait, ending, index, count), daemon=True)
        thread.start()
        threads.append(thread)

    def leave() -> None:
        ending.set()
        try:
            jax.distributed.shutdown()
        except Exception as error:
            _end(_line(index, count, f"the others have not ended with it: {_first(error)}"), 1)
        # A thread that returned from C++ while Python is being taken down would abort the process.
        for thread in threads:
            thread.join()

    if hasattr(sys.stdout, "reconfigure"):  # what is buffered is lost when the process is ended
        cast("Any", sys.stdout).reconfigure(line_buffering=True)
    _on_terminate(functools.partial(_terminated, index, count))
    start(functools.partial(client.blocking_key_value_get, _KEY, _FOREVER))
    start(functools.partial(client.wait_at_barrier, f"{_KEY}/{index}", _FOREVER))
    atexit.register(leave)
    sys.excepthook = functools.partial(_tell, sys.excepthook, client, index, count)


def _listen(wait: Callable[[], str | None], ending: threading.Event, index: int, count: int) -> None:
    """Wait for a failure of another process, and end with it."""
    try:
        said = wait()
    except Exception as error:
        said = str(error)
        if ending.is_set() or not jax.distributed.is_initialized() or not any(word in said for word in _DEAD):
            return
        _end(_line(index, count, _cause(said)), 1)
    if said is not None and not said.startswith(f"process {index} "):
        _stay(index)
        _end(_line(index, count, said), 1)


def _tell(
    before: Callable[..., Any],
    client: Any,
    index: int,
    count: int,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    """Report an exception that nothing has caught, and end; its peers would wait for this process for minutes."""
    before(kind, error, trace)
    if not jax.distributed.is_initialized():
        return
    said = f"process {index} has raised {kind.__name__}: {_first(error)}"
    try:
        client.key_value_set(_KEY, said)
    except Exception as answer:
        if "ALREADY_EXISTS" in str(answer):  # another's failure, the cause of this one: a thread is ending the process
            time.sleep(2 * _TELLING)
        else:
            said = f"{said}; and process 0, the coordinator, does not answer"
    else:
        time.sleep(_TELLING)
        _stay(index)
    _end(_line(index, count, said), _INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1)


def _stay(index: int) -> None:
    """The service ends with process 0, and with the service the processes that have not yet heard why."""
    if index == 0:
        time.sleep(_TELLING)


def _cause(said: str) -> str:
    """Who has failed, from the message of a barrier."""
    if match := re.search(r"[Tt]ask (\d+) heartbeat timeout", said):
        return f"process {match[1]} has given no sign of life: it was killed, or hangs"
    if "RPC" in said:
        return "process 0, the coordinator, was killed or cannot be reached"
    return said


def _line(index: int, count: int, said: str) -> str:
    remedy = "look at that process's log, and start all of them again to go on from the last checkpoint"
    return f"distributed: process {index} of {count} ends, because {said}; {remedy}."


def _first(error: BaseException) -> str:
    """The first line of a message, or as much of it as a person reads."""
    text = (str(error).splitlines() or [""])[0]
    return text if len(text) <= _LONG else f"{text[:_LONG]} ..."


def _end(line: str, code: int) -> NoReturn:
    """The last line of this process, whose main thread may be waiting for a dead one."""
    with contextlib.suppress(OSError):
        os.write(_STANDARD_ERROR, f"{line}\n".encode())
    os._exit(code)


def _terminated(index: int, count: int) -> None:
    """C++ is ending the process: a peer is dead, and the threads that know which one have a moment to say so."""
    time.sleep(_HEARING)
    name = "process 0, the coordinator," if index else "another process"
    _end(_line(index, count, f"{name} has given no sign of life: it was killed, or hangs"), 1)


def _on_terminate(function: Callable[[], None]) -> None:
    """Have C++ call a function when it is about to end the process."""
    try:
        set_terminate: Any = ctypes.CDLL("libstdc++.so.6")["_ZSt13set_terminatePFvvE"]
    except (OSError, AttributeError):
        return
    _kept.append(ctypes.CFUNCTYPE(None)(function))
    set_terminate(_kept[-1])
