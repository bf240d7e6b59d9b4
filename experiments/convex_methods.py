"""The methods of `convex` and `bench_convex` as `Stepper`: those of nagjax, of Optax, and of JAXopt where installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

import nagjax
from experiments.convex_curves import Stepper
from nagjax import adaptive, solve
from nagjax import restart as restarts
from nagjax.solve import Composite
from nagjax.solve.method import unknown

GRADIENT = 2  # the cost of a gradient with its value; a value alone costs 1


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


@contextmanager
def standard_promotion() -> Iterator[None]:
    """Other packages mix dtypes and ranks."""
    with ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield


def _counted(name: str, init: Callable[..., Any], step: Callable[..., Any], answer: Callable[[Any], Any]) -> Stepper:
    """A stepper of one gradient a step."""
    return Stepper(
        name,
        lambda problem, params: (init(problem, params), jnp.zeros((), jnp.int32)),
        lambda problem, state: (step(problem, state[0]), state[1] + jnp.int32(GRADIENT)),
        lambda state: (answer(state[0]), state[1]),
    )


@cache
def solver(name: str) -> Stepper:
    """The methods of `nagjax.solve`: default or boosted."""
    method = getattr(solve, name)()
    return _counted(
        name, lambda problem, params: method.init(problem, params, unknown()), method.step, lambda state: state.params
    )


def _transformation(name: str, build: Callable[[Composite], optax.GradientTransformationExtraArgs]) -> Stepper:
    def init(problem: Composite, params: Any) -> Any:
        return params, build(problem).init(params)

    def step(problem: Composite, state: Any) -> Any:
        params, inner = state
        evaluation = problem.evaluate(params)
        updates, inner = build(problem).update(evaluation.gradient, inner, params, value=evaluation.value)
        return optax.apply_updates(params, updates), inner

    return _counted(name, init, step, lambda state: nagjax.eval_params(*state))


def fista(smoothness: float, *, restarted: bool = False) -> Stepper:
    """FISTA with the step 1/L, with and without gradient restart."""
    restart = restarts.gradient() if restarted else None
    name = "fista_restart" if restarted else "fista"
    return _transformation(name, lambda problem: nagjax.fista(1 / smoothness, problem.prox, restart=restart))


@cache
def acfgm() -> Stepper:
    """Li and Lan's AC-FGM, which is told nothing."""
    return _transformation("acfgm", lambda problem: adaptive.acfgm(problem.prox))


def jaxopt_solver(problem: Composite, **options: Any) -> Any:
    """`jaxopt.ProximalGradient` with its defaults: accelerated, with line search."""
    import jaxopt

    return jaxopt.ProximalGradient(problem.fun, jaxopt_prox, **options)


def jaxopt_prox(params: Any, prox: Any, scale: Any) -> Any:
    """The operator as JAXopt calls it; our `Prox` is its hyper-parameter."""
    return prox.prox(params, scale)


@cache
def jaxopt_proximal_gradient() -> Stepper:
    """JAXopt's accelerated proximal gradient, its line search counted from the step sizes that it accepts.

    An iteration takes a gradient at the query point and a value at each trial. A trial halves the step, exactly in
    binary arithmetic, so that the accepted step tells their number.
    """

    def init(problem: Composite, params: Any) -> Any:
        with standard_promotion():
            state = jaxopt_solver(problem).init_state(params, problem.prox, *problem.args)
            return params, jax.tree.map(jnp.asarray, state), jnp.zeros((), jnp.int32)

    def step(problem: Composite, carry: Any) -> Any:
        params, state, cost = carry
        with standard_promotion():
            iteration = jaxopt_solver(problem)
            search, accepted = iteration._fista_line_search, []

            def recorded(*arguments: Any) -> Any:
                found = search(*arguments)
                accepted.append(found[1])
                return found

            iteration._fista_line_search = recorded
            # What `update` compiles; the accepted step could not leave that program.
            params, after = iteration._update_accel(params, state, problem.prox, problem.args, {})
            halvings = jnp.round(jnp.log2(state.stepsize / accepted[0])).astype(jnp.int32)
            after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
            return params, after, cost + GRADIENT + halvings + 1

    return Stepper("jaxopt", init, step, lambda carry: (carry[0], carry[2]))


@cache
def jaxopt_lbfgs() -> Stepper:
    """JAXopt's L-BFGS with its defaults; smooth problems only.

    Its own counters are estimates, so that its curves come from `convex_curves.witnessed`.
    """

    def method(problem: Composite) -> Any:
        import jaxopt

        return jaxopt.LBFGS(problem.fun, tol=0.0)

    def init(problem: Composite, params: Any) -> Any:
        with standard_promotion():
            return params, jax.tree.map(jnp.asarray, method(problem).init_state(params, *problem.args))

    def step(problem: Composite, carry: Any) -> Any:
        with standard_promotion():
            params, after = method(problem).update(*carry, *problem.args)
            return params, jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, carry[1])

    return Stepper("jaxopt_lbfgs", init, step, lambda carry: (carry[0], GRADIENT * carry[1].num_grad_eval))


@cache
def optax_lbfgs() -> Stepper:
    """Optax's L-BFGS with its defaults; smooth problems only. A trial of its line search takes a gradient."""
    method = optax.lbfgs()

    def init(problem: Composite, params: Any) -> Any:
        with standard_promotion():
            return params, method.init(params), jnp.full((), GRADIENT, jnp.int32)

    def step(problem: Composite, carry: Any) -> Any:
        params, state, cost = carry

        def fun(params: Any) -> jax.Array:
            return problem.fun(params, *problem.args)

        with standard_promotion():
            evaluated, gradient = optax.value_and_grad_from_state(fun)(params, state=state)
            updates, state = method.update(gradient, state, params, value=evaluated, grad=gradient, value_fn=fun)
            trials = optax.tree_utils.tree_get(state, "num_linesearch_steps")
            return optax.apply_updates(params, updates), state, cost + GRADIENT * jnp.asarray(trials, jnp.int32)

    return Stepper("optax_lbfgs", init, step, lambda carry: (carry[0], carry[2]))
