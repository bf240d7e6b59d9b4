"""Reading collectives: programs whose communication is known, compiled here, and texts as other backends print them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import hlo
from experiments.hlo_groups import device_groups, source_target_groups

pytestmark = pytest.mark.usefixtures("single_precision")
ALL = (tuple(range(8)),)


@pytest.fixture(scope="module")
def line():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


@pytest.fixture(scope="module")
def pods():
    return jax.make_mesh((2, 4), ("pod", "data"), axis_types=(AxisType.Auto,) * 2)


def compiled(function, *arguments, **options):
    return hlo.collectives(jax.jit(function, **options).lower(*arguments).compile().as_text())


def mapped(function, mesh, inputs, outputs):
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def module(*lines, devices=8, before=""):
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m, num_partitions={devices}\n\n{before}\nENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"


class TestCompiledPrograms:
    def test_a_sum_over_sharded_rows_is_one_all_reduce_of_the_row(self, line):
        x = jax.device_put(jnp.ones((16, 128)), NamedSharding(line, P("data")))
        (found,) = compiled(lambda x: x.sum(0), x)
        assert (found.kind, found.dtypes, found.result_bytes) == ("all-reduce", ("f32",), 4 * 128)
        assert (found.groups, found.times, found.conditional) == (ALL, 1, False)
        assert found.wire_bytes == 2 * 7 / 8 * 512

    def test_making_a_sharded_array_whole_is_one_all_gather(self, line):
        x = jax.device_put(jnp.ones((16, 128)), NamedSharding(line, P("data")))
        (found,) = compiled(lambda x: x * 2, x, out_shardings=NamedSharding(line, P()))
        assert (found.kind, found.result_bytes, found.groups) == ("all-gather", 4 * 16 * 128, ALL)
        assert found.wire_bytes == 7 / 8 * 4 * 16 * 128

    def test_the_gradients_of_data_parallel_training_add_up_to_the_parameters_and_the_loss(self, line):
        whole = NamedSharding(line, P())
        params = {"a": jax.device_put(jnp.ones((128, 32)), whole), "b": jax.device_put(jnp.ones((32, 8)), whole)}
        x = jax.device_put(jnp.ones((16, 128)), NamedSharding(line, P("data")))
        found = compiled(jax.value_and_grad(lambda w, x: (x @ w["a"] @ w["b"]).mean()), params, x)
        assert {one.kind for one in found} == {"all-reduce"}
        # However XLA combines them: here one all-reduce of a tuple.
        assert sum(one.result_bytes for one in found) == 4 * (128 * 32 + 32 * 8 + 1)
        assert hlo.sent_bytes(found) == pytest.approx(2 * 7 / 8 * 4 * (128 * 32 + 32 * 8 + 1))

    def test_the_remaining_kinds_send_what_their_rings_send(self, line):
        x = jnp.ones((16, 128))
        ring = [(device, (device + 1) % 8) for device in range(8)]
        cases = {
            # 512 bytes on each device, of which one eighth comes back.
            "reduce-scatter": (lambda x: jax.lax.psum_scatter(x[0], "data", tiled=True), P("data"), 7 * 64),
            "all-to-all": (lambda x: jax.lax.all_to_all(x, "data", 1, 0, tiled=True), P("data"), 7 / 8 * 1024),
            "collective-permute": (lambda x: jax.lax.ppermute(x, "data", ring), P("data"), 1024),
        }
        for kind, (function, outputs, expected) in cases.items():
            (found,) = compiled(mapped(function, line, P("data"), outputs), x)
            assert (found.kind, found.groups, found.wire_bytes) == (kind, ALL, expected)

    @pytest.mark.parametrize(("axis", "number", "size"), [("pod", 0, 2), ("data", 1, 4)])
    def test_groups_tell_the_axis_of_the_mesh(self, pods, axis, number, size):
        sums = mapped(lambda x: jax.lax.psum(x, axis), pods, P("pod", "data"), P("pod", "data"))
        (found,) = compiled(sums, jnp.ones((2, 4, 16)))
        assert found.crosses((2, 4)) == (number,)
        assert found.group_size == size
        (both,) = compiled(
            mapped(lambda x: jax.lax.psum(x, ("pod", "data")), pods, P("pod", "data"), P()), jnp.ones((2, 4, 16))
        )
        assert both.crosses((2, 4)) == (0, 1)

    @pytest.mark.parametrize("axis", ["pod", "data"])
    def test_the_partitioner_s_own_groups_tell_it_too(self, pods, axis):
        x = jax.device_put(jnp.ones((8, 16)), NamedSharding(pods, P(axis)))
        (found,) = compiled(lambda x: x.sum(0), x)
        assert found.crosses((2, 4)) == (["pod", "data"].index(axis),)

    def test_a_loop_multiplies(self, line):
        def loop(x):
            return jax.lax.fori_loop(0, 5, lambda _, c: jax.lax.psum(c, "data") / 8, x)

        (found,) = compiled(mapped(loop, line, P(), P()), jnp.ones(4))
        assert (found.times, found.conditional) == (5, False)
        assert hlo.sent_bytes([found]) == pytest.approx(5 * 2 * 7 / 8 * 16)

    def test_the_condition_of_a_loop_runs_once_more_than_its_body(self):
        before = "".join(
            f"%{name} (q: f32[4]) -> f32[4] {{\n  ROOT %{kind}.{name} = f32[4] {kind}(%q), replica_groups={{}}\n}}\n\n"
            for name, kind in (("body", "all-gather"), ("test", "all-reduce"))
        )
        trips = 'backend_config={"known_trip_count":{"n":"5"}}'
        text = module(f"ROOT %w = f32[4] while(%p), condition=%test, body=%body, {trips}", before=before)
        assert {one.kind: one.times for one in hlo.collectives(text)} == {"all-gather": 5, "all-reduce": 6}

    def test_nested_loops_multiply_twice_and_a_branch_is_marked(self, line):
        def body(c, i):
            c = jax.lax.fori_loop(0, 3, lambda _, c: jax.lax.psum(c, "data") / 8, c)
            return jax.lax.cond(i % 4 == 0, lambda c: jax.lax.pmax(c, "data"), lambda c: 2 * c, c), None

        found = compiled(mapped(lambda x: jax.lax.scan(body, x, jnp.arange(12))[0], line, P(), P()), jnp.ones(4))
        assert sorted((one.times, one.conditional) for one in found) == [(12, True), (36, False)]
        assert hlo.sent_bytes(found, branches=False) == pytest.approx(36 * 28)
        assert hlo.sent_bytes(found) == pytest.approx(48 * 28)

    def test_a_loop_of_unknown_length_is_no_number_of_bytes(self, line):
        def loop(x):
            return jax.lax.while_loop(lambda c: c[0] < 9, lambda c: jax.lax.psum(c, "data"), x)

        (found,) = compiled(mapped(loop, line, P(), P()), jnp.ones(4))
        assert found.times is None
        with pytest.raises(ValueError, match="in a loop of unknown length"):
            hlo.sent_bytes([found])

    def test_a_program_on_one_device_communicates_nothing(self):
        assert compiled(lambda x: x.sum(), jnp.ones(4)) == []
        assert hlo.sent_bytes([]) == 0


class TestTexts:
    def test_a_start_and_its_done_are_one_with_the_bytes_of_the_result(self):
        text = module(
            "%p = f32[4]{0} parameter(0)",
            "%ar = f32[4]{0} all-reduce-start(%p), replica_groups={{0,1},{2,3}}, to_apply=%add",
            "%ar.done = f32[4]{0} all-reduce-done(%ar)",
            "%ag = (f32[4]{0}, f32[32]{0:T(128)S(1)}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}",
            "%ag.done = f32[32]{0:T(128)S(1)} all-gather-done(%ag)",
            "%rs = ((bf16[16]{0}), bf16[2]{0}) reduce-scatter-start(%p), replica_groups={}, to_apply=%add",
            "%rs.update = ((bf16[16]{0}), bf16[2]{0}) reduce-scatter-update(%rs)",
            "%rs.done = bf16[2]{0} reduce-scatter-done(%rs.update)",
            "%cp = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}",
            "ROOT %cp.done = f32[4]{0} collective-permute-done(%cp)",
        )
        found = {one.kind: (one.dtypes, one.result_bytes, one.group_size) for one in hlo.collectives(text)}
        assert found == {
            "all-reduce": (("f32",), 16, 2),
            "all-gather": (("f32",), 128, 8),
            "reduce-scatter": (("bf16",), 4, 8),
            "collective-permute": (("f32",), 16, 2),
        }

    def test_a_wrapped_collective_is_read_in_its_computation_once(self):
        wrapped = "\n".join(
            [
                "%wrapped (q: f32[16]) -> f32[2] {",
                "  %q = f32[16]{0} parameter(0)",
                "  ROOT %rs = f32[2]{0} reduce-scatter(%q), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add",
                '}, execution_thread="main"',
                "",
            ]
        )
        text = module(
            "%p = f32[16]{0} parameter(0)",
            "%s = ((f32[16]{0}), f32[2]{0}) async-start(%p), calls=%wrapped",
            "ROOT %d = f32[2]{0} async-done(%s), calls=%wrapped",
            before=wrapped,
        )
        (found,) = hlo.collectives(text)
        assert (found.kind, found.wire_bytes) == ("reduce-scatter", 7 * 8)

    def test_a_tuple_sums_its_arrays_of_any_dtype(self):
        shape = "(f32[3,5]{1,0:T(8,128)(2,1)}, /*index=1*/bf16[7]{0}, s8[9]{0}, pred[3], s4[5], f8e4m3fn[4], c64[])"
        text = module(f"ROOT %ar = {shape} all-reduce(%a, %b), replica_groups={{{{0,1}}}}, to_apply=%add")
        (found,) = hlo.collectives(text)
        assert found.dtypes == ("f32", "bf16", "s8", "pred", "s4", "f8e4m3fn", "c64")
        assert found.result_bytes == 60 + 14 + 9 + 3 + 3 + 4 + 8

    def test_both_branches_and_old_names_of_branches_are_read(self):
        before = "".join(
            f"%{name} (q: f32[4]) -> f32[4] {{\n  ROOT %{kind}.{name} = f32[4] {kind}(%q), replica_groups={{}}\n}}\n\n"
            for name, kind in (("yes", "all-gather"), ("no", "all-to-all"), ("shared", "all-reduce"))
        )
        text = module(
            "%c = f32[4] conditional(%b, %p, %p), true_computation=%yes, false_computation=%no",
            "%first = f32[4] call(%c), to_apply=%shared",
            "ROOT %second = f32[4] call(%first), to_apply=%shared",
            before=before,
        )
        found = [(one.kind, one.conditional) for one in hlo.collectives(text)]
        assert found == [("all-gather", True), ("all-to-all", True), ("all-reduce", False), ("all-reduce", False)]

    def test_words_in_metadata_and_reductions_are_no_collectives(self):
        text = module('ROOT %x = f32[4] reduce(%p), to_apply=%add, metadata={op_name="all-reduce(%x), all-gather(%y)"}')
        assert hlo.collectives(text) == []

    def test_a_text_without_an_entry_is_refused(self):
        with pytest.raises(
            ValueError, match=r"must be a compiled program in HLO, got no ENTRY; pass compiled\.as_text"
        ):
            hlo.collectives("module @jit_f {}")


class TestGroups:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("{}", ((0, 1, 2, 3, 4, 5, 6, 7),)),
            ("{{0,1,2,3},{4,5,6,7}}", ((0, 1, 2, 3), (4, 5, 6, 7))),
            ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
            ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
            ("[4,2]<=[2,2,2]T(0,2,1)", ((0, 2), (1, 3), (4, 6), (5, 7))),
            ("mesh['pod'=2,'data'=4] {'data'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
            ("mesh['pod'=2,'data'=4] {'pod'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
            ("mesh['axis_0'=1,'axis_1'=8] {'axis_1'}", ((0, 1, 2, 3, 4, 5, 6, 7),)),
            ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ((0, 1, 4, 5), (2, 3, 6, 7))),
            ("mesh[axis_0=2,axis_1=4] {axis_0}", ((0, 4), (1, 5), (2, 6), (3, 7))),
            # Of an axis of 8 the middle factor of 2 x 2 x 2, and the last.
            ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
            ("mesh['a'=8] {'a':(4)2}", ((0, 1), (2, 3), (4, 5), (6, 7))),
            ("mesh['x'=2,'y'=2], device_ids=(0,2,1,3) {'x'}", ((0, 1), (2, 3))),
            ("mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ],
    )
    def test_each_form_names_the_same_devices(self, text, expected):
        assert device_groups(text, 8) == expected
        # As an attribute among others it is found whole.
        line = (
            f"ROOT %r = f32[4] all-reduce(%p), channel_id=1, replica_groups={text}, to_apply=%add, metadata={{a={{}}}}"
        )
        assert hlo.collectives(module(line))[0].groups == expected

    def test_an_unknown_form_is_refused(self):
        with pytest.raises(ValueError, match="must be a list, an iota or a mesh, got 'ring'; extend experiments"):
            device_groups("ring", 8)
        with pytest.raises(ValueError, match="got 'ring, to_apply=%add'"):
            hlo.collectives(module("ROOT %r = f32[4] all-reduce(%p), replica_groups=ring, to_apply=%add"))

    def test_pairs_join_the_devices_that_they_connect(self):
        assert source_target_groups("{0,1},{2,3},{1,0}") == ((0, 1), (2, 3))
        assert source_target_groups("{0,1},{2,3},{3,1}") == ((0, 1, 2, 3),)

    def test_axes_are_those_along_which_a_group_extends(self):
        def crosses(text, shape):
            return hlo.Collective("all-reduce", ("f32",), 4, device_groups(text, 8), 1, False, "r").crosses(shape)

        assert crosses("{{0,1},{2,3},{4,5},{6,7}}", (2, 2, 2)) == (2,)
        assert crosses("{{0,4},{1,5},{2,6},{3,7}}", (2, 2, 2)) == (0,)
        assert crosses("{{0,5},{1,4},{2,7},{3,6}}", (2, 2, 2)) == (0, 2)
        assert crosses("{{0},{1},{2},{3},{4},{5},{6},{7}}", (2, 2, 2)) == ()
