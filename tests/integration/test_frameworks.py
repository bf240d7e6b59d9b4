"""The conventions of PyTorch and Keras, step for step: against numbers that they recorded, and against torch itself.

The recorded numbers are the parameters and the buffer after six updates in float64, from START with the gradient
CURVATURE * y + SLOPE. PyTorch 2.13.0 (CPU)::

    y = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([y], lr=rates[0], **options)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        y.grad = torch.tensor(CURVATURE, dtype=torch.float64) * y.detach() + torch.tensor(SLOPE, dtype=torch.float64)
        optimizer.step()
    print(y.detach().tolist(), optimizer.state[y].get("momentum_buffer"))

Keras 3.15.1 (KERAS_BACKEND=jax, JAX_ENABLE_X64=1)::

    keras.config.set_floatx("float64")
    y = keras.Variable(START, dtype="float64")
    optimizer = keras.optimizers.SGD(rates[0], **options)
    optimizer.build([y])
    for rate in rates:
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(np.array(CURVATURE) * np.array(y) + SLOPE)])
    print(np.array(y).tolist(), np.array(optimizer.momentums[0]).tolist())
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from nagjax import conventions

START, CURVATURE, SLOPE = [1.0, -2.0, 0.5], [1.0, 0.1, 3.0], [0.5, -1.0, 2.0]
CONSTANT, CHANGING = [0.1] * 6, [0.1, 0.05, 0.2, 0.0, 0.1, 0.15]
PLAIN, HEAVY, NESTEROV = {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}

# fmt: off
TORCH = [  # rates, options, parameters, momentum buffer
    (CONSTANT, PLAIN, [0.2971615, -1.2977617928119998, -0.5294095], None),
    (CONSTANT, HEAVY, [-0.8849120000000001, 0.0689124405879999, -1.4445160000000001],
     [3.41172, -5.28520751388, -1.3014400000000008]),
    (CONSTANT, NESTEROV, [-0.8823258298535, 0.5045774373381837, -0.8929640807845],
     [2.67933951765, -5.169485617619282, -0.6420212774500006]),
    (CONSTANT, {"momentum": 0.9, "dampening": 0.5}, [-0.3800115781250002, -0.675364351250375, -1.562498046875],
     [2.5953876562500002, -3.04671440174625, 1.4411523437499998]),
    (CONSTANT, {"weight_decay": 0.1}, [0.26833642321600004, -1.2008966660480003, -0.5215775874395], None),
    (CONSTANT, {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
     [-0.6319351391032414, 0.2971497041506837, -0.7978010560619853],
     [2.0457998792704517, -4.367095774291354, -0.4954312459005269]),
    (CONSTANT, {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
     [-0.41281552107096686, -0.4329646133367674, -1.2486324362988592],
     [2.2826566149640684, -3.392482273489926, 0.050911229654042746]),
    (CONSTANT, NESTEROV | {"maximize": True}, [6.595163698496499, -4.793495548692086, 33.68746197736551],
     [-14.806359247349999, 6.10312632108192, -110.44392786245001]),
    (CONSTANT, {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1, "maximize": True},
     [3.718349882342421, -3.520087, 11.473014273469017], [-8.287954971545805, 3.8665700000000003, -43.13558998078296]),
    (CHANGING, HEAVY, [-0.939587, 0.14590050832, -1.267255],
     [3.5866799999999994, -5.3129621088, -1.8613000000000013]),
    (CHANGING, NESTEROV, [-0.9375362610350001, 0.5774729658139739, -0.6721702381900002],
     [2.753592651, -5.202940016668681, -1.9944682659999993]),
    (CHANGING, NESTEROV | {"weight_decay": 0.1}, [-0.9455528440126747, 0.8503248417145379, -0.6064865104702725],
     [2.5969358770718403, -5.601972729951361, -2.164199789418254]),
]
KERAS = [  # rates, options, parameters, velocity
    (CONSTANT, PLAIN, [0.29716149999999997, -1.2977617928119998, -0.5294095], None),
    (CONSTANT, HEAVY, [-0.8849120000000001, 0.068912440588, -1.444516],
     [-0.3411720000000001, 0.528520751388, 0.1301440000000001]),
    (CONSTANT, NESTEROV, [-0.8823258298535004, 0.5045774373381834, -0.8929640807845001],
     [-0.26793395176500007, 0.5169485617619282, 0.06420212774500003]),
    (CHANGING, PLAIN, [0.28489, -1.2963209281999999, -0.5597650000000001], None),
    (CHANGING, HEAVY, [-0.8371625, -0.02184841807999971, -1.48846375],
     [-0.3323025, 0.53782738992, 0.24226125000000012]),
    (CHANGING, NESTEROV, [-0.8646432229850002, 0.4289375511716341, -0.8515998262900001],
     [-0.26140653315, 0.5271572089177021, 0.14128008090000005]),
]
# fmt: on


def gradient(y):
    return jnp.array(CURVATURE) * y + jnp.array(SLOPE)


def slopes(queries):
    """The gradient at many points, in NumPy."""
    return np.array(CURVATURE) * queries + np.array(SLOPE)


def follow(tx, steps, start=START, slope=gradient):
    """All parameters and answers of a run, and its last state."""

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(slope(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, nagjax.eval_params(params, state))

    start = jnp.array(start)
    (_, state), run = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=steps))(start)
    return *run, state


def schedule(rates):
    return lambda count: jnp.array(rates)[count]


def named(rows):
    return [pytest.param(*row, id=f"{'changing' if row[0] is CHANGING else 'constant'} {row[1]}") for row in rows]


@pytest.mark.parametrize(("rates", "options", "params", "buffer"), named(TORCH))
def test_pytorch_sgd_ends_at_the_numbers_that_torch_recorded(rates, options, params, buffer):
    run, _, state = follow(conventions.pytorch_sgd(schedule(rates), **options), len(rates))
    np.testing.assert_allclose(run[-1], params, rtol=1e-14)
    if buffer is not None:
        np.testing.assert_allclose(nagjax.velocity(state), buffer, rtol=1e-14)


@pytest.mark.parametrize(("rates", "options", "params", "velocity"), named(KERAS))
def test_keras_sgd_ends_at_the_numbers_that_keras_recorded(rates, options, params, velocity):
    run, _, state = follow(conventions.keras_sgd(schedule(rates), **options), len(rates))
    np.testing.assert_allclose(run[-1], params, rtol=1e-14)
    if velocity is not None:
        np.testing.assert_allclose(nagjax.velocity(state), velocity, rtol=1e-14)


@pytest.mark.parametrize("rates", [CONSTANT, CHANGING], ids=["constant", "changing"])
def test_the_answer_of_keras_is_the_step_from_the_query_point(rates):
    """The textbook's x_{k+1} = y_k - s_k f'(y_k), under any rates."""
    run, answers, _ = follow(conventions.keras_sgd(schedule(rates), **NESTEROV), len(rates))
    queries = np.vstack([START, run[:-1]])
    np.testing.assert_allclose(answers, queries - np.array(rates)[:, None] * slopes(queries), rtol=1e-14)


def test_the_answer_of_pytorch_is_the_step_from_the_query_point():
    run, answers, _ = follow(conventions.pytorch_sgd(0.1, **NESTEROV), 6)
    queries = np.vstack([START, run[:-1]])
    np.testing.assert_allclose(answers, queries - 0.1 * slopes(queries), rtol=1e-14)


@pytest.mark.parametrize("options", [HEAVY, NESTEROV, {"momentum": 0.9, "dampening": 0.5}], ids=str)
def test_the_answer_without_nesterov_is_params_and_with_it_is_behind_them_by_the_last_rate(options):
    run, answers, state = follow(conventions.pytorch_sgd(schedule(CHANGING), **options), len(CHANGING))
    behind = CHANGING[-1] * 0.9 * nagjax.velocity(state) if "nesterov" in options else 0
    np.testing.assert_allclose(answers[-1], run[-1] + behind, rtol=1e-14)


def test_a_jump_of_the_rate_from_a_to_b_parts_the_frameworks_by_its_size_times_the_squared_momentum_times_the_buffer():
    rates = [0.1, 0.1, 0.1, 0.25]
    torch, _, before = follow(conventions.pytorch_sgd(schedule(rates), **NESTEROV), 3)
    keras, _, _ = follow(conventions.keras_sgd(schedule(rates), **NESTEROV), 3)
    np.testing.assert_allclose(torch, keras, rtol=1e-14)
    torch, _, _ = follow(conventions.pytorch_sgd(schedule(rates), **NESTEROV), 4)
    keras, _, _ = follow(conventions.keras_sgd(schedule(rates), **NESTEROV), 4)
    np.testing.assert_allclose(torch[-1] - keras[-1], -(0.25 - 0.1) * 0.9**2 * nagjax.velocity(before), rtol=1e-13)


OPTIONS = [
    *(options for rates, options, *_ in TORCH if rates is CONSTANT),
    {"momentum": 0.99, "nesterov": True},
    {"momentum": 0.5, "dampening": 1.0},
]


@pytest.mark.parametrize("changing", [False, True], ids=["constant", "changing"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pytorch_sgd_makes_the_steps_of_torch(options, changing):
    """Where torch is installed: 30 steps on a quadratic in 5 dimensions, and the buffer."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, factor = rng.normal(size=5), rng.normal(size=(5, 5))
    hessian = factor @ factor.T / np.trace(factor @ factor.T)
    rates = rng.uniform(0, 0.3, size=30) if changing else np.full(30, 0.2)

    theirs = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.SGD([theirs], lr=rates[0], **options)
    expected = []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (theirs @ torch.tensor(hessian) @ theirs / 2).backward()
        optimizer.step()
        expected.append(theirs.detach().numpy().copy())

    run, _, state = follow(
        conventions.pytorch_sgd(schedule(rates), **options), 30, start, lambda y: jnp.array(hessian) @ y
    )
    np.testing.assert_allclose(run, expected, rtol=1e-12, atol=1e-12)
    if options.get("momentum"):
        np.testing.assert_allclose(nagjax.velocity(state), optimizer.state[theirs]["momentum_buffer"], atol=1e-12)


def test_optax_sgd_is_pytorch_sgd_under_constant_and_changing_rates():
    for options in HEAVY, NESTEROV:
        ours, _, _ = follow(conventions.pytorch_sgd(schedule(CHANGING), **options), len(CHANGING))
        params = jnp.array(START)
        tx = optax.chain(optax.trace(0.9, options.get("nesterov", False)), optax.scale_by_schedule(schedule(CHANGING)))
        state = tx.init(params)
        for expected in ours:
            updates, state = tx.update(gradient(params), state)
            params = params - updates
            np.testing.assert_allclose(params, expected, rtol=1e-14)
