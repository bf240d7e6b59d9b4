"""An outer transformation over every K steps of an inner one: SNOO, Lookahead, and any other pair.

The slow weights live in the state, so that `params` are plain parameters, and `nagjax.eval_params` gives the answer of
the outer method as of the last synchronization.
"""

from nagjax.outer.methods import lookahead as lookahead
from nagjax.outer.methods import snoo as snoo
from nagjax.outer.periodic import PeriodicState as PeriodicState
from nagjax.outer.periodic import periodic as periodic
