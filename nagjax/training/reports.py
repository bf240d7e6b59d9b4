"""What a run reports while it goes on, and callbacks that write it down or end the run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nagjax import checks

Kind = Literal["start", "resume", "train", "eval", "end"]
Mode = Literal["min", "max"]


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
    Infinity and NaN, which JSON lacks, become null.

    Args:
        path: The file; its folder is made.
    """
    path = Path(path)

    def write(record: Record) -> None:
        if record.replayed:
            return
        if record.kind == "resume":
            _forget_after(path, record.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        metrics = {name: value if math.isfinite(value) else None for name, value in record.metrics.items()}
        line = {"kind": record.kind, "step": record.step, "epoch": record.epoch, "seconds": record.seconds} | metrics
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    return write


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of the last run that are later than `step`, and a line that was cut off."""
    if not path.exists():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["kind"] == "start" or record["step"] <= step:
            kept.append(line)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    partial.replace(path)


def tensorboard(folder: str | Path) -> Callback:
    """A callback that writes TensorBoard event files, with names such as "train/loss" and "eval/accuracy".

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
        if record.replayed:
            return
        if writer is None:
            # Events after the point of resumption are hidden by TensorBoard.
            purge = record.step if record.kind == "resume" else None
            writer = SummaryWriter(str(folder), purge_step=purge)
        for name, value in record.metrics.items():
            writer.add_scalar(f"{record.kind}/{name}", value, record.step)
        writer.flush()
        if record.kind == "end":
            writer.close()
            writer = None

    return write


def early_stopping(metric: str = "loss", *, patience: int, mode: Mode = "min", min_delta: float = 0.0) -> Callback:
    """A callback that ends a run whose evaluations have stopped getting better.

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
        if record.kind == "start":
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
