"""The experiment `scaling`: its programs send and hold what the formulas say, and its claims can fail."""

import dataclasses
import json
import math
import os

import jax
import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments import (
    scaling,
    scaling_children,
    scaling_cost,
    scaling_figure,
    scaling_report,
    scaling_runs,
    scaling_training,
)
from experiments.scaling_rows import LAYOUTS, SHAPES, SIZES, expected

EXAMPLES, STEPS = scaling.FEWEST, 20


def one_device():
    step = scaling_training.make_step()
    state, update, losses = step.init(), jax.jit(step), []
    for number in range(STEPS):
        state, metrics = update(state, scaling_training.batch_of(number, EXAMPLES))
        losses.append(float(metrics["loss"]))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)], losses


@pytest.mark.usefixtures("single_precision", "standard_promotion")
class TestPrograms:
    @pytest.fixture(scope="class")
    @staticmethod
    def programs():
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return {layout: scaling_training.Program(layout, EXAMPLES) for layout in LAYOUTS}

    def test_every_layout_reaches_the_parameters_of_one_device(self, programs):
        reference, losses = one_device()
        assert losses[-1] < losses[0] - 0.1  # the parameters have moved, by a training that does something
        for layout, program in programs.items():
            assert scaling_runs.difference(program.train(STEPS), reference) < 1e-6, layout

    def test_the_optimizer_clips_and_restarts_so_that_its_global_scalars_matter(self, monkeypatch):
        clipped, _ = one_device()
        monkeypatch.setattr(scaling_training, "LARGEST_NORM", 1e9)
        free, _ = one_device()
        assert scaling_runs.difference(free, clipped) > 1e-3

    def test_compiled_steps_send_and_hold_what_the_formulas_say(self, programs):
        for layout, program in programs.items():
            found, formula = program.inspect(), expected(layout, 8)
            assert 0 <= found["sent_bytes"] - formula.sent <= scaling_report.SCALARS, layout
            assert found["parameter_bytes"] == formula.parameters
            assert found["optimizer_bytes"] == formula.velocity + 8  # readout and age
            kinds = {"all-reduce"} if layout == "data parallel" else {"all-reduce", "all-gather"}
            assert set(found["kinds"]) == kinds
            assert sum(found["kinds"].values()) == found["sent_bytes"]

    def test_zero1_leaves_whole_only_what_no_axis_divides(self, programs):
        names = programs["ZeRO-1"].inspect()["whole"]
        assert [name.rpartition("velocity/")[2] for name in names] == ["3/b", "1/2/readout", "1/2/age"]
        assert SIZES[-1] % 8

    def test_every_timed_step_is_a_step(self, programs):
        program = programs["FSDP"]
        before = int(program.state.step)
        assert len(program.seconds(3)) == 3
        assert int(program.state.step) == before + 3

    def test_shapes_are_those_of_the_network_in_the_order_of_its_leaves(self):
        leaves = jax.tree.leaves(scaling_training.parameters())
        assert tuple(leaf.shape for leaf in leaves) == SHAPES


class TestChildren:
    def test_a_child_has_its_own_number_of_devices_whatever_the_parent_s_flags(self, monkeypatch):
        monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false")
        found = scaling_children.environment(4)
        assert found["JAX_NUM_CPU_DEVICES"] == "4"
        assert found["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false"
        assert found["JAX_PLATFORMS"] == "cpu"

    def test_two_devices_in_a_process_of_their_own_train_and_are_timed(self, tmp_path, monkeypatch):
        monkeypatch.setenv("JAX_ENABLE_X64", "0")
        with scaling_children.started(2) as child:
            child.send("train", "ZeRO-1", EXAMPLES, steps=STEPS, path=str(tmp_path / "two.npz"))
            child.send("time", "ZeRO-1", EXAMPLES, steps=3)
            with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                reference, _ = one_device()
            assert child.answer() == {"processes": 1, "devices": 2}
            assert len(child.answer()["seconds"]) == 3
        assert scaling_runs.difference(scaling_runs._taken(tmp_path / "two.npz"), reference) < 1e-6

    def test_what_a_failing_child_said_is_in_the_message(self):
        with (
            scaling_children.started(1) as child,
            pytest.raises(scaling_children.ChildError, match=r"(?s)with 1 devices ended; it said:.*KeyError: 'none'"),
        ):
            child.ask("time", "none", 8, steps=1)
        assert child.process.poll() is not None


class TestClaims:
    @pytest.fixture
    @staticmethod
    def measured():
        """What a run would find that is right."""
        formula = expected("ZeRO-1", 8)
        program = scaling_runs.Bytes(
            "ZeRO-1", 8, formula.sent + 8, {}, formula.parameters, formula.velocity + 8, 3, formula
        )
        return scaling_runs.Measured([scaling_runs.Training("FSDP", 4, 2, 1e-7)], [program])

    def test_what_is_right_has_no_failures(self, measured):
        assert scaling_report.failures(measured) == []

    @pytest.mark.parametrize("difference", [2e-6, math.nan])
    def test_other_parameters_are_a_failure(self, measured, difference):
        measured.trainings[0] = dataclasses.replace(measured.trainings[0], difference=difference)
        (said,) = scaling_report.failures(measured)
        assert f"FSDP, 4 devices in 2 processes: parameters differ from those of one device by {difference:.1e}" in said

    @pytest.mark.parametrize(
        ("field", "change", "words"),
        [
            ("sent", 1000, "a step sends 1,404,718 bytes, the formula says 1,403,710"),
            ("sent", -9, "a step sends"),
            ("parameters", -4, "534,756 bytes of parameters, not 534,760"),
            ("optimizer", 1000, "67,888 bytes of state, not 66,880"),
        ],
    )
    def test_other_bytes_are_a_failure(self, measured, field, change, words):
        program = measured.programs[0]
        measured.programs[0] = dataclasses.replace(program, **{field: getattr(program, field) + change})
        (said,) = scaling_report.failures(measured)
        assert words in said

    def test_a_difference_is_relative_to_the_largest_entry_of_its_array(self):
        one = [np.array([1.0, 4.0]), np.array([[100.0]])]
        assert scaling_runs.difference([one[0] + np.array([0.2, 0]), one[1] + 1], one) == pytest.approx(0.05)

    def test_ratios_are_of_a_unit_of_work_in_the_same_round(self):
        one, two = (1, "FSDP", 8), (2, "FSDP", 16)
        rounds = [{one: 1.0, two: 3.0}, {one: 4.0, two: 8.0}]
        np.testing.assert_allclose(scaling_runs.ratios(rounds, two, one, 2), [1.5, 1.0])


class TestCommand:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"rounds": 0}, "--rounds must be at least 1, got 0."),
            ({"timed_steps": 0}, "--timed-steps must be at least 1, got 0."),
            ({"devices": (2, 4)}, "--devices must rise from 1"),
            ({"devices": (1, 4, 2)}, "--devices must rise from 1"),
            ({"processes": (3,)}, "--processes must be of 1, 2 and 4"),
            ({"examples": 514}, "--examples must be a multiple of all numbers of devices"),
            ({"examples": 256}, "--examples must be at least 512, got 256; with smaller batches XLA moves activations"),
        ],
    )
    def test_values_that_make_no_sense_are_refused(self, values, message):
        with pytest.raises(ValueError, match=message):
            scaling.Config(**values)

    def test_quick_keeps_what_was_asked_where_it_can(self):
        quick = scaling.Config(quick=True).reduced()
        assert (quick.rounds, quick.devices, quick.processes) == (3, (1, 2, 4, 8), (2,))
        assert scaling.Config(quick=True, processes=()).reduced().processes == ()

    def run(self, folder, *more):
        command = ["scaling", "--examples", str(EXAMPLES), "--steps", "4", "--rounds", "2", "--timed-steps", "2", *more]
        assert command_line.main([*command, "--out", str(folder / "out")]) == 0
        return json.loads((folder / "out" / "results.json").read_text())

    @pytest.mark.slow
    def test_a_small_run_writes_table_figure_and_records(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("JAX_ENABLE_X64", "0")
        record = self.run(tmp_path, "--devices", "1", "2", "--processes")
        shown = " ".join(capsys.readouterr().out.split())
        assert "more of them add no arithmetic" in shown
        assert "1208/604/309 (33)" in shown
        results = record["results"]
        assert record["files"] == ["metrics.jsonl", "results.json", "scaling.png"]
        assert results["largest_difference"] < 1e-6
        assert [(row["devices"], row["layout"]) for row in results["trainings"]] == [
            (devices, layout) for devices in (1, 2) for layout in LAYOUTS
        ]
        for program in results["programs"]:
            sent = expected(program["layout"], program["devices"]).sent
            assert 0 <= program["sent"] - sent < 256
        batches = {(row["scaling"], row["devices"]): row["examples"] for row in results["times"]}
        assert batches == {("strong", 1): 512, ("strong", 2): 512, ("weak", 1): 256, ("weak", 2): 512}
        assert all(row["ratio"] == 1 for row in results["times"] if row["devices"] == 1)
        assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.slow
    def test_two_and_four_processes_reach_the_parameters_of_one_device(self, tmp_path):
        results = self.run(tmp_path, "--devices", "1", "--processes", "2", "4")["results"]
        runs = {(row["processes"], row["layout"]): row["difference"] for row in results["trainings"]}
        assert set(runs) == {(processes, layout) for processes in (1, 2, 4) for layout in LAYOUTS}
        assert max(runs.values()) < 1e-6
        assert [row["processes"] for row in results["times"] if row["scaling"] == "processes"] == [2, 4]

    def test_tables_and_figure_are_made_of_whatever_rows_there_are(self, tmp_path, capsys):
        measured = scaling_runs.Measured()
        for devices in (1, 4):
            for layout in LAYOUTS:
                formula = expected(layout, devices)
                measured.trainings.append(scaling_runs.Training(layout, devices, 1, 1e-8 * devices))
                measured.programs.append(
                    scaling_runs.Bytes(
                        layout, devices, formula.sent, {}, formula.parameters, formula.velocity, 2, formula
                    )
                )
                measured.times.append(
                    scaling_runs.Timed(layout, devices, 1, "strong", 512, 5.0 * devices, devices, (1.0, 2.0))
                )
        measured.trainings += [scaling_runs.Training(layout, 4, 1, 5e-8, True) for layout in LAYOUTS]
        measured.times.append(scaling_runs.Timed(LAYOUTS[0], 4, 2, "processes", 512, 9.0, 3.5, (3.0, 4.0)))
        scaling_report.show(scaling.Config(), measured, scaling_cost.table())
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert "4 1 4.0e-08 4.0e-08 4.0e-08" in lines
        assert "4 1, by gloo 5.0e-08 5.0e-08 5.0e-08" in lines
        assert "FSDP 4 1,203,180 1,203,180 802,140 133,720 133,720 1/4 2 none" in lines
        assert "processes data parallel 4 2 512 9.0 3.50 3.00 to 4.00" in lines
        assert any(line.endswith("1208/604/309 (33)") for line in lines)
        scaling_figure.draw(tmp_path / "scaling.png", measured)
        assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")

    def test_a_process_that_fails_ends_the_command_with_what_it_said(self, tmp_path, monkeypatch):
        def fail(config, run):
            raise scaling_children.ChildError("scaling: the process with 2 devices ended; it said:\nwhy")

        monkeypatch.setattr(scaling_runs, "measure", fail)
        with pytest.raises(SystemExit, match="2 devices ended; it said:\nwhy"):
            command_line.main(["scaling", "--out", str(tmp_path / "out")])

    def test_a_claim_that_does_not_hold_ends_with_an_error(self, tmp_path, monkeypatch):
        measured = scaling_runs.Measured([scaling_runs.Training("FSDP", 4, 2, 1e-3)])
        monkeypatch.setattr(scaling_runs, "measure", lambda config, run: measured)
        monkeypatch.setattr("experiments.scaling_figure.draw", lambda path, measured: None)
        with pytest.raises(SystemExit, match="scaling: a claim does not hold:\n  FSDP, 4 devices in 2 processes"):
            command_line.main(["scaling", "--out", str(tmp_path / "out")])
        assert not os.path.exists(tmp_path / "out")
