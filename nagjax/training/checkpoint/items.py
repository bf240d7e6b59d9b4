"""What one checkpoint holds, through Orbax: the record in JSON, and the arrays of the state."""

import importlib
import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from nagjax import checks
from nagjax.training.checkpoint import leaves
from nagjax.types import PyTree

_RECORD, _STATE = "record", "state"
_SUMS = "checksums.json"
_CHUNK = 2**22  # bytes


def as_json(function: str, argument: str, value: Any) -> Any:
    """What JSON makes of a value; scalars of NumPy and JAX are numbers."""

    def number(other: Any) -> Any:
        return other.item()

    try:
        return json.loads(json.dumps(value, default=number))
    except (TypeError, ValueError, AttributeError) as error:
        remedy = f"make it of dictionaries, lists, numbers and strings ({error})"
        checks.reject(function, argument, "JSON", value, remedy, TypeError)


def prepared(
    step: int,
    state: PyTree,
    cursor: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    several: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the arrays of a checkpoint, of `several` processes or one."""
    name = "Checkpoints.save"
    named = leaves.named(state)
    arrays = {key: leaves.to_stored(name, key, leaf, several) for key, leaf in named.items()}
    record: dict[str, Any] = {
        "step": int(step),
        "cursor": as_json(name, "cursor", cursor),
        "config": as_json(name, "config", config),
        "leaves": {key: leaves.described(leaf) for key, leaf in named.items()},
        "keys": {k: str(jax.random.key_impl(leaf)) for k, leaf in named.items() if leaves.is_key(leaf)},
        "metrics": {key: float(value) for key, value in (metrics or {}).items()},
    }
    return record, arrays


def writer(unfinished: Callable[[], Path], barrier: Callable[..., None] | None) -> Any:
    """A checkpointer that copies what it is given and writes it in a thread.

    Args:
        unfinished: The folder, still under its temporary name, that holds what was written.
        barrier: Called with `key` and `timeout_ms` by the threads of several processes, when all have written and when
            process 0 has completed the checkpoint.
    """
    ocp = _orbax()

    def add_checksums() -> None:
        path = unfinished()
        (path / _SUMS).write_text(json.dumps({str(file.relative_to(path)): _checksum(file) for file in _files(path)}))

    options = ocp.options.AsyncOptions(post_finalization_callback=add_checksums, barrier_sync_fn=barrier)
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)


def to_write(record: dict[str, Any], arrays: dict[str, Any]) -> Any:
    """The argument of the writer's `save`."""
    ocp = _orbax()
    parts = {_RECORD: ocp.args.JsonSave(record)}
    if full := {name: array for name, array in arrays.items() if array.size}:  # Orbax refuses empty arrays
        parts[_STATE] = ocp.args.PyTreeSave(full)
    return ocp.args.Composite(**parts)


def verify(path: Path) -> None:
    """Raise OSError if a file of the checkpoint at `path` is not as it was written."""
    # TensorStore keeps checksums of its indices only: changed bytes of an array would be read as other numbers.
    for name, value in json.loads((path / _SUMS).read_text()).items():
        if _checksum(path / name) != value:
            raise OSError(f"{name} is not as it was written")


def read_record(path: Path) -> dict[str, Any]:
    """The record of the checkpoint at `path`."""
    return _orbax().JsonCheckpointHandler().restore(path / _RECORD)


def read_state(path: Path, template: dict[str, Any], keys: dict[str, str]) -> list[Any]:
    """The leaves of a template that fits the checkpoint at `path`, with its values.

    Args:
        path: The folder of the checkpoint.
        template: Leaves by name.
        keys: Implementations of the PRNG keys among them, by name.

    Returns:
        Leaves in the order, types and places of the template's.
    """
    ocp = _orbax()
    full = {name: leaf for name, leaf in template.items() if math.prod(np.shape(leaf))}
    arguments = {
        name: ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=leaves.sharding(leaf))
        if leaves.is_read_by_shards(leaf)
        else ocp.RestoreArgs(restore_type=np.ndarray)
        for name, leaf in full.items()
    }
    stored: dict[str, Any] = {}
    if full:
        # The handler without a checkpointer, which would have all processes wait for one that fails.
        reader = ocp.PyTreeCheckpointHandler()
        stored = reader.restore(path / _STATE, args=ocp.args.PyTreeRestore(restore_args=arguments))
        reader.close()
    stored |= {name: leaves.empty(leaf) for name, leaf in template.items() if name not in full}
    return [leaves.from_stored(leaf, stored[name], keys.get(name)) for name, leaf in template.items()]


def _files(path: Path) -> list[Path]:
    return sorted(file for item in (_RECORD, _STATE) for file in (path / item).rglob("*") if file.is_file())


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total = zlib.crc32(chunk, total)
    return total


def _orbax() -> Any:
    """Orbax, whose import takes seconds: only where a checkpoint is written or read."""
    return cast("Any", importlib.import_module("orbax.checkpoint"))
