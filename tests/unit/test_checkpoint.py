"""Checkpoints: every kind of state bit for bit, which ones stay, and what is refused in which words."""

import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import textwrap
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import nagjax
from nagjax.training.checkpoint import Checkpoints


def same(actual, expected):
    """Assert equal structures, leaf types, dtypes, placements and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert type(x) is type(y)
        if isinstance(y, jax.Array):
            assert x.aval == y.aval  # shape, dtype, weak type
            assert x.sharding == y.sharding
            assert x.committed == y.committed
        if isinstance(y, jax.Array) and jnp.issubdtype(y.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert x.tobytes() == y.tobytes()


def round_trip(folder, state, template=None):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state, cursor={})
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(state if template is None else template).state


def params():
    rng = np.random.default_rng(0)
    return {
        "layers": [{"kernel": jnp.asarray(rng.normal(size=(5, 3))), "bias": jnp.asarray(rng.normal(size=3))}],
        "scale": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    }


def after(tx, updates=3):
    """A state some updates into a run."""
    y = params()
    state = tx.init(y)
    update = jax.jit(tx.update)
    for _ in range(updates):
        steps, state = update(jax.tree.map(jnp.sin, y), state, y)
        y = optax.apply_updates(y, steps)
    return y, state


def frozen(tree):
    return jax.tree.map_with_path(lambda path, _: "scale" not in jax.tree_util.keystr(path), tree)


OPTIMIZERS = {
    "int8": lambda: nagjax.nesterov(0.1, storage=nagjax.storage.int8(4), restart=nagjax.restart.gradient()),
    "schedule-free": lambda: nagjax.schedule_free(optax.scale_by_adam(b1=0.0), 0.1),
    "partition": lambda: optax.partition(
        {"a": nagjax.nesterov(0.1), "b": optax.set_to_zero()},
        {"layers": [{"kernel": "a", "bias": "b"}], "scale": "a"},
    ),
    "masked": lambda: optax.masked(nagjax.nadamw(0.1), frozen),
    "MultiSteps": lambda: optax.MultiSteps(nagjax.nesterov(0.1, storage=nagjax.storage.cast("bfloat16")), 2),
    "injected": lambda: optax.inject_hyperparams(nagjax.nesterov)(learning_rate=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_optimizers_come_back_with_their_types(name, tmp_path, standard_promotion):
    tx = OPTIMIZERS[name]()
    state = after(tx)
    found = round_trip(tmp_path, state, template=(params(), tx.init(params())))
    same(found, state)
    same(jax.jit(tx.update)(params(), found[1], found[0]), jax.jit(tx.update)(params(), state[1], state[0]))


class Pair(NamedTuple):
    first: object
    rest: object


@flax.struct.dataclass
class Scale:
    value: jax.Array
    name: str = flax.struct.field(pytree_node=False, default="x")


DTYPES = "bfloat16 float16 float32 float64 int4 int8 int32 int64 uint8 uint32 bool complex64 complex128 float8_e4m3fn"


def test_leaves_of_every_dtype_and_shape_come_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(1)
    state = {}
    for dtype in DTYPES.split():
        full = jnp.asarray(rng.integers(0, 2, (3, 2))).astype(dtype)
        state[dtype] = {"full": full, "scalar": full[0, 0], "empty": full[:0]}
    state["nan"] = jnp.asarray([np.nan, -np.nan, np.inf, -0.0, 5e-324])
    state["payload"] = jax.lax.bitcast_convert_type(jnp.uint32(0x7FC12345), jnp.float32)
    same(round_trip(tmp_path, state), state)


def test_containers_and_leaves_that_are_no_arrays_come_back_with_their_types(tmp_path):
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    state = {
        "pair": Pair(None, (optax.EmptyState(), optax.MaskedNode(), (), {})),
        "struct": Scale(jnp.ones(2), "kept"),
        "nnx": nnx.state(model),
        "pure": nnx.as_pure(nnx.state(model)),
        "numpy": np.arange(3, dtype=np.float32),
        "number of numpy": np.int8(3),
        "numbers": [True, 3, 2.5, 1j],
        "weak": (jnp.asarray(1.5), jnp.full((2,), 3)),
        "odd / name.[0]": {"a/b": jnp.zeros(1), "a": {"b": jnp.ones(1)}},
    }
    same(round_trip(tmp_path, state), state)


@pytest.mark.parametrize("bits", [32, 64])
def test_keys_come_back_with_their_implementation(bits, tmp_path):
    with jax.enable_x64(bits == 64):
        state = {
            "key": jax.random.key(7),
            "keys": jax.random.split(jax.random.key(1, impl="rbg"), (2, 3)),
            "none": jax.random.split(jax.random.key(1), 0),
            "raw": jax.random.PRNGKey(3),
        }
        found = round_trip(tmp_path, state)
        same(found, state)
        assert jax.random.normal(found["key"]) == jax.random.normal(state["key"])


def test_arrays_go_where_the_template_has_them(tmp_path):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())
    value = {"a": jnp.arange(16.0), "b": jnp.arange(8), "key": jax.random.key(3), "weak": jnp.asarray(2.0)}
    placed = jax.device_put(value, {"a": split, "b": whole, "key": whole, "weak": whole})
    last = jax.device_put(value, jax.devices()[3])
    same(round_trip(tmp_path / "split", placed), placed)
    same(round_trip(tmp_path / "gathered", placed, value), value)
    same(round_trip(tmp_path / "spread", value, placed), placed)
    same(round_trip(tmp_path / "moved", placed, last), last)
    same(round_trip(tmp_path / "shapes", placed, jax.eval_shape(lambda: value)), value)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), {"a": value["a"]})
    same(round_trip(tmp_path / "sharded shapes", {"a": value["a"]}, shapes), {"a": placed["a"]})


def test_what_is_given_may_be_donated_or_changed_at_once(tmp_path):
    size = 500_000
    step = jax.jit(lambda x: -3 * x - 1, donate_argnums=0)
    host = np.arange(size)
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        state = jnp.arange(float(size))
        for number in range(5):
            checkpoints.save(number, (state, host), cursor={})
            for _ in range(4):
                state = step(state)
            host += 1
        expected = np.arange(float(size))
        for number in range(5):
            device, memory = checkpoints.restore((jnp.zeros(size), host), step=number).state
            np.testing.assert_array_equal(device, expected)
            np.testing.assert_array_equal(memory, np.arange(size) + number)
            for _ in range(4):
                expected = -3 * expected - 1


def test_what_is_restored_may_be_donated(tmp_path):
    found = round_trip(tmp_path, {"x": jnp.arange(1000.0), "sharded": jax.device_put(jnp.ones(1000), jax.devices()[1])})
    values = jax.tree.map(np.array, found)
    doubled = jax.tree.map(lambda x: jax.jit(lambda y: 2 * y, donate_argnums=0)(x), found)
    assert all(x.is_deleted() for x in jax.tree.leaves(found))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, 2 * y), doubled, values)


def test_record_comes_back(tmp_path):
    with Checkpoints(tmp_path, asynchronous=False) as checkpoints:
        cursor = {"epoch": np.int64(2), "state": {"list": [1, None, "x"]}}
        metrics = {"loss": jnp.float32(0.5), "bad": float("nan")}
        checkpoints.save(40, {"x": jnp.ones(2)}, cursor=cursor, config={"sizes": (1, 2)}, metrics=metrics)
        found = checkpoints.restore({"x": jnp.zeros(2)})
        assert found.step == 40
        assert found.cursor == {"epoch": 2, "state": {"list": [1, None, "x"]}}
        assert found.config == {"sizes": [1, 2]}
        assert found.metrics["loss"] == 0.5
        assert np.isnan(found.metrics["bad"])
        checkpoints.save(41, {"x": jnp.ones(2)}, cursor={})
        assert checkpoints.restore({"x": jnp.zeros(2)})[2:] == ({}, None, None)


def state(value=0.0):
    return {"x": jnp.full(2, float(value)), "step": jnp.int32(value)}


def saved(folder, losses, **options):
    """Steps that are there after saves at 1, 2, ... with these losses, and the best one."""
    with Checkpoints(folder, **options) as checkpoints:
        for step, loss in enumerate(losses, 1):
            checkpoints.save(step, state(step), cursor={}, metrics=None if loss is None else {"loss": loss})
        return checkpoints.steps(), checkpoints.best_step()


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(
    ("losses", "options", "steps", "best"),
    [
        ([3, 1, 2, 5, 4], {"keep": 2}, [4, 5], None),
        ([3, 1, 2, 5, 4], {"keep": 2, "best": "loss"}, [2, 4, 5], 2),
        ([3, 1, 2, 5, 4], {"keep": 1, "best": "loss", "mode": "max"}, [4, 5], 4),
        ([3, 1, 1, 2], {"keep": 1, "best": "loss"}, [2, 4], 2),
        ([np.nan, 4, None, np.nan], {"keep": 1, "best": "loss"}, [2, 4], 2),
        ([np.nan, 4, None, -np.inf], {"keep": 1, "best": "loss", "mode": "max"}, [2, 4], 2),
        ([np.nan, None, np.nan], {"keep": 2, "best": "loss"}, [2, 3], None),
        ([1, 2, 3], {"keep": 5, "best": "accuracy"}, [1, 2, 3], None),
    ],
)
def test_the_last_and_the_best_stay(losses, options, steps, best, asynchronous, tmp_path):
    assert saved(tmp_path, losses, asynchronous=asynchronous, **options) == (steps, best)
    names = {entry.name for entry in tmp_path.iterdir()} - {".nagjax-checkpoints"}
    assert {int(name.split("-")[-1]) for name in names} == set(steps)
    with Checkpoints(tmp_path, **options) as checkpoints:  # another process sees the same
        assert (checkpoints.steps(), checkpoints.best_step()) == (steps, best)
        assert checkpoints.latest() == steps[-1]
        for step in steps:
            same(checkpoints.restore(state(), step=step).state, state(step))


def test_a_step_saved_again_is_replaced_and_keeps_the_metrics_of_this_run(tmp_path):
    with Checkpoints(tmp_path, best="loss") as checkpoints:
        checkpoints.save(3, state(1), cursor={}, metrics={"loss": 2.0})
        checkpoints.save(3, state(2), cursor={"new": 1}, metrics={"accuracy": 1.0})
        assert checkpoints.steps() == [3]
        found = checkpoints.restore(state())
        assert found.metrics == {"loss": 2.0, "accuracy": 1.0}
        assert found.cursor == {"new": 1}
        same(found.state, state(2))
    with Checkpoints(tmp_path, best="loss") as checkpoints:  # a new run, whose step 3 is another
        checkpoints.save(3, state(4), cursor={})
        assert checkpoints.restore(state()).metrics is None
        assert checkpoints.best_step() is None


def test_a_run_that_went_back_goes_on_from_there(tmp_path):
    saved(tmp_path, [0, 0, 0, 0], keep=4)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.restore(state(), step=2).step == 2
        checkpoints.save(3, state(30), cursor={})
        assert checkpoints.latest() == 3
        same(checkpoints.restore(state()).state, state(30))
        assert checkpoints.steps() == [2, 3, 4]


def test_due_at_multiples_that_were_passed_and_after_seconds(tmp_path, monkeypatch):
    assert not Checkpoints(tmp_path).due(1000)
    now = [50.0]
    monkeypatch.setattr("nagjax.training.checkpoint.checkpoints.time.monotonic", lambda: now[0])
    with Checkpoints(tmp_path, every=10, every_seconds=60.0) as checkpoints:
        assert [step for step in range(25) if checkpoints.due(step)] == list(range(10, 25))
        checkpoints.save(13, state(), cursor={})
        assert [step for step in range(13, 25) if checkpoints.due(step)] == list(range(20, 25))
        now[0] += 60
        assert checkpoints.due(14)
        checkpoints.save(14, state(), cursor={})
        assert not checkpoints.due(15)
    with Checkpoints(tmp_path, every=10) as checkpoints:
        checkpoints.restore(state())
        assert not checkpoints.due(19)
        assert checkpoints.due(20)


def test_nothing_is_made_or_imported_before_it_is_needed(tmp_path):
    code = f"""
        import sys, nagjax.training.checkpoint as module
        checkpoints = module.Checkpoints({str(tmp_path / "a" / "b")!r}, every=2)
        print(checkpoints.latest(), checkpoints.steps(), checkpoints.best_step(), checkpoints.due(2))
        checkpoints.close()
        print("orbax.checkpoint" in sys.modules)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["None [] None True", "False"]
    assert list(tmp_path.iterdir()) == []


def refused(error, *parts):
    return pytest.raises(error, match=".*".join(re.escape(part) for part in parts))


def test_differences_of_configurations_come_first_and_one_a_line(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        config = {"model": {"width": 64, "sizes": [1, 2]}, "rate": 0.1, "same": None, "old": {}}
        checkpoints.save(1, state(), cursor={}, config=config)
        assert checkpoints.restore(state(), config=config | {"model": {"width": 64, "sizes": (1, 2)}}).step == 1
        assert checkpoints.restore(state()).step == 1
        changed = {"same": None, "model": {"sizes": [1, 3, 4], "width": 128}, "rate": "0.1", "new": True}
        with pytest.raises(ValueError, match=r"^Checkpoints\.restore: config must be") as caught:
            checkpoints.restore({}, config=changed)
    head, *lines = str(caught.value).split("\n")
    assert "00001-step-1, got 6 differences; " in head
    assert lines == [
        "model.sizes.1: 2 in the checkpoint, 3 now",
        "model.sizes.2: 4 only now",
        "model.width: 64 in the checkpoint, 128 now",
        'rate: 0.1 in the checkpoint, "0.1" now',
        "new: true only now",
        "old: {} only in the checkpoint",
    ]


def test_differences_of_states_are_one_a_line(tmp_path):
    def tree(width, **more):
        return Pair({"layers": [{"kernel": jnp.zeros((64, width), jnp.float32)}], "key": jax.random.key(0)} | more, ())

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree(128, old=jnp.int32(1)), cursor={}, config={})
        with pytest.raises(ValueError, match=r"^Checkpoints\.restore: state must be") as caught:
            checkpoints.restore(tree(256, key=jax.random.PRNGKey(0), new=2.5), config={})
        lines = str(caught.value).split("\n")[1:]
        assert sorted(lines) == [
            "first/key: key<fry>[] in the checkpoint, uint32[2] now",
            "first/layers/0/kernel: float32[64,128] in the checkpoint, float32[64,256] now",
            "first/new: float64[] only now",
            "first/old: int32[] only in the checkpoint",
        ]
        with pytest.raises(ValueError, match="got 22 differences") as caught:
            checkpoints.restore([0.0] * 19)
    lines = str(caught.value).split("\n")[1:]
    assert len(lines) == 13
    assert lines[-1] == "and 10 more"


def test_folder_with_something_else_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for use in (
        lambda c: c.latest(),
        lambda c: c.restore(state()),
        lambda c: c.save(1, state(), cursor={}),
    ):
        with refused(ValueError, "folder must be absent, empty or one of checkpoints", "'notes.txt'"):
            use(Checkpoints(tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_files_added_to_a_folder_of_checkpoints_are_left_alone(tmp_path):
    saved(tmp_path, [1])
    (tmp_path / "notes.txt").write_text("mine")
    assert saved(tmp_path, [1, 2, 3], keep=1)[0] == [3]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    copy = tmp_path / "copy"
    copy.mkdir()
    (found,) = tmp_path.glob("*-step-3")
    shutil.copytree(found, copy / found.name)  # without the mark of the folder
    assert Checkpoints(copy).restore(state()).step == 3


def test_folder_of_another_run_is_refused_while_that_runs_and_may_be_read(tmp_path):
    code = f"""
        import sys, jax.numpy as jnp
        from nagjax.training.checkpoint import Checkpoints
        checkpoints = Checkpoints({str(tmp_path)!r}, asynchronous=False)
        checkpoints.save(7, {{"x": jnp.ones(2)}}, cursor={{}})
        print("saved", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    template = {"x": jnp.zeros(2, jnp.float32)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "saved\n"
        with Checkpoints(tmp_path) as mine:
            assert mine.restore(template).step == 7
            with refused(ValueError, "no other run writes to", f"open in process {other.pid}'; close() that one"):
                mine.save(8, template, cursor={})
            other.kill()
            other.wait()
            mine.save(8, template, cursor={})
            assert mine.steps() == [7, 8]
            second = Checkpoints(tmp_path)
            with refused(ValueError, "no other run writes to", "open in this process"):
                second.save(9, template, cursor={})
        second.save(9, template, cursor={})
        second.close()


def test_what_a_killed_process_left_is_neither_listed_nor_kept(tmp_path):
    saved(tmp_path, [1, 2])
    for name in ("00003-step-3.orbax-checkpoint-tmp", "00001-step-1.deleted"):
        (tmp_path / name / "state").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.restore(state()).step == 2
        checkpoints.save(3, state(3), cursor={})
        assert checkpoints.steps() == [1, 2, 3]
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == [".nagjax-checkpoints", "00001-step-1", "00002-step-2", "00004-step-3"]


@pytest.mark.parametrize("part", ["record", "manifest", "data", "bit", "missing"])
def test_a_damaged_checkpoint_is_named_with_the_remedy(part, tmp_path):
    big = {"x": jnp.asarray(np.random.default_rng(0).normal(size=5000))}
    with Checkpoints(tmp_path, best="loss") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, big, cursor={}, metrics={"loss": step})
    newest = tmp_path / "00002-step-2"
    if part == "missing":
        shutil.rmtree(newest / "state")
    else:
        files = [path for path in newest.rglob("*") if path.is_file()]
        wanted = {"record": "record/metadata", "manifest": "state/manifest.ocdbt"}.get(part, "/d/")
        largest = max((path for path in files if wanted in str(path)), key=lambda path: path.stat().st_size)
        if part == "bit":
            data = bytearray(largest.read_bytes())
            data[len(data) // 2] ^= 16
            largest.write_bytes(data)
        else:
            os.truncate(largest, largest.stat().st_size // 2)
    with Checkpoints(tmp_path, best="loss") as checkpoints:
        with refused(OSError, "got 2, damaged in", str(newest), "restore with step=1"):
            checkpoints.restore(big)
        assert checkpoints.best_step() == 1
        same(checkpoints.restore(big, step=1).state, big)


def test_steps_that_are_not_there_are_named(tmp_path):
    with refused(FileNotFoundError, "step must be that of a checkpoint in", "got None; save one"):
        Checkpoints(tmp_path).restore(state())
    saved(tmp_path, [1, 2])
    with refused(FileNotFoundError, "got 5; choose one of [1, 2]"):
        Checkpoints(tmp_path).restore(state(), step=5)


@pytest.mark.parametrize("under", ["file", "file/folder"])
def test_a_folder_that_cannot_be_made_is_named(under, tmp_path):
    (tmp_path / "file").write_text("")
    with refused(OSError, "folder must be one that can be written", str(tmp_path / under)):
        Checkpoints(tmp_path / under).save(1, state(), cursor={})


def test_a_failed_write_is_raised_by_the_next_call_and_leaves_earlier_checkpoints(tmp_path):
    template = {"x": jnp.zeros(200_000)}
    big = {"x": jnp.asarray(np.random.default_rng(0).normal(size=200_000))}
    failed = (OSError, "folder must be one that can be written and has space", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Orbax reports the error in the log, too.
    logging.getLogger("absl").disabled = True
    try:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, template, cursor={})
            checkpoints.wait()
            for use in (
                lambda: checkpoints.wait(),
                lambda: checkpoints.latest(),
                lambda: checkpoints.save(3, big, cursor={}),
                lambda: checkpoints.close(),
            ):
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk
                checkpoints.save(2, big, cursor={})
                with refused(*failed):
                    use()
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                assert checkpoints.steps() == [1]
            checkpoints.save(2, big, cursor={})
            assert checkpoints.steps() == [1, 2]
            same(checkpoints.restore(template).state, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        logging.getLogger("absl").disabled = False


def test_normal_use_is_quiet(tmp_path, capfd):
    saved(tmp_path, [3, 1, 2], keep=1, best="loss")
    Checkpoints(tmp_path).restore(state())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"every": 0}, ValueError, "Checkpoints: every must be an integer of at least 1"),
        ({"every": 1.5}, TypeError, "Checkpoints: every must be an integer of at least 1"),
        ({"every_seconds": 0}, ValueError, "Checkpoints: every_seconds must be positive"),
        ({"keep": 0}, ValueError, "Checkpoints: keep must be an integer of at least 1"),
        ({"mode": "least"}, ValueError, 'Checkpoints: mode must be "min" or "max"'),
        ({"folder": "gs://bucket"}, ValueError, "Checkpoints: folder must be local or mounted"),
    ],
)
def test_arguments_out_of_range_are_refused(options, error, words, tmp_path):
    with refused(error, words):
        Checkpoints(**{"folder": tmp_path} | options)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"step": -1}, ValueError, "step must be an integer of at least 0"),
        ({"step": 1.0}, TypeError, "step must be an integer of at least 0"),
        ({"state": {"name": "x"}}, TypeError, "state must be a tree of arrays and numbers"),
        ({"state": {"narrow": jnp.ones(2, jnp.uint4)}}, TypeError, "got 'uint4[2] at narrow'"),
        ({"cursor": {"at": object()}}, TypeError, "cursor must be JSON"),
        ({"config": {"f": print}}, TypeError, "config must be JSON"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(changed, error, words, tmp_path):
    arguments = {"step": 1, "state": state(), "cursor": {}} | changed
    with refused(error, "Checkpoints.save: ", words):
        Checkpoints(tmp_path).save(arguments.pop("step"), arguments.pop("state"), **arguments)
    assert list(tmp_path.iterdir()) == []
