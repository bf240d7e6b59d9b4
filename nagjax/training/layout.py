"""Layouts of data-parallel training on a mesh: replicated, ZeRO-1 and FSDP."""

from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nagjax import checks
from nagjax.training.placement import Axes, check_axis, param_sharding, parts_of, pinned, put, state_sharding
from nagjax.training.prefetch import to_device
from nagjax.training.state import TrainState
from nagjax.training.step import TrainStep
from nagjax.types import PyTree


@dataclass(frozen=True)
class Layout:
    """Where the arrays of training lie on a mesh; made by `data_parallel`, `zero1` and `fsdp`.

    `compiled`, `compiled_epoch` and `fit` take one.
    """

    mesh: Mesh
    axis: Axes  # of the mesh, over which batches are cut
    params_axis: Axes | None  # over which parameters are cut
    state_axis: Axes | None  # over which buffers of the optimizer's state are cut

    def __post_init__(self) -> None:
        if not isinstance(cast("Any", self.mesh), Mesh):
            remedy = 'make one: jax.make_mesh((jax.device_count(),), ("data",))'
            checks.reject("Layout", "mesh", "a jax.sharding.Mesh", self.mesh, remedy, TypeError)
        check_axis("Layout", self.mesh, self.axis)

    @property
    def batch(self) -> NamedSharding:
        """The place of batches, whose examples are along their first axis."""
        return NamedSharding(self.mesh, PartitionSpec(self.axis))

    @property
    def stack(self) -> NamedSharding:
        """The place of stacks of batches."""
        return NamedSharding(self.mesh, PartitionSpec(None, self.axis))

    @property
    def whole(self) -> NamedSharding:
        """The place of arrays that every device has."""
        return NamedSharding(self.mesh, PartitionSpec())

    def check_batch(self, function: str, argument: str, shape: tuple[int, ...], examples: int | None) -> None:
        """Raise ValueError if the examples of an array of this shape cannot be spread evenly over the devices."""
        devices = parts_of(self.axis, self.mesh)
        if examples is None or examples % devices:
            condition = f"of examples that the {devices} devices of axis {self.axis!r} divide"
            checks.reject(function, argument, condition, shape, "choose another batch size")

    def place(self, function: str, argument: str, batch: PyTree, *, stacked: bool = False) -> PyTree:
        """A batch, or a stack of batches along the first axis, on the devices of the layout.

        Of several processes each gives its own part.
        """
        place = self.stack if stacked else self.batch

        def placed(leaf: Any) -> Any:
            if isinstance(leaf, jax.Array) and leaf.sharding.device_set == place.device_set:
                return leaf
            shape: tuple[int, ...] = np.shape(leaf)
            if jax.process_count() == 1:
                self.check_batch(function, argument, shape, shape[stacked] if len(shape) > stacked else None)
            return to_device(leaf, place)

        return jax.tree.map(placed, batch)

    def of(self, step: TrainStep) -> TrainState:
        """The places of the state of a step: a `TrainState` of `NamedSharding`."""
        shapes = jax.eval_shape(step.init)
        params = param_sharding(step.params, self.mesh, self.params_axis)
        state = state_sharding(step.tx, jax.tree.map(_at, shapes.params, params), self.state_axis)
        whole: TrainState = jax.tree.map(self._whole, shapes)
        return whole._replace(params=params, opt_state=state)

    def init(self, step: TrainStep) -> TrainState:
        """The state of a step before its first update, in buffers that may be donated.

        Every device makes its own part of the optimizer's state. In a run of several processes all of them need the
        same model.
        """
        places = self.of(step)
        start = put((step.params, step.rest), (places.params, places.rest))

        def make(params: PyTree, rest: PyTree) -> TrainState:
            copied: TrainState = jax.tree.map(jnp.copy, step.starting(params, rest))
            return copied

        return pinned(make, places)(*start)

    def _whole(self, leaf: Any) -> NamedSharding:
        del leaf
        return self.whole


def data_parallel(mesh: Mesh, axis: Axes = "data") -> Layout:
    """Batches cut over an axis of the mesh; parameters and optimizer state whole on every device.

    Args:
        mesh: A mesh of any axis types. Parameters that lie on it already, cut over other axes, stay so.
        axis: Its axis, or axes, of examples.

    Raises:
        ValueError: `axis` is no axis of the mesh.
    """
    return Layout(mesh, axis, None, None)


def zero1(mesh: Mesh, axis: Axes = "data") -> Layout:
    """As `data_parallel`, with the optimizer's buffers cut over the axis: 1/n of their bytes on each of n devices.

    Source:
        S. Rajbhandari, J. Rasley, O. Ruwase and Y. He, "ZeRO: memory optimizations toward training trillion parameter
        models", 2020, section 5.1 (P_os).
    """
    return Layout(mesh, axis, None, axis)


def fsdp(mesh: Mesh, axis: Axes = "data") -> Layout:
    """As `zero1`, with the parameters cut too: each is gathered where it is used.

    On a mesh with explicit axes a model of such parameters, as `eval_fn` gets it, is to be called inside
    `jax.sharding.auto_axes`.

    Source:
        S. Rajbhandari, J. Rasley, O. Ruwase and Y. He, "ZeRO: memory optimizations toward training trillion parameter
        models", 2020, section 5.3 (P_os+g+p).
    """
    return Layout(mesh, axis, axis, axis)


def check_layout(function: str, layout: object) -> None:
    """Raise TypeError where this is neither a layout nor None."""
    if layout is not None and not isinstance(layout, Layout):
        remedy = "pass sharding.data_parallel(mesh), say"
        checks.reject(function, "layout", "a Layout or None", layout, remedy, TypeError)


def _at(shape: jax.ShapeDtypeStruct, place: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)
