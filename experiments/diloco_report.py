"""The tables of `diloco`, what they say in words, and the same numbers as CSV."""

from __future__ import annotations

import csv
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.stats import t as student_t

from experiments.diloco_methods import BATCH, METHODS, PARALLEL, sent_bytes
from experiments.diloco_runs import Amount

WIDTH = 116
FEWEST_SEEDS = 3
Row = Mapping[str, Any]


def progress() -> Progress:
    """Returns the display of how many calls of compiled programs are done."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


@dataclass(frozen=True)
class Study:
    """All rows, and what follows from them."""

    rows: Sequence[Row]
    amount: Amount
    parameters: int
    text: str

    @property
    def most(self) -> int:
        """The largest number of workers, which are compared in all parts."""
        return max(self.amount.workers)

    def chosen(self, *, best: bool = True, **where: Any) -> list[Row]:
        """The rows with these values; of several grids the best one, or all."""
        return [
            row
            for row in self.rows
            if (row["best"] or not best) and all(row[name] == value for name, value in where.items())
        ]

    def reference(self, row: Row) -> Row:
        """Data parallel with the tokens and the steps of a row (a worker alone: with its steps)."""
        tokens = row["steps"] * row["batch"] if row["part"] != "alone" else row["steps"] * BATCH
        (found,) = self.chosen(part="parallel" if tokens == self.amount.steps * BATCH else "long",
                               method=PARALLEL, batch=BATCH)  # fmt: skip
        return found

    def excess(self, row: Row) -> NDArray[np.float64]:
        """Loss above that of data parallel at equal tokens, in percent, one a seed."""
        return 100 * (losses(row) / losses(self.reference(row)) - 1)

    def sent(self, row: Row) -> float:
        """Bytes that each of the workers sends in a run; data parallel as that many workers do."""
        if row["part"] == "alone":
            return 0.0
        workers = self.most if row["method"] == PARALLEL else row["workers"]
        return sent_bytes(self.parameters, workers, row["steps"] // row["period"])

    def show(self) -> None:
        """Prints the tables, then the findings."""
        console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
        amount, steps = self.amount, self.amount.steps
        tokens = f"{steps:,} steps of {BATCH} characters ({steps * BATCH:,} tokens)"
        if self.chosen(part="long"):
            tokens += f", or {amount.long_steps:,} steps ({amount.long_steps * BATCH:,} tokens) where so said"
        first = (
            f"{self.text}: a model of {self.parameters:,} parameters, {tokens}, shared by M workers. Loss in nats a "
            "character of held-out text at nagjax.eval_params, mean ± standard error over "
            f"{amount.seeds} seeds. Above: in percent of data parallel at equal tokens, paired by seed. Sent: "
            "megabytes a worker in ring all-reduces of float32. Rate: the inner peak, the best of the trials on "
            "another seed and other text; * at the edge of its range."
        )
        console.print(textwrap.fill(first, WIDTH))
        console.print(self._table("Data parallel, and Nesterov outside over AdamW inside", self._by_period()))
        outer = self.chosen(best=False, part="periods", workers=self.most, period=amount.compared_period)
        title = f"Outer steps, {self.most} workers, H = {amount.compared_period}"
        console.print(self._table(f"{title}, {steps // amount.compared_period:,} outer steps", outer))
        if few := self.chosen(best=False, part="few"):
            title = f"Few outer steps, {self.most} workers, H = {amount.long_period}"
            console.print(self._table(f"{title}, {steps // amount.long_period:,} outer steps", few))
        for line in self.findings():
            console.print(textwrap.fill(line, WIDTH, initial_indent="- ", subsequent_indent="  "))

    def _by_period(self) -> list[Row]:
        parallel = [row for part in ("alone", "parallel", "long") for row in self.chosen(part=part, method=PARALLEL)]
        nesterov = [row for part in ("periods", "long") for row in self.chosen(part=part, method="nesterov")]
        return parallel + sorted(nesterov, key=lambda row: (row["workers"], row["period"]))

    def _table(self, title: str, rows: Sequence[Row]) -> Table:
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for index, column in enumerate(
            (
                "",
                "M",
                "batch",
                "H",
                "steps",
                "outer\nsteps",
                "outer rate,\nmomentum",
                "rate",
                "loss",
                "above, %",
                "sent\nMB",
            )
        ):
            table.add_column(column, justify="right" if index else "left", no_wrap=True)
        for row in rows:
            parallel = row["method"] == PARALLEL
            table.add_row(
                name(row),
                str(self.most if parallel and row["part"] != "alone" else row["workers"]),
                str(row["batch"]),
                "-" if parallel else str(row["period"]),
                f"{row['steps']:,}",
                "-" if parallel else f"{row['steps'] // row['period']:,}",
                "-" if parallel else f"{row['outer_rate']:g}, {row['outer_momentum']:g}",
                f"{row['rate']:.2g}{'*' if row['at_edge'] else ''}",
                _spread(losses(row), ".4f"),
                _spread(self.excess(row), "+.2f"),
                _megabytes(self.sent(row)),
            )
        return table

    def findings(self) -> list[str]:
        """Returns what the tables say beside the published ordering."""
        if self.amount.seeds < FEWEST_SEEDS:
            return [f"{self.amount.seeds} seeds are too few to compare."]
        found = [
            "Published (DiLoCo, 2311.08105; its scaling laws, 2503.09799): one worker about as data parallel, the loss "
            "grows with M and shrinks with the model's size, and of the outer steps Nesterov is best. Clear: outside "
            "the 95 % interval of Student's t, paired by seed, not corrected for the number of comparisons.",
            *self._of_workers(),
            *self._of_methods(),
            *self._of_communication(),
            *self._of_rates(),
        ]
        edges = [f"{name(row)} M = {row['workers']} H = {row['period']}" for row in self.rows if row["at_edge"]]
        return found + ([f"At the edge of their range of rates: {'; '.join(edges)}."] if edges else [])

    def _of_workers(self) -> list[str]:
        lines: list[str] = []
        for period in (*self.amount.periods, self.amount.long_period):
            rows = [row for part in ("periods", "long") for row in self.chosen(part=part, method="nesterov",
                                                                               period=period)]  # fmt: skip
            if rows:
                rows.sort(key=lambda row: row["workers"])
                means = [float(self.excess(row).mean()) for row in rows]
                grows = "grows with M" if means == sorted(means) else "does not grow throughout"
                shown = ", ".join(f"M = {row['workers']}: {mean:+.2f}" for row, mean in zip(rows, means, strict=True))
                lines.append(f"H = {period}, percent above data parallel: {shown} ({grows}).")
        return lines

    def _of_methods(self) -> list[str]:
        lines: list[str] = []
        for part, period in ("periods", self.amount.compared_period), ("few", self.amount.long_period):
            rows = self.chosen(best=False, part=part, workers=self.most, period=period)
            own = [row for row in rows if row["method"] == "nesterov"]
            others = [row for row in rows if row["method"] != "nesterov" and row["best"]]
            for mine in own:
                found = [f"{name(row)} {_compared(self.excess(row) - self.excess(mine))}" for row in others]
                steps = mine["steps"] // period
                lines.append(
                    f"{steps:,} outer steps, M = {self.most}, H = {period}: points of percent above Nesterov with "
                    f"momentum {mine['outer_momentum']:g}{', the tuned one' if mine['best'] else ''}: "
                    f"{'; '.join(found)}."
                )
        return lines

    def _of_communication(self) -> list[str]:
        lines: list[str] = []
        everything = self.sent(self.chosen(part="parallel", batch=BATCH)[0])
        for period in self.amount.periods:
            large = self.chosen(part="parallel", batch=BATCH * period)
            rows = self.chosen(part="periods", method="nesterov", workers=self.most, period=period)
            if period > 1 and large and rows:
                gap = _compared(self.excess(rows[0]) - self.excess(large[0]))
                lines.append(
                    f"H = {period}, M = {self.most}: {_megabytes(self.sent(rows[0]))} of {_megabytes(everything)} MB a "
                    f"worker; against data parallel that sends as little, by {period} times the batch: {gap}."
                )
        return lines

    def _of_rates(self) -> list[str]:
        rows = self.chosen(best=False, part="periods", workers=self.most, period=self.amount.compared_period)
        base = self.chosen(part="parallel", batch=BATCH)[0]["rate"]
        found = [
            f"{name(row)} {row['outer_rate']:g}, {row['outer_momentum']:g}: {row['rate'] / base:.2g}" for row in rows
        ]
        return [f"Inner rates as multiples of data parallel's {base:.2g} (steps of a factor 2): {'; '.join(found)}."]


def losses(row: Row) -> NDArray[np.float64]:
    """Losses of a row, one a seed; NaN where a run diverged."""
    return np.array([np.nan if loss is None else loss for loss in row["losses"]], np.float64)


def name(row: Row) -> str:
    """What a row is called."""
    if row["part"] == "alone":
        return "one worker alone"
    return "data parallel" if row["method"] == PARALLEL else METHODS[row["method"]].label


def standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean; 0 for one value."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f}" if count >= 100e6 else f"{count / 1e6:.3g}"


def _spread(values: NDArray[np.float64], digits: str) -> str:
    return f"{values.mean():{digits}} ± {standard_error(values):{digits.lstrip('+')}}"


def _compared(gaps: NDArray[np.float64]) -> str:
    mean, error = float(gaps.mean()), standard_error(gaps)
    clear = abs(mean) > student_t.ppf(0.975, len(gaps) - 1) * error
    return f"{mean:+.2f} ± {error:.2f} ({'clear' if clear else 'not clear'})"


def write_csv(path: Path, study: Study) -> None:
    """Writes one line a row, all grids."""
    fields = ("part", "method", "workers", "batch", "period", "steps", "outer_rate", "outer_momentum", "best", "rate",
              "at_edge", "trials")  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*fields, "outer_steps", "tokens", "bytes_sent", "loss", "loss_error", "above_percent",
                         "above_error"))  # fmt: skip
        for row in study.rows:
            found, excess = losses(row), study.excess(row)
            writer.writerow(
                (
                    *(row[field] for field in fields),
                    row["steps"] // row["period"],
                    row["steps"] * row["batch"],
                    round(study.sent(row)),
                    *(f"{value:.6g}" for value in (found.mean(), standard_error(found),
                                                   excess.mean(), standard_error(excess))),
                )
            )  # fmt: skip
