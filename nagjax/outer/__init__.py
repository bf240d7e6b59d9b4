"""An outer transformation over every K steps of an inner one: DiLoCo, SNOO, Lookahead, and any other pair.

The slow weights live in the state, so that `params` are plain parameters, and `nagjax.eval_params` gives the answer of
the outer method as of the last synchronization.
"""

from nagjax.outer import wire as wire
from nagjax.outer.diloco import diloco as diloco
from nagjax.outer.methods import lookahead as lookahead
from nagjax.outer.methods import snoo as snoo
from nagjax.outer.periodic import PeriodicState as PeriodicState
from nagjax.outer.periodic import periodic as periodic
from nagjax.outer.state import DilocoState as DilocoState
from nagjax.outer.state import keep_workers as keep_workers
from nagjax.outer.state import map_per_worker as map_per_worker
from nagjax.outer.state import per_worker as per_worker
