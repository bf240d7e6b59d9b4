"""The parts `training` and `clipping` of `large_scale`: which runs are made, in which order, for how long."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np

from experiments import large_scale_figures, large_scale_report, large_scale_training
from experiments.large_scale import FIRST_TUNING_SEED, RATES, Config
from experiments.large_scale_methods import LBFGS, METHODS, Clip, RateSetter
from experiments.large_scale_newton import QuasiNewton
from experiments.large_scale_report import Clipping, Entry
from experiments.large_scale_training import Trainer
from experiments.output import Run
from nagjax.training import Checkpoints


def training(config: Config, run: Run) -> dict[str, Any]:
    """Tunes, compares at equal time and sweeps the clips; prints the tables and draws the figures."""
    task = large_scale_training.load(config.data_set, config.data)
    setter = RateSetter(config.warm_up, config.decay, *config.rate_bounds)
    trainers: dict[str, Trainer] = {}
    trials: dict[str, list[dict[str, Any]]] = {}
    names = config.optimizers if "training" in config.parts else ("nesterov",)
    for name in (name for name in names if name in METHODS):
        trainer = Trainer(name, setter, config.momentum, task.tune_train, task.tune_validation, config.batch)
        print(f"{METHODS[name].label}: compiled in {trainer.compile_seconds:.1f} s.", flush=True)
        if config.trials:
            assert config.tuning_epochs is not None
            trials[name] = large_scale_training.tune(
                trainer, METHODS[name], config.trials, (FIRST_TUNING_SEED,), config.tuning_epochs
            )
            for trial in trials[name]:
                run.log({"part": "tuning", "optimizer": name, **trial})
        else:
            trials[name] = [{"rate": RATES[config.data_set][name], "loss": math.nan, "epoch_seconds": math.nan}]
        trainers[name] = trainer.on(task.train, task.test)
        print(large_scale_report.tuned(METHODS[name].label, trials[name]), flush=True)
    rates = {name: min(found, key=lambda trial: trial["loss"])["rate"] for name, found in trials.items()}
    entries: list[Entry] = []
    if "training" in config.parts:
        entries, budget = _compare(config, run, task, trainers, rates, trials)
        print(large_scale_report.setter(setter, entries, trainers))
        large_scale_report.show_training(task, config, entries, budget)
        large_scale_figures.training(run.folder / "training.png", task, setter, entries, trainers, budget)
    clips: list[Clipping] = []
    if "clipping" in config.parts:
        clips = _clip(config, run, trainers["nesterov"], rates["nesterov"])
        large_scale_report.show_clipping(config, rates["nesterov"], clips)
        large_scale_figures.clipping(run.folder / "clipping.png", config, rates["nesterov"], clips)
    return {
        "trials": trials,
        "entries": [entry.record() for entry in entries],
        "clips": [clip.record() for clip in clips],
        "findings": large_scale_report.findings(entries) + large_scale_report.clip_findings(clips),
    }


def _compare(
    config: Config, run: Run, task: Any, trainers: dict[str, Trainer], rates: dict[str, float], trials: Any
) -> tuple[list[Entry], float]:
    """Every optimizer for the same seconds: those of Nesterov's epochs (the first one's without it), or --seconds."""
    assert config.epochs is not None
    assert config.seeds is not None
    assert config.lbfgs_examples is not None
    budget = config.seconds
    entries = []
    # Nesterov first: what its epochs took is the budget of the others.
    for name in sorted(config.optimizers, key=lambda name: (name != "nesterov", name == LBFGS)):
        if name == LBFGS:
            newton = QuasiNewton(task.train, task.test, config.lbfgs_examples, config.lbfgs_memory)
            print(f"L-BFGS: compiled in {newton.compile_seconds:.1f} s.", flush=True)
            curves = [newton.run(seed, budget or float(config.epochs)) for seed in range(config.seeds)]
            entries.append(Entry(name, math.nan, [], newton.compile_seconds, curves))
        else:
            trainer = trainers[name]
            pace = trainer.epoch_seconds()
            epochs = _planned(config, name, config.epochs if budget is None else max(1, round(budget / pace)))
            curves = []
            for seed in range(config.seeds):
                with _checkpoints(config, f"{config.data_set}-{name}-{seed}") as checkpoints:
                    each = _say(run, name, trainer.steps_per_epoch, epochs, verbose=pace > 2)
                    curves.append(trainer.run(seed, rates[name], epochs, each=each, checkpoints=checkpoints))
            entries.append(Entry(name, rates[name], trials[name], trainer.compile_seconds, curves))
        if budget is None:
            budget = float(np.mean(entries[-1].last("seconds")))
        for curve in entries[-1].curves:
            run.log({"part": "training", "optimizer": name, **curve.record()})
    assert budget is not None
    return entries, budget


def _planned(config: Config, name: str, epochs: int) -> int:
    """The epochs that the interrupted run with these checkpoints had planned at its own pace, if there was one."""
    if config.checkpoints is None or name == "nesterov":
        return epochs
    path = config.checkpoints / f"{config.data_set}-{name}.json"
    if path.is_file():
        return int(json.loads(path.read_text(encoding="utf-8"))["epochs"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"epochs": epochs}), encoding="utf-8")
    return epochs


def _checkpoints(config: Config, name: str) -> Any:
    if config.checkpoints is None:
        return contextlib.nullcontext()
    return Checkpoints(config.checkpoints / name, keep=1)


def _say(run: Run, name: str, steps_per_epoch: int, epochs: int, *, verbose: bool) -> Any:
    """Says what an epoch of a long run came to; short runs are only logged at their end."""

    def each(curve: Any) -> None:
        epoch = curve.steps[-1] // steps_per_epoch
        now = {"seed": curve.seed, "epoch": epoch, "seconds": curve.seconds[-1], "test_loss": curve.losses[-1]}
        run.log({"part": "epoch", "optimizer": name, **now, "test_accuracy": curve.accuracies[-1]})
        print(
            f"{name}, seed {curve.seed}: epoch {epoch} of {epochs}, {curve.seconds[-1]:.0f} s, test loss "
            f"{curve.losses[-1]:.4f}, test accuracy {100 * curve.accuracies[-1]:.2f} %",
            flush=True,
        )

    return each if verbose else None


def _clip(config: Config, run: Run, trainer: Trainer, rate: float) -> list[Clipping]:

    assert config.tuning_epochs is not None
    assert config.seeds is not None
    bounds = [Clip(), *(Clip(value=k) for k in config.clip_values), *(Clip(norm=k) for k in config.clip_norms)]
    found = []
    for factor in (1.0, config.hot) if config.hot != 1 else (1.0,):
        for clip in bounds:
            curves = [trainer.run(seed, factor * rate, config.tuning_epochs, clip) for seed in range(config.seeds)]
            found.append(Clipping(clip, factor, curves))
            run.log({"part": "clipping", **found[-1].record()})
    return found
