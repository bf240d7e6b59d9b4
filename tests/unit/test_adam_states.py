"""Nadam and Adan: bad input, storages, resets, restarts, absent leaves; PyTorch's Nadam against torch.

The recorded numbers are parameters and the average of gradients after six updates in float64, from START with the
gradient CURVATURE * y + SLOPE. PyTorch 2.13.0 (CPU), with float64 as its default dtype, in which it keeps the product
of the momenta::

    torch.set_default_dtype(torch.float64)
    y = torch.tensor(START, requires_grad=True)
    optimizer = torch.optim.NAdam([y], lr=rates[0], **options)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        y.grad = torch.tensor(CURVATURE) * y.detach() + torch.tensor(SLOPE)
        optimizer.step()
    print(y.detach().tolist(), optimizer.state[y]["exp_avg"].tolist())
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import nagjax
from nagjax import adaptive, restart, storage
from nagjax.conventions.pytorch_nadam import pytorch_nadam
from nagjax.theory import adam_loops

tree_get = optax.tree_utils.tree_get
START, CURVATURE, SLOPE = [1.0, -2.0, 0.5], [1.0, 0.1, 3.0], [0.5, -1.0, 2.0]
CONSTANT, CHANGING = [0.1] * 6, [0.1, 0.05, 0.2, 0.0, 0.1, 0.15]
NAN, INF = float("nan"), float("inf")

# fmt: off
TORCH = [  # rates, options, parameters, average of gradients
    (CONSTANT, {}, [0.54511258293253, -1.5215060037621262, 0.05370320929083307],
     [0.5950102849957294, -0.5511718540823156, 1.3198538752836042]),
    (CONSTANT, {"betas": (0.8, 0.97), "momentum_decay": 0.5},
     [0.48978600482256685, -1.4616644160891332, 0.000248975811277051],
     [0.9002460850583561, -0.8641040995624466, 1.9701600076122403]),
    (CONSTANT, {"weight_decay": 0.1}, [0.5460306134195015, -1.5237340736388034, 0.05444951231808936],
     [0.631216423003238, -0.6338453389729006, 1.3329139347273424]),
    (CHANGING, {"weight_decay": 0.1, "decoupled_weight_decay": True},
     [0.4980206388997473, -1.4168201253206871, 0.03370556501406885],
     [0.590820461554594, -0.5496217648344107, 1.3240532895072223]),
    (CHANGING, {"betas": (0.7, 0.9), "eps": 0.001, "weight_decay": 0.05, "momentum_decay": 0.1, "maximize": True},
     [1.602377263368101, -2.580951871135839, 1.1082860585267014],
     [-1.5480742095826618, 0.9844368810023701, -3.9055418827643695]),
    (CHANGING, {"weight_decay": 0.05, "decoupled_weight_decay": True, "maximize": True, "momentum_decay": 0.0},
     [1.4626771901241309, -2.4178677321949746, 0.9824510223428081],
     [-0.8020018111345294, 0.571405185368805, -1.9483187304197007]),
]
# fmt: on


def gradient(y):
    return jnp.asarray(CURVATURE, y.dtype) * y + jnp.asarray(SLOPE, y.dtype)


def follow(tx, steps, start=START, slope=gradient):
    """All parameters of a run, and its last state."""

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(slope(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (_, state), run = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=steps))(jnp.asarray(start))
    return run, state


def table(rates):
    return lambda count: jnp.asarray(rates)[count]


def ours(options):
    """The arguments of `torch.optim.NAdam` as those of `pytorch_nadam`."""
    options = dict(options)
    b1, b2 = options.pop("betas", (0.9, 0.999))
    return {"b1": b1, "b2": b2, **options}


@pytest.mark.parametrize(("rates", "options", "params", "average"), TORCH, ids=[str(row[1]) for row in TORCH])
def test_pytorch_nadam_ends_at_the_numbers_that_torch_recorded(rates, options, params, average):
    run, state = follow(pytorch_nadam(table(rates), **ours(options)), len(rates))
    np.testing.assert_allclose(run[-1], params, rtol=1e-12)
    np.testing.assert_allclose(nagjax.velocity(state), average, rtol=1e-12)


@pytest.mark.parametrize("options", [row[1] for row in TORCH], ids=str)
def test_pytorch_nadam_makes_the_steps_of_torch(options):
    """Where torch is installed: 30 steps; its product of momenta is a float32."""
    torch = pytest.importorskip("torch")
    rates = np.random.default_rng(0).uniform(0, 0.2, size=30)
    theirs = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.NAdam([theirs], lr=rates[0], **options)
    expected = []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        theirs.grad = torch.tensor(CURVATURE) * theirs.detach() + torch.tensor(SLOPE)
        optimizer.step()
        expected.append(theirs.detach().numpy().copy())
    run, _ = follow(pytorch_nadam(table(rates), **ours(options)), 30)
    np.testing.assert_allclose(run, expected, rtol=1e-6, atol=1e-6)


def test_the_defaults_of_pytorch_nadam_are_those_of_torch():
    expected = adam_loops.pytorch_nadam(lambda y: np.array(CURVATURE) * y + SLOPE, START, [2e-3] * 6)
    np.testing.assert_allclose(follow(pytorch_nadam(), 6)[0], expected[1:], rtol=1e-13)


OPTIMIZERS = {"nadamw": adaptive.nadamw, "adan": adaptive.adan, "pytorch_nadam": pytorch_nadam}
DIRECTIONS = {"adaptive.scale_by_nadam": adaptive.scale_by_nadam, "adaptive.scale_by_adan": adaptive.scale_by_adan}
FRACTIONS = {
    "nadamw": ["b1", "b2"], "pytorch_nadam": ["b1", "b2"], "adan": ["b1", "b2", "b3"],
    "adaptive.scale_by_nadam": ["b1", "b2"], "adaptive.scale_by_adan": ["b1", "b2", "b3"],
}  # fmt: skip
NONNEGATIVE = {
    "nadamw": ["learning_rate", "eps", "weight_decay"],
    "adan": ["learning_rate", "eps", "weight_decay"],
    "pytorch_nadam": ["learning_rate", "eps", "weight_decay", "momentum_decay"],
    "adaptive.scale_by_nadam": ["eps", "eps_root", "momentum_decay"],
    "adaptive.scale_by_adan": ["eps"],
}


def build(name, **arguments):
    if name in OPTIMIZERS:
        return OPTIMIZERS[name](**{"learning_rate": 0.1, **arguments})
    return DIRECTIONS[name](**arguments)


def places(kinds):
    return pytest.mark.parametrize(
        ("name", "argument"), [(name, argument) for name, arguments in kinds.items() for argument in arguments]
    )


@places(FRACTIONS)
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, NAN, INF, jnp.float64(1.5)], ids=str)
def test_decays_outside_of_zero_to_one_are_refused(name, argument, value):
    place = re.escape(f"{name}: {argument}")
    with pytest.raises(ValueError, match=rf"^{place} must be in \[0, 1\), got .+; .+\.$"):
        build(name, **{argument: value})


@places(NONNEGATIVE)
@pytest.mark.parametrize("value", [-0.1, NAN, INF], ids=str)
def test_negative_numbers_are_refused(name, argument, value):
    place = re.escape(f"{name}: {argument}")
    with pytest.raises(ValueError, match=rf"^{place} must be at least 0 and finite, got .+; .+\.$"):
        build(name, **{argument: value})


@places({name: FRACTIONS[name] + NONNEGATIVE[name] for name in FRACTIONS})
def test_what_is_no_number_is_refused_and_traced_and_zero_ones_pass(name, argument):
    for value in "0.9", None, 1j, [0.9], True:
        with pytest.raises(TypeError, match=rf"^{re.escape(f'{name}: {argument}')} must be "):
            build(name, **{argument: value})
    build(name, **{argument: 0})
    jax.eval_shape(lambda value: (build(name, **{argument: value}), 0)[1], 7.0)


@pytest.mark.parametrize("make", [adaptive.scale_by_nadam, lambda **options: adaptive.nadamw(0.1, **options)])
@pytest.mark.parametrize("convention", ["Dozat", "torch", "", None], ids=repr)
def test_an_unknown_convention_is_refused_by_a_message_that_names_the_three(make, convention):
    message = r"^adaptive\.scale_by_nadam: convention must be 'dozat', 'pytorch' or 'algoperf', got .+; .+\.$"
    with pytest.raises(ValueError, match=message):
        make(convention=convention)


@pytest.mark.parametrize("make", [adaptive.scale_by_adan, lambda **options: adaptive.adan(0.1, **options)])
def test_a_speed_restart_of_adan_is_refused(make):
    with pytest.raises(
        ValueError, match=r"^adaptive\.scale_by_adan: restart must be .*; use .* restart\.every\(period\)"
    ):
        make(restart=restart.speed())


@pytest.mark.parametrize("name", FRACTIONS)
@pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.ones(3, bool)], ids=["int", "bool"])
def test_integer_parameters_are_refused_with_their_place(name, leaf):
    with pytest.raises(TypeError, match=r"params must be floating-point or complex, got .* at params\['b'\].*masked"):
        build(name).init({"a": jnp.ones(2), "b": leaf})


@pytest.mark.parametrize("name", FRACTIONS)
def test_gradients_of_another_structure_or_shape_are_refused(name):
    tx, params = build(name), {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    state = tx.init(params)
    for wrong in {"a": jnp.ones((2, 3))}, [jnp.ones((2, 3)), jnp.ones(4)], jnp.ones(4):
        with pytest.raises(ValueError, match=r"^adaptive\.scale_by_\w+: updates must be of the structure .*; pass"):
            tx.update(wrong, state, wrong)
    for shape in (3, 2), (6,), (), (1, 2, 3):
        wrong = params | {"a": jnp.ones(shape)}
        with pytest.raises(ValueError, match=r"^adaptive\.scale_by_\w+: updates must be of shape \(2, 3\) here, got"):
            tx.update(wrong, state, wrong)


@pytest.mark.parametrize(
    "tx",
    [
        adaptive.nadamw(0.1),
        adaptive.adan(0.1, weight_decay=0.1),
        adaptive.adan(0.1, weight_decay=0.1, no_prox=True),
        pytorch_nadam(0.1, weight_decay=0.1),
        pytorch_nadam(0.1, weight_decay=0.1, decoupled_weight_decay=True),
    ],
)
def test_weight_decay_without_params_is_refused(tx):
    with pytest.raises(ValueError, match=r"params must be passed to update, got None; .*update\(gradients, state, pa"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_decay_no_params_are_needed(name):
    tx = build(name, weight_decay=0.0)
    updates, _ = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
    assert jnp.all(updates < 0)


@pytest.mark.parametrize("make", [adaptive.nadamw, adaptive.adan], ids=["nadamw", "adan"])
@pytest.mark.parametrize("zero", [np.float32(0), jnp.float32(0)], ids=["NumPy", "JAX"])
def test_only_a_python_zero_is_known_to_need_no_params(make, zero):
    tx = make(0.1, weight_decay=zero)
    with pytest.raises(ValueError, match=r"params must be passed to update"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
    for python in 0, 0.0:
        tx = make(0.1, weight_decay=python)
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


@pytest.mark.parametrize("convention", ["dozat", "pytorch", "algoperf"])
def test_nadam_without_momentum_is_the_gradient_over_the_corrected_root(convention):
    gradients = slopes(30, (5,))
    found, _ = directions(adaptive.scale_by_nadam(0.0, 0.9, 1e-3, convention=convention), jnp.asarray(gradients))
    squares = np.zeros(5)
    for t, g in enumerate(gradients, start=1):
        squares = 0.9 * squares + 0.1 * g**2
        np.testing.assert_allclose(found[t - 1], g / (np.sqrt(squares / (1 - 0.9**t)) + 1e-3), rtol=1e-13)


FAMILY = {
    "dozat": adaptive.scale_by_nadam,
    "algoperf": lambda **options: adaptive.scale_by_nadam(convention="algoperf", **options),
    "pytorch": lambda **options: adaptive.scale_by_nadam(convention="pytorch", **options),
    "adan": adaptive.scale_by_adan,
}
KEPT = {
    "bfloat16": storage.cast(jnp.bfloat16),
    "stochastic": storage.stochastic_rounding(jnp.bfloat16),
    "int8": storage.int8(),
}


def over(values, name="kind"):
    return pytest.mark.parametrize(name, values)


def slopes(count, shape, seed=0):
    """Gradients with a mean, so that averages do not vanish."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(1, *shape)) + 0.3 * rng.normal(size=(count, *shape))


def directions(tx, gradients, state=None):
    """All directions for a list of gradients, and the last state."""

    def body(state, g):
        direction, state = tx.update(g, state)
        return state, direction

    first = jax.tree.map(lambda leaf: leaf[0], gradients)
    start = tx.init(first) if state is None else state
    state, found = jax.jit(lambda s, g: jax.lax.scan(body, s, g))(start, gradients)
    return found, state


@over(KEPT, "kept")
@over(FAMILY)
def test_a_first_moment_in_few_bits_follows_the_full_one(kind, kept, single_precision):
    """Relative to the largest entry: 2^-8 a step in 16 bits, 1/127 in 8; the average forgets."""
    gradients = jnp.asarray(slopes(60, (300,)), jnp.float32)
    exact, full = directions(FAMILY[kind](), gradients)
    found, state = directions(FAMILY[kind](storage=KEPT[kept]), gradients)
    unit = 1 / 127 if kept == "int8" else 2.0**-7
    largest = float(jnp.max(jnp.abs(full.velocity)))
    memory = 1 / (1 - (0.98 if kind == "adan" else 0.9))
    bound = unit * largest * memory ** (1 if kept == "bfloat16" else 0.5) * 3  # noise of zero mean adds as a root
    assert jnp.max(jnp.abs(nagjax.velocity(state) - full.velocity)) < bound
    assert jnp.any(nagjax.velocity(state) != full.velocity)
    assert jnp.sqrt(jnp.mean((found - exact)[-1] ** 2)) < 0.2 * jnp.sqrt(jnp.mean(exact[-1] ** 2))
    assert found.dtype == state.second_moment.dtype == jnp.float32
    np.testing.assert_array_equal(state.second_moment, full.second_moment)


@over(KEPT, "kept")
@over(["dozat", "algoperf"])
def test_the_first_moment_is_rounded_before_it_is_used(kind, kept):
    gradients = jnp.asarray(slopes(4, (300,)))
    tx = FAMILY[kind](storage=KEPT[kept], eps=0.0)
    found, state = directions(tx, gradients)
    own, ahead = 1 - 0.9**4, 1 - 0.9 ** (5 if kind == "dozat" else 4)
    moment = np.asarray(nagjax.velocity(state), np.float64)
    root = np.sqrt(np.asarray(state.second_moment) / (1 - 0.999**4))
    expected = (0.9 / ahead * moment + 0.1 / own * np.asarray(gradients[-1])) / root
    np.testing.assert_allclose(found[-1], expected, rtol=1e-6 if kept == "int8" else 1e-12)


@over(FAMILY)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_small_parameters_get_updates_of_their_dtype_and_moments_of_32_bits(kind, dtype):
    gradients = jnp.asarray(slopes(60, (5,))).astype(dtype)
    found, state = directions(FAMILY[kind](), gradients)
    exact, _ = directions(FAMILY[kind](), gradients.astype(jnp.float64))
    assert found.dtype == dtype
    for leaf in jax.tree.leaves(state):
        assert leaf.dtype == jnp.float32 if leaf.ndim else leaf.dtype in (jnp.int32, jnp.float64)
    tolerance = max(float(jnp.finfo(dtype).eps), 4e-6)  # sums of terms of size 1 to 3 that may cancel
    np.testing.assert_allclose(found.astype(jnp.float64), exact, rtol=tolerance, atol=tolerance)


def test_the_state_of_nadam_has_two_buffers_and_that_of_adan_four():
    params = {"a": jnp.ones((3, 2), jnp.complex64), "b": jnp.ones(4, jnp.bfloat16)}
    for tx, bytes_each in (
        (adaptive.scale_by_nadam(), 6 * (8 + 4) + 4 * 8),
        (
            adaptive.scale_by_adan(),
            6 * (3 * 8 + 4) + 4 * 16,
        ),
    ):
        state = tx.init(params)
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim) == bytes_each
        assert state.second_moment["a"].dtype == state.second_moment["b"].dtype == jnp.float32


@over([*FAMILY, "adan, restart", "dozat, int8"])
def test_tree_map_params_visits_the_buffers_and_no_scalar(kind):
    name, _, option = kind.partition(", ")
    tx = FAMILY[name](**{"restart": {"restart": restart.value()}, "int8": {"storage": storage.int8()}}.get(option, {}))
    params = {"a": jnp.ones((3, 2)), "b": {"c": jnp.ones(())}}
    names = {"a": "A", "b": {"c": "C"}}
    spec = optax.tree_utils.tree_map_params(
        tx, lambda _, name: name, tx.init(params), names, transform_non_params=lambda _: "-"
    )
    buffers = {"adan": 4}.get(name, 2) + (option == "int8")
    assert sorted(leaf for leaf in jax.tree.leaves(spec) if leaf != "-") == ["A"] * buffers + ["C"] * buffers
    assert spec.age == spec.step == "-"


@over(FAMILY)
def test_a_reset_starts_the_first_moment_again_and_keeps_the_second(kind):
    """The next direction: that of a first gradient, over the root of the second moment so far."""
    gradients = slopes(6, (4,))
    tx = FAMILY[kind](eps=0.0)
    _, state = directions(tx, jnp.asarray(gradients[:5]))
    reset = state.reset()
    assert not jnp.any(reset.velocity)
    assert (int(reset.age), int(reset.step)) == (0, 5)
    np.testing.assert_array_equal(reset.second_moment, state.second_moment)
    direction, after = tx.update(jnp.asarray(gradients[5]), reset)
    assert (int(after.age), int(after.step)) == (1, 6)

    mu = 0.9 * (1 - 0.96 ** (4e-3 * np.array([1, 2])) / 2)
    first = {"dozat": 1 + 0.9 / 1.9, "algoperf": 1.9, "pytorch": 1 + 0.1 * mu[1] / (1 - mu[0] * mu[1]), "adan": 1}
    keep = 0.99 if kind == "adan" else 0.999
    squares = gradients**2
    if kind == "adan":
        squares[1:5] = (gradients[1:5] + 0.92 * np.diff(gradients[:5], axis=0)) ** 2
    weights = (1 - keep) * keep ** np.arange(5, -1, -1) / (1 - keep**6)
    expected = first[kind] * gradients[5] / np.sqrt(weights @ squares)
    np.testing.assert_allclose(direction, expected, rtol=1e-12)


def test_the_answer_and_the_velocity_are_the_parameters_and_the_average():
    gradients = jnp.asarray(slopes(3, (4,)))
    for make in FAMILY.values():
        _, state = directions(make(b1=0.5), gradients)
        expected = 0.5 * (0.25 * gradients[0] + 0.5 * gradients[1] + gradients[2])
        np.testing.assert_allclose(nagjax.velocity(state), expected, rtol=1e-13)
        params = gradients[0]
        np.testing.assert_array_equal(nagjax.eval_params(params, state), params)


@over([None, "value", "gradient"])
def test_a_restart_makes_the_update_and_then_a_fresh_run(kind):
    """`value` rises in update 4, and in no other; `gradient` fires where the gradient turns round."""
    gradients = 1 + 0.1 * slopes(9, (4,))
    values = np.array([9.0, 8, 7, 6, 7, 6, 5, 4, 3])
    if kind == "gradient":
        gradients[4:] *= -3  # the difference turns the direction round before the average follows
    test = {"value": restart.value, "gradient": restart.gradient}.get(kind, lambda: None)()
    tx, plain = adaptive.scale_by_adan(restart=test), adaptive.scale_by_adan()
    state, ages, found = tx.init(jnp.asarray(gradients[0])), [], []
    body = jax.jit(lambda g, state, value: tx.update(g, state, value=value))
    for g, value in zip(gradients, values, strict=True):
        direction, state = body(jnp.asarray(g), state, value)
        found.append(direction)
        ages.append(int(state.age))
        assert int(state.step) == int(state.age)
    if kind is None:
        assert ages == list(range(1, 10))
        return
    cut = ages.index(0) + 1
    assert ages == [*range(1, cut), 0, *range(1, 10 - cut)]
    assert cut == 5
    before, _ = directions(plain, jnp.asarray(gradients[:cut]))
    after, fresh = directions(plain, jnp.asarray(gradients[cut:]))
    np.testing.assert_allclose(found, np.concatenate([before, after]), rtol=1e-13)
    for field in ("velocity", "difference", "second_moment", "previous_gradient"):
        np.testing.assert_allclose(getattr(state, field), getattr(fresh, field), rtol=1e-13)


def test_a_restart_test_sees_minus_the_direction_and_minus_the_average():
    seen = []

    def look(carry, *, step, velocity, **_):
        seen.append((step, velocity))
        return jnp.zeros((), bool), carry

    tx = adaptive.scale_by_adan(restart=nagjax.Restart(tuple, look))
    direction, state = tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.ones(2)))
    ((step, velocity),) = seen
    np.testing.assert_array_equal(step, -direction)
    np.testing.assert_array_equal(velocity, -state.velocity)
    assert float(step[0]) < 0
    assert float(velocity[0]) < 0


def test_a_restart_keeps_the_counter_of_rounding_noise():
    tx = adaptive.scale_by_adan(restart=restart.every(3), storage=storage.int8())
    _, state = directions(tx, jnp.asarray(slopes(6, (8,))))
    assert (int(state.age), int(state.velocity.step)) == (0, 6)
    assert not jnp.any(nagjax.velocity(state))


def test_restarts_on_shards_fall_where_those_of_the_whole_do():
    def ages(axis):
        tx = adaptive.scale_by_adan(restart=restart.gradient(axis))

        def whole(gradients):
            def body(state, g):
                direction, state = tx.update(g, state)
                return state, (direction, state.age)

            return jax.lax.scan(body, tx.init(gradients[0]), gradients)[1]

        return whole

    gradients = 1 + 0.1 * slopes(12, (8, 2))
    gradients[5:, 1:] *= -2.5  # all shards but the first turn round
    gradients[:, 0] *= 1e-3
    gradients = jnp.asarray(gradients)
    expected, whole = jax.jit(ages(None))(gradients)
    mesh = Mesh(np.array(jax.devices()[:8]), ("axis",))
    sharded = jax.shard_map(ages("axis"), mesh=mesh, in_specs=P(None, "axis"), out_specs=(P(None, "axis"), P()))
    found, counts = jax.jit(sharded)(gradients)
    assert 0 in whole
    assert not np.array_equal(jax.jit(ages(None))(gradients[:, :1])[1], whole)
    np.testing.assert_array_equal(counts, whole)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


ALL = {
    **{name: build(name) for name in OPTIMIZERS},
    "nadamw, int8": adaptive.nadamw(0.1, storage=storage.int8()),
    "adan, decay": adaptive.adan(0.1, weight_decay=0.1),
    "adan, restart": adaptive.adan(0.1, restart=restart.every(2)),
}


@over(ALL)
def test_absent_leaves_get_no_update_and_keep_their_state(kind):
    tx = ALL[kind]
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2)), "c": optax.MaskedNode()}
    state = tx.init(params)
    _, state = jax.jit(tx.update)(params, state, params)
    updates, after = jax.jit(tx.update)(params | {"b": None}, state, params)
    assert updates["b"] is None
    assert updates["c"] == optax.MaskedNode()
    assert jax.tree.structure(after) == jax.tree.structure(state)
    before, now = (jax.tree.leaves(states, is_leaf=is_own)[0] for states in (state, after))
    for field in ("difference", "second_moment", "previous_gradient"):
        if kind != "adan, restart" and hasattr(now, field):
            np.testing.assert_array_equal(getattr(now, field)["b"], getattr(before, field)["b"])
            assert jnp.any(getattr(now, field)["b"] != 0) or field == "difference"
    if kind != "adan, restart":
        np.testing.assert_array_equal(nagjax.velocity(after)["b"], nagjax.velocity(state)["b"])
        assert jnp.any(nagjax.velocity(after)["a"] != nagjax.velocity(state)["a"])
    only = {"a": params["a"]}
    alone, _ = jax.jit(tx.update)(only, tx.init(only), only)
    with_others, _ = jax.jit(tx.update)(params | {"b": None}, tx.init(params), params)
    np.testing.assert_allclose(with_others["a"], alone["a"], rtol=1e-14)


def is_own(node):
    return isinstance(node, adaptive.NadamState | adaptive.AdanState)


@over(ALL)
def test_masked_optimizers_update_their_part_as_alone(kind):
    params = {"a": jnp.asarray(slopes(1, (3,))[0]), "b": jnp.ones(2)}
    tx = optax.masked(ALL[kind], {"a": True, "b": False})
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    alone, _ = jax.jit(ALL[kind].update)(params["a"], ALL[kind].init(params["a"]), params["a"])
    np.testing.assert_allclose(updates["a"], alone, rtol=1e-14)
    np.testing.assert_array_equal(updates["b"], params["b"])
    np.testing.assert_array_equal(nagjax.eval_params(params, state)["a"], params["a"])


@over(ALL)
def test_scalars_zero_sizes_numpy_arrays_and_complex_leaves_work(kind):
    params = {"s": np.float64(1), "e": jnp.zeros((0, 3)), "z": jnp.full((2, 3), 1 + 2j), "n": np.ones(2, np.float32)}
    tx = ALL[kind]
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(lambda x: jnp.asarray(x).dtype, params)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((updates, state)))


@over(FAMILY)
def test_python_numbers_are_parameters(kind):
    tx = FAMILY[kind](eps=0.0)
    direction, _ = tx.update({"a": 3.0}, tx.init({"a": 1.0}))
    assert 1 - 1e-12 < direction["a"] <= 1.9 + 1e-12
    assert direction["a"].dtype == jnp.float64


@over(ALL)
def test_vanishing_gradients_make_no_nan(kind):
    if "int8" in kind:
        pytest.skip("rounding looks at the patterns of its numbers")
    with jax.debug_nans(True):
        params = jnp.array([0.0, 1e-30, 1.0], jnp.float32)
        state = ALL[kind].init(params)
        for _ in range(3):
            updates, state = ALL[kind].update(jnp.zeros_like(params), state, params)
            assert jnp.all(jnp.isfinite(updates))


@over(ALL)
def test_mapped_runs_are_the_runs_one_by_one(kind):
    starts = jnp.asarray(slopes(3, (4,)))

    def run(params):
        return follow(ALL[kind], 5, params, lambda y: y)

    found, state = jax.vmap(run)(starts)
    for index in range(3):
        alone, own = run(starts[index])
        np.testing.assert_allclose(found[index], alone, rtol=1e-12)
        np.testing.assert_array_equal(tree_get(state, "age")[index], tree_get(own, "age"))
    np.testing.assert_array_equal(nagjax.eval_params(starts, state), starts)
    assert not jnp.any(nagjax.velocity(nagjax.reset_momentum(state)))


@over(ALL)
def test_a_nan_reaches_its_parameter_and_no_other_leaf(kind):
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    slope = params | {"a": jnp.array([1.0, jnp.nan, 1.0])}
    updates, _ = jax.jit(ALL[kind].update)(slope, ALL[kind].init(params), params)
    hit = jnp.isnan(updates["a"])
    assert hit[1]
    assert jnp.sum(hit) == 1 or "int8" in kind
    assert jnp.all(jnp.isfinite(updates["b"]))


def test_hyperparameters_can_be_injected_in_float32_into_bfloat16_runs():
    for factory in adaptive.nadamw, adaptive.adan, pytorch_nadam:
        decay = {"weight_decay": 0.01}
        tx = optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)(learning_rate=0.125, **decay)
        plain = factory(0.125, **decay)
        params = jnp.array([1.0, -2.0, 0.5], jnp.bfloat16)
        found, expected = follow(tx, 5, params)[0], follow(plain, 5, params)[0]
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), rtol=2**-7)
