"""A convolutional network at equal time, clipping swept, and what a step costs from 1e4 to 1e8 parameters.

Four parts. `training`: Nesterov with a learning-rate setter (warm-up, decay, bounds), against Adam, SGD and L-BFGS in
the same seconds of compiled training; evaluation and compilation are not counted. Every optimizer that takes a rate
tries the same number of them on a validation split; the test images are measured by runs on all training images.
`clipping`: Nesterov with the gradient clipped by value to [-K, K] and by norm to K, K swept, at the tuned rate and at a
hot multiple of it. `cost`: time and memory of a step against the number of parameters. `stream`: a pass over a file
larger than the memory that the process may have. By default on scikit-learn's digits, in minutes on two cores;
Fashion-MNIST with --data.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.output import Options, Run, UsageError

DataSet = Literal["digits", "fashion_mnist"]
Name = Literal["nesterov", "adam", "sgd", "lbfgs"]
Part = Literal["training", "clipping", "cost", "stream"]

EPOCHS: dict[str, int] = {"digits": 45, "fashion_mnist": 10}
TUNING_EPOCHS: dict[str, int] = {"digits": 20, "fashion_mnist": 1}
SEEDS: dict[str, int] = {"digits": 3, "fashion_mnist": 1}
LBFGS_EXAMPLES: dict[str, int] = {"digits": 1437, "fashion_mnist": 2000}
FIRST_TUNING_SEED = 1000
# Used with --trials 0 and --quick; for digits about what tuning finds.
RATES: dict[str, dict[str, float]] = {
    "digits": {"nesterov": 0.07, "adam": 0.0075, "sgd": 0.38},
    "fashion_mnist": {"nesterov": 0.05, "adam": 0.0011, "sgd": 0.14},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to run, and how much of it."""

    data_set: DataSet = "digits"
    """The images; fashion_mnist needs --data."""
    data: Path | None = None
    """Folder of data sets: fashion_mnist/*.gz."""
    parts: tuple[Part, ...] = get_args(Part)
    """Which parts run; all by default."""
    optimizers: tuple[Name, ...] = get_args(Name)
    """Which optimizers train; all by default. With Nesterov alone nothing is measured against the clock."""
    epochs: int | None = None
    """Epochs of Nesterov, whose seconds are the budget of every optimizer. Default: 45 for digits, else 10."""
    seconds: float | None = None
    """The budget in seconds of training, in place of what --epochs take. (L-BFGS alone: --epochs seconds.)"""
    seeds: int | None = None
    """Number of seeds: 0, 1, ... (initial weights and order of the images). Default: 3 for digits, else 1."""
    batch: int = 128
    """Images a batch."""
    trials: int = 5
    """Rates that tuning tries for each optimizer; 0 takes the recorded ones."""
    tuning_epochs: int | None = None
    """Epochs of a trial, and of a run of the clipping sweep. Default: 20 for digits, else 1."""
    momentum: float = 0.9
    """Nesterov's momentum, in [0, 1)."""
    warm_up: float = 0.05
    """Share of the steps in which the rate rises."""
    decay: Literal["cosine", "exponential"] = "cosine"
    """How the rate falls after the warm-up."""
    rate_bounds: tuple[float, float] = (1e-5, 1.0)
    """The lowest and the highest rate."""
    clip_values: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    """Bounds K by value of the sweep."""
    clip_norms: tuple[float, ...] = (0.03, 0.3, 3.0)
    """Bounds K by norm of the sweep."""
    hot: float = 10.0
    """The sweep of clipping also runs at this multiple of the tuned rate."""
    lbfgs_examples: int | None = None
    """Images of L-BFGS's one batch. Default: all for digits, else 2,000."""
    lbfgs_memory: int = 10
    """Pairs that L-BFGS keeps."""
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
    """Numbers of parameters of the part cost."""
    stream_mb: int = 700
    """Size in MB of the file of the part stream, written to the temporary folder and deleted."""
    stream_limit_mb: int = 512
    """Limit in MB of the private memory of the process that reads it (Linux)."""
    checkpoints: Path | None = None
    """Folder of checkpoints of the runs that are reported, one an epoch; the same command goes on from them."""
    quick: bool = False
    """A check in half a minute: 4 epochs, 1 seed, the recorded rates, few clips, sizes up to 1e6, a smaller file."""
    threads: int | None = None
    """Number of cores to use; all by default."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        least = {"epochs": 1, "seeds": 1, "batch": 1, "trials": 0, "tuning_epochs": 1, "lbfgs_examples": 1}
        least |= {"lbfgs_memory": 1, "stream_mb": 1, "stream_limit_mb": 1, "threads": 1}
        for field, bound in least.items():
            value = getattr(self, field)
            if value is not None and value < bound:
                raise ValueError(f"--{field.replace('_', '-')} must be at least {bound}, got {value}.")
        for field in ("parts", "optimizers"):
            names = getattr(self, field)
            if not names or len(set(names)) < len(names):
                raise ValueError(f"--{field} needs at least one name, each once, got {names}.")
        for field in ("seconds", "hot"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{field} must be positive, got {value}.")
        for field in ("momentum", "warm_up"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"--{field.replace('_', '-')} must be in [0, 1), got {getattr(self, field)}.")
        low, high = self.rate_bounds
        if not 0 <= low < high < math.inf:
            raise ValueError(f"--rate-bounds must be 0 <= lowest < highest, got {low} {high}.")
        for field in ("clip_values", "clip_norms"):
            if any(not 0 < bound < math.inf for bound in getattr(self, field)):
                raise ValueError(f"--{field.replace('_', '-')} must be positive, got {getattr(self, field)}.")
        if "cost" in self.parts and (not self.sizes or min(self.sizes) < 100):
            raise ValueError(f"--sizes must be at least 100, got {self.sizes}.")
        if "stream" in self.parts and self.stream_mb <= self.stream_limit_mb:
            raise ValueError(f"--stream-mb must be more than --stream-limit-mb {self.stream_limit_mb}.")
        if "clipping" in self.parts and "nesterov" not in self.optimizers:
            raise ValueError("--parts clipping needs nesterov among the --optimizers.")

    def reduced(self) -> Config:
        """Returns what --quick runs, with the defaults of the data set filled in."""
        name = self.data_set
        config = dataclasses.replace(
            self,
            epochs=self.epochs or EPOCHS[name],
            seeds=self.seeds or SEEDS[name],
            tuning_epochs=self.tuning_epochs or TUNING_EPOCHS[name],
            lbfgs_examples=self.lbfgs_examples or LBFGS_EXAMPLES[name],
        )
        if not self.quick:
            return config
        return dataclasses.replace(
            config,
            epochs=min(config.epochs or 1, 4),
            tuning_epochs=min(config.tuning_epochs or 1, 4),
            seeds=1,
            trials=0,
            clip_values=self.clip_values[-1:],
            clip_norms=self.clip_norms[-1:],
            sizes=tuple(size for size in self.sizes if size <= 1_000_000) or self.sizes[:1],
            stream_mb=min(self.stream_mb, max(560, self.stream_limit_mb + 1)),
        )


def main(config: Config, run: Run) -> dict[str, Any]:
    """Runs the parts, prints the tables and draws the figures."""
    from experiments import data

    config = config.reduced()
    found: dict[str, Any] = {}
    if {"training", "clipping"} & set(config.parts):
        try:
            data.check(config.data_set, config.data)
        except UsageError as error:
            raise UsageError(f"large_scale --data-set {config.data_set}: {error}") from None
        from experiments import large_scale_runs

        found |= large_scale_runs.training(config, run)
    if "cost" in config.parts:
        found["cost"] = _cost(config, run)
    if "stream" in config.parts:
        found["stream"] = _stream(config, run)
    if "cost" in found or "stream" in found:
        from experiments import large_scale_figures

        large_scale_figures.growth(run.folder / "growth.png", found.get("cost"), found.get("stream"))
    seeds = list(range(config.seeds or 1)) if "entries" in found else []
    tuned = [FIRST_TUNING_SEED] if "entries" in found and config.trials else []
    return {
        "seeds": [*seeds, *tuned],
        "ran": dataclasses.replace(config, data=None, out=None, checkpoints=None),
        **found,
    }


def _cost(config: Config, run: Run) -> list[Any]:
    from experiments import large_scale_cost, large_scale_report

    costs = large_scale_cost.sweep(config.sizes, lambda cost: run.log({"part": "cost", **dataclasses.asdict(cost)}))
    large_scale_report.show_cost(costs)
    return costs


def _stream(config: Config, run: Run) -> Any:
    from experiments import large_scale_report, large_scale_stream

    found = large_scale_stream.stream(
        config.stream_limit_mb, config.stream_mb, lambda tenth: run.log({"part": "stream", **tenth})
    )
    large_scale_report.show_stream(found)
    return found
