"""Where the results of a run go: a temporary folder that takes its target's place when the run has ended."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = "results.json"
METRICS = "metrics.jsonl"
FORMAT = "nagjax experiment 1"
PACKAGES = ("nagjax", "jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn", "matplotlib")


class UsageError(Exception):
    """A request that is refused before any work starts; the message says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every experiment."""

    out: Path | None = None
    """Folder for the results. Default: results/NAME in the current folder, replaced as a whole when a run ends."""
    overwrite: bool = False
    """Replace the result that the folder given by --out holds."""


@dataclasses.dataclass
class Run:
    """One run: `folder` is where `main` writes."""

    folder: Path

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(record), allow_nan=False) + "\n")

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file atomically."""
        partial = self.folder / f".{name}.partial"
        partial.write_text(json.dumps(plain(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(self.folder / name)


def plain(value: Any) -> Any:
    """Returns the value as JSON knows it: arrays become lists, NaN and infinity become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


@contextmanager
def recorded(name: str, config: Options) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Opens a run and gives (run, results); what `main` returns goes into `results`.

    On leaving the block, results.json is written and the folder takes its target's place. On any exception, Ctrl-C
    included, the temporary folder is removed and the target is as it was.

    Raises:
        UsageError: the target holds something that this run may not replace, or cannot be written.
    """
    target = (config.out or Path("results") / name).absolute()
    explicit = config.out is not None
    shown = config.out if config.out is not None else Path("results") / name
    _refuse_occupied(name, target, shown, may_replace=config.overwrite or not explicit)
    made = [parent for parent in target.parents if not parent.exists()]
    partial = partial_folder(target, os.getpid())
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"{name}: --out {shown} cannot be written ({error.strerror}); choose a folder that you may write to."
        ) from None
    start = time.perf_counter()
    results: dict[str, Any] = {}
    run = Run(partial)
    try:
        yield run, results
        record = describe(name, config)
        record["seeds"] = results.pop("seeds", [])
        record["wall_seconds"] = time.perf_counter() - start
        record["results"] = results
        record["files"] = sorted({RESULTS, *(path.relative_to(partial).as_posix() for path in _files(partial))})
        run.write_json(RESULTS, record)
        # Asked again: minutes have passed, and something else may stand there now.
        _refuse_occupied(name, target, shown, may_replace=config.overwrite or not explicit)
        _take_place(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def partial_folder(target: Path, process: int) -> Path:
    """Returns the temporary folder that a process uses for this target."""
    return target.parent / f".{target.name}.partial-{process}"


def describe(name: str, config: Options) -> dict[str, Any]:
    """Returns what identifies a run: options, versions, platform and devices; no user or path of this machine."""
    options = {key: value for key, value in vars(config).items() if key != "overwrite" and not isinstance(value, Path)}
    options.pop("out", None)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where: dict[str, Any] = {"system": platform.system(), "machine": platform.machine(), "cores": cores}
    if "jax" in sys.modules:
        devices = sys.modules["jax"].devices()
        where |= {"backend": devices[0].platform, "device_kind": devices[0].device_kind, "devices": len(devices)}
    return {"format": FORMAT, "experiment": name, "config": options, "versions": versions, "platform": where}


def _refuse_occupied(name: str, target: Path, shown: Path, *, may_replace: bool) -> None:
    try:
        if not os.path.lexists(target):
            return
        if target.is_symlink() or not target.is_dir() or os.path.ismount(target):
            kind = "a link" if target.is_symlink() else "a mount point" if target.is_dir() else "a file"
            raise UsageError(f"{name}: --out {shown} is {kind}; choose a new folder.")
        if not any(target.iterdir()):
            return
        found = _own_files(target)
    except OSError as error:
        raise UsageError(f"{name}: --out {shown} cannot be used ({error.strerror}); choose another folder.") from None
    if found is None or found[0] != name:
        owner = f"results of {found[0]}" if found else "files that are not a result of these experiments"
        raise UsageError(f"{name}: --out {shown} holds {owner}, which is never replaced; choose another folder.")
    foreign = sorted({path.relative_to(target).as_posix() for path in _files(target)} - found[1])
    if foreign:
        raise UsageError(
            f"{name}: --out {shown} holds {foreign[0]!r}, which no run wrote; move it away or choose another folder."
        )
    if not may_replace:
        raise UsageError(
            f"{name}: --out {shown} already holds a result; add --overwrite to replace it, or choose another folder."
        )


def _own_files(folder: Path) -> tuple[str, set[str]] | None:
    """Returns the experiment and the files of a result that this module wrote, or None for any other folder."""
    try:
        record = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            return None
        return str(record["experiment"]), set(record["files"])
    except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError):
        return None


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def _take_place(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = target.parent / f".{target.name}.old-{os.getpid()}"
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
