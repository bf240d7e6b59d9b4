"""Functions that are not smooth, through their proximal operators, and constraints, through projections.

prox_{s h}(x) = argmin_z h(z) + |z - x|^2 / (2 s), with the step size s in the field's sense.

Norms, balls, simplex, hyperplane, half-space and linear equations take a whole tree as one vector, and `per_leaf`
applies them to each leaf on its own. Functions of entries, groups, sequences, images and matrices add up over leaves.
Constraints have the value 0 inside, up to rounding, and infinity outside; their operators ignore the step size.
"""

from nagjax.proximal.balls import l1_ball as l1_ball
from nagjax.proximal.balls import l2_ball as l2_ball
from nagjax.proximal.balls import simplex as simplex
from nagjax.proximal.boxes import box as box
from nagjax.proximal.boxes import linf_ball as linf_ball
from nagjax.proximal.boxes import nonnegative as nonnegative
from nagjax.proximal.calculus import conjugate as conjugate
from nagjax.proximal.calculus import per_leaf as per_leaf
from nagjax.proximal.calculus import scale as scale
from nagjax.proximal.calculus import separable_sum as separable_sum
from nagjax.proximal.calculus import translate as translate
from nagjax.proximal.flats import affine as affine
from nagjax.proximal.flats import half_space as half_space
from nagjax.proximal.flats import hyperplane as hyperplane
from nagjax.proximal.groups import group_lasso as group_lasso
from nagjax.proximal.groups import sparse_group_lasso as sparse_group_lasso
from nagjax.proximal.norms import l2 as l2
from nagjax.proximal.norms import linf as linf
from nagjax.proximal.operators import elastic_net as elastic_net
from nagjax.proximal.operators import huber as huber
from nagjax.proximal.operators import l0 as l0
from nagjax.proximal.operators import l1 as l1
from nagjax.proximal.operators import log_barrier as log_barrier
from nagjax.proximal.operators import squared_l2 as squared_l2
from nagjax.proximal.operators import zero as zero
from nagjax.proximal.prox import Prox as Prox
from nagjax.proximal.spectral import nuclear as nuclear
from nagjax.proximal.spectral import psd_cone as psd_cone
from nagjax.proximal.transform import step as step
from nagjax.proximal.variation import total_variation as total_variation
from nagjax.proximal.variation_2d import total_variation_2d as total_variation_2d
