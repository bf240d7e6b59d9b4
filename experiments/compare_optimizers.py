"""The optimizers of `compare`, and what tuning tries for each.

The function of the same name in `compare_builders` builds it: to add an optimizer, add a row here and a function there.
This module imports neither JAX nor nagjax, so that the command line can refuse a wrong name at once, and an optimizer
that cannot be built fails only when it is chosen.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.compare_search import Range, Space

REFERENCE = "nadamw"
QUICK = ("nesterov", "adamw", "nadamw")

RATE = Range(1e-3, 10.0)  # of steps along the gradient
ADAM_RATE = Range(1e-4, 0.1)  # of directions with entries of about 1
MOMENTUM = Range(0.3, 0.99, complement=True)
OUTER_MOMENTUM = Range(0.1, 0.9, complement=True)
COUPLED = Range(1e-6, 1e-2)  # weight decay that is added to the gradient
DECOUPLED = Range(1e-4, 1.0)  # weight decay that the rate multiplies

_SGD: Space = {"learning_rate": RATE, "weight_decay": COUPLED}
_MOMENTUM: Space = {"learning_rate": RATE, "momentum": MOMENTUM, "weight_decay": COUPLED}
_ADAM: Space = {"learning_rate": ADAM_RATE, "momentum": MOMENTUM, "weight_decay": DECOUPLED}


@dataclass(frozen=True)
class Optimizer:
    """One row: label, family (a panel of each figure), the space of tuning, and the schedule of the rate."""

    label: str
    family: str
    space: Space
    schedule: str = "cosine"  # "cosine" and "constant" after a warm-up, "own", or "none"
    has_answer: bool = True  # evaluated at nagjax.eval_params; else the parameters are the answer

    def space_of(self, *, decay: bool) -> Space:
        """The space on a workload, without weight decay where that is not tuned."""
        return {name: span for name, span in self.space.items() if decay or name != "weight_decay"}


GRADIENT, SCHEDULED, NOISY = "Gradient and momentum", "Schedules of momentum", "For noisy gradients"
ADAM, AVERAGED, OUTER, SELF_TUNING = "Adam's family", "Averaging", "Outer steps", "Rates that tune themselves"
FAMILIES = (GRADIENT, SCHEDULED, NOISY, ADAM, AVERAGED, OUTER, SELF_TUNING)

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer("SGD", GRADIENT, _SGD, has_answer=False),
    "heavy_ball": Optimizer("heavy ball", GRADIENT, _MOMENTUM),
    "nesterov": Optimizer("Nesterov", GRADIENT, _MOMENTUM),
    "sutskever": Optimizer("Nesterov (Sutskever)", SCHEDULED, _MOMENTUM),
    "demon": Optimizer("Nesterov (Demon)", SCHEDULED, _MOMENTUM),
    "srsgd": Optimizer("SRSGD", SCHEDULED, _SGD),
    "one_cycle": Optimizer("Nesterov (1cycle)", SCHEDULED, _MOMENTUM, "own"),
    "agnes": Optimizer("AGNES", NOISY, {**_MOMENTUM, "ratio": Range(0.01, 1.0)}),
    "mass": Optimizer("MaSS", NOISY, {**_MOMENTUM, "compensation": Range(0.01, 0.9)}),
    "accsgd": Optimizer("AccSGD", NOISY, {**_SGD, "condition": Range(100.0, 100_000.0)}),
    "nag_gs": Optimizer(
        "NAG-GS", NOISY, {"learning_rate": Range(0.01, 1.0), "mu": Range(1e-3, 1.0), "gamma": Range(1e-3, 10.0)}, "none"
    ),
    "adamw": Optimizer("AdamW", ADAM, _ADAM, has_answer=False),
    "nadamw": Optimizer("NAdamW", ADAM, _ADAM),
    "nadamw_dozat": Optimizer("NAdamW (Dozat)", ADAM, _ADAM),
    "nadamw_pytorch": Optimizer("NAdamW (PyTorch)", ADAM, _ADAM),
    "adan": Optimizer("Adan", ADAM, {**_ADAM, "learning_rate": Range(1e-3, 1.0)}),
    "schedule_free": Optimizer("Schedule-Free SGD", AVERAGED, _MOMENTUM, "constant"),
    "schedule_free_adam": Optimizer("Schedule-Free Adam", AVERAGED, _ADAM, "constant"),
    "primal_averaging_adam": Optimizer("primal averaging (Adam)", AVERAGED, _ADAM),
    "snoo_nesterov": Optimizer("SNOO (Nesterov)", OUTER, {**_MOMENTUM, "outer_momentum": OUTER_MOMENTUM}),
    "snoo_adamw": Optimizer("SNOO (AdamW)", OUTER, {**_ADAM, "outer_momentum": OUTER_MOMENTUM}),
    "lookahead_nesterov": Optimizer("Lookahead (Nesterov)", OUTER, _MOMENTUM),
    "lookahead_adamw": Optimizer("Lookahead (AdamW)", OUTER, _ADAM),
    "accelegrad": Optimizer("AcceleGrad", SELF_TUNING, {"distance": Range(0.1, 100.0)}, "none"),
    "dowg_nesterov": Optimizer(
        "DoWG (Nesterov)", SELF_TUNING, {"learning_rate": Range(1e-3, 2.0), "momentum": MOMENTUM}, "none"
    ),
    "prodigy": Optimizer(
        "Prodigy", SELF_TUNING, {"learning_rate": Range(0.01, 10.0), "weight_decay": DECOUPLED}, has_answer=False
    ),
}


def builder(name: str) -> Callable[[Any, Any], Any]:
    """Returns `build(setting, plan)`, which takes traced numbers and returns a gradient transformation."""
    return getattr(importlib.import_module("experiments.compare_builders"), name)


def refuse_unknown(names: Sequence[str]) -> None:
    """Raises ValueError for names that are not in the table, with the nearest that are, and for no or double names."""
    if not names:
        raise ValueError("--optimizers needs at least one name.")
    for name in names:
        if name not in OPTIMIZERS:
            near = difflib.get_close_matches(name, OPTIMIZERS, n=2, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(OPTIMIZERS)}."
            raise ValueError(f"--optimizers: unknown optimizer {name!r}; {hint}")
    if len(set(names)) < len(names):
        raise ValueError("--optimizers names an optimizer twice.")
