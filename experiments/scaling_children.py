"""The processes that `scaling` starts: each has its own number of virtual devices, which JAX fixes when it starts."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PATIENCE = 180.0  # seconds until an answer has to be there
_FLAG = "--xla_force_host_platform_device_count"


class ChildError(Exception):
    """A process that ended or said nothing; the message holds the end of what it said."""


def environment(devices: int) -> dict[str, str]:
    """The environment of a process with this many virtual devices, whatever the parent's own has."""
    flags = " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(_FLAG))
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": flags, "PYTHONPATH": paths}
    return {**os.environ, **own}


@dataclass(frozen=True)
class Child:
    """A process with `devices` virtual devices that waits for commands, and costs nothing while it waits."""

    devices: int
    process: subprocess.Popen[str]
    errors: IO[bytes]
    lines: queue.Queue[str | None]  # its answers, and None when it has ended

    def ask(self, do: str, layout: str, examples: int, **more: Any) -> dict[str, Any]:
        """Has one command carried out.

        Raises:
            ChildError: The process ended, or gave no answer in time.
        """
        self.send(do, layout, examples, **more)
        return self.answer()

    def send(self, do: str, layout: str, examples: int, **more: Any) -> None:
        """Gives a command and does not wait, so that several processes can compile at once."""
        assert self.process.stdin is not None
        command = {"do": do, "layout": layout, "examples": examples, **more}
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise ChildError(self._said("ended")) from None

    def answer(self) -> dict[str, Any]:
        """Waits for the answer to the oldest command that has none."""
        try:
            line = self.lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise ChildError(self._said(f"gave no answer in {PATIENCE:g} s")) from None
        if line is None:
            # Its last words come after the end of its answers.
            self.process.wait(timeout=PATIENCE)
            raise ChildError(self._said("ended"))
        return json.loads(line)

    def _said(self, what: str) -> str:
        self.errors.seek(0)
        end = self.errors.read().decode(errors="replace").strip()[-2000:]
        return f"scaling: the process with {self.devices} devices {what}; it said:\n{end}"


@contextmanager
def started(devices: int) -> Iterator[Child]:
    """A process with this many virtual devices, which ends with the block."""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-m", "experiments.scaling_worker"],
            env=environment(devices),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            yield Child(devices, process, errors, lines)
        finally:
            process.kill()
            reader.join()


def _read(file: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in file:
        lines.put(line)
    lines.put(None)


@contextmanager
def children(counts: Sequence[int]) -> Iterator[dict[int, Child]]:
    """A process for each number of devices."""
    with ExitStack() as stack:
        yield {count: stack.enter_context(started(count)) for count in counts}


def launched(
    processes: int, devices_each: int, commands: Sequence[Mapping[str, Any]], folder: Path
) -> list[dict[str, Any]]:
    """Has commands carried out by several processes together, which `experiments.launch` starts.

    Raises:
        ChildError: A process failed, or they did not end in time.
    """
    path = folder / f"processes{processes}.json"
    path.write_text(json.dumps(list(commands)))
    worker = [sys.executable, "-m", "experiments.scaling_worker", "--commands", str(path)]
    launch = [sys.executable, "-m", "experiments.launch", "-n", str(processes), "--devices", str(devices_each)]
    launch += ["--timeout", str(PATIENCE)]
    try:
        done = subprocess.run(
            [*launch, "--", *worker],
            env=environment(devices_each),
            capture_output=True,
            text=True,
            timeout=PATIENCE + 30,  # the launcher's own limit comes first and ends its processes
        )
    except subprocess.TimeoutExpired:
        raise ChildError(f"scaling: {processes} processes did not end in {PATIENCE + 30:g} s.") from None
    answers = path.with_suffix(".answers")
    if done.returncode or not answers.exists():
        end = (done.stdout + done.stderr).strip()[-2000:]
        raise ChildError(f"scaling: {processes} processes ended with exit code {done.returncode}; they said:\n{end}")
    return json.loads(answers.read_text())
