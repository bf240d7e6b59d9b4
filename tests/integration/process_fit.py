"""A run of `fit` over all processes, one of which may get a signal; started through the launcher."""

import argparse
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import nagjax
from nagjax import training
from nagjax.training import distributed, sharding


def loss(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["w"]) - targets) ** 2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--signal", type=int, help="the process that gets SIGTERM in its 33rd step")
    parser.add_argument("--stream", action="store_true", help="an iterable of each process's rows")
    options = parser.parse_args()
    found = distributed.initialize(heartbeat_timeout=10)
    layout = sharding.zero1(jax.make_mesh((jax.device_count(),), ("data",)))
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(96, 16)).astype(np.float32), rng.normal(size=(96, 8)).astype(np.float32)

    class Rows:
        """Batches of 16, of which this process reads its part; the 33rd comes with the signal."""

        def __iter__(self):
            for number in range(6):
                rows = slice(16 * number, 16 * (number + 1))
                part = 16 // found.num_processes
                own = slice(found.process_id * part, (found.process_id + 1) * part)
                yield tuple(array[rows][own] for array in arrays)

    def interrupt(record):
        if options.signal == found.process_id and record.kind == "train" and record.step == 30:
            os.kill(os.getpid(), signal.SIGTERM)

    fit = training.fit(
        {"w": rng.normal(size=(16, 8)).astype(np.float32)},
        loss,
        nagjax.nesterov(0.1),
        Rows() if options.stream else training.DeviceData(arrays, batch_size=16, sharding=layout.whole),
        epochs=12,
        layout=layout,
        log_every=3,
        steps_per_call=1,
        checkpoint=training.Checkpoints(options.folder / "checkpoints"),
        callbacks=[interrupt, training.jsonl(options.folder / "run.jsonl")],
        progress=False,
    )
    if distributed.is_main():
        np.savez(options.folder / "final.npz", w=np.asarray(fit.model["w"]))


if __name__ == "__main__":
    main()
