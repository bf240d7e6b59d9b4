"""Fragments: groups of leaves that are synchronized at different steps of a period."""

import math
import numbers
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import optax

from nagjax import checks, trees
from nagjax.types import PyTree

_REMEDY = "give a number of fragments, or a tree of the structure of the parameters with the numbers 0, 1, ..."


class Grouping(NamedTuple):
    """The fragment of each leaf. Parts of a tree have its structure, with `optax.MaskedNode` at other leaves."""

    size: int
    numbers: list[int]  # of each place of the tree, absent ones included, in flattened order

    def parts(self, tree: PyTree) -> list[PyTree]:
        """The tree in parts; of a tree that is not there, (), as many."""
        if self.size == 1 or _is_empty(tree):
            return [tree] * self.size
        pairs = list(zip(trees.leaves(tree), self.numbers, strict=True))
        return [
            trees.rebuild(tree, [leaf if own == number else optax.MaskedNode() for leaf, own in pairs])
            for number in range(self.size)
        ]

    def whole(self, parts: list[PyTree]) -> PyTree:
        """The inverse of `parts`."""
        if self.size == 1 or _is_empty(parts[0]):
            return parts[0]
        columns = [trees.leaves(part) for part in parts]
        return trees.rebuild(parts[0], [columns[number][place] for place, number in enumerate(self.numbers)])


class Fragments(NamedTuple):
    """How leaves are to be grouped."""

    function: str  # for messages
    size: int  # P
    assigned: PyTree | None  # the fragment of each leaf; None: about equal bytes in flattened order

    def of(self, params: PyTree) -> Grouping:
        """The grouping of the leaves of `params`."""
        found = trees.leaves(params)
        if self.size == 1 or not found:  # Optax asks with a place holder which parts of a state are like parameters
            return Grouping(self.size, [])
        if self.assigned is not None:
            if trees.structure(self.assigned) != trees.structure(params):
                condition = "a tree of the structure of the parameters"
                checks.reject(self.function, "fragments", condition, self.assigned, _REMEDY)
            given = trees.leaves(self.assigned)
            return Grouping(self.size, [0 if trees.is_absent(number) else int(number) for number in given])
        sizes = [0 if trees.is_absent(leaf) else math.prod(np.shape(leaf)) * leaf.dtype.itemsize for leaf in found]
        return Grouping(self.size, _even(sizes, self.size))


def fragments_of(function: str, fragments: int | PyTree) -> Fragments:
    """The grouping that an argument `fragments` asks for."""
    if isinstance(fragments, bool | numbers.Integral | float | jax.Array):
        checks.whole(function, "fragments", fragments, 1, _REMEDY)
        return Fragments(function, int(cast("Any", fragments)), None)
    numbers_used = [number for number in trees.leaves(fragments) if not trees.is_absent(number)]
    for number in numbers_used:
        checks.whole(function, "fragments", number, 0, _REMEDY)
    used = sorted({int(number) for number in numbers_used})
    if used != list(range(len(used))) or not used:
        checks.reject(function, "fragments", "a tree that uses every number from 0 on", fragments, _REMEDY)
    return Fragments(function, len(used), fragments)


def _is_empty(tree: PyTree) -> bool:
    return isinstance(tree, tuple) and not tree


def _even(sizes: list[int], count: int) -> list[int]:
    """Consecutive groups of about equal size; as many of them as there are places are not empty."""
    total, before, group, found = max(sum(sizes), 1), 0, 0, list[int]()
    for index, size in enumerate(sizes):
        wanted = (2 * before + size) * count // (2 * total)
        least = count - (len(sizes) - index)
        group = min(max(wanted, least, group), group + 1 if index else 0, count - 1)
        found.append(group)
        before += size
    return found
