"""The runs of the experiment `faults`: a fault, what the survivors say, and a restart; each in a folder of its own."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.launch import Group

DEVICES = 4  # of all processes together
TIMEOUT = 150.0  # seconds of a run
GRACE = 15.0  # seconds that survivors have beyond the heartbeat timeout


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A fault of one process, and on how many processes the run is restarted."""

    name: str
    fault: str
    process: int = 1
    heartbeat: int = 10
    restart: int = 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a scenario came to."""

    scenario: str
    heartbeat: int
    ended: str  # how the survivor ended
    seconds: float | None  # from the fault, or its error, to that
    last_line: str  # the survivor's
    restart: int  # processes
    resumed: int  # step
    difference: float  # of the final parameters from those of a run without faults; 0 is bit for bit


def scenarios(heartbeats: tuple[int, ...]) -> list[Scenario]:
    """Returns all faults with the first heartbeat timeout, and the killed worker with the others."""
    first = heartbeats[0]
    return [
        Scenario("kill a worker", "kill", 1, first),
        *(Scenario("kill a worker", "kill", 1, other, restart=1) for other in heartbeats[1:]),
        Scenario("kill the coordinator", "kill", 0, first, restart=4),
        Scenario("stop a worker", "stop", 1, first),
        Scenario("stop the coordinator", "stop", 0, first, restart=1),
        Scenario("an exception in a worker", "raise", 1, first),
        Scenario("kill a worker while it saves", "kill-saving", 1, first),
        Scenario("full disk of a worker", "disk", 1, first),
        Scenario("full disk of the coordinator", "disk", 0, first),
        Scenario("corrupted checkpoint", "corrupt", 1, first),
    ]


def all_outcomes(
    heartbeats: tuple[int, ...], steps: int, storage: str, log: Callable[[dict[str, Any]], None]
) -> list[Outcome]:
    """Runs all scenarios."""
    with tempfile.TemporaryDirectory() as parent:
        reference = Path(parent) / "reference"
        finish(reference, 2, steps, storage)
        outcomes: list[Outcome] = []
        for number, scenario in enumerate(scenarios(heartbeats)):
            folder = Path(parent) / str(number)
            outcomes.append(outcome(scenario, folder, reference, steps, storage))
            log(dataclasses.asdict(outcomes[-1]))
            shutil.rmtree(folder)
    return outcomes


def outcome(scenario: Scenario, folder: Path, reference: Path, steps: int, storage: str = "full") -> Outcome:
    """Runs one scenario and its restart."""
    survivor = 1 - scenario.process
    if scenario.fault == "corrupt":
        finish(folder, 2, steps - 4, storage)
        corrupt(folder)
        failed = start(folder, 2, steps, storage, scenario.heartbeat)
        newest(folder).rename(folder / "damaged")
    else:
        fault = ("--fault", scenario.fault, "--process", str(scenario.process))
        failed = start(folder, 2, steps, storage, scenario.heartbeat, *fault)
    code, seconds = failed.ended[survivor]
    resumed = finish(folder, scenario.restart, steps, storage)
    ends = [end for _, end in failed.ended.values() if end < float("inf")]
    # A stopped process does not end by itself: its last step tells when it stopped.
    began = min(ends) if len(ends) == 2 else last_step(folder, resumed) - failed.started
    return Outcome(
        scenario.name,
        scenario.heartbeat,
        "well" if code == 0 else f"exit code {code}",
        max(0.0, seconds - began) if seconds < float("inf") else None,
        failed.lines[survivor][-1],
        scenario.restart,
        resumed,
        difference(folder, reference),
    )


def start(folder: Path, processes: int, steps: int, storage: str, heartbeat: int = 10, *options: str) -> Group:
    """Runs the training program until all processes have ended."""
    folder.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-m", "experiments.faults_training", str(folder), "--steps", str(steps)]
    program += ["--storage", storage, "--heartbeat", str(heartbeat), *options]
    with Group(program, processes, DEVICES // processes, shown=False) as group:
        group.wait(TIMEOUT, heartbeat + GRACE)
    return group


def finish(folder: Path, processes: int, steps: int, storage: str) -> int:
    """Runs the training program to its end, and returns the step from which it resumed.

    Raises:
        RuntimeError: It failed.
    """
    group = start(folder, processes, steps, storage)
    if any(code for code, _ in group.ended.values()) or len(group.ended) < processes:
        lines = ["\n".join(lines[-20:]) for lines in group.lines]
        raise RuntimeError("\n\n".join(["the training program failed", *lines]))
    return [event["resumed"] for event in events(folder) if "resumed" in event][-1]


def events(folder: Path) -> list[dict[str, Any]]:
    """Returns what process 0 of all runs in a folder has said."""
    return [json.loads(line) for line in (folder / "log").read_text(encoding="utf-8").splitlines()]


def last_step(folder: Path, resumed: int) -> float:
    """Returns the time of the last step before the restart."""
    times: list[float] = []
    for event in events(folder):
        if event.get("resumed") == resumed and times:
            break
        if "step" in event:
            times.append(event["time"])
    return times[-1]


def newest(folder: Path) -> Path:
    """Returns the checkpoint written last."""
    return max(path for path in (folder / "checkpoints").iterdir() if path.is_dir())


def corrupt(folder: Path) -> Path:
    """Changes a byte of an array in the newest checkpoint."""
    files = [path for path in (newest(folder) / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    return largest


def difference(folder: Path, reference: Path) -> float:
    """Returns the largest difference of the final parameters of two runs."""
    one, other = (np.load(path / "final.npz") for path in (folder, reference))
    return max(float(np.max(np.abs(one[name] - other[name]))) for name in other.files)


def table(outcomes: list[Outcome]) -> str:
    """Returns the outcomes as a table in Markdown."""
    head = ["fault", "heartbeat", "survivor", "after", "its last line", "restart on", "resumed from", "difference"]
    rows = [
        [
            row.scenario,
            f"{row.heartbeat} s",
            row.ended,
            "-" if row.seconds is None else f"{row.seconds:.1f} s",
            row.last_line,
            f"{row.restart}",
            f"{row.resumed}",
            "0, bit for bit" if row.difference == 0 else f"{row.difference:.1e}",
        ]
        for row in outcomes
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
