"""Noise is uniform, unbiased and independent over elements, leaves, steps, seeds and shards, and has no memory.

Every statistic is standardized; the seeds are fixed, so a bound of 5 standard deviations is not a matter of luck.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nagjax import noise

COUNT = 1 << 16
BOUND = 5.0


def uniform(seed=0, step=0, leaves=1, shape=(COUNT,)):
    """The upper 16 bits of the noise of each leaf, as centered numbers of variance 1/12."""
    keys = noise.keys(seed, jnp.uint32(step), leaves)
    return [(np.asarray(noise.bits(key, shape)) >> 16) / 2.0**16 - 0.5 + 2.0**-17 for key in keys]


def correlation(a, b):
    return 12 * np.mean(a * b) * np.sqrt(a.size)


@pytest.mark.parametrize("seed", [0, 1, 2**31])
@pytest.mark.parametrize("step", [0, 1, 12345])
def test_noise_is_uniform(seed, step):
    for x in uniform(seed, step, leaves=3):
        assert abs(np.mean(x)) * np.sqrt(12 * COUNT) < BOUND
        assert abs(np.mean(x**2) - 1 / 12) * np.sqrt(180 * COUNT) < BOUND
        counts = np.histogram(x, bins=256, range=(-0.5, 0.5))[0]
        chi_square = np.sum((counts - COUNT / 256) ** 2) / (COUNT / 256)
        assert abs(chi_square - 255) / np.sqrt(2 * 255) < BOUND


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 8, 64, 256, 1000, 4096])
def test_elements_are_uncorrelated(lag):
    for x in uniform(step=5, leaves=4):
        assert abs(correlation(x[:-lag], x[lag:])) < BOUND


def test_leaves_steps_and_seeds_are_uncorrelated():
    rows = [x for seed in (0, 1) for step in (0, 1, 2, 100) for x in uniform(seed, step, leaves=3)]
    found = np.array(rows) @ np.array(rows).T * 12 / np.sqrt(COUNT)
    np.fill_diagonal(found, 0)
    assert np.max(np.abs(found)) < BOUND
    neighbors = np.array(rows)[:, 1:] @ np.array(rows)[:, :-1].T * 12 / np.sqrt(COUNT)
    assert np.max(np.abs(neighbors)) < BOUND


def test_one_element_is_uncorrelated_over_steps():
    series = jax.jit(jax.vmap(lambda step: noise.bits(noise.keys(0, step, 2)[1], (4,))))
    x = (np.asarray(series(jnp.arange(COUNT, dtype=jnp.uint32))) >> 16) / 2.0**16 - 0.5 + 2.0**-17
    for element in range(4):
        assert abs(np.mean(x[:, element])) * np.sqrt(12 * COUNT) < BOUND
        for lag in (1, 2, 10):
            assert abs(correlation(x[:-lag, element], x[lag:, element])) < BOUND
            assert abs(correlation(x[:-lag, element], x[lag:, (element + lag) % 4])) < BOUND


def test_one_element_is_uncorrelated_over_many_leaves():
    x = np.array(uniform(leaves=512, shape=(64,)))
    assert np.max(np.abs(x.mean(axis=0))) * np.sqrt(12 * 512) < BOUND
    assert np.max(np.abs(np.mean(x[1:] * x[:-1], axis=0))) * 12 * np.sqrt(511) < BOUND


@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3), (1, 2, 1, 3)])
def test_noise_depends_on_the_flat_index_alone(shape):
    (key,) = noise.keys(7, jnp.uint32(3), 1)
    flat = np.asarray(noise.bits(key, (6,)))
    np.testing.assert_array_equal(np.asarray(noise.bits(key, shape)).ravel(), flat[: np.prod(shape, dtype=int)])


def test_both_ways_to_make_keys_agree():
    """The chain of XLA's CPU backend, and the closed form of the others."""
    step = jnp.uint32(9)
    found = [int(key) for key in noise.keys(3, step, 5)]
    first, multiplier, increment = found[0], 747796405, 2891336453
    expected, key = [], first
    for _ in range(5):
        expected.append(key)
        key = (multiplier * key + increment) % 2**32
    assert found == expected
    text = jax.jit(lambda s: noise.keys(3, s, 5)).trace(step).lower(lowering_platforms=("cuda",)).as_text()
    for power in (1, 4):
        shift = increment * sum(multiplier**j for j in range(power)) % 2**32
        assert f"dense<{multiplier**power % 2**32}>" in text
        assert f"dense<{shift}>" in text


def test_shards_differ_with_an_axis_name_and_replicas_agree_without():
    mesh = Mesh(np.array(jax.devices()[:4]), "data")

    def draw(axis_name):
        def one(step):
            return noise.bits(noise.keys(0, step, 2, axis_name)[1], (1, COUNT))

        return jax.shard_map(one, mesh=mesh, in_specs=P(), out_specs=P("data"), check_vma=False)(jnp.uint32(4))

    same = np.asarray(draw(None))
    assert (same == same[0]).all()
    x = (np.asarray(draw("data")) >> 16) / 2.0**16 - 0.5 + 2.0**-17
    found = x @ x.T * 12 / np.sqrt(COUNT)
    np.fill_diagonal(found, 0)
    assert np.max(np.abs(found)) < BOUND
