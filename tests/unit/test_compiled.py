"""Many steps a call and whole epochs are the single steps one after another; prefetching loses no place."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nagjax
from nagjax.training import DeviceData, TrainStep, compiled, compiled_epoch, prefetch
from nagjax.training.convolutions import slow_in_loops

ROWS, BATCH = 23, 5  # 4 batches an epoch, 3 rows left over


def loss(params, batch):
    return jnp.mean((params["w"] - batch) ** 2), {"first": batch.reshape(-1)[0]}


def step():
    return TrainStep({"w": jnp.zeros(())}, loss, nagjax.nesterov(0.05))


def rows():
    return jnp.arange(float(ROWS)) ** 1.5


def one_by_one(batches):
    train, state, metrics = compiled(step()), step().init(), None
    for batch in batches:
        state, metrics = train(state, batch, metrics)
    return state, metrics


def test_many_steps_a_call_are_the_single_steps():
    batches = rows()[:20].reshape(4, 5)
    state, metrics = compiled(step(), steps_per_call=4)(step().init(), batches)
    expected, sums = one_by_one(batches)
    chex.assert_trees_all_close((state, metrics), (expected, sums), rtol=1e-14)
    assert int(metrics.steps) == 4


@pytest.mark.parametrize("count", [1, 3, 4])
def test_an_epoch_takes_the_batches_of_its_order_also_across_its_end(count):
    data = DeviceData(rows(), BATCH, seed=7)
    epoch, state, metrics = compiled_epoch(step(), data, steps=count), step().init(), None
    for _ in range(12 // count):
        state, metrics = epoch(state, metrics)
    order = np.concatenate([data.order(number) for number in range(3)])
    expected, sums = one_by_one(rows()[order])
    chex.assert_trees_all_close(state, expected, rtol=1e-13)
    assert metrics.means() == pytest.approx(sums.means(), rel=1e-13)


def test_the_order_is_drawn_anew_in_every_epoch_and_again_for_the_same_seed():
    data = DeviceData(rows(), BATCH, seed=7)
    assert data.steps_per_epoch == 4
    orders = np.stack([data.order(number).ravel() for number in range(40)])
    assert all(len(set(order)) == 20 and set(order) <= set(range(ROWS)) for order in orders.tolist())
    assert len({tuple(order) for order in orders.tolist()}) == 40
    assert set(orders.ravel().tolist()) == set(range(ROWS))  # the rows left over are other ones each time
    np.testing.assert_array_equal(orders[5], DeviceData(rows(), BATCH, seed=7).order(5).ravel())
    assert not np.array_equal(orders[5], DeviceData(rows(), BATCH, seed=8).order(5).ravel())


def test_augmentation_has_a_key_of_its_own_in_every_step():
    def noisy(key, batch):
        return batch + 1000 * jax.random.uniform(key, ())

    data = DeviceData(jnp.zeros(8), 2, seed=1, augment=noisy)
    firsts = []
    epoch, state = compiled_epoch(step(), data, steps=1), step().init()
    for _ in range(8):
        state, metrics = epoch(state)
        firsts.append(metrics.means()["first"])
    assert len(set(firsts)) == 8
    other = compiled_epoch(step(), data, steps=4)
    _, metrics = other(step().init())
    assert metrics.means()["first"] == pytest.approx(np.mean(firsts[:4]), rel=1e-12)


def test_the_state_given_is_used_up_or_kept_as_asked():
    batch = rows()[:4]
    for donate in (True, False):
        state = step().init()
        compiled(step(), donate=donate)(state, batch)
        assert state.params["w"].is_deleted() is donate


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at most the number of examples"):
        DeviceData(rows(), ROWS + 1)
    with pytest.raises(ValueError, match="arrays must be a tree of arrays with the same number of examples"):
        DeviceData((jnp.zeros(3), jnp.zeros(4)), 1)
    with pytest.raises(ValueError, match="arrays must be a tree of arrays with the same number of examples"):
        DeviceData((), 1)
    with pytest.raises(ValueError, match="steps must be at most the steps of an epoch = 4"):
        compiled_epoch(step(), DeviceData(rows(), BATCH), steps=5)
    with pytest.raises(ValueError, match="batch must be a tree of stacks of steps_per_call = 4 batches"):
        compiled(step(), steps_per_call=4)(step().init(), jnp.zeros((3, 2)))
    with pytest.raises(TypeError, match="steps_per_call must be an integer"):
        compiled(step(), steps_per_call=1.5)


def convolution(params, batch):
    images = batch.reshape(-1, 1, 2, 2)
    kernel = params["w"].reshape(1, 1, 1, 1)
    return jnp.mean((jax.lax.conv(images, kernel, (1, 1), "VALID") - 1) ** 2)


def test_convolutions_are_found_at_any_depth():
    def nested(params, batch):
        def looped(carry, part):
            return carry + jax.lax.cond(carry > 0, lambda: jax.jit(convolution)(params, part), lambda: 0.0), None

        return jax.lax.scan(looped, jnp.zeros(()), batch[None])[0]

    arguments = {"w": jnp.ones(())}, jnp.ones(4)
    assert slow_in_loops(jax.make_jaxpr(jax.grad(convolution))(*arguments))
    assert slow_in_loops(jax.make_jaxpr(jax.checkpoint(nested))(*arguments))
    assert not slow_in_loops(jax.make_jaxpr(jax.grad(lambda *given: loss(*given)[0]))(*arguments))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_with_convolutions_are_the_same_without_a_loop(accumulate):
    images = jnp.sin(rows())[:20].reshape(5, 4)
    step = TrainStep({"w": jnp.zeros(())}, convolution, nagjax.nesterov(0.05), accumulate=accumulate)
    data = DeviceData(images, 2, seed=3)
    state, metrics = compiled_epoch(step, data)(step.init())
    expected, sums = step.init(), []
    for order in data.order(0):
        expected, value = step(expected, images[order])
        sums.append(float(value["loss"]))
    chex.assert_trees_all_close(state, expected, rtol=1e-12)
    assert metrics.means()["loss"] == pytest.approx(np.mean(sums), rel=1e-12)
    again, _ = compiled(step, steps_per_call=2)(step.init(), images[data.order(0)])
    chex.assert_trees_all_close(again, expected, rtol=1e-12)


class Counting:
    """An iterator with a state, as Grain's have; its buffer is used again for every batch."""

    def __init__(self, stop):
        self.at, self.stop, self.buffer = 0, stop, np.zeros(2)

    def __iter__(self):
        return self

    def __next__(self):
        if self.at == self.stop:
            raise StopIteration
        self.buffer[:] = self.at
        self.at += 1
        return self.buffer

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


@pytest.mark.parametrize("size", [1, 2, 5, 20])
def test_prefetched_batches_are_the_batches_though_their_buffer_is_reused(size):
    source = Counting(9)
    ahead = prefetch(source, size)
    assert ahead.get_state() == {"at": 0}
    first = next(ahead)
    assert source.at == min(size, 9)  # no more than asked for
    assert ahead.get_state() == {"at": 1}
    assert [float(batch[0]) for batch in [first, *ahead]] == list(range(9))


def test_a_prefetching_iterator_continues_after_the_batch_handed_out_last():
    ahead = prefetch(Counting(9), 4)
    for _ in range(3):
        next(ahead)
    state = ahead.get_state()
    rest = [float(batch[0]) for batch in ahead]
    again = prefetch(Counting(9), 4)
    next(again)
    again.set_state(state)
    assert [float(batch[0]) for batch in again] == rest == [3, 4, 5, 6, 7, 8]
    with pytest.raises(ValueError, match="batches must be an iterator with set_state"):
        prefetch([np.zeros(2)]).set_state({})
