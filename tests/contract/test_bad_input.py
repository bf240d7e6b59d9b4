"""Bad input is refused when an optimizer is built, or at the first step, by a message that names the remedy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from nagjax import conventions, momentum, restart, storage
from tests.catalogue import METHODS, REPRESENTATIVES, over
from tests.contract.support import RATE, finished, trees

NAN, INF = float("nan"), float("inf")
FRACTIONS = {  # function: argument -> what takes a number in [0, 1)
    "momentum.constant: b": momentum.constant,
    "momentum.constant: b ": nagjax.accelerate,
    "momentum.constant: b  ": lambda b: nagjax.nesterov(0.1, b),
    "momentum.heavy_ball: b": momentum.heavy_ball,
    "momentum.quasi_hyperbolic: b": lambda b: momentum.quasi_hyperbolic(b, 0.7),
    "momentum.sutskever: max_momentum": momentum.sutskever,
    "momentum.demon: b": lambda b: momentum.demon(b, 10),
    "momentum.primal_averaging: mu_x": momentum.primal_averaging,
    "momentum.agnes: rho": lambda rho: momentum.agnes(0.1, 0.1, rho),
    "momentum.mass: gamma": lambda gamma: momentum.mass(0.1, 0.0, gamma),
    "momentum.primal_averaging: mu_x ": lambda mu_x: nagjax.primal_averaging(optax.identity(), 0.1, mu_x),
    "pytorch_sgd: momentum": lambda b: conventions.pytorch_sgd(0.1, b),
    "keras_sgd: momentum": lambda b: conventions.keras_sgd(0.1, b),
}
INTERVALS = {  # ... a number in [0, 1]
    "momentum.schedule_free: b": momentum.schedule_free,
    "momentum.primal_averaging: mu_y": lambda b: momentum.primal_averaging(0.9, b),
    "momentum.schedule_free: b ": lambda b: nagjax.schedule_free(optax.identity(), 0.1, b),
    "momentum.quasi_hyperbolic: nu": lambda nu: momentum.quasi_hyperbolic(0.9, nu),
    "pytorch_sgd: dampening": lambda dampening: conventions.pytorch_sgd(0.1, 0.9, dampening),
}
RATES = {  # ... at least 0 and finite
    "nesterov: learning_rate": nagjax.nesterov,
    "nesterov: weight_decay": lambda decay: nagjax.nesterov(0.1, weight_decay=decay),
    "pytorch_sgd: learning_rate": conventions.pytorch_sgd,
    "pytorch_sgd: weight_decay": lambda decay: conventions.pytorch_sgd(0.1, weight_decay=decay),
    "keras_sgd: learning_rate": conventions.keras_sgd,
    "schedule_free: learning_rate": lambda rate: nagjax.schedule_free(optax.identity(), rate),
    "schedule_free: weight_decay": lambda decay: nagjax.schedule_free(optax.identity(), 0.1, weight_decay=decay),
    "primal_averaging: learning_rate": lambda rate: nagjax.primal_averaging(optax.identity(), rate),
    "primal_averaging: weight_decay": lambda decay: nagjax.primal_averaging(optax.identity(), 0.1, weight_decay=decay),
    "momentum.agnes: eta": lambda eta: momentum.agnes(eta, 0.1, 0.9),
    "momentum.agnes: alpha": lambda alpha: momentum.agnes(0.1, alpha, 0.9),
    "momentum.mass: eta_1": lambda eta: momentum.mass(eta, 0.0, 0.9),
    "momentum.mass: eta_2": lambda eta: momentum.mass(10.0, eta, 0.9),
    "agnes: noise": lambda noise: nagjax.agnes(1.0, noise),
    "momentum.schedule_free: learning_rate": lambda rate: momentum.schedule_free(0.9, rate),
    "momentum.schedule_free: weight_power": lambda power: momentum.schedule_free(0.9, weight_power=power),
    "momentum.schedule_free: count_power": lambda power: momentum.schedule_free(0.9, count_power=power),
}
POSITIVE = {  # ... positive and finite
    "fista: step_size": nagjax.fista,
    "ogm: smoothness": nagjax.ogm,
    "triple_momentum: smoothness": lambda smoothness: nagjax.triple_momentum(smoothness, 0.1),
    "triple_momentum: strong_convexity": lambda mu: nagjax.triple_momentum(1.0, mu),
    "item: smoothness": lambda smoothness: nagjax.item(smoothness, 0.1),
    "item: strong_convexity": lambda mu: nagjax.item(1.0, mu),
    "momentum.polynomial: a": momentum.polynomial,
    "agnes: smoothness": lambda smoothness: nagjax.agnes(smoothness, 0.5),
    "mass: smoothness": lambda smoothness: nagjax.mass(smoothness, 0.1, 2.0),
    "mass: strong_convexity": lambda mu: nagjax.mass(1.0, mu, 2.0),
    "momentum.accsgd: condition_number": momentum.accsgd,
    "momentum.accsgd: xi": lambda xi: momentum.accsgd(100.0, xi),
    "momentum.nag_gs: alpha": momentum.nag_gs,
    "momentum.nag_gs: mu": lambda mu: momentum.nag_gs(0.1, mu),
    "momentum.nag_gs: gamma": lambda gamma: momentum.nag_gs(0.1, 1.0, gamma),
}
NUMBERS = {
    "in [0, 1)": (FRACTIONS, [-0.1, 1.0, 1.5, NAN, INF, np.float32(1.5), jnp.float64(-1.0)]),
    "in [0, 1]": (INTERVALS, [-0.1, 1.1, NAN]),
    "at least 0 and finite": (RATES, [-0.1, NAN, INF]),
    "positive and finite": (POSITIVE, [0.0, -1.0, NAN, INF]),
}


def refused(error, place, condition, call, *args):
    """Assert the one form of message: `{function}: {argument} must be {condition}, got {value}; {remedy}.`"""
    with pytest.raises(error, match=rf"^{re.escape(place.strip())} must be {condition}, got .+; .+\.$"):
        call(*args)


@pytest.mark.parametrize(
    ("condition", "place", "build", "value"),
    [
        pytest.param(kind, place, build, value, id=f"{place.strip()}={value!r}")
        for kind, (places, values) in NUMBERS.items()
        for place, build in places.items()
        for value in values
    ],
)
def test_a_number_out_of_its_range_is_refused(condition, place, build, value):
    refused(ValueError, place, re.escape(condition), build, value)
    with pytest.raises(ValueError, match=re.escape(f"got {float(value)!r}" if np.isscalar(value) else "got ")):
        build(value)


@pytest.mark.parametrize("value", ["0.9", None, 1j, [0.9], True], ids=repr)
@pytest.mark.parametrize(("place", "build"), [(p, b) for places, _ in NUMBERS.values() for p, b in places.items()])
def test_what_is_no_number_is_refused(place, build, value):
    refused(TypeError, place, ".+", build, value)


@pytest.mark.parametrize("place", ["momentum.constant: b", "momentum.heavy_ball: b"])
@pytest.mark.parametrize(
    "value", [jnp.array([0.9, 0.8]), np.array([0.9]), jnp.array(0.9j)], ids=["vector", "NumPy", "complex"]
)
def test_an_array_of_numbers_is_refused_with_the_shape_in_words(place, value):
    refused(ValueError, place, r"a real scalar that is in \[0, 1\)", FRACTIONS[place], value)


def test_a_traced_vector_is_refused_where_a_scalar_belongs():
    with pytest.raises(ValueError, match=r"momentum\.constant: b must be a real scalar .*, got .*\[2\].*; "):
        jax.eval_shape(lambda b: nagjax.accelerate(b).init(b), jnp.ones(2))


@pytest.mark.parametrize("places", [places for places, _ in NUMBERS.values()], ids=list(NUMBERS))
def test_traced_numbers_pass(places):
    for build in places.values():
        jax.eval_shape(lambda value, build=build: (build(value), 0)[1], 7.0)


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.5), np.array(0.5), jnp.float32(0.5), 0.999], ids=repr)
def test_good_numbers_of_every_type_pass(value):
    for build in (FRACTIONS | INTERVALS | RATES).values():
        build(value)


@pytest.mark.parametrize(
    ("place", "build"),
    {
        "momentum.strongly_convex": momentum.strongly_convex,
        "momentum.triple_momentum": momentum.triple_momentum,
    }.items(),
)
@pytest.mark.parametrize("value", [0.99, -1.0, NAN, INF])
def test_condition_numbers_below_one_are_refused(place, build, value):
    refused(ValueError, f"{place}: condition_number", "at least 1 and finite", build, value)


def test_the_condition_number_of_item_is_more_than_one():
    refused(ValueError, "momentum.item: condition_number", "more than 1 and finite", momentum.item, 1.0)


@pytest.mark.parametrize("build", [nagjax.triple_momentum, nagjax.item], ids=lambda build: build.__name__)
def test_strong_convexity_above_smoothness_is_refused(build):
    refused(
        ValueError, f"{build.__name__}: strong_convexity", r"(at most|less than) smoothness = 1\.0", build, 1.0, 2.0
    )


@pytest.mark.parametrize(
    ("place", "build", "value"),
    [
        ("momentum.demon: total_steps", lambda value: momentum.demon(0.9, value), 0),
        ("restart.every: period", restart.every, 0),
        ("int8: block_size", storage.int8, 0),
        ("int8: block_size", storage.int8, -4),
        ("int8: seed", lambda seed: storage.int8(seed=seed), -1),
        ("stochastic_rounding: seed", lambda seed: storage.stochastic_rounding(jnp.bfloat16, seed=seed), -1),
    ],
)
def test_integers_out_of_range_are_refused(place, build, value):
    refused(ValueError, place, "an integer of at least [01]", build, value)


@pytest.mark.parametrize("value", [2.5, "3", None, True], ids=repr)
@pytest.mark.parametrize("place", ["restart.every: period", "int8: block_size"])
def test_what_is_no_integer_is_refused(place, value):
    refused(
        TypeError,
        place,
        "an integer of at least 1",
        {"restart.every: period": restart.every}.get(place, storage.int8),
        value,
    )


@pytest.mark.parametrize(
    ("place", "build", "error", "value"),
    [
        ("cast: dtype", storage.cast, ValueError, jnp.int8),
        ("cast: dtype", storage.cast, ValueError, jnp.complex64),
        ("cast: dtype", storage.cast, TypeError, "bfloat17"),
        ("cast: dtype", storage.cast, TypeError, object()),
        ("stochastic_rounding: dtype", storage.stochastic_rounding, ValueError, jnp.float32),
        ("stochastic_rounding: dtype", storage.stochastic_rounding, ValueError, "int8"),
        ("stochastic_rounding: dtype", storage.stochastic_rounding, TypeError, "half a byte"),
    ],
)
def test_unknown_dtypes_of_storage_are_refused(place, build, error, value):
    refused(error, place, "(a real floating dtype|bfloat16 or float16)", build, value)


@pytest.mark.parametrize(
    ("fn", "found"),
    [
        (lambda k: jnp.full(2, 0.9), r"float64\[2\]"),
        (lambda k: 0.9j, r"complex128\[\]"),
        (lambda k: k > 3, r"bool\[\]"),
    ],
    ids=["shape", "complex", "bool"],
)
@pytest.mark.parametrize("place", ["momentum.schedule", "learning_rate", "pytorch_sgd", "momentum.schedule_free"])
def test_a_schedule_that_returns_no_real_scalar_is_refused_at_the_first_step(place, fn, found):
    tx = {
        "momentum.schedule": nagjax.accelerate,
        "learning_rate": nagjax.nesterov,
        "pytorch_sgd": conventions.pytorch_sgd,
        "momentum.schedule_free": lambda fn: nagjax.accelerate(momentum.schedule_free(0.9, fn)),
    }[place](fn)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(place)}: .*must be .*one real number, got '?{found}.*; return a scalar\.$"
    ):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3))


def test_a_schedule_that_is_no_function_is_refused():
    refused(TypeError, "momentum.schedule: fn", "a function of the count", momentum.schedule, 0.9)


@pytest.mark.parametrize("method", REPRESENTATIVES, ids=lambda method: method.name)
@pytest.mark.parametrize(
    "leaf", [jnp.arange(3), jnp.ones(3, bool), np.arange(3, dtype=np.uint8)], ids=["int", "bool", "uint8"]
)
def test_integer_parameters_are_refused_with_their_place_in_the_tree(method, leaf):
    with pytest.raises(
        TypeError,
        match=r"params must be floating-point or complex, got .*(int|bool).* at params\['b'\]\[0\].*optax\.masked",
    ):
        method.make(RATE).init({"a": jnp.ones(2), "b": [leaf]})


WRONG = {
    "missing leaf": {"matrix": jnp.ones((3, 5))},
    "another container": {"matrix": jnp.ones((3, 5)), "nest": [jnp.ones(7), jnp.ones(())]},
    "more leaves": trees() | {"more": jnp.ones(2)},
    "a bare array": jnp.ones((3, 5)),
}


@pytest.mark.parametrize("wrong", WRONG)
@over(REPRESENTATIVES)
def test_updates_of_another_structure_than_the_parameters_are_refused(method, wrong):
    tx, _, state = finished(method)
    with pytest.raises(
        ValueError,
        match=r"^(accelerate|pytorch_sgd): updates must be of the structure .*; pass gradients of the parameters",
    ):
        tx.update(WRONG[wrong], state, WRONG[wrong], value=jnp.float32(0))


@pytest.mark.parametrize("shape", [(5, 3), (15,), (), (1, 5), (3, 5, 1)], ids=str)
@over(REPRESENTATIVES)
def test_updates_of_another_shape_than_the_parameters_are_refused(method, shape):
    tx, params, state = finished(method)
    wrong = params | {"matrix": jnp.ones(shape)}
    with pytest.raises(
        ValueError,
        match=r"^(accelerate|pytorch_sgd): updates must be of shape \(3, 5\) here, got " + re.escape(str(shape)),
    ):
        tx.update(wrong, state, wrong, value=jnp.float32(0))


def test_updates_of_another_kind_of_number_than_the_parameters_are_refused():
    tx = nagjax.accelerate(0.9)
    with pytest.raises((TypeError, ValueError), match=r"accelerate: updates must be"):
        tx.update(jnp.ones(3, jnp.complex64), tx.init(jnp.ones(3, jnp.float32)))


@pytest.mark.parametrize("kept", [storage.full(), storage.int8()], ids=["full", "int8"])
def test_real_updates_of_complex_parameters_are_refused(kept):
    """They would lose the imaginary part of the velocity."""
    tx = nagjax.accelerate(0.9, storage=kept)
    with pytest.raises((TypeError, ValueError), match=r"^accelerate: updates must be .*complex"):
        tx.update(jnp.ones(3, jnp.float32), tx.init(jnp.ones(3, jnp.complex64)))


@pytest.mark.parametrize(
    "build",
    [
        lambda: nagjax.nesterov(0.1, weight_decay=0.01),
        lambda: conventions.pytorch_sgd(0.1, weight_decay=0.01),
    ],
)
def test_weight_decay_without_params_is_refused(build):
    tx = build()
    with pytest.raises(
        ValueError, match=r"params must be passed to update, got None; .*update\(gradients, state, params\)"
    ):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


def test_a_value_restart_without_value_is_refused():
    tx = nagjax.accelerate(0.9, restart=restart.value())
    state = tx.init(jnp.ones(3))
    with pytest.raises(
        ValueError,
        match=r"^restart\.value: value must be given to every update, got None; pass `value=loss` to `update`\.$",
    ):
        tx.update(jnp.ones(3), state)
    with pytest.raises(ValueError, match=r"^restart\.value: value must be a scalar, got .*; pass the mean"):
        tx.update(jnp.ones(3), state, value=jnp.ones(2))


@pytest.mark.parametrize(
    "rule",
    [momentum.heavy_ball(0.9), momentum.ogm(), momentum.schedule_free()],
    ids=["heavy ball", "ogm", "schedule_free"],
)
def test_a_speed_restart_of_a_rule_that_is_not_nesterovs_is_refused(rule):
    with pytest.raises(
        ValueError, match=r"^accelerate: momentum must be a rule of Nesterov's form.*; use restart\.gradient\(\)\.$"
    ):
        nagjax.accelerate(rule, restart=restart.speed())


def test_pytorch_nesterov_needs_momentum_and_no_dampening():
    refused(
        ValueError,
        "pytorch_sgd: dampening",
        "0 with nesterov=True",
        lambda: conventions.pytorch_sgd(0.1, 0.9, 0.5, nesterov=True),
    )
    refused(
        ValueError,
        "pytorch_sgd: momentum",
        "positive with nesterov=True",
        lambda: conventions.pytorch_sgd(0.1, nesterov=True),
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda state: nagjax.eval_params(trees(), state),
        nagjax.velocity,
        nagjax.reset_momentum,
    ],
    ids=["eval_params", "velocity", "reset_momentum"],
)
@pytest.mark.parametrize("tx", [optax.sgd(0.1), optax.adam(0.1), optax.identity()], ids=["sgd", "adam", "identity"])
def test_a_state_without_momentum_is_refused(function, tx):
    with pytest.raises(
        ValueError,
        match=r"^(eval_params|velocity|reset_momentum): opt_state must be a state .*; pass .* with nagjax\.accelerate",
    ):
        function(tx.init(trees()))


@over(REPRESENTATIVES)
def test_parameters_of_another_model_are_refused_by_eval_params(method):
    _, params, state = finished(method)
    for wrong in {"matrix": params["matrix"]}, params | {"matrix": params["matrix"].T}, jnp.ones(7):
        with pytest.raises(ValueError, match=r"^eval_params: params must be .*; pass the tree that `init` received\.$"):
            nagjax.eval_params(wrong, state)


def test_a_tree_with_the_state_of_one_array_is_refused_by_eval_params():
    state = nagjax.nesterov(RATE).init(jnp.ones(5))
    with pytest.raises(ValueError, match=r"^eval_params: params must be .*; pass the tree that `init` received\.$"):
        nagjax.eval_params({"a": jnp.ones(2), "b": jnp.ones(3)}, state)


@over(METHODS)
def test_swapped_arguments_of_eval_params_are_refused(method):
    _, params, state = finished(method)
    with pytest.raises(ValueError, match=r"^eval_params: opt_state must be a state that has an answer"):
        nagjax.eval_params(state, params)


@pytest.mark.parametrize("make", [nagjax.schedule_free, nagjax.primal_averaging])
@pytest.mark.parametrize("base", [0.1, None, optax.sgd, "sgd"], ids=["number", "None", "factory", "name"])
def test_a_base_that_is_no_transformation_is_refused(make, base):
    refused(TypeError, f"{make.__name__}: base", "an Optax gradient transformation", make, base, 0.1)


def test_what_a_range_does_not_say_is_refused_too():
    refused(
        TypeError,
        "schedule_free: warmup_steps",
        ".+",
        lambda: nagjax.schedule_free(optax.identity(), 0.1, warmup_steps=0.5),
    )
    refused(
        ValueError,
        "schedule_free: warmup_steps",
        ".+",
        lambda: nagjax.schedule_free(optax.identity(), 0.1, warmup_steps=-1),
    )
    refused(
        ValueError,
        "primal_averaging: mu_y",
        "above 0 where z decays",
        lambda: nagjax.primal_averaging(optax.identity(), 0.1, 0.9, 0.0, weight_decay=0.1),
    )
    refused(ValueError, "mass: statistical_condition_number", "at least 1 and finite", nagjax.mass, 1.0, 0.1, 0.5)
    bound = r"at most smoothness / strong_convexity = 10\.0"
    refused(ValueError, "mass: statistical_condition_number", bound, nagjax.mass, 1.0, 0.1, 1000.0)
    nagjax.mass(1.0, 0.1, jnp.float32(10.0))
    refused(ValueError, "momentum.mass: eta_2", r"at most gamma eta_1 = 0\.05", momentum.mass, 0.1, 0.5, 0.5)
    momentum.mass(0.1, lambda k: 0.5, 0.5)
    for convexity in 0.0, -1.0, 2.0:
        refused(ValueError, "agnes: strong_convexity", ".+", nagjax.agnes, 1.0, 0.1, convexity)
    refused(ValueError, "momentum.accsgd: c", ".+", momentum.accsgd, 100.0, 5.0, 1.5)
    refused(ValueError, "momentum.srsgd: period", ".+", momentum.srsgd, 0)
    refused(TypeError, "momentum.srsgd: period", ".+", momentum.srsgd, 2.5)


def test_a_warm_up_of_no_whole_number_of_steps_is_refused_as_an_array_too():
    for value in jnp.float32(2.5), jnp.int32(-1):
        place, condition = "schedule_free: warmup_steps", "an integer of at least 0"
        refused(
            ValueError,
            place,
            condition,
            lambda value=value: nagjax.schedule_free(optax.identity(), 0.1, warmup_steps=value),
        )


def test_decay_of_the_fast_point_asks_for_params():
    tx = nagjax.primal_averaging(optax.identity(), 0.1, weight_decay=0.1)
    refused(ValueError, "primal_averaging: params", "passed to update", tx.update, jnp.ones(2), tx.init(jnp.ones(2)))


def test_decay_of_the_fast_point_refuses_params_that_do_not_fit():
    tx, params = nagjax.primal_averaging(optax.identity(), 0.1, weight_decay=0.1), {"a": jnp.ones(2)}
    for wrong in {"a": jnp.ones(3)}, {"b": jnp.ones(2)}:
        refused(ValueError, "primal_averaging: updates", ".+", tx.update, params, tx.init(params), wrong)


def test_updates_in_sixteen_bits_ask_for_params():
    tx, params = nagjax.schedule_free(optax.identity(), 0.1), jnp.ones(2, jnp.bfloat16)
    refused(ValueError, "compensate: params", "passed to update", tx.update, params, tx.init(params))


def test_compensation_refuses_what_is_not_like_its_parameters():
    tx, params = nagjax.compensate(), {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)}
    state = tx.init(params)
    for wrong in {"a": params["a"]}, params | {"c": jnp.ones(1)}, list(params.values()):
        structure = r"of the structure PyTreeDef.*"
        refused(ValueError, "compensate: updates", structure, tx.update, wrong, state, params)
        refused(ValueError, "compensate: params", structure, tx.update, params, state, wrong)
    wrong = params | {"a": jnp.ones(1, jnp.bfloat16)}
    refused(ValueError, "compensate: updates", r"of shape \(3,\) here", tx.update, wrong, state, params)
    refused(ValueError, "compensate: params", r"of shape \(3,\) here", tx.update, params, state, wrong)
    for leaf in jnp.ones(3, jnp.int8), jnp.arange(3):
        refused(TypeError, "compensate: params", "floating-point or complex", tx.init, {"a": leaf})


def test_compensation_takes_python_numbers_and_lacking_leaves():
    tx, params = nagjax.compensate(), {"a": jnp.ones(3, jnp.bfloat16), "b": 1.0}
    updates, state = tx.update({"a": None, "b": 0.5}, tx.init(params), params)
    assert updates["a"] is None
    assert updates["b"] == 0.5
    updates, _ = tx.update({"a": jnp.full(3, 0.5, jnp.bfloat16), "b": 0.5}, state, params)
    assert updates["a"].dtype == jnp.bfloat16
    assert jnp.all(updates["a"] == 0.5)
