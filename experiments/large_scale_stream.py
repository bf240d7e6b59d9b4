"""The stream part of `large_scale`: a pass over a file that is larger than the memory the process may have.

`python -m experiments.large_scale_stream FOLDER MEGABYTES ROWS BATCH` is the child process: it limits its private
memory, trains a small model over the file by Grain, and prints one line of JSON a tenth of the pass. It is started by
`stream`, which writes the file and deletes it again.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments import limits
from experiments.output import UsageError

FEATURES = 1023  # and the label make rows of 4 KiB
CLASSES = 10
BATCH = 256
CHUNK = 4096  # rows
TENTHS = 10
SPARE = 1.2  # of the file, what the disk must have free


@dataclass(frozen=True)
class Stream:
    """One pass: what the child measured at its start and after each tenth."""

    limit_mb: int
    file_mb: float
    tenths: list[dict[str, float]]  # keys: share, rows, loss, anonymous_mb, resident_mb, seconds
    peak_mb: float  # resident, file pages included

    @property
    def growth(self) -> float:
        """Growth of the anonymous memory from the first tenth, when all is compiled, to its largest, in percent."""
        held = [tenth["anonymous_mb"] for tenth in self.tenths[1:]]
        return 100 * (max(held) / held[0] - 1)


def stream(limit_mb: int, file_mb: int, each: Callable[[dict[str, float]], None], *, batch: int = BATCH) -> Stream:
    """Writes the file into a temporary folder, runs the child over it and deletes the file.

    Raises:
        UsageError: The system does not count memory, or the disk has not the room.
    """
    if sys.platform != "linux":
        raise UsageError("large_scale --parts stream needs Linux, which limits and counts memory; leave the part out.")
    free = shutil.disk_usage(tempfile.gettempdir()).free / limits.MEGABYTE
    if free < SPARE * file_mb:
        raise UsageError(
            f"large_scale --parts stream needs {SPARE * file_mb:.0f} MB of disk in {tempfile.gettempdir()}, which has "
            f"{free:.0f}; take a smaller --stream-mb, or set TMPDIR."
        )
    from experiments.pipelines import write_rows

    rows = file_mb * limits.MEGABYTE // (4 * (FEATURES + 1))
    with tempfile.TemporaryDirectory(prefix="nagjax-stream-") as folder:
        path = Path(folder) / "rows"
        write_rows(path, _chunks(rows), np.float32)
        size = path.stat().st_size / limits.MEGABYTE
        command = [sys.executable, "-m", "experiments.large_scale_stream", str(path), str(limit_mb), str(batch)]
        tenths: list[dict[str, float]] = []
        last: dict[str, float] = {}
        with tempfile.TemporaryFile() as errors:
            alone = os.environ | {"XLA_FLAGS": ""}  # flags of the parent could ask for more devices and their threads
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=alone) as child:
                try:
                    for line in child.stdout or ():
                        last = json.loads(line)
                        if "share" in last:
                            tenths.append(last)
                            each(last)
                    code = child.wait()
                finally:
                    if child.poll() is None:
                        child.kill()
            if code:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise UsageError(
                    f"large_scale: the stream did not get through with --stream-limit-mb {limit_mb} "
                    f"({said[-1] if said else f'exit code {code}'}); raise the limit."
                )
    return Stream(limit_mb, size, tenths, last["peak_mb"])


def _chunks(rows: int) -> Iterator[NDArray[np.float32]]:
    """Rows of random features and the class that a fixed linear map gives them, in the last column."""
    random = np.random.default_rng(0)
    teacher = random.standard_normal((FEATURES, CLASSES), np.float32)
    for start in range(0, rows, CHUNK):
        chunk = np.empty((min(CHUNK, rows - start), FEATURES + 1), np.float32)
        chunk[:, :-1] = random.random((len(chunk), FEATURES), np.float32) * 2 - 1
        chunk[:, -1] = (chunk[:, :-1] @ teacher).argmax(axis=1)
        yield chunk


def _memory() -> dict[str, float]:
    """Resident, anonymous and peak memory of this process in MB."""
    names = {"VmRSS": "resident_mb", "RssAnon": "anonymous_mb", "VmHWM": "peak_mb"}
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in names:
            found[names[name]] = int(value.split()[0]) * 1024 / limits.MEGABYTE
    return found


def _train(path: Path, limit_mb: int, batch: int) -> None:
    # One core: the stacks of XLA's threads, one a core, count as memory of the process.
    limits.set_threads(1)
    limits.set_memory_limit(limit_mb)
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    import nagjax
    from experiments.pipelines import image_batches, memory_mapped
    from nagjax.models import MLP
    from nagjax.training import Metrics, TrainStep, compiled, prefetch

    rows = memory_mapped(path, np.float32, (-1, FEATURES + 1))
    batches = prefetch(image_batches(rows, rows, batch, seed=0, epochs=1))

    def loss(model: Any, pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        table, _ = pair
        labels = table[:, -1].astype(jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(model(table[:, :-1]), labels).mean()

    model = MLP((FEATURES, 64, CLASSES), rngs=nnx.Rngs(0))
    step = TrainStep(model, loss, nagjax.nesterov(0.1, 0.9))
    train, state = compiled(step), step.init()
    steps = len(rows) // batch
    start, metrics, done = time.perf_counter(), None, 0

    def say(metrics: Metrics | None) -> None:
        found = {"loss": metrics.means()["loss"]} if metrics is not None else {}
        now = {"share": done / steps, "rows": done * batch, "seconds": time.perf_counter() - start}
        print(json.dumps({**now, **found, **_memory()}), flush=True)

    say(None)
    for pair in batches:
        state, metrics = train(state, pair, metrics)
        done += 1
        # A row brings its neighbors' pages with it, so that the process would soon map the whole file. The system drops
        # such pages when memory runs short; dropped here after each batch, they do not hide what the process needs.
        rows._mmap.madvise(mmap.MADV_DONTNEED)
        if done * TENTHS // steps > (done - 1) * TENTHS // steps:
            say(metrics)
            metrics = None
    print(json.dumps({"peak_mb": _memory()["peak_mb"]}), flush=True)


if __name__ == "__main__":
    _train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
