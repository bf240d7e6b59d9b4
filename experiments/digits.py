"""Handwritten digits: SGD, heavy ball, four Nesterov schedules, Adam and NAdam at equal tuning budgets.

A Flax network 64-128-ReLU-Dropout 0.2-10 on scikit-learn's 1,797 images. A fifth of them is the test set, the same
for all seeds; a tenth of the rest is the validation set, drawn for each seed (both stratified). Optimizers of nagjax
are evaluated at `nagjax.eval_params`, the others at their parameters. The whole training run is one compiled program,
traced once for an optimizer; learning rate and momentum are its arguments. The recorded rates are those that --tune
finds: 72 trials an optimizer on the same range and the same 10 seeds, none of them reported, by
the mean validation loss over the last quarter of the epochs.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from experiments.output import Options, Run

Name = Literal["sgd", "heavy_ball", "nesterov", "sutskever", "demon", "restart", "adam", "nadam"]
QUICK: tuple[Name, ...] = ("sgd", "nesterov", "adam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to run, and on how little."""

    optimizers: tuple[Name, ...] = get_args(Name)
    """Which optimizers run; all by default."""
    epochs: int = 20
    """Passes over the training images. The recorded rates were tuned for 20."""
    seeds: int = 5
    """Number of seeds: 0, 1, ... Each draws its validation split, initial weights, batches and dropout masks."""
    batch: int = 32
    """Images a batch. The recorded rates were tuned for 32."""
    patience: int = 0
    """Stop a run when the validation loss has not fallen for this many epochs; 0 never stops."""
    tune: bool = False
    """Find the rates again before the runs that are reported; takes some minutes."""
    quick: bool = False
    """A check in seconds: at most 5 epochs and 2 seeds, and by default three optimizers."""
    threads: int | None = None
    """Number of cores to use; all by default. A run of so small a network is fastest on one."""
    memory_limit: int | None = None
    """Limit of the process's private memory in MB (Linux); a run that does not fit ends with a message."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        for field, least in (("epochs", 1), ("seeds", 1), ("batch", 1), ("patience", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"--{field} must be at least {least}, got {getattr(self, field)}.")
        for field in ("threads", "memory_limit"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"--{field.replace('_', '-')} must be at least 1, got {value}.")
        if self.batch > LARGEST_BATCH:
            raise ValueError(f"--batch must be at most {LARGEST_BATCH}, the number of training images.")
        if not self.optimizers:
            raise ValueError("--optimizers needs at least one name.")

    def reduced(self) -> Config:
        """Returns what --quick runs."""
        if not self.quick:
            return self
        optimizers = QUICK if self.optimizers == get_args(Name) else self.optimizers
        return dataclasses.replace(self, optimizers=optimizers, epochs=min(self.epochs, 5), seeds=min(self.seeds, 2))


LARGEST_BATCH = 1293


def main(config: Config, run: Run) -> dict[str, Any]:
    """Trains every optimizer for every seed, prints the table and draws the figures."""
    from experiments import digits_figures, digits_report, digits_runs

    config = config.reduced()
    with digits_runs.progress() as bar:
        tuned = digits_runs.tune(config, run, bar) if config.tune else None
        entries, storages = digits_runs.compare(config, run, bar, tuned)
    if tuned is not None:
        print(digits_report.tuning(tuned))
    digits_report.show(entries, storages, config.epochs)
    digits_figures.learning_curves(run.folder / "learning_curves.png", entries)
    digits_figures.storage(run.folder / "momentum_storage.png", storages)
    return {
        "seeds": list(range(config.seeds)),
        "ran": {"optimizers": config.optimizers, "epochs": config.epochs, "batch": config.batch},
        "tuned": tuned,
        "optimizers": [entry.record() for entry in entries],
        "storages": [entry.record() for entry in storages],
        "findings": digits_report.findings(entries, storages),
        "process": digits_report.process(),
    }
