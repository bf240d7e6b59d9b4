"""Solvers for f + h in one compiled loop."""

from nagjax.solve.accelerated import accelerated as default
from nagjax.solve.composite import Composite as Composite
from nagjax.solve.method import Method as Method
from nagjax.solve.minimize import minimize as minimize
from nagjax.solve.solution import History as History
from nagjax.solve.solution import Solution as Solution
from nagjax.solve.solution import SolveError as SolveError
from nagjax.solve.solution import Status as Status
