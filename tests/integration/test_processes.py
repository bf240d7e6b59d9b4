"""Real processes on this machine: killed and resumed, connected as clusters do it, and checkpoints of all together.

The slow ones: ``pytest -m slow tests/integration/test_processes.py tests/integration/test_faults.py``.
"""

import sys
from pathlib import Path

import pytest

from experiments import faults_runs, launch

CHECKS = [sys.executable, str(Path(__file__).with_name("process_checks.py"))]


def run(command, processes, devices=2):
    """A program in so many processes, after they have ended, and the exit code of its first failure."""
    with launch.Group(command, processes, devices, shown=False) as group:
        code = group.wait(120.0, 30.0)
    return group, code


def check(name, *arguments, processes=2, devices=2, command=CHECKS):
    """Run one of the checks of `process_checks`."""
    group, code = run([*command, name, *map(str, arguments)], processes, devices)
    assert code == 0, "\n".join(line for lines in group.lines for line in lines)
    assert [lines[-1] for lines in group.lines] == [f"{name} holds"] * processes


def test_two_processes_whose_coordinator_is_killed_end_at_once_and_resume_bit_for_bit(tmp_path):
    scenario = faults_runs.Scenario("kill the coordinator", "kill", 0)
    faults_runs.finish(tmp_path / "reference", 2, 12, "int8")
    found = faults_runs.outcome(scenario, tmp_path / "killed", tmp_path / "reference", 12, "int8")
    assert found.ended == "exit code 1"
    assert found.seconds < 5
    assert found.last_line.startswith("distributed: process 1 of 2 ends, because process 0")
    assert found.resumed == 8
    assert found.difference == 0


@pytest.mark.slow
def test_batches_are_those_of_all_processes_and_process_0_alone_writes(tmp_path):
    check("data", tmp_path)


@pytest.mark.slow
def test_checkpoints_of_two_processes_refuse_together_and_restore_on_one_and_on_four(tmp_path):
    check("checkpoints", tmp_path)
    check("restored", tmp_path, processes=1, devices=4)
    check("restored", tmp_path, processes=4, devices=1)


# What the clusters set, for a process that the launcher has numbered; the port would be taken from the job's number.
CLUSTERS = {
    "slurm": {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "$JAX_PROCESS_ID",
        "SLURM_LOCALID": "$JAX_PROCESS_ID",
    },
    "ompi": {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "$JAX_PROCESS_ID",
        "OMPI_COMM_WORLD_LOCAL_RANK": "$JAX_PROCESS_ID",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_initialize_without_arguments_connects_under(cluster):
    exports = [f'export {name}="{value}"' for name, value in CLUSTERS[cluster].items()]
    own = 'export JAX_COORDINATOR_PORT="${JAX_COORDINATOR_ADDRESS##*:}"'
    clear = "unset JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID"
    shell = ["sh", "-c", "; ".join([*exports, own, clear, 'exec "$@"']), "sh"]
    check("connected", 2, command=[*shell, *CHECKS])


CONNECT = """
import os, sys
from nagjax.training import distributed
if os.environ["JAX_PROCESS_ID"] == "{absent}":
    sys.exit()
distributed.initialize(initialization_timeout=5)
"""


@pytest.mark.slow
def test_a_process_that_never_connects_is_named_by_all_others():
    group, code = run([sys.executable, "-c", CONNECT.format(absent=1)], processes=3)
    assert code == 1
    for index in (0, 2):
        assert group.lines[index][-1].startswith("TimeoutError: distributed.initialize: num_processes must be")
        assert "got 2 of 3 within 5 s, without process 1;" in group.lines[index][-1]
        assert group.ended[index][1] < 60


@pytest.mark.slow
def test_an_absent_coordinator_is_named_by_its_address():
    group, code = run([sys.executable, "-c", CONNECT.format(absent=0)], processes=2)
    assert code == 1
    assert "coordinator_address must be that of process 0, got '127.0.0.1:" in group.lines[1][-1]
    assert "without an answer within 5 s;" in group.lines[1][-1]
    assert group.ended[1][1] < 60
