"""What a training step carries from batch to batch, and its options."""

from typing import Any, Literal, NamedTuple, TypedDict

import jax
from jax.typing import DTypeLike

from nagjax.mapped import AxisName
from nagjax.training.precision import LossScale
from nagjax.types import PyTree

NonFinite = Literal["ignore", "skip", "restart", "stop"]
Point = Literal["answer", "params"]


class TrainState(NamedTuple):
    """What one step hands to the next: a pure tree of arrays, usable as a `lax.scan` carry and with donation."""

    params: PyTree  # y, where gradients are taken
    rest: PyTree  # the model's other variables: BatchNorm statistics, keys and counts of random numbers, ...
    opt_state: PyTree
    step: jax.Array  # batches seen; int32, shape ()
    scaling: LossScale | None


class StepOptions(TypedDict, total=False):
    """The keyword arguments of `TrainStep`, which `fit` passes on."""

    wrt: Any
    key: jax.Array | None
    accumulate: int
    compute_dtype: DTypeLike | None
    loss_scale: float | None
    nonfinite: NonFinite
    axis_name: AxisName | None
