"""Storage of the velocity in the parameters' own precision, 16 bits or 8 bits.

Every form is read by `decode` and cleared by `where`, which need the stored tree alone. `int8` and
`stochastic_rounding` round without bias: a value between two representable ones goes up with a probability
proportional to its distance from the lower. Rounding to nearest loses every step smaller than half a unit of the
velocity, which shifts the point that a run with decay near 1 converges to; rounding at random does not.
"""

from nagjax.storage.blockwise import Int8State as Int8State
from nagjax.storage.blockwise import int8 as int8
from nagjax.storage.plain import bytes_per_parameter as bytes_per_parameter
from nagjax.storage.plain import cast as cast
from nagjax.storage.plain import decode as decode
from nagjax.storage.plain import full as full
from nagjax.storage.plain import scaled as scaled
from nagjax.storage.plain import where as where
from nagjax.storage.stochastic import StochasticState as StochasticState
from nagjax.storage.stochastic import stochastic_rounding as stochastic_rounding
