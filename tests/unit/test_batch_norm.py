"""Statistics of BatchNorm at the answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import nagjax
from nagjax.training import recompute_batch_statistics


@pytest.fixture(autouse=True)
def configuration_of_flax(single_precision):
    """Its layers mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second, self.last = nnx.Linear(8, 3, rngs=rngs), nnx.BatchNorm(3, momentum=0.5, rngs=rngs)

    def __call__(self, x):
        return self.last(self.second(self.dropout(self.norm(self.first(x)))))


DATA = np.asarray(5 + np.random.default_rng(0).normal(size=(60, 4)), np.float32)


def test_the_statistics_of_a_first_layer_are_those_of_the_whole_set_however_it_is_cut():
    model = Network(nnx.Rngs(0))
    hidden = np.asarray(DATA @ model.first.kernel[...], np.float64)
    for sizes in (60,), (20, 20, 20), (7, 50, 3):
        batches = np.split(DATA, np.cumsum(sizes)[:-1])
        found = recompute_batch_statistics(model, batches)
        np.testing.assert_allclose(found.norm.mean[...], hidden.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(found.norm.var[...], hidden.var(axis=0), rtol=1e-5)


def test_a_set_in_one_batch_gives_every_layer_the_output_of_training():
    model = Network(nnx.Rngs(0))
    found = recompute_batch_statistics(model, [DATA])
    assert found.norm.use_running_average
    assert (found.norm.momentum, found.last.momentum) == (0.9, 0.5)
    reference = nnx.clone(model)
    reference.train()
    reference.dropout.deterministic = True
    np.testing.assert_allclose(found(DATA), reference(DATA), atol=1e-3)


def layer_of(features, **options):
    return nnx.BatchNorm(features, rngs=nnx.Rngs(0), **options)


def test_the_variance_of_numbers_far_from_zero_does_not_cancel():
    """Flax's fast variance, E x^2 - (E x)^2 in float32, is 14 and 0.06 here instead of 4."""
    data = np.asarray(1e4 + 2 * np.random.default_rng(0).normal(size=(200, 3)), np.float32)
    layer = layer_of(3)
    found = recompute_batch_statistics(layer, np.split(data, 4))
    np.testing.assert_allclose(found.var[...], np.var(data, axis=0, dtype=np.float64), rtol=1e-3)
    np.testing.assert_allclose(found.mean[...], np.mean(data, axis=0, dtype=np.float64), rtol=1e-6)
    assert found.use_fast_variance
    assert layer.use_fast_variance


def test_empty_batches_count_for_nothing():
    found = recompute_batch_statistics(layer_of(4), [DATA[:0], DATA[:20], DATA[:0], DATA[20:]])
    np.testing.assert_allclose(found.mean[...], DATA.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.var[...], DATA.var(axis=0), rtol=1e-4)


class WithFlag(nnx.Module):
    """Flax's idiom in which the call says how its layers behave."""

    def __init__(self):
        self.layers = nnx.List([layer_of(4), layer_of(4)])

    def __call__(self, x, train=False):
        for layer in self.layers:
            x = layer(x, use_running_average=not train)
        return x


def test_a_pass_that_computes_no_statistics_is_refused_with_the_remedy():
    message = (
        r"^recompute_batch_statistics: forward must be a pass that computes the statistics of every BatchNorm layer, "
        r"got 'none at layers\.0'; .*train=True\)\.$"
    )
    with pytest.raises(ValueError, match=message):
        recompute_batch_statistics(WithFlag(), [DATA])
    found = recompute_batch_statistics(WithFlag(), [DATA], lambda model, x: model(x, train=True))
    np.testing.assert_allclose(found.layers[0].mean[...], DATA.mean(axis=0), rtol=1e-5)


def test_a_layer_that_a_pass_does_not_reach_is_refused():
    def forward(model, x):
        return model.layers[0](x)

    with pytest.raises(ValueError, match=r"forward must be a pass .* got 'none at layers\.1'; "):
        recompute_batch_statistics(WithFlag(), [DATA], forward)
    both = [DATA, DATA[:30]]  # the second batch takes the shorter way

    def sometimes(model, x):
        return model(x, train=True) if len(x) == 60 else forward(model, x)

    with pytest.raises(ValueError, match=r"forward must be a pass .* got 'none at layers\.1'; "):
        recompute_batch_statistics(WithFlag(), both, sometimes)


class Parallel(nnx.Module):
    """Layers whose order as strings is not the one as numbers."""

    def __init__(self):
        self.layers = nnx.List([layer_of(4) for _ in range(12)])

    def __call__(self, x):
        return sum(layer(x + k) for k, layer in enumerate(self.layers))


def test_every_layer_gets_its_own_statistics():
    found = recompute_batch_statistics(Parallel(), [DATA[:20], DATA[20:]])
    for k, layer in enumerate(found.layers):
        np.testing.assert_allclose(layer.mean[...], DATA.mean(axis=0) + k, rtol=1e-5)


def test_data_without_spread_have_the_variance_zero():
    found = recompute_batch_statistics(layer_of(4), [np.ones((8, 4), np.float32)] * 2)
    np.testing.assert_array_equal(found.var[...], np.zeros(4))


def test_a_model_that_was_trained_over_a_mapped_axis_needs_none_here():
    layer = layer_of(4, axis_name="batch")
    found = recompute_batch_statistics(layer, [DATA])
    np.testing.assert_allclose(found.mean[...], DATA.mean(axis=0), rtol=1e-5)
    assert found.axis_name == "batch"


def test_scalars_in_a_batch_do_not_count_its_examples():
    batches = [{"epoch": 3, "image": part, "none": None} for part in np.split(DATA, 3)]
    found = recompute_batch_statistics(layer_of(4), batches, lambda layer, batch: layer(batch["image"]))
    np.testing.assert_allclose(found.mean[...], DATA.mean(axis=0), rtol=1e-5)
    for batch in None, 3.0, {}:
        with pytest.raises(ValueError, match=r"batches must be trees of arrays with an axis of examples, got .*; each"):
            recompute_batch_statistics(layer_of(4), [batch])


def test_the_given_model_and_its_randomness_are_left_as_they_are():
    model = Network(nnx.Rngs(0))
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))]
    recompute_batch_statistics(model, [DATA])
    after = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))]
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert not model.norm.use_running_average


def test_a_forward_pass_of_ones_own_takes_whole_batches_and_batches_may_come_from_a_generator():
    model = Network(nnx.Rngs(0))
    batches = ({"image": part, "label": 1} for part in np.split(DATA, 3))
    found = recompute_batch_statistics(model, batches, lambda network, batch: network(batch["image"]))
    expected = recompute_batch_statistics(model, np.split(DATA, 3))
    np.testing.assert_array_equal(found.norm.mean[...], expected.norm.mean[...])


def test_what_cannot_be_done_is_refused():
    model = Network(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"batches must be at least one batch of examples, got 0; "):
        recompute_batch_statistics(model, [])
    with pytest.raises(ValueError, match=r"model must be a model with nnx.BatchNorm, got 'Linear'; "):
        recompute_batch_statistics(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), [DATA])
    with pytest.raises(TypeError, match=r"model must be a Flax nnx module, got 'dict'; "):
        recompute_batch_statistics({}, [DATA])


def test_the_answer_of_an_averaged_run_gets_the_statistics_that_it_needs():
    """Training gathers statistics at y, where Schedule-Free's weights are far from their average."""
    rng = np.random.default_rng(1)
    inputs = jnp.asarray(rng.normal(size=(256, 4)), jnp.float32)
    targets = jnp.tanh(inputs @ rng.normal(size=(4, 3)).astype(np.float32))
    model = Network(nnx.Rngs(0))
    model.norm.momentum = model.last.momentum = 0.99  # Flax's default, which remembers some hundred batches
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = nagjax.schedule_free(optax.identity(), 1.0, 0.5)

    def loss(params, rest):
        network = nnx.merge(graph, params, rest, copy=True)
        network.dropout.deterministic = True
        return jnp.mean((network(inputs) - targets) ** 2), nnx.state(network, nnx.Not(nnx.Param))

    def step(carry, _):
        params, rest, state = carry
        slope, rest = jax.grad(loss, has_aux=True)(params, rest)
        updates, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, updates), rest, state), None

    carry = jax.jit(lambda carry: jax.lax.scan(step, carry, length=30)[0])((params, rest, optimizer.init(params)))
    answer = nnx.merge(graph, nagjax.eval_params(carry[0], carry[2]), carry[1])
    exact = loss(nnx.state(answer, nnx.Param), carry[1])[0]  # with the statistics of the whole set at the answer

    def evaluated(network):
        network.eval()
        return jnp.mean((network(inputs) - targets) ** 2)

    recomputed = evaluated(recompute_batch_statistics(answer, [inputs]))
    np.testing.assert_allclose(recomputed, exact, rtol=1e-4)
    assert evaluated(answer) > 1.2 * exact
