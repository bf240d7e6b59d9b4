"""Methods that find their step sizes themselves, Adam's family, and versions of FISTA that are more than momentum.

Every one takes a gradient of the smooth part at `params`; but for Adam's family, its state has a field `step_size`, the
step of the last update. `nagjax.eval_params` gives the answer of each.
"""

from nagjax.adaptive.accelegrad import AccelegradState as AccelegradState
from nagjax.adaptive.accelegrad import accelegrad as accelegrad
from nagjax.adaptive.acfgm import AcfgmState as AcfgmState
from nagjax.adaptive.acfgm import acfgm as acfgm
from nagjax.adaptive.adan import AdanState as AdanState
from nagjax.adaptive.adan import adan as adan
from nagjax.adaptive.adan import scale_by_adan as scale_by_adan
from nagjax.adaptive.adgd import AdgdState as AdgdState
from nagjax.adaptive.adgd import adgd as adgd
from nagjax.adaptive.adgd_accelerated import AdgdAcceleratedState as AdgdAcceleratedState
from nagjax.adaptive.adgd_accelerated import adgd_accelerated as adgd_accelerated
from nagjax.adaptive.greedy_fista import GreedyFistaState as GreedyFistaState
from nagjax.adaptive.greedy_fista import greedy_fista as greedy_fista
from nagjax.adaptive.monotone_fista import MonotoneFistaState as MonotoneFistaState
from nagjax.adaptive.monotone_fista import monotone_fista as monotone_fista
from nagjax.adaptive.nadamw import NadamState as NadamState
from nagjax.adaptive.nadamw import nadamw as nadamw
from nagjax.adaptive.nadamw import scale_by_nadam as scale_by_nadam
from nagjax.adaptive.proximal_gradient import AdaptiveProximalGradientState as AdaptiveProximalGradientState
from nagjax.adaptive.proximal_gradient import adaptive_proximal_gradient as adaptive_proximal_gradient
