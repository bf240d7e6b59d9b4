"""Schedules of momentum that go with a schedule of the learning rate."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from nagjax import schedules


def torch_one_cycle(total, peak, low=0.85, high=0.95, share=0.3, start=25.0, end=1e4):
    """The rates and momenta of OneCycleLR as PyTorch's documentation describes them, with its default annealing."""

    def cosine(a, b, q):
        return b + (a - b) * (1 + math.cos(math.pi * q)) / 2

    turn, last = share * total - 1, total - 1
    rates, momenta = [], []
    for t in range(total):
        if t <= turn:
            rates.append(cosine(peak / start, peak, t / turn))
            momenta.append(cosine(high, low, t / turn))
        else:
            rates.append(cosine(peak, peak / start / end, (t - turn) / (last - turn)))
            momenta.append(cosine(low, high, (t - turn) / (last - turn)))
    return np.array(rates), np.array(momenta)


@pytest.mark.parametrize(("total", "options"), [(100, {}), (37, {"low": 0.7, "high": 0.98}), (10, {})])
def test_one_cycle_is_torchs(total, options):
    cycle = schedules.one_cycle(total, 0.4, **options)
    rates, momenta = torch_one_cycle(total, 0.4, **options)
    np.testing.assert_allclose([cycle.learning_rate(jnp.int32(t)) for t in range(total)], rates, atol=1e-14)
    np.testing.assert_allclose([cycle.momentum(jnp.int32(t)) for t in range(total)], momenta, atol=1e-14)
    np.testing.assert_allclose(cycle.learning_rate(jnp.int32(10**9)), rates[-1], atol=1e-14)


def test_one_cycle_equals_torch_where_it_is_installed():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9, nesterov=True)
    policy = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=50)
    cycle = schedules.one_cycle(50, 0.4)
    for t in range(50):
        group = optimizer.param_groups[0]
        np.testing.assert_allclose(cycle.learning_rate(t), group["lr"], rtol=1e-12)
        np.testing.assert_allclose(cycle.momentum(t), group["momentum"], rtol=1e-12)
        optimizer.step()
        if t < 49:
            policy.step()


def test_a_cycle_whose_rising_part_is_one_update_starts_at_its_peak():
    cycle = schedules.one_cycle(4, 1.0, warm_up=0.25)
    np.testing.assert_allclose([cycle.learning_rate(0), cycle.momentum(0)], [1 / 25, 0.95])
    assert np.isfinite(cycle.learning_rate(1))


def test_the_opposite_of_a_cyclical_rate_is_its_mirror_image():
    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, 0.5, 10), optax.linear_schedule(0.5, 0.0, 10)], boundaries=[10]
    )
    momentum = schedules.opposite(rate, 0.5, low=0.8, high=0.9)
    expected = [0.9 - 0.1 * (k if k <= 10 else 20 - k) / 10 for k in range(21)]
    np.testing.assert_allclose([momentum(jnp.int32(k)) for k in range(21)], expected, rtol=1e-6)
    beyond = schedules.opposite(lambda _: 2.0, 0.5, low=0.8, high=0.9)
    np.testing.assert_allclose(beyond(0), 0.8)


def test_the_second_index_of_the_momentum_is_that_of_the_next_rate():
    """Update k decays with b_k and looks ahead with b_{k+1}."""
    cycle = schedules.one_cycle(10, 0.4)
    tx = nagjax.nesterov(cycle.learning_rate, cycle.momentum)
    params = jnp.ones(())
    state = tx.init(params)
    velocity = 0.0
    for k in range(10):
        updates, state = tx.update(params, state, params)
        velocity = cycle.momentum(k) * velocity - cycle.learning_rate(k) * params
        np.testing.assert_allclose(updates, -cycle.learning_rate(k) * params + cycle.momentum(k + 1) * velocity)
        params = params + updates


@pytest.mark.parametrize(
    ("argument", "value", "condition"),
    [
        ("total_steps", 1, "an integer of at least 2"),
        ("peak", 0.0, "positive and finite"),
        ("warm_up", 1.0, r"in \(0, 1\)"),
        ("start_divisor", -1.0, "positive and finite"),
        ("end_divisor", float("nan"), "positive and finite"),
        ("low", 1.0, r"in \[0, 1\)"),
        ("high", -0.1, r"in \[0, 1\)"),
    ],
)
def test_bad_cycles_are_refused(argument, value, condition):
    arguments = {"total_steps": 10, "peak": 1.0} | {argument: value}
    with pytest.raises(ValueError, match=rf"schedules.one_cycle: {argument} must be {condition}, got .*; "):
        schedules.one_cycle(**arguments)


def test_bad_opposites_are_refused():
    with pytest.raises(
        TypeError, match=r"schedules.opposite: learning_rate must be a function of the count, got 0.1; "
    ):
        schedules.opposite(0.1, 0.5)
    with pytest.raises(ValueError, match=r"schedules.opposite: peak must be positive and finite"):
        schedules.opposite(lambda k: 0.1, 0.0)


@pytest.mark.parametrize(
    ("place", "build"),
    [
        ("one_cycle", lambda low, high: schedules.one_cycle(10, 1.0, low=low, high=high)),
        ("opposite", lambda low, high: schedules.opposite(lambda k: 0.1, 1.0, low, high)),
    ],
)
def test_swapped_momenta_are_refused(place, build):
    with pytest.raises(ValueError, match=rf"^schedules.{place}: low must be at most high = 0.85, got 0.95; .*high\.$"):
        build(0.95, 0.85)
    build(0.9, 0.9)
    jax.eval_shape(lambda low, high: (build(low, high), 0)[1], 0.95, 0.85)
