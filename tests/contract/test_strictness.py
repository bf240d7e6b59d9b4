"""Clean under debug_nans, without 64 bits and with warnings as errors; building a method needs no device."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import optax

import nagjax
from tests.catalogue import METHODS, over
from tests.contract.support import RATE, step

# The other tests of this folder run under 64 bits, strict promotion, rank promotion "raise" and warnings as errors.


@over([method for method in METHODS if not method.rounds and not method.wraps_unclean_optax])
def test_no_step_makes_a_nan_on_the_way_even_where_gradients_vanish(method):
    """Eagerly, so that every intermediate result is looked at."""
    tx = method.make(RATE)
    with jax.debug_nans(True):
        for params in jnp.zeros(2), jnp.ones(2):
            state = tx.init(params)
            for _ in range(3):
                params, state = step(tx, params, state)
            nagjax.eval_params(params, nagjax.reset_momentum(state))


@over([method for method in METHODS if method.rounds])
def test_rounding_makes_no_nan_even_where_gradients_vanish(method):
    tx = method.make(RATE)
    with jax.debug_nans(True):
        for value in 0.0, 1e-45, 1e4:
            params = jnp.full(2, value, jnp.float32)
            updates, state = jax.jit(lambda p: tx.update(p, tx.init(p), p, value=jnp.float32(0)))(params)
            nagjax.eval_params(optax.apply_updates(params, updates), state)


@over(METHODS)
def test_twenty_thousand_steps_of_the_rule_leave_finite_coefficients(method, single_precision):
    """In float32, where t_k^2 and A_k could overflow and 1 - 3/k could become 1."""
    tx = method.make(RATE)

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params, value=jnp.float32(0))
        return (jnp.clip(params + updates, 0.5, 1.0), state), None

    params = jnp.ones((), jnp.float32)
    _, state = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=20_000)[0])(params)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32)


UNTOUCHED = """
import sys
import nagjax
heavy = [name for name in ("flax", "orbax", "matplotlib", "sklearn") if name in sys.modules]
assert not heavy, heavy
from jax._src import xla_bridge
from tests.catalogue import METHODS
for method in METHODS:
    method.make(0.5)
    assert not xla_bridge.backends_are_initialized(), method.name
"""


def test_importing_nagjax_loads_no_flax_and_building_a_method_needs_no_device():
    """So that optimizers can be built before jax.distributed.initialize()."""
    subprocess.run([sys.executable, "-W", "error", "-c", UNTOUCHED], check=True)
