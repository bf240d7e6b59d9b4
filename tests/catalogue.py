"""The one list of methods that the contract suite runs over: adding a method is adding a row."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.typing import ArrayLike

import nagjax
from nagjax import adaptive, conventions, momentum, proximal, restart, step_sizes, storage
from nagjax.descent import scale_by_learning_rate
from nagjax.proximal import Prox


class Method(NamedTuple):
    """A row: a factory from a learning rate (which the suite also injects and traces), and what is special about it."""

    name: str
    make: Callable[[ArrayLike], optax.GradientTransformationExtraArgs]
    needs_value: bool = False  # every update needs `value=`
    restarts: bool = False  # its run on the suite's problem must contain a restart
    rounds: bool = False  # its storage rounds at random, by a counter that no reset touches
    wraps_unclean_optax: str = ""  # why the row runs under standard promotion
    remembers: bool = False  # a reset keeps more than counters of noise: a count of schedules, second moments
    own_state: bool = False  # its state holds more than, or something else than, one velocity with a readout


# The suite's problem is 1-smooth; its curvature is 0.04 and more.
STRONG_CONVEXITY = 0.04
CONDITION_NUMBER = 25.0


def _accelerated(rule, **options) -> Callable[[ArrayLike], optax.GradientTransformationExtraArgs]:
    def make(learning_rate: ArrayLike) -> optax.GradientTransformationExtraArgs:
        return optax.chain(scale_by_learning_rate(learning_rate), nagjax.accelerate(rule, **options))

    return make


_warm_up = optax.linear_schedule(0.5, 0.9, 4)

RULES = (
    Method("number", _accelerated(0.9)),
    Method("bare schedule", _accelerated(_warm_up)),
    Method("constant", _accelerated(momentum.constant(0.9))),
    Method("schedule", _accelerated(momentum.schedule(_warm_up))),
    Method("fista rule", _accelerated(momentum.fista())),
    Method("polynomial", _accelerated(momentum.polynomial(3.0))),
    Method("strongly_convex", _accelerated(momentum.strongly_convex(CONDITION_NUMBER))),
    Method("sutskever", _accelerated(momentum.sutskever(0.95))),
    Method("demon", _accelerated(momentum.demon(0.9, 10))),
    Method("heavy_ball", _accelerated(momentum.heavy_ball(0.9))),
    Method("quasi_hyperbolic", _accelerated(momentum.quasi_hyperbolic(0.9, 0.7))),
    Method("ogm rule", _accelerated(momentum.ogm())),
    Method("triple_momentum rule", _accelerated(momentum.triple_momentum(CONDITION_NUMBER))),
    Method("item rule", _accelerated(momentum.item(CONDITION_NUMBER))),
    Method("schedule_free", _accelerated(momentum.schedule_free(0.9))),
    Method("schedule_free, warm-up", _accelerated(momentum.schedule_free(0.9, _warm_up, count_power=1.0))),
    Method("primal_averaging", _accelerated(momentum.primal_averaging(0.9, 0.7))),
    Method("primal_averaging, schedules", _accelerated(momentum.primal_averaging(_warm_up, _warm_up))),
)

RESTARTS = (
    Method("gradient restart", _accelerated(momentum.fista(), restart=restart.gradient()), restarts=True),
    Method("speed restart", _accelerated(momentum.fista(), restart=restart.speed(k_min=10)), restarts=True),
    Method("value restart", _accelerated(momentum.fista(), restart=restart.value()), needs_value=True, restarts=True),
    Method("scheduled restart", _accelerated(lambda k: k / (k + 3), restart=restart.every(7)), restarts=True),
    Method("ogm, gradient restart", _accelerated(momentum.ogm(), restart=restart.gradient()), restarts=True),
)

STORAGES = (
    Method("full", _accelerated(0.9, storage=storage.full())),
    Method("cast bfloat16", _accelerated(0.9, storage=storage.cast(jnp.bfloat16))),
    Method("cast float16", _accelerated(0.9, storage=storage.cast("float16"))),
    Method("cast float64", _accelerated(0.9, storage=storage.cast(jnp.float64))),
    Method("stochastic bfloat16", _accelerated(0.9, storage=storage.stochastic_rounding(jnp.bfloat16)), rounds=True),
    Method("stochastic float16", _accelerated(0.9, storage=storage.stochastic_rounding(jnp.float16)), rounds=True),
    Method("int8", _accelerated(0.9, storage=storage.int8()), rounds=True),
    Method("int8, blocks of 4", _accelerated(0.9, storage=storage.int8(4)), rounds=True),
    Method(
        "int8, gradient restart",
        _accelerated(momentum.fista(), restart=restart.gradient(), storage=storage.int8()),
        restarts=True,
        rounds=True,
    ),
)

OPTIMIZERS = (
    Method("nesterov", nagjax.nesterov),
    Method("nesterov, weight decay", lambda rate: nagjax.nesterov(rate, weight_decay=0.01)),
    Method(
        "nesterov, rate schedule", lambda rate: nagjax.nesterov(lambda k: rate / (1.0 + k / 10), 0.8), remembers=True
    ),
    Method("fista", lambda rate: nagjax.fista(rate)),
    Method("ogm", lambda rate: nagjax.ogm(1 / rate)),
    Method("triple_momentum", lambda rate: nagjax.triple_momentum(1 / rate, STRONG_CONVEXITY)),
    Method("item", lambda rate: nagjax.item(1 / rate, STRONG_CONVEXITY)),
)

CONVENTIONS = (
    Method("pytorch_sgd", lambda rate: conventions.pytorch_sgd(rate)),
    Method("pytorch_sgd, nesterov", lambda rate: conventions.pytorch_sgd(rate, 0.9, nesterov=True)),
    Method("pytorch_sgd, dampening", lambda rate: conventions.pytorch_sgd(rate, 0.8, 0.5, 0.01)),
    Method("keras_sgd", lambda rate: conventions.keras_sgd(rate, 0.9)),
    Method("keras_sgd, nesterov", lambda rate: conventions.keras_sgd(rate, 0.9, nesterov=True)),
)

BASE_STEPS = (
    Method(
        "clipping",
        lambda rate: optax.chain(optax.clip_by_global_norm(1.0), nagjax.nesterov(rate)),
        wraps_unclean_optax="clip_by_global_norm mixes dtypes where a tree does",
    ),
    Method(
        "adam",
        lambda rate: optax.chain(optax.scale_by_adam(b1=0.0), nagjax.nesterov(rate)),
        remembers=True,
        wraps_unclean_optax="the bias correction of scale_by_adam mixes dtypes",
    ),
)

PROXIMAL = (
    Method("fista, prox", lambda rate: nagjax.fista(rate, proximal.l1(0.01))),
    Method(
        "proximal step, gradient restart",
        lambda rate: optax.chain(
            scale_by_learning_rate(rate),
            proximal.step(proximal.l1(0.01), rate),
            nagjax.accelerate(momentum.fista(), restart=restart.gradient()),
        ),
        restarts=True,
    ),
)

ADAM_FAMILY = (
    Method("nadamw", adaptive.nadamw, own_state=True),
    Method("nadamw, pytorch", lambda rate: adaptive.nadamw(rate, convention="pytorch"), own_state=True),
    Method("nadamw, algoperf", lambda rate: adaptive.nadamw(rate, convention="algoperf"), own_state=True),
    Method("nadamw, int8", lambda rate: adaptive.nadamw(rate, storage=storage.int8()), rounds=True, own_state=True),
    Method("adan", lambda rate: adaptive.adan(rate, weight_decay=0.01), own_state=True),
    Method("adan, restart", lambda rate: adaptive.adan(rate, restart=restart.every(7)), own_state=True),
    Method("pytorch_nadam", lambda rate: conventions.pytorch_nadam(rate, weight_decay=0.01), own_state=True),
)

AVERAGED: tuple[Method, ...] = (
    Method(
        "schedule_free optimizer",
        lambda rate: nagjax.schedule_free(optax.identity(), rate, warmup_steps=5, weight_decay=0.01),
        remembers=True,
    ),
    Method(
        "schedule_free, adam",
        lambda rate: nagjax.schedule_free(optax.scale_by_adam(b1=0.0), rate),
        remembers=True,
        wraps_unclean_optax="the bias correction of scale_by_adam mixes dtypes",
    ),
    Method("primal_averaging optimizer", lambda rate: nagjax.primal_averaging(optax.identity(), rate, 0.9)),
    Method(
        "primal_averaging, decay",
        lambda rate: nagjax.primal_averaging(optax.identity(), rate, 0.9, weight_decay=0.01),
    ),
)

OUTER: tuple[Method, ...] = (
    Method("snoo", lambda rate: nagjax.outer.snoo(nagjax.nesterov(rate, 0.5), 0.7, 0.5, 4), own_state=True),
    Method("lookahead", lambda rate: nagjax.outer.lookahead(nagjax.nesterov(rate), 0.5, 3), own_state=True),
    Method(
        "periodic, start",
        lambda rate: nagjax.outer.periodic(
            nagjax.nesterov(rate, 0.8), nagjax.fista(0.9), 4, phase="start", reset_inner=True
        ),
        own_state=True,
    ),
    Method(
        "diloco, streaming",
        lambda rate: nagjax.outer.diloco(
            nagjax.nesterov(rate, 0.5), nagjax.nesterov(0.7, 0.5), 4, fragments=3, delay=1, mixing=0.3
        ),
        own_state=True,
    ),
)

# Their base step is -g; the step size is one of their numbers.
STOCHASTIC: tuple[Method, ...] = (
    Method(
        "agnes", lambda rate: optax.chain(optax.scale(-1.0), nagjax.accelerate(momentum.agnes(rate, 0.5 * rate, 0.9)))
    ),
    Method("agnes optimizer", lambda rate: nagjax.agnes(1 / rate, 0.5)),
    Method("mass optimizer", lambda rate: nagjax.mass(1 / rate, STRONG_CONVEXITY, 3.0)),
    Method("accsgd", _accelerated(momentum.accsgd(100.0, 5.0))),
    Method("nag_gs", lambda rate: optax.chain(optax.scale(-1.0), nagjax.accelerate(momentum.nag_gs(rate, 0.1, 1.0)))),
    Method("srsgd", _accelerated(momentum.srsgd(7))),
    Method(
        "one_cycle",
        lambda rate: nagjax.nesterov(*nagjax.schedules.one_cycle(20, rate)),
        remembers=True,
    ),
)

SELF_TUNING = (
    Method("accelegrad", lambda rate: adaptive.accelegrad(4 * rate), remembers=True),
    Method(
        "accelegrad, gradient restart",
        lambda rate: adaptive.accelegrad(120 * rate, restart=restart.gradient()),
        remembers=True,
        restarts=True,
    ),
    Method("accelegrad, opening", lambda rate: adaptive.accelegrad(initial=rate), own_state=True),
    Method(
        "accelegrad, opening, int8",
        lambda rate: adaptive.accelegrad(initial=rate, storage=storage.int8()),
        rounds=True,
        own_state=True,
    ),
)

METHODS = (
    *(RULES + RESTARTS + STORAGES + OPTIMIZERS + CONVENTIONS + BASE_STEPS + PROXIMAL),
    *(ADAM_FAMILY + AVERAGED + OUTER + STOCHASTIC + SELF_TUNING),
)
# Those whose state is `accelerate`'s: one velocity, a readout, an age.
ACCELERATED = tuple(method for method in METHODS if not method.own_state)


class Adaptive(NamedTuple):
    """A row whose state holds more than one velocity: a factory from a step size that fits the suite's problem."""

    name: str
    make: Callable[[ArrayLike], optax.GradientTransformationExtraArgs]
    sharded: Callable[[str | None], optax.GradientTransformationExtraArgs] | None = None  # from an axis_name
    needs: tuple[str, ...] = ()  # keyword arguments that every update needs
    holds_momentum: bool = True

    @property
    def takes_axis(self) -> bool:
        return self.sharded is not None


_LINE_SEARCH = ("value", "value_fn")


def _shrink(x, s):
    """The proximal operator of |x|_1 / 100, over real and imaginary parts."""

    def parts(v):
        limit = (0.01 * s).astype(v.dtype)
        return jnp.sign(v) * jnp.maximum(jnp.abs(v) - limit, 0)

    def leaf(v):
        return jax.lax.complex(parts(v.real), parts(v.imag)) if jnp.iscomplexobj(v) else parts(v)

    return jax.tree.map(leaf, x)


def _size(x):
    parts = [jnp.abs(v.real) + jnp.abs(v.imag) if jnp.iscomplexobj(v) else jnp.abs(v) for v in jax.tree.leaves(x)]
    return sum((jnp.sum(v).astype(jnp.float32) for v in parts), jnp.float32(0)) / 100


_SPARSE = Prox(_size, _shrink)


def _momentum(axis=None):
    return nagjax.accelerate(momentum.fista(), restart=restart.gradient(axis))


# Their contract is in tests/unit/test_adaptive.py: they keep query points beside the velocity, and a reset keeps their
# step size, so that a run after it is no fresh run. `make` ignores the step size where the method finds its own.
ADAPTIVE = (
    Adaptive(
        "curvature",
        lambda rate: step_sizes.curvature(_momentum()),
        lambda axis: step_sizes.curvature(_momentum(axis), axis_name=axis),
    ),
    Adaptive("curvature, prox", lambda rate: step_sizes.curvature(_momentum(), prox=_SPARSE)),
    Adaptive(
        "backtracking",
        lambda rate: step_sizes.backtracking(_momentum()),
        lambda axis: step_sizes.backtracking(_momentum(axis), axis_name=axis),
        needs=_LINE_SEARCH,
    ),
    Adaptive(
        "backtracking, growth",
        lambda rate: step_sizes.backtracking(_momentum(), prox=_SPARSE, growth=1.2, initial=rate),
        needs=_LINE_SEARCH,
    ),
    Adaptive("acfgm", lambda rate: adaptive.acfgm(), lambda axis: adaptive.acfgm(axis_name=axis), needs=("value",)),
    Adaptive("acfgm, prox", lambda rate: adaptive.acfgm(_SPARSE, initial=0.8 * rate), needs=("value",)),
    Adaptive("adgd", lambda rate: adaptive.adgd(), lambda axis: adaptive.adgd(axis_name=axis), holds_momentum=False),
    Adaptive(
        "adgd_accelerated",
        lambda rate: adaptive.adgd_accelerated(),
        lambda axis: adaptive.adgd_accelerated(axis_name=axis),
    ),
    Adaptive(
        "adaptive_proximal_gradient",
        lambda rate: adaptive.adaptive_proximal_gradient(),
        lambda axis: adaptive.adaptive_proximal_gradient(axis_name=axis),
        holds_momentum=False,
    ),
    Adaptive(
        "adaptive_proximal_gradient, 2",
        lambda rate: adaptive.adaptive_proximal_gradient(_SPARSE, version=2, initial=rate),
        holds_momentum=False,
    ),
    Adaptive(
        "greedy_fista",
        lambda rate: adaptive.greedy_fista(0.5 / rate),
        lambda axis: adaptive.greedy_fista(1.0, axis_name=axis),
    ),
    Adaptive("monotone_fista", lambda rate: adaptive.monotone_fista(rate), needs=_LINE_SEARCH),
    Adaptive("monotone_fista, prox", lambda rate: adaptive.monotone_fista(rate, _SPARSE), needs=_LINE_SEARCH),
)


def named(*names: str) -> list[Method]:
    """Rows by name."""
    table = {method.name: method for method in METHODS}
    return [table[name] for name in names]


# One a kind of state, for what is costly to compile.
REPRESENTATIVES = named(
    "nesterov",
    "gradient restart",
    "value restart",
    "schedule_free",
    "stochastic bfloat16",
    "int8",
    "pytorch_sgd, nesterov",
)
THREE = named("nesterov", "gradient restart", "int8")


def over(methods):
    """Parametrise a test over rows of the catalogue."""
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name.replace(" ", "-").replace(",", ""))
