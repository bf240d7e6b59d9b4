"""Closed forms, worst cases and reference loops, in NumPy alone: what the tests hold the library to."""

from nagjax.theory import adam_loops as adam_loops
from nagjax.theory import adaptive_loops as adaptive_loops
from nagjax.theory import averaging_loops as averaging_loops
from nagjax.theory import bounds as bounds
from nagjax.theory import convex_loops as convex_loops
from nagjax.theory import outer_loops as outer_loops
from nagjax.theory import polynomials as polynomials
from nagjax.theory import proximal_loops as proximal_loops
from nagjax.theory import responses as responses
from nagjax.theory import restart_loops as restart_loops
from nagjax.theory import sequences as sequences
from nagjax.theory import state_space as state_space
from nagjax.theory import stochastic_loops as stochastic_loops
from nagjax.theory import strong_bounds as strong_bounds
from nagjax.theory import training_loops as training_loops
from nagjax.theory import trajectories as trajectories
from nagjax.theory import universal_loops as universal_loops
