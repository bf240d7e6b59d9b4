"""Data parallel training over eight devices makes the steps of one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from nagjax import restart, storage

DEVICES, STEPS = 8, 20
METHODS = {
    "nesterov": nagjax.nesterov(0.3, 0.9),
    "gradient restart": nagjax.fista(1.0, restart=restart.gradient()),
    "int8": nagjax.nesterov(0.3, 0.9, storage=storage.int8()),
    "pytorch": nagjax.conventions.pytorch_sgd(0.3, 0.9, nesterov=True),
}


def data():
    """A least-squares problem of 64 rows that is 1-smooth, and its start."""
    rng = np.random.default_rng(0)
    features, noise = rng.normal(size=(64, 6)) * np.geomspace(1, 0.5, 6), rng.normal(size=64)
    features = features / np.linalg.norm(features, 2) * np.sqrt(len(features))
    return jnp.asarray(features), jnp.asarray(features @ np.ones(6) + 0.1 * noise)


def loss(params, batch):
    features, targets = batch
    return jnp.mean((features @ params["weights"] + params["bias"] - targets) ** 2) / 2


def training(tx, mean=lambda tree: tree):
    """Twenty full-batch steps; `mean` averages gradients over workers. Also the updates since the last restart."""

    def train(params, state, batch):
        def body(carry, _):
            params, state = carry
            updates, state = tx.update(mean(jax.grad(loss)(params, batch)), state, params)
            return (optax.apply_updates(params, updates), state), optax.tree_utils.tree_get(state, "age")

        return jax.lax.scan(body, (params, state), length=STEPS)

    return train


def shard(batch):
    return jax.tree.map(lambda leaf: leaf.reshape(DEVICES, -1, *leaf.shape[1:]), batch)


@pytest.mark.parametrize("name", METHODS)
def test_pmap_over_eight_devices_makes_the_steps_of_one_device(name):
    tx = METHODS[name]
    params = {"weights": jnp.zeros(6), "bias": jnp.zeros(())}
    (alone, state), ages = jax.jit(training(tx))(params, tx.init(params), data())
    assert (0 in ages.tolist()) == ("restart" in name)

    def workers_mean(tree):
        return jax.tree.map(lambda g: jax.lax.psum(g, "batch") / DEVICES, tree)

    parallel = jax.pmap(training(tx, workers_mean), "batch", in_axes=(None, None, 0), out_axes=None)
    (together, their_state), their_ages = parallel(params, tx.init(params), shard(data()))
    np.testing.assert_array_equal(their_ages, ages)
    # Sums of 64 numbers in another order: rounding of float64. int8 can turn it into another unit, 1/127 of a velocity.
    tolerance = 1e-2 if name == "int8" else 1e-13
    for ours, theirs in (
        (alone, together),
        (nagjax.eval_params(alone, state), nagjax.eval_params(together, their_state)),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), ours, theirs)


@pytest.mark.parametrize("name", METHODS)
def test_replicas_that_each_keep_their_own_copy_stay_bit_for_bit_alike(name):
    """Stacked parameters and states, the older pattern; noise of rounding must be the same on every replica."""
    tx = METHODS[name]
    params = {"weights": jnp.zeros((DEVICES, 6)), "bias": jnp.zeros(DEVICES)}
    train = training(tx, lambda tree: jax.lax.pmean(tree, "batch"))
    (copies, states), _ = jax.pmap(train, "batch")(params, jax.pmap(tx.init)(params), shard(data()))
    for leaf in jax.tree.leaves((copies, states, nagjax.eval_params(copies, states))):
        np.testing.assert_array_equal(leaf, np.broadcast_to(np.asarray(leaf)[:1], leaf.shape))


def test_shards_of_parameters_round_with_noise_of_their_own():
    """With `axis_name` in the storage, equal velocities on different shards are rounded differently."""
    steps = jnp.broadcast_to(jnp.linspace(0.1, 1.0, 64), (DEVICES, 64))

    def velocities(axis_name):
        tx = nagjax.accelerate(0.9, storage=storage.int8(axis_name=axis_name))
        return np.asarray(nagjax.velocity(jax.pmap(lambda u: tx.update(u, tx.init(u))[1], "shard")(steps)))

    assert (velocities(None) == velocities(None)[:1]).all()
    own = velocities("shard")
    assert len({shard.tobytes() for shard in own}) == DEVICES
    # Unbiased: the mean over 8 shards of 64 numbers misses by about one unit, 1/127, over sqrt(12 * 512).
    assert abs(own.mean() - float(steps.mean())) < 5 / 127 / np.sqrt(12 * 512)
