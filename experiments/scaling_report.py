"""The tables of `scaling`, and which of its claims do not hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.scaling_cost import JOBS, SHARE, WIRES, Row

if TYPE_CHECKING:
    from experiments.scaling import Config
    from experiments.scaling_runs import Bytes, Measured

WIDTH = 128
LARGEST_DIFFERENCE = 1e-6
SCALARS = 256  # bytes that a step may send beside the arrays: loss, norm and restart test
COUNTERS = 16  # bytes of an optimizer's state beside the velocity


def failures(measured: Measured) -> list[str]:
    """The claims that do not hold, in words; none where all do."""
    wrong = [
        f"  {training.layout}, {training.devices} devices in {training.processes} processes: parameters differ from "
        f"those of one device by {training.difference:.1e}, more than {LARGEST_DIFFERENCE:.0e}."
        for training in measured.trainings
        # NaN differs too.
        if not training.difference <= LARGEST_DIFFERENCE
    ]
    for program in measured.programs:
        name = f"  {program.layout}, {program.devices} devices:"
        if not 0 <= program.sent - program.formula.sent <= SCALARS:
            wrong.append(
                f"{name} a step sends {program.sent:,.0f} bytes, the formula says {program.formula.sent:,.0f}."
            )
        if program.parameters != program.formula.parameters:
            wrong.append(f"{name} {program.parameters:,} bytes of parameters, not {program.formula.parameters:,}.")
        if not 0 <= program.optimizer - program.formula.velocity <= COUNTERS:
            wrong.append(f"{name} {program.optimizer:,} bytes of state, not {program.formula.velocity:,}.")
    return wrong


def show(config: Config, measured: Measured, model: Sequence[Row]) -> None:
    """Prints the tables."""
    console = Console(width=max(Console().width, WIDTH))
    _equal(console, config, measured)
    _programs(console, measured)
    _times(console, config, measured)
    _model(console, model)
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in measured.seconds.items())
    console.print(f"Time: {parts}.", highlight=False)


def _equal(console: Console, config: Config, measured: Measured) -> None:
    console.print(
        f"\n[bold]Equal results[/]: parameters after {config.steps} steps (float32), largest difference from those of "
        f"one device over the largest entry of the array; at most {LARGEST_DIFFERENCE:.0e} is claimed.",
        highlight=False,
    )
    table = _table("devices", "processes", "data parallel", "ZeRO-1", "FSDP")
    runs: dict[tuple[bool, int, int], list[float]] = {}
    for training in measured.trainings:
        runs.setdefault((training.distributed, training.processes, training.devices), []).append(training.difference)
    for (distributed, processes, devices), found in sorted(runs.items()):
        label = f"{processes}, by gloo" if distributed else str(processes)
        table.add_row(str(devices), label, *(f"{value:.1e}" for value in found))
    console.print(table)


def _programs(console: Console, measured: Measured) -> None:
    console.print(
        "[bold]Bytes[/] of one device: sent in a step, read from the compiled program and weighed as ring collectives, "
        "beside the formula; held. 'Best' is the formula where gradients are reduce-scattered, which XLA's CPU backend "
        "does not do. 'Of it' is the optimizer's share of its bytes on one device, 'whole' the number of its arrays "
        "that lie whole on every device (two are counters).",
        highlight=False,
    )
    table = _table(
        "layout", "devices", "sent", "formula", "best", "parameters", "optimizer", "of it", "whole", "collectives"
    )
    for program in measured.programs:
        table.add_row(
            program.layout,
            str(program.devices),
            f"{program.sent:,.0f}",
            f"{program.formula.sent:,.0f}",
            f"{program.formula.best:,.0f}",
            f"{program.parameters:,}",
            f"{program.optimizer:,}",
            _share(program, measured.programs),
            str(program.whole),
            ", ".join(sorted(program.kinds)) or "none",
        )
    console.print(table)


def _share(program: Bytes, programs: Sequence[Bytes]) -> str:
    """How the optimizer's bytes compare with those of one device."""
    one = next(other for other in programs if other.layout == program.layout and other.devices == 1)
    return f"1/{one.optimizer / program.optimizer:.3g}"


def _times(console: Console, config: Config, measured: Measured) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    console.print(
        f"[bold]Times[/] of a step. All virtual devices share {cores} cores: more of them add no arithmetic, and ideal "
        "is that a unit of work takes 1.00 times as long as on one device in the same round. What is above is the cost "
        f"of cutting and communicating. {config.rounds} rounds, medians and quartiles. 'Processes' are those of "
        "jax.distributed: the same 4 devices, which communicate by gloo through the loopback interface, even inside a "
        "process.",
        highlight=False,
    )
    table = _table("scaling", "layout", "devices", "processes", "batch", "ms", "a unit of work", "quartiles")
    for row in measured.times:
        table.add_row(
            row.scaling,
            row.layout,
            str(row.devices),
            str(row.processes),
            str(row.examples),
            f"{row.milliseconds:.1f}",
            f"{row.ratio:.2f}",
            f"{row.quartiles[0]:.2f} to {row.quartiles[1]:.2f}",
        )
    console.print(table)


def _model(console: Console, model: Sequence[Row]) -> None:
    sizes = [f"{job.parameters / 1e9:g} B, {job.pods} x {job.devices}" for job in JOBS]
    wires = ", ".join(WIRES)
    console.print(
        f"[bold]On paper[/]: the smallest period H at which communication between {JOBS[0].pods} pods takes at most "
        f"{SHARE:.0%} of the time, with {wires} on the wire; in brackets how many times as long a step of data "
        f"parallel training takes (bf16). {JOBS[0].tokens:,} tokens a device and step at {JOBS[0].utilization:.0%} of "
        "peak FLOP/s; columns: parameters, pods x devices. Every device has the link, or a site shares one. "
        "No overlap; docs/cost_model.md has the sources.",
        highlight=False,
    )
    table = _table("device", "link between pods", *sizes)
    for row in model:
        table.add_row(row.chip, row.link, *(cell(row, job) for job in range(len(JOBS))))
    console.print(table)


def cell(row: Row, job: int) -> str:
    """The periods of one job and, in brackets, the slowdown of data parallel training."""
    slower = row.data_parallel[job]
    return f"{'/'.join(str(row.periods[wire][job]) for wire in WIRES)} ({slower:.{2 if slower < 10 else 0}f})"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    left = ("layout", "scaling", "device", "link between pods", "collectives")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table
