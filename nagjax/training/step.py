"""One training step as a pure function of state and batch."""

from collections.abc import Callable
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from nagjax import answers, checks
from nagjax.mapped import AxisName, everywhere, varying, varying_like
from nagjax.scalars import scalar_dtype
from nagjax.training.functional import LOSS, OVERFLOWED, SKIPPED, Functional, LossFn, Model, Module, Plain, Values
from nagjax.training.gradients import check_axis, check_batch, check_loss, mean, mean_loss
from nagjax.training.parts import Parts
from nagjax.training.placement import pinned
from nagjax.training.precision import LossScale, all_finite
from nagjax.training.state import NonFinite, Point, TrainState
from nagjax.types import PyTree


class TrainStep:
    """Gradient, update and the model's own state, as a pure function (state, batch) -> (state, metrics).

    The model is one of two kinds:

    - a Flax nnx module, with `loss_fn(model, batch)`. Layers may change their state (BatchNorm) and draw random numbers
      (Dropout); both go on from step to step, also inside `lax.scan`. A Linen module becomes one by Flax's
      `nnx.bridge.ToNNX`, whose call takes `mutable=["batch_stats"]` where it has BatchNorm;
    - any other tree of arrays, with `loss_fn(params, batch)`, or `loss_fn(params, batch, key)` where `key` is given.

    `loss_fn` returns the loss, a scalar that is a mean over the batch, or the loss and a dictionary of scalars to
    report. The optimizer also gets `value`, `grad` and `value_fn`, which line searches and value restarts ask for. (On
    CPU a line search over convolutions is slow: XLA computes them naively inside loops.)

    The arrays of `model` stay alive as long as the step.

    Args:
        model: The module, which is copied, or the tree of parameters.
        loss_fn: The loss.
        tx: Any Optax transformation. It sees the parameters as a tree of arrays named as in the model.
        wrt: Filter of the variables that are trained (nnx).
        key: Key of the random numbers of a plain `loss_fn`.
        accumulate: Number n of equal parts of a batch, at least 1, whose gradients are averaged before the update.
            Memory is that of one part; part k has the examples k, k + n, k + 2 n, ... The result is that of the whole
            batch unless layers mix its examples, or the loss weighs them: parts count alike.
        compute_dtype: Floating dtype to which parameters, frozen ones too, and the batch's floating leaves are cast for
            `loss_fn`, such as `jnp.bfloat16`. Gradients and states keep the dtypes of the parameters. Cast logits to
            float32 in the loss.
        loss_scale: First scale of the loss; float16 needs one, and 2.0**15 is usual. It halves after a gradient that is
            not finite, whose step is left out as "overflowed", and doubles after 2,000 finite ones. At a scale of 1 the
            policy of `nonfinite` holds.
        nonfinite: What happens at a gradient with NaN or infinity. "ignore": it reaches optimizer and parameters.
            "skip": parameters, optimizer and model keep their values. "restart": the same, and momentum is reset.
            "stop": as "skip", and `fit` ends.
        axis_name: Axis of `jax.pmap` or `jax.shard_map` inside which the step is called, with other examples and equal
            states on all devices. Gradients, values to report and floating variables of the model (BatchNorm) are then
            means over it, and every device draws random numbers of its own. None under `jit`, sharded or not. Over
            other axes of `shard_map` and `pmap`, on which parameters differ, all devices leave a step out that one of
            them has to, which takes a scalar from each in every step. For workers of `outer.diloco`, under `vmap` in
            any case, put `optax.apply_if_finite` around the inner optimizer instead. Variables of the model that are
            not floating must not depend on the batch.

    Raises:
        TypeError: An argument is of a wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> import jax, jax.numpy as jnp, nagjax
        >>> params = {"w": jnp.zeros(3, jnp.float32)}
        >>> def loss(params, batch):
        ...     return jnp.mean((batch @ params["w"] - 1) ** 2)
        >>> step = nagjax.training.TrainStep(params, loss, nagjax.nesterov(0.1))
        >>> state, metrics = jax.jit(step)(step.init(), jnp.eye(3, dtype=jnp.float32))
        >>> bool(metrics["loss"] == 1 and state.step == 1)
        True
    """

    def __init__(
        self,
        model: Model,
        loss_fn: LossFn,
        tx: optax.GradientTransformation,
        *,
        wrt: Any = nnx.Param,
        key: jax.Array | None = None,
        accumulate: int = 1,
        compute_dtype: DTypeLike | None = None,
        loss_scale: float | None = None,
        nonfinite: NonFinite = "ignore",
        axis_name: AxisName | None = None,
    ) -> None:
        name = "TrainStep"
        if not callable(loss_fn):
            checks.reject(name, "loss_fn", "a function", loss_fn, "write loss_fn(model, batch) -> loss", TypeError)
        checks.transformation(name, "tx", tx, "pass nagjax.nesterov(0.1), say")
        checks.whole(name, "accumulate", accumulate, 1, "1 takes the gradient of the whole batch at once")
        if compute_dtype is not None and not jnp.issubdtype(compute_dtype, jnp.floating):
            checks.reject(name, "compute_dtype", "a floating dtype", compute_dtype, "jnp.bfloat16 is usual")
        if loss_scale is not None:
            checks.positive(name, "loss_scale", loss_scale, "2.0**15 is usual for float16")
        if nonfinite not in get_args(NonFinite):
            checks.reject(name, "nonfinite", f"one of {get_args(NonFinite)}", nonfinite, "'skip' drops such steps")
        if isinstance(model, nnx.Module) and key is not None:
            checks.reject(name, "key", "None for an nnx module", "a key", "its layers draw from its own nnx.Rngs")
        self._model: Functional = (
            Module(name, model, loss_fn, wrt, compute_dtype, axis_name)
            if isinstance(model, nnx.Module)
            else Plain(name, model, loss_fn, key, compute_dtype, axis_name)
        )
        self.tx = optax.with_extra_args_support(tx)
        self.accumulate = accumulate
        self.loss_scale = loss_scale
        self.nonfinite = nonfinite
        self.axis_name = axis_name

    @property
    def params(self) -> PyTree:
        """The parameters at the start."""
        return self._model.params

    @property
    def rest(self) -> PyTree:
        """The model's other variables at the start."""
        return self._model.rest

    def starting(self, params: PyTree, rest: PyTree) -> TrainState:
        """The state before the first step from these variables, which it may hold as they are."""
        state = TrainState(params, rest, self.tx.init(params), jnp.int32(0), self.init_scaling())
        if self.nonfinite == "restart":
            jax.eval_shape(answers.reset_momentum, state.opt_state)
        return _strong(state)

    def init(self) -> TrainState:
        """The state before the first step, in buffers of its own, which may be donated.

        Raises:
            ValueError: `nonfinite` is "restart" and the optimizer has no momentum.
        """
        # No buffer twice, and none of the model's.
        taken = {id(leaf) for leaf in jax.tree.leaves((self.params, self.rest))}

        def own(leaf: jax.Array) -> jax.Array:
            if id(leaf) in taken:
                return jnp.copy(leaf)
            taken.add(id(leaf))
            return leaf

        return jax.tree.map(own, self.starting(self.params, self.rest))

    def init_scaling(self) -> LossScale | None:
        """The scale of the loss before the first step."""
        return None if self.loss_scale is None else LossScale.first(self.loss_scale)

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, Values]:
        """One update.

        Args:
            state: The state so far.
            batch: What `loss_fn` takes; a tree of arrays whose first axis `accumulate` divides where that is not 1.

        Returns:
            The next state, and what the loss reports at `state.params`: real scalars, float32 or float64 under x64,
            among them "loss"; with a policy for gradients that are not finite also "skipped", and with a scale of the
            loss "overflowed", each 0 or 1.

        Raises:
            ValueError: The loss or a value to report is no scalar, or `accumulate` does not divide the batch.
        """
        axis_name = self.axis_name
        parts = Parts(batch, self.accumulate, axis_name)
        check_axis("TrainStep", axis_name)
        check_batch("TrainStep", batch, axis_name)
        before = self._model.local(state.rest)
        own, rest = parts.mean(self._gradient(state, varying(state.params, axis_name)), before)
        (values, grads), rest = mean(varying(own, axis_name), axis_name), self._model.shared(rest)

        def value_of(params: PyTree) -> jax.Array:
            def loss(rest: PyTree, part: PyTree) -> tuple[jax.Array, PyTree]:
                value, (rest, _) = self._model.loss(params, rest, part)
                return value, rest

            return parts.mean(loss, before)[0]

        value_fn = mean_loss(value_of, axis_name)

        def update() -> tuple[PyTree, PyTree, PyTree]:
            updates, opt_state = self.tx.update(
                grads, state.opt_state, state.params, value=values[LOSS], grad=grads, value_fn=value_fn
            )
            return optax.apply_updates(state.params, updates), rest, _strong(opt_state)

        if self.nonfinite == "ignore" and state.scaling is None:
            params, rest, opt_state = update()
            return TrainState(params, rest, opt_state, state.step + 1, None), values
        finite = everywhere(all_finite(grads))
        overflowed = ~finite & (jnp.bool_(False) if state.scaling is None else state.scaling.scale > 1)

        def keep() -> tuple[PyTree, PyTree, PyTree]:
            opt_state = state.opt_state
            if self.nonfinite == "restart":
                restarted = answers.reset_momentum(opt_state)
                opt_state = cast("Any", jax.lax.cond(overflowed, lambda: opt_state, lambda: restarted))
            return state.params, state.rest, opt_state

        def alike(branch: Callable[[], tuple[PyTree, ...]]) -> Callable[[], tuple[PyTree, ...]]:
            return lambda: varying_like(branch(), (state.params, state.rest, state.opt_state))

        updates = finite if self.nonfinite != "ignore" else ~overflowed
        params, rest, opt_state = cast("Any", jax.lax.cond(updates, alike(update), alike(keep)))
        dtype = scalar_dtype()
        if self.nonfinite != "ignore":
            values = values | {SKIPPED: (~finite & ~overflowed).astype(dtype)}
        if state.scaling is None:
            return TrainState(params, rest, opt_state, state.step + 1, None), values
        values = values | {OVERFLOWED: overflowed.astype(dtype)}
        return TrainState(params, rest, opt_state, state.step + 1, state.scaling.after(finite)), values

    def model(self, state: TrainState, at: Point = "answer") -> Model:
        """The model at a state.

        Args:
            state: A state of this step.
            at: "answer" for `nagjax.eval_params`, which is `params` where the optimizer has no answer of its own;
                "params" for the query point.

        Returns:
            An nnx module, in the mode of the one that was given, or the tree of parameters, in memory of its own.
            Statistics of BatchNorm are those of training; `recompute_batch_statistics` finds those of the answer.

        Raises:
            ValueError: `at` is something else.
        """
        if at not in get_args(Point):
            checks.reject("TrainStep.model", "at", f"one of {get_args(Point)}", at, "'answer' is what to deploy")
        has_answer = at == "answer" and answers.has_answer(state.opt_state)
        params = _answer(state) if has_answer else state.params
        return self._model.merge(*jax.tree.map(jnp.copy, (params, state.rest)))

    def _gradient(self, state: TrainState, params: PyTree) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
        scaling = state.scaling

        def objective(params: PyTree, rest: PyTree, part: PyTree) -> tuple[jax.Array, tuple[PyTree, Values]]:
            loss, aux = self._model.loss(params, rest, part)
            check_loss("TrainStep", state.params, loss, self.axis_name)
            return loss if scaling is None else loss * scaling.scale.astype(loss.dtype), aux

        def gradient(rest: PyTree, part: PyTree) -> tuple[PyTree, PyTree]:
            grads, (rest, values) = cast("Any", jax.grad(objective, has_aux=True))(params, rest, part)
            return (values, grads if scaling is None else scaling.unscale(grads)), rest

        return gradient


def _answer(state: TrainState) -> PyTree:
    """The answer where the parameters are: buffers that it is made from may be cut over more axes of a mesh."""
    places = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(state.params)]
    if not all(isinstance(place, NamedSharding) for place in places):
        return answers.eval_params(state.params, state.opt_state)
    structure = cast("Any", jax.tree.structure(state.params))
    return pinned(answers.eval_params, structure.unflatten(places))(state.params, state.opt_state)


def _strong(tree: PyTree) -> PyTree:
    """The tree without weak types, with which a second call would be traced and compiled again."""

    def strong(leaf: Any) -> Any:
        return leaf.astype(leaf.dtype) if getattr(leaf, "weak_type", False) else leaf

    return jax.tree.map(strong, tree)
