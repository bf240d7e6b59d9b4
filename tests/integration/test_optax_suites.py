"""Optax's own test suites, which its wheel holds, with nagjax's optimizers in their tables."""

import ast
import importlib.util
import unittest
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import nagjax
from nagjax import conventions, momentum, outer, restart, storage
from nagjax.descent import scale_by_learning_rate

# They test on |x - x*|^2 (smoothness 2) and on Rosenbrock's function, whose largest curvature at the minimum is 1,002
# for real and 1,602 for complex parameters: a rate of 5e-4 is stable for both.
RATE = 5e-4


@pytest.fixture(autouse=True, scope="module")
def configuration_of_optax():
    """JAX's defaults: 32 bits, standard promotion. Globally, because the suites switch 64 bits on and off globally."""
    ours = {"jax_enable_x64": False, "jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"}
    before = {name: getattr(jax.config, name) for name in ours}
    for name, value in ours.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def accelerated(rule):
    def factory(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
        return optax.chain(scale_by_learning_rate(learning_rate), nagjax.accelerate(rule()))

    return factory


def over(make):
    """A factory of a learning rate, over the plain gradient."""

    def factory(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
        return make(optax.identity(), learning_rate=learning_rate)

    return factory


def nag_gs(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    return optax.chain(optax.scale(-1.0), nagjax.accelerate(momentum.nag_gs(learning_rate, 1.0, 1.0)))


FACTORIES = {
    "nesterov": nagjax.nesterov,
    "fista": nagjax.fista,
    "ogm": nagjax.ogm,
    "triple_momentum": nagjax.triple_momentum,
    "item": nagjax.item,
    "pytorch_sgd": conventions.pytorch_sgd,
    "keras_sgd": conventions.keras_sgd,
    "sutskever": accelerated(momentum.sutskever),
    "demon": accelerated(lambda: momentum.demon(0.9, 9_000)),
    "heavy_ball": accelerated(lambda: momentum.heavy_ball(0.9)),
    "quasi_hyperbolic": accelerated(lambda: momentum.quasi_hyperbolic(0.9, 0.7)),
    "schedule_free": over(lambda base, **options: nagjax.schedule_free(base, count_power=4.0, **options)),
    "primal_averaging": over(lambda base, **options: nagjax.primal_averaging(base, mu_x=0.9, **options)),
    "nadamw": nagjax.nadamw,
    "pytorch_nadam": conventions.pytorch_nadam,
    "adan": nagjax.adan,
    "snoo": over(lambda base, learning_rate, **options: outer.snoo(nagjax.nesterov(learning_rate, 0.5), **options)),
    "lookahead": over(lambda base, learning_rate: outer.lookahead(nagjax.nesterov(learning_rate), 0.8)),
    "srsgd": accelerated(lambda: momentum.srsgd(40)),
    "agnes": nagjax.agnes,
    "mass": nagjax.mass,
    "accsgd": accelerated(lambda: momentum.accsgd(100.0, 5.0)),
    "nag_gs": nag_gs,
    "one_cycle": lambda learning_rate: nagjax.nesterov(*nagjax.schedules.one_cycle(9_000, learning_rate)),
    "accelegrad": nagjax.accelegrad,
}


def row(name, **arguments):
    return {"opt_name": name, "opt_kwargs": arguments}


# A restart by value is not here: the suites pass `value` to methods of certain names only.
MAIN = (
    row("nesterov", learning_rate=RATE),
    row("nesterov", learning_rate=RATE, restart=restart.gradient()),
    row("nesterov", learning_rate=RATE, storage=storage.int8()),
    row("pytorch_sgd", learning_rate=RATE, momentum=0.9, nesterov=True),
    row("keras_sgd", learning_rate=RATE, momentum=0.9, nesterov=True),
    row("fista", step_size=RATE, restart=restart.gradient()),
    row("nadamw", learning_rate=1e-2),
    row("snoo", learning_rate=RATE),
)
REST = (
    row("nesterov", learning_rate=RATE, momentum=momentum.schedule(optax.linear_schedule(0.5, 0.9, 100))),
    row("nesterov", learning_rate=RATE, weight_decay=1e-4),
    row("nesterov", learning_rate=RATE, restart=restart.speed()),
    row("nesterov", learning_rate=RATE, restart=restart.every(100)),
    row("nesterov", learning_rate=RATE, storage=storage.cast(jnp.bfloat16)),
    row("nesterov", learning_rate=RATE, storage=storage.stochastic_rounding(jnp.bfloat16)),
    row("nesterov", learning_rate=RATE, storage=storage.int8(), restart=restart.gradient()),
    row("pytorch_sgd", learning_rate=RATE, momentum=0.9),
    row("pytorch_sgd", learning_rate=RATE, momentum=0.9, dampening=0.1, weight_decay=1e-4),
    row("keras_sgd", learning_rate=RATE, momentum=0.9),
    row("fista", step_size=RATE),
    row("fista", step_size=RATE, restart=restart.speed(k_min=10)),
    row("ogm", smoothness=1 / RATE),
    row("triple_momentum", smoothness=1 / RATE, strong_convexity=1.0),
    row("item", smoothness=1 / RATE, strong_convexity=1.0),
    row("sutskever", learning_rate=RATE),
    row("demon", learning_rate=RATE),
    row("heavy_ball", learning_rate=RATE),
    row("quasi_hyperbolic", learning_rate=5 * RATE),
    row("schedule_free", learning_rate=10 * RATE),
    row("primal_averaging", learning_rate=5 * RATE),
    row("nadamw", learning_rate=1e-2, convention="pytorch"),
    row("nadamw", learning_rate=1e-2, convention="algoperf"),
    row("nadamw", learning_rate=1e-2, storage=storage.int8()),
    row("pytorch_nadam", learning_rate=1e-2, weight_decay=1e-4),
    row("adan", learning_rate=1e-2, b1=0.9, b2=0.9, b3=0.95),
    row("lookahead", learning_rate=RATE),
    row("srsgd", learning_rate=RATE),
    row("agnes", smoothness=1 / RATE, noise=0.1),
    row("accsgd", learning_rate=RATE),
    row("nag_gs", learning_rate=0.03),
    row("one_cycle", learning_rate=2 * RATE),
    row("accelegrad", distance=1.0),
    row("accelegrad"),
    row("mass", smoothness=1 / RATE, strong_convexity=1.0, statistical_condition_number=2.0),
)


def suite(module, case, replaced):
    """The test case `case` of a module of Optax, built with other values for the names in `replaced`."""
    path = Path(importlib.util.find_spec(module).origin)
    tree = ast.parse(path.read_text(), str(path))

    def is_kept(node):
        targets = getattr(node, "targets", [getattr(node, "target", node)])
        names = {getattr(target, "id", getattr(target, "name", None)) for target in targets}
        return isinstance(node, ast.For) or not names & set(replaced)

    tree.body = [node for node in tree.body if is_kept(node)]
    namespace = {"__name__": __name__, **replaced}
    exec(compile(tree, str(path), "exec"), namespace)
    return namespace[case]


def alias_suite(rows):
    replaced = {"_OPTIMIZERS_UNDER_TEST": rows, "_get_opt": lambda self, name: FACTORIES[name]}
    case = suite("optax._src.alias_test", "AliasTest", replaced)
    for name in [name for name in vars(case) if name.startswith("test_explicit_dtype")]:
        delattr(case, name)  # of optax.sgd and optax.adam, which it names itself
    return case


def contrib_suite(rows):
    rows = tuple(row | {"wrapper_name": None, "wrapper_kwargs": None} for row in rows)
    replaced = {
        "_MAIN_OPTIMIZERS_UNDER_TEST": rows,
        "_OTHER_OPTIMIZERS_UNDER_TEST": (),
        "_ALL_OPTIMIZERS_UNDER_TEST": rows,
        "_get_opt_factory": FACTORIES.get,
    }
    return suite("optax.contrib._common_test", "ContribTest", replaced)


AliasTest, ContribTest = alias_suite(MAIN), contrib_suite(MAIN)
SlowAliasTest, SlowContribTest = map(pytest.mark.slow, (alias_suite(REST), contrib_suite(REST)))


CASES_A_ROW = 16  # of each suite in Optax 0.2.8


@pytest.mark.parametrize(
    ("case", "rows"), [(AliasTest, MAIN), (ContribTest, MAIN), (SlowAliasTest, REST), (SlowContribTest, REST)]
)
def test_the_suites_hold_every_case_for_every_row(case, rows):
    """So that a new layout of Optax's tests cannot leave us with none."""
    assert unittest.defaultTestLoader.loadTestsFromTestCase(case).countTestCases() >= CASES_A_ROW * len(rows)
