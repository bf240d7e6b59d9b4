"""Cost of whole training loops: one compiled program against the usual Flax loop and PyTorch.

The same networks, batches, optimizer (Nesterov, momentum 0.9) and number of threads everywhere. Rows are measured in
turn, in a new order each round; a ratio is the median over rounds of (time of the reference / time of the row) in the
same round, so 2 is twice as fast. The row "nnx loop again" is a second, identical loop: its spread is what noise alone
does. A target is "met" or "missed"; "within noise" misses it by less than one and a half spreads.

The usual loop is `nnx.jit` around `nnx.value_and_grad` and `nnx.Optimizer.update`. PyTorch runs its usual eager loop
(`torch.optim.SGD(nesterov=True)`, no `torch.compile`) over tensors that are there already; without the package its
rows say so. Cases: digits (a 64-128-10 network, 20 epochs of batch 32), cnn (28x28 images, batch 128; bound by
arithmetic, so that ratios near 1 are all there is), transformers of 100 and 388 arrays, and metrics (what accumulating
them costs).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from experiments.output import Options, Run

Case = Literal["digits", "cnn", "transformer100", "transformer388", "metrics"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to measure, and how often."""

    cases: tuple[Case, ...] = get_args(Case)
    """What to train."""
    rounds: int = 11
    """Rounds of measurements; each takes every row once. The case metrics takes four times as many, cnn at most 5."""
    epochs: int = 20
    """Epochs of one measurement on digits."""
    width: int = 32
    """Features of a transformer's position, an even number."""
    batch: int = 4
    """Sequences of a transformer's batch."""
    length: int = 16
    """Characters of a sequence."""
    peers: bool = True
    """Whether PyTorch is measured."""
    threads: int | None = None
    """Cores to use; all by default."""
    quick: bool = False
    """A check in less than a minute: 3 rounds, and of the cases only digits and the transformer of 100 arrays."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        for field, least in (("rounds", 3), ("epochs", 1), ("width", 2), ("batch", 1), ("length", 1), ("threads", 1)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ValueError(f"--{field} must be at least {least}, got {value}.")
        if self.width % 2:
            raise ValueError(f"--width must be even, for two attention heads, got {self.width}.")
        if not self.cases:
            raise ValueError("--cases must name at least one case, got none.")

    def reduced(self) -> Config:
        """Returns what --quick runs."""
        if not self.quick:
            return self
        cases = tuple(case for case in self.cases if case in ("digits", "transformer100"))
        return dataclasses.replace(
            self, rounds=min(self.rounds, 3), epochs=min(self.epochs, 5), cases=cases or self.cases[:1]
        )


def main(config: Config, run: Run) -> dict[str, Any]:
    """Measures every case, prints its table and draws the figure."""
    from experiments import bench_training_cases, bench_training_figure, bench_training_report

    config = config.reduced()
    cases: dict[str, Any] = {}
    for case in config.cases:
        cases[case] = bench_training_cases.measure(case, config, run)
        bench_training_report.show(case, cases[case])
    bench_training_figure.draw(run.folder / "training_speed.png", cases)
    return {"seeds": [0], "load": bench_training_report.load(), "cases": cases}
