"""Nesterov acceleration for JAX, as composable Optax gradient transformations."""

import importlib
from types import ModuleType

from nagjax import adaptive as adaptive
from nagjax import conventions as conventions
from nagjax import momentum as momentum
from nagjax import outer as outer
from nagjax import proximal as proximal
from nagjax import restart as restart
from nagjax import schedules as schedules
from nagjax import step_sizes as step_sizes
from nagjax import storage as storage
from nagjax.adaptive import accelegrad as accelegrad
from nagjax.adaptive import acfgm as acfgm
from nagjax.adaptive import adan as adan
from nagjax.adaptive import adgd as adgd
from nagjax.adaptive import nadamw as nadamw
from nagjax.answers import eval_params as eval_params
from nagjax.answers import rescale_momentum as rescale_momentum
from nagjax.answers import reset_momentum as reset_momentum
from nagjax.answers import velocity as velocity
from nagjax.averaging import primal_averaging as primal_averaging
from nagjax.averaging import schedule_free as schedule_free
from nagjax.compensation import compensate as compensate
from nagjax.descent import clip_by_global_norm as clip_by_global_norm
from nagjax.methods import agnes as agnes
from nagjax.methods import fista as fista
from nagjax.methods import item as item
from nagjax.methods import mass as mass
from nagjax.methods import nesterov as nesterov
from nagjax.methods import ogm as ogm
from nagjax.methods import triple_momentum as triple_momentum
from nagjax.transform import accelerate as accelerate
from nagjax.types import Coefficients as Coefficients
from nagjax.types import Momentum as Momentum
from nagjax.types import Restart as Restart
from nagjax.types import Storage as Storage

__version__ = "0.1.0"

_LAZY = ("interop", "models", "problems", "solve", "theory", "training")


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"nagjax.{name}")
    raise AttributeError(f"module 'nagjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
