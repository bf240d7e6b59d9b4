"""Momentum rules: what the four coefficients are in update k."""

from nagjax.momentum.averaging import primal_averaging as primal_averaging
from nagjax.momentum.averaging import schedule_free as schedule_free
from nagjax.momentum.classical import constant as constant
from nagjax.momentum.classical import fista as fista
from nagjax.momentum.classical import heavy_ball as heavy_ball
from nagjax.momentum.classical import polynomial as polynomial
from nagjax.momentum.classical import quasi_hyperbolic as quasi_hyperbolic
from nagjax.momentum.classical import schedule as schedule
from nagjax.momentum.classical import strongly_convex as strongly_convex
from nagjax.momentum.optimal import item as item
from nagjax.momentum.optimal import ogm as ogm
from nagjax.momentum.optimal import triple_momentum as triple_momentum
from nagjax.momentum.stochastic import accsgd as accsgd
from nagjax.momentum.stochastic import agnes as agnes
from nagjax.momentum.stochastic import mass as mass
from nagjax.momentum.stochastic import nag_gs as nag_gs
from nagjax.momentum.training import demon as demon
from nagjax.momentum.training import srsgd as srsgd
from nagjax.momentum.training import sutskever as sutskever
from nagjax.momentum.universal import accelegrad as accelegrad
