"""`periodic`: its state, its answer, its conditional, its precision and memory, and where it can stand."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import nagjax
from nagjax import momentum, outer, restart
from nagjax.theory import outer_loops
from tests.contract.support import avals, close, gradient, same_bits, trees
from tests.unit.programs import branches, computations, opcodes

PERIOD = 3


def snoo(inner=None, **options):
    return outer.snoo(nagjax.nesterov(0.3, 0.6) if inner is None else inner, 0.7, 0.8, PERIOD, **options)


def stepper(tx):
    """One compiled update of training."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def states(tx, params, updates):
    """Parameters and state after 0, 1, ... updates."""
    step, found = stepper(tx), [(params, tx.init(params))]
    for _ in range(updates):
        found.append(step(*found[-1]))
    return found


def final(tx, params, updates=7):
    return states(tx, params, updates)[-1]


@functools.cache
def bare():
    """The run of `snoo()` from the suite's parameters, which many tests share."""
    return states(snoo(), trees(), 12)


def test_the_answer_stays_between_synchronizations_and_is_nesterovs_outside():
    found = bare()
    answers = [nagjax.eval_params(*pair) for pair in found[:7]]
    same_bits(answers[0], trees())
    for k in range(1, 7):
        if k % PERIOD:
            same_bits(answers[k], answers[k - 1])
            assert not np.array_equal(found[k][0]["matrix"], found[k - 1][0]["matrix"])
    _, state = found[6]
    w = nagjax.velocity(state.outer)
    close(answers[6], jax.tree.map(lambda s, v: s - 0.8 * v, state.slow, w), 1e-15)
    close(found[6][0], state.slow, 1e-15)  # params have landed on s


def test_the_answer_of_an_outer_method_without_one_is_the_slow_weights():
    for slow_step in optax.sgd(0.5, 0.9), optax.identity():
        params, state = final(outer.periodic(nagjax.nesterov(0.3), slow_step, PERIOD), trees())
        same_bits(nagjax.eval_params(params, state), state.slow)


def test_velocities_and_resets_reach_both_levels():
    params, state = bare()[7]
    inside, outside = nagjax.velocity(state)
    same_bits((inside, outside), (nagjax.velocity(state.inner), nagjax.velocity(state.outer)))
    reset = nagjax.reset_momentum(state)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(nagjax.velocity(reset)))
    same_bits((reset.slow, reset.step), (state.slow, state.step))
    same_bits(nagjax.eval_params(params, reset), state.slow)
    assert np.max(np.abs(params["matrix"] - state.slow["matrix"])) > 0.01  # the round is not over


@pytest.mark.parametrize(("again", "at_once", "in_the_end"), [(True, 8.0, 8.0), (False, 0.0, 4.0)])
def test_replaced_parameters_need_a_new_state_as_slow_weights_draw_them_back(again, at_once, in_the_end):
    """At rest, the outer step of one half goes half the way back from the new head, 8, to the old one, 0."""
    tx = outer.lookahead(nagjax.nesterov(1.0, 0.5), 0.5, 2)
    old, new = ({"body": jnp.ones(2), "head": jnp.full(2, value)} for value in (0.0, 8.0))
    params, state = new, tx.init(new) if again else nagjax.reset_momentum(tx.init(old))
    close(nagjax.eval_params(params, state), old | {"head": jnp.full(2, at_once)})
    for _ in range(4):
        updates, state = tx.update({"body": jnp.zeros(2), "head": jnp.zeros(2)}, state, params)
        params = optax.apply_updates(params, updates)
    for found in params, nagjax.eval_params(params, state):
        close(found, old | {"head": jnp.full(2, in_the_end)})


def test_a_run_resumed_within_a_round_continues_bit_for_bit():
    found = bare()
    stored = jax.tree.map(np.asarray, jax.device_get(found[4]))
    step = stepper(snoo())
    for k in range(4, 8):
        stored = step(*stored)
        same_bits(stored, found[k + 1])


@pytest.mark.parametrize("phase", ["end", "start"])
def test_eager_updates_are_the_compiled_ones(phase):
    tx = snoo(phase=phase)
    expected = states(tx, trees(), 5)
    params, state = trees(), tx.init(trees())
    for after in expected[1:]:
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        close((params, state), after)


def test_an_update_compiles_once_and_scans():
    chex.clear_trace_counter()
    tx = snoo()
    step = jax.jit(chex.assert_max_traces(n=1)(stepper(tx).__wrapped__))
    carry = trees(), tx.init(trees())
    for _ in range(7):
        carry = step(*carry)
    scanned = jax.jit(
        lambda p: jax.lax.scan(lambda c, _: (stepper(tx)(*c), None), (p, tx.init(p)), length=7)[0]
    )(trees())  # fmt: skip
    close(carry, scanned)


def test_vmapped_runs_that_synchronize_at_different_steps_are_the_runs_one_by_one():
    tx = snoo()
    step = stepper(tx)
    apart = []
    for k in range(3):
        one = trees(seed=k), tx.init(trees(seed=k))
        for _ in range(3 + k):
            one = step(*one)
        apart.append(one)
    assert [int(state.step) for _, state in apart] == [0, 1, 2]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart)
    mapped = jax.jit(jax.vmap(stepper(tx)))
    for _ in range(2):
        together, apart = mapped(*together), [step(*one) for one in apart]
    for k, one in enumerate(apart):
        close(jax.tree.map(lambda leaf, k=k: leaf[k], together), one)
    stacked = nagjax.eval_params(*together)
    close(stacked, jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nagjax.eval_params(*one) for one in apart)))


def test_between_synchronizations_nothing_is_computed_or_copied():
    """The branch that is taken hands its buffers on; donated ones stay where they are."""
    tx, params = snoo(optax.sgd(0.1)), jnp.ones(4096, jnp.float32)
    step = jax.jit(stepper(tx).__wrapped__, donate_argnums=(0, 1))
    program = step.lower(params, tx.init(params)).compile().as_text()
    waiting, synchronizing = branches(program)
    assert opcodes(waiting) <= {"parameter", "get-tuple-element", "tuple", "copy"}
    assert "fusion" in opcodes(synchronizing)
    assert not re.findall(r"= f32\[4096\]\S* copy\(", program)


def over_axis(tx, updates=1):
    """A compiled run of eight workers with fast weights of their own, and a state whose slow part is shared."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("workers",))

    def worker(params, share):
        params, state = jax.lax.pcast(params, "workers", to="varying"), tx.init(params)
        for _ in range(updates):
            changes, state = tx.update(share * params, state, params)
            params = params + changes
        return params[None], state.slow

    mapped = jax.shard_map(worker, mesh=mesh, in_specs=(P(), P("workers")), out_specs=(P("workers"), P()))
    return jax.jit(mapped)


def test_workers_communicate_only_within_the_conditional():
    tx, params = snoo(optax.sgd(0.1), axis_name="workers"), jnp.ones(6)
    program = over_axis(tx).lower(params, jnp.ones(8)).compile().as_text()
    waiting, synchronizing = branches(program)
    assert program.count(" all-reduce(") == synchronizing.count(" all-reduce(") == 1
    assert "all-reduce" not in waiting + computations(program)["ENTRY"]


@pytest.mark.parametrize("reset_inner", [False, True])
@pytest.mark.parametrize("phase", ["end", "start"])
def test_shard_map_pmap_and_vmap_agree(phase, reset_inner):
    tx, params = snoo(axis_name="workers", phase=phase, reset_inner=reset_inner), jnp.arange(1.0, 5.0)
    shares = jnp.linspace(0.5, 1.5, 8)

    def worker(share):
        y, state = params, tx.init(params)
        for _ in range(5):
            updates, state = tx.update(share * y, state, y)
            y = y + updates
        return y, state.slow

    fast, slow = over_axis(tx, 5)(params, shares)
    for found in jax.vmap(worker, axis_name="workers")(shares), jax.pmap(worker, "workers")(shares):
        close(found, (fast, jnp.broadcast_to(slow, (8, 4))))


def started_inside(tx, params, shares, updates=0):
    """A run whose state is made of what `shard_map` takes for different parameters; all but the inner is shared."""
    mesh = Mesh(np.array(jax.devices()[: len(shares)]), ("workers",))

    def worker(params, share):
        params = jax.lax.pcast(params, "workers", to="varying")
        state = tx.init(params)
        for _ in range(updates):
            changes, state = tx.update(share * params, state, params)
            params = params + changes
        return jax.tree.map(lambda leaf: leaf[None], params), (state.slow, state.outer, state.step)

    mapped = jax.shard_map(
        worker, mesh=mesh, in_specs=(P(), P("workers")), out_specs=(P("workers"), P()), check_vma=True
    )
    return jax.jit(mapped)(params, shares)


OUTSIDE = {
    "snoo": lambda **options: snoo(optax.sgd(0.1), axis_name="workers", **options),
    "restarted": lambda **options: outer.periodic(
        optax.sgd(0.1), nagjax.nesterov(0.7, restart=restart.gradient()), PERIOD, ("workers",), **options
    ),
    "adam": lambda **options: outer.periodic(
        optax.sgd(0.1), nagjax.nadamw(0.1), PERIOD, axis_name="workers", reset_inner=True, **options
    ),
}


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in OUTSIDE), ("snoo", {"slow_dtype": jnp.bfloat16})]
)
def test_started_inside_shard_map_the_slow_part_is_shared_by_its_type_and_the_run_that_of_vmap(name, options):
    tx, params = OUTSIDE[name](**options), jnp.arange(1.0, 5.0)
    shares = jnp.linspace(0.5, 1.5, 8)

    def worker(share):
        y, state = params, tx.init(params)
        for _ in range(7):
            updates, state = tx.update(share * y, state, y)
            y = y + updates
        return y, (state.slow, state.outer, state.step)

    fast, shared = started_inside(tx, params, shares, 7)
    expected = jax.vmap(worker, axis_name="workers")(shares)
    tolerance = 2.0**-7 if options else 1e-13  # the unit of bfloat16
    close((fast, shared), (expected[0], jax.tree.map(lambda leaf: leaf[0], expected[1])), tolerance)


@pytest.mark.parametrize("workers", [3, 8])
def test_slow_weights_started_inside_shard_map_are_the_parameters_bit_for_bit(workers):
    params = jnp.asarray(np.random.default_rng(0).standard_normal(1000), jnp.float32)
    values = {"real": params, "complex": jax.lax.complex(params, -params)}
    _, (slow, _, step) = started_inside(OUTSIDE["snoo"](phase="start"), values, jnp.ones(workers))
    same_bits((slow, step), (values, jnp.int32(PERIOD - 1)))


# 1 - 2^-8 is the next bfloat16 below 1.
INNER_STEP, OUTER_RATE, HALF_A_UNIT = 2.0**-7, 2.0**-3, 2.0**-9


def test_outer_steps_below_half_a_unit_of_bfloat16_parameters_add_up():
    tx = outer.lookahead(optax.sgd(1.0), OUTER_RATE, 1)
    assert INNER_STEP * OUTER_RATE < HALF_A_UNIT
    params = jnp.ones(2, jnp.bfloat16)
    state = tx.init(params)
    for k in range(1, 17):
        updates, state = tx.update(jnp.full(2, INNER_STEP, jnp.bfloat16), state, params)
        assert updates.dtype == jnp.bfloat16
        params = optax.apply_updates(params, updates)
        exact = jnp.full(2, 1 - k * INNER_STEP * OUTER_RATE, jnp.float32)
        same_bits(state.slow, exact)
        same_bits(params, exact.astype(jnp.bfloat16))
        same_bits(nagjax.eval_params(params, state), params)


def test_slow_weights_in_bfloat16_lose_those_steps_and_halve_the_memory():
    tx = outer.lookahead(optax.sgd(1.0), OUTER_RATE, 1, slow_dtype=jnp.bfloat16)
    params = jnp.ones(2, jnp.float32)
    state = tx.init(params)
    assert state.slow.nbytes == params.nbytes // 2
    for _ in range(4):
        updates, state = tx.update(jnp.full(2, INNER_STEP, jnp.float32), state, params)
        assert updates.dtype == jnp.float32
        params = optax.apply_updates(params, updates)
        same_bits((state.slow, params), (jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.float32)))
    _, state = tx.update(jnp.full(2, 8 * INNER_STEP, jnp.float32), state, params)
    same_bits(state.slow, jnp.full(2, 1 - INNER_STEP, jnp.bfloat16))


DTYPES = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
COMPLEX = {"complex64": "complex64", "complex128": "complex128"}


@pytest.mark.parametrize("slow_dtype", [None, "bfloat16", "float64"])
def test_slow_weights_have_at_least_32_bits_or_the_dtype_that_is_asked_for(slow_dtype):
    params = {name: trees((3,), name) for name in DTYPES | COMPLEX}
    tx = snoo(slow_dtype=slow_dtype)
    for (y, state), count in zip(states(tx, params, 4), range(5), strict=True):
        expected = {name: slow_dtype or own for name, own in DTYPES.items()} | COMPLEX
        assert {name: leaf.dtype.name for name, leaf in state.slow.items()} == expected, count
        assert avals(y) == avals(nagjax.eval_params(y, state)) == avals(params)


@pytest.mark.parametrize(("own", "given"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_updates_have_the_dtype_of_parameters_whatever_that_of_the_gradients(own, given):
    tx, params = outer.lookahead(optax.sgd(0.5), 0.5, 2), jnp.ones(3, own)
    state = tx.init(params)
    for _ in range(4):
        updates, state = jax.jit(tx.update)(params.astype(given), state, params)
        assert updates.dtype == own
        params = optax.apply_updates(params, updates)
    same_bits(params, jnp.full(3, 0.390625, own))  # (5/8)^2


def test_slow_weights_wider_than_the_parameters_keep_what_a_run_in_their_precision_has():
    """The parameters lose digits in every inner step; slow and outer state add none to that."""
    params = trees((7,), "float32")
    tx = outer.snoo(optax.sgd(0.0), 0.7, 0.8, 2, slow_dtype=jnp.float64)
    y, state = final(tx, params)
    same_bits((y, state.slow), (params, params.astype(jnp.float64)))


def test_complex_parameters_run_as_pairs_of_real_ones():
    z = trees((3, 4), "complex128")
    y, state = final(snoo(), {"complex": z, "real": z.real, "imaginary": z.imag})
    for found in y, nagjax.eval_params(y, state):
        close(found["complex"], jax.lax.complex(found["real"], found["imaginary"]))


@pytest.mark.parametrize("options", [{}, {"slow_dtype": jnp.float32}])
@pytest.mark.parametrize("compiled", [False, True])
def test_no_buffer_of_a_fresh_state_is_shared_so_that_all_can_be_donated(compiled, options):
    tx, params = snoo(**options), trees()
    state = (jax.jit(tx.init) if compiled else tx.init)(params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
    assert len(pointers) == len(set(pointers))
    donating, expected = jax.jit(stepper(tx).__wrapped__, donate_argnums=(0, 1)), final(tx, trees(), 4)
    for _ in range(4):
        params, state = donating(params, state)
    close((params, jax.device_get(state)), jax.device_get(expected))


def test_an_outer_transformation_that_keeps_its_parameters_has_buffers_of_its_own(standard_promotion):
    tx, params = outer.periodic(optax.sgd(0.1), optax.contrib.dowg(), 2), trees()
    state = tx.init(params)
    same_bits(state.outer[1].init_params, state.slow)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
    assert len(pointers) == len(set(pointers))
    donating, expected = jax.jit(stepper(tx).__wrapped__, donate_argnums=(0, 1)), final(tx, trees(), 4)
    for _ in range(4):
        params, state = donating(params, state)
    close((params, jax.device_get(state)), jax.device_get(expected))


def test_slow_weights_take_the_sharding_of_the_parameters():
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    params = jax.device_put(jnp.ones((8, 3)), NamedSharding(mesh, P("data")))
    for _, state in states(snoo(), params, 4):
        assert {piece.data.shape for piece in state.slow.addressable_shards} == {(1, 3)}


def test_a_leaf_without_a_gradient_at_a_synchronization_waits_for_the_next_one():
    tx = outer.lookahead(optax.sgd(1.0), 0.5, 2)
    params = {"always": jnp.zeros(2), "late": jnp.zeros(2)}
    state = tx.init(params)
    one = jnp.ones(2)
    for k in range(1, 5):
        updates, state = jax.jit(tx.update)({"always": one, "late": None if k == 2 else one}, state, params)
        if k == 2:
            assert updates["late"] is None
            same_bits(state.slow, {"always": -one, "late": jnp.zeros(2)})
            updates["late"] = jnp.zeros(2)
        params = optax.apply_updates(params, updates)
    same_bits(state.slow, {"always": -2.0 * one, "late": -1.5 * one})  # half of three steps
    same_bits(params, state.slow)


def test_frozen_leaves_never_move():
    params = {"active": trees((4,)), "frozen": trees((3,)), "none": None, "masked": optax.MaskedNode()}
    tx = snoo()

    @jax.jit
    def step(params, state):
        slope = {"active": params["active"], "frozen": None, "none": None, "masked": optax.MaskedNode()}
        updates, state = tx.update(slope, state, params)
        return params | {"active": params["active"] + updates["active"]}, state

    after, state = params, tx.init(params)
    for _ in range(4):
        after, state = step(after, state)
    answer = nagjax.eval_params(after, state)
    assert jax.tree.structure(answer) == jax.tree.structure(params)
    same_bits(answer["frozen"], params["frozen"])


@pytest.mark.parametrize("params", [{"s": 1.0}, {"s": np.float32(1)}, jnp.ones(()), jnp.ones((0, 3))], ids=repr)
def test_numbers_scalars_and_arrays_without_elements_are_parameters(params):
    tx = outer.lookahead(optax.sgd(0.5), 0.5, 1)
    updates, state = tx.update(params, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    for leaf in jax.tree.leaves((after, nagjax.eval_params(after, jax.device_get(state)))):
        np.testing.assert_array_equal(leaf, np.full(np.shape(leaf), 0.75))


def scaled_by_the_caller():
    def update(updates, state, params=None, *, factor, **_):
        del params
        return jax.tree.map(lambda u: -factor * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def test_keyword_arguments_reach_both_levels():
    tx, params = outer.periodic(scaled_by_the_caller(), scaled_by_the_caller(), 1), jnp.ones(2)
    updates, _ = tx.update(params, tx.init(params), params, factor=0.5)
    close(updates, -0.25 * params)


def test_restarts_work_on_both_levels():
    inner = nagjax.nesterov(0.3, restart=restart.gradient())
    tx = outer.periodic(inner, optax.chain(optax.scale(-0.7), nagjax.accelerate(0.8, restart=restart.every(2))), PERIOD)
    ages = [int(state.outer[1].age) for _, state in states(tx, trees(), 12)]
    assert ages == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0]


def inner_parts():
    parts = {"a": nagjax.nesterov(0.3), "b": optax.sgd(0.2)}
    return optax.partition(parts, {"matrix": "a", "nest": {"vector": "b", "scalar": "b"}})


def test_an_inner_partition_moves_each_part_as_alone():
    params, state = final(snoo(inner_parts()), trees())
    for name, inner in ("matrix", nagjax.nesterov(0.3)), ("nest", optax.sgd(0.2)):
        alone, own = final(snoo(inner), trees()[name])
        close((params[name], nagjax.eval_params(params, state)[name]), (alone, nagjax.eval_params(alone, own)))


@pytest.mark.parametrize("phase", ["end", "start"])
@pytest.mark.parametrize(
    ("factory", "arguments", "period"),
    [
        (outer.snoo, {"learning_rate": 0.7}, 30),
        (outer.lookahead, {}, 6),
        (outer.periodic, {"outer": nagjax.nesterov(0.7, 0.9), "period": 3}, 3),
        (outer.periodic, {"outer": optax.sgd(0.7), "period": 1}, 1),
    ],
    ids=["snoo", "lookahead", "periodic", "period of one"],
)
def test_injected_factories_take_their_defaults_and_make_the_steps_of_the_bare_ones(factory, arguments, period, phase):
    arguments = {"inner": optax.sgd(0.2), "phase": phase} | arguments
    params, updates = trees((4,)), period + 2
    injected = optax.inject_hyperparams(factory)(**arguments)
    assert int(injected.init(params).hyperparams["period"]) == period
    for found, expected in zip(
        states(injected, params, updates), states(factory(**arguments), params, updates), strict=True
    ):
        close((found[0], found[1].inner_state), expected)
        close(nagjax.eval_params(*found), nagjax.eval_params(*expected))
    eager, state = params, injected.init(params)
    for _ in range(updates):
        changes, state = injected.update(gradient(eager), state, eager)
        eager = optax.apply_updates(eager, changes)
    close((eager, state.inner_state), expected)


def test_an_injected_period_may_change_between_updates():
    tx, params = optax.inject_hyperparams(outer.lookahead)(optax.sgd(1.0), 1.0, period=3), jnp.zeros(1)
    step, state, seen = jax.jit(tx.update), tx.init(params), []
    for k in range(10):
        if k == 6:
            state.hyperparams["period"] = jnp.asarray(2)
        updates, state = step(jnp.full(1, -1.0), state, params)
        params = params + updates
        seen.append(float(state.inner_state.slow[0]))
    assert seen == [0, 0, 3, 3, 3, 6, 6, 8, 8, 10]


@pytest.mark.parametrize("phase", ["end", "start"])
def test_runs_of_several_periods_can_be_mapped(phase):
    params = trees((4,))

    def run(period):
        tx = outer.snoo(optax.sgd(0.2), 0.7, 0.8, period, phase=phase)
        y, state = params, tx.init(params)
        for _ in range(5):
            updates, state = tx.update(gradient(y), state, y)
            y = y + updates
        return y, state

    together = jax.jit(jax.vmap(run))(jnp.arange(1, 5))
    for row, period in enumerate(range(1, 5)):
        close(jax.tree.map(lambda leaf, row=row: leaf[row], together), run(period))


def wrapped(name):
    """A transformation, the updates of it that make one of `snoo()`, and a tolerance."""
    return {
        "chain": lambda: (optax.chain(optax.identity(), snoo()), 1, 1e-13),
        "apply_if_finite": lambda: (optax.apply_if_finite(snoo(), 3), 1, 1e-13),
        "MultiSteps": lambda: (optax.MultiSteps(snoo(), 2), 2, 1e-6),  # averages in float32
        "partition": lambda: (optax.partition({"all": snoo()}, "all"), 1, 1e-13),
        "inject_hyperparams": lambda: (
            optax.inject_hyperparams(outer.snoo)(nagjax.nesterov(0.3, 0.6), 0.7, 0.8, PERIOD),
            1,
            1e-13,
        ),
        "inject_hyperparams, static": lambda: (
            optax.inject_hyperparams(outer.snoo, static_args=("period",))(nagjax.nesterov(0.3, 0.6), 0.7, 0.8, PERIOD),
            1,
            1e-13,
        ),
    }[name]()


@pytest.mark.parametrize(
    "name",
    ["chain", "apply_if_finite", "MultiSteps", "partition", "inject_hyperparams", "inject_hyperparams, static"],
)
def test_a_wrapped_outer_method_makes_the_steps_of_the_bare_one_and_is_read(name, standard_promotion):
    tx, repeats, tolerance = wrapped(name)
    params, state = final(tx, trees(), 8 * repeats)
    expected, own = bare()[8]
    close((params, nagjax.eval_params(params, state)), (expected, nagjax.eval_params(expected, own)), tolerance)
    reset = nagjax.reset_momentum(state)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(nagjax.velocity(reset)))
    found = nagjax.eval_params(params, reset)
    close(found, own.slow, tolerance)


def test_a_masked_outer_method_answers_for_its_leaves_alone():
    rest = optax.masked(optax.set_to_zero(), {"matrix": False, "nest": True})
    tx = optax.chain(optax.masked(snoo(), {"matrix": True, "nest": False}), rest)
    params, state = final(tx, trees())
    alone, own = final(snoo(), trees()["matrix"])
    answer = nagjax.eval_params(params, state)
    close((params["matrix"], answer["matrix"]), (alone, nagjax.eval_params(alone, own)))
    same_bits((params["nest"], answer["nest"]), (trees()["nest"], trees()["nest"]))


def test_multi_steps_can_stand_inside(standard_promotion):
    tx = outer.lookahead(optax.MultiSteps(optax.sgd(0.3), 2), 0.5, 2 * PERIOD)
    close(final(tx, trees(), 12)[0], final(outer.lookahead(optax.sgd(0.3), 0.5, PERIOD), trees(), 6)[0], 1e-6)


def test_an_nnx_optimizer_is_read_in_the_types_of_its_parameters():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    pure = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, snoo(), wrt=nnx.Param)
    for _ in range(4):
        optimizer.update(model, jax.tree.map(lambda leaf: 0.1 * leaf, nnx.state(model, nnx.Param)))
    params = nnx.state(model, nnx.Param)
    answer = nagjax.eval_params(params, optimizer)
    assert jax.tree.structure(answer) == jax.tree.structure(params)

    def body(carry, _):
        y, state = carry
        updates, state = snoo().update(jax.tree.map(lambda leaf: 0.1 * leaf, y), state, y)
        return (optax.apply_updates(y, updates), state), None

    after, state = jax.lax.scan(body, (pure, snoo().init(pure)), length=4)[0]
    close(nnx.to_pure_dict(answer), nagjax.eval_params(after, state))


def test_tree_map_params_visits_slow_weights_and_both_velocities(standard_promotion):
    names = {"matrix": "m", "nest": {"vector": "v", "scalar": "s"}}
    _, state = bare()[1]
    spec = optax.tree_utils.tree_map_params(
        snoo(), lambda _, name: name, state, names, transform_non_params=lambda _: "-"
    )
    assert spec.slow == spec.inner[2].velocity == spec.outer[2].velocity == names
    assert sorted(leaf for leaf in jax.tree.leaves(spec) if leaf != "-") == sorted(["m", "v", "s"] * 3)
    assert spec.step == "-"


def test_names_and_defaults_are_those_of_the_papers():
    expected = outer.periodic(optax.sgd(0.2), nagjax.nesterov(0.7, 0.9), 30)
    same_bits(final(outer.snoo(optax.sgd(0.2)), trees(), 61), final(expected, trees(), 61))
    loop = outer_loops.lookahead([lambda x, k: 0.8 * x], np.ones(1), 6, np.full(3, 0.5))
    params = jnp.ones(1)
    tx = outer.lookahead(optax.sgd(0.2))
    state = tx.init(params)
    for k in range(18):
        updates, state = jax.jit(tx.update)(params, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, loop.fast[k + 1, 0], rtol=1e-14)


def test_eager_updates_need_no_conditional():
    """It would be traced and compiled anew in every one of them."""
    tx, params = snoo(), jnp.ones(3)
    state = tx.init(params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "cond", None)
        for _ in range(PERIOD):
            _, state = tx.update(params, state, params)


def test_periods_of_one_need_no_conditional():
    tx, params = outer.lookahead(optax.sgd(0.1), 0.5, 1), jnp.ones(2)
    assert "cond" not in str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))


def build(**changes):
    arguments = {"inner": optax.sgd(0.1), "outer": optax.sgd(0.7), "period": 3} | changes
    return outer.periodic(arguments.pop("inner"), arguments.pop("outer"), arguments.pop("period"), **arguments)


@pytest.mark.parametrize(
    ("error", "argument", "condition", "value"),
    [
        (TypeError, "inner", "an Optax gradient transformation", optax.sgd),
        (TypeError, "inner", "an Optax gradient transformation", None),
        (TypeError, "outer", "an Optax gradient transformation", 0.7),
        (TypeError, "period", "an integer of at least 1", 2.5),
        (TypeError, "period", "an integer of at least 1", True),
        (ValueError, "period", "an integer of at least 1", 0),
        (ValueError, "period", "an integer of at least 1", -3),
        (ValueError, "period", "an integer of at least 1", np.int64(0)),
        (ValueError, "period", "an integer of at least 1", jnp.array(0)),
        (TypeError, "period", "an integer of at least 1", jnp.array(2.0)),
        (TypeError, "period", "an integer of at least 1", jnp.array(True)),
        (TypeError, "period", "an integer of at least 1", jnp.array([2, 3])),
        (ValueError, "period", "below 2**31", 2**31),
        (ValueError, "period", "below 2**31", 2**80),
        (ValueError, "period", "below 2**31", jnp.array(2**31)),
        (ValueError, "phase", "'end' or 'start'", "middle"),
        (TypeError, "slow_dtype", "a real floating dtype", "bfloat17"),
        (ValueError, "slow_dtype", "a real floating dtype", jnp.int8),
        (ValueError, "slow_dtype", "a real floating dtype", jnp.complex64),
    ],
)
def test_bad_arguments_are_refused_with_the_remedy(error, argument, condition, value):
    with pytest.raises(error, match=rf"^outer\.periodic: {argument} must be {re.escape(condition)}, got .+; .+\.$"):
        build(**{argument: value})


@pytest.mark.parametrize("method", [outer.snoo, outer.lookahead], ids=lambda method: method.__name__)
@pytest.mark.parametrize("rate", [-0.1, float("nan")])
def test_bad_rates_are_refused_under_the_name_of_the_method(method, rate):
    with pytest.raises(ValueError, match=rf"^outer\.{method.__name__}: learning_rate must be at least 0 and finite"):
        method(optax.sgd(0.1), rate)


@pytest.mark.parametrize("phase", ["end", "start"])
def test_the_longest_period_is_counted(phase):
    tx, params = build(period=2**31 - 1, phase=phase), jnp.ones(2)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert int(state.step) == (1 if phase == "end" else 0)  # "start" synchronizes after the first step


@pytest.mark.parametrize("method", [outer.snoo, outer.lookahead], ids=lambda method: method.__name__)
@pytest.mark.parametrize("inner", [0.7, optax.sgd], ids=["number", "factory"])
def test_swapped_arguments_are_told_by_the_first_of_them(method, inner):
    with pytest.raises(
        TypeError, match=rf"^outer\.{method.__name__}: inner must be an Optax .*, got (0\.7|<func.*); .+\.$"
    ):
        method(inner, optax.sgd(0.1))


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize(
    ("steps", "condition"),
    [
        ({"a": jnp.ones(3)}, "of the structure .*"),
        ({"a": jnp.ones(3), "z": 1j * np.ones(2), "more": None, "n": None}, "of the structure .*"),
        ({"a": jnp.ones(()), "z": 1j * np.ones(2), "n": None}, r"of shape \(3,\) here"),
        ({"a": jnp.ones(1), "z": 1j * np.ones(2), "n": None}, r"of shape \(3,\) here"),
        ({"a": jnp.ones((3, 1)), "z": None, "n": None}, r"of shape \(3,\) here"),
        ({"a": None, "z": jnp.ones(2), "n": None}, "complex like the parameters here"),
        ({"a": None, "z": None, "n": jnp.ones(2)}, "None where the parameters are"),
        ([jnp.ones(3), 1j * np.ones(2)], "of the structure .*"),
    ],
)
def test_updates_of_another_structure_or_shape_are_refused_in_every_step(steps, condition, period):
    tx, params = build(period=period), {"a": jnp.ones(3), "z": 1j * np.ones(2), "n": None}
    state = tx.init(params)
    for update in tx.update, jax.jit(tx.update):
        # What is raised under `jit` ends in a note by JAX.
        with pytest.raises(ValueError, match=rf"^outer\.periodic: updates must be {condition}, got .+; pass .+ none\."):
            update(steps, state, params)


def test_missing_and_integer_parameters_are_refused():
    tx = build()
    with pytest.raises(
        ValueError, match=r"^outer\.periodic: params must be passed to update, got None; .*params\)`\.$"
    ):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(
        TypeError, match=r"^outer\.periodic: params must be floating-point or complex, got .int64 at params\['b'\]"
    ):
        tx.init({"a": jnp.ones(2), "b": jnp.arange(3)})


def test_parameters_of_another_model_are_refused_by_eval_params():
    _, state = bare()[1]
    for wrong in {"matrix": trees()["matrix"]}, trees() | {"matrix": trees()["matrix"].T}, jnp.ones(7):
        with pytest.raises(ValueError, match=r"^eval_params: params must be .*; pass the tree that `init` received\.$"):
            nagjax.eval_params(wrong, state)


def test_an_outer_rule_of_any_kind_gives_its_own_answer():
    rule = momentum.schedule_free(0.9)
    tx = outer.periodic(optax.sgd(0.3), optax.chain(optax.scale(-0.7), nagjax.accelerate(rule)), PERIOD)
    params, state = final(tx, trees())
    close(nagjax.eval_params(params, state), nagjax.eval_params(state.slow, state.outer), 1e-15)
