"""DiLoCo over processes: the run of one process, and on without a worker that was killed."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.launch import Group
from nagjax import outer
from tests.integration import process_diloco as program

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(folder, workers, before, *options):
    numbers = [str(worker) for worker in workers]
    command = [sys.executable, str(ROOT / "tests" / "integration" / "process_diloco.py"), str(folder)]
    command += ["--workers", *numbers, "--before", str(before), *options]
    with Group(command, len(workers), 1, shown=False) as group:
        return group.wait(120, 40), group.lines


def expected(*parts):
    """The slow weights after parts of a run, (workers, steps) each, as one process maps over workers."""
    axes = outer.per_worker(0, None)
    train = jax.jit(jax.vmap(program.step, in_axes=(0, axes, 0), out_axes=(0, axes), axis_name="workers"))
    params, state = program.start(len(parts[0][0]))
    for workers, steps in parts:
        if len(workers) < len(params):
            state, params = outer.keep_workers(state, params, workers)
        for _ in range(steps):
            params, state = train(params, state, program.targets(workers))
    return np.asarray(state.slow)


@pytest.mark.usefixtures("single_precision")
def test_a_run_goes_on_after_a_restart_without_a_lost_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code, lines = run(tmp_path, [0, 1, 2], 3, "--lose", "1")
    assert code == 128 + 9
    assert any("process 1" in line for line in lines[0])
    assert not (tmp_path / "final.npz").exists()

    code, lines = run(tmp_path, [0, 2], 3)  # from step 10, the last end of a period
    assert code == 0, lines
    found = np.load(tmp_path / "final.npz")["slow"]
    np.testing.assert_allclose(found, expected(((0, 1, 2), 10), ((0, 2), 10)), atol=1e-6)
    assert np.abs(found - expected(((0, 1, 2), 20))).max() > 1e-2
