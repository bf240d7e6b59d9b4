"""The page "Coming from JAXopt": its code runs, and both columns of its table agree where JAXopt is installed."""

import dataclasses
import inspect
import operator
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nagjax import solve

PAGE = (Path(__file__).parents[2] / "docs" / "coming_from_jaxopt.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def table(header):
    """The rows below a header, as lists of cells."""
    lines = PAGE[PAGE.index(header) :].split("\n")[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    raise AssertionError("the table has no end")


CALLS = [[cell.strip("`") for cell in row] for row in table("| JAXopt call | nagjax call |")]
NAMES = [[cell.strip("`") for cell in row] for row in table("| JAXopt | nagjax |")]


@pytest.fixture(scope="module")
def problem():
    names = {}
    exec(BLOCKS[0], names)
    return names


@pytest.fixture(scope="module")
def jaxopt_names(problem):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it is no longer maintained
        jaxopt = pytest.importorskip("jaxopt", reason="needs the extra nagjax[bench]")
    modules = jaxopt, jaxopt.prox, jaxopt.projection, jaxopt.objective
    names = {name: value for module in modules for name, value in vars(module).items()}
    return {**names, **problem, "accurate": {"tol": 1e-9, "maxiter": 10_000}}


def evaluate(expression, names, where):
    try:
        return eval(expression, dict(names))
    except Exception as error:
        raise AssertionError(f"{where}: {expression}") from error


def test_the_table_has_two_columns_of_code():
    assert len(CALLS) > 30
    assert all(len(row) == 2 and all(compile(cell, "cell", "eval") for cell in row) for row in CALLS)


@pytest.mark.parametrize("block", range(1, len(BLOCKS)))
def test_a_block_of_code_holds(problem, block):
    exec(BLOCKS[block], dict(problem))
    assert "assert " in BLOCKS[block]


@pytest.mark.parametrize("row", CALLS, ids=[row[0][:60] for row in CALLS])
def test_both_calls_of_a_row_agree(problem, row, request):
    ours = evaluate(row[1], problem, "nagjax")
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.all(jnp.isfinite(leaf))), ours))
    names = request.getfixturevalue("jaxopt_names")
    # JAXopt mixes dtypes and ranks, and its calls of JAX warn.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = evaluate(row[0], names, "JAXopt")
    assert ours.dtype == jnp.float64
    assert jnp.any(ours != 0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_the_names_of_nagjax_exist(problem):
    solution = solve.minimize(problem["loss_and_predictions"], problem["w0"], args=(problem["data"],), has_aux=True)
    arguments = inspect.signature(solve.minimize).parameters
    for _, name in NAMES:
        assert name in arguments or operator.attrgetter(name)(solution) is not None, name


def test_the_names_of_jaxopt_exist(jaxopt_names):
    solver = jaxopt_names["ProximalGradient"]
    arguments = {field.name for field in dataclasses.fields(solver)}
    state = inspect.signature(solver.init_state).return_annotation._fields
    for name, _ in NAMES:
        assert name in arguments | {"params"} | {f"state.{field}" for field in state}, name
    for cell, _ in table("| JAXopt argument | in nagjax |"):
        for name in re.findall(r"`(\w+)`", cell):
            assert name in arguments | set(inspect.signature(solver.update).parameters), name


def test_what_the_page_says_is_not_here_exists_in_jaxopt_alone(jaxopt_names):
    missing = re.findall(r"`(projection_\w+)`", PAGE[PAGE.index("## What is not here") :])
    assert len(missing) >= 7
    assert set(missing) <= set(jaxopt_names)
    covered = {name for row in CALLS for name in re.findall(r"projection_\w+", row[0])}
    projections = {name for name in jaxopt_names if re.match(r"(kl_)?projection_", name)}
    assert {name for name in projections if not name.startswith("kl_")} == covered | set(missing)
