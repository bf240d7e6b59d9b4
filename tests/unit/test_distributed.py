"""What `initialize` understands and refuses before anything connects, and global batches on one process."""

import contextlib
import json
import os
import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nagjax import training
from nagjax.training import distributed, peers, progress, reports

MESH = ("data",)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORD", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "KUBERNETES_")):
            monkeypatch.delenv(name)


@pytest.fixture
def engine(monkeypatch):
    """`jax.distributed.initialize` that notes its arguments, and the number of processes it makes."""
    called = {}

    def initialize(address, count, index, ids, cluster, **options):
        called.update(address=address, count=count, index=index, ids=ids, cluster=cluster, **options)
        monkeypatch.setattr(jax, "process_count", lambda: called.get("started", count))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(peers, "used", lambda: False)
    monkeypatch.setattr(peers, "reported", lambda timeout: contextlib.nullcontext())
    monkeypatch.setattr(peers, "watch", lambda index, count: called.update(watched=(index, count)))
    return called


def refused(error, *parts):
    return pytest.raises(error, match="^distributed.*" + ".*".join(re.escape(part) for part in parts))


def test_a_process_for_which_nothing_says_otherwise_runs_alone(engine):
    assert distributed.initialize() == distributed.initialize(num_processes=1) == (0, 1, None)
    assert engine == {}


def test_arguments_reach_jax_with_the_heartbeat_of_30_seconds(engine):
    found = distributed.initialize("host:1234", 4, 2, local_device_ids=1, initialization_timeout=60)
    assert found == (2, 4, "host:1234")
    assert engine == {
        "address": "host:1234",
        "count": 4,
        "index": 2,
        "ids": [1],
        "cluster": None,
        "initialization_timeout": 60 + peers.MARGIN,
        "heartbeat_timeout_seconds": 30,
        "shutdown_timeout_seconds": 300,
        "watched": (2, 4),
    }


def test_arguments_come_before_the_environment_and_that_before_the_cluster(engine, monkeypatch):
    environment = {
        "SLURM_JOB_ID": "4097",
        "SLURM_STEP_NODELIST": "node[003-006],other",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.initialize() == (3, 4, "node003:61441")
    assert engine["ids"] == [1]
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "front:99")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    assert distributed.initialize() == (1, 4, "front:99")
    assert distributed.initialize("back:98", process_id=0) == (0, 4, "back:98")


def test_open_mpi_is_detected(engine, monkeypatch):
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911")
    for name, value in {"SIZE": 2, "RANK": 1, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", str(value))
    assert distributed.initialize() == (1, 2, f"10.96.0.1:{1531576320 // 4096 % 4096 + 61440}")


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES"])
def test_processes_that_would_each_run_alone_are_refused(name, engine, monkeypatch):
    monkeypatch.setenv(name, "4")
    with pytest.raises((RuntimeError, ValueError), match=r"^distributed\.initialize: .* must be"):
        distributed.initialize()
    assert distributed.initialize(num_processes=1) == (0, 1, None)


def test_fewer_processes_than_expected_are_refused(engine, monkeypatch):
    engine["started"] = 1
    with refused(RuntimeError, "jax.process_count() must be num_processes = 2, got 1;"):
        distributed.initialize("host:1", 2, 0)
    assert "watched" not in engine


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        (("host:1", 2, 2), ValueError, ["process_id must be less than num_processes = 2, got 2;"]),
        (("host:1", 2, -1), ValueError, ["process_id must be an integer of at least 0, got -1;"]),
        (("host:1", 0, 0), ValueError, ["num_processes must be an integer of at least 1, got 0;"]),
        (("host:1", 2.0, 0), TypeError, ["num_processes must be an integer of at least 1, got 2.0;"]),
        (("host", 2, 0), ValueError, ["coordinator_address must be \"host:port\", got 'host';"]),
        (("host:70000", 2, 0), ValueError, ['coordinator_address must be "host:port"']),
        (("host:1", 2), ValueError, ["process_id must be known", "set JAX_PROCESS_ID"]),
        (("host:1", None, 0), ValueError, ["num_processes must be known", "set JAX_NUM_PROCESSES"]),
        ((None, 2, 0), ValueError, ["coordinator_address must be known", "set JAX_COORDINATOR_ADDRESS"]),
    ],
)
def test_bad_arguments_are_refused_before_any_connection(arguments, error, parts, engine):
    with refused(error, *parts):
        distributed.initialize(*arguments)
    assert engine == {}


@pytest.mark.parametrize("name", ["initialization_timeout", "heartbeat_timeout", "shutdown_timeout"])
def test_timeouts_are_seconds_of_at_least_1(name):
    with refused(ValueError, f"{name} must be an integer of at least 1, got 0;"):
        distributed.initialize(**{name: 0})


def test_variables_that_are_no_numbers_are_refused(engine, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with refused(ValueError, "the variable JAX_NUM_PROCESSES must be an integer of at least 1, got 'two';"):
        distributed.initialize()


def test_connecting_after_the_first_use_of_jax_is_refused():
    jax.devices()
    with refused(RuntimeError, "must be the first use of JAX"):
        distributed.initialize("127.0.0.1:1", 2, 1)


# What jaxlib 0.10.2 says.
BARRIER = """Shutdown() was called while coordination agent is in error state. Agent status: DEADLINE_EXCEEDED: Barrier
timed out. Id: [Init]Wait_for_all_tasks_to_register::0. Please look at the task logs to debug further.
# of tasks that reached the barrier: {reached}/5.
The first task at the barrier: 0. Some timed out task names:
{names}


RPC: /xla.coordination.CoordinationService/RegisterTask"""


@pytest.mark.parametrize(
    ("status", "error", "parts"),
    [
        (BARRIER.format(reached=4, names="2"), TimeoutError, ["got 4 of 5 within 60 s, without process 2; start it"]),
        (BARRIER.format(reached=3, names="4\n2"), TimeoutError, ["got 3 of 5 within 60 s, without processes 2, 4;"]),
        (
            "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: RegisterTask",
            TimeoutError,
            ["coordinator_address must be that of process 0, got 'host:1' without an answer within 60 s;"],
        ),
        ("ABORTED: 1 unexpectedly\nmore", RuntimeError, ["'host:1' and 0 (ABORTED: 1 unexpectedly);"]),
    ],
)
def test_failures_of_the_connection_name_what_is_missing(status, error, parts, engine, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("std::bad_cast")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    monkeypatch.setattr(peers, "abandon", lambda: status)
    with refused(error, *parts):
        distributed.initialize("host:1", 5, 0, initialization_timeout=60)


def test_a_second_call_with_the_same_meaning_does_nothing_and_another_is_refused(engine, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(peers, "address", lambda: "host:1")
    assert distributed.initialize() == distributed.initialize("host:1", 2, 1) == (1, 2, "host:1")
    for arguments in [("host:2", 2, 1), ("host:1", 3, 1), ("host:1", 2, 0)]:
        with refused(ValueError, "a second call must be as what has connected"):
            distributed.initialize(*arguments)
    assert engine == {}


def test_a_global_batch_of_one_process_is_the_batch_on_its_devices():
    mesh = jax.make_mesh((8,), MESH, axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = {"x": np.arange(48.0).reshape(16, 3), "y": np.arange(16)}
    found = distributed.global_batch(batch, sharding)
    for name, value in batch.items():
        assert found[name].sharding == sharding
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(ValueError, match=r"^distributed\.global_batch: batch must be .* 8 devices .*, got \(9,\);"):
        distributed.global_batch(np.zeros(9), sharding)


@pytest.mark.parametrize("main", [True, False])
def test_only_process_0_writes_and_shows(main, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(reports, "is_main", lambda: main)
    monkeypatch.setattr(progress, "is_main", lambda: main)
    record = training.Record("train", 1, 0, 0.5, {"loss": 2.0})
    for callback in (training.jsonl(tmp_path / "log"), training.tensorboard(tmp_path / "events")):
        callback(record._replace(kind="start"))
        callback(record)
        callback(record._replace(kind="end"))
    shown = progress.Progress(shown=True, total=2, done=0)
    shown.advance(0, 1)
    shown.epoch(1, 1, [record])
    written = {path.name for path in tmp_path.iterdir()}
    assert written == ({"log", "events"} if main else set())
    assert ("loss 2" in capsys.readouterr().err) == main
    if main:
        assert [json.loads(line)["kind"] for line in (tmp_path / "log").read_text().splitlines()][1] == "train"


def test_all_processes_stop_early_alike(monkeypatch):
    monkeypatch.setattr(reports, "is_main", lambda: False)
    watch = training.early_stopping(patience=1)
    evaluation = training.Record("eval", 1, 1, 0.5, {"loss": 1.0})
    assert watch(evaluation) is None
    assert watch(evaluation) == "loss has not become better for 1 evaluations"


def test_one_process_is_the_main_one():
    assert distributed.is_main()
