"""Starts the processes of one program on this machine: ``python -m experiments.launch -n 2 -- command ...``.

For tests and trials on CPU; a cluster has its scheduler for this. Every process finds in its environment what
`nagjax.training.distributed.initialize` reads: the coordinator's address with a free port, the number of processes, and
its own. Its lines appear with its number in front. When one ends with an error, the others have ``--grace`` seconds to
notice and to end; then they are ended. The exit code is that of the first failure, 128 + number for a signal.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

OUT_OF_TIME = 124  # exit code, that of coreutils' timeout
_ASKED = 5.0  # seconds between asking a process to end and making it
_TICK = 0.02  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.launch", description=__doc__.partition("\n")[0])
    parser.add_argument("-n", "--processes", type=int, required=True, help="processes to start")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each (default 1)")
    parser.add_argument("--timeout", type=float, help="seconds after which all are ended")
    parser.add_argument("--grace", type=float, default=40.0, help="seconds to end after a failure (default 40)")
    parser.add_argument("command", nargs="+", help="the program and its arguments, after --")
    options = parser.parse_args(arguments)
    if min(options.processes, options.devices) < 1:
        parser.error("-n and --devices must be at least 1")
    if shutil.which(options.command[0]) is None:
        parser.error(f"no program {options.command[0]!r}")
    with Group(options.command, options.processes, options.devices) as group:
        handlers = {number: signal.signal(number, group.forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return group.wait(options.timeout, options.grace)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def environment(index: int, count: int, port: int, devices: int) -> dict[str, str]:
    """Returns the environment of one of `count` processes that share this machine's CPU."""
    own = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONUNBUFFERED": "1",
    }
    # A number of devices in XLA_FLAGS, such as that of a test suite, would be a second and different one.
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    return os.environ | own | {"XLA_FLAGS": " ".join(flags)}


def free_port() -> int:
    """Returns a port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Group:
    """The processes of one program, each the leader of its own group, so that its children end with it."""

    def __init__(self, command: Sequence[str], count: int, devices: int, shown: bool = True) -> None:
        self.command, self.count, self.devices, self.shown = list(command), count, devices, shown
        self.started = time.time()
        self.lines: list[list[str]] = [[] for _ in range(count)]  # what each process has said
        self.processes: list[subprocess.Popen[str]] = []
        self.ended: dict[int, tuple[int, float]] = {}  # process -> exit code, seconds since the start
        self._readers: list[threading.Thread] = []
        self._start = time.monotonic()

    def __enter__(self) -> Group:
        """Starts all."""
        port = free_port()
        try:
            for index in range(self.count):
                self._start_one(index, port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_one(self, index: int, port: int) -> None:
        process = subprocess.Popen(
            self.command,
            env=environment(index, self.count, port, self.devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.processes.append(process)
        reader = threading.Thread(target=self._copy, args=(process.stdout, index), daemon=True)
        reader.start()
        self._readers.append(reader)

    def __exit__(self, *_: object) -> None:
        """Ends what is left, children included."""
        for process in self.processes:
            _signal(process, signal.SIGKILL)
            process.wait()
        for reader in self._readers:
            reader.join(timeout=1)

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Hands a signal to all processes."""
        for process in self.processes:
            _signal(process, number)

    def wait(self, timeout: float | None, grace: float) -> int:
        """Waits for all, says which one ended first and how, and returns the exit code of the first failure."""
        deadline = float("inf") if timeout is None else self._start + timeout
        while len(self.ended) < self.count:
            self._poll()
            if self._failures() and deadline > (failed := time.monotonic() + grace):
                deadline = failed
                grace = float("inf")  # it runs from the first failure
            if time.monotonic() > deadline:
                break
            time.sleep(_TICK)
        late = [index for index in range(self.count) if index not in self.ended]
        self._end(late)
        for reader in self._readers:
            reader.join(timeout=1)
        failures = self._failures()
        if failures:
            first = failures[0]
            others = [f"; process {k} {self._how(k)}" for k in range(self.count) if k != first]
            self._print(f"launch: process {first} ended first, {self._how(first)}{''.join(others)}")
            return self.ended[first][0]
        if late:
            self._print(f"launch: {_names(late)} did not end within {timeout:g} s")
            return OUT_OF_TIME
        self._print(f"launch: {self.count} processes ended well after {time.monotonic() - self._start:.1f} s")
        return 0

    def _copy(self, lines: IO[str], index: int) -> None:
        """Prints the lines of a process with its number."""
        with lines:
            for line in lines:
                self.lines[index].append(line.rstrip("\n"))
                self._print(f"[{index}] {self.lines[index][-1]}")

    def _print(self, line: str) -> None:
        if self.shown:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    def _poll(self) -> None:
        for index, process in enumerate(self.processes):
            if index not in self.ended and (code := process.poll()) is not None:
                self.ended[index] = (code if code >= 0 else 128 - code, time.monotonic() - self._start)

    def _failures(self) -> list[int]:
        """Processes that ended by themselves with an error, the first one first."""
        return sorted(
            (index for index, (code, _) in self.ended.items() if code), key=lambda index: self.ended[index][1]
        )

    def _how(self, index: int) -> str:
        code, seconds = self.ended[index]
        return f"{_said(code)} after {seconds:.1f} s" if seconds < float("inf") else "was ended"

    def _end(self, late: list[int]) -> None:
        """Ends those that are left, without counting them as failures of their own."""
        for number, seconds in ((signal.SIGTERM, _ASKED), (signal.SIGKILL, None)):
            for index in late:
                _signal(self.processes[index], number)
            until = time.monotonic() + (seconds or 0)
            while seconds and time.monotonic() < until and any(self.processes[k].poll() is None for k in late):
                time.sleep(_TICK)
        for index in late:
            self.processes[index].wait()
        if self._failures():
            self.ended |= {index: (OUT_OF_TIME, float("inf")) for index in late}


def _signal(process: subprocess.Popen[str], number: int) -> None:
    # The group outlives its leader where a process has left children.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _said(code: int) -> str:
    if code - 128 in {number.value for number in signal.Signals}:
        return f"by {signal.Signals(code - 128).name}"
    return "well" if code == 0 else f"with exit code {code}"


def _names(processes: list[int]) -> str:
    return ("process " if len(processes) == 1 else "processes ") + ", ".join(map(str, processes))


if __name__ == "__main__":
    sys.exit(main())
