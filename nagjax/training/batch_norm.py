"""Statistics of BatchNorm layers at the answer, which no forward pass of training has seen."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nagjax import checks
from nagjax.types import PyTree

Model = Any


def recompute_batch_statistics(
    model: Model, batches: Iterable[PyTree], forward: Callable[[Model, PyTree], object] | None = None
) -> Model:
    """Statistics of all BatchNorm layers over a data set, for parameters that were never trained at.

    Training gathers running statistics at `params`, the query points; averaged or accelerated answers need their
    own. Every layer gets the mean of all batches, and the variance of all elements: the mean of the batches' variances
    plus the variance of their means. Batches count by their number of examples. Other layers behave as in evaluation.

    Args:
        model: A Flax nnx model whose parameters are the answer.
        batches: Trees of arrays with the examples along the first axis; training inputs, without augmentation.
        forward: (model, batch) -> anything, one forward pass; `model(batch)` by default.

    Returns:
        A copy of the model in evaluation mode with the new statistics; `model` is left as it is. Each shape of a batch
        is compiled once.

    Raises:
        TypeError: `model` is not an nnx module.
        ValueError: There is no BatchNorm layer, no batch, or a layer without running statistics.

    Example:
        >>> import jax, jax.numpy as jnp, nagjax
        >>> from flax import nnx
        >>> layer = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        >>> data = 5 + 2 * jax.random.normal(jax.random.key(0), (64, 3))
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
    layers = _layers(fresh)
    if not layers:
        checks.reject(name, "model", "a model with nnx.BatchNorm", type(model).__name__, "others need no such pass")
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.use_running_average, layer.momentum = False, 0.0

    # With momentum 0 a forward pass leaves the statistics of its batch in the layers.
    @nnx.jit
    def statistics(network: Model, batch: PyTree) -> list[tuple[jax.Array, jax.Array]]:
        network(batch) if forward is None else forward(network, batch)
        return [(layer.mean[...], layer.var[...]) for layer in _layers(network)]

    total = 0
    pooled = [(jnp.zeros_like(layer.mean[...]), jnp.zeros_like(layer.var[...])) for layer in layers]
    for batch in batches:
        size = jnp.shape(jax.tree.leaves(batch)[0])[0]
        total += size
        share = size / max(total, 1)
        pooled = [_pool(old, new, share) for old, new in zip(pooled, statistics(fresh, batch), strict=True)]
    if not total:
        checks.reject(name, "batches", "at least one batch of examples", total, "pass training inputs")
    for layer, momentum, (mean, var) in zip(layers, momenta, pooled, strict=True):
        layer.mean[...], layer.var[...] = mean, var
        layer.use_running_average, layer.momentum = True, momentum
    return fresh


Moments = tuple[jax.Array, jax.Array]


def _pool(old: Moments, new: Moments, share: float) -> Moments:
    """Mean and variance of a union, of which `new` is the given share; without the cancellation of E x^2 - (E x)^2."""
    (mean, var), (new_mean, new_var) = old, new
    gap = new_mean - mean
    return mean + share * gap, (1 - share) * var + share * new_var + share * (1 - share) * gap**2


def _layers(model: Model) -> list[Any]:
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)]
