"""Under jit, vmap, scan, grad, pmap, shard_map, donation and export a method computes what it computes alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import nagjax
from nagjax import momentum, restart, storage
from tests.catalogue import CONVENTIONS, METHODS, REPRESENTATIVES, RESTARTS, THREE, named, over
from tests.contract.support import (
    RATE,
    STEPS,
    close,
    compiled,
    finished,
    gradient,
    loss,
    run,
    runner,
    same_bits,
    step,
    trees,
)

DEVICES = 8


def stacked(count=3):
    """Parameters of `count` runs; the first are the suite's."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(trees(seed=seed) for seed in range(count)))


def member(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@over(THREE)
def test_eager_steps_are_the_compiled_ones(method):
    tx, params = method.make(RATE), trees((7,))
    state, expected = tx.init(params), run(tx, params, 2)
    for _ in range(2):
        params, state = step(tx, params, state)
    # A fused multiply-add rounds once; int8 can turn this into another unit of the last place, 1/127 of the largest.
    close(
        (params, nagjax.eval_params(params, state)),
        (expected[0], nagjax.eval_params(*expected)),
        0.04 if method.rounds else 1e-13,
    )


@over(REPRESENTATIVES)
def test_compiled_steps_are_the_scanned_ones_and_compile_once(method):
    chex.clear_trace_counter()
    tx, params = method.make(RATE), trees()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def body(params, state):
        return step(tx, params, state)

    state = tx.init(params)
    for _ in range(STEPS):
        params, state = body(params, state)
    close((params, nagjax.velocity(state)), (finished(method)[1], nagjax.velocity(finished(method)[2])))


@over(dict.fromkeys(REPRESENTATIVES + list(RESTARTS)))
def test_vmapped_runs_are_the_runs_one_by_one(method):
    (tx, follow), params = runner(method), stacked()
    after, state = jax.jit(jax.vmap(lambda p: follow(p, tx.init(p))))(params)
    answers = nagjax.eval_params(after, state)
    close(answers, jax.vmap(nagjax.eval_params)(after, state), 1e-15)
    for index in range(3):
        alone = follow(member(params, index), tx.init(member(params, index)))
        close(member((after, answers), index), (alone[0], nagjax.eval_params(*alone)))
        same_bits(optax.tree_utils.tree_get(state, "age")[index], optax.tree_utils.tree_get(alone[1], "age"))


@over(METHODS)
def test_a_learning_rate_can_be_traced_and_mapped(method):
    def body(rate):
        tx = method.make(rate)
        return step(tx, trees(), tx.init(trees()))

    rates = jnp.array([0.1, 0.2])
    params, state = jax.eval_shape(jax.vmap(body), rates)
    alone = jax.eval_shape(lambda p: (p, method.make(0.1).init(p)), trees())
    assert jax.tree.map(lambda leaf: leaf.shape[1:], (params, state)) == jax.tree.map(lambda leaf: leaf.shape, alone)


def test_a_mapped_learning_rate_gives_the_run_of_each_rate():
    rates = jnp.array([0.1, 0.3])
    sweep = jax.jit(jax.vmap(lambda rate: run(nagjax.nesterov(rate, restart=restart.gradient()), trees())))(rates)
    for index, rate in enumerate([0.1, 0.3]):
        close(member(sweep[0], index), run(nagjax.nesterov(rate, restart=restart.gradient()), trees())[0])


FACTORIES = {
    "constant": momentum.constant,
    "strongly_convex": lambda value: momentum.strongly_convex(1 / value),
    "sutskever": momentum.sutskever,
    "demon": lambda value: momentum.demon(value, 5),
    "polynomial": momentum.polynomial,
    "heavy_ball": momentum.heavy_ball,
    "quasi_hyperbolic": lambda value: momentum.quasi_hyperbolic(value, value),
    "triple_momentum": lambda value: momentum.triple_momentum(1 / value),
    "item": lambda value: momentum.item(1 / value),
    "schedule_free": momentum.schedule_free,
    "primal_averaging": momentum.primal_averaging,
}


@pytest.mark.parametrize("rule", FACTORIES)
def test_the_numbers_of_a_rule_can_be_traced(rule):
    """The same run where the number is a constant of the program, and where it is an argument, in float32."""

    def three_steps(value):
        tx, params = nagjax.accelerate(FACTORIES[rule](value)), jnp.ones(2)
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(-RATE * params, state)
            params = params + updates
        return params, nagjax.eval_params(params, state)

    close(jax.jit(three_steps)(jnp.float32(0.25)), three_steps(0.25), 1e-6)


def test_a_run_is_differentiable_in_its_learning_rate_and_momentum():
    def final(rate, b):
        return loss(run(nagjax.nesterov(rate, b), trees((3,)), 5)[0]).astype(jnp.float64)

    slopes = jax.grad(final, (0, 1))(0.3, 0.5)
    h = 1e-2  # the loss is a float32
    differences = [
        (final(0.3 + h, 0.5) - final(0.3 - h, 0.5)) / (2 * h),
        (final(0.3, 0.5 + h) - final(0.3, 0.5 - h)) / (2 * h),
    ]
    np.testing.assert_allclose(slopes, differences, rtol=2e-2)


@over(METHODS)
def test_a_fresh_state_shares_no_buffer_with_itself_or_with_params(method):
    """XLA refuses to donate one buffer twice."""
    params = trees()
    buffers = [
        leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, method.make(RATE).init(params))) if leaf.size
    ]
    assert len(buffers) == len(set(buffers))


@over(REPRESENTATIVES)
def test_donated_buffers_are_used_again(method):
    (tx, follow), params = runner(method), trees()
    donating = jax.jit(lambda p, s: follow(p, s), donate_argnums=(0, 1))
    state = tx.init(params)
    after, new = donating(params, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)) if leaf.size > 1)
    same_bits(after, finished(method)[1])
    donating(after, nagjax.reset_momentum(new))


def over_axis(params, weights):
    """The gradient of one worker, whose share of the curvature has the given weight; the mean over workers is ours."""
    return jax.tree.map(lambda g: weights * g, gradient(params))


@over(REPRESENTATIVES)
def test_pmap_with_whole_parameters_makes_the_steps_of_one_device(method):
    """Data parallel: parameters and state go in and out whole, every worker brings a share of the gradient."""
    tx, params = method.make(RATE), trees()
    shares = jnp.linspace(0.5, 1.5, DEVICES)

    def worker(params, state, share):
        return compiled(tx, slope=lambda p: jax.lax.pmean(over_axis(p, share), "batch"))(params, state)

    after = jax.pmap(worker, "batch", in_axes=(None, None, 0), out_axes=None)(params, tx.init(params), shares)
    # Eight shares are added in another order: rounding, which int8 can turn into one unit of 1/127.
    close(after[0], finished(method)[1], 4e-2 if method.rounds else 1e-12)
    close(nagjax.eval_params(*after), nagjax.eval_params(*finished(method)[1:]), 4e-2 if method.rounds else 1e-12)


@over(THREE)
def test_pmap_with_stacked_parameters_makes_the_runs_one_by_one(method):
    tx, params = method.make(RATE), stacked(DEVICES)
    after, state = jax.pmap(lambda p: runner(method)[1](p, tx.init(p)))(params)
    close(member(after, 0), finished(method)[1])
    close(member(nagjax.eval_params(after, state), 0), nagjax.eval_params(*finished(method)[1:]))


def mesh():
    return Mesh(np.array(jax.devices()[:DEVICES]), ("axis",))


@over(REPRESENTATIVES)
def test_shard_map_with_whole_parameters_makes_the_steps_of_one_device(method):
    tx, params = method.make(RATE), trees()
    shares = jnp.linspace(0.5, 1.5, DEVICES)

    def worker(params, state, share):
        return compiled(tx, slope=lambda p: jax.lax.pmean(over_axis(p, share[0]), "axis"))(params, state)

    sharded = jax.jit(jax.shard_map(worker, mesh=mesh(), in_specs=(P(), P(), P("axis")), out_specs=P()))
    after = sharded(params, tx.init(params), shares)
    close(after[0], finished(method)[1], 4e-2 if method.rounds else 1e-12)


SHARDED = {
    "gradient": lambda axis: nagjax.accelerate(momentum.fista(), restart=restart.gradient(axis)),
    "speed": lambda axis: nagjax.accelerate(momentum.fista(), restart=restart.speed(axis, k_min=10)),
    "gradient, int8": lambda axis: nagjax.accelerate(
        momentum.fista(), restart=restart.gradient(axis), storage=storage.int8(4, axis_name=axis)
    ),
}


@pytest.mark.parametrize("kind", SHARDED)
def test_restarts_on_shards_fall_where_those_of_the_whole_do(kind):
    """Every shard alone would restart at another step."""
    params = trees((DEVICES, 5))
    curved = jnp.linspace(0.02, 1.0, DEVICES)[:, None] * jnp.ones((1, 5))

    def ages(axis):
        tx = SHARDED[kind](axis)

        def body(carry, _):
            params, state, curved = carry
            updates, state = tx.update(-RATE * curved * params, state)
            return (params + updates, state, curved), state.age

        def whole(params, curved):
            (after, *_), ages = jax.lax.scan(body, (params, tx.init(params), curved), length=60)
            return after, ages

        return whole

    after, expected = jax.jit(ages(None))(params, curved)
    sharded = jax.shard_map(ages("axis"), mesh=mesh(), in_specs=P("axis"), out_specs=(P("axis"), P()))
    found, actual = jax.jit(sharded)(params, curved)
    assert jnp.any(expected == 0)
    np.testing.assert_array_equal(actual, expected)
    close(found, after, 4e-2 if "int8" in kind else 1e-12)
    assert not np.array_equal(jax.jit(ages(None))(params[:1], curved[:1])[1], expected)


@over(METHODS)
def test_a_step_lowers_for_cpu_cuda_and_tpu(method):
    tx, params = method.make(RATE), trees(dtype="float32")
    exported = jax.export.export(jax.jit(lambda p, s: step(tx, p, s)), platforms=("cpu", "cuda", "tpu"))(
        params, tx.init(params)
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.mlir_module()


@over(THREE)
def test_an_exported_step_computes_the_step(method):
    tx, params = method.make(RATE), trees((7,), "float32")
    leaves, structure = jax.tree.flatten((params, tx.init(params)))
    flat = jax.jit(lambda *args: jax.tree.leaves(step(tx, *structure.unflatten(args))))
    exported = jax.export.export(flat, platforms=("cpu", "cuda", "tpu"))(*leaves)
    same_bits(exported.call(*leaves), flat(*leaves))


@over(dict.fromkeys([*REPRESENTATIVES[:4], *RESTARTS, *CONVENTIONS, *named("ogm", "cast bfloat16")]))
def test_complex_parameters_with_conjugated_gradients_run_as_pairs_of_real_ones(method):
    """In one tree, so that both see the same restarts."""
    tx, z = method.make(RATE), trees((3, 4), "complex128")
    params = {"complex": z, "real": z.real, "imaginary": z.imag}
    after, state = run(tx, params)
    for found in after, nagjax.eval_params(after, state):
        close(found["complex"], jax.lax.complex(found["real"], found["imaginary"]))
