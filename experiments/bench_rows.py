"""The rows of `bench_step`: programs, interleaved timing and the tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table

import nagjax
from experiments import bench_trees
from experiments.output import Run
from nagjax import momentum, restart, storage

RATE = 1e-3
SCAN_STEPS = 10
COMPILATIONS = {"leaf": 3, "resnet": 3, "many": 1, "digits": 3, "scan": 1}
REFERENCE = "optax.sgd"
AGAIN = "optax again"

CASES: dict[str, tuple[Callable[[], bench_trees.Shapes], int]] = {
    # The second number is how many dispatches one measurement takes.
    "leaf": (bench_trees.one_leaf, 1),
    "resnet": (bench_trees.resnet50, 1),
    "many": (bench_trees.many_leaves, 1),
    "digits": (bench_trees.digits_network, 500),
    "scan": (bench_trees.resnet50, 1),
}

# Optimizer, and the bytes of state a parameter that a step reads and writes again.
ROWS: dict[str, tuple[Callable[[], optax.GradientTransformation], float]] = {
    REFERENCE: (lambda: optax.sgd(RATE, 0.9, nesterov=True), 4),
    AGAIN: (lambda: optax.sgd(RATE, 0.9, nesterov=True), 4),
    "nesterov": (lambda: nagjax.nesterov(RATE, 0.9), 4),
    "momentum_schedule": (lambda: nagjax.nesterov(RATE, momentum.polynomial(2)), 4),
    "rate_schedule": (lambda: nagjax.nesterov(optax.cosine_decay_schedule(RATE, 10_000), 0.9), 4),
    "gradient_restart": (lambda: nagjax.nesterov(RATE, 0.9, restart=restart.gradient()), 4),
    "speed_restart": (lambda: nagjax.nesterov(RATE, 0.9, restart=restart.speed()), 4),
    "value_restart": (lambda: nagjax.nesterov(RATE, 0.9, restart=restart.value()), 4),
    "scheduled_restart": (lambda: nagjax.nesterov(RATE, 0.9, restart=restart.every(100)), 4),
    "cast_bf16": (lambda: nagjax.nesterov(RATE, 0.9, storage=storage.cast(jnp.bfloat16)), 2),
    "stochastic_bf16": (lambda: nagjax.nesterov(RATE, 0.9, storage=storage.stochastic_rounding(jnp.bfloat16)), 2),
    "int8": (lambda: nagjax.nesterov(RATE, 0.9, storage=storage.int8()), 1),
    "nadamw": (lambda: optax.nadamw(RATE), 8),
}

# The largest ratio of step times, and of compile times, that the project asks of a row.
TARGETS: dict[tuple[str, str], tuple[float, float | None]] = {
    ("leaf", "nesterov"): (1.03, None),
    ("resnet", "nesterov"): (1.03, None),
    ("many", "nesterov"): (1.10, None),
    ("scan", "nesterov"): (1.02, None),
    **{(case, "gradient_restart"): (2.0, 2.0) for case in ("leaf", "resnet")},
    **{(case, "int8"): (3.0, 2.0) for case in ("leaf", "resnet")},
}
DIGITS_MICROSECONDS = 40.0


@dataclass
class Program:
    """One compiled step with the parameters and the state that it updates in place."""

    step: Any
    carry: Any
    gradients: Any
    compile_seconds: float
    calls: int
    seconds: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Appends the mean time of one call."""
        carry = self.carry
        start = time.perf_counter()
        for _ in range(self.calls):
            carry = self.step(*carry, self.gradients)
        jax.block_until_ready(carry)
        self.seconds.append((time.perf_counter() - start) / self.calls)
        self.carry = carry


def measure(case: str, names: tuple[str, ...], rounds: int, run: Run) -> dict[str, Any]:
    """Times all rows of one case in turn.

    Returns:
        For each row milliseconds (median), ratio to the reference with its quartiles, the fraction of the bandwidth
        limit, the least CPU seconds of compilation and their ratio; and the measured bandwidth.
    """
    shapes, calls = CASES[case][0](), CASES[case][1]
    gradients = bench_trees.filled(shapes, 1)
    programs = {name: _program(case, name, shapes, gradients, calls) for name in (REFERENCE, AGAIN, *names)}
    programs["copy"] = _copy(shapes, calls)
    order = np.random.default_rng(0)
    for program in programs.values():
        program.measure()
        program.seconds.clear()
    for _ in range(rounds):
        for name in order.permutation(list(programs)):
            programs[str(name)].measure()
    parameters = sum(int(np.prod(shape)) for shape in shapes)
    bandwidth = 8 * parameters / float(np.median(programs.pop("copy").seconds))
    reference = programs[REFERENCE]
    rows: dict[str, Any] = {}
    for name, program in programs.items():
        ratios = np.array(program.seconds) / np.array(reference.seconds)
        seconds = float(np.median(program.seconds))
        steps = SCAN_STEPS if case == "scan" else 1
        moved = parameters * (12 + 2 * ROWS[name][1] - (4 if case == "scan" else 0)) * steps
        rows[name] = {
            "milliseconds": 1e3 * seconds,
            "ratio": float(np.median(ratios)),
            "quartiles": np.quantile(ratios, [0.25, 0.75]),
            "microseconds_more": 1e6 * (seconds - float(np.median(reference.seconds))),
            "fraction_of_limit": moved / bandwidth / seconds,
            "compile_seconds": program.compile_seconds,
            "compile_ratio": program.compile_seconds / reference.compile_seconds,
        }
        run.log({"case": case, "row": name, "seconds": program.seconds})
    spread = float(np.median(np.abs(np.array(programs[AGAIN].seconds) / np.array(reference.seconds) - 1)))
    for name, row in rows.items():
        row["verdict"] = _verdict(case, name, row, spread)
    return {
        "leaves": len(shapes),
        "parameters": parameters,
        "bytes_per_second": bandwidth,
        "spread": spread,
        "rows": rows,
    }


def _program(case: str, name: str, shapes: bench_trees.Shapes, gradients: Any, calls: int) -> Program:
    optimizer = optax.with_extra_args_support(ROWS[name][0]())
    params = bench_trees.filled(shapes, 0)

    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, state, params, value=jnp.float32(1))
        return optax.apply_updates(params, updates), state

    def scanned(params: Any, state: Any, _: Any) -> tuple[Any, Any]:
        # The gradient of |params|^2 / 2, so that nothing is constant in the loop and nothing else is read.
        def body(carry: Any, _: None) -> tuple[Any, None]:
            return step(*carry, carry[0]), None

        return jax.lax.scan(body, (params, state), length=SCAN_STEPS)[0]

    function = scanned if case == "scan" else step
    carry = (params, optimizer.init(params))
    jitted = jax.jit(function, donate_argnums=(0, 1))
    seconds: list[float] = []
    for _ in range(COMPILATIONS[case]):
        jax.clear_caches()
        lowered = jitted.lower(*carry, gradients)
        start = time.process_time()
        compiled = lowered.compile()
        seconds.append(time.process_time() - start)
    # The digits network is dispatched as people do it, through `jit`, whose fast path a compiled object lacks.
    return Program(jitted if calls > 1 else compiled, carry, gradients, min(seconds), calls)


def _copy(shapes: bench_trees.Shapes, calls: int) -> Program:
    size = sum(int(np.prod(shape)) for shape in shapes)
    scale = jax.jit(lambda x, _: (x * jnp.float32(0.999),), donate_argnums=0)
    return Program(scale, (jnp.ones(size, jnp.float32),), 0, 0.0, calls)


def _verdict(case: str, name: str, row: dict[str, Any], spread: float) -> str:
    if case == "digits" and name == "nesterov":
        return "met" if row["microseconds_more"] <= DIGITS_MICROSECONDS else "missed"
    if (case, name) not in TARGETS:
        return ""
    step, compiling = TARGETS[case, name]
    met = row["ratio"] <= max(step, 1 + 1.5 * spread)
    quick = compiling is None or row["compile_ratio"] <= compiling
    return "met" if met and quick else "missed" if not met else "slow compile"


def show(case: str, measured: dict[str, Any]) -> None:
    """Prints the table of one case."""
    console = Console(width=max(Console().width, 124))
    console.print(
        f"\n{case}: {measured['leaves']:,} leaves, {measured['parameters']:,} parameters on "
        f"{jax.devices()[0].device_kind}; in-place scaling moves {measured['bytes_per_second'] / 1e9:.1f} GB/s; median "
        f"distance of optax from itself {100 * measured['spread']:.1f} %",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("row", "ms", "ratio", "quartiles", "us more", "of limit", "compile CPU s", "ratio", "target"):
        table.add_column(column, justify="left" if column in ("row", "target") else "right", no_wrap=True)
    for name, row in measured["rows"].items():
        low, high = row["quartiles"]
        table.add_row(
            name,
            f"{row['milliseconds']:.3g}",
            f"{row['ratio']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{row['microseconds_more']:.0f}",
            f"{row['fraction_of_limit']:.2f}",
            f"{row['compile_seconds']:.2f}",
            f"{row['compile_ratio']:.2f}",
            row["verdict"],
        )
    console.print(table)
