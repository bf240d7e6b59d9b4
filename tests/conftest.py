"""Strict JAX for every test: 64 bits, no implicit promotion of dtypes or ranks, warnings as errors, 8 CPU devices."""

import gc
import os
import tempfile
from pathlib import Path

# No test fetches a data set, or reads one from the cache of the machine.
os.environ["NAGJAX_OFFLINE"] = "1"
os.environ["NAGJAX_CACHE"] = str(Path(tempfile.gettempdir()) / "nagjax-no-cache")
# Before the first use of JAX in the process.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs of tests run once: LLVM's slow passes would take a fifth of the time of all tests, and collecting garbage as
# often as Python does by default another sixth. XLA's own passes are as usual.
_FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_FLAGS = f"--xla_force_host_platform_device_count=8 {_FAST}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

import hypothesis
import jax
import pytest

gc.set_threshold(50_000, 20, 100)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("nagjax", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("nagjax")


@pytest.fixture
def single_precision():
    """JAX's default of 32 bits."""
    with jax.enable_x64(False):
        yield


@pytest.fixture
def standard_promotion():
    """For code of Optax that mixes dtypes: its schedules, its Adam family, MultiSteps."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
