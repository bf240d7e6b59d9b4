"""In what two trees or two configurations differ, for people to read."""

import json
from collections.abc import Mapping
from typing import Any, cast

_SHOWN = 12  # lines; a model of another width differs in hundreds


def entries(config: Any, prefix: str = "") -> dict[str, str]:
    """The entries of nested JSON as text, under names such as "model.width"; empty containers are entries."""
    if isinstance(config, Mapping):
        pairs = [(str(key), value) for key, value in cast("Mapping[Any, Any]", config).items()]
    elif isinstance(config, list):
        pairs = [(str(index), value) for index, value in enumerate(cast("list[Any]", config))]
    else:
        pairs = []
    if not pairs:
        return {prefix: json.dumps(config)} if prefix else {}
    found: dict[str, str] = {}
    for key, value in pairs:
        found |= entries(value, f"{prefix}.{key}" if prefix else key)
    return found


def difference(
    stored: Mapping[str, str], present: Mapping[str, str], there: str = "in the checkpoint", here: str = "now"
) -> list[str]:
    """One line an entry in which what is stored and the present differ: the present's in its order, then others."""
    lines = [
        f"{name}: {stored[name]} {there}, {value} {here}" if name in stored else f"{name}: {value} only {here}"
        for name, value in present.items()
        if stored.get(name) != value
    ]
    return lines + [f"{name}: {value} only {there}" for name, value in stored.items() if name not in present]


def shortened(lines: list[str]) -> str:
    """Lines as one text; of many the first ones, and the number of the others."""
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([*lines[:_SHOWN], *more])
