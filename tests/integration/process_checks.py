"""A program for several processes that `test_processes` starts: one check by name, the same in every process."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np


def main():
    name, *arguments = sys.argv[1:]
    {"connected": connected, "data": data, "checkpoints": checkpoints, "restored": restored}[name](*arguments)
    print(f"{name} holds", flush=True)


def connected(count):
    """`initialize` without arguments connects, and again does nothing."""
    import jax

    from nagjax.training import distributed

    found = distributed.initialize(initialization_timeout=30)
    assert found.num_processes == jax.process_count() == int(count)
    assert found.process_id == jax.process_index()
    assert distributed.initialize() == distributed.initialize(None, int(count)) == found
    assert distributed.is_main() == (found.process_id == 0)
    with raises(ValueError, "a second call must be as what has connected"):
        distributed.initialize(num_processes=int(count) + 1)
    total = jax.jit(lambda x: x.sum())(distributed.global_batch(rows(found), batches()))
    assert float(total) == sum(range(4 * int(count)))


def data(folder):
    """Global batches hold every process's rows, by hand, by `prefetch` and by Grain; process 0 alone writes."""
    import grain
    import jax

    from nagjax import training
    from nagjax.training import distributed

    found = distributed.initialize()
    sharding = batches()
    for batch in (
        distributed.global_batch(rows(found), sharding),
        *training.prefetch([rows(found)], sharding=sharding),
    ):
        assert batch.shape == (8,)
        assert batch.sharding == sharding
        for shard in batch.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.arange(8.0)[shard.index])
    with raises(ValueError, "distributed.global_batch: batch must be"):
        distributed.global_batch(np.zeros(3), sharding)

    own = grain.sharding.ShardByJaxProcess(drop_remainder=True)
    source = grain.MapDataset.range(9)[jax.process_index() : 8 : jax.process_count()].batch(2)
    parts = [np.asarray(part) for part in source]
    assert len(parts) == 2
    assert (own.shard_index, own.shard_count, own.drop_remainder) == (found.process_id, 2, True)
    whole = [np.asarray(part) for part in training.prefetch(parts, sharding=sharding) for part in local(part)]
    assert sorted(np.concatenate(whole).tolist()) == list(range(found.process_id, 8, 2))

    log = training.jsonl(Path(folder) / f"log-{found.process_id}")
    log(training.Record("start", 0, 0, 0.0, {}))
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("written")
    assert [path.name for path in Path(folder).glob("log-*")] == ["log-0"]


def checkpoints(folder):
    """Every kind of leaf is written; a refusal in one process is one in all; the last and the best stay."""
    import jax
    import jax.numpy as jnp

    from nagjax.training import Checkpoints, distributed

    found = distributed.initialize()
    first = found.process_id == 0
    state = tree()
    folder = Path(folder)
    with Checkpoints(folder / "kept", every=2, keep=2, best="loss") as kept:
        assert (kept.latest(), kept.steps(), kept.best_step()) == (None, [], None)
        for step, value in enumerate([3.0, 1.0, 2.0, 4.0, 5.0], 1):
            kept.save(step, state, cursor={"row": step}, config={"a": 1}, metrics={"loss": value})
        assert (kept.steps(), kept.best_step(), kept.latest()) == ([2, 4, 5], 2, 5)
        same(kept.restore(state, step=2), state, 2)

        with raises(TypeError, "Checkpoints.save: cursor must be JSON" if not first else "(in process 1)"):
            kept.save(6, state, cursor={} if first else {"bad": object()})
        with raises(ValueError, "config must be that of the checkpoint"):
            kept.restore(state, config={"a": 1 if first else 2})
        with raises(ValueError, "state must be that of the checkpoint"):
            kept.restore({"x": jnp.zeros(3)})
        with raises(FileNotFoundError, "step must be that of a checkpoint"):
            kept.restore(state, step=17)
        same(kept.restore(state), state, 5)
        if first:
            damage(folder / "kept" / "00005-step-5")
        with raises(OSError, "restore with step=4"):
            kept.restore(state)
        same(kept.restore(state, step=4), state, 4)

        other = Checkpoints(folder / "kept")
        with raises(ValueError, "no other run writes"):
            other.save(7, state, cursor={})
    with raises(ValueError, "every_seconds must be None in several processes"):
        Checkpoints(folder / "kept", every_seconds=5.0).due(1)

    if first:
        (folder / "foreign").mkdir()
        (folder / "foreign" / "file").touch()
    with raises(ValueError, "absent, empty or one of checkpoints"), Checkpoints(folder / "foreign") as kept:
        kept.save(1, state, cursor={})

    with Checkpoints(folder / "failing") as kept:
        kept.save(1, state, cursor={})
        kept.wait()
        kept.save(2, state, cursor={})
        # What a full disk does to one process's thread, at the moment that Orbax calls it.
        if not first:
            kept._writer.wait_until_finished = fails_after(kept._writer.wait_until_finished)
        with raises(OSError, "No space left"):
            kept.wait()
        assert kept.latest() in (1, 2)
        same(kept.restore(state, step=1), state, 1)
        kept.save(3, state, cursor={})
        assert kept.latest() == 3

    (folder / f"expected-{found.process_id}.json").write_text(json.dumps({"processes": jax.process_count()}))


def restored(folder):
    """What other processes have written comes back on these devices."""
    from nagjax.training import Checkpoints, distributed

    distributed.initialize()
    template = tree(zeros=True)
    with Checkpoints(Path(folder) / "failing") as kept:
        same(kept.restore(template, step=3), tree(), 3)


def rows(found):
    return np.arange(4.0) + 4 * found.process_id


def batches():
    import jax

    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.NamedSharding(mesh, jax.P("data"))


def local(batch):
    return [shard.data for shard in batch.addressable_shards]


def tree(zeros=False):
    """Leaves over all devices, cut and whole, and leaves of one process."""
    import jax
    import jax.numpy as jnp

    cut = batches()
    whole = jax.NamedSharding(cut.mesh, jax.P())
    scale = 0 if zeros else 1

    def placed(value, sharding):
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return {
        "cut": placed(np.arange(32, dtype=np.float32).reshape(8, 4) * scale, cut),
        "int8": placed(np.arange(16, dtype=np.int8) * scale, cut),
        "whole": placed(np.arange(5, dtype=np.float32) * scale, whole),
        "key": jax.jit(lambda: jax.random.split(jax.random.key(3 * scale), 2), out_shardings=whole)(),
        "weak": jax.jit(lambda: jnp.asarray(1.5 * scale), out_shardings=whole)(),
        "local": jnp.int32(7 * scale),
        "numpy": np.arange(3) * scale,
        "number": 2.5 * scale,
    }


def same(found, state, step):
    import jax

    assert found.step == step
    assert jax.tree.structure(found.state) == jax.tree.structure(state)
    for name, expected in state.items():
        value = found.state[name]
        if isinstance(expected, jax.Array):
            assert value.aval == expected.aval, name
            assert value.sharding == expected.sharding, name
            if name == "key":
                value, expected = jax.random.key_data(value), jax.random.key_data(expected)
            pairs = zip(value.addressable_shards, expected.addressable_shards, strict=True)
            assert all(np.array_equal(a.data, b.data) for a, b in pairs), name
        else:
            np.testing.assert_array_equal(value, expected)


def damage(path):
    largest = max((path / "state").rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else -1)
    data = bytearray(largest.read_bytes())
    data[-1] ^= 1
    largest.write_bytes(data)


def fails_after(wait):
    def failing():
        wait()
        raise OSError(28, "No space left on device")

    return failing


@contextlib.contextmanager
def raises(kind, text):
    try:
        yield
    except kind as error:
        if text not in str(error):
            raise
    else:
        raise AssertionError(f"no {kind.__name__} with {text!r}")


if __name__ == "__main__":
    main()
