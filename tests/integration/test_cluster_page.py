"""The page "From one device to a cluster": its blocks run on eight virtual devices, its program in two processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "one_device_to_cluster.md").read_text()
LAYOUTS, MAPPED, PROGRAM, WORKERS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.usefixtures("single_precision", "standard_promotion")
def test_the_blocks_of_one_process_run_and_agree(capsys):
    names = {}
    exec(LAYOUTS, names)
    lines = capsys.readouterr().out.splitlines()
    found = [re.match(r"loss (\S+), bytes a device: parameters (\S+), optimizer state (\S+)", line) for line in lines]
    losses, params, states = zip(*(match.groups() for match in found if match), strict=True)
    assert len(losses) == 4
    np.testing.assert_allclose([float(loss) for loss in losses], float(losses[0]), atol=2e-5)
    params, states = ([int(text.replace(",", "")) for text in texts] for texts in (params, states))
    assert params[0] == params[1] == params[2] == 8 * params[3]  # every axis is one that 8 divides
    assert states[0] == states[1] > 7 * states[2] == 7 * states[3]

    exec(MAPPED, names)
    once, again = map(float, capsys.readouterr().out.split())
    np.testing.assert_allclose(once, again, rtol=1e-5)

    exec(WORKERS, names)
    state = names["state"]
    for worker in range(2):  # the 20th step ended a period
        params = jax.tree.map(lambda leaf, worker=worker: leaf[worker], state.params)
        jax.tree.map(lambda y, x: np.testing.assert_allclose(y, x, atol=1e-8), params, state.opt_state.slow)
    assert jax.tree.map(np.shape, names["answer"]) == jax.tree.map(np.shape, state.opt_state.slow)
    for leaf in jax.tree.leaves(state.params):
        assert leaf.sharding.spec == jax.sharding.PartitionSpec("workers")


@pytest.mark.slow
def test_the_program_prints_the_same_loss_on_one_device_on_eight_and_in_two_processes(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAM)
    found = {}
    for name, devices, prefix in (
        ("one", 1, []),
        ("eight", 8, []),
        ("processes", 2, ["-m", "experiments.launch", "-n", "2"]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        command = [sys.executable, str(tmp_path / "train.py")]
        if prefix:
            command = [sys.executable, *prefix, "--devices", str(devices), "--timeout", "300", "--", *command]
        flags = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            command, cwd=folder, env=os.environ | flags, capture_output=True, text=True, timeout=400, check=False
        )
        assert run.returncode == 0, run.stderr[-3000:] + run.stdout[-3000:]
        found[name] = re.search(r"(\d+) devices, loss (\S+)", run.stdout).groups()
        records = (folder / "run.jsonl").read_text().splitlines()
        assert len(records) == 7  # of one process only: a start, five epochs and an end
        assert len(list((folder / "run").glob("*-step-*"))) == 3
    assert [devices for devices, _ in found.values()] == ["1", "8", "4"]
    np.testing.assert_allclose([float(loss) for _, loss in found.values()], float(found["one"][1]), atol=2e-6)
