"""Step sizes that adapt to the function, as wrappers of what follows the step: `inner` gets scaled gradients.

The functions of `nagjax.step_sizes.curvature` are the rule of that step size on plain scalars.
"""

from nagjax.step_sizes.backtracking import BacktrackingState as BacktrackingState
from nagjax.step_sizes.backtracking import backtracking as backtracking
from nagjax.step_sizes.curvature import CurvatureState as CurvatureState
from nagjax.step_sizes.curvature import curvature as curvature
from nagjax.step_sizes.curvature import local_smoothness as local_smoothness
from nagjax.step_sizes.curvature import next_step as next_step
from nagjax.step_sizes.curvature import no_samples as no_samples
from nagjax.step_sizes.curvature import probe as probe
