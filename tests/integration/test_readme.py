"""The README's claims that can be run."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nagjax

README = Path(__file__).parents[2] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.usefixtures("standard_promotion")
def test_the_example_runs_and_finds_the_minimizer():
    example, *_ = blocks()
    names = {}
    exec(example, names)
    np.testing.assert_allclose(nagjax.eval_params(names["params"], names["state"]), jnp.ones(5), atol=1e-5)


def test_the_example_of_the_solver_converges_to_one_exact_zero():
    *_, example = blocks()
    names = {}
    exec(example, names)
    solution = names["solution"]
    # With x_1 = 0 the other coordinate is soft-thresholded least squares: (b'a - 1) / a'a.
    np.testing.assert_allclose(solution.params, [0, (28 - 1) / 56], atol=1e-6)
    assert float(solution.params[0]) == 0.0


@pytest.mark.usefixtures("standard_promotion")
def test_the_example_of_surgery_leaves_the_head_at_rest_and_slows_the_body():
    _, example, *_ = blocks()
    names = {}
    exec(example, names)
    velocity = nagjax.velocity(names["state"])
    np.testing.assert_allclose(velocity["body"], -0.01)  # the step -0.1 * gradient, a tenth of it
    assert not jnp.any(velocity["head"])


@pytest.mark.usefixtures("single_precision", "standard_promotion")
def test_the_examples_of_training_on_one_device_and_on_eight_run_as_they_stand(capsys):
    example, on_eight = (block for block in blocks() if "training.fit(" in block)
    names = {}
    exec(example, names)
    evaluations = [record for record in names["fit"].history if record.kind == "eval"]
    assert evaluations[-1].metrics["accuracy"] > 0.88
    names["model"].eval()
    assert names["evaluate"](names["model"])["loss"] == pytest.approx(evaluations[-1].metrics["loss"], rel=1e-4)

    exec(on_eight, names)
    assert names["fit"].history[-1].metrics["loss"] < 1.0
    printed = capsys.readouterr().out.split(" ", 1)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(names["fit"].state.params))
    assert 4 * parameters / 8 <= int(printed[0]) < 4 * parameters / 7
    assert "readout" in printed[1]


def test_every_name_in_the_tables_exists():
    modules = "momentum|restart|schedules|storage|conventions|outer|proximal|solve|adaptive|step_sizes|training|nagjax"
    for module, name in re.findall(rf"`({modules})\.(\w+)", README.read_text()):
        assert hasattr(nagjax if module == "nagjax" else getattr(nagjax, module), name), name


def test_every_picture_and_relative_link_exists():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
