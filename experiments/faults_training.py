"""The training program of the experiment `faults`, started by `launch` in every process; it fails as it is told.

Data parallel with the optimizer's state cut over all devices (ZeRO-1), on batches that are a function of the step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

FAULTS = ("none", "kill", "stop", "raise", "kill-saving", "disk")
ROWS, FEATURES, WIDTH, OUTPUTS = 16, 64, 512, 8
_FILE_LIMIT = 20_000  # bytes: less than the parts of the state, more than the record


def main() -> None:
    """Trains, resuming if there is a checkpoint, and writes the final parameters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--heartbeat", type=int, default=10)
    parser.add_argument("--storage", choices=("full", "int8"), default="full")
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument("--process", type=int, default=1, help="the one that fails")
    parser.add_argument("--at", type=int, default=10, help="the step at which it fails")
    options = parser.parse_args()
    train(options)


def train(options: argparse.Namespace) -> None:
    """Trains one run of `options`."""
    import jax
    import jax.numpy as jnp

    import nagjax
    from nagjax import training
    from nagjax.training import distributed, sharding

    found = distributed.initialize(heartbeat_timeout=options.heartbeat, initialization_timeout=60)
    log = Log(options.folder / "log", distributed.is_main())
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    storage = nagjax.storage.int8(64) if options.storage == "int8" else None
    step = training.TrainStep(parameters(), loss, nagjax.nesterov(0.05, 0.9, storage=storage))
    layout = sharding.zero1(mesh)
    state = layout.init(step)
    update = training.compiled(step, layout=layout)
    asynchronous = options.fault == "kill-saving"
    done = 0
    with training.Checkpoints(options.folder / "checkpoints", every=options.every, asynchronous=asynchronous) as kept:
        if kept.latest() is not None:
            restored = kept.restore(state, config={"storage": options.storage})
            state, done = restored.state, restored.cursor["step"]
        log.say(resumed=done, processes=found.num_processes, devices=jax.device_count())
        fails = options.fault != "none" and found.process_id == options.process
        while done < options.steps:
            if fails and done == options.at:
                fail(options.fault)
            state, metrics = update(state, distributed.global_batch(rows(done, found), layout.batch))
            done += 1
            log.say(step=done, loss=metrics.means()["loss"])
            if kept.due(done):
                kept.save(done, state, cursor={"step": done}, config={"storage": options.storage})
                if fails and asynchronous and done >= options.at:
                    fail("kill")
    whole: Any = jax.jit(jnp.copy, out_shardings=layout.whole)
    final = {name: np.asarray(whole(value)) for name, value in state.params.items()}
    if distributed.is_main():
        np.savez(options.folder / "final.npz", **final)
    log.say(final=done)


def parameters() -> dict[str, np.ndarray]:
    """Returns the same parameters in every process."""
    rng = np.random.default_rng(0)
    first, last = rng.normal(size=(FEATURES, WIDTH)) / 8, rng.normal(size=(WIDTH, OUTPUTS)) / 16
    return {"first": first.astype(np.float32), "last": last.astype(np.float32)}


def loss(params: Any, batch: Any) -> Any:
    """Returns the mean squared error of a network with one hidden layer."""
    import jax.numpy as jnp

    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["first"]) @ params["last"] - targets) ** 2)


def rows(step: int, found: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns this process's part of the batch of a step."""
    rng = np.random.default_rng(step)
    inputs = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    part = slice(*(ROWS * k // found.num_processes for k in (found.process_id, found.process_id + 1)))
    return inputs[part], np.sin(inputs[part, :OUTPUTS])


def fail(fault: str) -> None:
    """Fails as asked."""
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "raise":
        raise ValueError("a fault of the experiment")
    elif fault == "disk":  # no file may grow beyond this size: writes fail as they do on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_LIMIT, resource.RLIM_INFINITY))


class Log:
    """JSON lines of process 0."""

    def __init__(self, path: Path, written: bool) -> None:
        self.path, self.written = path, written

    def say(self, **event: Any) -> None:
        """Appends an event with the time."""
        if self.written:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event | {"time": time.time()}) + "\n")


if __name__ == "__main__":
    main()
