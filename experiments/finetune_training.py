"""The runs of `pretrain_finetune`: many updates a call with the rate as an argument, resumable between calls."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from nagjax.training import Checkpoints, TrainState, TrainStep

Tree = Any
Builder = Callable[[Any, Any], optax.GradientTransformation]  # (rate, updates of warm-up) -> optimizer


class Trainer:
    """Updates of one model by one kind of optimizer, compiled once for all rates, seeds and texts.

    Args:
        model: A model of the shapes that are trained; its values are those of `init`.
        loss: (model, batch) -> mean loss over the batch.
        optimizer: From the learning rate and the length of the warm-up, both traced.
        looped: Whether the updates of a call are one compiled loop. XLA's CPU backend runs convolutions in a loop on
            one core and without its fast kernels, twenty times slower.
        watch: What to record of the optimizer's state after every update.
    """

    def __init__(
        self,
        model: nnx.Module,
        loss: Callable[[Any, Any], jax.Array],
        optimizer: Builder,
        *,
        looped: bool = True,
        watch: Callable[[Tree], Tree] = lambda _: (),
    ) -> None:
        self._step = TrainStep(model, loss, optimizer(0.0, 1.0))
        self._looped = looped

        def one(rate: Any, warm_up: Any, state: TrainState, batch: Tree) -> tuple[TrainState, Tree]:
            state, values = TrainStep(model, loss, optimizer(rate, warm_up))(state, batch)
            return state, (values["loss"], watch(state.opt_state))

        def loop(rate: Any, warm_up: Any, state: TrainState, batches: Tree) -> Any:
            return jax.lax.scan(functools.partial(one, rate, warm_up), state, batches)

        self._run: Any = jax.jit(loop if looped else one, donate_argnums=2)

    def init(self, model: nnx.Module | None = None) -> TrainState:
        """The state before the first update, at the values of `model`."""
        state = self._step.init()
        if model is None:
            return state
        return state._replace(params=jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(model, nnx.Param))))

    def advance(
        self, state: TrainState, batches: Tree, rate: float, warm_up: float = 1.0
    ) -> tuple[TrainState, NDArray[np.float64], Tree]:
        """One update for each of a stack of batches; the state given is used up.

        Returns:
            The next state, the loss of each batch before the update on it, shape (updates,), and what is watched.
        """
        scalars = np.float32(rate), np.float32(warm_up)
        if self._looped:
            state, (losses, watched) = self._run(*scalars, state, batches)
            return state, np.asarray(losses, np.float64), jax.tree.map(np.asarray, watched)
        outputs: list[Tree] = []
        for index in range(len(jax.tree.leaves(batches)[0])):
            state, output = self._run(*scalars, state, jax.tree.map(operator.itemgetter(index), batches))
            outputs.append(output)
        losses, watched = stacked(outputs)
        return state, np.asarray(losses, np.float64), watched

    def model(self, state: TrainState, at: Literal["answer", "params"] = "answer") -> Any:
        """The model at the answer, or at the query point."""
        return self._step.model(state, at)


class Pass(NamedTuple):
    """One pass through a stream."""

    state: TrainState
    losses: NDArray[np.float64]  # of each batch before the update on it


def one_pass(
    trainer: Trainer,
    start: TrainState,
    batches: Iterator[Tree],
    updates: int,
    folder: Path,
    *,
    rate: float,
    warm_up: float,
    call: int,
    every: int,
    tick: Callable[[], object] = lambda: None,
) -> Pass:
    """Trains on the batches in their order; where the folder holds a checkpoint, goes on from it.

    Args:
        trainer: The compiled updates.
        start: The state before the first one.
        batches: An iterator with `get_state` and `set_state`, as Grain's are, whose state is JSON.
        updates: Number of updates, a multiple of `call`.
        folder: Of the checkpoints; the last one stays as the result.
        rate: Learning rate.
        warm_up: Updates of warm-up.
        call: Updates a call.
        every: Updates from one checkpoint to the next.
        tick: Called after every call.
    """
    source: Any = batches
    state, losses = start, []
    with Checkpoints(folder, every=every, keep=1) as checkpoints:
        if checkpoints.latest() is not None:
            found = checkpoints.restore(start)
            state, losses = found.state, found.cursor["losses"]
            source.set_state(found.cursor["data"])
        done = len(losses)
        while len(losses) < updates:
            state, new, _ = trainer.advance(state, stacked(itertools.islice(source, call)), rate, warm_up)
            losses = [*losses, *new.tolist()]
            tick()
            if checkpoints.due(len(losses)) or len(losses) == updates:
                checkpoints.save(len(losses), state, cursor={"data": source.get_state(), "losses": losses})
        if done == updates:
            tick()
    return Pass(state, np.array(losses))


def stacked(batches: Iterable[Tree]) -> Tree:
    """Batches along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
