"""A cost model of training on several pods: compute, bandwidth and latency, and the period at which DiLoCo pays.

A pod is a set of devices joined by a fast inner link, and the pods are joined by an outer one. Parameters are sharded
inside a pod (FSDP: gathered for the forward and the backward pass, gradients scattered); pods hold copies, whose
gradients (data parallel, every step) or changes (DiLoCo, every H steps) are averaged over the outer link. Collectives
are rings, as in Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005.
docs/cost_model.md derives and discusses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

GIGABIT = 1e9 / 8  # bytes
WIRES = {"float32": 4.0, "bf16": 2.0, "int8": 1.02}  # bytes a parameter; int8 with one float32 scale in 256
SHARE = 0.05  # of a step's time, which the outer communication may take


@dataclass(frozen=True)
class Link:
    """A link as one direction of it, which a ring uses in both."""

    name: str
    bandwidth: float  # bytes/s
    latency: float  # seconds a message; an assumption of this model, no published figure
    shared: bool = False  # one link for a whole pod; otherwise each device has its own
    source: str = ""


@dataclass(frozen=True)
class Chip:
    """An accelerator and the link that joins it to the others of its pod."""

    name: str
    flops: float  # FLOP/s, dense bfloat16, peak
    inner: Link
    source: str = ""


@dataclass(frozen=True)
class Job:
    """A model and how it is spread: M pods of `devices` devices, each with `tokens` tokens a step."""

    parameters: float
    devices: int  # n, of one pod
    pods: int = 4  # M
    tokens: int = 4096  # of one device and step
    utilization: float = 0.4  # of the peak FLOP/s, in (0, 1]
    inner_wire: float = 2.0  # bytes a parameter, of gathers and scatters inside a pod

    def __post_init__(self) -> None:
        """Refuses values that make no sense."""
        for name in ("parameters", "devices", "pods", "tokens", "utilization", "inner_wire"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Job: {name} must be positive, got {getattr(self, name)!r}.")
        if self.utilization > 1:
            raise ValueError(
                f"Job: utilization must be at most 1, got {self.utilization!r}; it is a share of the peak."
            )


NVLINK4 = Link("NVLink 4, 450 GB/s", 450e9, 3e-6, source="NVIDIA H100 data sheet: 900 GB/s in both directions")
NVLINK5 = Link("NVLink 5, 900 GB/s", 900e9, 3e-6, source="NVIDIA B200 data sheet: 1.8 TB/s in both directions")
ICI = Link("ICI, 600 GB/s", 600e9, 3e-6, source="Google Cloud TPU v5p: 1,200 GB/s in both directions")
INFINIBAND = Link("InfiniBand, 400 Gb/s", 400 * GIGABIT, 5e-6, source="NVIDIA ConnectX-7 data sheet")
DCN = Link("DCN, 50 Gb/s", 50 * GIGABIT, 50e-6, source="Google Cloud TPU v5p")
ETHERNET100 = Link("Ethernet, 100 Gb/s a site", 100 * GIGABIT, 10e-3, True, "IEEE 802.3; 1,000 km of fiber and back")
ETHERNET10 = Link("Ethernet, 10 Gb/s a site", 10 * GIGABIT, 10e-3, True, "IEEE 802.3; 1,000 km of fiber and back")
H100 = Chip("H100", 989e12, NVLINK4, "NVIDIA H100 SXM data sheet")
B200 = Chip("B200", 2250e12, NVLINK5, "NVIDIA DGX B200 data sheet, eighth part, without sparsity")
TPU_V5P = Chip("TPU v5p", 459e12, ICI, "Google Cloud TPU v5p")

# Devices grow with the model, so that the batch does: 0.13 to 16.8 million tokens over four pods.
JOBS = tuple(Job(size, devices) for size, devices in ((1e8, 8), (1e9, 16), (1e10, 128), (1e11, 1024)))
MESHES: tuple[tuple[Chip, Link], ...] = (
    (B200, NVLINK5),
    (H100, NVLINK4),
    (TPU_V5P, ICI),
    (H100, INFINIBAND),
    (TPU_V5P, DCN),
    (H100, ETHERNET100),
    (H100, ETHERNET10),
)


def ring_seconds(size: float, members: int, bandwidth: float, latency: float, *, passes: int = 2) -> float:
    """The time of a ring collective: passes (n-1) (size / (n bandwidth) + latency).

    Args:
        size: Bytes of the whole result.
        members: n, devices of the ring, at least 1.
        bandwidth: Bytes/s of a link in one direction.
        latency: Seconds a message.
        passes: 2 for an all-reduce, 1 for an all-gather or a reduce-scatter.
    """
    return passes * (members - 1) * (size / (members * bandwidth) + latency)


def compute_seconds(job: Job, chip: Chip) -> float:
    """Forward and backward pass: 6 FLOP a parameter and token (Kaplan et al., "Scaling laws", 2020, section 2.1)."""
    return 6 * job.parameters * job.tokens / (chip.flops * job.utilization)


def inner_seconds(job: Job, chip: Chip) -> float:
    """Communication inside a pod: two gathers of the parameters and a scatter of the gradients."""
    size = job.parameters * job.inner_wire
    return ring_seconds(size, job.devices, chip.inner.bandwidth, chip.inner.latency, passes=3)


def outer_seconds(job: Job, link: Link, wire: float = 2.0) -> float:
    """One average over the pods, of which the n devices of a pod each take their part, by own links or a shared one.

    Args:
        job: The model and the pods.
        link: The outer link.
        wire: Bytes a parameter on the wire.
    """
    bandwidth = link.bandwidth * (1 if link.shared else job.devices)
    return ring_seconds(job.parameters * wire, job.pods, bandwidth, link.latency)


def step_seconds(
    job: Job, chip: Chip, link: Link, period: float = 1, wire: float = 2.0, *, overlap: bool = False
) -> float:
    """The mean time of a step, T_H = compute + inner + outer / H.

    Args:
        job: The model and the pods.
        chip: The devices and their inner link.
        link: The outer link.
        period: H, steps from one average to the next; 1 for data parallel.
        wire: Bytes a parameter on the outer link.
        overlap: Whether all communication runs behind the arithmetic: the longest of the three instead of their sum.
    """
    parts = (compute_seconds(job, chip), inner_seconds(job, chip), outer_seconds(job, link, wire) / period)
    return max(parts) if overlap else sum(parts)


def slowdown(job: Job, chip: Chip, link: Link, period: float = 1, wire: float = 2.0, *, overlap: bool = False) -> float:
    """The time of a step over that of pods that never communicate."""
    parts = (compute_seconds(job, chip), inner_seconds(job, chip))
    return step_seconds(job, chip, link, period, wire, overlap=overlap) / (max(parts) if overlap else sum(parts))


def smallest_period(job: Job, chip: Chip, link: Link, wire: float = 2.0, share: float = SHARE) -> int:
    """The smallest H at which the outer communication takes at most `share` of the time, without overlap.

    outer / H <= share (compute + inner + outer / H) gives H >= (1 - share) / share * outer / (compute + inner).
    """
    local = compute_seconds(job, chip) + inner_seconds(job, chip)
    exact = (1 - share) / share * outer_seconds(job, link, wire) / local
    # Rounding must not add a step to an exact solution.
    return max(1, math.ceil(exact * (1 - 1e-12)))


@dataclass(frozen=True)
class Row:
    """The periods of one pair of chip and outer link, for every job and wire."""

    chip: str
    link: str
    periods: dict[str, list[int]]  # wire -> one period a job
    data_parallel: list[float]  # slowdown with H = 1 and bf16, one a job


def table(jobs: Sequence[Job] = JOBS, meshes: Sequence[tuple[Chip, Link]] = MESHES) -> list[Row]:
    """The rows that the experiment prints."""
    return [
        Row(
            chip.name,
            link.name,
            {name: [smallest_period(job, chip, link, wire) for job in jobs] for name, wire in WIRES.items()},
            [slowdown(job, chip, link) for job in jobs],
        )
        for chip, link in meshes
    ]
