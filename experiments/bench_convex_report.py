"""Tables of `bench_convex`, geometric means and which targets are met."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.bench_convex_runs import OWN, TARGETS, absent

WIDTH = 160
LABELS = {
    "default": "default",
    "boosted": "boosted",
    "jaxopt": "JAXopt",
    "jaxopt_lbfgs": "JAXopt L-BFGS",
    "optax_lbfgs": "Optax L-BFGS",
    "scipy_lbfgs": "SciPy L-BFGS",
}
# Least geometric means of the gain over JAXopt in counts to TARGETS, and in time to 1e-6.
COUNTS = {"default": (2.2, 3.8, 6.5), "boosted": (2.6, 5.0, 10.0)}
TIME = 3.5
LBFGS = 1.6  # the default's counts on logistic problems, at most this many times those of L-BFGS
BATCH = 5.0


def console() -> Console:
    """A console wide enough for the tables in a file."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def gains(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns for each of our methods the gain over JAXopt on every problem, and their geometric means.

    A gain is None where JAXopt did not arrive; a mean is over the others.
    """
    found: dict[str, Any] = {}
    for name in OWN:
        counts = {row["problem"]: _ratios(row, name) for row in rows}
        times = {row["problem"]: _ratio(_seconds(row, "jaxopt"), _seconds(row, name)) for row in rows}
        found[name] = {
            "counts": counts,
            "time": times,
            "mean_counts": [_mean([values[k] for values in counts.values()]) for k in range(len(TARGETS))],
            "mean_time": _mean(list(times.values())),
            "arrived": [sum(values[k] is not None for values in counts.values()) for k in range(len(TARGETS))],
        }
    return found


def _ratios(row: dict[str, Any], name: str) -> list[float | None]:
    methods = row["methods"]
    others = methods.get("jaxopt", {}).get("counts", [None] * len(TARGETS))
    return [_ratio(other, own) for other, own in zip(others, methods[name]["counts"], strict=True)]


def _seconds(row: dict[str, Any], name: str) -> float | None:
    return row["methods"].get(name, {}).get("seconds")


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.exp(np.mean(np.log(known)))) if known else None


def show(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Prints counts of all methods, then gains and times."""
    if not rows:
        return
    out, found = console(), gains(rows)
    names = [name for name in LABELS if any(name in row["methods"] for row in rows)]
    table = _table(f"{title}: evaluations to 1e-3 / 1e-6 / 1e-9 (a value 1, a gradient 2)")
    labels = [LABELS[name].replace(" ", "\n") for name in names]
    for header in ("problem", *labels, "gain of\ndefault", "gain of\nboosted"):
        table.add_column(header, justify="left" if header == "problem" else "right", no_wrap=True)
    for row in rows:
        counts = [_slashed(row["methods"].get(name, {}).get("counts"), ".0f") for name in names]
        ratios = [_slashed(found[name]["counts"][row["problem"]], ".1f") for name in OWN]
        table.add_row(row["problem"], *counts, *ratios)
    means = [_slashed(found[name]["mean_counts"], ".2f") for name in OWN]
    table.add_section()
    table.add_row("geometric mean", *[""] * len(names), *means)
    out.print(table)
    table = _table(f"{title}: milliseconds to 1e-6")
    for header in ("problem", "default", "boosted", "JAXopt", "gain of default", "gain of boosted", "F* known to"):
        table.add_column(header, justify="left" if header == "problem" else "right")
    for row in rows:
        times = [_number(_seconds(row, name), ".3g", 1e3) for name in (*OWN, "jaxopt")]
        ratios = [_number(found[name]["time"][row["problem"]], ".2f") for name in OWN]
        table.add_row(row["problem"], *times, *ratios, f"{row['reference'].floor:.0e}")
    table.add_section()
    table.add_row("geometric mean", "", "", "", *(_number(found[name]["mean_time"], ".2f") for name in OWN), "")
    out.print(table)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(factor * value, form)


def _slashed(values: Sequence[float | None] | None, form: str) -> str:
    return "" if values is None else "/".join(_number(value, form) for value in values)


def verdicts(rows: Sequence[dict[str, Any]], extras: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns every target with what was measured and whether it is met; None where it could not be measured."""
    found, lines = gains(rows), list[dict[str, Any]]()

    def judge(what: str, measured: float | None, limit: float, *, least: bool = True) -> None:
        met = None if measured is None else measured >= limit if least else measured <= limit
        lines.append({"target": what, "measured": measured, "limit": limit, "least": least, "met": met})

    for name in OWN:
        for target, measured, limit in zip(TARGETS, found[name]["mean_counts"], COUNTS[name], strict=True):
            judge(f"{name}: mean gain in counts at {target:g}", measured, limit)
    judge("default: mean gain in time at 1e-6", found["default"]["mean_time"], TIME)
    times = [gain for gain in found["default"]["time"].values() if gain is not None]
    judge("default: least gain in time of a problem", min(times, default=None), 1.0)
    paired = [_ratio(_seconds(row, "default"), _seconds(row, "boosted")) for row in rows]
    judge("boosted: mean gain in time over the default", _mean(paired), 1.0)
    for row in rows:
        if row["problem"] in ("digits", "cancer"):
            lbfgs = next((n for n in ("jaxopt_lbfgs", "optax_lbfgs") if n in row["methods"]), None)
            ratios = [
                _ratio(own, other)
                for own, other in zip(
                    row["methods"]["default"]["counts"], row["methods"][lbfgs]["counts"], strict=True
                )
            ] if lbfgs else []  # fmt: skip
            label = f"{row['problem']}: counts of the default over {LABELS[lbfgs] if lbfgs else 'L-BFGS'}"
            for target, ratio in zip(TARGETS, ratios, strict=True):
                judge(f"{label} at {target:g}", ratio, LBFGS, least=False)
    for name, iterations in extras["iterations_by_factor"].items():
        spread = float(max(iterations.values()) - min(iterations.values()))
        judge(f"{name}: spread of iterations over factors of the objective", spread, 0.0, least=False)
    tv = extras["total_variation"]
    judge(
        "total variation, dual: gain in time of the default", _ratio(_seconds(tv, "jaxopt"), _seconds(tv, "default")), 1
    )
    judge(
        f"{extras['batch']['problems']} problems under vmap: gain over a loop of minimize",
        extras["batch"]["ratio"],
        BATCH,
    )
    return lines


def conclude(verdicts: Sequence[dict[str, Any]], extras: dict[str, Any]) -> None:
    """Prints the targets, the compile times and what is not installed."""
    out = console()
    table = _table("Targets")
    for header in ("target", "measured", "asked", ""):
        table.add_column(header, justify="right" if header in ("measured", "asked") else "left")
    for line in verdicts:
        sign = "at least" if line["least"] else "at most"
        state = "not measured" if line["met"] is None else "met" if line["met"] else "missed"
        table.add_row(line["target"], _number(line["measured"], ".2f"), f"{sign} {line['limit']:g}", state)
    out.print(table)
    times = extras["compile"]
    parts = ", ".join(f"{LABELS[name]} {seconds:.2f} s" for name, seconds in times.items())
    ratios = ", ".join(f"{name} {times[name] / times['jaxopt']:.2f}" for name in OWN) if "jaxopt" in times else "-"
    out.print(f"Compilation on a lasso, CPU time: {parts}; over JAXopt's: {ratios}.")
    out.print(f"Gain of vmap over a loop of a function that was jitted: {extras['batch']['jitted_ratio']:.2f}.")
    for name, iterations in extras["iterations_by_factor"].items():
        shown = ", ".join(f"{factor}: {count}" for factor, count in iterations.items())
        out.print(f"Iterations to a relative residual of 1e-6, objective times a factor, {name}: {shown}.")
    if absent():
        out.print(f"Not installed, so not compared: {', '.join(absent())}.")
