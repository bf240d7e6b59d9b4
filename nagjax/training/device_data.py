"""A small data set that stays on the device and is shuffled inside the compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nagjax import checks
from nagjax.training.placement import put
from nagjax.types import PyTree

Augment = Callable[[jax.Array, PyTree], PyTree]


class DeviceData:
    """Arrays on the device, in an order that is a pure function of seed and epoch.

    Batch number k of training belongs to epoch k // steps_per_epoch, so the step counter alone is the cursor: a resumed
    run sees the same batches. The rows that are left over at the end of an epoch are other ones in every epoch.

    Args:
        arrays: A tree of arrays with the n examples along the first axis; they are put on the device.
        batch_size: Examples of a batch, from 1 to n.
        seed: Of the orders and of `augment`.
        augment: (key, batch) -> batch, run inside the compiled program with a key of its own in every step.
        sharding: Where the arrays go; the default device if None.

    Raises:
        TypeError: `batch_size` or `seed` is not an integer.
        ValueError: There are no arrays, they differ in their number of examples, or `batch_size` is out of range.

    Example:
        >>> import jax.numpy as jnp, nagjax
        >>> data = nagjax.training.DeviceData(jnp.arange(10), batch_size=4)
        >>> rows = data.order(0)
        >>> data.steps_per_epoch == 2 and rows.shape == (2, 4) and len(set(rows.ravel().tolist())) == 8
        True
    """

    def __init__(
        self,
        arrays: PyTree,
        batch_size: int,
        *,
        seed: int = 0,
        augment: Augment | None = None,
        sharding: jax.sharding.Sharding | None = None,
    ) -> None:
        name = "DeviceData"
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(arrays)}
        if len(lengths) != 1 or lengths == {()}:
            condition = "a tree of arrays with the same number of examples along the first axis"
            checks.reject(name, "arrays", condition, sorted(lengths), "put the examples along the first axis")
        ((self.examples,),) = lengths
        checks.whole(name, "batch_size", batch_size, 1, "32 is usual")
        checks.at_most(name, "batch_size", batch_size, "the number of examples", self.examples, "take fewer")
        checks.whole(name, "seed", seed, 0, "0 is usual")
        self.arrays: PyTree = put(arrays, sharding)
        self.batch_size, self.seed, self.augment = batch_size, seed, augment

    def check_place(self, place: jax.sharding.Sharding) -> None:
        """Raise ValueError if the arrays have been put on other devices."""
        for leaf in jax.tree.leaves(self.arrays):
            if leaf.committed and leaf.sharding.device_set != place.device_set:
                remedy = "pass sharding=layout.whole"
                checks.reject("DeviceData", "sharding", "on the devices of the layout", leaf.sharding, remedy)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one pass."""
        return self.examples // self.batch_size

    def order(self, epoch: Any) -> jax.Array:
        """The rows of an epoch, int32 of shape (steps_per_epoch, batch_size); the epoch may be traced."""
        key = jax.random.fold_in(self._keys()[0], epoch)
        rows = jax.random.permutation(key, self.examples)[: self.steps_per_epoch * self.batch_size]
        return rows.astype(jnp.int32).reshape(self.steps_per_epoch, self.batch_size)

    def batch(self, arrays: PyTree, rows: jax.Array, step: jax.Array) -> PyTree:
        """The examples of these rows, augmented for a step; `arrays` is passed in, so that no program holds them."""

        def take(leaf: jax.Array) -> jax.Array:
            return leaf.at[rows].get(mode="promise_in_bounds")

        batch = jax.tree.map(take, arrays)
        if self.augment is None:
            return batch
        return self.augment(jax.random.fold_in(self._keys()[1], step), batch)

    def _keys(self) -> jax.Array:
        """The keys of the orders and of `augment`."""
        return jax.random.split(jax.random.key(self.seed))
