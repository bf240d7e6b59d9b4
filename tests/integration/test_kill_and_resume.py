"""A process killed at any moment, also during a save, resumes within an interval and ends bit for bit the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EVERY, STEPS = 5, 60

# Trains with dropout, BatchNorm, int8 velocities and donated states, by `fit` or by a loop of its own; says what it
# does in a log, and in the end what a run that nothing interrupts comes to.
PROGRAM = """
import hashlib, json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
import nagjax
from nagjax import training
from nagjax.training.checkpoint import Checkpoints

kind, folder, log, every, steps, asynchronous = *sys.argv[1:4], *map(int, sys.argv[4:])
log = open(log, "a")
config = {"width": 1024}

def say(**event):
    print(json.dumps(event), file=log, flush=True)

class Model(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(16, 1024, rngs=rngs), nnx.BatchNorm(1024, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(1024, 512, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(jax.nn.relu(self.norm(self.first(x)))))

def loss(model, rows):
    return jnp.mean((model(rows) - rows[:, :1]) ** 2)

model = Model(nnx.Rngs(0))
tx = nagjax.nesterov(0.01, storage=nagjax.storage.int8(64), restart=nagjax.restart.gradient())
rows = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)

def by_loop(checkpoints, say):
    step = training.TrainStep(model, loss, tx)
    train = jax.jit(step, donate_argnums=0)
    state, done = step.init(), 0
    if checkpoints is not None:
        if checkpoints.latest() is not None:
            found = checkpoints.restore(state, config=config)
            state, done = found.state, found.cursor["batches"]
            assert found.step == done
        say(resumed=done, readable=checkpoints.steps())
    while done < steps:
        state, metrics = train(state, rows[np.random.default_rng(done).permutation(100)[:8]])
        done += 1
        say(step=done, loss=float(metrics["loss"]))
        if checkpoints is not None and checkpoints.due(done):
            checkpoints.save(done, state, cursor={"batches": done}, config=config)
    return state

def by_fit(checkpoints, say):
    def hear(record):
        if record.kind in ("start", "resume"):
            say(resumed=record.step, readable=checkpoints.steps() if checkpoints else [])
        elif record.kind == "train":
            say(step=record.step, loss=record.metrics["loss"])

    data = training.DeviceData(rows, 8, seed=3)
    fit = training.fit(
        model, loss, tx, data, epochs=steps // data.steps_per_epoch, checkpoint=checkpoints, config=config,
        callbacks=[hear], progress=False, log_every=1, steps_per_call=1,
    )
    return fit.state

def digest(state):
    total = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(state):
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        total.update(f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return total.hexdigest()

train = {"loop": by_loop, "fit": by_fit}[kind]
with Checkpoints(folder, every=every, keep=2, asynchronous=bool(asynchronous)) as checkpoints:
    state = train(checkpoints, say)
losses = []
whole = train(None, lambda loss=None, **_: losses.append(loss))
say(final=digest(state), uninterrupted=digest(whole), losses=[loss for loss in losses if loss is not None])
"""


class Run:
    """The processes of one run, and what they have said."""

    def __init__(self, folder: Path, kind: str, asynchronous: bool) -> None:
        self.checkpoints, self.log = folder / "checkpoints", folder / "log"
        self.log.touch()
        numbers = map(str, (EVERY, STEPS, int(asynchronous)))
        self.command = [sys.executable, "-c", PROGRAM, kind, str(self.checkpoints), str(self.log), *numbers]

    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().split("\n")[:-1]]

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(self.command, env=os.environ | {"XLA_FLAGS": ""})

    def finish(self) -> dict:
        with self.start() as process:
            assert process.wait(timeout=120) == 0
        return self.events()[-1]

    def is_saving(self) -> bool:
        return any("tmp" in path.name for path in self.checkpoints.glob("*"))

    def kill(self, moment: random.Random, steps: int, during_save: bool) -> None:
        """Start a process and kill it after so many steps, at a random moment, of a save if wanted."""
        said = len(self.events())
        with self.start() as process:
            while process.poll() is None:
                mine = self.events()[said:]
                if len(mine) > steps and (not during_save or self.is_saving()):
                    time.sleep(moment.choice([0, 0.03 * moment.random()]))
                    break
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)


def check(run: Run, kills: int, seed: int, bound: int, least: int) -> int:
    """Kill and resume until the run is complete; the number of kills that cut a save in two.

    Args:
        run: A run that has not begun.
        kills: Number of processes that are killed.
        seed: Of the moments.
        bound: Steps that a kill may lose.
        least: Steps that a process makes at least before it is killed; at most 10 more.
    """
    moment = random.Random(seed)
    cut = 0
    for number in range(kills):
        run.kill(moment, least + moment.randrange(11), during_save=number % 2 == 0)
        cut += run.is_saving()
    end = run.finish()
    assert end["final"] == end["uninterrupted"]
    assert not run.is_saving()
    done, resumed = 0, []
    for event in run.events():
        if "resumed" in event:
            assert done - bound <= event["resumed"] <= done
            assert event["resumed"] % EVERY == 0
            assert event["resumed"] == max(event["readable"], default=0)
            done = event["resumed"]
            resumed.append(done)
        elif "step" in event:
            assert event["step"] == done + 1
            assert event["loss"] == end["losses"][done]
            done = event["step"]
    assert done == STEPS
    assert len(resumed) == kills + 1
    assert resumed[0] == 0 < resumed[-1]
    return cut


# While a checkpoint is written, an asynchronous run makes at most the steps to the next one.
MODES = [(False, EVERY), (True, 2 * EVERY)]


@pytest.mark.parametrize(
    ("kind", "asynchronous", "bound"), [("loop", *MODES[0]), pytest.param("fit", *MODES[1], marks=pytest.mark.slow)]
)
def test_killed_runs_resume_within_an_interval_and_end_bit_for_bit_the_same(kind, asynchronous, bound, tmp_path):
    assert check(Run(tmp_path, kind, asynchronous), kills=2, seed=0, bound=bound, least=11) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loop", "fit"])
@pytest.mark.parametrize(("asynchronous", "bound"), MODES)
def test_runs_killed_often_end_bit_for_bit_the_same(kind, asynchronous, bound, tmp_path):
    assert check(Run(tmp_path, kind, asynchronous), kills=5, seed=1, bound=bound, least=11) >= 2
