"""`fit`: the loop around compiled steps, with evaluation at the answer, checkpoints, reports and a graceful end."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack, cast

import jax
import jax.numpy as jnp
import optax

from nagjax import checks
from nagjax.training.checkpoint import Checkpoints, differences, leaves
from nagjax.training.device_data import DeviceData
from nagjax.training.feeds import DeviceFeed, Feed, StreamFeed
from nagjax.training.functional import LossFn, Model
from nagjax.training.layout import Layout, check_layout
from nagjax.training.placement import put
from nagjax.training.progress import Progress, formatted
from nagjax.training.reports import Callback, Record
from nagjax.training.run import EvalFn, Evaluation, Run
from nagjax.training.signals import Interrupts
from nagjax.training.state import Point, StepOptions, TrainState
from nagjax.training.step import TrainStep
from nagjax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Fit:
    """What `fit` returns."""

    model: Model  # at the answer, or where `eval_at` says, in the mode of the one that was given
    state: TrainState
    step: TrainStep
    history: list[Record]  # of this process: "train" and "eval"; after a resumption also the evaluations before it
    status: str  # "completed"; "stopped: " and a callback's reason; "nonfinite"
    steps: int  # batches seen
    epochs: int  # completed
    seconds: float  # over all parts of a resumed run
    compile_seconds: float  # of this process: its first call, which traces and compiles
    steps_per_second: float  # of this process, without compilation and evaluation

    def summary(self) -> str:
        """What was trained, for how long, and how it ended, in four lines."""
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        sizes = [
            sum(leaf.nbytes for leaf in jax.tree.leaves(part)) for part in (self.state.params, self.state.opt_state)
        ]
        last = {record.kind: record.metrics for record in self.history}
        found = "; ".join(f"{kind}: {formatted(last[kind])}" for kind in ("train", "eval") if kind in last)
        return (
            f"{self.status} after {self.epochs} epochs, {self.steps:,} steps\n"
            f"{found or 'nothing was reported'}\n"
            f"{self.seconds:.1f} s, compiling {self.compile_seconds:.1f} s; {self.steps_per_second:,.4g} steps/s\n"
            f"{parameters:,} parameters in {sizes[0]:,} bytes; optimizer state {sizes[1]:,} bytes"
        )


def fit(
    model: Model,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    data: DeviceData | Iterable[PyTree],
    *,
    epochs: int = 1,
    steps_per_epoch: int | None = None,
    state: TrainState | None = None,
    eval_fn: EvalFn | None = None,
    eval_every: int = 1,
    eval_at: Point = "answer",
    checkpoint: Checkpoints | None = None,
    config: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    log_every: int = 100,
    steps_per_call: int | None = None,
    layout: Layout | None = None,
    **options: Unpack[StepOptions],
) -> Fit:
    """Trains a model.

    The device is kept busy: calls are handed over ahead, metrics are summed on the device and fetched when the next
    ones are complete, or when somebody needs them.

    Args:
        model: A Flax nnx module, which is left as it is, or a tree of parameters; as in `TrainStep`.
        loss_fn: `loss_fn(model, batch)`; as in `TrainStep`.
        tx: Any Optax transformation.
        data: `DeviceData` for a set that fits on the device, or an iterable of batches, such as a Grain dataset. An
            epoch is one pass over it. Grain's own order differs from epoch to epoch only where its dataset is repeated:
            repeat it without end and give `steps_per_epoch`.
        epochs: Epochs to train, at least 1.
        steps_per_epoch: Batches of an epoch, for an iterable that goes on; not for `DeviceData`.
        state: Where to start, such as the state of an earlier `fit`; the step counter starts from 0, and so do the
            orders of a `DeviceData`: give it another seed. The state is copied.
        eval_fn: (model) -> {name: scalar}, called after epochs with an nnx module in evaluation mode. Compile it by
            `nnx.jit` or `jax.jit`. A model with BatchNorm may want `recompute_batch_statistics` there.
        eval_every: Epochs from one evaluation to the next, at least 1; the last epoch is always evaluated.
        eval_at: "answer" evaluates and returns the model at `nagjax.eval_params`, "params" at the query point.
        checkpoint: Where to save. If its folder holds a checkpoint, the run continues from there, in the middle of an
            epoch too, bit for bit. `DeviceData` and Grain's iterators continue in place; other iterables are read
            again up to there. The state is also saved at the end and before an interruption. The best one is
            `fit.step.model(checkpoint.restore(fit.state, step=checkpoint.best_step()).state)`.
        config: JSON-able settings that are saved too; resuming with other ones is refused, with the difference.
        callbacks: Functions of a `Record`, called in order; one that returns a string ends the run with that reason.
        progress: Whether to show rate, metrics and time left.
        log_every: Steps from one "train" record to the next, at least 1, in whole calls; an epoch's end is one too.
        steps_per_call: Steps that one call of the compiled program takes, at least 1. By default 1 for an iterable, and
            for data on the device as many as take about a second, at most 100. Signals act between calls.
        layout: Where arrays lie on a mesh of devices, such as `sharding.zero1(mesh)`, for many devices or processes. A
            `DeviceData` then lies whole on every device, `sharding=layout.whole`; an iterable gives NumPy arrays, and
            in a run of several processes each reads its own part of every batch. There all processes make the same
            calls: 100 steps by default for data on the device; signals act at the next "train" record; and the model
            for `eval_fn` is one of global arrays.
        options: Those of `TrainStep`: `wrt`, `key`, `accumulate`, `compute_dtype`, `loss_scale`, `nonfinite`.

    Returns:
        A `Fit`. With `nonfinite="stop"` its status is "nonfinite" after a gradient with NaN or infinity; the state is
        then that without its step, seen when metrics are next fetched, at most two records later.

    Raises:
        TypeError, ValueError: An argument is of a wrong type or out of its range, or a checkpoint does not fit.
        KeyboardInterrupt, SystemExit: The process got SIGINT, or SIGTERM (code 143). The current call is finished and
            the state saved before; a second signal acts at once.

    Example:
        >>> import jax.numpy as jnp, nagjax
        >>> def loss(params, batch):
        ...     return jnp.mean((params["w"] - batch) ** 2)
        >>> data = nagjax.training.DeviceData(jnp.arange(32, dtype=jnp.float32), batch_size=8)
        >>> params = {"w": jnp.float32(0)}
        >>> fit = nagjax.training.fit(params, loss, nagjax.nesterov(0.05), data, epochs=50, progress=False)
        >>> fit.status == "completed" and fit.steps == 200 and abs(float(fit.model["w"]) - 15.5) < 2
        True
    """
    name = "fit"
    for argument, value in (("epochs", epochs), ("eval_every", eval_every), ("log_every", log_every)):
        checks.whole(name, argument, value, 1, "1 is the least")
    for argument, value in (("steps_per_epoch", steps_per_epoch), ("steps_per_call", steps_per_call)):
        if value is not None:
            checks.whole(name, argument, value, 1, "None takes the default")
    check_layout(name, layout)
    step = TrainStep(model, loss_fn, tx, **options)
    if isinstance(data, DeviceData):
        if steps_per_epoch is not None:
            remedy = "an epoch goes once through them"
            checks.reject(name, "steps_per_epoch", "None for data on the device", steps_per_epoch, remedy)
        feed: Feed = DeviceFeed(step, data, steps_per_call, layout)
    else:
        _check_batches(data, epochs, steps_per_epoch)
        feed = StreamFeed(step, data, steps_per_call, steps_per_epoch, layout)
    fresh = step.init if layout is None else functools.partial(layout.init, step)
    start = fresh() if state is None else _adopted(step, state)
    if state is not None and layout is not None:
        start = cast("TrainState", put(start, layout.of(step)))
    run = Run(step, feed, start, epochs, log_every, checkpoint, config, callbacks)
    evaluation = None if eval_fn is None else Evaluation(eval_fn, eval_every, eval_at)
    with contextlib.nullcontext() if checkpoint is None else checkpoint:
        run.resume()
        with Interrupts() as interrupts, Progress(shown=progress, total=run.total, done=run.done) as shown:
            run.train(evaluation, interrupts, shown)
    result = Fit(
        model=step.model(run.state, eval_at),
        state=run.state,
        step=step,
        history=run.history,
        status=run.status,
        steps=run.done,
        epochs=run.epoch,
        seconds=run.seconds(),
        compile_seconds=run.compile_seconds,
        steps_per_second=run.rate(),
    )
    if progress:
        print(result.summary(), file=sys.stderr)
    return result


def _check_batches(data: Any, epochs: int, steps_per_epoch: int | None) -> None:
    found = type(data).__name__
    parts: tuple[Any, ...] = data if found == "tuple" else (data,)
    if found == "dict" or all(hasattr(part, "shape") for part in parts) or not hasattr(data, "__iter__"):
        remedy = "put arrays into DeviceData(arrays, batch_size)"
        checks.reject("fit", "data", "DeviceData or an iterable of batches", found, remedy, TypeError)
    if isinstance(data, Iterator) and epochs > 1 and steps_per_epoch is None:
        remedy = "pass what can be iterated anew, or give steps_per_epoch"
        checks.reject("fit", "data", "an iterable for more than one epoch", "an iterator, used up by one", remedy)


def _adopted(step: TrainStep, state: TrainState) -> TrainState:
    """A copy of a state to start from; the step counter and the scale of the loss are the step's own."""
    expected = jax.eval_shape(step.init)
    parts = [tree._replace(step=(), scaling=()) for tree in (state, expected)]
    before, now = ({name: leaves.described(leaf) for name, leaf in leaves.named(part).items()} for part in parts)
    if lines := differences.difference(before, now, "in the state", "in this run"):
        remedy = "pass a state of the same model and optimizer"
        checks.reject("fit", "state", "one of this model and optimizer", differences.shortened(lines), remedy)
    scaling = state.scaling if state.scaling is not None and step.loss_scale is not None else step.init_scaling()
    return cast("TrainState", jax.tree.map(jnp.copy, state._replace(scaling=scaling)))._replace(step=jnp.int32(0))
