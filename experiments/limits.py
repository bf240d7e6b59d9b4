"""Runs an experiment on fewer cores or in less memory than the machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.output import Options, UsageError, partial_folder

_CHILD = "NAGJAX_EXPERIMENTS_MEMORY_LIMITED"
OUT_OF_MEMORY = 3
MEGABYTE = 1_000_000
_SIGNS = (
    "MemoryError",
    "RESOURCE_EXHAUSTED",
    "Cannot allocate memory",
    "Memory allocation",
    "failed to map segment",
    "can't start new thread",
    "blas_thread_init",
    "thread creation failed",
)


def set_threads(count: int) -> None:
    """Pins this process to `count` cores. XLA sizes its thread pool by the cores it may use when JAX starts."""
    if "jax" in sys.modules:
        raise UsageError("--threads acts before JAX starts, but JAX is already imported; run `python -m experiments`.")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not 1 <= count <= len(cores):
        raise UsageError(f"--threads must be between 1 and {len(cores)} (the cores at hand), got {count}.")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores[:count])
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(count)
    if count == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def limited_child() -> bool:
    """Tells whether this process is the one that runs under a memory limit."""
    return _CHILD in os.environ


def set_memory_limit(megabytes: int) -> None:
    """Limits the private writable memory of this process (RLIMIT_DATA: heap, buffers and stacks, not shared code)."""
    import resource

    limit = megabytes * MEGABYTE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def run_limited(name: str, config: Options, megabytes: int, arguments: Sequence[str]) -> int:
    """Runs the same command in a child under a memory limit, so that even a crash there ends in a message here.

    Python, OpenBLAS, XLA and the loader each fail in their own way when memory ends; `_SIGNS` are their words.
    """
    if sys.platform != "linux":
        raise UsageError(f"{name}: --memory-limit needs Linux, which counts the memory; leave the option out.")
    interrupted = False
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "experiments", *arguments], env={**os.environ, _CHILD: "1"}, stderr=errors
        )
        while child.poll() is None:
            try:
                child.wait()
            except KeyboardInterrupt:
                interrupted = True  # It reaches the child too, which cleans up.
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    target = (config.out or Path("results") / name).absolute()
    shutil.rmtree(partial_folder(target, child.pid), ignore_errors=True)
    if interrupted:
        raise KeyboardInterrupt
    code = child.returncode
    if code == 0 or not (code < 0 or code == OUT_OF_MEMORY or any(sign in said for sign in _SIGNS)):
        print(said, end="", file=sys.stderr)
        return code
    print(
        f"experiments: {name} did not fit into --memory-limit {megabytes} MB; raise the limit, or ask for less work "
        "(--quick). Earlier results are as they were.",
        file=sys.stderr,
    )
    return OUT_OF_MEMORY
