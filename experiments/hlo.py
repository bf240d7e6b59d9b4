"""The collectives of a compiled program, read from `compiled.as_text()`: what each device sends, and with whom.

Every collective is listed with its kind, dtypes, bytes, groups of devices, and how often one run of the program
executes it: loops multiply, branches of conditionals are marked. A collective that XLA splits into a start and a done
is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from experiments.hlo_groups import Groups, device_groups, source_target_groups

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
UNNUMBERED = {"pred": 8, "token": 0}  # bits of the dtypes whose names do not say them
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_NAMED = re.compile(r"(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ?([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")
_DTYPE_BITS = re.compile(r"[a-z]+(\d+)")
_LIST, _IOTA = r"\{[\d,{}]*\}", r"\[[\d,]*\]<=\[[\d,]*\](?:T\([\d,]*\))?"
_MESH = r"mesh\[[^\]]*\](?:,? ?device_ids=\(.*?\))? ?\{[^}]*\}"
_GROUPS = re.compile(f"{_LIST}|{_IOTA}|{_MESH}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OPERAND = re.compile(r"%?([\w.\-]+)[,)]")


@dataclass(frozen=True)
class Collective:
    """One collective of a program, as one of its devices sees it."""

    kind: str  # one of KINDS
    dtypes: tuple[str, ...]  # XLA's names, one an array: "f32", "bf16", ...
    result_bytes: int  # of all its arrays, on one device
    groups: Groups  # devices that communicate with one another; for a permutation the connected ones
    times: int | None  # executions in one run of the program; None inside a loop of unknown length
    conditional: bool  # whether it stands in a branch, which may not be taken
    name: str

    @property
    def group_size(self) -> int:
        """Devices in the largest group."""
        return max(map(len, self.groups), default=1)

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends in one execution, by the ring algorithms, which are optimal in bandwidth.

        With n devices and a result of R bytes: all-reduce 2 (n-1)/n R, all-gather and all-to-all (n-1)/n R,
        reduce-scatter (n-1) R (its result is one of n parts), permutation and broadcast R.
        """
        n = self.group_size
        share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}
        share |= {"all-gather": (n - 1) / n, "all-to-all": (n - 1) / n, "collective-broadcast": 1}
        return share[self.kind] * self.result_bytes

    def crosses(self, mesh_shape: Sequence[int]) -> tuple[int, ...]:
        """The axes of a row-major mesh of devices 0, 1, ... along which some group extends."""
        found = set()
        for group in self.groups:
            places = [_place(device, mesh_shape) for device in group]
            found |= {axis for axis in range(len(mesh_shape)) if len({place[axis] for place in places}) > 1}
        return tuple(sorted(found))


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    rest: str  # from the first operand on


def collectives(text: str) -> list[Collective]:
    """All collectives that the entry computation of a program reaches.

    Args:
        text: What `jax.jit(f).lower(...).compile().as_text()` returns.

    Returns:
        One entry for each collective and each place that it is called from, in order of the text.

    Raises:
        ValueError: The text has no entry computation, or groups in a form that is not known.
    """
    computations, entry = _computations(text)
    if entry is None:
        raise ValueError("collectives: text must be a compiled program in HLO, got no ENTRY; pass compiled.as_text().")
    # Not the product of both: JAX uses one of the two.
    devices = max(int(count) for count in re.findall(r"(?:num_partitions|replica_count)=(\d+)", text) or ["1"])
    return list(_walk(computations, entry, 1, False, devices))


def sent_bytes(found: Iterable[Collective], *, branches: bool = True) -> float:
    """Bytes that a device sends in one run, by the ring algorithms.

    Args:
        found: Collectives of a program.
        branches: Whether those in conditionals count, as if every branch were taken.

    Raises:
        ValueError: One stands in a loop of unknown length.
    """
    total = 0.0
    for collective in found:
        if collective.conditional and not branches:
            continue
        if collective.times is None:
            raise ValueError(
                f"sent_bytes: {collective.name} stands in a loop of unknown length; give the loop a bound."
            )
        total += collective.times * collective.wire_bytes
    return total


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str | None]:
    found: dict[str, list[_Instruction]] = {}
    entry = None
    current: list[_Instruction] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
            continue
        named = _NAMED.match(line.strip())
        if named:
            shape, rest = _split_shape(line.strip()[named.end() :])
            opcode = _OPCODE.match(rest)
            if opcode:
                current.append(_Instruction(named[1], shape, opcode[1], rest[opcode.end() :]))
    return found, entry


def _split_shape(text: str) -> tuple[str, str]:
    """Splits "shape opcode(...)"; a tuple ends at its own parenthesis, since layouts hold some too."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    return text, ""


def _walk(
    computations: dict[str, list[_Instruction]], name: str, times: int | None, conditional: bool, devices: int
) -> Iterator[Collective]:
    instructions = computations.get(name, [])
    results = _results(instructions)
    for instruction in instructions:
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            arrays = _arrays(results.get(instruction.name, instruction.shape))
            yield Collective(
                kind,
                tuple(dtype for dtype, _ in arrays),
                sum(size for _, size in arrays),
                _groups(instruction.rest, devices),
                times,
                conditional,
                instruction.name,
            )
            continue
        for callee, factor, branch in _calls(instruction):
            inner = None if times is None or factor is None else times * factor
            yield from _walk(computations, callee, inner, conditional or branch, devices)


def _results(instructions: list[_Instruction]) -> dict[str, str]:
    """Start -> the shape of its result, which the done has; the start's own holds operands and contexts too."""
    starts: dict[str, str] = {}
    shapes = {}
    for instruction in instructions:
        kind, _, phase = instruction.opcode.rpartition("-")
        operand = _OPERAND.search(instruction.rest)
        if kind in KINDS and phase == "start":
            starts[instruction.name] = instruction.name
        elif kind in KINDS and phase in ("update", "done") and operand:
            starts[instruction.name] = starts.get(operand[1], operand[1])
            if phase == "done":
                shapes[starts[instruction.name]] = instruction.shape
    return shapes


def _arrays(shape: str) -> list[tuple[str, int]]:
    """The dtypes and bytes of the arrays in a shape."""
    return [(dtype, _bytes(dtype, dimensions)) for dtype, dimensions in _ARRAY.findall(shape)]


def _bytes(dtype: str, dimensions: str) -> int:
    bits = _DTYPE_BITS.match(dtype)
    size = UNNUMBERED[dtype] if dtype in UNNUMBERED else int(bits[1]) if bits else 0
    for length in dimensions.replace("<=", "").split(","):
        size *= int(length) if length else 1
    return -(-size // 8)


def _groups(rest: str, devices: int) -> Groups:
    pairs = re.search(r"source_target_pairs=\{([\d,{}]*)\}", rest)
    if pairs:
        return source_target_groups(pairs[1])
    _, present, value = rest.partition("replica_groups=")
    listed = _GROUPS.match(value)
    return device_groups(listed[0] if listed else value if present else "{}", devices)


def _calls(instruction: _Instruction) -> Iterator[tuple[str, int | None, bool]]:
    """Computations that an instruction runs: (name, how often or None, whether only in some runs)."""
    rest = instruction.rest
    if instruction.opcode == "while":
        trips = _TRIPS.search(rest)
        count = int(trips[1]) if trips else None
        yield from ((name, count, False) for name in re.findall(r"\bbody=%?([\w.\-]+)", rest))
        yield from (
            (name, None if count is None else count + 1, False)
            for name in re.findall(r"\bcondition=%?([\w.\-]+)", rest)
        )
    elif instruction.opcode == "conditional":
        listed = re.findall(r"\bbranch_computations=\{([^}]*)\}", rest)
        named = re.findall(r"\b(?:true|false)_computation=%?([\w.\-]+)", rest)
        branches = chain.from_iterable(part.split(",") for part in listed)
        yield from ((name.strip().lstrip("%"), 1, True) for name in [*branches, *named])
    elif instruction.opcode == "call":
        yield from ((name, 1, False) for name in re.findall(r"\bto_apply=%?([\w.\-]+)", rest))
    elif not instruction.opcode.endswith(("-update", "-done")):
        yield from ((name, 1, False) for name in re.findall(r"\bcalls=%?([\w.\-]+)", rest))


def _place(device: int, mesh_shape: Sequence[int]) -> tuple[int, ...]:
    place = []
    for length in reversed(mesh_shape):
        place.append(device % length)
        device //= length
    return tuple(reversed(place))
