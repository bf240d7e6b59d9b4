"""The figure of `diloco`: the period and the workers, the outer steps, and what communication buys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from experiments import plots
from experiments.diloco_methods import BATCH, METHODS, PARALLEL
from experiments.diloco_report import Row, Study, losses, standard_error

COLORS = (plots.SKY, plots.GREEN, plots.ORANGE, plots.BLUE, plots.RED, plots.PURPLE)
MARKERS = ("o", "s", "^", "D", "v", "P")
OUTER = {
    "averaging": (plots.GRAY, "o"),
    "heavy_ball": (plots.ORANGE, "s"),
    "nesterov": (plots.BLUE, "D"),
    "adam": (plots.RED, "v"),
}


def draw(path: Path, study: Study) -> None:
    """Draws the three panels."""
    figure, axes = plots.panels(1, 3, size=(14.4, 4.9))
    _periods(axes[0, 0], study)
    _methods(axes[0, 1], study)
    _communication(axes[0, 2], study)
    plots.save(figure, path)


def _periods(panel: Axes, study: Study) -> None:
    amount = study.amount
    workers = sorted(amount.workers)
    for index, count in enumerate(workers):
        # Drawn a little apart, for bars of the same period to be told apart.
        shift = 1.06 ** (index - (len(workers) - 1) / 2)
        rows = sorted(study.chosen(part="periods", method="nesterov", workers=count), key=lambda row: row["period"])
        look = {"color": COLORS[index], "marker": MARKERS[index], "markersize": 5, "capsize": 3}
        _bars(panel, [shift * row["period"] for row in rows], rows, study, **look, label=f"M = {count}")
        if long := study.chosen(part="long", method="nesterov", workers=count):
            _bars(panel, [shift * long[0]["period"]], long, study, **look, markerfacecolor="white")
            ends = [rows[-1], *long]
            heights = [study.excess(row).mean() for row in ends]
            panel.plot([shift * row["period"] for row in ends], heights, ":", color=COLORS[index], linewidth=1.2)
    _zero(panel)
    panel.set_xscale("log")
    ticks = [*amount.periods, *([amount.long_period] if study.chosen(part="long") else [])]
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    plots.label(panel, "Nesterov outside, M workers", "period H (inner steps)", "loss above data parallel, %")
    note = _tokens(amount.steps)
    if study.chosen(part="long"):
        note += f"; hollow: {_tokens(amount.long_steps)}"
    panel.legend(title=note, title_fontsize=9, loc="upper left", ncols=4, columnspacing=1.2, handletextpad=0.4)
    _room_above(panel)


def _methods(panel: Axes, study: Study) -> None:
    amount, most = study.amount, study.most
    groups = [("periods", amount.compared_period)]
    if study.chosen(part="few"):
        groups.append(("few", amount.long_period))
    place, ticks, labels = 0.0, list[float](), list[str]()
    for part, period in groups:
        start = place
        for method, about in METHODS.items():
            rows = study.chosen(best=False, part=part, method=method, workers=most, period=period)
            for row in rows:
                color, marker = OUTER[method]
                _bars(panel, [place], [row], study, color=color, marker=marker, markersize=6.5, capsize=4,
                      markerfacecolor=color if row["best"] else "white")  # fmt: skip
                ticks.append(place)
                labels.append(f"{about.label.removesuffix(' (SGD)')}, {_setting(row)}")
                place += 1
        steps = amount.steps // period
        panel.text((start + place - 1) / 2, 0.985, f"H = {period}:\n{steps:,} outer steps", fontsize=9, ha="center",
                   va="top", transform=panel.get_xaxis_transform())  # fmt: skip
        place += 1
    _zero(panel)
    panel.set_xticks(ticks, labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=8.5)
    panel.grid(visible=False, axis="x")
    plots.label(
        panel,
        f"Outer steps, M = {most} (filled: chosen by tuning)",
        "outer step, its rate or momentum b",
        "loss above data parallel, %",
    )
    _room_above(panel)


def _setting(row: Row) -> str:
    return f"rate {row['outer_rate']:g}" if row["method"] == "averaging" else f"b = {row['outer_momentum']:g}"


def _communication(panel: Axes, study: Study) -> None:
    most = study.most
    parallel = study.chosen(part="parallel", method=PARALLEL)
    nesterov = study.chosen(part="periods", method="nesterov", workers=most)
    series = (
        (parallel, nesterov, plots.BLACK, "s", "data parallel, larger batches", "batch {batch:,}"),
        (nesterov, parallel, COLORS[3], "D", f"DiLoCo, Nesterov, M = {most}", "H = {period}"),
    )
    for rows, others, color, marker, label, note in series:
        rows = sorted(rows, key=study.sent)
        sent = [study.sent(row) / 1e6 for row in rows]
        means = [losses(row).mean() for row in rows]
        errors = [standard_error(losses(row)) for row in rows]
        panel.errorbar(sent, means, errors, color=color, marker=marker, markersize=5, capsize=3, label=label)
        for row, x, y, error in zip(rows, sent, means, errors, strict=True):
            above = all(losses(other).mean() < y for other in others if study.sent(other) == study.sent(row))
            place, shift = (y + error, (0, 5)) if above else (y - error, (-22, -14))
            panel.annotate(note.format(**row), (x, place), xytext=shift, textcoords="offset points", ha="center",
                           fontsize=8.5, color=color)  # fmt: skip
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(x=0.28, y=0.18)
    plots.label(panel, f"Loss and communication, {_tokens(study.amount.steps)}", "MB sent by each worker",
                "held-out loss, nats a character")  # fmt: skip
    panel.legend(loc="best")


def _tokens(steps: int) -> str:
    return f"{steps * BATCH / 1000:,.0f} k tokens"


def _bars(panel: Axes, places: Sequence[float], rows: Sequence[Row], study: Study, **look: Any) -> None:
    means = [study.excess(row).mean() for row in rows]
    errors = [standard_error(study.excess(row)) for row in rows]
    panel.errorbar(places, means, errors, **look)


def _zero(panel: Axes) -> None:
    panel.axhline(0, color=plots.BLACK, linewidth=1)


def _room_above(panel: Axes) -> None:
    low, high = panel.get_ylim()
    panel.set_ylim(min(low, -0.08 * (high - low)), high + 0.22 * (high - low))
