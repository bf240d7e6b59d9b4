"""What a run reports while it goes on, and callbacks that write it down or end the run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nagjax import checks
from nagjax.training.distributed import is_main

Kind = Literal["start", "resume", "train", "eval", "end"]
Mode = Literal["min", "max"]
_FIELDS = ("kind", "step", "epoch", "seconds")  # of a line in a file, beside the metrics


class Record(NamedTuple):
    """One report of `fit`."""

    kind: Kind  # "train": means over the steps since the last one; "eval": what eval_fn returned
    step: int  # batches seen
    epoch: int  # epochs completed
    seconds: float  # of training so far, over all resumed parts of the run
    metrics: dict[str, float]
    replayed: bool = False  # whether it is from before a resumption, told again to callbacks that remember


Callback = Callable[[Record], str | None]  # a string is a reason to end the run


def jsonl(path: str | Path) -> Callback:
    """A callback that appends every record to a file, one JSON object a line.

    A resumed run first removes the lines that were written after its checkpoint, so that every step is there once.
    A new run adds to the lines of those before it. Infinity and NaN, which JSON lacks, become null. Of several
    processes only process 0 writes.

    Args:
        path: The file; its folder is made.

    Raises:
        ValueError: (during a run) A metric is named "kind", "step", "epoch" or "seconds", as the other fields are.
    """
    path = Path(path)

    def write(record: Record) -> None:
        if record.replayed or not is_main():
            return
        for name in _FIELDS:
            if name in record.metrics:
                condition = f"named other than {', '.join(map(repr, _FIELDS))}"
                checks.reject("jsonl", f"the {record.kind} metric", condition, name, "report it under another name")
        if record.kind in ("start", "resume") and path.exists():
            _forget_after(path, record.step if record.kind == "resume" else math.inf)
        path.parent.mkdir(parents=True, exist_ok=True)
        metrics = {name: value if math.isfinite(value) else None for name, value in record.metrics.items()}
        line = {name: getattr(record, name) for name in _FIELDS} | metrics
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    return write


def _forget_after(path: Path, step: float) -> None:
    """Drop the lines of the last run that are later than `step`, and an end of the file that was cut off."""
    found = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = found[:-1] if found and not found[-1].endswith("\n") else found
    records = [_parsed(line) for line in lines]
    first = max((k for k, record in enumerate(records) if record.get("kind") == "start"), default=0)
    of_run = zip(lines[first:], records[first:], strict=True)
    kept = lines[:first] + [line for line, record in of_run if record.get("step", math.inf) <= step]
    if kept != found:
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)


def _parsed(line: str) -> dict[str, Any]:
    """The object of a line; an empty one where the line holds none."""
    try:
        return dict(json.loads(line))
    except (TypeError, ValueError):
        return {}


def tensorboard(folder: str | Path) -> Callback:
    """A callback that writes TensorBoard event files, with names such as "train/loss" and "eval/accuracy".

    Of several processes only process 0 writes.

    Args:
        folder: The log directory of the run.

    Raises:
        ModuleNotFoundError: tensorboardX is not installed; `pip install 'nagjax[experiments]'` brings it.
    """
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        remedy = "tensorboard: the package tensorboardX must be installed; pip install 'nagjax[experiments]' brings it."
        raise ModuleNotFoundError(remedy, name=error.name) from None
    writer: Any = None

    def write(record: Record) -> None:
        nonlocal writer
        if record.replayed or not is_main():
            return
        if writer is not None and record.kind in ("start", "resume"):  # of a run that an error ended
            writer.close()
            writer = None
        if writer is None:
            # TensorBoard hides the events of an earlier part from this step on; those of the checkpoint's own stay.
            purge = record.step + 1 if record.kind == "resume" else None
            # The files' names have the time in seconds: without a suffix two of one second are one.
            suffix = f".{record.step}"
            # flush() writes what tensorboardX's thread has taken up; what it takes up later follows within a second.
            writer = SummaryWriter(str(folder), purge_step=purge, filename_suffix=suffix, flush_secs=1)
        for name, value in record.metrics.items():
            writer.add_scalar(f"{record.kind}/{name}", value, record.step)
        writer.flush()
        if record.kind == "end":
            writer.close()
            writer = None

    return write


def early_stopping(metric: str = "loss", *, patience: int, mode: Mode = "min", min_delta: float = 0.0) -> Callback:
    """A callback that ends a run whose evaluations have stopped getting better.

    Several processes end together where `eval_fn` returns the same in all, as means over a global batch do.

    Args:
        metric: Name of what `eval_fn` returns.
        patience: Evaluations without a new best, at least 1, after which the run ends.
        mode: Whether less ("min") or more ("max") is better.
        min_delta: What a new best must be better by, at least 0. NaN is never better.

    Raises:
        TypeError, ValueError: An argument is out of its range, or (during a run) `eval_fn` returns no such metric.
    """
    name = "early_stopping"
    checks.whole(name, "patience", patience, 1, "3 is usual")
    checks.nonnegative(name, "min_delta", min_delta, "0 counts every improvement")
    if mode not in ("min", "max"):
        checks.reject(name, "mode", "'min' or 'max'", mode, "a loss is minimized")
    sign = 1 if mode == "min" else -1
    best, waited = math.inf, 0

    def watch(record: Record) -> str | None:
        nonlocal best, waited
        if record.kind in ("start", "resume"):  # a resumed run tells its evaluations again
            best, waited = math.inf, 0
        if record.kind != "eval":
            return None
        if metric not in record.metrics:
            remedy = "return it from eval_fn"
            checks.reject(name, "metric", f"one of {sorted(record.metrics)}", metric, remedy)
        value = sign * record.metrics[metric]
        if value < best - (min_delta if math.isfinite(best) else 0):
            best, waited = value, 0
        else:
            waited += 1
        return f"{metric} has not become better for {waited} evaluations" if waited >= patience else None

    return watch
