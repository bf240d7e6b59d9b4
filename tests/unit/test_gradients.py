"""The mean gradient over devices: right under every mapping, or refused when it is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nagjax.training import sharding

DEVICES = 8
PARAMS = {"w": np.linspace(-1.0, 2.0, 5), "b": np.array(0.5)}
rng = np.random.default_rng(0)
BATCH = rng.normal(size=(4 * DEVICES, 5)), rng.normal(size=4 * DEVICES)
MAPPINGS = ("vma", "no vma", "pmap", "vmap")


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"] - y) ** 2)


def reported(params, batch):
    loss = loss_fn(params, batch)
    return loss, {"twice": 2 * loss, "constant": jnp.float64(3)}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


SPLIT, WHOLE = (P(), P("data")), (P(), P())


def mapped(function, mapping, mesh, specs=SPLIT):
    """The function of (params, batch), called on each device with its own part of the batch."""
    if mapping in ("vma", "no vma"):
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=mapping == "vma"))
    cut = {"in_axes": (None, 0), "out_axes": None, "axis_name": "data"}
    run = (jax.pmap if mapping == "pmap" else jax.vmap)(function, **cut)
    return lambda params, batch: run(
        params, jax.tree.map(lambda leaf: leaf.reshape(DEVICES, 4, *leaf.shape[1:]), batch)
    )


def expected():
    return jax.value_and_grad(loss_fn)(PARAMS, BATCH)


def same(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14), found, wanted)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_loss_and_gradient_are_those_of_the_whole_batch(mapping, mesh):
    same(mapped(sharding.value_and_grad(loss_fn, "data"), mapping, mesh)(PARAMS, BATCH), expected())


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_under_jit_global_arrays_need_no_axis(kind):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,))
    batch = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    same(jax.jit(sharding.value_and_grad(loss_fn))(params, batch), expected())


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_auxiliary_values_are_means_and_constants_stay(mapping, mesh):
    (loss, aux), gradient = mapped(sharding.value_and_grad(reported, "data", has_aux=True), mapping, mesh)(
        PARAMS, BATCH
    )
    same((loss, gradient), expected())
    same(aux, {"twice": 2 * loss, "constant": 3.0})


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_the_mean_loss_is_differentiated_inside_other_functions(mapping, mesh):
    def cube(params, batch):
        return jax.grad(lambda at: 2 * sharding.mean_loss(loss_fn, "data")(at, batch) ** 3)(params)

    value, gradient = expected()
    same(mapped(cube, mapping, mesh)(PARAMS, BATCH), jax.tree.map(lambda g: 6 * value**2 * g, gradient))


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_reverse_over_reverse_derivatives_are_those_of_the_whole_batch(mapping, mesh):
    def product(loss, params, batch):
        def slope(at):
            gradient = jax.grad(loss)(at, batch)
            return jnp.vdot(gradient["w"], jnp.arange(5.0)) + gradient["b"]

        return jax.grad(slope)(params)

    found = mapped(lambda *at: product(sharding.mean_loss(loss_fn, "data"), *at), mapping, mesh)(PARAMS, BATCH)
    same(found, product(loss_fn, PARAMS, BATCH))


def test_forward_mode_works_where_types_say_what_differs(mesh):
    def product(loss, params, batch):
        return jax.jvp(lambda at: jax.grad(loss)(at, batch), (params,), (params,))[1]

    found = mapped(lambda *at: product(sharding.mean_loss(loss_fn, "data"), *at), "vma", mesh)(PARAMS, BATCH)
    same(found, product(loss_fn, PARAMS, BATCH))


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_gradients_of_float16_whose_sum_is_too_large_have_a_mean(mapping, mesh):
    params, steep = {"w": np.float16(1)}, np.full(4 * DEVICES, 12000, np.float16)
    grad = jax.grad(sharding.mean_loss(lambda at, x: jnp.mean(at["w"] * x), "data"))
    assert mapped(grad, mapping, mesh)(params, steep)["w"] == 12000
    assert mapped(lambda at, x: sharding.mean(x, "data"), mapping, mesh)(params, steep).max() == 12000


@pytest.mark.parametrize("mapping", ["vma", "no vma"])
def test_a_line_search_on_the_mean_loss_takes_the_steps_of_one_device(mapping, mesh, standard_promotion):
    tx = optax.chain(optax.scale(-1), optax.scale_by_backtracking_linesearch(10))

    def run(value_fn, params):
        def step(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(value_fn)(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (params, tx.init(params)), length=4)[0][0]

    def local(params, batch):
        loss = sharding.mean_loss(loss_fn, "data")
        return run(lambda at: loss(at, batch), params)

    params = jax.tree.map(jnp.asarray, PARAMS)
    same(mapped(local, mapping, mesh)(params, BATCH), run(lambda at: loss_fn(at, BATCH), params))


# The ways in which people write it by hand, and by what factor each gradient is off.
def mean_of_gradients(params, batch):
    return lax.pmean(jax.grad(loss_fn)(params, batch), "data")


def gradient_of_mean(params, batch):
    return jax.grad(lambda at: lax.pmean(loss_fn(at, batch), "data"))(params)


@pytest.mark.parametrize(
    ("idiom", "mapping", "right"),
    [
        (mean_of_gradients, "pmap", True),
        (mean_of_gradients, "no vma", True),
        (mean_of_gradients, "vma", False),
        (gradient_of_mean, "vma", True),
        (gradient_of_mean, "no vma", False),
        (gradient_of_mean, "pmap", False),
    ],
)
def test_each_idiom_by_hand_is_silently_wrong_somewhere(idiom, mapping, right, mesh):
    found = mapped(idiom, mapping, mesh)(PARAMS, BATCH)
    error = max(np.abs(np.asarray(found[name]) - expected()[1][name]).max() for name in PARAMS)
    assert (error < 1e-13) == right


def test_of_a_gradient_that_is_summed_already_the_mean_is_refused(mesh):
    summed = mapped(lambda params, batch: sharding.mean(jax.grad(loss_fn)(params, batch), "data"), "vma", mesh)
    with pytest.raises(ValueError, match=r"mean: tree must be different on different devices.*'data' at \['b'\]"):
        summed(PARAMS, BATCH)


@pytest.mark.parametrize("mapping", ["no vma", "pmap"])
def test_a_mean_inside_the_loss_is_harmless_where_it_cannot_be_seen(mapping, mesh):
    inside = sharding.value_and_grad(lambda params, batch: lax.pmean(loss_fn(params, batch), "data"), "data")
    same(mapped(inside, mapping, mesh)(PARAMS, BATCH), expected())


def test_a_mean_inside_the_loss_is_refused_where_it_is_seen(mesh):
    inside = sharding.value_and_grad(lambda params, batch: lax.pmean(loss_fn(params, batch), "data"), "data")
    with pytest.raises(ValueError, match="loss_fn must be the loss of one device's examples"):
        mapped(inside, "vma", mesh)(PARAMS, BATCH)


def test_a_batch_that_is_not_split_is_refused(mesh):
    with pytest.raises(ValueError, match=r"args must be different examples on each device.*in_specs"):
        mapped(sharding.value_and_grad(loss_fn, "data"), "vma", mesh, WHOLE)(PARAMS, BATCH)


def test_a_batch_in_a_closure_is_split_or_refused_all_the_same(mesh):
    def local(params, batch):
        return sharding.value_and_grad(lambda at: loss_fn(at, batch), "data")(params)

    same(mapped(local, "vma", mesh)(PARAMS, BATCH), expected())
    with pytest.raises(ValueError, match="args must be different examples"):
        mapped(local, "vma", mesh, WHOLE)(PARAMS, BATCH)


def test_a_forgotten_axis_is_refused_and_a_model_on_each_device_is_not(mesh):
    with pytest.raises(ValueError, match="axis_name must be all axes over which the loss differs, got None"):
        mapped(sharding.value_and_grad(loss_fn), "vma", mesh)(PARAMS, BATCH)

    def alone(params, batch):
        own = jax.tree.map(lambda leaf: lax.pcast(leaf, "data", to="varying"), params)
        return sharding.mean(sharding.value_and_grad(loss_fn)(own, batch), "data")

    same(mapped(alone, "vma", mesh)(PARAMS, BATCH), expected())


def test_parameters_that_differ_are_refused(mesh):
    def local(params, batch):
        own = jax.tree.map(lambda leaf: lax.pcast(leaf, "data", to="varying"), params)
        return sharding.value_and_grad(loss_fn, "data")(own, batch)

    with pytest.raises(ValueError, match="params must be equal on all devices"):
        mapped(local, "vma", mesh)(PARAMS, BATCH)


def test_means_of_integers_are_refused(mesh):
    counted = sharding.value_and_grad(
        lambda params, x: (loss_fn(params, x), {"n": 3 + jnp.int32(x[1][0])}), "data", has_aux=True
    )
    with pytest.raises(ValueError, match=r"tree must be floating-point or complex, got .*int32 at \['n'\]"):
        mapped(counted, "vma", mesh)(PARAMS, BATCH)


@pytest.mark.parametrize("call", [sharding.value_and_grad(loss_fn, "data"), lambda p, b: sharding.mean(p, "data")])
def test_an_axis_that_is_not_mapped_is_refused(call):
    with pytest.raises(ValueError, match="axis_name must be a mapped axis, or None, got 'data'; call it inside"):
        jax.jit(call)(PARAMS, BATCH)


def test_over_two_axes_the_mean_is_over_both(mesh):
    two = jax.make_mesh((2, 4), ("pod", "data"), axis_types=(AxisType.Auto,) * 2)
    names = ("pod", "data")
    run = jax.shard_map(sharding.value_and_grad(loss_fn, names), mesh=two, in_specs=(P(), P(names)), out_specs=P())
    same(run(PARAMS, BATCH), expected())
    with pytest.raises(ValueError, match=r"\['pod'\] too; JAX would sum"):
        jax.shard_map(sharding.value_and_grad(loss_fn, "data"), mesh=two, in_specs=(P(), P(names)), out_specs=P("pod"))(
            PARAMS, BATCH
        )
