"""States survive a checkpoint bit for bit, and a run goes on from one as if it had never stopped."""

import pickle

import jax
import orbax.checkpoint as ocp
import pytest
from flax.serialization import from_bytes, to_bytes

import nagjax
from tests.catalogue import REPRESENTATIVES, named, over
from tests.contract.support import DTYPES, RATE, STEPS, compiled, run, same_bits, trees

# One a kind of state.
STATES = REPRESENTATIVES + named(
    "schedule", "fista", "ogm", "item", "primal_averaging", "speed restart", "scheduled restart", "cast bfloat16",
    "stochastic float16", "nesterov, weight decay", "nesterov, rate schedule", "int8, gradient restart",
)  # fmt: skip


def saved_and_restored(tree, path):
    """What Orbax restores, with the types and dtypes of `tree` as the target."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "state", jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))


def test_states_of_every_kind_are_restored_bit_for_bit(tmp_path):
    states = {method.name: run(method.make(RATE), trees((7,)), 3) for method in STATES}
    restored = saved_and_restored(states, tmp_path)
    same_bits(restored, states)
    for name, state in states.items():
        same_bits(nagjax.eval_params(*restored[name]), nagjax.eval_params(*state))


@over(STATES)
def test_states_survive_pickle_and_flax_serialization_bit_for_bit(method):
    state = jax.jit(method.make(RATE).init)(trees((7,)))
    same_bits(pickle.loads(pickle.dumps(state)), state)
    same_bits(from_bytes(state, to_bytes(state)), state)


@pytest.mark.parametrize("kept", ["full", "int8"])
def test_velocities_of_every_dtype_are_restored_bit_for_bit(kept, tmp_path):
    tx = nagjax.accelerate(0.9, storage=getattr(nagjax.storage, kept)())
    params = {dtype: trees((2, 3), dtype) for dtype in DTYPES}
    _, state = jax.jit(tx.update)(params, tx.init(params))
    same_bits(saved_and_restored(state, tmp_path), state)


@over(REPRESENTATIVES)
def test_a_resumed_run_continues_bit_for_bit(method, tmp_path):
    tx, params = method.make(RATE), trees((7,))
    follow = compiled(tx, STEPS // 2)
    half = follow(params, tx.init(params))
    same_bits(follow(*saved_and_restored(half, tmp_path)), follow(*half))
