"""One training on 1 to 8 devices and 1 to 4 processes: results, times, bytes; and where DiLoCo's period pays, on paper.

The same network, optimizer (Nesterov with a bound on the gradient's norm and the gradient restart) and batches run on
1, 2, 4 and 8 virtual devices of one process, and on 4 devices of 1, 2 and 4 processes (`jax.distributed`), data
parallel, with ZeRO-1 and with FSDP. Their parameters have to agree with one device's to 1e-6, the bytes that the
compiled programs send with the formulas of ring collectives, and the optimizer's state with 1/n; otherwise the command
fails.

Times are honest about one thing only: what more devices cost where they add no arithmetic. Virtual devices share the
cores of this machine, so the best possible is that a unit of work takes as long as on one device. What real links do is
a matter of paper: the last table is a model of compute, bandwidth and latency (docs/cost_model.md).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.output import Options, Run

FEWEST = 512  # examples of a batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to run, and how often."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of virtual devices of one process; the first must be 1."""
    processes: tuple[int, ...] = (1, 2, 4)
    """Numbers of processes, which share 4 virtual devices; each 1, 2 or 4."""
    examples: int = 1024
    """Examples of a batch over all devices. For weak scaling it is the batch of the largest number of devices."""
    steps: int = 20
    """Updates after which parameters are compared."""
    rounds: int = 9
    """Rounds of timing; each takes every row once, in a new order."""
    timed_steps: int = 8
    """Steps of one measurement, whose median counts."""
    quick: bool = False
    """A check in about a minute: 3 rounds, and of the processes only 2."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        for field in ("examples", "steps", "rounds", "timed_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"--{field.replace('_', '-')} must be at least 1, got {getattr(self, field)}.")
        if not self.devices or self.devices[0] != 1 or list(self.devices) != sorted(set(self.devices)):
            raise ValueError(f"--devices must rise from 1, got {self.devices}.")
        if any(count not in (1, 2, 4) for count in self.processes):
            raise ValueError(f"--processes must be of 1, 2 and 4, which divide 4 devices, got {self.processes}.")
        if self.examples < FEWEST:
            raise ValueError(
                f"--examples must be at least {FEWEST}, got {self.examples}; with smaller batches XLA moves "
                "activations where FSDP would move parameters, and the formulas do not hold."
            )
        for count in (*self.devices, 4):
            if self.examples % count:
                raise ValueError(f"--examples must be a multiple of all numbers of devices, got {self.examples}.")

    def reduced(self) -> Config:
        """Returns what --quick runs."""
        if not self.quick:
            return self
        processes = tuple(count for count in self.processes if count == 2) or self.processes[:1]
        return dataclasses.replace(self, rounds=min(self.rounds, 3), processes=processes)


def main(config: Config, run: Run) -> dict[str, Any]:
    """Runs everything, prints the tables, draws the figure, and fails where a claim does not hold."""
    from experiments import scaling_children, scaling_cost, scaling_figure, scaling_report, scaling_runs

    config = config.reduced()
    try:
        measured = scaling_runs.measure(config, run)
    except scaling_children.ChildError as error:
        raise SystemExit(str(error)) from None
    model = scaling_cost.table()
    scaling_report.show(config, measured, model)
    scaling_figure.draw(run.folder / "scaling.png", measured)
    wrong = scaling_report.failures(measured)
    if wrong:
        raise SystemExit("\n".join(["scaling: a claim does not hold:", *wrong]))
    return {
        "seeds": [0],
        "largest_difference": max(entry.difference for entry in measured.trainings),
        "trainings": measured.trainings,
        "programs": measured.programs,
        "times": measured.times,
        "cost_model": model,
    }
