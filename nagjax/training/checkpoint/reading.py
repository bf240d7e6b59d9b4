"""A checkpoint read back, and in which words one is refused."""

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, cast

import jax

from nagjax.training.checkpoint import differences, items, leaves
from nagjax.training.checkpoint.folder import Saved, reason
from nagjax.types import PyTree


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns."""

    step: int
    state: PyTree  # in the types of the template
    cursor: dict[str, Any]
    config: dict[str, Any] | None
    metrics: dict[str, float] | None


def verify(saved: Saved, found: list[Saved]) -> None:
    """Raise OSError if a file of a checkpoint is not as it was written.

    Args:
        saved: The checkpoint.
        found: All that are there.
    """
    try:
        items.verify(saved.path)
    except Exception as error:
        _damaged(saved, found, error)


def record(saved: Saved, found: list[Saved], template: PyTree, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The record of a checkpoint of the same configuration and structure as these."""
    try:
        kept = items.read_record(saved.path)
    except Exception as error:
        _damaged(saved, found, error)
    if config is not None and kept["config"] is not None:
        now = differences.entries(items.as_json("Checkpoints.restore", "config", config))
        _compare("config", saved, differences.entries(kept["config"]), now)
    named = leaves.named(template)
    _compare("state", saved, kept["leaves"], {k: leaves.described(x) for k, x in named.items()})
    return kept


def read(saved: Saved, found: list[Saved], template: PyTree, kept: dict[str, Any]) -> Restored:
    """A checkpoint with this record, in the types and places of the template."""
    try:
        state = items.read_state(saved.path, leaves.named(template), kept["keys"])
    except Exception as error:  # TensorStore and Orbax raise many kinds
        _damaged(saved, found, error)
    tree = cast("Any", jax.tree.structure(template)).unflatten(state)
    return Restored(saved.step, tree, kept["cursor"], kept["config"], kept["metrics"] or None)


def _compare(argument: str, saved: Saved, stored: dict[str, str], present: dict[str, str]) -> None:
    lines = differences.difference(stored, present)
    if lines:
        remedy = "make it as it was, leave out what may differ, or choose another folder"
        raise ValueError(
            f"Checkpoints.restore: {argument} must be that of the checkpoint {saved.path}, got"
            f" {len(lines)} differences; {remedy}.\n{differences.shortened(lines)}"
        )


def _damaged(saved: Saved, found: list[Saved], error: Exception) -> NoReturn:
    others = sorted({other.step for other in found if other.path != saved.path and other.step != saved.step})
    remedy = f"restore with step={others[-1]}" if others else "there is no other to restore"
    raise OSError(
        f"Checkpoints.restore: step must be that of a checkpoint that can be read, got {saved.step}, damaged in"
        f" {saved.path} ({reason(error)}); {remedy}, or move that folder away."
    ) from error
