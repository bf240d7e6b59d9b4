"""The tables of `convex`, and in words where coordinate descent and L-BFGS win."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.convex_runs import TARGETS, Comparison

WIDTH = 124
LABELS = {
    "default": "nagjax default",
    "boosted": "nagjax boosted",
    "fista": "FISTA, 1/L given",
    "fista_restart": "FISTA + restart, 1/L given",
    "acfgm": "AC-FGM",
    "jaxopt": "JAXopt proximal gradient",
    "optax_lbfgs": "Optax L-BFGS",
    "scipy_lbfgs": "SciPy L-BFGS-B",
    "scikit-learn": "scikit-learn",
    "skglm": "skglm",
    "celer": "celer",
    "scipy.nnls": "SciPy nnls (active set)",
}
# What the peers without a curve do.
FAMILIES = {
    ("scikit-learn", "lasso"): "coordinate descent",
    ("scikit-learn", "logistic"): "L-BFGS",
    ("scikit-learn", "softmax"): "L-BFGS",
    ("skglm", "lasso"): "coordinate descent",
    ("skglm", "logistic_l1"): "coordinate descent",
    ("celer", "lasso"): "coordinate descent",
    ("celer", "logistic_l1"): "coordinate descent",
}
CLEAR = 1.1  # ratios nearer to 1 than this are called level
FINDING = 1e-6  # the accuracy of the findings


def label(name: str, kind: str) -> str:
    """The name of a method on a kind of problem."""
    family = FAMILIES.get((name, kind))
    return f"{LABELS[name]} ({family})" if family else LABELS[name]


def ratios(entry: Comparison) -> dict[str, Any]:
    """Returns evaluations and seconds of every method over those of the default, at each accuracy."""
    return {
        name: {
            "evaluations": [_over(entry.cost_to(name, t), entry.cost_to("default", t)) for t in TARGETS],
            "seconds": [_over(entry.seconds_to(name, t), entry.seconds_to("default", t)) for t in TARGETS],
        }
        for name in entry.names
    }


def record(entry: Comparison) -> dict[str, Any]:
    """Returns what results.json keeps of one problem."""
    return {
        "problem": entry.problem.name,
        "title": entry.problem.title,
        "minimum": entry.reference.minimum,
        "scale": entry.reference.scale,
        "agreement": entry.reference.agreement,
        "floor": entry.reference.floor,
        "targets": TARGETS,
        "methods": {
            name: {
                "evaluations": [entry.cost_to(name, target) for target in TARGETS],
                "seconds": [entry.seconds_to(name, target) for target in TARGETS],
            }
            for name in entry.names
        },
        "endpoints": entry.endpoints,
    }


def _over(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def show(found: Sequence[Comparison]) -> None:
    """Prints one table a problem, and the findings."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for entry in found:
        console.print(_table(entry))
    absent = sorted({name for entry in found for name in entry.absent})
    caption = (
        "Evaluations: a value of the smooth part counts 1, a gradient 2. Times: of the compiled loop (fastest of 3 "
        "runs), spread over its steps by their evaluations; of SciPy's L-BFGS-B as it went; of peers without a curve, "
        "the fastest run that is accurate enough. Over the default: at 1e-6. A dash: not reached within --seconds, or "
        "F* is not known so well."
    )
    console.print(textwrap.fill(caption, WIDTH))
    if absent:
        console.print(f"Not installed, so not compared: {', '.join(absent)} (pip install 'nagjax\\[bench]').")
    for line in findings(found):
        console.print(textwrap.fill(line, WIDTH, initial_indent="- ", subsequent_indent="  "), markup=False)


def _table(entry: Comparison) -> Table:
    title = f"{entry.problem.title} (F* = {entry.reference.minimum:.6g})"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in ("method", "evaluations to\n1e-3 / 1e-6 / 1e-9", "milliseconds to\n1e-3 / 1e-6 / 1e-9",
                   "evaluations\nover default", "seconds\nover default"):  # fmt: skip
        table.add_column(header, justify="left" if header == "method" else "right", no_wrap=True)
    found, middle = ratios(entry), TARGETS.index(FINDING)
    for name in entry.names:
        table.add_row(
            label(name, entry.problem.kind),
            " / ".join(_number(entry.cost_to(name, target), ".0f") for target in TARGETS)
            if name in entry.curves
            else "",
            " / ".join(_milliseconds(entry.seconds_to(name, target)) for target in TARGETS),
            _number(found[name]["evaluations"][middle], ".2f") if name in entry.curves else "",
            _number(found[name]["seconds"][middle], ".2f"),
        )
    return table


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f}" if seconds < 0.01 else f"{1e3 * seconds:,.0f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def findings(found: Sequence[Comparison]) -> list[str]:
    """Returns a sentence for each problem: which rivals are ahead of the default at 1e-6, and by how much."""
    lines: list[str] = []
    for entry in found:
        kind, middle = entry.problem.kind, TARGETS.index(FINDING)
        if entry.reference.floor > FINDING:
            lines.append(
                f"{entry.problem.title}: F* is known to {entry.reference.floor:.0e} only; allow more --seconds."
            )
            continue
        if entry.cost_to("default", FINDING) is None:
            lines.append(f"{entry.problem.title}: the default does not reach {FINDING:g} in time.")
            continue
        table = ratios(entry)
        rivals = [name for name in entry.names if name not in ("default", "boosted")]
        sentences = []
        for unit in ("seconds", "evaluations"):
            ahead = sorted(
                (1 / ratio, name) for name in rivals if (ratio := table[name][unit][middle]) and CLEAR * ratio < 1
            )
            shown = ", ".join(f"{label(name, kind)} {factor:.1f} times" for factor, name in reversed(ahead))
            sentences.append(f"fewer {unit} than the default: {shown}" if shown else f"nobody needs fewer {unit}")
        lines.append(f"{entry.problem.title}, to {FINDING:g}: {'; '.join(sentences)}.")
    return lines
