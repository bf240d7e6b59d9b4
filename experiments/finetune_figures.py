"""The figures of `pretrain_finetune`: learning on two texts and two sets of images, and learning from a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from experiments import plots
from experiments.finetune_text import VARIANTS

LOOKS: dict[str, tuple[str, Any]] = {
    "scratch": (plots.GRAY, (0, (3, 1.2))),
    "all": (plots.BLUE, "-"),
    "frozen": (plots.ORANGE, (0, (6, 1.5))),
    "slow": (plots.GREEN, (0, (5, 1.2, 1.2, 1.2))),
    "reset": (plots.BLUE, "-"),
    "kept": (plots.RED, (0, (3, 1.2))),
    "rescaled": (plots.PURPLE, (0, (1.4, 1.0))),
    "fixed": (plots.GRAY, "-"),
    "clipped": (plots.ORANGE, (0, (6, 1.5))),
    "adaptive": (plots.BLUE, "-"),
}
LABELS = {variant.name: variant.label for variant in VARIANTS}


def learning(path: Path, parts: Mapping[str, Any]) -> None:
    """Draws pretraining and fine-tuning, of the parts text and images that ran."""
    drawn: list[tuple[Any, Any]] = []
    if "text" in parts:
        drawn += [(panel, parts["text"]) for panel in (_pretraining, _fine_tuning, _momentum)]
    if "images" in parts:
        drawn.append((_images, parts["images"]))
    _panels(path, drawn)


def stream(path: Path, parts: Mapping[str, Any]) -> None:
    """Draws the parts arrival and rate that ran."""
    drawn: list[tuple[Any, Any]] = []
    if "arrival" in parts:
        drawn += [(panel, parts["arrival"]) for panel in (_latencies, _fates)]
    if "rate" in parts:
        drawn += [(panel, parts["rate"]) for panel in (_shift, _factors)]
    _panels(path, drawn)


def _panels(path: Path, drawn: Sequence[tuple[Any, Any]]) -> None:
    if not drawn:
        return
    columns = min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, axes = plots.panels(rows, columns, size=(5.6 * columns, 4.0 * rows))
    for position, panel in enumerate(axes.flat):
        if position >= len(drawn):
            panel.set_axis_off()
            continue
        draw, part = drawn[position]
        draw(panel, part)
    plots.save(figure, path)


def _pretraining(panel: Axes, part: Mapping[str, Any]) -> None:
    curves = np.array([run["stream"] for run in part["pretraining"]], np.float64)
    characters = part["characters_an_update"] * np.arange(1, curves.shape[1] + 1)
    window = max(curves.shape[1] // 40, 1)
    _band(panel, *_smoothed(characters, curves, window), plots.BLUE, "-", "each batch before the update on it")
    _thousands(panel)
    plots.label(panel, f"One pass through {part['texts'][0]}", "characters seen", "bits a character")
    panel.legend()


def _fine_tuning(panel: Axes, part: Mapping[str, Any]) -> None:
    for name in ("scratch", "all", "frozen", "slow"):
        points = np.array([row["validation"] for row in part["rows"] if row["variant"] == name], np.float64)
        _band(panel, part["characters_an_update"] * points[0, :, 0], points[:, :, 1], *LOOKS[name], LABELS[name])
    _thousands(panel)
    plots.label(panel, f"Fine-tuning on {part['texts'][1]}", "characters seen", "bits a character, held out")
    panel.legend()


def _momentum(panel: Axes, part: Mapping[str, Any]) -> None:
    shown = {"reset": "reset", "kept": "kept", "rescaled": "rescaled by the ratio of the rates"}
    first = 100
    for name, label in shown.items():
        curves = np.array([row["stream"][:first] for row in part["rows"] if row["variant"] == name], np.float64)
        updates, smooth = _smoothed(np.arange(1, curves.shape[1] + 1), curves, 5)
        _band(panel, updates, smooth, *LOOKS[name], label)
    share = part["rates"]["kept"] / part["pretraining_rate"]
    plots.label(
        panel, f"Momentum at the switch, {share:g} of the rate", "updates since the switch", "bits a character, stream"
    )
    panel.legend()


def _images(panel: Axes, part: Mapping[str, Any]) -> None:
    names = list(dict.fromkeys(row["variant"] for row in part["rows"]))
    for name in names:
        color, style = LOOKS[name]
        for epoch, width, marker in ((0, 0.9, "v"), (-1, 1.7, "o")):
            table = np.array(
                [
                    [row["accuracies"][epoch] for row in part["rows"]
                     if row["variant"] == name and row["examples"] == count]
                    for count in part["examples"]
                ],
                np.float64,
            )  # fmt: skip
            label = LABELS[name] if epoch else None
            panel.errorbar(
                part["examples"], 100 * table.mean(1), 100 * _deviations(table.T), color=color, linestyle=style,
                linewidth=width, marker=marker, markersize=4, capsize=2, label=label,
            )  # fmt: skip
    panel.set_xscale("log")
    panel.set_xticks(part["examples"], [f"{count:,}" for count in part["examples"]])
    panel.xaxis.set_minor_formatter(NullFormatter())
    first, second = part["sets"]
    title = f"{first}, then {second}: after 1 (▼) and {part['epochs']} (●) epochs"
    plots.label(panel, title, "images of fine-tuning", "accuracy, %")
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def _latencies(panel: Axes, part: Mapping[str, Any]) -> None:
    places = np.arange(len(part["rows"]))
    looks = (("latency_ms", "from arrival", plots.BLUE, 0.12), ("update_ms", "update alone", plots.ORANGE, -0.12))
    for field, label, color, offset in looks:
        p50, p99 = (np.array([row[field][name] for row in part["rows"]]) for name in ("p50", "p99"))
        panel.plot([p50, p99], [places + offset] * 2, color=color, linewidth=1)
        panel.plot(p50, places + offset, "o", color=color, markersize=6, label=f"{label}, median")
        panel.plot(p99, places + offset, "|", color=color, markersize=11, markeredgewidth=2, label=f"{label}, p99")
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_yticks(places, [row["label"] for row in part["rows"]])
    panel.set_ylim(len(places) - 0.5, -0.5)
    plots.label(panel, f"Latency; 1x: {part['capacity']:,.0f} samples a second", "milliseconds", "")
    panel.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=2)


def _fates(panel: Axes, part: Mapping[str, Any]) -> None:
    places = np.arange(len(part["rows"]))
    elapsed = np.array([row["elapsed"] for row in part["rows"]])
    left = np.zeros(len(places))
    due = np.array([row["rate"] for row in part["rows"]])
    for field, label, color in (
        ("taken", "trained on", plots.BLUE),
        ("evicted", "dropped, oldest", plots.ORANGE),
        ("refused", "dropped, newest", plots.RED),
    ):
        width = np.array([row[field] for row in part["rows"]]) / elapsed
        panel.barh(places, width, left=left, height=0.55, color=color, label=label)
        left += width
    held = np.where([row["policy"] == "slow down" for row in part["rows"]], np.maximum(due - left, 0), 0)
    panel.barh(
        places, held, left=left, height=0.55, color="white", edgecolor=plots.GRAY, hatch="//", label="slowed down"
    )
    panel.axvline(part["capacity"], color=plots.BLACK, linewidth=0.8, linestyle=":")
    panel.set_yticks(places, [row["label"] for row in part["rows"]])
    panel.set_ylim(len(places) - 0.5, -0.5)
    plots.label(panel, "What became of the samples; dotted: the capacity", "samples a second", "")
    panel.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=2)


def _shift(panel: Axes, part: Mapping[str, Any]) -> None:
    for name, label in part["labels"].items():
        curves = np.array([row["stream"] for row in part["rows"] if row["rival"] == name], np.float64)
        _stream_line(panel, part, curves, *LOOKS[name], label)
    plots.label(panel, "A stream whose text changes", "characters seen", "bits a character")
    panel.legend()


def _factors(panel: Axes, part: Mapping[str, Any]) -> None:
    curves = np.array([row["factors"] for row in part["rows"] if row["rival"] == "adaptive"], np.float64)
    _stream_line(panel, part, curves, plots.BLUE, "-", "rate that follows the gradient")
    panel.axhline(1, color=plots.GRAY, linewidth=0.8)
    plots.label(panel, "Factor of the rate", "characters seen", "rate / tuned rate")
    panel.legend()


def _stream_line(
    panel: Axes, part: Mapping[str, Any], curves: NDArray[np.float64], color: str, style: Any, label: str
) -> None:
    """Smoothed on each side of the change by itself."""
    shift = part["shift"]
    characters = part["characters_an_update"] * np.arange(1, curves.shape[1] + 1)
    for side in (slice(0, shift), slice(shift, None)):
        points = _smoothed(characters[side], curves[:, side], max(shift // 30, 1))
        _band(panel, *points, color, style, label if side.start else "")
    panel.axvline(characters[shift - 1], color=plots.BLACK, linewidth=0.8, linestyle=":")
    _thousands(panel)


def _smoothed(
    places: NDArray[Any], curves: NDArray[np.float64], window: int
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Means of consecutive windows."""
    count = curves.shape[1] // window
    whole = curves[:, : count * window].reshape(len(curves), count, window)
    return places[: count * window].reshape(count, window).mean(1), whole.mean(2)


def _band(panel: Axes, places: NDArray[Any], curves: NDArray[np.float64], color: str, style: Any, label: str) -> None:
    """The mean over seeds, and one standard deviation to each side."""
    mean, deviation = curves.mean(axis=0), _deviations(curves)
    panel.plot(places, mean, color=color, linestyle=style, label=label or None)
    panel.fill_between(places, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)


def _deviations(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    return curves.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(curves.shape[1])


def _thousands(panel: Axes) -> None:
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
