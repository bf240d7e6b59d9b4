"""The measurements of `scaling`: what is equal, what is sent and held, and how long a step takes."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments import scaling_children
from experiments.scaling_rows import LAYOUTS, Expected, expected

if TYPE_CHECKING:
    from experiments.output import Run
    from experiments.scaling import Config
    from experiments.scaling_children import Child

TOGETHER = 4  # devices that the processes share
Row = tuple[int, str, int]  # devices, layout, examples of a batch


@dataclass(frozen=True)
class Training:
    """The parameters of one run against those of one device."""

    layout: str
    devices: int
    processes: int
    difference: float  # max |a - b| / max |b|, the largest over the arrays
    distributed: bool = False  # whether by `jax.distributed`, whose collectives are gloo's even inside a process


@dataclass(frozen=True)
class Bytes:
    """What one compiled step sends, and what one device holds, measured and by formula."""

    layout: str
    devices: int
    sent: float
    kinds: Mapping[str, float]
    parameters: int
    optimizer: int
    whole: int  # arrays of the optimizer's state that lie whole on every device
    formula: Expected


@dataclass(frozen=True)
class Timed:
    """The time of a step, and that of a unit of work over one device's in the same round."""

    layout: str
    devices: int
    processes: int
    scaling: str  # "strong": the same batch; "weak": a batch that grows with the devices; "processes": as strong
    examples: int
    milliseconds: float  # median over the rounds
    ratio: float  # median
    quartiles: tuple[float, float]


@dataclass
class Measured:
    """All that was measured."""

    trainings: list[Training] = field(default_factory=list)
    programs: list[Bytes] = field(default_factory=list)
    times: list[Timed] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # of each part


def measure(config: Config, run: Run) -> Measured:
    """Runs all processes of the experiment."""
    measured = Measured()
    with scaling_children.children(config.devices) as children, tempfile.TemporaryDirectory() as folder:
        with _clock(measured, "equal results"):
            reference = _compare(config, Path(folder), children, measured, run)
        with _clock(measured, "step times"):
            _time(config, children, measured, run)
        with _clock(measured, "processes"):
            for processes in config.processes:
                _processes(config, Path(folder), processes, reference, children[1], measured, run)
    return measured


def difference(one: list[NDArray[Any]], other: list[NDArray[Any]]) -> float:
    """The largest difference of two lists of arrays, each relative to the largest entry of its array in `other`."""
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(one, other, strict=True))


def ratios(rounds: Sequence[Mapping[Row, float]], row: Row, reference: Row, work: float) -> NDArray[np.float64]:
    """In each round the time of a row for one unit of work over that of the reference; `work` is what the row does."""
    return np.array([times[row] / work / times[reference] for times in rounds])


def _compare(
    config: Config, folder: Path, children: Mapping[int, Child], measured: Measured, run: Run
) -> list[NDArray[Any]]:
    """Trains on every number of devices; returns the parameters of one device."""
    reference: list[NDArray[Any]] = []
    path = folder / "parameters.npz"
    _prepare(children, [(devices, layout, config.examples) for layout in LAYOUTS for devices in children])
    for devices, child in children.items():
        for layout in LAYOUTS:
            child.ask("train", layout, config.examples, steps=config.steps, path=str(path))
            found = _taken(path)
            reference = reference or found
            measured.trainings.append(Training(layout, devices, 1, difference(found, reference)))
            program = child.ask("inspect", layout, config.examples)
            measured.programs.append(
                Bytes(
                    layout,
                    devices,
                    program["sent_bytes"],
                    program["kinds"],
                    program["parameter_bytes"],
                    program["optimizer_bytes"],
                    len(program["whole"]),
                    expected(layout, devices),
                )
            )
            run.log({"training": measured.trainings[-1]})
            run.log({"program": measured.programs[-1]})
    return reference


def _prepare(children: Mapping[int, Child], rows: Iterable[Row]) -> None:
    """Compiles the programs of rows in all processes at once, and takes their first steps, which are slower."""
    asked = []
    for devices, layout, examples in rows:
        children[devices].send("time", layout, examples, steps=2)
        asked.append(children[devices])
    for child in asked:
        child.answer()


def _time(config: Config, children: Mapping[int, Child], measured: Measured, run: Run) -> None:
    """Times every row once a round, in a new order."""
    weak = config.examples // max(config.devices)
    rows = {(devices, layout, config.examples): "strong" for devices in children for layout in LAYOUTS}
    rows |= {(devices, LAYOUTS[0], weak * devices): "weak" for devices in children if devices < max(children)}

    def seconds(row: Row) -> float:
        devices, layout, examples = row
        return float(np.median(children[devices].ask("time", layout, examples, steps=config.timed_steps)["seconds"]))

    _prepare(children, rows)
    order, rng = list(rows), random.Random(0)
    rounds = []
    for _ in range(config.rounds):
        rng.shuffle(order)
        rounds.append({row: seconds(row) for row in order})
    # The largest batch of weak scaling is that of strong scaling: one row serves both.
    for row, scaling in [*rows.items(), ((max(children), LAYOUTS[0], config.examples), "weak")]:
        one = (1, row[1], config.examples) if scaling == "strong" else (1, row[1], weak)
        found = ratios(rounds, row, one, row[2] / one[2])
        measured.times.append(_timed(row, 1, scaling, [times[row] for times in rounds], found))
        run.log({"time": measured.times[-1], "seconds": [times[row] for times in rounds]})


def _processes(
    config: Config,
    folder: Path,
    processes: int,
    reference: list[NDArray[Any]],
    alone: Child,
    measured: Measured,
    run: Run,
) -> None:
    """The same trainings by several processes with `TOGETHER` devices in all, timed beside one device."""
    paths = {layout: folder / f"parameters{number}.npz" for number, layout in enumerate(LAYOUTS)}
    shared = {"examples": config.examples}
    commands: list[dict[str, Any]] = [
        {"do": "train", "layout": layout, "steps": config.steps, "path": str(path), **shared}
        for layout, path in paths.items()
    ]
    steps = config.timed_steps * config.rounds
    commands.append({"do": "time", "layout": LAYOUTS[0], "steps": steps, **shared})
    answers = scaling_children.launched(processes, TOGETHER // processes, commands, folder)
    for (layout, path), answer in zip(paths.items(), answers, strict=False):
        if (answer["processes"], answer["devices"]) != (processes, TOGETHER):
            raise scaling_children.ChildError(f"scaling: asked for {processes} processes, got {answer}.")
        measured.trainings.append(Training(layout, TOGETHER, processes, difference(_taken(path), reference), True))
        run.log({"training": measured.trainings[-1]})
    one = float(np.median(alone.ask("time", LAYOUTS[0], config.examples, steps=steps)["seconds"]))
    seconds = answers[-1]["seconds"]
    measured.times.append(
        _timed((TOGETHER, LAYOUTS[0], config.examples), processes, "processes", seconds, np.array(seconds) / one)
    )
    run.log({"time": measured.times[-1]})


def _timed(row: Row, processes: int, scaling: str, seconds: list[float], found: NDArray[np.float64]) -> Timed:
    low, middle, high = (float(np.quantile(found, share)) for share in (0.25, 0.5, 0.75))
    devices, layout, examples = row
    return Timed(layout, devices, processes, scaling, examples, 1e3 * float(np.median(seconds)), middle, (low, high))


def _taken(path: Path) -> list[NDArray[Any]]:
    """The arrays of a file, which is removed."""
    with np.load(path) as arrays:
        found = [arrays[name] for name in arrays.files]
    path.unlink()
    return found


@contextmanager
def _clock(measured: Measured, part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    measured.seconds[part] = time.perf_counter() - start
