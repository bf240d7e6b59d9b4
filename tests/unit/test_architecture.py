"""The direction of imports, what an import costs, and what the public surface is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nagjax

PACKAGE = Path(nagjax.__file__).parent

# A module imports from its own row and the rows above it.
ROWS = [
    {"types", "checks", "trees", "scalars", "noise", "mapped", "reductions", "theory", "models"},
    {"momentum", "restart", "schedules", "storage", "proximal", "problems"},
    {"transform", "descent", "compensation", "answers", "step_sizes"},
    {"methods", "averaging", "adaptive"},
    {"conventions", "outer", "solve", "interop"},
    {"training"},
    {"__init__"},
]
ROW = {name: number for number, names in enumerate(ROWS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def subject(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "nagjax":
            found |= {f"nagjax.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the row of a module"
            found.add(node.module)
    return found


def own(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("nagjax.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_row_and_the_rows_above(path):
    assert {name for name in own(path) if ROW[name] > ROW[subject(path)]} == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_models_and_training_import_flax(path):
    assert subject(path) in ("models", "training") or not any(name.split(".")[0] == "flax" for name in imports(path))


def test_theory_imports_numpy_alone():
    roots = {name.split(".")[0] for path in MODULES if subject(path) == "theory" for name in imports(path)}
    assert roots - set(sys.stdlib_module_names) <= {"numpy", "nagjax"}
    assert {name for path in MODULES if subject(path) == "theory" for name in own(path)} <= {"theory"}


def test_nothing_in_the_package_imports_theory_or_problems_but_they_themselves():
    for path in MODULES:
        assert own(path) & {"theory", "problems"} <= {subject(path)}


def test_a_module_has_one_subject():
    assert {str(path): n for path in MODULES if (n := len(path.read_text().splitlines())) > 320} == {}


def test_import_loads_neither_flax_nor_the_lazy_modules_nor_a_device():
    code = (
        "import sys, nagjax; from jax._src import xla_bridge\n"
        "optimizers = nagjax.nesterov(0.1), nagjax.item(2.0, 1.0), nagjax.triple_momentum(2.0, 1.0), nagjax.ogm(1.0)\n"
        "lazy = ('flax', 'nagjax.models', 'nagjax.problems', 'nagjax.solve', 'nagjax.theory')\n"
        "loaded = [m for m in lazy if m in sys.modules]\n"
        "print(loaded, xla_bridge.backends_are_initialized())\n"
        "print(nagjax.theory.__name__, nagjax.problems.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[] False", "nagjax.theory nagjax.problems"]


def test_the_public_surface_is_the_designed_one():
    types = "Coefficients Momentum Restart Storage"
    surface = "accelerate clip_by_global_norm compensate eval_params reset_momentum rescale_momentum velocity"
    methods = "nesterov fista ogm triple_momentum item acfgm adgd accelegrad agnes mass nadamw adan"
    averaging = "schedule_free primal_averaging"
    modules = "conventions momentum outer restart schedules storage proximal"
    lazy = "step_sizes adaptive solve interop theory problems models training"
    assert {
        *types.split(),
        *surface.split(),
        *methods.split(),
        *averaging.split(),
        *modules.split(),
        *lazy.split(),
    } <= set(dir(nagjax))
    with pytest.raises(AttributeError, match="no attribute 'nestrov'"):
        _ = nagjax.nestrov
