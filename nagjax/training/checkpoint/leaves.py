"""The leaves of a tree by name, as a checkpoint stores them and as a template wants them back."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from nagjax import checks
from nagjax.types import PyTree

# What TensorStore stores besides NumPy's own dtypes.
_EXTENDED = {"bfloat16", "int4", "float8_e5m2", "float8_e5m2fnuz"} | {
    f"float8_e4m3{kind}" for kind in ("fn", "fnuz", "b11fnuz")
}


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves in flattened order under names such as "params/layers/0/kernel".

    Leaves whose paths read the same, as in {"a/b": x, "a": {"b": y}}, are told apart by a number at the end.
    """
    flat = cast("Any", jax.tree_util.tree_flatten_with_path(tree)[0])
    found: dict[str, Any] = {}
    for path, leaf in flat:
        name = plain = jax.tree_util.keystr(path, simple=True, separator="/") or "leaf"
        count = 1
        while name in found:
            count += 1
            name = f"{plain}~{count}"
        found[name] = leaf
    return found


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys, or stands for one."""
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def described(leaf: Any) -> str:
    """Dtype and shape, "float32[64,128]"; of a Python number those of its NumPy array."""
    array: Any = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def to_stored(function: str, name: str, leaf: Any, several: bool = False) -> Any:
    """The array that stands for a leaf on disk: of a key its data, of a Python number a NumPy array.

    Where there are `several` processes, arrays on the devices of one become NumPy's, of which process 0 writes its own.
    """
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    array: Any = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if array.dtype.kind not in "biufc" and str(array.dtype) not in _EXTENDED:
        condition = "a tree of arrays and numbers of dtypes that Orbax stores"
        checks.reject(function, "state", condition, f"{described(leaf)} at {name}", "cast or drop it", TypeError)
    if several and isinstance(array, jax.Array) and array.is_fully_addressable:
        return np.array(array)  # a copy, since the buffer may be donated
    return array if isinstance(array, jax.Array) else np.asarray(array)


def empty(leaf: Any) -> Any:
    """The stored array of a leaf without elements, which no checkpoint needs to hold."""
    array: Any = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    array = jax.eval_shape(jax.random.key_data, array) if is_key(leaf) else array
    return np.empty(array.shape, array.dtype)


def sharding(leaf: Any) -> Any:
    """Where a leaf of a template wants to be; None where it leaves that to JAX."""
    if isinstance(leaf, jax.Array):
        return leaf.sharding if getattr(leaf, "committed", True) else None
    return getattr(leaf, "sharding", None)


def is_read_by_shards(leaf: Any) -> bool:
    """Whether Orbax reads this leaf of a template straight to where it belongs, each device its own part."""
    weak = getattr(leaf, "weak_type", False)
    return hasattr(leaf, "dtype") and not weak and not is_key(leaf) and sharding(leaf) is not None


def from_stored(template: Any, stored: Any, implementation: str | None) -> Any:
    """A leaf of the template's type with the values of a stored array."""
    if isinstance(stored, jax.Array) and not is_key(template):
        return stored
    if isinstance(template, bool | int | float | complex) and not isinstance(template, np.generic):
        return type(template)(stored)
    if isinstance(template, np.generic):
        return stored[()]
    if isinstance(template, np.ndarray):
        return stored

    def made(values: Any) -> jax.Array:
        # A copy: JAX may take over memory of NumPy, and the next step is going to overwrite it.
        array: Any = jnp.array(values)
        if is_key(template):
            return cast("Any", jax.random.wrap_key_data(array, impl=implementation))
        if getattr(template, "weak_type", False):
            # A weak dtype decides how later steps promote; `at` is the public way to set values and keep it.
            return jnp.full(array.shape, array.dtype.type(0).item()).at[...].set(array)
        return array

    place = sharding(template)
    if place is None:
        return made(stored)
    if place.is_fully_addressable:
        return jax.device_put(made(stored), place)
    # To devices of other processes only a program can put a key.
    return cast("Any", jax.jit(made, out_shardings=place))(np.asarray(stored))
