"""The answer, the velocity and a restart, for every method: what they are, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from nagjax import momentum, storage
from tests.catalogue import ACCELERATED, METHODS, REPRESENTATIVES, STORAGES, named, over
from tests.contract.support import (
    RATE,
    STEPS,
    avals,
    close,
    finished,
    gradient,
    loss,
    run,
    runner,
    same_bits,
    step,
    trees,
)

tree_get, tree_set = optax.tree_utils.tree_get, optax.tree_utils.tree_set


@over(ACCELERATED)
def test_the_answer_is_params_minus_readout_times_velocity(method):
    _, params, state = finished(method)
    readout, velocity = tree_get(state, "readout"), nagjax.velocity(state)
    scaled = jax.tree.map(lambda w: np.float64(readout) * np.asarray(w, np.float64), velocity)
    answer = nagjax.eval_params(params, state)
    close(answer, jax.tree.map(lambda y, w: y - w, params, scaled), 1e-15)
    assert avals(answer) == avals(params)


@over([*REPRESENTATIVES, *STORAGES])
def test_answer_velocity_and_reset_are_the_same_under_jit(method):
    _, params, state = finished(method)

    def all_three(params, state):
        return nagjax.eval_params(params, state), nagjax.velocity(state), nagjax.reset_momentum(state)

    answer, velocity, reset = jax.jit(all_three)(params, state)
    close(answer, nagjax.eval_params(params, state), 1e-15)  # a fused multiply-add rounds once
    same_bits((velocity, reset), (nagjax.velocity(state), nagjax.reset_momentum(state)))


@over(METHODS)
def test_a_fresh_state_answers_with_params_bit_for_bit(method):
    params = trees()
    state = method.make(RATE).init(params)
    same_bits(nagjax.eval_params(params, state), params)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(nagjax.velocity(state)))


@over(ACCELERATED)
def test_fields_of_states_are_found_by_name(method):
    _, _, state = finished(method)
    assert tree_get(state, "age").dtype == jnp.int32
    assert tree_get(state, "readout").shape == ()
    name = "momentum_buffer" if "pytorch" in method.name else "velocity"
    assert len(optax.tree_utils.tree_get_all_with_path(state, name)) == 1
    stored = tree_get(state, name)
    assert jax.tree.structure(nagjax.velocity(state)) == jax.tree.structure(trees())
    if not method.rounds:
        assert jax.tree.structure(stored) == jax.tree.structure(trees())
    assert tree_get(tree_set(state, age=jnp.int32(7)), "age") == 7


@over(ACCELERATED)
def test_tree_map_params_visits_every_leaf_of_the_velocity_and_no_scalar(method, standard_promotion):
    tx, _, state = finished(method)
    names = {"matrix": "m", "nest": {"vector": "v", "scalar": "s"}}
    spec = optax.tree_utils.tree_map_params(tx, lambda _, name: name, state, names, transform_non_params=lambda _: "-")
    # Values and scales of int8; both moments of Adam.
    buffers = 2 if "int8" in method.name else 3 if "adam" in method.name else 1
    found = sorted(leaf for leaf in jax.tree.leaves(spec) if leaf != "-")
    assert found == sorted(["m", "v", "s"] * buffers)
    assert tree_get(spec, "age") == tree_get(spec, "readout") == "-"


@over(ACCELERATED)
def test_reset_zeroes_velocity_readout_and_age_and_keeps_the_rest(method):
    _, params, state = finished(method)
    reset = nagjax.reset_momentum(state)
    assert avals(reset) == avals(state)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(nagjax.velocity(reset)))
    assert not tree_get(reset, "age")
    assert not tree_get(reset, "readout")
    same_bits(nagjax.eval_params(params, reset), params)


@over([method for method in METHODS if method.own_state])
def test_a_reset_zeroes_every_velocity_and_keeps_the_state_in_form(method):
    _, params, state = finished(method)
    assert any(jnp.any(leaf) for leaf in jax.tree.leaves(nagjax.velocity(state)))
    reset = nagjax.reset_momentum(state)
    assert avals(reset) == avals(state)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(nagjax.velocity(reset)))
    assert avals(nagjax.eval_params(params, reset)) == avals(params)


@over([method for method in ACCELERATED if not method.remembers])
def test_after_a_reset_a_run_is_a_fresh_run_from_the_same_parameters(method):
    """Rules and restart tests with a state of their own start it again; the noise of rounding goes on."""
    (tx, follow), (_, params, state) = runner(method), finished(method)
    fresh = tx.init(params)
    if method.rounds:
        fresh = tree_set(fresh, step=tree_get(state, "step"))
    (expected, fresh), (actual, reset) = follow(params, fresh), follow(params, nagjax.reset_momentum(state))
    same_bits((actual, nagjax.eval_params(actual, reset)), (expected, nagjax.eval_params(expected, fresh)))
    same_bits((tree_get(reset, "age"), nagjax.velocity(reset)), (tree_get(fresh, "age"), nagjax.velocity(fresh)))


def test_a_reset_does_not_start_the_schedule_of_the_learning_rate_again():
    _, _, state = finished(*named("nesterov, rate schedule"))
    assert tree_get(nagjax.reset_momentum(state), "count") == STEPS


@over([method for method in METHODS if method.restarts])
def test_the_run_of_a_restarted_method_contains_a_restart_and_beats_gradient_descent(method):
    tx = method.make(RATE)

    def body(carry, _):
        carry = step(tx, *carry)
        return carry, tree_get(carry[1], "age")

    (params, state), ages = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=STEPS))(trees())
    assert jnp.any(ages == 0)
    descent, _ = finished(named("pytorch_sgd")[0])[1:]
    assert loss(nagjax.eval_params(params, state)) < loss(descent) / 2


ON_DEMAND = nagjax.Restart(init=tuple, test=lambda carry, *, demanded, **_: (demanded, carry))
RULES = {
    "constant": 0.9,
    "heavy_ball": momentum.heavy_ball(0.9),
    "quasi_hyperbolic": momentum.quasi_hyperbolic(0.9, 0.7),
    "ogm": momentum.ogm(),
    "item": momentum.item(25.0),
    "schedule_free": momentum.schedule_free(0.9),
}
KEPT = {
    "full": storage.full(),
    "bfloat16": storage.cast(jnp.bfloat16),
    "stochastic": storage.stochastic_rounding(jnp.bfloat16),
    "int8": storage.int8(),
}


@pytest.mark.parametrize(("rule", "kept"), [*((rule, "full") for rule in RULES), *(("constant", s) for s in KEPT)])
def test_a_restart_lands_on_the_answer_that_the_step_without_it_has(rule, kept):
    tx = nagjax.accelerate(RULES[rule], restart=ON_DEMAND, storage=KEPT[kept])

    @jax.jit
    def body(params, state, demanded):
        updates, state = tx.update(jax.tree.map(lambda g: -RATE * g, gradient(params)), state, demanded=demanded)
        return optax.apply_updates(params, updates), state

    params = trees()
    state = tx.init(params)
    for _ in range(4):
        params, state = body(params, state, False)
    expected = nagjax.eval_params(*body(params, state, False))
    params, state = body(params, state, True)
    close(params, expected, 1e-15)
    same_bits(nagjax.eval_params(params, state), params)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves((nagjax.velocity(state), state.readout, state.age)))


@pytest.mark.parametrize("kept", KEPT)
def test_the_answer_is_the_step_from_the_query_point_however_coarse_the_velocity_is_kept(kept):
    """Nesterov's x_{k+1} = y_k + u_k: the velocity is rounded before it is used, so its rounding cancels."""
    tx, query = nagjax.accelerate(0.9, storage=KEPT[kept]), trees()

    @jax.jit
    def body(query, state):
        u = jax.tree.map(lambda g: -RATE * g, gradient(query))
        updates, state = tx.update(u, state)
        return optax.apply_updates(query, updates), state, optax.apply_updates(query, u)

    state = tx.init(query)
    for _ in range(5):
        query, state, expected = body(query, state)
        close(nagjax.eval_params(query, state), expected, 1e-15)


@over(REPRESENTATIVES)
def test_the_answer_in_a_low_precision_is_the_exact_one_rounded_once(method):
    tx, params = method.make(0.25), trees(dtype="bfloat16")
    after, state = run(tx, params, 5)
    wide = jax.tree.map(lambda y: y.astype(jnp.float64), after)
    close(
        nagjax.eval_params(after, state),
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), nagjax.eval_params(wide, state)),
        float(jnp.finfo(jnp.bfloat16).eps) / 64,  # almost never two roundings, through float32
    )
