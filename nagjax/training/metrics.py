"""Means of what steps report, summed on the device and fetched when someone looks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nagjax.training.functional import Values
from nagjax.training.step import SKIPPED


class Metrics(NamedTuple):
    """Sums over steps. Steps that were skipped are counted, and what they report is left out."""

    sums: Values
    steps: jax.Array  # that count; int32, shape ()
    skipped: jax.Array  # int32, shape ()

    @classmethod
    def zeros(cls, values: Values) -> "Metrics":
        """No step, for values of these names and dtypes (arrays or their shapes)."""
        sums = {name: jnp.zeros((), value.dtype) for name, value in values.items() if name != SKIPPED}
        return cls(sums, jnp.int32(0), jnp.int32(0))

    def add(self, values: Values) -> "Metrics":
        """One more step; sums are ordinary additions, of float32 unless x64 is on."""
        if SKIPPED not in values:
            sums = {name: total + values[name] for name, total in self.sums.items()}
            return Metrics(sums, self.steps + 1, self.skipped)
        skipped = values[SKIPPED] > 0
        sums = {name: jnp.where(skipped, total, total + values[name]) for name, total in self.sums.items()}
        one = skipped.astype(jnp.int32)
        return Metrics(sums, self.steps + 1 - one, self.skipped + one)

    def means(self) -> dict[str, float]:
        """Waits for the steps and returns the means as Python numbers, "loss" first.

        The number of "skipped" steps is among them if it is not 0. The means of no step are NaN.
        """
        sums, steps, skipped = jax.device_get(tuple(self))
        names = sorted(sums, key=lambda name: (name != "loss", name))
        means = {name: float(sums[name]) / int(steps) if steps else float("nan") for name in names}
        return means | ({SKIPPED: int(skipped)} if skipped else {})
