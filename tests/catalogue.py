"""The one list of methods that the contract suite runs over: adding a method is adding a row."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
import pytest
from jax.typing import ArrayLike

import nagjax
from nagjax import conventions, momentum, restart, storage
from nagjax.descent import scale_by_learning_rate


class Method(NamedTuple):
    """A row: a factory from a learning rate (which the suite also injects and traces), and what is special about it."""

    name: str
    make: Callable[[ArrayLike], optax.GradientTransformationExtraArgs]
    needs_value: bool = False  # every update needs `value=`
    restarts: bool = False  # its run on the suite's problem must contain a restart
    rounds: bool = False  # its storage rounds at random, by a counter that no reset touches
    wraps_unclean_optax: str = ""  # why the row runs under standard promotion


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
    Method("nesterov, rate schedule", lambda rate: nagjax.nesterov(lambda k: rate / (1.0 + k / 10), 0.8)),
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
        wraps_unclean_optax="the bias correction of scale_by_adam mixes dtypes",
    ),
)

METHODS = RULES + RESTARTS + STORAGES + OPTIMIZERS + CONVENTIONS + BASE_STEPS


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
