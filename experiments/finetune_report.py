"""The tables of `pretrain_finetune`, and what they say in words."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.stats import t as student_t

from experiments.finetune_text import VARIANTS

WIDTH = 116
FEWEST_SEEDS = 3
LABELS = {variant.name: variant.label for variant in VARIANTS}
Rows = Sequence[Mapping[str, Any]]


def progress() -> Progress:
    """Returns the display of what has been done in each part."""
    return Progress(SpinnerColumn(), TextColumn("{task.description}: {task.completed:.0f} pieces"), TimeElapsedColumn())


def show(parts: Mapping[str, Any]) -> None:
    """Prints a table for each part, then the findings."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for name, table in TABLES.items():
        if name in parts:
            table(console, parts[name])
    for line in findings(parts):
        console.print(textwrap.fill(line, WIDTH, initial_indent="- ", subsequent_indent="  "))


def values(rows: Rows, field: str, **where: Any) -> NDArray[np.float64]:
    """Returns one number a seed, in the order of the rows; NaN where a run diverged."""
    chosen = [row[field] for row in rows if all(row[name] == value for name, value in where.items())]
    return np.array([np.nan if value is None else value for value in chosen], np.float64)


def difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float, bool]:
    """Mean of the differences paired by seed, half of its 95 % interval by Student's t, and whether 0 is outside."""
    gaps = one - other
    mean = float(gaps.mean())
    half = float(student_t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5)
    return mean, half, abs(mean) > half


def findings(parts: Mapping[str, Any]) -> list[str]:
    """Returns what differs by more than the spread, and what does not."""
    lines = [
        "Differences are paired by seed, with half of the 95 % interval of Student's t: clear ones are outside it. "
        "They are not corrected for the number of comparisons."
    ]
    for name, say in FINDINGS.items():
        if name not in parts:
            continue
        seeds = len({row["seed"] for row in parts[name]["rows"] if "seed" in row})
        if 0 < seeds < FEWEST_SEEDS:
            lines.append(f"{name}: {seeds} seeds are too few to compare.")
        else:
            lines += say(parts[name])
    return lines


def _text_table(console: Console, part: Mapping[str, Any]) -> None:
    first, second = part["texts"]
    streams = np.array([run["stream"] for run in part["pretraining"]], np.float64)
    tenth = max(streams.shape[1] // 10, 1)
    console.print(
        f"\n[bold]text[/bold]: one pass through {part['updates'] * part['characters_an_update']:,} characters of "
        f"{first}: "
        f"{_spread(streams[:, :tenth].mean(1), '.2f')} bits a character in the first tenth, "
        f"{_spread(streams[:, -tenth:].mean(1), '.2f')} in the last, each batch before the update on it."
    )
    characters = part["fine_tuning_updates"] * part["characters_an_update"]
    table = _table(
        f"Fine-tuning on {characters:,} characters of {second}, bits a character",
        ("", "rate", "held out,\nat the end", "the stream", "its first\n50 batches"),
    )
    rows = part["rows"]
    for variant in VARIANTS:
        found = [
            _spread(values(rows, field, variant=variant.name), ".3f") for field in ("final", "stream_mean", "early")
        ]
        table.add_row(variant.label, f"{part['rates'][variant.name]:g}", *found)
    console.print(table)
    seeds = len(part["pretraining"])
    tuned = (
        "rates chosen by a seed that is not shown, on the same held-out text" if part["tuning"] else "rates not tuned"
    )
    _caption(
        console,
        f"Mean ± standard deviation over {seeds} seeds; {tuned}; the last three rows share one, unlike the "
        f"{part['pretraining_rate']:g} of pretraining. Held out: {part['held_out']:,} characters of the last tenth of "
        "the text, at the answer of nagjax.eval_params. The stream: each batch before the update on it, at the query "
        "point. Lower layers: embeddings and the first block.",
    )


def _image_table(console: Console, part: Mapping[str, Any]) -> None:
    first, second = part["sets"]
    accuracy = np.array([run["accuracy"] for run in part["pretraining"]])
    title = (
        f"images: pretrained on {first} ({part['images']['pretraining']:,} images, {part['epochs']} epochs: "
        f"{_spread(100 * accuracy, '.1f')} %), then {second}: accuracy in % after 1 epoch -> after {part['epochs']}"
    )
    table = _table(title, ("", *(f"{count:,} examples" for count in part["examples"])))
    for name in dict.fromkeys(row["variant"] for row in part["rows"]):
        cells: list[str] = []
        for count in part["examples"]:
            rows = [row for row in part["rows"] if row["variant"] == name and row["examples"] == count]
            start = 100 * float(np.mean([row["accuracies"][0] for row in rows]))
            cells.append(f"{start:.0f} -> {_spread(100 * values(rows, 'final'), '.1f')}")
        table.add_row(LABELS[name], *cells)
    console.print(table)
    tuned = "rates chosen by a seed that is not shown" if part["tuning"] else "rates not tuned"
    _caption(
        console,
        f"{part['images']['test']:,} test images, {tuned}. The last layer starts anew. Lower layers: the convolutions.",
    )


def _arrival_table(console: Console, part: Mapping[str, Any]) -> None:
    table = _table(
        f"arrival: the capacity is {part['capacity']:,.0f} samples a second "
        f"(at most {part['samples_an_update']} samples an update, {part['queue_capacity']} waiting)",
        ("rate, policy", "offered\na second", "trained\na second", "an\nupdate", "latency ms\np50 / p99",
         "update ms\np50 / p99", "dropped", "slowed\ndown s", "bits"),
    )  # fmt: skip
    for row in part["rows"]:
        late, update = row["latency_ms"], row["update_ms"]
        table.add_row(
            row["label"],
            f"{row['rate']:,.0f}",
            f"{row['samples_a_second']:,.0f}",
            f"{row['samples_an_update']:.1f}",
            f"{late['p50']:.1f} / {late['p99']:.1f}",
            f"{update['p50']:.1f} / {update['p99']:.1f}",
            f"{row['dropped']:,} of {row['offered']:,}",
            f"{row['blocked_seconds']:.2f}",
            f"{row['stream_mean']:.2f}",
        )
    console.print(table)
    _caption(
        console,
        f"{part['seconds']:g} s each. A sample is {part['characters_a_sample']} characters. Latency: from the arrival "
        "of a sample to the end of the update on it; update: that of the update alone. Bits a character of what was "
        "trained on, before the update on it.",
    )


def _rate_table(console: Console, part: Mapping[str, Any]) -> None:
    table = _table(
        f"rate: {part['shift'] * part['characters_an_update']:,} characters of each text, bits a character",
        ("", "rate", "whole stream", "after the change"),
    )
    for name, label in part["labels"].items():
        rows = [row for row in part["rows"] if row["rival"] == name]
        cells = [_spread(values(rows, field), ".3f") for field in ("mean", "after_shift")]
        table.add_row(label, f"{rows[0]['rate']:g}", *cells)
    console.print(table)
    _caption(
        console,
        f"Each batch before the update on it. Rates: the best of {len(part['tuning']['fixed'])} on a seed that is not "
        "shown. After the change: the first quarter of the second text.",
    )


def _text_findings(part: Mapping[str, Any]) -> list[str]:
    rows = part["rows"]

    def against(names: Iterable[str], reference: str, field: str) -> str:
        return "; ".join(
            _compared(LABELS[name], values(rows, field, variant=name), values(rows, field, variant=reference), ".3f")
            for name in names
        )

    early = against(("kept", "rescaled"), "reset", "early")
    final = against(("kept", "rescaled"), "reset", "final")
    return [
        f"Held out, against from scratch: {against(('all', 'frozen', 'slow'), 'scratch', 'final')}.",
        f"Held out, against all layers: {against(('frozen', 'slow'), 'all', 'final')}.",
        f"At {part['rates']['kept'] / part['pretraining_rate']:g} of the rate, against momentum reset: first batches: "
        f"{early}; held out at the end: {final}.",
    ]


def _image_findings(part: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for count in part["examples"]:
        rows = [row | {"first": row["accuracies"][0]} for row in part["rows"] if row["examples"] == count]
        scratch = [row for row in rows if row["variant"] == "scratch"]
        found = [
            _compared(
                f"{LABELS[name]}, {when}",
                100 * values(rows, field, variant=name),
                100 * values(scratch, field),
                ".1f",
                better=1,
            )
            for field, when in (("first", "1 epoch"), ("final", f"{part['epochs']} epochs"))
            for name in ("all", "frozen", "slow")
        ]
        lines.append(f"{count:,} images, points of accuracy against from scratch: {'; '.join(found)}.")
    return lines


def _rate_findings(part: Mapping[str, Any]) -> list[str]:
    rows = part["rows"]
    lines: list[str] = []
    for field, where in (("mean", "whole stream"), ("after_shift", "after the change")):
        found = [
            _compared(
                part["labels"][name], values(rows, field, rival="adaptive"), values(rows, field, rival=name), ".3f"
            )
            for name in ("fixed", "clipped")
        ]
        lines.append(f"The rate that follows the gradient, {where}, against: {'; '.join(found)}.")
    return lines


def _arrival_findings(part: Mapping[str, Any]) -> list[str]:
    named = {row["label"]: row for row in part["rows"]}
    over = [row for row in part["rows"] if row["share"] > 1]
    shares = ", ".join(f"{100 * row['dropped'] / row['offered']:.0f} % ({row['policy']})" for row in over)
    return [
        f"At twice the capacity, dropped: {shares}. The median sample waits "
        f"{named['2x, drop oldest']['latency_ms']['p50']:.0f} ms where the oldest are dropped and "
        f"{named['2x, drop newest']['latency_ms']['p50']:.0f} ms where the newest are."
    ]


def _compared(label: str, one: NDArray[np.float64], other: NDArray[np.float64], digits: str, better: int = -1) -> str:
    mean, half, clear = difference(one, other)
    verdict = "not clear" if not clear else "better" if better * mean > 0 else "worse"
    return f"{label} {mean:+{digits}} ± {half:{digits}} ({verdict})"


def _spread(found: NDArray[np.float64], digits: str) -> str:
    deviation = float(found.std(ddof=1)) if len(found) > 1 else 0.0
    return f"{found.mean():{digits}} ± {deviation:{digits}}"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _caption(console: Console, text: str) -> None:
    console.print(textwrap.fill(text, WIDTH) + "\n")


TABLES: dict[str, Callable[[Console, Mapping[str, Any]], None]] = {
    "text": _text_table,
    "images": _image_table,
    "arrival": _arrival_table,
    "rate": _rate_table,
}
FINDINGS: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "text": _text_findings,
    "images": _image_findings,
    "arrival": _arrival_findings,
    "rate": _rate_findings,
}
