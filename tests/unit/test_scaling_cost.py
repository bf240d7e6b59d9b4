"""The cost model of `scaling` against closed forms worked out by hand, and the formulas of bytes."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from experiments import scaling_cost as cost
from experiments import scaling_report
from experiments.scaling_rows import SHAPES, expected

CHIP = cost.Chip("chip", 1e12, cost.Link("inner", 1e9, 1e-3))
OWN = cost.Link("own", 1e8, 2e-3)
SHARED = dataclasses.replace(OWN, shared=True)
# 6 * 1e8 * 1000 FLOP at half of 1e12 a second are 1.2 s; 2e8 bytes are gathered twice and scattered once.
JOB = cost.Job(1e8, devices=5, pods=4, tokens=1000, utilization=0.5)


class TestRings:
    def test_an_all_reduce_moves_two_times_all_but_one_part(self):
        assert cost.ring_seconds(8e9, 4, 1e9, 0) == pytest.approx(2 * 3 / 4 * 8)
        assert cost.ring_seconds(8e9, 4, 1e9, 0, passes=1) == pytest.approx(3 / 4 * 8)

    def test_latency_counts_once_a_message(self):
        assert cost.ring_seconds(0, 4, 1e9, 1e-3) == pytest.approx(6e-3)

    def test_one_device_communicates_nothing(self):
        assert cost.ring_seconds(8e9, 1, 1e9, 1.0) == 0

    def test_a_simulated_ring_takes_the_time_of_the_formula(self):
        """Each device sends one part a round, 2 (n-1) rounds: first sums travel, then results."""
        n, size, bandwidth, latency = 5, 1e6, 1e7, 1e-3
        rng = np.random.default_rng(0)
        held = rng.normal(size=(n, n))  # device, part
        want, clock = held.sum(0), 0.0
        for step in range(2 * (n - 1)):
            parts = [(device - step) % n if step < n - 1 else (device + 1 - (step - n + 1)) % n for device in range(n)]
            sent = [held[device, parts[device]] for device in range(n)]
            for device in range(n):
                target, part = (device + 1) % n, parts[device]
                held[target, part] = held[target, part] + sent[device] if step < n - 1 else sent[device]
            clock += size / n / bandwidth + latency
        np.testing.assert_allclose(held, np.tile(want, (n, 1)), rtol=1e-13)
        assert clock == pytest.approx(cost.ring_seconds(size, n, bandwidth, latency))


class TestSteps:
    def test_compute_is_six_operations_a_parameter_and_token(self):
        assert cost.compute_seconds(JOB, CHIP) == pytest.approx(1.2)

    def test_inside_a_pod_parameters_are_gathered_twice_and_gradients_scattered_once(self):
        assert cost.inner_seconds(JOB, CHIP) == pytest.approx(3 * (4 / 5 * 0.2 + 4e-3))

    def test_devices_with_links_of_their_own_share_the_work_and_a_shared_link_does_not(self):
        assert cost.outer_seconds(JOB, OWN, 4.0) == pytest.approx(2 * (3 / 4 * 4e8 / 5e8 + 3 * 2e-3))
        assert cost.outer_seconds(JOB, SHARED, 4.0) == pytest.approx(2 * (3 / 4 * 4e8 / 1e8 + 3 * 2e-3))

    def test_the_outer_communication_is_divided_by_the_period(self):
        local = cost.compute_seconds(JOB, CHIP) + cost.inner_seconds(JOB, CHIP)
        outer = cost.outer_seconds(JOB, OWN)
        assert cost.step_seconds(JOB, CHIP, OWN) == pytest.approx(local + outer)
        assert cost.step_seconds(JOB, CHIP, OWN, 50) == pytest.approx(local + outer / 50)
        assert cost.slowdown(JOB, CHIP, OWN, 50) == pytest.approx(1 + outer / 50 / local)

    def test_with_overlap_the_longest_of_the_three_counts(self):
        outer = cost.outer_seconds(JOB, SHARED)
        assert outer > cost.compute_seconds(JOB, CHIP) > cost.inner_seconds(JOB, CHIP) > outer / 10
        assert cost.step_seconds(JOB, CHIP, SHARED, overlap=True) == pytest.approx(outer)
        assert cost.step_seconds(JOB, CHIP, SHARED, 10, overlap=True) == pytest.approx(1.2)
        assert cost.slowdown(JOB, CHIP, SHARED, 10, overlap=True) == 1

    def test_the_scaling_law_paper_s_time_is_this_one_for_one_device_a_pod(self):
        """2503.09799, appendix A: an all-reduce over R devices at bandwidth W takes 2 N / W (1 - 1/R), N in bits."""
        job = dataclasses.replace(JOB, devices=1, pods=7)
        link = cost.Link("paper", 1e9, 0.0)
        assert cost.outer_seconds(job, link, 2.0) == pytest.approx(2 * 16e8 / 8e9 * (1 - 1 / 7))


class TestPeriods:
    @pytest.mark.parametrize("link", [OWN, SHARED])
    @pytest.mark.parametrize("wire", [4.0, 2.0, 1.02])
    @pytest.mark.parametrize("share", [0.05, 0.1])
    def test_the_smallest_period_keeps_the_share_and_the_one_before_does_not(self, link, wire, share):
        outer = cost.outer_seconds(JOB, link, wire)
        period = cost.smallest_period(JOB, CHIP, link, wire, share)
        assert outer / period <= share * cost.step_seconds(JOB, CHIP, link, period, wire)
        assert period > 1
        assert outer / (period - 1) > share * cost.step_seconds(JOB, CHIP, link, period - 1, wire)

    def test_data_parallel_is_enough_where_the_link_is_fast(self):
        assert cost.smallest_period(JOB, CHIP, cost.Link("fast", 1e12, 0.0)) == 1

    def test_an_exact_solution_is_taken(self):
        # With 1 s of arithmetic: 19 * 9.5 = 180.5 steps; 9 * 15 = 135, which floating point makes a little more.
        chip = cost.Chip("chip", 1.0, cost.Link("inner", math.inf, 0.0))
        job = cost.Job(1 / 6, devices=1, pods=2, tokens=1, utilization=1.0)
        for seconds, share, period in ((9.5, 0.05, 181), (15.0, 0.1, 135)):
            link = cost.Link("outer", job.parameters * 2 / seconds, 0.0)
            assert cost.outer_seconds(job, link) == pytest.approx(seconds)
            assert cost.smallest_period(job, chip, link, share=share) == period

    def test_without_latency_and_inner_traffic_the_period_does_not_depend_on_the_size_of_the_model(self):
        """Both arithmetic and bytes grow with it: H = 19 * 2 (M-1)/M * wire * FLOP/s / (6 tokens * bandwidth)."""
        chip = cost.Chip("chip", 4e14, cost.Link("inner", math.inf, 0.0))
        link = cost.Link("outer", 1e8, 0.0)
        periods = {cost.smallest_period(cost.Job(size, 8, 4, 4096, 1.0), chip, link) for size in (1e8, 1e9, 1e10, 1e11)}
        assert periods == {math.ceil(19 * 1.5 * 2 * 4e14 / (6 * 4096 * 8e8))}

    def test_fewer_bytes_on_the_wire_shorten_the_period_in_proportion_where_latency_is_small(self):
        row = next(row for row in cost.table() if row.link == cost.ETHERNET10.name)
        largest = {wire: periods[-1] for wire, periods in row.periods.items()}
        assert largest["float32"] / largest["bf16"] == pytest.approx(2, rel=0.01)
        assert largest["bf16"] / largest["int8"] == pytest.approx(2 / 1.02, rel=0.01)

    def test_the_table_has_a_period_for_every_job_and_wire(self):
        rows = cost.table()
        assert len(rows) == len(cost.MESHES)
        for row in rows:
            assert set(row.periods) == {"float32", "bf16", "int8"}
            assert {len(periods) for periods in row.periods.values()} == {len(row.data_parallel)} == {len(cost.JOBS)}

    def test_the_page_of_the_docs_shows_this_table(self):
        lines = (Path(__file__).parents[2] / "docs" / "cost_model.md").read_text().splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("| device | link between pods"))
        shown = [[part.strip() for part in line.strip("|").split("|")] for line in lines[start:]]
        jobs = range(len(cost.JOBS))
        assert shown[0][2:] == [f"{job.parameters / 1e9:g} B, {job.pods} x {job.devices}" for job in cost.JOBS]
        assert shown[2 : 2 + len(cost.MESHES)] == [
            [row.chip, row.link, *(scaling_report.cell(row, job) for job in jobs)] for row in cost.table()
        ]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pods": 0}, "pods must be positive, got 0"),
            ({"parameters": -1.0}, "parameters must be positive, got -1.0"),
            ({"utilization": 1.5}, "utilization must be at most 1, got 1.5"),
        ],
    )
    def test_a_job_that_makes_no_sense_is_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(JOB, **changes)


class TestBytes:
    SHAPES = ((10,), (16, 10), (3, 5))  # 8 devices divide one array, along its first axis

    def test_data_parallel_all_reduces_every_gradient(self):
        found = expected("data parallel", 8, self.SHAPES)
        assert found.sent == found.best == 2 * 7 / 8 * 4 * 185
        assert found.parameters == found.velocity == 4 * 185

    def test_zero1_gathers_what_it_updates_in_parts(self):
        found = expected("ZeRO-1", 8, self.SHAPES)
        assert found.sent == 7 / 8 * 4 * (2 * 185 + 160)
        assert found.best == 7 / 8 * 4 * 2 * 185
        assert (found.parameters, found.velocity) == (4 * 185, 4 * (10 + 20 + 15))

    def test_fsdp_holds_its_part_of_the_parameters_too(self):
        found = expected("FSDP", 8, self.SHAPES)
        assert found.sent == expected("ZeRO-1", 8, self.SHAPES).sent
        assert (found.parameters, found.velocity) == (4 * 45, 4 * 45)

    def test_one_device_sends_nothing_and_holds_everything(self):
        for layout in ("data parallel", "ZeRO-1", "FSDP"):
            found = expected(layout, 1, SHAPES)
            assert found.sent == found.best == 0
            assert found.parameters == found.velocity == 4 * 133_690
