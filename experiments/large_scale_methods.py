"""The parts of the optimizers of `large_scale`: the learning-rate setter, counted clipping, and the chains.

Whatever a run varies (peak rate, length, bounds of clipping) stands in the optimizer's state, so that one compiled
program serves all trials and seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import nagjax

Decay = Literal["cosine", "exponential"]
LAST_SHARE = 0.01  # of the peak, where the exponential decay ends


@dataclass(frozen=True)
class RateSetter:
    """The learning rate of a step: a linear warm-up to the peak, a decay, and bounds on the result.

    Attributes:
        warm_up: Share of the steps in which the rate rises, in [0, 1); at least one step.
        decay: "cosine", to 0, or "exponential", to a hundredth of the peak.
        lowest: Lower bound.
        highest: Upper bound.
    """

    warm_up: float = 0.05
    decay: Decay = "cosine"
    lowest: float = 1e-5
    highest: float = 1.0

    def rate(self, step: Any, peak: Any, steps: Any) -> jax.Array:
        """The rate of step 0, 1, ..., steps - 1; all arguments may be traced."""
        now, peak, total = (jnp.asarray(value).astype(jnp.float32) for value in (step, peak, steps))
        rising = jnp.maximum(1.0, jnp.round(self.warm_up * total))
        gone = jnp.clip((now + 1 - rising) / jnp.maximum(1.0, total - rising), 0, 1)
        if self.decay == "cosine":
            left = (1 + jnp.cos(jnp.float32(math.pi) * gone)) / 2
        else:
            left = jnp.exp(jnp.float32(math.log(LAST_SHARE)) * gone)
        rate = peak * jnp.minimum((now + 1) / rising, left)
        return jnp.clip(rate, self.lowest, self.highest)

    def sentence(self, peak: float, steps: int) -> str:
        """What the setter does, in words."""
        rising = max(1, round(self.warm_up * steps))
        end = "0" if self.decay == "cosine" else f"{LAST_SHARE:g} of it"
        return (
            f"rate: linear warm-up in {rising} of {steps} steps to {peak:.3g}, {self.decay} decay to {end}, "
            f"bounds [{self.lowest:g}, {self.highest:g}]"
        )


class SetRateState(NamedTuple):
    """The arguments of `RateSetter.rate`."""

    count: jax.Array  # int32 scalar
    peak_rate: jax.Array  # float32 scalar
    total_steps: jax.Array  # int32 scalar


def set_rate(setter: RateSetter) -> optax.GradientTransformation:
    """Multiplies by minus the rate of the setter; peak and length are in the state, see `with_settings`."""

    def init(params: Any) -> SetRateState:
        del params
        return SetRateState(jnp.int32(0), jnp.float32(0), jnp.int32(1))

    def update(updates: Any, state: SetRateState, params: Any = None) -> tuple[Any, SetRateState]:
        del params
        rate = setter.rate(state.count, state.peak_rate, state.total_steps)
        scaled = jax.tree.map(lambda u: (-rate).astype(u.dtype) * u, updates)
        return scaled, state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


class CountedClipState(NamedTuple):
    """Bounds, infinity where there is none, and what was clipped so far."""

    clip_value: jax.Array  # float32 scalar
    clip_norm: jax.Array  # float32 scalar
    steps: jax.Array  # int32 scalar
    clipped_steps: jax.Array  # steps in which anything was clipped, int32 scalar
    clipped_share: jax.Array  # sum over steps of the share of elements beyond the bound by value, float32 scalar


def counted_clip() -> optax.GradientTransformation:
    """`optax.clip(K)`, then `optax.clip_by_global_norm(K)`, with K of each in the state, and counts."""

    def init(params: Any) -> CountedClipState:
        del params
        return CountedClipState(jnp.float32(jnp.inf), jnp.float32(jnp.inf), *jnp.zeros(2, jnp.int32), jnp.float32(0))

    def update(updates: Any, state: CountedClipState, params: Any = None) -> tuple[Any, CountedClipState]:
        del params
        leaves = jax.tree.leaves(updates)
        beyond = sum(jnp.sum(jnp.abs(leaf) > state.clip_value, dtype=jnp.int32) for leaf in leaves)
        share = beyond.astype(jnp.float32) / sum(leaf.size for leaf in leaves)
        updates, _ = optax.clip(state.clip_value).update(updates, optax.EmptyState())
        norm, bounded = optax.tree.norm(updates), jnp.isfinite(state.clip_norm)
        shorter, _ = optax.clip_by_global_norm(state.clip_norm).update(updates, optax.EmptyState())
        # Without a bound a norm that overflows would make infinity over infinity.
        updates = jax.tree.map(lambda new, old: jnp.where(bounded, new, old), shorter, updates)
        clipped = (share > 0) | (bounded & (norm >= state.clip_norm))
        return updates, state._replace(
            steps=state.steps + 1,
            clipped_steps=state.clipped_steps + clipped.astype(jnp.int32),
            clipped_share=state.clipped_share + share,
        )

    return optax.GradientTransformation(init, update)


def clipped_shares(opt_state: Any) -> tuple[float, float]:
    """The share of steps in which anything was clipped, and the mean share of elements clipped by value."""
    steps, clipped, share = (
        float(optax.tree_utils.tree_get(opt_state, name)) for name in ("steps", "clipped_steps", "clipped_share")
    )
    return clipped / max(steps, 1), share / max(steps, 1)


@dataclass(frozen=True)
class Clip:
    """Bounds K of clipping, infinity where there is none."""

    value: float = math.inf
    norm: float = math.inf

    @property
    def label(self) -> str:
        """For a table."""
        if self.value < math.inf:
            return f"by value, K = {self.value:g}"
        return f"by norm, K = {self.norm:g}" if self.norm < math.inf else "none"


def with_settings(opt_state: Any, peak: float, steps: int, clip: Clip) -> Any:
    """The state with these settings in place of those of `init`."""
    return optax.tree_utils.tree_set(
        opt_state,
        peak_rate=jnp.float32(peak),
        total_steps=jnp.int32(steps),
        clip_value=jnp.float32(clip.value),
        clip_norm=jnp.float32(clip.norm),
    )


@dataclass(frozen=True)
class Method:
    """An optimizer that takes a rate: its label, and the rates that tuning tries, lowest and highest."""

    label: str
    rates: tuple[float, float]

    def grid(self, trials: int) -> list[float]:
        """So many rates, equally far apart in their logarithms; one trial takes the middle."""
        low, high = (math.log(rate) for rate in self.rates)
        if trials == 1:
            return [math.exp((low + high) / 2)]
        return [math.exp(low + (high - low) * i / (trials - 1)) for i in range(trials)]


LBFGS = "lbfgs"
METHODS: dict[str, Method] = {
    "nesterov": Method("Nesterov", (0.01, 0.5)),
    "adam": Method("Adam", (4e-4, 2e-2)),
    "sgd": Method("SGD", (0.02, 1.0)),
}
LABELS = {**{name: method.label for name, method in METHODS.items()}, LBFGS: "L-BFGS"}


def build(name: str, setter: RateSetter, momentum: float) -> optax.GradientTransformation:
    """The chain of a method: clipping, its direction, the rate, and for Nesterov the acceleration last."""
    if name == "nesterov":
        return optax.chain(counted_clip(), set_rate(setter), nagjax.accelerate(momentum))
    if name == "adam":
        return optax.chain(counted_clip(), optax.scale_by_adam(), set_rate(setter))
    return optax.chain(counted_clip(), set_rate(setter))
