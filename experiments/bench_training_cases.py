"""The cases of `bench_training`: which loops are timed, in turn, and what is asked of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import bench_training_models as models
from experiments import bench_training_torch as torch
from experiments.bench_training import Config
from experiments.bench_training_loops import (
    Loop,
    epoch_loop,
    fit_loop,
    nnx_loop,
    optimizer,
    packed_loop,
    step_loop,
    tree_step,
)
from experiments.bench_training_memory import memory
from experiments.bench_training_packed import packed_step
from experiments.output import Run
from nagjax import training

AGAIN = " again"
STACK = 16


@dataclass(frozen=True)
class Target:
    """That `row` is at least `least` times as fast as `against`, both rows of the case."""

    row: str
    against: str
    least: float


def measure(case: str, config: Config, run: Run) -> dict[str, Any]:
    """Measures one case.

    Returns:
        The rows (milliseconds a step, ratio to the first row with quartiles, CPU seconds of the first call, memory),
        the spread of the first row, the targets with verdicts, and whose rows are missing.
    """
    if case == "digits":
        return _digits(config, run)
    if case == "cnn":
        return _cnn(config, run)
    if case == "metrics":
        return _metrics(config, run)
    return _transformer(case, config, run)


def verdict(value: float, bound: float, spread: float, *, at_least: bool) -> str:
    """Judges a ratio: "met", "within noise" (short by less than one and a half spreads) or "missed"."""
    short = bound / value - 1 if at_least else value / bound - 1
    if short <= 0:
        return "met"
    return "within noise" if short <= 1.5 * spread else "missed"


def ratios(loops: dict[str, Loop], row: str, against: str, clock: str = "seconds") -> np.ndarray:
    """Times of `against` over those of `row`, for a step, round by round; `clock` may be "cpu_seconds"."""
    one, other = loops[row], loops[against]
    return np.array(getattr(other, clock)) / other.steps / (np.array(getattr(one, clock)) / one.steps)


def _digits(config: Config, run: Run) -> dict[str, Any]:
    problem = models.digits()
    steps = config.epochs * problem.steps_per_epoch
    loops = [
        *(nnx_loop(problem, steps, name) for name in ("nnx loop", "nnx loop" + AGAIN)),
        step_loop(problem, steps, tree_step(problem)),
        step_loop(problem, steps, tree_step(problem), "11 steps a call", per_call=11),
        epoch_loop(problem, steps),
        fit_loop(problem, config.epochs),
    ]
    missing = _add_torch(loops, config, problem, steps, functools.partial(torch.mlp, problem.dropout))
    targets = [Target("compiled epoch", "nnx loop", 6)]
    targets += [Target("compiled epoch", name, 3) for name in ("torch", "torch, 1 thread")]
    what = f"64-128-10 with dropout {problem.dropout:g}, {config.epochs} epochs of {problem.steps_per_epoch} steps"
    return _timed("digits", what, problem, loops, targets, config.rounds, run) | missing


def _cnn(config: Config, run: Run) -> dict[str, Any]:
    problem = models.cnn()
    loops = [
        *(nnx_loop(problem, 2, name) for name in ("nnx loop", "nnx loop" + AGAIN)),
        step_loop(problem, 2, tree_step(problem)),
        epoch_loop(problem, 2, name="data on the device"),
    ]
    missing = _add_torch(loops, config, problem, 2, torch.cnn)
    what = "28x28 images, batch 128, two convolutions of 64 channels; bound by arithmetic"
    return _timed("cnn", what, problem, loops, [], min(config.rounds, 5), run) | missing


def _transformer(case: str, config: Config, run: Run) -> dict[str, Any]:
    layers = models.LAYERS[case]
    problem = models.transformer(layers, config.width, config.batch, config.length)
    tree, many = "one step a call", f"{STACK} steps a call"
    loops = [
        *(nnx_loop(problem, STACK, name) for name in ("nnx loop", "nnx loop" + AGAIN)),
        step_loop(problem, STACK, tree_step(problem)),
        packed_loop(problem, STACK),
        step_loop(problem, STACK, tree_step(problem), many, per_call=STACK),
        epoch_loop(problem, STACK),
    ]
    if case == "transformer388":
        loops.append(step_loop(problem, STACK, tree_step(problem), tree + AGAIN))
    build = functools.partial(torch.transformer, layers, config.width, config.length)
    missing = _add_torch(loops, config, problem, STACK, build)
    packed = "packed, one step a call"
    targets = [Target(packed, tree, 1.5), Target(many, tree, 2.5)] if case == "transformer388" else []
    what = f"{layers} layers of width {config.width}, batch {config.batch}, {config.length} characters"
    measured = _timed(case, what, problem, loops, targets, config.rounds, run) | missing
    compiled = {
        tree: memory(tree_step(problem), problem),
        packed: memory(packed_step(problem.build(), models.cross_entropy, optimizer(problem)), problem),
    }
    for name, found in compiled.items():
        measured["rows"][name] |= found
    if case == "transformer388":
        ratio = compiled[packed]["compile_seconds"] / compiled[tree]["compile_seconds"]
        measured["targets"].append(
            _judged("packed, CPU time of compilation against the tree's", ratio, ratio, ratio, 1.2, 0.0, at_least=False)
        )
    ratio = compiled[tree]["peak_bytes"] / compiled[tree]["bound_bytes"]
    what = "peak memory of a step against parameters + state + batch + gradients + activations"
    measured["targets"].append(_judged(what, ratio, ratio, ratio, 1.0, 0.0, at_least=False))
    return measured


def _metrics(config: Config, run: Run) -> dict[str, Any]:
    problem = models.digits()
    steps = 4 * problem.steps_per_epoch
    nothing, sums = "nothing reported", "loss and 3 values of it summed"
    loops = [
        *(_epochs(problem, steps, name, None) for name in (nothing, nothing + AGAIN)),
        _epochs(problem, steps, "loss summed", models.cross_entropy),
        _epochs(problem, steps, sums, _four_sums),
        _epochs(problem, steps, "loss, accuracy, confidence, entropy", _four_metrics),
        epoch_loop(problem, steps, name="compiled epoch, means fetched"),
    ]
    what = f"epochs of digits, {steps} steps, one program and one way to call it; the last two rows also compute what "
    what += "they report, or fetch it"
    return _timed("metrics", what, problem, loops, [Target(sums, nothing, 1 / 1.01)], 4 * config.rounds, run) | {
        "missing": []
    }


def _four_sums(model: Any, batch: models.Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    loss = models.cross_entropy(model, batch)
    return loss, {"square": loss * loss, "double": loss + loss, "negative": -loss}


def _four_metrics(model: Any, batch: models.Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    inputs, labels = batch
    logits = model(inputs)
    probabilities = jax.nn.softmax(logits)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    values = {
        "accuracy": (logits.argmax(-1) == labels).astype(jnp.float32).mean(),
        "confidence": probabilities.max(-1).mean(),
        "entropy": -(probabilities * jax.nn.log_softmax(logits)).sum(-1).mean(),
    }
    return loss, values


def _epochs(problem: models.Problem, steps: int, name: str, loss: Callable[..., Any] | None) -> Loop:
    """Compiled epochs that sum what the loss reports, or, with the loss of the network alone, nothing."""
    data = training.DeviceData((problem.inputs, problem.labels), problem.batch)
    step = training.TrainStep(problem.build(), loss or models.cross_entropy, optimizer(problem))
    state = step.init()
    values = jax.eval_shape(step, state, next(iter(problem.batches(1))))[1]
    carry = [state, None if loss is None else training.Metrics.zeros(values)]

    def run(carry: list[Any], arrays: Any) -> list[Any]:
        def one(carry: list[Any], rows: jax.Array) -> tuple[list[Any], None]:
            state, metrics = carry
            state, values = step(state, data.batch(arrays, rows, state.step))
            return [state, None if metrics is None else metrics.add(values)], None

        return jax.lax.scan(one, carry, data.order(carry[0].step // data.steps_per_epoch))[0]

    program = jax.jit(run, donate_argnums=0)

    def call(_: None) -> None:
        carry[:] = program(carry, data.arrays)

    def wait() -> None:
        jax.block_until_ready(carry)

    return Loop(name, call, lambda: [None] * (steps // data.steps_per_epoch), wait, steps)


def _add_torch(
    loops: list[Loop], config: Config, problem: models.Problem, steps: int, build: Callable[[], Any]
) -> dict[str, list[str]]:
    if not config.peers:
        return {"missing": ["torch: not asked for"]}
    # Threads cost small networks more than they bring.
    rows = {"torch": torch.threads(), "torch, 1 thread": 1}
    try:
        loops += [torch.loop(problem, steps, build, threads, name) for name, threads in rows.items()]
    except ModuleNotFoundError:
        return {"missing": ["torch: not installed; pip install 'nagjax[bench]' brings it"]}
    return {"missing": []}


def _timed(
    case: str, what: str, problem: models.Problem, loops: list[Loop], targets: list[Target], rounds: int, run: Run
) -> dict[str, Any]:
    named = {loop.name: loop for loop in loops}
    for loop in loops:
        loop.start()
        loop.measure()
        loop.seconds.clear()
        loop.cpu_seconds.clear()
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(named)):
            named[str(name)].measure()
    reference = loops[0].name
    rows: dict[str, Any] = {}
    for name, loop in named.items():
        faster = ratios(named, name, reference)
        rows[name] = {
            "milliseconds": 1e3 * float(np.median(loop.seconds)) / loop.steps,
            "cpu_milliseconds": 1e3 * float(np.median(loop.cpu_seconds)) / loop.steps,
            "ratio": float(np.median(faster)),
            "quartiles": np.quantile(faster, [0.25, 0.75]),
            "first_call_seconds": loop.first_call_seconds,
        }
        run.log({"case": case, "row": name, "steps": loop.steps, **loop.times()})
    arrays = [np.shape(leaf) for leaf in jax.tree.leaves(nnx.state(problem.build(), nnx.Param))]
    found = []
    for target in targets:
        if target.row in named and target.against in named:
            known = target.against if target.against + AGAIN in named else reference
            spread = _spread(named, known)
            faster = ratios(named, target.row, target.against)
            middle, (low, high) = float(np.median(faster)), np.quantile(faster, [0.25, 0.75])
            what_row = f"{target.row} against {target.against}"
            judged = _judged(what_row, middle, low, high, target.least, spread, at_least=True)
            # Steadier than the clock where other processes take the cores; the verdict is that of the clock.
            cpu = float(np.median(ratios(named, target.row, target.against, "cpu_seconds")))
            found.append(judged | {"cpu_value": cpu})
    return {
        "what": what,
        "arrays": len(arrays),
        "parameters": sum(int(np.prod(shape)) for shape in arrays),
        "rounds": rounds,
        "spread": _spread(named, reference),
        "rows": rows,
        "targets": found,
    }


def _spread(loops: dict[str, Loop], name: str) -> float:
    """Median distance of a loop from its identical twin."""
    return float(np.median(np.abs(ratios(loops, name + AGAIN, name) - 1)))


def _judged(
    what: str, value: float, low: float, high: float, bound: float, spread: float, *, at_least: bool
) -> dict[str, Any]:
    return {
        "what": what,
        "value": value,
        "quartiles": [low, high],
        "bound": bound,
        "at_least": at_least,
        "verdict": verdict(value, bound, spread, at_least=at_least),
    }
