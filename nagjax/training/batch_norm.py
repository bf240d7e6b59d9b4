"""Statistics of BatchNorm layers at the answer, which no forward pass of training has seen."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nagjax import checks
from nagjax.types import PyTree

Model = Any
Moments = tuple[jax.Array, jax.Array]

# With momentum 0 a forward pass leaves the statistics of its batch in the layers. Flax's fast variance is
# E x^2 - (E x)^2, which cancels where the mean is large; the axis of a training loop is not bound here.
_OF_THE_PASS: dict[str, Any] = {
    "use_running_average": False,
    "momentum": 0.0,
    "use_fast_variance": False,
    "axis_name": None,
}
_UNSEEN = -1.0  # no variance; momentum 0 times it vanishes where a pass computes one


def recompute_batch_statistics(
    model: Model, batches: Iterable[PyTree], forward: Callable[[Model, PyTree], object] | None = None
) -> Model:
    """Statistics of all BatchNorm layers over a data set, for parameters that were never trained at.

    Training gathers running statistics at `params`, the query points; averaged or accelerated answers need their
    own. Every layer gets the mean of all batches, and the variance of all elements: the mean of the batches' variances
    plus the variance of their means. Batches count by their number of examples; empty ones are skipped. Other layers
    behave as in evaluation. Statistics are those of one device, also for layers with an `axis_name`.

    The pass must call every BatchNorm layer in training mode. A layer that it calls more than once (one that is shared,
    or one that a loop repeats) gets the statistics of the last call only.

    Args:
        model: A Flax nnx model whose parameters are the answer.
        batches: Trees of arrays with the examples along the first axis; training inputs, without augmentation. The
            first leaf that has an axis counts them.
        forward: (model, batch) -> anything, one forward pass; `model(batch)` by default. A model that passes
            `use_running_average` on to its layers needs one that sets it to False, such as
            `lambda model, x: model(x, train=True)`.

    Returns:
        A copy of the model in evaluation mode with the new statistics; `model` is left as it is. Each shape of a batch
        is compiled once.

    Raises:
        TypeError: `model` is not an nnx module.
        ValueError: There is no BatchNorm layer or no example, a batch has no axis of examples, or the pass did not
            compute the statistics of a layer.

    Example:
        >>> import jax, jax.numpy as jnp, nagjax
        >>> from flax import nnx
        >>> layer = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        >>> data = 5 + 2 * jax.random.normal(jax.random.key(0), (64, 3), jnp.float32)
        >>> found = nagjax.training.recompute_batch_statistics(layer, [data[:40], data[40:]])
        >>> bool(jnp.allclose(found.var[...], data.var(axis=0), rtol=1e-4))
        True

    Source:
        P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov and A. Wilson, "Averaging weights leads to wider optima and
        better generalization", 2018, section 3.2, which needs the same pass.
    """
    name = "recompute_batch_statistics"
    if not isinstance(model, nnx.Module):
        checks.reject(name, "model", "a Flax nnx module", type(model).__name__, "merge it from its parts", TypeError)
    fresh = nnx.clone(model)
    fresh.eval()
    paths, layers = _layers(fresh)
    if not layers:
        checks.reject(name, "model", "a model with nnx.BatchNorm", type(model).__name__, "others need no such pass")
    settings = [{field: getattr(layer, field) for field in _OF_THE_PASS} for layer in layers]
    for layer in layers:
        _set(layer, _OF_THE_PASS)

    @nnx.jit
    def statistics(network: Model, batch: PyTree) -> list[Moments]:
        _, found = _layers(network)
        for layer in found:
            layer.var[...] = jnp.full_like(layer.var[...], _UNSEEN)
        network(batch) if forward is None else forward(network, batch)
        return [(layer.mean[...], layer.var[...]) for layer in found]

    total = 0
    pooled = [(jnp.zeros_like(layer.mean[...]), jnp.zeros_like(layer.var[...])) for layer in layers]
    for batch in batches:
        size = _examples(name, batch)
        if not size:
            continue
        total += size
        share = size / total
        new = statistics(fresh, batch)
        for path, (_, var) in zip(paths, new, strict=True):
            if bool(jnp.any(var == _UNSEEN)):
                remedy = "let it call each one in training mode, such as forward=lambda model, x: model(x, train=True)"
                condition = "a pass that computes the statistics of every BatchNorm layer"
                checks.reject(name, "forward", condition, f"none at {path or 'the model itself'}", remedy)
        pooled = [_pool(old, found, share) for old, found in zip(pooled, new, strict=True)]
    if not total:
        checks.reject(name, "batches", "at least one batch of examples", total, "pass training inputs")
    for layer, own, (mean, var) in zip(layers, settings, pooled, strict=True):
        layer.mean[...], layer.var[...] = mean, var
        _set(layer, own | {"use_running_average": True})
    return fresh


def _pool(old: Moments, new: Moments, share: float) -> Moments:
    """Mean and variance of a union, of which `new` is the given share; without the cancellation of E x^2 - (E x)^2."""
    (mean, var), (new_mean, new_var) = old, new
    gap = new_mean - mean
    return mean + share * gap, (1 - share) * var + share * new_var + share * (1 - share) * gap**2


def _examples(function: str, batch: PyTree) -> int:
    shapes = [shape for leaf in jax.tree.leaves(batch) if (shape := jnp.shape(leaf))]
    if not shapes:
        remedy = "each batch has its examples along the first axis"
        checks.reject(function, "batches", "trees of arrays with an axis of examples", batch, remedy)
    return shapes[0][0]


def _layers(model: Model) -> tuple[list[str], list[Any]]:
    found = [(path, module) for path, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)]
    return [".".join(map(str, path)) for path, _ in found], [module for _, module in found]


def _set(layer: Any, settings: dict[str, Any]) -> None:
    for field, value in settings.items():
        setattr(layer, field, value)
