"""A DiLoCo run whose workers are processes, one of which may be killed; started through the launcher."""

import argparse
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nagjax
from nagjax import outer, training
from nagjax.training import distributed

PERIOD, STEPS, FEATURES = 5, 20, 64
LOCAL, SHARED = P("workers"), P()
OPTIMIZER = outer.diloco(
    optax.sgd(0.2, 0.5), nagjax.nesterov(0.7, 0.8), PERIOD, axis_name="workers", wire=outer.wire.int8(16)
)


def targets(workers):
    """Where each worker wants the parameters to be, by its number at the start of the run."""
    return np.random.default_rng(0).normal(size=(8, FEATURES)).astype(np.float32)[list(workers)]


def start(workers):
    """Parameters and state of so many workers, stacked."""

    def stack(leaf):
        return jnp.stack([leaf] * workers)

    params = jnp.zeros(FEATURES, jnp.float32)
    return stack(params), outer.map_per_worker(stack, OPTIMIZER.init(params))


def step(params, state, target):
    """One inner step of one worker, and the outer step where it is due."""
    updates, state = OPTIMIZER.update(params - target, state, params)
    return optax.apply_updates(params, updates), state


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", required=True, help="numbers of the workers of this part")
    parser.add_argument("--before", type=int, required=True, help="workers of the part before")
    parser.add_argument("--lose", type=int, help="the process that is killed after step 12")
    options = parser.parse_args()

    found = distributed.initialize(heartbeat_timeout=10)
    mesh = jax.make_mesh((found.num_processes,), ("workers",), axis_types=(AxisType.Auto,))
    specs = LOCAL, outer.per_worker(LOCAL, SHARED)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    whole = NamedSharding(mesh, SHARED)

    def shard(params, state, target):
        params, state = step(params[0], outer.map_per_worker(lambda leaf: leaf[0], state), target[0])
        return params[None], outer.map_per_worker(lambda leaf: leaf[None], state)

    train = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=(*specs, LOCAL), out_specs=specs))
    target = distributed.global_batch(targets(options.workers)[[found.process_id]], places[0])
    done = 0
    with training.Checkpoints(options.folder / "checkpoints", asynchronous=False) as checkpoints:
        if checkpoints.latest() is None:
            params, state = jax.jit(lambda: start(len(options.workers)), out_shardings=places)()
        else:
            shapes = jax.eval_shape(lambda: start(options.before))
            template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes)
            restored = checkpoints.restore(template)
            done = restored.step

            def kept(params, state):
                state, params = outer.keep_workers(state, params, options.workers)
                return params, state

            params, state = jax.jit(kept, out_shardings=places)(*restored.state)
        while done < STEPS:
            params, state = train(params, state, target)
            done += 1
            if done % PERIOD == 0:
                checkpoints.save(done, (params, state), cursor={})
            if done == 12 and found.process_id == options.lose:
                os.kill(os.getpid(), signal.SIGKILL)
    if distributed.is_main():
        np.savez(options.folder / "final.npz", slow=np.asarray(state.slow))


if __name__ == "__main__":
    main()
