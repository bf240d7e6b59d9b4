"""Rows that wrap parts of Optax which mix dtypes run under standard promotion, as the catalogue says."""

import jax
import pytest


@pytest.fixture(autouse=True)
def promotion_of_the_row(request):
    row = getattr(request.node, "callspec", None)
    if row is not None and any(getattr(value, "wraps_unclean_optax", "") for value in row.params.values()):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield
    else:
        yield
