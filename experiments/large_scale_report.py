"""The tables of `large_scale`, and what they say in words."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.large_scale_methods import LABELS, LBFGS, Clip, RateSetter

if TYPE_CHECKING:
    from experiments.large_scale import Config
    from experiments.large_scale_cost import Cost
    from experiments.large_scale_stream import Stream
    from experiments.large_scale_training import Curve, Task, Trainer

WIDTH = 116
LOST = 1.0  # a final loss at which a run counts as lost; guessing among ten classes has 2.3


@dataclass(frozen=True)
class Entry:
    """One optimizer: its tuned rate, the trials of tuning, and a run for each seed."""

    name: str
    rate: float
    trials: list[dict[str, Any]]
    compile_seconds: float
    curves: list[Curve]

    @property
    def label(self) -> str:
        return LABELS[self.name]

    def last(self, quantity: str) -> NDArray[np.float64]:
        """The last values of "losses", "accuracies", "seconds" or "steps", one a seed."""
        return np.array([getattr(curve, quantity)[-1] for curve in self.curves], float)

    def record(self) -> dict[str, Any]:
        found = {name: self.last(name) for name in ("losses", "accuracies", "seconds", "steps")}
        return {"optimizer": self.name, "rate": self.rate, "compile_seconds": self.compile_seconds, "last": found}


@dataclass(frozen=True)
class Clipping:
    """Nesterov with one bound at a multiple of its tuned rate, a run for each seed."""

    clip: Clip
    factor: float
    curves: list[Curve]

    @property
    def losses(self) -> NDArray[np.float64]:
        return np.array([curve.losses[-1] for curve in self.curves])

    @property
    def accuracies(self) -> NDArray[np.float64]:
        return np.array([curve.accuracies[-1] for curve in self.curves])

    def share(self, quantity: str) -> float:
        """The mean over seeds of "clipped_steps" or "clipped_elements"."""
        return float(np.mean([getattr(curve, quantity) for curve in self.curves]))

    def record(self) -> dict[str, Any]:
        shares = {name: self.share(name) for name in ("clipped_steps", "clipped_elements")}
        return {"clip": self.clip.label, "factor": self.factor, "losses": self.losses, "accuracies": self.accuracies,
                **shares}  # fmt: skip


def tuned(label: str, trials: Sequence[Mapping[str, float]]) -> str:
    """One line: the rates that were tried and the validation losses."""
    if len(trials) == 1 and np.isnan(trials[0]["loss"]):
        return f"{label}: recorded rate {trials[0]['rate']:.3g}."
    best = min(trials, key=lambda trial: trial["loss"])
    edge = " (an end of the range)" if len(trials) > 1 and best in (trials[0], trials[-1]) else ""
    tried = ", ".join(f"{trial['rate']:.3g}: {trial['loss']:.4f}" for trial in trials)
    return f"{label}: validation loss by rate {tried}; {best['rate']:.3g} is taken{edge}."


def setter(setter: RateSetter, entries: Sequence[Entry], trainers: Mapping[str, Trainer]) -> str:
    """The learning-rate setter in words, for each optimizer that takes a rate."""
    return "\n".join(
        f"{entry.label}, {setter.sentence(entry.rate, int(entry.last('steps')[0]))}."
        for entry in entries
        if entry.name in trainers
    )


def show_training(task: Task, config: Config, entries: Sequence[Entry], budget: float) -> None:
    """Prints the table at equal time, its caption and the findings."""
    table = _table(f"{task.title}, CNN 64-64-512, {budget:.3g} s of training each")
    table.add_column("optimizer", no_wrap=True)
    for header in ("rate", "test loss", "test %", "steps", "ms a step", "seconds", "compile s"):
        table.add_column(header, justify="right", no_wrap=True)
    for entry in entries:
        seconds, steps = entry.last("seconds"), entry.last("steps")
        table.add_row(
            entry.label,
            "-" if entry.name == LBFGS else f"{entry.rate:.3g}",
            _spread(entry.last("losses"), ".4f"),
            _spread(100 * entry.last("accuracies"), ".2f"),
            f"{steps.mean():.0f}",
            f"{1e3 * (seconds / steps).mean():.3g}",
            _spread(seconds, ".3g"),
            f"{entry.compile_seconds:.1f}",
        )
    caption = (
        f"{_over(len(entries[0].curves))} (initial weights, order of images), at the end of the budget; "
        f"{len(task.test.labels):,} test images, {len(task.train.labels):,} for training, batch "
        f"{config.batch}. The budget is "
        + ("given" if config.seconds else f"what {config.epochs} epochs of the first row took on the mean")
        + "; the others run the whole epochs that fit at the pace measured just before, so that seconds "
        "differ by less than an epoch and by the noise of the machine. Seconds count compiled training alone. Tuning: "
        + (f"{config.trials} rates for each optimizer, {config.tuning_epochs} epochs on the training images without "
           f"{len(task.tune_validation.labels):,}, chosen by the loss on these" if config.trials else "recorded rates")
        + f". Nesterov: momentum {config.momentum:g}, measured at nagjax.eval_params; Adam: Optax's defaults. L-BFGS: "
        f"one batch of {min(config.lbfgs_examples or 0, len(task.train.labels)):,} training images, memory "
        f"{config.lbfgs_memory}, zoom line search, no rate to tune; a step is one of its iterations."
    )  # fmt: skip
    _show(table, caption, findings(entries))


def findings(entries: Sequence[Entry]) -> list[str]:
    """Sentences that follow from the numbers, those where Nesterov loses included."""
    named = {entry.name: entry for entry in entries}
    own = named.pop("nesterov", None)
    lines = []
    for entry in named.values() if own else ():
        better = []
        for word, gaps in (
            ("loss", own.last("losses") - entry.last("losses")),
            ("accuracy", 100 * (entry.last("accuracies") - own.last("accuracies"))),
        ):
            verdict = "better" if gaps.mean() < 0 else "worse"
            clear = len(gaps) > 1 and ((gaps < 0).all() or (gaps > 0).all())
            seeds = "every seed" if clear else f"{int((gaps < 0).sum())} of {len(gaps)} seeds better"
            size = f"{abs(gaps.mean()):.4f}" if word == "loss" else f"{abs(gaps.mean()):.2f} points"
            better.append(f"test {word} {verdict} by {size}" + (f" ({seeds})" if len(gaps) > 1 else ""))
        lines.append(f"Nesterov against {entry.label} at equal time: {'; '.join(better)}.")
    return lines


def show_clipping(config: Config, rate: float, clips: Sequence[Clipping]) -> None:
    """Prints the sweep of K."""
    table = _table("Nesterov with clipping before rate and momentum")
    table.add_column("rate", justify="right", no_wrap=True)
    table.add_column("clipping", no_wrap=True)
    for header in ("test loss", "test %", "steps clipped", "elements clipped"):
        table.add_column(header, justify="right", no_wrap=True)
    for one in clips:
        if one.clip == Clip() and one.factor != 1:
            table.add_section()
        table.add_row(
            f"{one.factor * rate:.3g}",
            one.clip.label,
            _spread(one.losses, ".4f"),
            _spread(100 * one.accuracies, ".2f"),
            f"{100 * one.share('clipped_steps'):.0f} %",
            f"{100 * one.share('clipped_elements'):.1f} %" if one.clip.value < np.inf else "-",
        )
    caption = (
        f"{config.tuning_epochs} epochs. {_over(config.seeds or 1)}. The tuned rate and {config.hot:g} times it (at "
        f"most {config.rate_bounds[1]:g}, the setter's bound). Steps clipped: in which any element, or the norm, was "
        "beyond K; elements clipped: the mean share of a step's."
    )
    _show(table, caption, clip_findings(clips))


def clip_findings(clips: Sequence[Clipping]) -> list[str]:
    """Which K is best at each rate, and whether it beats none."""
    lines = []
    for factor in sorted({clip.factor for clip in clips}):
        here = [clip for clip in clips if clip.factor == factor]
        plain = next(clip for clip in here if clip.clip == Clip())
        best = min(here, key=lambda clip: float(np.nan_to_num(clip.losses, nan=np.inf).mean()))
        lost = int((~(plain.losses < LOST)).sum())
        state = f"{lost} of {len(plain.losses)} runs without clipping are lost" if lost else (
            f"no clipping ends at {plain.losses.mean():.4f}")  # fmt: skip
        times = "" if factor == 1 else f"{factor:g} times "
        lines.append(
            f"At {times}the tuned rate {state}; the lowest mean test loss is {best.losses.mean():.4f} with clipping "
            f"{best.clip.label}. (The sweep is read on the test images: it describes, it does not choose.)"
        )
    return lines


def show_cost(costs: Sequence[Cost]) -> None:
    """Prints time and memory against the number of parameters."""
    table = _table("A step against the number of parameters: perceptron of two square layers, batch 16, float32")
    table.add_column("parameters", justify="right", no_wrap=True)
    for header in ("optimizer", "step ms", "forward and\nbackward ms", "ns a\nparameter", "memory MB",
                   "bytes a\nparameter", "over parameters,\ngradient, state", "compile s"):  # fmt: skip
        table.add_column(header, justify="right", no_wrap=True)
    for cost in costs:
        table.add_row(
            f"{cost.parameters:,}",
            cost.label,
            f"{1e3 * cost.step_seconds:.3g}",
            f"{1e3 * cost.batch_seconds:.3g}",
            f"{1e9 * cost.step_seconds / cost.parameters:.3g}",
            f"{cost.planned_bytes / 1e6:,.4g}",
            f"{cost.planned_bytes / cost.parameters:.2f}",
            f"{cost.ratio:.2f}",
            f"{cost.compile_seconds:.1f}",
        )
    caption = (
        "Medians of repeated steps of one compiled program with donated state. Memory: arguments and temporary buffers "
        "as XLA plans them, the donated state counted once; the column after the next divides it by 4 bytes for each "
        "parameter, gradient and number of state (Nesterov 3, Adam 4, SGD 2 numbers a parameter; below 1 where XLA "
        "applies a gradient without storing it). 1 means that a step holds nothing twice."
    )
    _show(table, caption, [])


def show_stream(found: Stream) -> None:
    """Prints the memory along the pass."""
    table = _table(f"A pass over {found.file_mb:.0f} MB with at most {found.limit_mb} MB of private memory")
    for header in ("rows", "seconds", "anonymous MB", "resident MB", "training loss"):
        table.add_column(header, justify="right", no_wrap=True)
    for tenth in found.tenths:
        table.add_row(
            f"{tenth['rows']:,.0f}",
            f"{tenth['seconds']:.2f}",
            f"{tenth['anonymous_mb']:.0f}",
            f"{tenth['resident_mb']:.0f}",
            f"{tenth['loss']:.4f}" if "loss" in tenth else "-",
        )
    caption = (
        "Grain, shuffled rows of 4 KiB from a memory-mapped file, MLP 1023-64-10, batch 256, Nesterov. The limit is "
        "RLIMIT_DATA: heap, buffers and stacks. Anonymous memory is what the process holds of its own; resident memory "
        "also counts shared code and mapped pages of the file, which the system takes back when it needs them "
        f"(peak with them: {found.peak_mb:.0f} MB)."
    )
    lines = [f"From the first tenth, when all is compiled, the anonymous memory grows by {found.growth:.1f} % at most."]
    _show(table, caption, lines)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _show(table: Table, caption: str, lines: Sequence[str]) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    console.print(table)
    console.print(textwrap.fill(caption, WIDTH) + "\n")
    for line in lines:
        console.print(textwrap.fill(line, WIDTH, initial_indent="- ", subsequent_indent="  "))


def _over(seeds: int) -> str:
    return f"Mean ± standard deviation over {seeds} seeds" if seeds > 1 else "One seed"


def _spread(values: NDArray[np.float64], digits: str) -> str:
    if len(values) == 1:
        return f"{values[0]:{digits}}"
    return f"{values.mean():{digits}} ± {values.std(ddof=1):{digits}}"
