"""The live line of `minimize(progress=True)`."""

import sys
import time

import jax
import numpy as np

from nagjax.solve.method import Report

INTERVAL = 0.1  # seconds between two lines, at least
EVERY = 10  # steps between two calls of the host


class _Line:
    """Overwrites one line of a terminal; elsewhere prints a line a second."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, step: np.ndarray, value: np.ndarray, residual: np.ndarray, step_size: np.ndarray) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if int(step) and now - self.last < (INTERVAL if terminal else 1.0):
            return
        self.last = now
        text = (
            f"step {int(step)}  f {float(value):.6g}  residual {float(residual):.2e}  step size {float(step_size):.2e}"
        )
        print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)


_line = _Line()


def show(step: jax.Array, value: jax.Array, report: Report) -> None:
    """Print step, smooth part, relative residual and step size, from inside the compiled loop."""

    def call() -> None:
        jax.debug.callback(_line, step, value, report.residual / report.scale, report.step_size)

    jax.lax.cond(step % EVERY == 0, call, lambda: None)
