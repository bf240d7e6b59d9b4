"""Every fault of the experiment `faults` with real processes: survivors end in time and say why, restarts are exact."""

import re

import numpy as np
import pytest

from experiments import faults_runs
from experiments.faults_runs import Outcome

HEARTBEAT = 6  # seconds
STEPS = 16
SLACK = 10.0  # seconds: process starts and two cores for several processes
SCENARIOS = faults_runs.scenarios((HEARTBEAT,))
# What the survivor says of the other, by the fault.
REASONS = {
    "kill": r"process {other}\b.* (was killed|killed)",
    "stop": r"process {other}\b.* hangs",
    "raise": r"process 1 has raised ValueError: a fault of the experiment",
    "kill-saving": r"process {other}\b.* killed",
    "disk": r"OSError: Checkpoints\.wait: folder must be one that can be written and has space",
    "corrupt": r"OSError: Checkpoints\.restore: step must be that of a checkpoint that can be read, got 12, damaged in",
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    faults_runs.finish(folder, 2, STEPS, "full")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS])
def test_survivors_say_why_they_end_in_time_and_restarts_are_exact(scenario, reference, tmp_path):
    found = faults_runs.outcome(scenario, tmp_path / "run", reference, STEPS)
    other = scenario.process
    assert found.ended == "exit code 1"
    assert found.last_line.startswith(f"distributed: process {1 - other} of 2 ends, because ")
    assert re.search(REASONS[scenario.fault].format(other=other), found.last_line), found.last_line
    assert found.seconds <= HEARTBEAT + SLACK
    # Checkpoints are written every 4 steps, faults come at step 10, full disks and damage are met at the next one.
    assert found.resumed == 8
    assert found.difference <= (0 if scenario.restart == 2 else 1e-6)


def test_a_changed_byte_and_a_changed_parameter_are_seen(tmp_path):
    state = tmp_path / "checkpoints" / "00001-step-4" / "state"
    state.mkdir(parents=True)
    (state / "array").write_bytes(bytes(100))
    (state / "index").write_bytes(bytes(10))
    assert faults_runs.corrupt(tmp_path) == state / "array"
    assert sum((state / "array").read_bytes()) == 1
    for name, value in {"one": 0.0, "other": 0.25}.items():
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "final.npz", x=np.zeros(3), y=np.full(2, value))
    assert faults_runs.difference(tmp_path / "one", tmp_path / "other") == 0.25


def test_the_table_has_a_row_an_outcome():
    rows = [
        Outcome("kill", 10, "exit code 1", 8.51, "why", 2, 8, 0.0),
        Outcome("stop", 30, "was ended", None, "", 4, 8, 1.5e-8),
    ]
    lines = faults_runs.table(rows).splitlines()
    assert lines[2:] == [
        "| kill | 10 s | exit code 1 | 8.5 s | why | 2 | 8 | 0, bit for bit |",
        "| stop | 30 s | was ended | - |  | 4 | 8 | 1.5e-08 |",
    ]
