"""In every wrapper of Optax and Flax a method makes the same steps, and its answer is found."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import nagjax
from tests.catalogue import METHODS, REPRESENTATIVES, over
from tests.contract.support import RATE, STEPS, close, finished, gradient, loss, run, same_bits, step, trees

PREFIX, REST = {"matrix": True, "nest": False}, {"matrix": False, "nest": True}
MIXES = "MultiSteps divides its accumulator by an integer"


class Wrapper(NamedTuple):
    name: str
    wrap: Callable[[Any], Any]  # from a row of the catalogue to a transformation
    part: str = ""  # the leaf that is accelerated as on its own; all where empty
    every: int = 1  # gradients an update
    tolerance: float = 1e-13  # rounding of float64 on numbers near 1
    wraps_unclean_optax: str = ""


def masked(method, mask, rest):
    return optax.chain(optax.masked(method.make(RATE), mask), optax.masked(optax.set_to_zero(), rest))


def partition(method):
    parts = {"a": method.make(RATE), "b": method.make(RATE / 2), "frozen": optax.set_to_zero()}
    return optax.partition(parts, {"matrix": "a", "nest": {"vector": "b", "scalar": "frozen"}})


def nest_of_all(method):
    """chain(partition(apply_if_finite(inject_hyperparams))) in MultiSteps."""
    inner = optax.apply_if_finite(optax.inject_hyperparams(method.make)(RATE), 3)
    return optax.MultiSteps(optax.chain(optax.identity(), optax.partition({"all": inner}, "all")), 2)


WRAPPERS = (
    Wrapper("masked prefix", lambda method: masked(method, PREFIX, REST), "matrix"),
    Wrapper("partition", partition, "matrix"),
    # It averages in float32.
    Wrapper("MultiSteps, 3", lambda method: optax.MultiSteps(method.make(RATE), 3), "", 3, 1e-6, MIXES),
    Wrapper(
        "inject_hyperparams in float32",
        lambda method: optax.inject_hyperparams(method.make, hyperparam_dtype=jnp.float32)(RATE),
        tolerance=1e-6,
    ),
    Wrapper("apply_if_finite", lambda method: optax.apply_if_finite(method.make(RATE), 3)),
)
MORE_WRAPPERS = (
    Wrapper("chain", lambda method: optax.chain(optax.identity(), optax.chain(method.make(RATE)), optax.identity())),
    Wrapper("named chain", lambda method: optax.named_chain(("first", optax.identity()), ("last", method.make(RATE)))),
    Wrapper("masked nothing", lambda method: optax.masked(method.make(RATE), True)),
    Wrapper("masked function", lambda method: masked(method, lambda _: PREFIX, lambda _: REST), "matrix"),
    Wrapper("MultiSteps, 1", lambda method: optax.MultiSteps(method.make(RATE), 1), wraps_unclean_optax=MIXES),
    Wrapper("inject_hyperparams", lambda method: optax.inject_hyperparams(method.make)(RATE)),
    Wrapper("inject_hyperparams, schedule", lambda method: optax.inject_hyperparams(method.make)(lambda _: RATE)),
    Wrapper("condition", lambda method: optax.conditionally_transform(method.make(RATE), lambda *_, **__: True)),
    Wrapper("all at once", nest_of_all, "", 2, 1e-6, MIXES),
)


@functools.cache
def alone(method, part):
    """The run of a bare method, on all parameters or on a part of them: parameters, and the answer."""
    params, state = run(method.make(RATE), trees()[part]) if part else finished(method)[1:]
    return params, nagjax.eval_params(params, state)


def check(method, wrapper):
    after, state = run(wrapper.wrap(method), trees(), STEPS * wrapper.every)
    answer = nagjax.eval_params(after, state)
    found = (after[wrapper.part], answer[wrapper.part]) if wrapper.part else (after, answer)
    # Rounding at random turns a tiny difference into one unit, 1/127 of the largest velocity (about 1).
    close(found, alone(method, wrapper.part), 2e-2 if method.rounds and wrapper.every > 1 else wrapper.tolerance)

    reset = nagjax.reset_momentum(state)
    assert jax.tree.structure(reset) == jax.tree.structure(state)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(nagjax.velocity(reset)))
    same_bits(nagjax.eval_params(after, reset), after)


def over_wrappers(wrappers):
    return pytest.mark.parametrize("wrapper", wrappers, ids=lambda w: w.name.replace(" ", "-").replace(",", ""))


def pairs():
    """All but one: the value of the whole tree restarts every part of a partition."""
    rows = [(w, m) for w in WRAPPERS for m in REPRESENTATIVES if not (m.needs_value and w.name == "partition")]
    return pytest.mark.parametrize(
        ("wrapper", "method"), [pytest.param(*row, id=f"{row[0].name}-{row[1].name}") for row in rows]
    )


@pairs()
def test_a_wrapped_method_makes_the_steps_of_the_bare_one_and_is_read_and_reset(method, wrapper):
    check(method, wrapper)


@over_wrappers(MORE_WRAPPERS)
@over(REPRESENTATIVES[:1])
def test_rarer_wrappers_do_not_change_a_method_either(method, wrapper):
    check(method, wrapper)


@over(METHODS)
def test_every_method_works_in_a_nest_of_wrappers(method, standard_promotion):
    tx, params = nest_of_all(method), trees()
    state = jax.eval_shape(tx.init, params)
    traced = jax.eval_shape(lambda s: jax.lax.fori_loop(0, 2, lambda _, carry: step(tx, *carry), (params, s)), state)
    assert jax.tree.structure(traced) == jax.tree.structure((params, state))
    assert jax.eval_shape(nagjax.eval_params, *traced) == jax.eval_shape(lambda p: p, params)
    assert jax.eval_shape(nagjax.reset_momentum, state) == state


@over(METHODS)
def test_injected_hyperparameters_in_float32_keep_bfloat16_updates(method):
    tx = optax.inject_hyperparams(method.make, hyperparam_dtype=jnp.float32)(RATE)
    params = trees(dtype="bfloat16")
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(lambda s: tx.update(gradient(params), s, params, value=loss(params)), state)
    assert updates == jax.eval_shape(lambda p: p, params)
    assert after == state
    assert {leaf.dtype for leaf in jax.tree.leaves(state.hyperparams)} == {jnp.dtype("float32")}


def test_an_injected_learning_rate_can_be_changed_between_steps():
    tx = optax.inject_hyperparams(nagjax.nesterov)(learning_rate=0.1, momentum=0.5)
    params = jnp.ones(2)
    state = tx.init(params)
    updates, state = tx.update(params, state, params)
    close(updates, jnp.full(2, -0.15))
    state.hyperparams["learning_rate"] = jnp.float64(0.2)
    updates, state = tx.update(params, state, params)
    close(updates, jnp.full(2, -0.2 + 0.5 * (-0.05 - 0.2)))


def test_two_accelerated_parts_answer_each_for_its_own_leaves():
    rows = {"a": nagjax.nesterov(0.5, 0.9), "b": nagjax.fista(0.25)}
    tx = optax.partition(rows, {"matrix": "a", "nest": "b"})
    params = trees()
    answer = nagjax.eval_params(*run(tx, params))
    for name, label in ("matrix", "a"), ("nest", "b"):
        close(answer[name], nagjax.eval_params(*run(rows[label], params[name])))


def test_the_answer_of_a_chain_of_two_accelerations_undoes_both():
    first, last = nagjax.accelerate(0.5), nagjax.accelerate(0.8)
    tx, params = optax.chain(optax.scale(-0.1), first, last), trees()
    after, state = run(tx, params, 5)
    close(nagjax.eval_params(after, state), state[1].answer(state[2].answer(after)))
    velocity = nagjax.velocity(state)
    assert isinstance(velocity, tuple)
    same_bits(velocity, (state[1].velocity, state[2].velocity))


def test_within_an_accumulation_the_answer_stays(standard_promotion):
    tx, params = optax.MultiSteps(nagjax.nesterov(RATE), 3), trees()
    params, state = run(tx, params, 3)
    answer = nagjax.eval_params(params, state)
    for _ in range(2):
        params, state = jax.jit(lambda p, s: step(tx, p, s))(params, state)
        same_bits(nagjax.eval_params(params, state), answer)


def test_apply_if_finite_skips_a_step_with_nan_and_keeps_the_answer():
    tx, params = optax.apply_if_finite(nagjax.nesterov(RATE), 3), trees()
    params, state = run(tx, params, 3)
    skipped, after = jax.jit(lambda p, s: step(tx, p, s, lambda y: jax.tree.map(lambda leaf: leaf * jnp.nan, y)))(
        params, state
    )
    same_bits((skipped, nagjax.eval_params(skipped, after)), (params, nagjax.eval_params(params, state)))


class Model(nnx.Module):
    """The suite's parameters as an nnx module, with a variable that is not a parameter."""

    def __init__(self, params):
        self.matrix = nnx.Param(params["matrix"])
        self.nest = nnx.Dict({name: nnx.Param(leaf) for name, leaf in params["nest"].items()})
        self.seen = nnx.BatchStat(jnp.zeros(()))


@over(REPRESENTATIVES)
def test_an_nnx_optimizer_makes_the_steps_of_the_bare_method_and_is_read_and_reset(method):
    model = Model(trees())
    optimizer = nnx.Optimizer(model, method.make(RATE), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer):
        params = nnx.state(model, nnx.Param)
        pure = nnx.to_pure_dict(params)
        slope = nnx.clone(params)
        nnx.replace_by_pure_dict(slope, gradient(pure))
        optimizer.update(model, slope, value=loss(pure))

    for _ in range(STEPS):
        train(model, optimizer)
    params = nnx.state(model, nnx.Param)
    after, answer = alone(method, "")
    close(nnx.to_pure_dict(params), after)
    for opt_state in optimizer, optimizer.opt_state:
        found = nagjax.eval_params(params, opt_state)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        close(nnx.to_pure_dict(found), answer)
    nnx.update(model, nagjax.eval_params(params, optimizer))
    close(model.matrix[...], answer["matrix"])
    optimizer.opt_state = nagjax.reset_momentum(optimizer.opt_state)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(nagjax.velocity(optimizer)))
    train(model, optimizer)


@over([method for method in REPRESENTATIVES if not method.needs_value])
def test_a_linen_train_state_makes_the_steps_of_the_bare_method_and_can_be_passed_itself(method):
    training = TrainState.create(apply_fn=None, params=trees(), tx=method.make(RATE))
    body = jax.jit(lambda s: s.apply_gradients(grads=gradient(s.params)))
    for _ in range(STEPS):
        training = body(training)
    after, answer = alone(method, "")
    close(training.params, after)
    close(nagjax.eval_params(training.params, training.opt_state), answer)
    close(nagjax.eval_params(training.params, training), answer)
