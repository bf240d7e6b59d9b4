"""How each row of `compare_optimizers` is built, from traced hyper-parameters and the plan of a run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

import nagjax
from experiments.compare_training import Plan, Setting
from nagjax import momentum, outer, schedules

B2 = 0.999
OUTER_PERIOD = 10
RESTARTS = 9


def sgd(setting: Setting, plan: Plan) -> Any:
    """Plain stochastic gradient descent."""
    return optax.chain(optax.add_decayed_weights(_decay(setting)), optax.sgd(_cosine(setting, plan)))


def heavy_ball(setting: Setting, plan: Plan) -> Any:
    """Polyak's momentum."""
    return _nesterov(setting, plan, momentum.heavy_ball(setting["momentum"]))


def nesterov(setting: Setting, plan: Plan) -> Any:
    """Nesterov's method with constant momentum."""
    return _nesterov(setting, plan, setting["momentum"])


def sutskever(setting: Setting, plan: Plan) -> Any:
    """Momentum in stages of 250 updates up to a limit."""
    return _nesterov(setting, plan, momentum.sutskever(setting["momentum"]))


def demon(setting: Setting, plan: Plan) -> Any:
    """Momentum that falls to 0."""
    return _nesterov(setting, plan, momentum.demon(setting["momentum"], plan.steps))


def srsgd(setting: Setting, plan: Plan) -> Any:
    """Nesterov with scheduled restarts, `RESTARTS` periods in a run."""
    return _nesterov(setting, plan, momentum.srsgd(max(1, plan.steps // RESTARTS)))


def one_cycle(setting: Setting, plan: Plan) -> Any:
    """The rate rises to its peak in 30 % of the run and falls to almost 0; 1 - momentum is trebled at the peak."""
    high = setting["momentum"]
    low = jnp.maximum(1 - 3 * (1 - high), 0)
    cycle = schedules.one_cycle(plan.steps, setting["learning_rate"], low=low, high=high)
    return nagjax.nesterov(cycle.learning_rate, cycle.momentum, weight_decay=_decay(setting))


def agnes(setting: Setting, plan: Plan) -> Any:
    """AGNES: `ratio` is the step along the velocity over the correction step, which is the rate."""

    def alpha(count: Any) -> jax.Array:
        return setting["ratio"] * _cosine(setting, plan)(count)

    return _with_own_steps(setting, momentum.agnes(_cosine(setting, plan), alpha, setting["momentum"]))


def mass(setting: Setting, plan: Plan) -> Any:
    """MaSS: `compensation` is eta_2 over its limit, momentum times the rate."""

    def eta_2(count: Any) -> jax.Array:
        return setting["compensation"] * setting["momentum"] * _cosine(setting, plan)(count)

    return _with_own_steps(setting, momentum.mass(_cosine(setting, plan), eta_2, setting["momentum"]))


def accsgd(setting: Setting, plan: Plan) -> Any:
    """Accelerated SGD; xi and c as its authors recommend."""
    return _nesterov(setting, plan, momentum.accsgd(setting["condition"]))


def nag_gs(setting: Setting, plan: Plan) -> Any:
    """NAG-GS; the rate is its step of time, which has no schedule."""
    return _with_own_steps(setting, momentum.nag_gs(setting["learning_rate"], setting["mu"], setting["gamma"]))


def adamw(setting: Setting, plan: Plan) -> Any:
    """Adam with decoupled weight decay."""
    return optax.adamw(_cosine(setting, plan), b1=setting["momentum"], b2=B2, weight_decay=_decay(setting))


def nadamw(setting: Setting, plan: Plan) -> Any:
    """NAdamW in the form of AlgoPerf's baseline: the reference."""
    return _nadamw(setting, plan, "algoperf")


def nadamw_dozat(setting: Setting, plan: Plan) -> Any:
    """NAdamW in the form of Dozat and Optax."""
    return _nadamw(setting, plan, "dozat")


def nadamw_pytorch(setting: Setting, plan: Plan) -> Any:
    """NAdamW in the form of PyTorch, with its momentum schedule."""
    return _nadamw(setting, plan, "pytorch")


def adan(setting: Setting, plan: Plan) -> Any:
    """Adan; b2 and b3 as its authors recommend."""
    return nagjax.adan(_cosine(setting, plan), b1=setting["momentum"], weight_decay=_decay(setting))


def schedule_free(setting: Setting, plan: Plan) -> Any:
    """Schedule-Free SGD."""
    return _schedule_free(optax.identity(), setting, plan)


def schedule_free_adam(setting: Setting, plan: Plan) -> Any:
    """Schedule-Free over Adam without momentum."""
    return _schedule_free(optax.scale_by_adam(b1=0.0, b2=B2), setting, plan)


def primal_averaging_adam(setting: Setting, plan: Plan) -> Any:
    """Primal averaging over Adam; the momentum is mu_x, the decay of the average."""
    return nagjax.primal_averaging(
        optax.scale_by_adam(b2=B2), _cosine(setting, plan), setting["momentum"], weight_decay=_decay(setting)
    )


def snoo_nesterov(setting: Setting, plan: Plan) -> Any:
    """Outer Nesterov over Nesterov."""
    return outer.snoo(nesterov(setting, plan), momentum=setting["outer_momentum"], period=OUTER_PERIOD)


def snoo_adamw(setting: Setting, plan: Plan) -> Any:
    """Outer Nesterov over AdamW."""
    return outer.snoo(adamw(setting, plan), momentum=setting["outer_momentum"], period=OUTER_PERIOD)


def lookahead_nesterov(setting: Setting, plan: Plan) -> Any:
    """Lookahead over Nesterov."""
    return outer.lookahead(nesterov(setting, plan), period=OUTER_PERIOD)


def lookahead_adamw(setting: Setting, plan: Plan) -> Any:
    """Lookahead over AdamW."""
    return outer.lookahead(adamw(setting, plan), period=OUTER_PERIOD)


def prodigy(setting: Setting, plan: Plan) -> Any:
    """Prodigy of Optax; the learning rate is a factor of what it finds."""
    return optax.contrib.prodigy(_cosine(setting, plan), weight_decay=_decay(setting))


def accelegrad(setting: Setting, plan: Plan) -> Any:
    """AcceleGrad, told a distance to the solution instead of a rate."""
    return nagjax.accelegrad(setting["distance"])


def dowg_nesterov(setting: Setting, plan: Plan) -> Any:
    """DoWG of Optax, then Nesterov's momentum; the learning rate is a factor of what it finds."""
    return optax.chain(optax.contrib.dowg(setting["learning_rate"]), nagjax.accelerate(setting["momentum"]))


def _nesterov(setting: Setting, plan: Plan, rule: Any) -> Any:
    return nagjax.nesterov(_cosine(setting, plan), rule, weight_decay=_decay(setting))


def _with_own_steps(setting: Setting, rule: Any) -> Any:
    """For rules whose coefficients hold the step sizes: the base step is the negative gradient."""
    decay = optax.add_decayed_weights(_decay(setting))
    return optax.chain(decay, optax.scale(-1.0), nagjax.accelerate(rule))


def _nadamw(setting: Setting, plan: Plan, convention: str) -> Any:
    return nagjax.nadamw(
        _cosine(setting, plan), b1=setting["momentum"], b2=B2, weight_decay=_decay(setting), convention=convention
    )


def _schedule_free(base: Any, setting: Setting, plan: Plan) -> Any:
    return nagjax.schedule_free(
        base,
        setting["learning_rate"],
        setting["momentum"],
        warmup_steps=plan.warm_up,
        weight_decay=_decay(setting),
    )


def _cosine(setting: Setting, plan: Plan) -> Any:
    return plan.cosine(setting["learning_rate"])


def _decay(setting: Setting) -> Any:
    """0 where a workload has no weight decay to tune."""
    return setting.get("weight_decay", 0.0)
