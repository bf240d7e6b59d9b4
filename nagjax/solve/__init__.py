"""Solvers for f + h in one compiled loop."""

from nagjax.solve.accelerated import default as default
from nagjax.solve.boosted import boosted as boosted
from nagjax.solve.chain import chain as chain
from nagjax.solve.composite import Composite as Composite
from nagjax.solve.gaps import least_squares_gap as least_squares_gap
from nagjax.solve.method import Method as Method
from nagjax.solve.minimize import minimize as minimize
from nagjax.solve.path import path as path
from nagjax.solve.solution import History as History
from nagjax.solve.solution import Solution as Solution
from nagjax.solve.solution import SolveError as SolveError
from nagjax.solve.solution import Status as Status
