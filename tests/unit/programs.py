"""Reading compiled programs: computations, conditionals, and which devices a collective joins."""

import re

import numpy as np


def computations(program):
    """The computations of a compiled program by name; the one that is entered is called ENTRY."""
    parts = re.findall(r"^(ENTRY )?(%?[\w.\-]+) \(.*?\) -> .*?\{\n(.*?)^\}", program, re.M | re.S)
    return {"ENTRY" if entry else name.lstrip("%"): body for entry, name, body in parts}


def branches(program):
    """The branches of the one conditional, in the order false, true."""
    found = re.findall(r"branch_computations=\{%?([\w.\-]+), %?([\w.\-]+)\}", program)
    assert len(found) == 1
    return [computations(program)[name] for name in found[0]]


def opcodes(body):
    return set(re.findall(r"^\s+(?:ROOT )?%?\S+ = (?:\(.*?\)|\S+) ([a-z\-]+)\(", body, re.M))


def collectives(body):
    """The collectives of a computation: kind, shapes of what they make as (dtype, elements), and groups of devices."""
    found = []
    for line in body.splitlines():
        made = re.match(r"\s+(?:ROOT )?%?\S+ = (.*?) (all-reduce|all-to-all|all-gather|reduce-scatter)\(", line)
        if made:
            shapes = [
                (dtype, int(np.prod([int(n) for n in sizes.split(",") if n])))
                for dtype, sizes in re.findall(r"\b([a-z]+\d+)\[([\d,]*)\]", made.group(1))
            ]
            found.append((made.group(2), shapes, groups(line)))
    return found


def groups(line):
    """The groups of devices of a collective, in any of XLA's notations."""
    listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", line)
    if listed:
        return {frozenset(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d, ]+)\}", listed.group(1))}
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        axes = re.findall(r"'(\w+)'=(\d+)", named.group(1))
        joined = [place for place, (name, _) in enumerate(axes) if f"'{name}'" in named.group(2)]
        numbers = np.arange(np.prod([int(size) for _, size in axes])).reshape([int(size) for _, size in axes])
        numbers = np.moveaxis(numbers, joined, range(-len(joined), 0))
        size = np.prod([int(axes[place][1]) for place in joined])
        return {frozenset(int(n) for n in row) for row in numbers.reshape(-1, size)}
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    shape, dims, order = ([int(n) for n in part.split(",")] if part else None for part in iota.groups())
    numbers = np.arange(np.prod(dims)).reshape(dims).transpose(order).reshape(shape)
    return {frozenset(int(n) for n in row) for row in numbers}
