"""The groups of devices of a collective, in each form in which XLA prints them.

- a list: `{{0,1},{2,3}}`, or `{}` for all devices;
- iota: `[2,4]<=[8]` counts through 8 devices, two groups of four; `[4,2]<=[2,4]T(1,0)` counts through a 2 x 4 array of
  devices whose axes are permuted first;
- a mesh and the axes that communicate: `mesh['a'=2,'b'=4] {'b'}`, also with parts of an axis (`'b':(2)2` is the part of
  size 2 inside a part of size 2) and with an order of devices other than 0, 1, ... (`device_ids=(0,2,1,3)`).
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

Groups = tuple[tuple[int, ...], ...]
_IOTA = re.compile(r"\[([\d,]*)\]<=\[([\d,]*)\](?:T\(([\d,]*)\))?$")
_MESH = re.compile(r"mesh\[(?P<axes>[^\]]*)\](?:,? ?device_ids=\((?P<ids>.*)\))? ?\{(?P<chosen>[^}]*)\}$")
_AXIS = re.compile(r"'?([\w.\-]+)'?=(\d+)")
_CHOSEN = re.compile(r"'?([\w.\-]+)'?(?::\((\d+)\)(\d+))?")
_TRANSPOSED = re.compile(r"\[([\d,]*)\](?:T\(([\d,]*)\))?$")


def device_groups(text: str, devices: int) -> Groups:
    """Reads one value of `replica_groups`.

    Args:
        text: The value in one of the three forms.
        devices: Devices of the program, which an empty list means.

    Returns:
        The groups; a group of one device communicates with nobody.

    Raises:
        ValueError: The form is not one of the three.
    """
    if text in ("{}", ""):
        return (tuple(range(devices)),)
    if text.startswith("{"):
        return tuple(tuple(_numbers(group)) for group in re.findall(r"\{([\d,]*)\}", text[1:-1]))
    iota = _IOTA.match(text)
    if iota:
        return _rows(_permuted(_numbers(iota[2]), iota[3]).reshape(_numbers(iota[1])))
    mesh = _MESH.match(text)
    if mesh:
        return _mesh_groups(mesh)
    raise ValueError(
        f"device_groups: text must be a list, an iota or a mesh, got {text[:80]!r}; extend experiments/hlo_groups.py."
    )


def source_target_groups(text: str) -> Groups:
    """Joins the pairs of a permutation, `{0,1},{1,2}`, to groups of devices that are connected."""
    groups: list[set[int]] = []
    for pair in re.findall(r"\{(\d+),(\d+)\}", text):
        joined = {int(pair[0]), int(pair[1])}
        apart = []
        for group in groups:
            if group & joined:
                joined |= group
            else:
                apart.append(group)
        groups = [*apart, joined]
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def _mesh_groups(mesh: re.Match[str]) -> Groups:
    axes = {name: int(size) for name, size in _AXIS.findall(mesh["axes"])}
    order = np.arange(math.prod(axes.values()))
    if mesh["ids"]:
        transposed = _TRANSPOSED.match(mesh["ids"])
        listed = _permuted(_numbers(transposed[1]), transposed[2]) if transposed else np.array(_numbers(mesh["ids"]))
        order = listed.reshape(-1)
    parts: dict[str, tuple[int, int]] = {
        name: (int(before or 1), int(size or axes[name])) for name, before, size in _CHOSEN.findall(mesh["chosen"])
    }
    # Each axis in three: what stands outside the part, the part, and what stands inside.
    shape, chosen = [], []
    for name, length in axes.items():
        before, size = parts.get(name, (1, 1))
        chosen.append(len(shape) + 1)
        shape += [before, size, length // (before * size)]
    kept = [axis for axis in range(len(shape)) if axis not in chosen]
    return _rows(order.reshape(shape).transpose(*kept, *chosen).reshape(-1, math.prod(shape[axis] for axis in chosen)))


def _permuted(lengths: list[int], permutation: str | None) -> NDArray[np.int64]:
    array = np.arange(math.prod(lengths)).reshape(lengths)
    return array.transpose(_numbers(permutation)) if permutation else array


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _rows(array: NDArray[np.int64]) -> Groups:
    return tuple(tuple(int(device) for device in row) for row in array)
