"""Cost of one optimizer step against Optax and against memory bandwidth.

One jitted step with donated parameters and state, update and application together. Rows are measured in turn, in a
new order each round; a ratio is the median over rounds of (time of the row / time of optax.sgd(nesterov=True) in the
same round). The row "optax again" is a second, identical program: its spread is what noise alone does. The limit is
the bytes that a step must move divided by the measured bandwidth of an in-place scaling.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from experiments.output import Options, Run

Case = Literal["leaf", "resnet", "many", "digits", "scan"]
Row = Literal[
    "nesterov",
    "momentum_schedule",
    "rate_schedule",
    "gradient_restart",
    "speed_restart",
    "value_restart",
    "scheduled_restart",
    "cast_bf16",
    "stochastic_bf16",
    "int8",
    "nadamw",
]

COMPILES_FOR_MINUTES: tuple[Row, ...] = ("gradient_restart", "speed_restart", "stochastic_bf16", "int8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to measure, and how often."""

    cases: tuple[Case, ...] = get_args(Case)
    """leaf: one of 25 M; resnet: 161 leaves; many: 2,000 of 1,000; digits: 64-128-10; scan: 161 leaves, 10 steps."""
    rows: tuple[Row, ...] = get_args(Row)
    """Optimizers beside optax.sgd(nesterov=True), which is always measured, twice. By default all, but with 2,000
    leaves those that compile in seconds."""
    rounds: int = 21
    """Rounds of measurements; each takes every row once."""
    quick: bool = False
    """A check in less than a minute: 5 rounds, two cases, four rows."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        if self.rounds < 3:
            raise ValueError(f"--rounds must be at least 3, got {self.rounds}.")

    def reduced(self) -> Config:
        """Returns what --quick runs."""
        if not self.quick:
            return self
        rows: tuple[Row, ...] = ("nesterov", "gradient_restart", "int8", "nadamw")
        return dataclasses.replace(
            self,
            rounds=min(self.rounds, 5),
            cases=tuple(case for case in self.cases if case in ("leaf", "digits")),
            rows=tuple(row for row in rows if row in self.rows),
        )


def main(config: Config, run: Run) -> dict[str, Any]:
    """Measures every case and prints one table each."""
    from experiments import bench_rows

    config = config.reduced()
    cases: dict[str, Any] = {}
    for case in config.cases:
        rows = config.rows
        if case == "many" and rows == get_args(Row):
            rows = tuple(row for row in rows if row not in COMPILES_FOR_MINUTES)
        cases[case] = bench_rows.measure(case, rows, config.rounds, run)
        bench_rows.show(case, cases[case])
    return {"seeds": [0], "cases": cases}
