"""What becomes of a training run of two processes when one is killed, hangs or cannot write, and of its restart."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.output import Options, Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Options of the experiment."""

    heartbeats: tuple[int, ...] = (10, 30)
    """Seconds without a sign of life after which a process is taken for dead; all faults are tried with the first."""
    steps: int = 20
    """Steps of each run."""
    storage: str = "full"
    """How the velocity is stored: full or int8, which another topology rounds otherwise."""

    def __post_init__(self) -> None:
        if not self.heartbeats or min(self.heartbeats) < 1:
            raise ValueError("--heartbeats must be seconds of at least 1.")
        if self.steps < 16:
            raise ValueError("--steps must be at least 16: faults come at step 10, checkpoints every 4.")
        if self.storage not in ("full", "int8"):
            raise ValueError("--storage must be full or int8.")


def main(config: Config, run: Run) -> dict[str, Any]:
    """Tries every fault, prints a table and writes faults.md."""
    from experiments import faults_runs

    outcomes = faults_runs.all_outcomes(config.heartbeats, config.steps, config.storage, run.log)
    text = faults_runs.table(outcomes)
    print(text)
    (run.folder / "faults.md").write_text(text + "\n", encoding="utf-8")
    return {"outcomes": outcomes, "seeds": [0]}
