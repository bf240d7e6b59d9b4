"""The tables of `bench_training`."""

from __future__ import annotations

import math
import os
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def load() -> list[float] | None:
    """Processes that wanted a core, on average of the last 1, 5 and 15 minutes: what else the machine was doing."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def show(case: str, measured: dict[str, Any]) -> None:
    """Prints the rows of one case, what is missing, and the targets."""
    console = Console(width=max(Console().width, 128))
    reference = next(iter(measured["rows"]))
    console.print(
        f"\n[bold]{case}[/]: {measured['what']}; {measured['arrays']} arrays, {measured['parameters']:,} parameters. "
        f"Times of a step, {measured['rounds']} rounds; compilation in CPU seconds; median distance of {reference!r} "
        f"from itself {100 * measured['spread']:.1f} %.",
        highlight=False,
    )
    memory = any("peak_bytes" in row for row in measured["rows"].values())
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = ["row", "ms", "CPU ms", "times as fast", "quartiles", "first call s"]
    for column in [*columns, *(["compile s", "peak MB", "needed MB"] if memory else [])]:
        table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    for name, row in measured["rows"].items():
        low, high = row["quartiles"]
        cells = [
            name,
            f"{row['milliseconds']:.3g}",
            "-" if math.isnan(row["cpu_milliseconds"]) else f"{row['cpu_milliseconds']:.3g}",
            f"{row['ratio']:.3g}",
            f"{low:.3g} to {high:.3g}",
            f"{row['first_call_seconds']:.2f}",
        ]
        if "peak_bytes" in row:
            megabytes = (f"{row[key] / 1e6:.2f}" for key in ("peak_bytes", "bound_bytes"))
            cells += [f"{row['compile_seconds']:.2f}", *megabytes]
        table.add_row(*cells)
    console.print(table)
    for line in measured["missing"]:
        console.print(f"  {line}", highlight=False, markup=False)
    for target in measured["targets"]:
        console.print(f"  {sentence(target)}", highlight=False, soft_wrap=True)


def sentence(target: dict[str, Any]) -> str:
    """One target in words."""
    low, high = target["quartiles"]
    spread = f" ({low:.3g} to {high:.3g})" if low != high else ""
    spread += f", by CPU time {target['cpu_value']:.3g}" if "cpu_value" in target else ""
    asked = f"{'at least' if target['at_least'] else 'at most'} {target['bound']:.3g}"
    return f"{target['what']}: {target['value']:.3g}{spread}, target {asked}: {target['verdict']}"
