"""The optimizers of `pretrain_finetune`: two groups of layers, the switch between texts, and the adaptive rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

import nagjax
from nagjax import reductions, trees
from nagjax.scalars import as_scalar, increment, scalar_dtype
from nagjax.training import TrainState

Layers = Literal["all", "frozen", "slow"]
Tree = Any
Labels = Callable[[Tree], Tree]
GROUPS = ("lower", "upper")
MOMENTUM = 0.9
LARGEST_GRADIENT = 1.0  # norm above which a group's gradient is clipped
SLOW = 0.1  # rate of the lower layers over that of the upper ones


def labels(lower: Callable[[tuple[str, ...]], bool]) -> Labels:
    """Returns a function from parameters to their groups: "lower" where the path of names says so, else "upper"."""

    def label(path: tuple[Any, ...], _: Any) -> str:
        return GROUPS[0] if lower(tuple(str(getattr(part, "key", part)) for part in path)) else GROUPS[1]

    return lambda params: jax.tree_util.tree_map_with_path(label, params)


def grouped(
    layers: Layers, label: Labels, rate: ArrayLike, warm_up: ArrayLike
) -> optax.GradientTransformationExtraArgs:
    """Nesterov's method for two groups of layers, with a linear warm-up.

    The groups are there for every kind of `layers`, so that a state of one kind goes on as that of another. Each
    clips its own gradient: a norm over all layers would need the gradients of frozen ones, which are never computed.
    """

    def method(factor: float) -> optax.GradientTransformation:
        def schedule(count: Any) -> jax.Array:
            return factor * as_scalar(rate) * jnp.minimum((count + 1) / as_scalar(warm_up), 1)

        return optax.chain(optax.clip_by_global_norm(LARGEST_GRADIENT), nagjax.nesterov(schedule, MOMENTUM))

    lower = {"all": method(1.0), "slow": method(SLOW), "frozen": optax.set_to_zero()}[layers]
    return optax.partition({GROUPS[0]: lower, GROUPS[1]: method(1.0)}, label)


def switched(
    state: TrainState, fresh: TrainState, layers: Layers, label: Labels, factors: Mapping[str, float]
) -> TrainState:
    """The state in which fine-tuning starts, from the one in which pretraining ended.

    The answer x stays where it is whatever the factors are, and the query point y follows the velocity:
    y' = x + factor (y - x), w' = factor w. So 1 keeps momentum, 0 resets it, and the ratio of the rates rescales it.

    Args:
        state: The end of pretraining, with `layers` "all".
        fresh: A state at the start of fine-tuning; frozen layers have its optimizer state.
        layers: Which layers are trained from now on; frozen ones stay at the answer.
        label: The groups.
        factors: One for each group.
    """
    factors = {**factors, GROUPS[0]: 0.0} if layers == "frozen" else factors
    answer = nagjax.eval_params(state.params, state.opt_state)

    def place(group: str, x: jax.Array, y: jax.Array) -> jax.Array:
        factor = factors[group]
        return y if factor == 1 else x if factor == 0 else x + factor * (y - x)

    opt_state = state.opt_state
    for group, factor in factors.items():
        if factor == 0:
            opt_state = nagjax.reset_momentum(opt_state, label=group)
        elif factor != 1:
            opt_state = nagjax.rescale_momentum(opt_state, factor, label=group)
    if layers == "frozen":
        inner = {**opt_state.inner_states, GROUPS[0]: fresh.opt_state.inner_states[GROUPS[0]]}
        opt_state = opt_state._replace(inner_states=inner)
    params = jax.tree.map(place, label(answer), answer, state.params)
    return fresh._replace(params=params, rest=state.rest, opt_state=opt_state)


class AdaptiveRateState(NamedTuple):
    """State of `adaptive_rate`."""

    present: jax.Array  # average of |g|^2 over a few updates; scalar
    usual: jax.Array  # average of |g|^2 over many updates; scalar
    count: jax.Array  # updates; int32 scalar
    factor: jax.Array  # of the last update; scalar


def adaptive_rate(fast: float = 0.5, slow: float = 0.99, limit: float = 4.0) -> optax.GradientTransformation:
    """A factor of the rate that falls where the gradient is larger than usual, and grows where it is smaller.

    With the norm |g_k| of the gradient over all parameters, k = 1, 2, ...::

        p_k = fast p_{k-1} + (1 - fast) |g_k|^2
        u_k = slow u_{k-1} + (1 - slow) |g_k|^2
        factor_k = sqrt((u_k / (1 - slow^k)) / (p_k / (1 - fast^k))), kept within [1/limit, limit]

    so that the first factor is 1. Before the learning rate in a chain it multiplies the rate.

    Args:
        fast: Decay of the present squared norm, in [0, 1).
        slow: Decay of the usual squared norm, in (fast, 1).
        limit: Largest factor, at least 1.

    Source:
        The limit fast = 0 with a constant usual norm is the normalized gradient method: E. Hazan, K. Levy and
        S. Shalev-Shwartz, "Beyond convexity: stochastic quasi-convex optimization", 2015, algorithm 1.
    """

    def init(params: Tree) -> AdaptiveRateState:
        del params
        # Two buffers for two averages: one in both places could not be donated.
        present, usual = (jnp.zeros((), scalar_dtype()) for _ in range(2))
        return AdaptiveRateState(present, usual, jnp.zeros((), jnp.int32), jnp.ones((), scalar_dtype()))

    def update(updates: Tree, state: AdaptiveRateState, params: Tree | None = None) -> tuple[Tree, AdaptiveRateState]:
        del params
        square = as_scalar(reductions.squared_norm(updates))
        count = increment(state.count)
        present = fast * state.present + (1 - fast) * square
        usual = slow * state.usual + (1 - slow) * square
        ratio = (usual / (1 - as_scalar(slow) ** count)) / (present / (1 - as_scalar(fast) ** count))
        # Of a gradient that has been 0 all the time, 0/0: any factor will do.
        factor = jnp.where(present > 0, jnp.clip(jnp.sqrt(ratio), 1 / limit, limit), 1)

        def scale(leaf: jax.Array) -> jax.Array:
            return trees.scaled(factor, leaf.astype(trees.compute_dtype(leaf.dtype))).astype(leaf.dtype)

        return trees.map_present(scale, updates), AdaptiveRateState(present, usual, count, factor)

    return optax.GradientTransformation(init, update)
