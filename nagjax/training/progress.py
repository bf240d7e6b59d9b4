"""What a person sees of a run: a bar on a terminal, a line an evaluation elsewhere."""

import contextlib
import time
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from nagjax.training.distributed import is_main
from nagjax.training.reports import Record

EPOCH_RECORDS = 2  # a "train" and an "eval" record end an epoch


def formatted(metrics: dict[str, float]) -> str:
    """Metrics in one line: "loss 0.123, accuracy 0.98"."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


class Progress:
    """Rate, loss and time left of a run of `total` steps, which may be unknown; silent if not `shown`.

    Of several processes only process 0 shows it.
    """

    def __init__(self, *, shown: bool, total: int | None, done: int) -> None:
        shown = shown and is_main()
        self._shown, self._total = shown, total
        self._console = Console(stderr=True)
        self._first, self._start = done, 0.0  # of the first call that has returned, which waited for the compiler
        self._bar: Bar | None = None
        self._task: Any = None
        if shown and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            last = (TextColumn("{task.fields[metrics]}"), TimeRemainingColumn())
            self._bar = Bar(*columns, *last, console=self._console, transient=True)
            self._task = self._bar.add_task("training", total=total, completed=done, rate="", metrics="")

    def __enter__(self) -> "Progress":
        """Shows the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, epoch: int, done: int) -> None:
        """So many steps have been handed to the device."""
        if not self._start:
            self._first, self._start = done, time.perf_counter()
        if self._bar is not None:
            rate = f"{self._rate(done):,.4g} steps/s" if done > self._first else "compiled"
            self._bar.update(self._task, completed=done, description=f"epoch {epoch + 1}", rate=rate)

    @contextlib.contextmanager
    def pause(self) -> Generator[None]:
        """Time that does not count for the rate."""
        began = time.perf_counter()
        yield
        if self._start:
            self._start += time.perf_counter() - began

    def epoch(self, epoch: int, done: int, history: Sequence[Record]) -> None:
        """An epoch is complete: a line that stays, with the last metrics of each kind."""
        if not self._shown:
            return
        last = {record.kind: formatted(record.metrics) for record in history[-EPOCH_RECORDS:]}
        parts = [f"epoch {epoch}, step {done}"] + [f"{kind} {line}" for kind, line in last.items()]
        if self._bar is not None:
            self._bar.update(self._task, metrics=last.get("train", ""))
        if done > self._first:
            rate = self._rate(done)
            parts.append(f"{rate:,.4g} steps/s")
            if self._total is not None:
                parts.append(f"{(self._total - done) / rate:,.0f} s left")
        self._console.print("; ".join(parts), highlight=False, soft_wrap=True)

    def _rate(self, done: int) -> float:
        return (done - self._first) / max(time.perf_counter() - self._start, 1e-9)
