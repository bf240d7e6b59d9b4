"""The optimizers of `digits`, what is tuned for each, and the values that tuning found."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import optax

import nagjax
from experiments.digits_training import Build
from nagjax import momentum, restart, storage

RATES = (0.001, 2.048)
TRIALS = 72
TUNING_SEEDS = tuple(range(1000, 1010))
MOMENTA = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Rival:
    """One optimizer.

    `build(learning_rate, second, plan)` takes traced numbers. `second` is a momentum, a friction or a decay rate;
    `choices` are the values of it that tuning tries, none for an optimizer without one.
    """

    label: str
    build: Build
    second: str = "momentum"
    choices: tuple[float, ...] = MOMENTA
    accelerated: bool = True  # evaluated at nagjax.eval_params; else params is the answer

    def trials(self) -> list[tuple[float, float]]:
        """Returns `TRIALS` pairs (learning rate, second): rates spaced evenly in the logarithm over `RATES`.

        Six choices leave 12 rates, each twice the one before; an optimizer without choices has 72 rates.
        """
        choices = self.choices or (0.0,)
        count = TRIALS // len(choices)
        ratio = (RATES[1] / RATES[0]) ** (1 / (count - 1))
        return [(float(f"{RATES[0] * ratio**index:.4g}"), choice) for choice in choices for index in range(count)]


RIVALS: dict[str, Rival] = {
    "sgd": Rival("SGD", lambda rate, second, plan: optax.sgd(rate), "", (), accelerated=False),
    "heavy_ball": Rival("heavy ball", lambda rate, second, plan: nagjax.nesterov(rate, momentum.heavy_ball(second))),
    "nesterov": Rival("Nesterov, constant", lambda rate, second, plan: nagjax.nesterov(rate, second)),
    # The rule's stages are 1/2, 3/4, 5/6 and, from update 750 of 800, 7/8: 0.99 is no limit here.
    "sutskever": Rival(
        "Nesterov, Sutskever",
        lambda rate, second, plan: nagjax.nesterov(rate, momentum.sutskever(second)),
        "limit",
        (0.5, 0.6, 0.7, 0.75, 0.84, 0.99),
    ),
    "demon": Rival(
        "Nesterov, Demon", lambda rate, second, plan: nagjax.nesterov(rate, momentum.demon(second, plan.total_steps))
    ),
    # b_k = k / (k + r), started again after every epoch; 3 is the friction r of SRSGD.
    "restart": Rival(
        "Nesterov, restarts",
        lambda rate, second, plan: nagjax.nesterov(rate, lambda k: k / (k + second), restart=restart.every(plan.steps)),
        "friction",
        (1.5, 3.0, 6.0, 12.0, 24.0, 48.0),
    ),
    "adam": Rival("Adam", lambda rate, second, plan: optax.adam(rate, b1=second), "b1", accelerated=False),
    "nadam": Rival("NAdam", lambda rate, second, plan: optax.nadam(rate, b1=second), "b1", accelerated=False),
}

# The storages of the velocity that the second figure compares, all at one pair: momentum 0.9, where the velocity
# carries most of a step, and the best of its rates in tuning.
STORAGE_PAIR = (0.128, 0.9)
STORAGES: dict[str, Rival] = {
    "float32": RIVALS["nesterov"],
    "bfloat16": Rival(
        "bfloat16, stochastic rounding",
        lambda rate, second, plan: nagjax.nesterov(rate, second, storage=storage.stochastic_rounding(jnp.bfloat16)),
    ),
    "int8": Rival(
        "int8, a scale for each block",
        lambda rate, second, plan: nagjax.nesterov(rate, second, storage=storage.int8()),
    ),
}

# Found by `python -m experiments digits --tune --threads 1`: (learning rate, second) with the lowest mean validation
# loss over TUNING_SEEDS and the last five epochs. Only Sutskever's limit is at an edge, the rule's own start of 1/2.
# Another processor rounds differently, which can move a choice to its neighbor.
TUNED: dict[str, tuple[float, float]] = {
    "sgd": (0.9657, 0.0),
    "heavy_ball": (0.512, 0.7),
    "nesterov": (0.512, 0.7),
    "sutskever": (0.512, 0.5),
    "demon": (0.512, 0.7),
    "restart": (0.512, 24.0),
    "adam": (0.008, 0.7),
    "nadam": (0.008, 0.95),
}
