"""Momentum surgery: resets of parts, rescaling after a jump of the rate, and states that move between frameworks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import nagjax
from nagjax import conventions, momentum, storage
from nagjax.conventions import convert

RATE, MOMENTUM = 0.3, 0.8
START = {"body": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "head": jnp.array([4.0, -1.0])}
CURVATURE = {"body": jnp.array([[1.0, 0.3], [0.1, 0.7]]), "head": jnp.array([0.2, 0.9])}


def gradient(params):
    return jax.tree.map(jnp.multiply, CURVATURE, params)


def advance(tx, params, state, count=1):
    for _ in range(count):
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def after(tx, count=4):
    return advance(tx, START, tx.init(START), count)


def equal(found, expected, tolerance=1e-14):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


STORAGES = {
    "full": storage.full(),
    "bfloat16": storage.cast(jnp.bfloat16),
    "stochastic": storage.stochastic_rounding(jnp.bfloat16),
    "int8": storage.int8(),
}
MASKS = {
    "tree": {"body": False, "head": True},
    "function": lambda velocity: {"body": False, "head": True},
    "by shape": lambda velocity: jax.tree.map(lambda w: w.ndim == 1, velocity),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
@pytest.mark.parametrize("kept", STORAGES.values(), ids=list(STORAGES))
def test_a_masked_reset_clears_the_chosen_leaves_alone(kept, mask):
    tx = nagjax.nesterov(RATE, MOMENTUM, storage=kept)
    params, state = after(tx)
    reset = nagjax.reset_momentum(state, mask=mask)
    assert jax.tree.structure(reset) == jax.tree.structure(state)
    before, now = nagjax.velocity(state), nagjax.velocity(reset)
    assert not jnp.any(now["head"])
    np.testing.assert_array_equal(now["body"], before["body"])
    answer = nagjax.eval_params(params, reset)
    np.testing.assert_array_equal(answer["head"], params["head"])
    np.testing.assert_array_equal(answer["body"], nagjax.eval_params(params, state)["body"])


@pytest.mark.parametrize("make", [nagjax.nadamw, nagjax.adan, lambda rate: conventions.pytorch_sgd(rate, 0.9)])
def test_masks_reach_the_moments_of_other_states_too(make):
    _, state = after(make(RATE))
    velocity = nagjax.velocity(nagjax.reset_momentum(state, mask=MASKS["tree"]))
    assert not jnp.any(velocity["head"])
    np.testing.assert_array_equal(velocity["body"], nagjax.velocity(state)["body"])


def test_a_prefix_is_a_mask_and_a_leaf_with_infinite_velocity_is_cleared():
    tx = nagjax.nesterov(RATE, MOMENTUM)
    nested = {"model": START, "rest": jnp.ones(3)}
    state = tx.init(nested)
    _, state = tx.update(jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), nested), state, nested)
    velocity = nagjax.velocity(nagjax.reset_momentum(state, mask={"model": True, "rest": False}))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(velocity["model"]))
    assert jnp.all(jnp.isinf(velocity["rest"]))


def test_the_reset_leaves_go_on_as_a_fresh_run_and_the_others_as_before():
    """Of a method without schedules, since the age is one for all leaves."""
    tx = nagjax.nesterov(RATE, MOMENTUM)
    params, state = after(tx)
    reset, _ = advance(tx, params, nagjax.reset_momentum(state, mask=MASKS["tree"]), 3)
    untouched, _ = advance(tx, params, state, 3)
    fresh, _ = advance(tx, params, tx.init(params), 3)
    np.testing.assert_array_equal(reset["body"], untouched["body"])
    np.testing.assert_array_equal(reset["head"], fresh["head"])


def partitioned():
    parts = {"slow": nagjax.nesterov(RATE / 10, MOMENTUM), "fast": nagjax.nesterov(RATE, momentum.fista())}
    return optax.partition(parts, {"body": "slow", "head": "fast"})


def test_a_label_resets_its_part_of_a_partition_with_its_age():
    params, state = after(partitioned())
    reset = nagjax.reset_momentum(state, label="fast")
    slow, fast = (nagjax.velocity(reset.inner_states[label]) for label in ("slow", "fast"))
    assert not jnp.any(fast["head"])
    np.testing.assert_array_equal(slow["body"], nagjax.velocity(state.inner_states["slow"])["body"])
    ages = {label: optax.tree_utils.tree_get(reset.inner_states[label], "age") for label in ("slow", "fast")}
    assert ages == {"slow": 4, "fast": 0}
    resumed, _ = advance(partitioned(), params, reset, 3)
    fresh, _ = advance(partitioned(), params, partitioned().init(params), 3)
    np.testing.assert_array_equal(resumed["head"], fresh["head"])


def test_a_mask_of_the_whole_tree_fits_every_part_of_a_partition():
    _, state = after(partitioned())
    reset = nagjax.reset_momentum(state, mask=MASKS["tree"])
    assert not jnp.any(nagjax.velocity(reset.inner_states["fast"])["head"])
    assert jnp.any(nagjax.velocity(reset.inner_states["slow"])["body"])


def test_a_name_of_a_chain_is_a_label():
    tx = optax.named_chain(("clip", optax.clip(10.0)), ("move", nagjax.nesterov(RATE, MOMENTUM)))
    _, state = after(tx)
    assert not any(
        jnp.any(leaf) for leaf in jax.tree.leaves(nagjax.velocity(nagjax.reset_momentum(state, label="move")))
    )


@pytest.mark.parametrize("factor", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("kept", STORAGES.values(), ids=list(STORAGES))
def test_rescaling_multiplies_the_velocity(kept, factor):
    _, state = after(nagjax.nesterov(RATE, MOMENTUM, storage=kept))
    found = nagjax.velocity(nagjax.rescale_momentum(state, factor))
    # One rounding to the nearest in bfloat16, and in float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, factor * b, rtol=2**-8), found, nagjax.velocity(state))


def test_rescaling_by_the_ratio_of_rates_makes_a_jump_of_the_rate_pytorchs():
    old, new = 0.3, 0.06
    jump = conventions.pytorch_sgd(lambda k: jnp.where(k < 4, old, new), MOMENTUM, nesterov=True)
    expected, _ = after(jump, 9)
    params, state = after(nagjax.nesterov(old, MOMENTUM), 4)
    found, _ = advance(nagjax.nesterov(new, MOMENTUM), params, nagjax.rescale_momentum(state, new / old), 5)
    equal(found, expected)
    without, _ = advance(nagjax.nesterov(new, MOMENTUM), params, state, 5)
    assert jnp.max(jnp.abs(without["head"] - expected["head"])) > 1e-2


@pytest.mark.parametrize("make", [lambda rate: conventions.pytorch_sgd(rate, 0.9), nagjax.nadamw, nagjax.adan])
def test_momentum_in_units_of_the_gradient_refuses_to_be_rescaled(make):
    with pytest.raises(
        ValueError, match=r"opt_state must be one with a velocity in units of the parameters, got .*State"
    ):
        nagjax.rescale_momentum(make(0.1).init(START), 0.1)


PARTS = {"body": {"w": "x", "b": "x"}, "head": {"w": "y", "b": "y"}}
NESTED = {"body": {"w": jnp.ones(3), "b": jnp.ones(2)}, "head": {"w": jnp.ones(3), "b": jnp.ones(2)}}
FULL = {"body": {"w": True, "b": True}, "head": {"w": False, "b": False}}
SPLIT = {
    "partition": optax.partition({"x": nagjax.nesterov(0.1), "y": nagjax.nesterov(0.2)}, PARTS),
    "partition, prefix": optax.partition(
        {"x": nagjax.nesterov(0.1), "y": nagjax.nesterov(0.2)}, {"body": "x", "head": "y"}
    ),
    "masked, prefix": optax.masked(nagjax.nesterov(0.1), {"body": True, "head": False}),
    "plain": nagjax.nesterov(0.1),
}


@pytest.mark.parametrize("tx", SPLIT.values(), ids=list(SPLIT))
@pytest.mark.parametrize(
    "mask",
    [FULL, {"body": True, "head": False}, lambda v: jax.tree.map(lambda w: True, v), True],
    ids=["full", "prefix", "function", "all"],
)
def test_masks_fit_where_leaves_are_absent(tx, mask):
    _, state = tx.update(NESTED, tx.init(NESTED), NESTED)
    velocities = nagjax.velocity(nagjax.reset_momentum(state, mask=mask))
    velocities = velocities if isinstance(velocities, tuple) else (velocities,)
    for before, now in zip(
        nagjax.velocity(state) if isinstance(nagjax.velocity(state), tuple) else (nagjax.velocity(state),),
        velocities,
        strict=True,
    ):
        assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(now["body"]))
        if isinstance(mask, dict):
            jax.tree.map(np.testing.assert_array_equal, now["head"], before["head"])


def test_masks_fit_trees_with_none_and_flax_states():
    params = {"a": None, "b": jnp.ones(2)}
    tx = nagjax.nesterov(0.1)
    _, state = tx.update(params, tx.init(params), params)
    assert not jnp.any(nagjax.velocity(nagjax.reset_momentum(state, mask={"a": None, "b": True}))["b"])
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    state = tx.init(nnx.state(model, nnx.Param))
    state = optax.tree_utils.tree_set(state, velocity=jax.tree.map(jnp.ones_like, nagjax.velocity(state)))
    velocity = nagjax.velocity(nagjax.reset_momentum(state, mask={"kernel": True, "bias": False}))
    assert not jnp.any(velocity["kernel"])
    assert jnp.all(velocity["bias"] == 1)


def test_labels_may_be_of_any_type():
    tx = optax.partition({0: nagjax.nesterov(0.1), 1: nagjax.nesterov(0.2)}, {"body": 0, "head": 1})
    _, state = after(tx)
    reset = nagjax.reset_momentum(state, label=0)
    assert not jnp.any(nagjax.velocity(reset.inner_states[0])["body"])
    assert jnp.any(nagjax.velocity(reset.inner_states[1])["head"])


def test_rescaling_takes_masks_and_labels_and_works_under_jit():
    _, state = after(partitioned())
    found = jax.jit(lambda s, f: nagjax.rescale_momentum(s, f, label="slow"))(state, 0.5)
    before = nagjax.velocity(state.inner_states["slow"])["body"]
    np.testing.assert_array_equal(nagjax.velocity(found.inner_states["slow"])["body"], before / 2)
    np.testing.assert_array_equal(
        nagjax.velocity(found.inner_states["fast"])["head"], nagjax.velocity(state.inner_states["fast"])["head"]
    )


OPTIMIZERS = {
    "optax": lambda rate, nesterov: optax.sgd(rate, MOMENTUM, nesterov=nesterov),
    "pytorch": lambda rate, nesterov: conventions.pytorch_sgd(rate, MOMENTUM, nesterov=nesterov),
    "keras": lambda rate, nesterov: conventions.keras_sgd(rate, MOMENTUM, nesterov=nesterov),
    "textbook": lambda rate, nesterov: nagjax.nesterov(rate, MOMENTUM if nesterov else momentum.heavy_ball(MOMENTUM)),
}
PAIRS = list(itertools.product(OPTIMIZERS, OPTIMIZERS))


@pytest.mark.parametrize("nesterov", [True, False], ids=["nesterov", "heavy ball"])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_converted_state_goes_on_as_the_source_while_the_rate_stays(source, target, nesterov):
    old, new = OPTIMIZERS[source](RATE, nesterov), OPTIMIZERS[target](RATE, nesterov)
    params, state = after(old)
    with jax.numpy_dtype_promotion("standard"):  # for optax.sgd
        moved = convert(state, source=source, target=target, learning_rate=RATE)
        assert jax.tree.structure(moved) == jax.tree.structure(new.init(params))
        equal(advance(new, params, moved, 5)[0], advance(old, params, state, 5)[0])


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if "optax" not in pair])
def test_the_answer_does_not_jump(source, target):
    params, state = after(OPTIMIZERS[source](RATE, True))
    moved = convert(state, source=source, target=target, learning_rate=RATE)
    equal(nagjax.eval_params(params, moved), nagjax.eval_params(params, state))


@pytest.mark.parametrize("target", ["pytorch", "keras", "textbook"])
def test_the_answer_of_an_optax_state_needs_its_momentum(target):
    params, state = after(OPTIMIZERS["optax"](RATE, True))
    exact = nagjax.eval_params(*after(OPTIMIZERS["textbook"](RATE, True)))
    given = convert(state, source="optax", target=target, learning_rate=RATE, momentum=MOMENTUM)
    equal(nagjax.eval_params(params, given), exact)
    unknown = convert(state, source="optax", target=target, learning_rate=RATE)
    equal(nagjax.eval_params(params, unknown), params)


@pytest.mark.parametrize(("source", "target"), [("optax", "textbook"), ("textbook", "pytorch"), ("pytorch", "keras")])
def test_after_a_jump_of_the_rate_the_step_is_the_targets(source, target):
    """By -(a2 - a1) b^2 m they differ where m and v differ in what a rate does to them."""
    params, state = after(OPTIMIZERS[source](RATE, True))
    moved = convert(state, source=source, target=target, learning_rate=RATE)
    rate = RATE / 3
    old, _ = advance(OPTIMIZERS[source](rate, True), params, state)
    new, _ = advance(OPTIMIZERS[target](rate, True), params, moved)
    m = jax.tree.map(lambda w: w / -RATE, nagjax.velocity(after(OPTIMIZERS["textbook"](RATE, True))[1]))
    sign = 1 if target in ("keras", "textbook") else -1
    # The rescaled velocity of PyTorch and Optax is -a2 m, the kept one -a1 m; both look ahead once more.
    gap = jax.tree.map(lambda m: sign * (rate - RATE) * MOMENTUM**2 * m, m)
    equal(jax.tree.map(jnp.subtract, new, old), gap)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_counts_of_schedules_move_along(source, target):
    def rate(k):
        return 0.1 / (1.0 + jnp.asarray(k).astype(float))

    old, new = OPTIMIZERS[source](rate, True), OPTIMIZERS[target](rate, True)
    params, state = after(old)
    moved = convert(state, source=source, target=target, learning_rate=0.1 / 4, like=new.init(params))
    assert jax.tree.structure(moved) == jax.tree.structure(new.init(params))
    count = optax.tree_utils.tree_get(moved, "step" if target == "pytorch" else "count")
    assert count == 4


def test_like_keeps_what_else_the_target_has():
    params, state = after(OPTIMIZERS["optax"](RATE, True))
    new = optax.chain(optax.clip_by_global_norm(1.0), nagjax.nesterov(RATE, MOMENTUM, weight_decay=0.1))
    moved = convert(state, source="optax", target="textbook", learning_rate=RATE, like=new.init(params))
    assert jax.tree.structure(moved) == jax.tree.structure(new.init(params))
    equal(nagjax.velocity(moved), nagjax.velocity(after(OPTIMIZERS["textbook"](RATE, True))[1]))


def test_a_schedule_of_momentum_goes_on_where_it_was():
    def rule():
        return nagjax.nesterov(RATE, momentum.schedule(optax.linear_schedule(0.0, 0.9, 10)))

    params, state = after(rule(), 8)
    moved = convert(state, source="textbook", target="textbook", learning_rate=RATE, like=rule().init(params))
    equal(advance(rule(), params, moved, 3)[0], advance(rule(), params, state, 3)[0])
    fista = nagjax.nesterov(RATE, momentum.fista())
    params, state = after(fista, 8)
    moved = convert(state, source="textbook", target="textbook", learning_rate=RATE, like=fista.init(params))
    equal(advance(fista, params, moved, 3)[0], advance(fista, params, state, 3)[0])


def test_states_from_disk_of_parts_and_of_layers_with_any_name_are_converted():
    params, state = after(nagjax.nesterov(RATE, MOMENTUM))
    expected = convert(state, source="textbook", target="pytorch", learning_rate=RATE)
    equal(
        convert(jax.tree.map(np.asarray, state), source="textbook", target="pytorch", learning_rate=RATE), expected, 0
    )
    tx = optax.masked(nagjax.nesterov(RATE, MOMENTUM), {"body": True, "head": False})
    _, state = after(tx)
    new = optax.masked(conventions.pytorch_sgd(RATE, MOMENTUM, nesterov=True), {"body": True, "head": False})
    moved = convert(state, source="textbook", target="pytorch", learning_rate=RATE, like=new.init(params))
    np.testing.assert_allclose(nagjax.velocity(moved)["body"], expected.momentum_buffer["body"], rtol=1e-12)
    named = nnx.State({"decode": jnp.ones(2)})
    state = nagjax.nesterov(RATE, MOMENTUM).init(named)
    assert convert(state, source="textbook", target="optax", learning_rate=RATE)


def test_bfloat16_states_of_optax_keep_their_dtype_where_like_has_it():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), START)
    old, new = nagjax.nesterov(RATE, MOMENTUM), optax.sgd(RATE, MOMENTUM, nesterov=True)
    _, state = old.update(params, old.init(params), params)
    moved = convert(state, source="textbook", target="optax", learning_rate=RATE, like=new.init(params))
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {jnp.dtype(jnp.bfloat16)}


def test_what_cannot_be_done_is_refused_with_the_remedy():
    params, state = after(nagjax.nesterov(RATE, MOMENTUM))
    arguments = {"source": "textbook", "target": "optax", "learning_rate": RATE}
    for name in "source", "target":
        with pytest.raises(ValueError, match=rf"convert: {name} must be one of 'optax', .*, got 'jax'; "):
            convert(state, **arguments | {name: "jax"})
    for rate in 0.0, -1.0, float("nan"):
        with pytest.raises(ValueError, match=r"convert: learning_rate must be positive and finite, got .*; give"):
            convert(state, **arguments | {"learning_rate": rate})
    with pytest.raises(ValueError, match=r"convert: state must be a state with one PytorchSgdState .*, got 0;"):
        convert(state, **arguments | {"source": "pytorch"})
    with pytest.raises(ValueError, match=r"convert: state must be a state with one AccelerateState .*, got 2;"):
        convert((state, state), **arguments)
    for momentum_of_optax in 1.0, float("nan"):
        with pytest.raises(ValueError, match=r"convert: momentum must be in \[0, 1\)"):
            convert(state, **arguments, momentum=momentum_of_optax)
    likes = {
        "a state whose velocity is stored in full": nagjax.nesterov(RATE, MOMENTUM, storage=storage.int8()).init(START),
        "a state for leaves of the shapes": nagjax.nesterov(RATE, MOMENTUM).init({"a": jnp.ones(3), "b": jnp.ones(2)}),
        "a state of a constant or scheduled momentum": nagjax.nesterov(RATE, momentum.fista()).init(START),
    }
    for condition, like in likes.items():
        with pytest.raises(ValueError, match=f"convert: like must be {condition}.*, got "):
            convert(state, source="textbook", target="textbook", learning_rate=RATE, like=like)
    for factor in -1.0, float("inf"):
        with pytest.raises(ValueError, match=r"rescale_momentum: factor must be at least 0 and finite, got .*; "):
            nagjax.rescale_momentum(state, factor)
    for change in nagjax.reset_momentum, lambda s, **where: nagjax.rescale_momentum(s, 0.5, **where):
        wrong = ({"body": True}, {"Head": True, "body": False}, [True, False], "head", {"body": 1.0, "head": 0.0})
        arrays = {"body": jnp.array([True, False]), "head": True}
        for mask in *wrong, {"body": [True, False], "head": True}, arrays:
            with pytest.raises(ValueError, match=r"momentum: mask must be a tree of booleans in the structure of the"):
                change(state, mask=mask)
        with pytest.raises(ValueError, match=r"label must be None, as no part of this state has a name, got 'head'; "):
            change(state, label="head")
        with pytest.raises(
            ValueError, match=r"label must be a part with momentum, one of \['fast', 'slow'\], got 'head'; "
        ):
            change(after(partitioned())[1], label="head")
        with pytest.raises(ValueError, match=r"opt_state must be a state with momentum"):
            change(optax.sgd(0.1).init(params), label="head")


def test_a_state_without_leafwise_momentum_refuses_a_mask():
    tx = nagjax.acfgm()
    state = tx.init(START)
    with pytest.raises(ValueError, match=r"opt_state must be one whose velocity can be reset leaf by leaf, got 'Acfgm"):
        nagjax.reset_momentum(state, mask=MASKS["tree"])
