"""The train step against recursions and loops written without it."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import nagjax
from nagjax.models import MLP
from nagjax.training import Metrics, TrainStep, compiled
from nagjax.training.precision import GROWTH_INTERVAL, LossScale

ROWS, WIDTH = 12, 4


def features(seed=0, shape=(ROWS, WIDTH)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def squares(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params["w"] - targets) ** 2)


def regression():
    inputs = features()
    return {"w": jnp.zeros(WIDTH)}, (inputs, inputs @ jnp.arange(1.0, WIDTH + 1))


def steps(step, batches, state=None):
    state, run = step.init() if state is None else state, jax.jit(step)
    values = []
    for batch in batches:
        state, value = run(state, batch)
        values.append(value)
    return state, values


def test_least_squares_follows_the_recursion_in_numpy():
    params, (inputs, targets) = regression()
    a, b, rate, momentum = np.asarray(inputs), np.asarray(targets), 0.05, 0.8
    y = v = np.zeros(WIDTH)
    losses = []
    for _ in range(40):
        residual = a @ y - b
        losses.append(np.mean(residual**2))
        u = -rate * 2 / ROWS * a.T @ residual
        v = momentum * v + u
        y = y + u + momentum * v
    state, values = steps(TrainStep(params, squares, nagjax.nesterov(rate, momentum)), [(inputs, targets)] * 40)
    np.testing.assert_allclose(state.params["w"], y, rtol=0, atol=1e-12)
    np.testing.assert_allclose([value["loss"] for value in values], losses, rtol=1e-12)
    assert int(state.step) == 40


def test_the_model_is_read_at_the_answer_or_at_params():
    params, batch = regression()
    step = TrainStep(params, squares, nagjax.nesterov(0.05, 0.8))
    state, _ = steps(step, [batch] * 5)
    chex.assert_trees_all_equal(step.model(state), nagjax.eval_params(state.params, state.opt_state))
    chex.assert_trees_all_equal(step.model(state, at="params"), state.params)
    assert not np.array_equal(step.model(state)["w"], state.params["w"])
    plain = TrainStep(params, squares, optax.sgd(0.1))
    chex.assert_trees_all_equal(plain.model(plain.init()), params)


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    params, batch = regression()

    def loss(params, batch):
        value = squares(params, batch)
        return value, {"rms": batch[0].std() ** 2 + batch[0].mean() ** 2}

    one, value = steps(TrainStep(params, loss, nagjax.nesterov(0.05)), [batch] * 5)
    many, values = steps(TrainStep(params, loss, nagjax.nesterov(0.05), accumulate=parts), [batch] * 5)
    chex.assert_trees_all_close(many.params, one.params, rtol=0, atol=1e-13)
    chex.assert_trees_all_close(values, value, rtol=1e-12)


def test_accumulation_of_bfloat16_parameters_sums_in_float32():
    # 1 + 255 * 2^-9: a sum kept in bfloat16 stays at 1, since each further term is half a unit in its last place.
    terms = jnp.full((256, 1), 2.0**-9, jnp.float32).at[0].set(1.0)

    def loss(params, batch):
        return (params["w"].astype(jnp.float32) * batch).sum()

    step = TrainStep({"w": jnp.zeros((), jnp.bfloat16)}, loss, optax.sgd(1.0), accumulate=256)
    state, _ = steps(step, [terms])
    exact = float(terms.sum()) / 256
    assert abs(-float(state.params["w"]) - exact) <= exact * 2.0**-8


class Net(nnx.Module):
    """BatchNorm and Dropout, whose state must go on through scan and grad."""

    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(WIDTH, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(inputs)))))[:, 0]


def net_loss(model, batch):
    inputs, targets = batch
    return jnp.mean((model(inputs) - targets) ** 2)


def net():
    return Net(nnx.Rngs(params=0, dropout=1))


@pytest.fixture
def batches(single_precision):
    inputs = features(1, (6, ROWS, WIDTH)).astype(jnp.float32)
    return inputs, inputs.sum(axis=-1)


def test_batch_norm_and_dropout_in_a_scan_do_what_the_eager_loop_of_flax_does(batches):
    model = net()
    optimizer = nnx.Optimizer(model, nagjax.nesterov(0.05), wrt=nnx.Param)
    losses = []
    for batch in zip(*batches, strict=True):
        value, grads = nnx.value_and_grad(net_loss)(model, batch)
        optimizer.update(model, grads)
        losses.append(float(value))
    step = TrainStep(net(), net_loss, nagjax.nesterov(0.05))
    state, metrics = compiled(step, steps_per_call=6)(step.init(), batches)
    found = step.model(state, at="params")
    chex.assert_trees_all_close(
        nnx.as_pure(nnx.state(found, nnx.Param)), nnx.as_pure(nnx.state(model, nnx.Param)), atol=1e-5
    )
    chex.assert_trees_all_close(found.norm.var[...], model.norm.var[...], rtol=1e-5)
    assert int(found.dropout.rngs.count[...]) == int(model.dropout.rngs.count[...]) == 6
    assert metrics.means()["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_model_given_is_left_as_it_is(batches):
    model = net()
    before = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model, nnx.Param)))
    step = TrainStep(model, net_loss, nagjax.nesterov(0.05))
    train = compiled(step)
    first = train(step.init(), jax.tree.map(lambda leaf: leaf[0], batches))[0]
    chex.assert_trees_all_equal(before, nnx.as_pure(nnx.state(model, nnx.Param)))
    assert int(model.dropout.rngs.count[...]) == 0
    again = train(step.init(), jax.tree.map(lambda leaf: leaf[0], batches))[0]
    chex.assert_trees_all_equal(first.params, again.params)


def test_a_linen_module_trains_through_the_bridge_of_flax(batches):
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            hidden = nn.BatchNorm(use_running_average=False)(nn.Dense(8)(inputs))
            return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(nn.relu(hidden)))[:, 0]

    def loss(model, batch):
        inputs, targets = batch
        return jnp.mean((model(inputs, mutable=["batch_stats"])[0] - targets) ** 2)

    bridged = nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0, dropout=1))
    nnx.bridge.lazy_init(bridged, batches[0][0])
    step = TrainStep(bridged, loss, nagjax.nesterov(0.05))
    start = step.init()
    state, _ = compiled(step, steps_per_call=6, donate=False)(start, batches)
    assert set(state.params) == {"BatchNorm_0", "Dense_0", "Dense_1"}
    assert not np.array_equal(step.model(state).BatchNorm_0["mean"][...], np.zeros(8))
    # Every call draws masks of its own: the counter of the stream has gone on.
    counts = [int(part.rest[1]["to_nnx__rngs"]["dropout"]["count"]) for part in (start, state)]
    assert counts[1] == counts[0] + 6


def test_a_plain_loss_gets_a_new_key_in_every_step_and_the_same_ones_again():
    def loss(params, batch, key):
        return params["w"] * batch + params["w"] * jax.random.normal(key, ()), {"noise": jax.random.normal(key, ())}

    step = TrainStep({"w": jnp.zeros(())}, loss, optax.sgd(0.1), key=jax.random.key(3))
    noise = [float(value["noise"]) for value in steps(step, [jnp.ones(())] * 4)[1]]
    assert len(set(noise)) == 4
    assert noise == [float(value["noise"]) for value in steps(step, [jnp.ones(())] * 4)[1]]


def test_only_variables_that_pass_the_filter_are_trained(batches):
    step = TrainStep(net(), net_loss, nagjax.nesterov(0.05), wrt=nnx.All(nnx.Param, nnx.PathContains("last")))
    assert set(step.init().params) == {"last"}
    state, _ = compiled(step, steps_per_call=6)(step.init(), batches)
    found = step.model(state)
    chex.assert_trees_all_equal(found.first.kernel[...], net().first.kernel[...])
    assert not np.array_equal(found.last.kernel[...], net().last.kernel[...])


@pytest.mark.usefixtures("standard_promotion")
def test_frozen_parameters_are_computed_with_in_the_same_dtype(batches):
    seen = {}

    def loss(model, batch):
        seen.update(frozen=model.first.kernel[...].dtype, trained=model.last.kernel[...].dtype)
        return net_loss(model, batch).astype(jnp.float32)

    only_last = nnx.All(nnx.Param, nnx.PathContains("last"))
    model = net()
    model.norm = nnx.LayerNorm(8, rngs=nnx.Rngs(0))
    step = TrainStep(model, loss, optax.sgd(0.05), wrt=only_last, compute_dtype=jnp.bfloat16)
    state, _ = compiled(step, steps_per_call=6)(step.init(), batches)
    assert seen == {"frozen": jnp.bfloat16, "trained": jnp.bfloat16}
    chex.assert_trees_all_equal(step.model(state).first.kernel[...], model.first.kernel[...])


@pytest.mark.filterwarnings("ignore:.*sow.*:DeprecationWarning")
def test_what_layers_sow_is_dropped_and_new_variables_are_refused(batches):
    class Sowing(Net):
        def __call__(self, inputs):
            self.sow(nnx.Intermediate, "seen", inputs)
            return super().__call__(inputs)

    class Growing(Net):
        def __call__(self, inputs):
            self.count = nnx.BatchStat(jnp.zeros(()))
            return super().__call__(inputs)

    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    plain, sowing = (TrainStep(kind(nnx.Rngs(params=0, dropout=1)), net_loss, optax.sgd(0.1)) for kind in (Net, Sowing))
    chex.assert_trees_all_equal(sowing(sowing.init(), batch)[0].params, plain(plain.init(), batch)[0].params)
    growing = TrainStep(Growing(nnx.Rngs(params=0, dropout=1)), net_loss, optax.sgd(0.1))
    with pytest.raises(ValueError, match="a function that adds no variables to the model"):
        growing(growing.init(), batch)


def test_a_model_that_was_kept_outlives_the_donated_state(batches):
    step = TrainStep(net(), net_loss, optax.sgd(0.1))
    train, batch = compiled(step), jax.tree.map(lambda leaf: leaf[0], batches)
    state = step.init()
    kept = step.model(state)
    train(state, batch)
    assert state.params["first"]["kernel"].is_deleted()
    chex.assert_trees_all_equal(kept.first.kernel[...], net().first.kernel[...])
    assert float(kept.norm.var[...].sum()) == 8


def test_restarts_need_momentum():
    params, _ = regression()
    with pytest.raises(ValueError, match="reset_momentum: opt_state"):
        TrainStep(params, squares, optax.sgd(0.1), nonfinite="restart").init()


def test_partition_sees_the_names_of_the_model(batches):
    def label(params):
        return jax.tree.map_with_path(lambda path, _: "frozen" if path[0].key == "first" else "trained", params)

    def partition():
        return optax.partition({"frozen": optax.set_to_zero(), "trained": nagjax.nesterov(0.05)}, label)

    step = TrainStep(net(), net_loss, partition())
    state, _ = compiled(step, steps_per_call=6)(step.init(), batches)
    chex.assert_trees_all_equal(state.params["first"], step.init().params["first"])
    assert not np.array_equal(state.params["norm"]["scale"], step.init().params["norm"]["scale"])


def test_line_searches_get_what_they_ask_for():
    params, batch = regression()

    tx = optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(15))

    @jax.jit
    def by_hand(w, state):
        value, grad = jax.value_and_grad(squares)(w, batch)
        updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=lambda w: squares(w, batch))
        return optax.apply_updates(w, updates), state

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = params, tx.init(params)
        for _ in range(6):
            expected = by_hand(*expected)
        state, _ = steps(TrainStep(params, squares, tx, accumulate=3), [batch] * 6)
    chex.assert_trees_all_close(state.params, expected[0], rtol=0, atol=1e-9)


def test_computing_in_bfloat16_leaves_parameters_and_state_in_float32(single_precision):
    seen = {}

    def loss(params, batch):
        inputs, rows = batch
        seen.update(params=params["w"].dtype, inputs=inputs.dtype, rows=rows.dtype)
        return jnp.mean(jnp.square(inputs @ params["w"]).astype(jnp.float32))

    w = features(2, (WIDTH,)).astype(jnp.float32)
    batch = features(3).astype(jnp.float32), jnp.arange(ROWS)
    step = TrainStep({"w": w}, loss, nagjax.nesterov(0.1), compute_dtype=jnp.bfloat16)
    state, _ = steps(step, [batch])
    assert seen == {"params": jnp.bfloat16, "inputs": jnp.bfloat16, "rows": jnp.int32}
    chex.assert_trees_all_equal_shapes_and_dtypes(state, step.init())
    low = jax.jit(jax.grad(lambda w: loss({"w": w}, (batch[0].astype(jnp.bfloat16), batch[1]))))(w.astype(jnp.bfloat16))
    expected = w - 0.1 * 1.9 * low.astype(jnp.float32)
    # Two programs may round at different places: half a unit of bfloat16 in each of a few operations.
    np.testing.assert_allclose(state.params["w"] - w, expected - w, rtol=0.02)


def tiny(params, batch):
    """A gradient of 2^-27 * batch, which float16 cannot hold (its least number is 2^-24)."""
    return (params["w"] * batch * jnp.float16(2.0**-13)).sum().astype(jnp.float32) * 2.0**-14


def test_the_scale_of_the_loss_keeps_gradients_of_float16(single_precision):
    start = {"w": jnp.float32(1)}
    lost, _ = steps(TrainStep(start, tiny, optax.sgd(1.0), compute_dtype=jnp.float16), [jnp.ones((), jnp.float32)])
    assert float(lost.params["w"]) == 1
    step = TrainStep(start, tiny, optax.sgd(2.0**20), compute_dtype=jnp.float16, loss_scale=2.0**15)
    kept, values = steps(step, [jnp.ones((), jnp.float32)])
    assert float(kept.params["w"]) == 1 - 2.0**20 * 2.0**-27
    assert float(values[0]["loss"]) == 2.0**-27


def test_the_scale_halves_with_an_overflow_and_doubles_after_finite_ones(single_precision):
    step = TrainStep({"w": jnp.float32(1)}, tiny, nagjax.nesterov(1.0), compute_dtype=jnp.float16, loss_scale=8.0)
    state, values = steps(step, [jnp.float32(jnp.inf), jnp.float32(1)])
    assert [float(value["overflowed"]) for value in values] == [1, 0]
    assert "skipped" not in values[0]
    assert float(state.scaling.scale) == 4
    assert int(state.step) == 2
    flags = jnp.ones(GROWTH_INTERVAL - 1, bool)
    almost, _ = jax.lax.scan(lambda scale, finite: (scale.after(finite), None), LossScale.first(8.0), flags)
    assert float(almost.scale) == 8
    assert float(almost.after(jnp.bool_(True)).scale) == 16
    assert int(almost.after(jnp.bool_(False)).streak) == 0
    assert float(LossScale.first(1.0).after(jnp.bool_(False)).scale) == 1


@pytest.mark.parametrize("policy", ["skip", "restart"])
def test_an_overflow_of_the_scale_is_no_business_of_the_policy_until_the_scale_is_1(policy, single_precision):
    def product(params, batch):
        return (params["w"] * batch).astype(jnp.float32)

    options = {"compute_dtype": jnp.float16, "loss_scale": 2.0, "nonfinite": policy}
    step = TrainStep({"w": jnp.float32(1)}, product, nagjax.nesterov(0.1), **options)
    state, values = steps(step, [jnp.float32(1), jnp.float32(jnp.inf), jnp.float32(jnp.inf)])
    assert [(float(value["overflowed"]), float(value["skipped"])) for value in values] == [(0, 0), (1, 0), (0, 1)]
    before, _ = steps(step, [jnp.float32(1), jnp.float32(jnp.inf)])
    assert float(nagjax.velocity(before.opt_state)["w"]) != 0
    assert (float(nagjax.velocity(state.opt_state)["w"]) == 0) is (policy == "restart")
    chex.assert_trees_all_equal(state.params, before.params)


@pytest.mark.parametrize("policy", ["skip", "stop", "restart", "ignore"])
def test_a_gradient_that_is_not_finite_is_handled_as_asked(policy):
    params, (inputs, targets) = regression()
    step = TrainStep(params, squares, nagjax.nesterov(0.05), nonfinite=policy)
    before, _ = steps(step, [(inputs, targets)] * 3)
    after, (value,) = steps(step, [(inputs.at[2, 1].set(jnp.nan), targets)], before)
    assert int(after.step) == 4
    if policy == "ignore":
        assert "skipped" not in value
        assert not np.isfinite(after.params["w"]).any()
        return
    assert float(value["skipped"]) == 1
    chex.assert_trees_all_equal(after.params, before.params)
    expected = nagjax.reset_momentum(before.opt_state) if policy == "restart" else before.opt_state
    chex.assert_trees_all_equal(after.opt_state, expected)
    assert np.abs(nagjax.velocity(before.opt_state)["w"]).min() > 0


def test_skipped_steps_leave_statistics_and_means_alone(batches):
    inputs, targets = batches
    inputs = inputs.at[2].set(jnp.nan)
    step = TrainStep(net(), net_loss, nagjax.nesterov(0.05), nonfinite="skip")
    state, metrics = compiled(step, steps_per_call=6)(step.init(), (inputs, targets))
    assert np.isfinite(state.rest[1]["norm"]["var"]).all()
    means = metrics.means()
    assert means["skipped"] == 1
    assert int(metrics.steps) == 5
    assert np.isfinite(means["loss"])


def test_means_of_metrics_are_means_and_those_of_nothing_are_nan():
    metrics = Metrics.zeros({"loss": jnp.zeros(())})
    assert np.isnan(metrics.means()["loss"])
    for value in (1.0, 2.0, 6.0):
        metrics = metrics.add({"loss": jnp.asarray(value)})
    assert metrics.means() == {"loss": 3.0}
    chex.assert_trees_all_equal(Metrics.restored(metrics.on_host()), metrics)
    with pytest.raises(ValueError, match=r"metrics of the names \['error'\], got \['loss'\]"):
        metrics.add({"error": jnp.zeros(())})


def test_a_donated_step_holds_no_second_copy(single_precision):
    width, batch = 512, 8
    params = {"a": jnp.ones((width, width), jnp.float32), "b": jnp.ones((width, width), jnp.float32)}

    def loss(params, inputs):
        return jnp.mean((jnp.tanh(inputs @ params["a"]) @ params["b"]) ** 2)

    step = TrainStep(params, loss, nagjax.nesterov(0.1))
    inputs = jnp.ones((batch, width), jnp.float32)
    memory = jax.jit(step, donate_argnums=0).lower(step.init(), inputs).compile().memory_analysis()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(step.init()))
    gradients = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    activations = 8 * batch * width * 4
    assert held - memory.alias_size_in_bytes <= 8  # a counter or two
    assert memory.temp_size_in_bytes <= gradients + activations


def weakly_typed():
    """An optimizer with a number in its state, twice the same array, as Optax's line searches have."""

    def init(params):
        number = jnp.asarray(1.0)
        return number, number

    def update(updates, state, params=None):
        return jax.tree.map(lambda u: -0.05 * u, updates), (jnp.asarray(0.5), state[1] * 0.5)

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("tx", [nagjax.nesterov(0.05), weakly_typed()], ids=["nesterov", "weakly typed"])
def test_the_second_step_does_not_trace_again_and_may_be_donated(tx):
    params, batch = regression()
    step = TrainStep(params, squares, tx)

    @functools.partial(jax.jit, donate_argnums=0)
    def once(state, batch):
        traces.append(1)
        return step(state, batch)

    state, traces = step.init(), []
    for _ in range(3):
        state, _ = once(state, batch)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"accumulate": 0}, ValueError, "accumulate must be an integer of at least 1, got 0"),
        ({"compute_dtype": jnp.int8}, ValueError, "compute_dtype must be a floating dtype"),
        ({"loss_scale": -1.0}, ValueError, "loss_scale must be positive and finite"),
        ({"nonfinite": "hope"}, ValueError, "nonfinite must be one of .*'restart'"),
        ({"loss_fn": 3}, TypeError, "loss_fn must be a function"),
        ({"tx": 0.1}, TypeError, "tx must be an Optax gradient transformation"),
        ({"model": {}}, TypeError, "model must be an nnx module or a tree of arrays"),
        ({"model": {"w": 1.0}}, TypeError, "model must be an nnx module or a tree of arrays"),
        ({"model": MLP((2, 2), rngs=nnx.Rngs(0)), "wrt": nnx.BatchStat}, ValueError, "wrt must be a filter"),
        ({"model": MLP((2, 2), rngs=nnx.Rngs(0)), "key": jax.random.key(0)}, ValueError, "key must be None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_make_no_sense_are_refused_at_once(options, error, message):
    given = {"model": {"w": jnp.ones(2)}, "loss_fn": squares, "tx": optax.sgd(0.1)} | options
    with pytest.raises(error, match=message):
        TrainStep(given.pop("model"), given.pop("loss_fn"), given.pop("tx"), **given)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda params, batch: params["w"], "'loss' is a real scalar, got \\(4,\\)"),
        (lambda params, batch: (params["w"].sum(), {"norm": params["w"]}), "'norm' is a real scalar"),
        (lambda params, batch: (params["w"].sum(), 3), "a dictionary beside the loss"),
        (lambda params, batch: (params["w"].sum(), {"loss": 0.0}), "other names than loss, skipped, overflowed"),
        (lambda params, batch: (params["w"].sum(), {"skipped": 0.0}), "other names than loss, skipped, overflowed"),
    ],
)
def test_a_loss_that_is_no_scalar_is_named(loss, message):
    step = TrainStep({"w": jnp.ones(WIDTH)}, loss, optax.sgd(0.1))
    with pytest.raises((ValueError, TypeError), match=message):
        step(step.init(), jnp.ones(3))


def test_a_batch_that_cannot_be_divided_is_refused():
    params, batch = regression()
    step = TrainStep(params, squares, optax.sgd(0.1), accumulate=5)
    with pytest.raises(ValueError, match=r"accumulate must be a divisor of the batch.*\(12,\), got 5"):
        step(step.init(), batch)
    with pytest.raises(ValueError, match="at must be one of"):
        step.model(step.init(), at="best")
