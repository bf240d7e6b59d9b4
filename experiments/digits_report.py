"""The table of `digits`, what it says in words, and the resources of the process."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t

from experiments.digits_rivals import RIVALS, TUNED
from experiments.digits_runs import Entry

WIDTH = 116
METRICS: tuple[tuple[str, int, str, Callable[[Entry], NDArray[np.float64]]], ...] = (
    ("Test accuracy (points)", 1, ".2f", lambda entry: 100 * entry.last("test_accuracy")),
    ("Epochs to 95 % validation accuracy", -1, ".1f", lambda entry: entry.epochs_to_target),
    ("Validation loss", -1, ".4f", lambda entry: entry.last("validation_loss")),
    ("Training loss", -1, ".4f", lambda entry: entry.last("train_loss")),
)


def show(entries: Sequence[Entry], storages: Sequence[Entry], epochs: int) -> None:
    """Prints both tables, their captions and the findings."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    used = process()
    caption = (
        f"Mean ± standard deviation over {len(entries[0].run_seconds)} seeds after {epochs} epochs or the stop by "
        "patience, dropout off. Test: 360 images, the same for all seeds; validation: 144 images, drawn for each seed. "
        "Nesterov and heavy ball are evaluated at nagjax.eval_params, the others at their parameters. To 95 %: the "
        "first epoch whose validation accuracy is at least 95 % (mean over the seeds that reach it; in brackets how "
        "many, if not all), and that number times the seconds of one epoch. A run is one compiled program, so an "
        "epoch's time is the median over seeds of the time of a run divided by its epochs; it includes the evaluation "
        "on all images, not the compilation. b: momentum; for Sutskever its limit, for Demon its start, for restarts "
        "the friction r, for Adam and NAdam b1. Program: arguments, results and buffers as XLA plans them. Process: "
        f"peak {used['peak_memory_mb']:.0f} MB resident, cores used: {used['cores']}, {used['cpu_seconds']:.0f} s of "
        "CPU time."
    )
    console.print(_table("Optimizers", entries))
    console.print(textwrap.fill(caption, WIDTH) + "\n")
    console.print(_table("Nesterov, constant momentum: storage of the velocity", storages, stored=True))
    for line in findings(entries, storages):
        console.print(textwrap.fill(line, WIDTH, initial_indent="- ", subsequent_indent="  "))


def _table(title: str, entries: Sequence[Entry], *, stored: bool = False) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("storage" if stored else "optimizer", no_wrap=True)
    for header in ("rate, b", "test %", "validation %", "epochs\nto 95 %", "seconds\nto 95 %", "compile\nseconds",
                   "state\nbytes", "program\nMB"):  # fmt: skip
        table.add_column(header, justify="right", no_wrap=True)
    for entry in entries:
        epochs = entry.epochs_to_target
        reached = int(np.isfinite(epochs).sum())
        mean = float(np.nanmean(epochs)) if reached else float("nan")
        table.add_row(
            entry.name if stored else entry.rival.label,
            f"{entry.rate:g}, {entry.second:g}" if entry.rival.second else f"{entry.rate:g}",
            _percent(entry.last("test_accuracy")),
            _percent(entry.last("validation_accuracy")),
            (f"{mean:.1f}" if reached else "never") + ("" if reached == len(epochs) else f" ({reached}/{len(epochs)})"),
            f"{mean * entry.epoch_seconds:.3f}" if reached else "-",
            f"{entry.compile_seconds:.1f}",
            f"{entry.state_bytes:,}",
            f"{entry.program_bytes / 1e6:.2f}",
        )
    return table


def _percent(values: NDArray[np.float64]) -> str:
    return f"{100 * values.mean():.2f} ± {100 * _deviation(values):.2f}"


def _deviation(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def findings(entries: Sequence[Entry], storages: Sequence[Entry]) -> list[str]:
    """Returns where constant Nesterov wins and where it does not, each difference paired by seed."""
    if len(storages[0].run_seconds) < 2:
        return []
    lines = [
        "Differences from Nesterov with constant momentum (storages: from float32), paired by seed, ± standard error. "
        "Better and worse are outside the 95 % interval of Student's t, not corrected for the number of comparisons; "
        "~ is inside."
    ]
    named = {entry.name: entry for entry in entries}
    reference = named.pop("nesterov", None)
    for title, sign, digits, values in METRICS:
        if reference is not None and named:
            found = [
                _compare(entry.rival.label, values(entry) - values(reference), sign, digits) for entry in named.values()
            ]
            lines.append(_line(title, found))
    for title, sign, digits, values in METRICS[:3:2]:
        found = [_compare(entry.name, values(entry) - values(storages[0]), sign, digits) for entry in storages[1:]]
        lines.append(_line(f"{title} by storage", found))
    return lines


def _line(title: str, found: Sequence[str]) -> str:
    return f"{title}: {'; '.join(filter(None, found)) or 'too few seeds to compare'}."


def _compare(label: str, gaps: NDArray[np.float64], sign: int, digits: str) -> str:
    gaps = gaps[np.isfinite(gaps)]
    if len(gaps) < 2:
        return ""
    mean, error = float(gaps.mean()), _deviation(gaps) / len(gaps) ** 0.5
    clear = abs(mean) > student_t.ppf(0.975, len(gaps) - 1) * error
    verdict = "~" if not clear else "better" if sign * mean > 0 else "worse"
    return f"{label} {mean:+{digits}} ± {error:{digits}} ({verdict})"


def tuning(tuned: dict[str, dict[str, Any]]) -> str:
    """Returns the lines of `TUNED` that tuning found, beside what is recorded."""
    lines = ["Tuned: (learning rate, second), the lowest mean validation loss of all trials"]
    for name, trial in tuned.items():
        found = (trial["learning_rate"], trial["second"])
        note = "as recorded" if found == TUNED[name] else f"recorded: {TUNED[name]}"
        edge = f"; at the edge of the range: {', '.join(trial['at_edge'])}" if trial["at_edge"] else ""
        lines.append(f'    "{name}": {found},  # {RIVALS[name].label}: loss {trial["loss"]:.4f}; {note}{edge}')
    return "\n".join(lines)


def process() -> dict[str, Any]:
    """Returns the peak memory, the cores and the CPU time of this process."""
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except ImportError:
        peak = 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    scale = 1e6 if sys.platform == "darwin" else 1e3
    return {"peak_memory_mb": peak / scale, "cores": cores, "cpu_seconds": time.process_time()}
