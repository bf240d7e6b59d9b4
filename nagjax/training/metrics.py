"""Means of what steps report, summed on the device and fetched when someone looks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nagjax import checks
from nagjax.scalars import scalar_dtype
from nagjax.training.functional import LOSS, OVERFLOWED, SKIPPED, Values


class Metrics(NamedTuple):
    """Sums over steps, all of which count alike. Steps that were left out are counted apart, and add nothing."""

    sums: Values
    steps: jax.Array  # that count; int32, shape ()
    left_out: Values  # numbers of steps that were "skipped" or "overflowed"; int32, shape ()

    @classmethod
    def zeros(cls, values: Values) -> "Metrics":
        """No step, for values of these names and dtypes (arrays or their shapes)."""
        left_out = {name: jnp.int32(0) for name in (SKIPPED, OVERFLOWED) if name in values}
        sums = {name: jnp.zeros((), value.dtype) for name, value in values.items() if name not in left_out}
        return cls(sums, jnp.int32(0), left_out)

    def add(self, values: Values) -> "Metrics":
        """One more step; sums are ordinary additions, of float32 unless x64 is on.

        Raises:
            ValueError: The values have other names.
        """
        if set(values) != {*self.sums, *self.left_out}:
            condition = f"metrics of the names {sorted(values)}"
            checks.reject("Metrics.add", "metrics", condition, sorted({*self.sums, *self.left_out}), "start from None")
        counts = {name: values[name].astype(jnp.int32) for name in self.left_out}
        left_out = {name: count + counts[name] for name, count in self.left_out.items()}
        if not counts:
            sums = {name: total + values[name] for name, total in self.sums.items()}
            return Metrics(sums, self.steps + 1, left_out)
        out = jnp.max(jnp.stack(list(counts.values())))
        sums = {name: jnp.where(out > 0, total, total + values[name]) for name, total in self.sums.items()}
        return Metrics(sums, self.steps + 1 - out, left_out)

    def means(self) -> dict[str, float]:
        """Waits for the steps and returns the means as Python numbers, "loss" first.

        The numbers of steps that were left out are among them if they are not 0. The means of no step are NaN.
        """
        sums, steps, left_out = jax.device_get(tuple(self))
        names = sorted(sums, key=lambda name: (name != LOSS, name))
        means = {name: float(sums[name]) / int(steps) if steps else float("nan") for name in names}
        return means | {name: int(count) for name, count in left_out.items() if count}

    def on_host(self) -> dict[str, Any]:
        """Waits for the steps and returns what JSON keeps, bit for bit."""
        return jax.tree.map(np.ndarray.item, jax.device_get(self))._asdict()

    @classmethod
    def restored(cls, kept: dict[str, Any] | None) -> "Metrics | None":
        """What `on_host` returned."""
        if kept is None:
            return None
        sums = {name: jnp.asarray(value, scalar_dtype()) for name, value in kept["sums"].items()}
        left_out = {name: jnp.int32(value) for name, value in kept["left_out"].items()}
        return cls(sums, jnp.int32(kept["steps"]), left_out)
