"""Eight devices make the steps of one: `jax.pmap`, `shard_map`, and jit with data parallel, ZeRO-1 and FSDP layouts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nagjax
from nagjax import outer, proximal, restart, solve, storage, training
from nagjax.training import TrainStep, sharding
from nagjax.training.loops import OverData

DEVICES, STEPS = 8, 20
WHOLE, SPLIT = P(), P("data")
rng = np.random.default_rng(3)
X, Y = rng.normal(size=(STEPS, 32, 24)), rng.integers(0, 4, (STEPS, 32))
PARAMS = {
    "hidden": {"kernel": rng.normal(size=(24, 40)) / 5, "bias": np.zeros(40)},
    "out": {"kernel": rng.normal(size=(40, 4)) / 6, "bias": np.zeros(4)},
    "scale": np.array(1.3),
}


def loss_fn(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    logits = params["scale"] * (hidden @ params["out"]["kernel"]) + params["out"]["bias"][None]
    value = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return value, {"accuracy": (logits.argmax(-1) == y).mean(dtype=x.dtype)}


OPTIMIZERS = {
    "clipped, restarted": lambda: optax.chain(
        nagjax.clip_by_global_norm(0.3), nagjax.nesterov(0.6, 0.95, restart=restart.gradient())
    ),
    "clipped, restarted, int8": lambda: optax.chain(
        nagjax.clip_by_global_norm(0.3), nagjax.nesterov(0.6, 0.95, restart=restart.gradient(), storage=storage.int8())
    ),
}


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,))


def follow(train, state):
    ages = []
    for x, y in zip(X, Y, strict=True):
        state, values = train(state, (x, y))
        ages.append(int(optax.tree_utils.tree_get(state.opt_state, "age")))
    return state, values, ages


@functools.cache
def alone(optimizer):
    step = TrainStep(PARAMS, loss_fn, OPTIMIZERS[optimizer]())
    return follow(jax.jit(step), step.init())


def agree(run, optimizer, places=None):
    """Parameters, answers, metrics and the steps of restarts are those of one device; in float64, to 1e-12."""
    state, values, ages = run
    wanted, values_alone, ages_alone = alone(optimizer)
    assert ages == ages_alone
    assert 0 in ages
    assert ages[0] == 1
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    jax.tree.map(close, jax.device_get(state.params), jax.device_get(wanted.params))
    answers = (nagjax.eval_params(each.params, each.opt_state) for each in (state, wanted))
    jax.tree.map(close, *map(jax.device_get, answers))
    jax.tree.map(close, dict(values), dict(values_alone))


@pytest.mark.parametrize("optimizer", ["clipped, restarted, int8"])
def test_pmap_makes_the_steps_of_one_device(optimizer):
    step = TrainStep(PARAMS, loss_fn, OPTIMIZERS[optimizer](), axis_name="data")
    run = jax.pmap(step, axis_name="data", in_axes=(None, 0), out_axes=None, donate_argnums=0)
    agree(follow(lambda state, batch: run(state, jax.tree.map(cut, batch)), step.init()), optimizer)


def cut(leaf):
    return leaf.reshape(DEVICES, -1, *leaf.shape[1:])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_makes_the_steps_of_one_device(optimizer, check_vma):
    step = TrainStep(PARAMS, loss_fn, OPTIMIZERS[optimizer](), axis_name="data")
    specs = {"in_specs": (WHOLE, SPLIT), "out_specs": WHOLE}
    run = jax.jit(jax.shard_map(step, mesh=mesh_of(), check_vma=check_vma, **specs), donate_argnums=0)
    agree(follow(run, step.init()), optimizer)


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [(AxisType.Auto, name) for name in OPTIMIZERS] + [(AxisType.Explicit, "clipped, restarted, int8")],
)
@pytest.mark.parametrize("layout", [sharding.data_parallel, sharding.zero1, sharding.fsdp])
def test_compiled_with_a_layout_makes_the_steps_of_one_device_in_its_places(layout, kind, optimizer):
    step, layout = TrainStep(PARAMS, loss_fn, OPTIMIZERS[optimizer]()), layout(mesh_of(kind))
    train = training.compiled(step, layout=layout)
    metrics = []

    def one(state, batch):
        after, metrics_after = train(state, batch)
        assert jax.tree.leaves(state.params)[0].is_deleted()  # donated
        metrics.append(metrics_after)
        return after, metrics_after.means()

    run = follow(one, layout.init(step))
    agree(run, optimizer)
    assert jax.tree.map(lambda leaf: leaf.sharding, run[0]) == layout.of(step)
    assert metrics[-1].steps.sharding.is_fully_replicated


@pytest.mark.slow
def test_a_stack_and_an_epoch_are_laid_out_too(single_precision):
    mesh = mesh_of()
    params = jax.tree.map(jnp.float32, PARAMS)
    x, y = X.astype(np.float32), Y.astype(np.int32)
    runs = {}
    for name, layout in {"one device": None, "zero1": sharding.zero1(mesh)}.items():
        step = TrainStep(params, loss_fn, nagjax.nesterov(0.1))
        start = step.init if layout is None else functools.partial(layout.init, step)
        place = None if layout is None else layout.whole
        data = training.DeviceData((x[0], y[0]), batch_size=16, sharding=place)
        stacked, _ = training.compiled(step, steps_per_call=4, layout=layout)(start(), (x[:4], y[:4]))
        epoch, _ = training.compiled_epoch(step, data, layout=layout)(start())
        fitted = training.fit(params, loss_fn, nagjax.nesterov(0.1), data, layout=layout, epochs=2, progress=False)
        stream = [(x[0], y[0])] * 3
        streamed = training.fit(params, loss_fn, nagjax.nesterov(0.1), stream, layout=layout, progress=False)
        runs[name] = [state.params for state in (stacked, epoch, fitted.state, streamed.state)]
        if layout is not None:
            states = (stacked, epoch, fitted.state, streamed.state)
            assert all(jax.tree.map(lambda leaf: leaf.sharding, state) == layout.of(step) for state in states)
            assert fitted.model["hidden"]["kernel"].sharding.is_fully_replicated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *runs.values())


class Convolution(nnx.Module):
    """A kernel whose 8-bit blocks merge axes, which explicit shardings would not let be reshaped."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(8, 16, (3, 3), rngs=rngs)

    def __call__(self, x):
        return self.conv(x).mean(axis=(1, 2))


@pytest.mark.parametrize("layout", [sharding.zero1, sharding.fsdp])
def test_the_answer_of_8_bit_momentum_is_read_on_explicit_meshes_too(layout, standard_promotion):
    batch = rng.normal(size=(16, 4, 4, 8)).astype(np.float32)

    def run(layout):
        tx = nagjax.nesterov(0.1, storage=storage.int8())
        return training.fit(Convolution(nnx.Rngs(0)), model_loss, tx, [batch] * 3, layout=layout, progress=False).model

    found, alone = (jax.device_get(nnx.state(run(where))) for where in (layout(mesh_of(AxisType.Explicit)), None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, alone)


def test_batches_are_cut_over_two_axes_and_moved_from_one_device():
    mesh = jax.make_mesh((2, 4), ("pod", "data"), axis_types=(AxisType.Auto,) * 2)
    step, layout = TrainStep(PARAMS, loss_fn, nagjax.nesterov(0.1)), sharding.fsdp(mesh, ("pod", "data"))
    train = training.compiled(step, layout=layout, donate=False)
    state = layout.init(step)
    assert state.params["hidden"]["kernel"].sharding.spec == P(("pod", "data"), None)
    expected, _ = step(step.init(), (X[0], Y[0]))
    for batch in (
        (X[0], Y[0]),
        jax.device_put((X[0], Y[0]), jax.devices()[3]),
        jax.device_put((X[0], Y[0]), layout.batch),
    ):
        found, _ = train(state, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found.params, expected.params)


def test_each_device_computes_its_part_of_a_batch_that_lies_whole():
    step, layout = TrainStep(PARAMS, loss_fn, nagjax.nesterov(0.1)), sharding.data_parallel(mesh_of())
    data = training.DeviceData((X[0], Y[0]), 32, sharding=layout.whole)
    loop = OverData(step, data, layout, donate=False)
    state = layout.init(step)
    metrics = loop.start(state, lambda: loop.example(state))
    program = loop.program(lambda state, metrics, batch: loop.one((state, metrics), batch))
    text = program.lower(state, metrics, data.arrays).compile().as_text()
    assert "f64[4,40]" in text  # hidden values of 4 examples on each of 8 devices
    assert "f64[32,40]" not in text


def test_batches_that_cannot_be_spread_evenly_are_refused():
    step, layout = TrainStep(PARAMS, loss_fn, nagjax.nesterov(0.1)), sharding.zero1(mesh_of())
    message = r"compiled: batch must be of examples that the 8 devices of axis 'data' divide, got \(30, 24\)"
    with pytest.raises(ValueError, match=message):
        training.compiled(step, layout=layout)(layout.init(step), (X[0, :30], Y[0, :30]))
    with pytest.raises(ValueError, match="fit: data must be of examples that the 8 devices"):
        training.fit(PARAMS, loss_fn, nagjax.nesterov(0.1), [(X[0, :30], Y[0, :30])], layout=layout, progress=False)
    with pytest.raises(ValueError, match="DeviceData: batch_size must be of examples that the 8 devices"):
        training.compiled_epoch(step, training.DeviceData((X[0], Y[0]), 12, sharding=layout.whole), layout=layout)
    elsewhere = training.DeviceData(jax.device_put((X[0], Y[0]), jax.devices()[3]), 16)
    with pytest.raises(ValueError, match=r"DeviceData: sharding must be on the devices of the layout.*layout\.whole"):
        training.compiled_epoch(step, elsewhere, layout=layout)


class Splitting(nnx.Module):
    """A model that splits a key of its own in every call."""

    def __init__(self):
        self.weight, self.key = nnx.Param(jnp.ones(())), nnx.Variable(jax.random.key(0))

    def __call__(self, x):
        self.key[...], key = jax.random.split(self.key[...])
        return self.weight[...] + 0 * jnp.sum(x) + jax.random.uniform(key)


def test_keys_of_a_model_go_on_on_one_device_and_are_refused_where_devices_would_part():
    def draw(model, batch):
        value = model(batch)
        return value, {"value": value}

    step = TrainStep(Splitting(), draw, optax.sgd(0.0))
    state, first = step(step.init(), X[0])
    _, second = step(state, X[0])
    assert first["value"] != second["value"]
    step = TrainStep(Splitting(), draw, optax.sgd(0.0), axis_name="data")
    run = jax.shard_map(step, mesh=mesh_of(), in_specs=(WHOLE, SPLIT), out_specs=WHOLE)
    with pytest.raises(ValueError, match=r"model must be one that leaves its keys .* nnx\.Rngs"):
        jax.jit(run)(step.init(), X[0])


class Counting(nnx.Module):
    """A model that counts what it has seen."""

    def __init__(self):
        self.weight, self.seen = nnx.Param(jnp.ones(24)), nnx.BatchStat(jnp.int32(0))

    def __call__(self, x):
        self.seen[...] += (x > 0).sum(dtype=jnp.int32)
        return x * self.weight[...][None]


def test_a_count_that_depends_on_the_batch_is_refused_by_name():
    step = TrainStep(Counting(), model_loss, nagjax.nesterov(0.1), axis_name="data")
    run = jax.shard_map(step, mesh=mesh_of(), in_specs=(WHOLE, SPLIT), out_specs=WHOLE)
    with pytest.raises(ValueError, match=r"model must be one whose variables .* got .*int32 at \['seen'\]"):
        jax.jit(run)(step.init(), X[0])


def test_parts_of_a_batch_stay_on_their_devices():
    step, layout = TrainStep(PARAMS, loss_fn, nagjax.nesterov(0.1), accumulate=4), sharding.data_parallel(mesh_of())
    batch = jax.device_put((X[0], Y[0]), layout.batch)
    program = jax.jit(step, out_shardings=(layout.of(step), layout.whole)).lower(layout.init(step), batch).compile()
    moved = set(
        re.findall(r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(", program.as_text())
    )
    assert moved == {"all-reduce"}
    alone, _ = TrainStep(PARAMS, loss_fn, nagjax.nesterov(0.1))(step.init(), (X[0], Y[0]))
    found, _ = program(layout.init(step), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found.params, alone.params)


def model_loss(model, batch):
    return jnp.mean((model(batch) - 1) ** 2)


class Normalized(nnx.Module):
    """A layer with running statistics, one with noise, and one that is frozen."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(24, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


@pytest.mark.parametrize("check_vma", [True, False])
def test_statistics_are_means_over_devices_and_noise_is_each_devices_own(check_vma):
    frozen = nnx.All(nnx.Param, nnx.PathContains("linear"))
    specs = {"mesh": mesh_of(), "in_specs": (WHOLE, SPLIT), "out_specs": WHOLE, "check_vma": check_vma}
    model = Normalized(nnx.Rngs(0))
    step = TrainStep(model, model_loss, nagjax.nesterov(0.1), wrt=frozen, axis_name="data", accumulate=2)
    state, _ = jax.jit(jax.shard_map(step, **specs))(step.init(), X[0].astype(np.float32))
    _, others = state.rest
    inputs = np.asarray(model.linear(X[0].astype(np.float32))).reshape(
        8, 4, 8
    )  # four examples on each of eight devices
    decay = 0.99
    means = np.zeros((8, 8))
    for part in range(2):
        means = decay * means + (1 - decay) * inputs[:, part::2].mean(axis=1)
    np.testing.assert_allclose(others["norm"]["mean"], means.mean(axis=0), rtol=1e-5, atol=1e-7)

    def noise(params, batch, key):
        return params["w"] * jnp.sum(batch), {"draw": jax.random.uniform(key)}

    step = TrainStep({"w": jnp.ones(())}, noise, nagjax.nesterov(0.1), key=jax.random.key(5), axis_name="data")
    state, values = jax.jit(jax.shard_map(step, **specs))(step.init(), X[0, :, 0])
    kept, used = jax.random.split(jax.random.key(5))
    draws = [jax.random.uniform(jax.random.fold_in(used, device)) for device in range(DEVICES)]
    np.testing.assert_allclose(values["draw"], np.mean(draws), rtol=1e-12)
    assert state.rest == kept


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_gradient_that_is_not_finite_on_one_device_is_left_out_on_all(check_vma):
    step = TrainStep(PARAMS, loss_fn, nagjax.nesterov(0.1), nonfinite="skip", axis_name="data")
    specs = {"mesh": mesh_of(), "in_specs": (WHOLE, SPLIT), "out_specs": WHOLE, "check_vma": check_vma}
    x = X[0].copy()
    x[5] = np.nan
    state, values = jax.jit(jax.shard_map(step, **specs))(step.init(), (x, Y[0]))
    assert values["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), PARAMS)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("tx", ["outer", "inside"])
def test_workers_leave_a_step_out_together_or_each_alone_and_never_wait_for_ever(tx, check_vma, standard_promotion):
    inner = nagjax.nesterov(0.1)
    inner = optax.apply_if_finite(inner, 5) if tx == "inside" else inner
    optimizer = outer.diloco(inner, optax.sgd(1.0), period=2, axis_name="workers")
    policy = "skip" if tx == "outer" else "ignore"
    step = TrainStep(PARAMS, loss_fn, optimizer, nonfinite=policy, axis_name="data")
    mesh = jax.make_mesh((2, 4), ("workers", "data"), axis_types=(AxisType.Auto,) * 2)
    own, shared = P("workers"), P()
    specs = training.TrainState(own, own, outer.per_worker(own, shared), shared, shared)

    def local(function, state):
        state = state._replace(params=jax.tree.map(function, state.params))
        return state._replace(opt_state=outer.map_per_worker(function, state.opt_state))

    def train(state, batch):
        state, values = step(local(lambda leaf: leaf[0], state), batch)
        return local(lambda leaf: leaf[None], state), values.get("skipped", values["loss"])[None]

    split = P(("workers", "data"))
    run = jax.shard_map(train, mesh=mesh, in_specs=(specs, split), out_specs=(specs, P("workers")), check_vma=check_vma)
    x = X[0].copy()
    x[3] = np.nan  # of the first worker
    state = local(lambda leaf: jnp.stack([leaf] * 2), step.init())
    after, skipped = jax.jit(run)(state, (x, Y[0]))
    moved = [bool(jnp.any(after.params["out"]["kernel"][worker] != PARAMS["out"]["kernel"])) for worker in range(2)]
    if tx == "outer":
        assert skipped.tolist() == [1, 1]
        assert moved == [False, False]
        assert after.opt_state.step == 0
    else:
        assert moved == [False, True]
        assert after.opt_state.step == 1
    after, _ = jax.jit(run)(after, (X[1], Y[1]))
    assert np.all(np.isfinite(after.params["out"]["kernel"]))


def averaged(params, batch):
    loss, values = loss_fn(params, batch)
    return jax.lax.pmean(loss, "data"), values


@pytest.mark.parametrize(
    ("loss", "axis_name", "batch_spec", "message"),
    [
        (averaged, "data", SPLIT, "loss_fn must be the loss of one device's examples"),
        (loss_fn, None, SPLIT, r"axis_name must be all axes over which the loss differs, got None; .*\['data'\] too"),
        (loss_fn, "data", WHOLE, r"batch must be different examples on each device, got .*\['data'\]"),
        (loss_fn, "workers", SPLIT, "axis_name must be a mapped axis, or None, got 'workers'"),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_whose_gradients_would_not_be_a_mean_is_refused(accumulate, loss, axis_name, batch_spec, message):
    step = TrainStep(PARAMS, loss, nagjax.nesterov(0.1), axis_name=axis_name, accumulate=accumulate)
    run = jax.shard_map(step, mesh=mesh_of(), in_specs=(WHOLE, batch_spec), out_specs=WHOLE)
    with pytest.raises(ValueError, match=f"TrainStep: {message}"):
        jax.jit(run)(step.init(), (X[0], Y[0]))


def lasso():
    matrix = rng.normal(size=(64, 16))
    return matrix, matrix @ np.r_[np.ones(4), np.zeros(12)] + 0.1 * rng.normal(size=64)


def least_squares(x, matrix, target):
    return jnp.mean((jnp.sum(matrix * x[None], axis=1) - target) ** 2) / 2  # a product of shards says no place


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("cut_over", ["examples", "parameters"])
def test_minimize_runs_on_sharded_data_and_on_sharded_parameters(cut_over, kind):
    mesh, (matrix, target) = mesh_of(kind), lasso()
    prox, start = proximal.l1(0.05), np.zeros(16)
    alone = solve.minimize(least_squares, jnp.asarray(start), args=(matrix, target), prox=prox, tol=1e-10)
    rows, columns = (P("data"), P()) if cut_over == "examples" else (P(None, "data"), P("data"))
    place = functools.partial(jax.device_put)
    x = place(start, NamedSharding(mesh, columns))
    data = (
        place(matrix, NamedSharding(mesh, rows)),
        place(target, NamedSharding(mesh, SPLIT if cut_over == "examples" else WHOLE)),
    )
    found = solve.minimize(least_squares, x, args=data, prox=prox, tol=1e-10)
    assert found.status == alone.status
    assert abs(int(found.iterations) - int(alone.iterations)) <= 2
    np.testing.assert_allclose(found.params, alone.params, atol=1e-9)
    assert found.params.sharding.is_equivalent_to(NamedSharding(mesh, columns), 1)
