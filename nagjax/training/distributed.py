"""Several processes as one program: connecting them, global batches of each one's rows, and what process 0 alone does.

Everything is done by JAX's own engine, `jax.distributed`; how its failures are put into words is in `peers`.
"""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, cast

import jax
import numpy as np

from nagjax import checks
from nagjax.training import peers
from nagjax.types import PyTree

_FUNCTION = "distributed.initialize"
# Where schedulers say how many processes they have started: a program of which every process runs alone goes unnoticed.
_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_ADDRESS = re.compile(r"(.+):(\d+)")


class Processes(NamedTuple):
    """What `initialize` returns."""

    process_id: int
    num_processes: int
    coordinator_address: str | None  # that all have connected to; None where one process runs alone


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    local_device_ids: int | Sequence[int] | None = None,
    cluster: str | None = None,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 30,
    shutdown_timeout: int = 300,
) -> Processes:
    """Connects this process with the others of the program, by `jax.distributed.initialize`.

    What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and then from what
    JAX detects: Open MPI, SLURM, Kubernetes, TPU pods. A process for which none of these says anything runs alone, and
    nothing is done. Nothing is done either where the processes are connected already, by this function or by JAX's.

    A process that ends by an exception tells the others, which end at once, as they do when one is killed or hangs for
    `heartbeat_timeout`. The last line of each says which process has failed and how, as far as JAX knows it.

    Args:
        coordinator_address: "host:port" of process 0, with a free port that the others can reach.
        num_processes: Number of processes of the program, at least 1. Give it wherever it is known: processes of which
            each runs alone, as under a launcher that JAX does not detect, are noticed by this number only.
        process_id: Number of this process, from 0 to num_processes - 1.
        local_device_ids: The devices of this machine that this process uses; all, or JAX's choice, if None.
        cluster: JAX's `cluster_detection_method`, such as "mpi4py", which it does not try by itself.
        initialization_timeout: Seconds to wait for the others, at least 1.
        heartbeat_timeout: Seconds without a sign of life after which a process is taken for dead, at least 1.
        shutdown_timeout: Seconds that a process waits at its end for the others to end, at least 1.

    Returns:
        Number of this process, number of processes, and the coordinator's address.

    Raises:
        TypeError, ValueError: An argument, or its variable, is out of its range, or another one than in a call before.
        RuntimeError: JAX has been used already; or there are fewer processes than expected.
        TimeoutError: Others have not connected in time; the message names them.

    Example:
        >>> from nagjax.training import distributed
        >>> found = distributed.initialize(num_processes=1)
        >>> found == (0, 1, None)
        True
    """
    remedy = "JAX's own default is 300"
    checks.whole(_FUNCTION, "initialization_timeout", initialization_timeout, 1, remedy)
    checks.whole(_FUNCTION, "heartbeat_timeout", heartbeat_timeout, 1, "30 is usual")
    checks.whole(_FUNCTION, "shutdown_timeout", shutdown_timeout, 1, remedy)
    address = coordinator_address if coordinator_address is not None else os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _whole("num_processes", num_processes, "JAX_NUM_PROCESSES", 1)
    index = _whole("process_id", process_id, "JAX_PROCESS_ID", 0)
    expected = count if count is not None else _scheduled()
    if jax.distributed.is_initialized():
        return _connected(address, expected, index)
    ids = [local_device_ids] if isinstance(local_device_ids, int) else local_device_ids
    address, count, index, ids = peers.detected(address, count, index, ids, cluster, initialization_timeout)
    if address is None and (count is None or count == 1):
        return _alone(expected)
    address, count, index = _checked(address, count, index)
    if expected is not None and count != expected:
        remedy = "the scheduler's number is another; start one of its tasks a process"
        checks.reject(_FUNCTION, "num_processes", f"{expected}, as {_scheduler()}", count, remedy)
    if peers.used():
        remedy = "call it before jax.devices, jnp.zeros and all else that computes"
        checks.reject(_FUNCTION, "the call", "the first use of JAX", "one after others", remedy, RuntimeError)
    if cast("Any", jax.config).jax_cpu_collectives_implementation is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        with peers.reported(initialization_timeout):
            jax.distributed.initialize(
                address,
                count,
                index,
                ids,
                cluster,
                initialization_timeout=initialization_timeout + peers.MARGIN,
                heartbeat_timeout_seconds=heartbeat_timeout,
                shutdown_timeout_seconds=shutdown_timeout,
            )
    except RuntimeError as error:
        _failed(address, count, index, initialization_timeout, error)
    if (started := jax.process_count()) != count:
        remedy = "another plugin of JAX decides otherwise: start the processes as its manual says"
        checks.reject(_FUNCTION, "jax.process_count()", f"num_processes = {count}", started, remedy, RuntimeError)
    peers.watch(index, count)
    return Processes(index, count, address)


def is_main() -> bool:
    """Whether this is process 0, which alone writes what all would write alike: metrics, reports, progress."""
    # Asked first, since the index of a process starts the devices.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def global_batch(batch: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """A batch over all processes from the rows of this one.

    Rows are in the order of the mesh's devices. Data split as `rows[jax.process_index()::jax.process_count()]`, or by
    Grain's `ShardByJaxProcess(drop_remainder=True)`, are in equal parts where the first cuts off what is left over.

    Args:
        batch: A tree of arrays of this process's rows, the first axis. All processes give trees of equal shapes.
        sharding: How the global arrays are split over the devices of all processes.

    Returns:
        The tree of global arrays, whose first axis is so many times longer as processes hold different rows.

    Raises:
        ValueError: The rows of this process cannot be split over its devices.
    """

    def globally(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        try:
            return jax.make_array_from_process_local_data(sharding, array)
        except ValueError as error:
            devices = len(cast("set[Any]", sharding.addressable_devices))
            condition = f"a tree of arrays whose rows divide over {devices} devices of this process"
            remedy = f"choose another batch size ({error})"
            checks.reject("distributed.global_batch", "batch", condition, array.shape, remedy)

    return jax.tree.map(globally, batch)


def _whole(argument: str, value: int | None, variable: str, least: int) -> int | None:
    """An argument, or what the environment says."""
    if value is not None:
        checks.whole(_FUNCTION, argument, value, least, "count the processes that are started; the first has number 0")
        return int(value)
    text = os.environ.get(variable, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < least:
        checks.reject(_FUNCTION, f"the variable {variable}", f"an integer of at least {least}", text, "correct it")
    return int(text)


def _scheduled() -> int | None:
    """The number of processes that a scheduler says it has started."""
    found = [text for name in _COUNTS if (text := os.environ.get(name, "")).isdecimal()]
    return int(found[0]) if found else None


def _scheduler() -> str:
    found = [f"{name}={os.environ[name]} says" for name in _COUNTS if os.environ.get(name)]
    return " and ".join(found) or "JAX_NUM_PROCESSES says"


def _alone(expected: int | None) -> Processes:
    if expected is not None and expected > 1:
        remedy = "start it by srun or mpirun, or give coordinator_address and process_id; num_processes=1 is one alone"
        condition = f"{expected}, the number that is expected"
        checks.reject(_FUNCTION, "the number of connected processes", condition, 1, remedy, RuntimeError)
    return Processes(0, 1, None)


def _checked(address: str | None, count: int | None, index: int | None) -> tuple[str, int, int]:
    given: Mapping[str, Any] = {"coordinator_address": address, "num_processes": count, "process_id": index}
    for name, value in given.items():
        if value is None:
            remedy = f"give {name}, or set JAX_{name.upper()}; no cluster was detected that says it"
            checks.reject(_FUNCTION, name, "known where another of the three is given", None, remedy)
    address, count, index = cast("tuple[str, int, int]", (address, count, index))
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 2**16:
        remedy = "give the host of process 0 and a free port there"
        checks.reject(_FUNCTION, "coordinator_address", '"host:port"', address, remedy)
    if index >= count:
        checks.reject(_FUNCTION, "process_id", f"less than num_processes = {count}", index, "the first process is 0")
    return address, count, index


def _connected(address: str | None, expected: int | None, index: int | None) -> Processes:
    """What a call before, or JAX's own function, has connected."""
    found = Processes(jax.process_index(), jax.process_count(), peers.address())
    asked = Processes(
        found.process_id if index is None else index,
        found.num_processes if expected is None else expected,
        found.coordinator_address if address is None else address,
    )
    if asked != found:
        remedy = "processes connect once; end the program to connect others"
        checks.reject(_FUNCTION, "a second call", f"as what has connected, {found}", asked, remedy)
    return found


def _failed(address: str, count: int, index: int, seconds: int, error: RuntimeError) -> NoReturn:
    """Raise what a failed connection means."""
    status = peers.abandon() or str(error)
    if match := re.search(r"barrier: (\d+)/\d+\..*task names:\s*([\d\s,]*)", status, re.DOTALL):
        missing = sorted(int(name) for name in re.findall(r"\d+", match[2]))
        names = f"process {missing[0]}" if len(missing) == 1 else f"processes {', '.join(map(str, missing))}"
        got = f"{match[1]} of {count} within {seconds} s, without {names}"
        remedy = "start it with this coordinator_address and its process_id, or look at its log"
        raise TimeoutError(
            f"{_FUNCTION}: num_processes must be the number of processes that are started, got {got}; {remedy}."
        ) from None
    if "DEADLINE_EXCEEDED" in status or "UNAVAILABLE" in status:
        name = socket.gethostname()
        remedy = f"start process 0 there, and see whether {name} can reach it"
        raise TimeoutError(
            f"{_FUNCTION}: coordinator_address must be that of process 0, got {address!r} without an answer within"
            f" {seconds} s; {remedy}."
        ) from None
    reason = status.partition("\n")[0]
    raise RuntimeError(
        f"{_FUNCTION}: coordinator_address and process_id must be those of one program, got {address!r} and {index}"
        f" ({reason}); choose a free port, and another process_id in each process."
    ) from error
