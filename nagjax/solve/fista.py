"""FISTA as a method of `solve`: with a fixed step, or with backtracking where none is given."""

from collections.abc import Callable

import optax

from nagjax import momentum, step_sizes
from nagjax.methods import fista
from nagjax.proximal import Prox
from nagjax.solve.chain import ChainState, chain
from nagjax.solve.composite import Composite, Evaluation
from nagjax.solve.method import Ending, Method, Start
from nagjax.transform import accelerate
from nagjax.types import PyTree


def fixed_step() -> Method:
    """FISTA with the step size s that `minimize` gets.

    Guarantee:
        F(x_N) - min F <= R^2 / (2 s t_N^2) for convex f + h and s at most 1/L.

    Source:
        A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems", 2009.
    """
    return _built(lambda prox, start: fista(start.step_size, prox))


def backtracking() -> Method:
    """FISTA with backtracking that lets the step grow again; see `step_sizes.backtracking`.

    Guarantee:
        F(x_N) - min F <= R^2 / (2 s_N t_N^2) for convex f + h, with the accepted step s_N.
    """

    def build(prox: Prox | None, start: Start) -> optax.GradientTransformation:
        del start
        return step_sizes.backtracking(accelerate(momentum.fista()), prox=prox)

    return _built(build)


def _built(build: Callable[[Prox | None, Start], optax.GradientTransformation]) -> Method:
    """The chain for the prox and the step of the run at hand."""

    def made(composite: Composite, start: Start) -> Method:
        return chain(build(None if composite.is_smooth else composite.prox, start))

    def init(composite: Composite, params: PyTree, start: Start) -> ChainState:
        return made(composite, start).init(composite, params, start)

    def update(composite: Composite, state: ChainState, evaluation: Evaluation, ending: Ending) -> ChainState:
        return made(composite, state.start).update(composite, state, evaluation, ending)

    return Method(init, update)
