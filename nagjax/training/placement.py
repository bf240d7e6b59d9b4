"""Where parameters and the state of any Optax optimizer lie on a mesh."""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nagjax import checks
from nagjax.types import PyTree

Axes = str | tuple[str, ...]
Spec = tuple[Any, ...]  # for each axis of an array the mesh axis, or axes, over which it is cut, or None


def param_sharding(params: PyTree, mesh: Mesh, axis: Axes | None = None) -> PyTree:
    """Where parameters lie on a mesh: whole on every device, or each cut over a mesh axis (FSDP).

    Args:
        params: A tree of arrays or `jax.ShapeDtypeStruct`s. Those that lie on this mesh already, cut over another axis
            of it say, stay so.
        mesh: The mesh.
        axis: The mesh axis, or axes, over which every parameter is cut along its first axis that it divides; those that
            have none lie whole. None cuts none.

    Returns:
        A tree of `jax.sharding.NamedSharding`.

    Raises:
        ValueError: `axis` is no axis of the mesh, or a parameter is cut over another mesh.
    """
    check_axis("param_sharding", mesh, axis)

    def place(leaf: Any) -> NamedSharding:
        shape = getattr(leaf, "shape", ())  # of a Python number none
        return NamedSharding(mesh, PartitionSpec(*_cut(shape, _given(leaf, mesh), mesh, axis)))

    return jax.tree.map(place, params)


def state_sharding(tx: optax.GradientTransformation, params: PyTree, axis: Axes | None = None) -> PyTree:
    """Where the state of an optimizer lies: every buffer that belongs to a parameter follows it.

    That holds for buffers of a parameter's shape, wherever the state keeps them. Scales of 8-bit blocks are cut with
    their values where no shard ends inside a block; where one does, results are the same, but devices exchange the
    scales: choose a `block_size` that divides the shards. All else, counters and scalars, lies whole on every device.

    Args:
        tx: The optimizer.
        params: A tree of arrays or `jax.ShapeDtypeStruct`s, each with a `NamedSharding` on one mesh.
        axis: A mesh axis, or axes, over which buffers are cut besides, along the first free axis that it divides:
            ZeRO-1. Over n devices such a buffer takes 1/n of its bytes on each.

    Returns:
        A tree of `jax.sharding.NamedSharding` of the structure of `tx.init(params)`.

    Raises:
        ValueError: The parameters do not lie on one mesh, or `axis` is no axis of it.

    Source:
        S. Rajbhandari, J. Rasley, O. Ruwase and Y. He, "ZeRO: memory optimizations toward training trillion parameter
        models", 2020, section 5.1 (P_os).
    """
    mesh = mesh_of("state_sharding", params)
    check_axis("state_sharding", mesh, axis)
    found = cast("Any", jax.tree_util.tree_leaves_with_path(params))
    specs = {path: (leaf.shape, _cut(leaf.shape, leaf.sharding.spec, mesh, axis)) for path, leaf in found}

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        # A buffer stands under the path of its parameter.
        parameter = next((specs[path[start:]] for start in range(len(path) + 1) if path[start:] in specs), None)
        spec = () if parameter is None else _followed(leaf.shape, *parameter, mesh)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(tx.init, params))


def init_sharded(tx: optax.GradientTransformation, params: PyTree, axis: Axes | None = None) -> PyTree:
    """`tx.init(params)`, of which every device makes its own part.

    Compiled without places for its results, an `init` would make them whole, on the first device.

    Args:
        tx: The optimizer.
        params: A tree of arrays on one mesh.
        axis: As in `state_sharding`.

    Returns:
        The state, placed by `state_sharding`, in buffers that may be donated.

    Raises:
        ValueError: As `state_sharding`.

    Example:
        >>> import jax, nagjax
        >>> from nagjax.training import sharding
        >>> mesh = jax.make_mesh((len(jax.devices()),), ("data",))
        >>> params = {"w": jax.numpy.zeros((8 * mesh.size, 3)), "b": jax.numpy.zeros(())}
        >>> params = jax.device_put(params, sharding.param_sharding(params, mesh))
        >>> state = sharding.init_sharded(nagjax.nesterov(0.1), params, axis="data")
        >>> nagjax.velocity(state)["w"].addressable_shards[0].data.shape == (8, 3)
        True
    """
    return pinned(tx.init, state_sharding(tx, params, axis))(params)


def pinned(function: Callable[..., Any], places: PyTree, **options: Any) -> Any:
    """A compiled function whose results lie at `places`, a tree of `NamedSharding` on one mesh.

    Without it parameters would take the sharding of the state that they are updated from. Inside, all axes are of type
    Auto: code that is written for one device runs on meshes with explicit axes too.
    """
    explicit = any(AxisType.Explicit in place.mesh.axis_types for place in jax.tree.leaves(places)[:1])
    inner = cast("Any", jax.sharding).auto_axes(function, out_sharding=places) if explicit else function
    return jax.jit(inner, out_shardings=places, **options)


def constrained(tree: PyTree, place: NamedSharding) -> PyTree:
    """Inside a `pinned` function: the tree, whose arrays are to lie at `place`."""
    here: Any = jax.sharding.get_abstract_mesh()  # that of explicit axes, made Auto ones
    return jax.lax.with_sharding_constraint(tree, place if here.empty else NamedSharding(here, place.spec))


def put(tree: PyTree, places: PyTree) -> PyTree:
    """A tree that is equal in all processes at its places, or at one for all of it; None is the default device."""
    leaves, structure = cast("tuple[list[Any], Any]", jax.tree.flatten(tree))
    one = places is None or isinstance(places, jax.sharding.Sharding)
    at: list[Any] = [places] * len(leaves) if one else structure.flatten_up_to(places)
    return structure.unflatten(map(_put, leaves, at))


def _put(leaf: Any, place: jax.sharding.Sharding | None) -> Any:
    is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if place is None or place.is_fully_addressable or is_global:
        return jax.device_put(leaf, place)
    # Devices of other processes are reached from an array of the host only.
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data: jax.Array = jax.device_put(np.asarray(jax.random.key_data(leaf)), place)
        return cast("jax.Array", jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(leaf))))
    return jax.device_put(np.asarray(leaf), place)


def mesh_of(function: str, params: PyTree) -> Mesh:
    """The mesh on which all parameters lie."""
    for path, leaf in cast("Any", jax.tree_util.tree_leaves_with_path(params)):
        if not isinstance(getattr(leaf, "sharding", None), NamedSharding):
            remedy = "place them with jax.device_put(params, sharding.param_sharding(params, mesh))"
            found = f"{getattr(leaf, 'sharding', None)} at params{jax.tree_util.keystr(path)}"
            checks.reject(function, "params", "arrays that lie on a mesh", found, remedy)
    meshes = {leaf.sharding.mesh for leaf in jax.tree.leaves(params)}
    if len(meshes) != 1:
        checks.reject(function, "params", "arrays that lie on one mesh", meshes, "place all of them on one")
    return meshes.pop()


def replicated(tree: PyTree) -> list[str]:
    """The names of the arrays, or of the shardings, of a tree that lie whole on every device."""
    leaves = cast("Any", jax.tree_util.tree_leaves_with_path(tree))
    pairs = [(path, getattr(leaf, "sharding", leaf)) for path, leaf in leaves]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, at in pairs if at.is_fully_replicated]


def bytes_per_device(tree: PyTree) -> int:
    """Bytes that a tree of arrays takes on the device that holds most of it; of PRNG keys those of their data."""
    total: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        for piece in leaf.addressable_shards:
            total[piece.device] = total.get(piece.device, 0) + piece.data.nbytes
    return max(total.values(), default=0)


def _given(leaf: Any, mesh: Mesh) -> Spec:
    """Where a parameter lies on this mesh already, whatever the types of its axes; () where it lies whole."""
    given = getattr(leaf, "sharding", None)
    if given is None or not isinstance(given, NamedSharding) or given.is_fully_replicated:
        return ()
    same = given.mesh.shape == mesh.shape and given.device_set == set(mesh.devices.flat)
    if not same:
        remedy = "make both meshes alike, or gather the parameters first"
        checks.reject("param_sharding", "params", "whole, or cut over this mesh", given, remedy)
    return tuple(given.spec)


def _cut(shape: tuple[int, ...], given: Spec, mesh: Mesh, axis: Axes | None) -> Spec:
    """A spec, cut over `axis` too where an axis of the shape is free and divided by it."""
    spec = (*given, *(None for _ in shape))[: len(shape)]
    if axis is None or set(_names(axis)) & set(jax.tree.leaves(spec)) or 0 in shape:
        return spec
    for dimension, (size, over) in enumerate(zip(shape, spec, strict=True)):
        if over is None and size % parts_of(axis, mesh) == 0:
            return (*spec[:dimension], axis, *spec[dimension + 1 :])
    return spec


def _followed(shape: tuple[int, ...], parameter: tuple[int, ...], spec: Spec, mesh: Mesh) -> Spec:
    """The spec of a buffer that belongs to a parameter of this shape and spec; () where it cannot follow."""
    if shape == parameter or shape == (*parameter, 2):  # complex numbers may be pairs in a trailing axis
        return spec
    if shape[1:] == parameter:  # a history of buffers
        return (None, *spec)
    if len(shape) not in (len(parameter), len(parameter) + 1) or not parameter:
        return ()
    # Scales of blocks: as long as the parameter up to an axis, then 1, and the number of blocks in place of the last.
    last = len(parameter) - 1
    merged = next((d for d in range(last + 1) if shape[d] != parameter[d]), last)
    blocks, row = shape[last], math.prod(parameter[merged:])
    if any(size != 1 for size in shape[merged:last]) or any(spec[merged + 1 :]):
        return ()
    count = parts_of(spec[merged], mesh)
    if blocks % count or row % blocks:
        return ()
    return (*spec[:merged], *(None for _ in range(merged, last)), spec[merged])


def parts_of(axes: Any, mesh: Mesh) -> int:
    """The number of parts into which mesh axes cut."""
    return math.prod(mesh.shape[name] for name in jax.tree.leaves(axes))


def _names(axis: Axes) -> tuple[str, ...]:
    return axis if isinstance(axis, tuple) else (axis,)


def check_axis(function: str, mesh: Mesh, axis: Axes | None) -> None:
    """Raise ValueError if this names no axis, or axes, of the mesh."""
    if axis is not None and not set(_names(axis)) <= set(mesh.axis_names):
        checks.reject(function, "axis", f"one of {mesh.axis_names}", axis, "name an axis of the mesh")
