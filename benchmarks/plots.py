"""The plots of docs/results.md as SVG, from the JSON in results/; the same JSON gives the same files."""
# SPDX-License-Identifier: MIT

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import criteria_tables
from cpu_tables import CURVE_AXES, PLOTS, curves, exponent, machine_line
from matplotlib import pyplot
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullLocator
from targets import ratio, rows

Json = dict[str, Any]
BASELINES = {"reference": "hrel_ext.reference", "strong": "strong PyTorch", "published": "published loop"}
COLORS = {"reference": "#4477aa", "strong": "#ee6677", "published": "#bbbbbb", "ours": "#228833"}
LABEL_PLACES = {  # in the roofline: offset, alignments, angle
    "resnet56": ((-3, -3), "right", "top", 30),
    "lenet5": ((3, -3), "left", "top", -30),
}
STYLE = {
    **{"svg.hashsalt": "hrel_ext", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6"},
    **{"axes.axisbelow": True, "figure.constrained_layout.use": True, "legend.frameon": False},
}


def draw(results: Json, folder: Path, kind: str = "svg") -> list[Path]:
    """Write every plot of the CPU suite into the folder and return the files."""
    with matplotlib.rc_context(STYLE):
        plots = zip(PLOTS, (speedup, scaling, roofline), strict=True)
        return [_save(plot(results), folder, name, kind) for name, plot in plots]


def draw_criteria(studies: list[Json], folder: Path, kind: str = "svg") -> Path:
    """Write the plot of the comparison of criteria into the folder and return the file."""
    with matplotlib.rc_context(STYLE):
        return _save(criteria(studies), folder, criteria_tables.PLOT, kind)


def _save(figure: pyplot.Figure, folder: Path, name: str, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None, "Creator": None} if kind == "svg" else None  # they would change with every run
    figure.savefig(folder / f"{name}.{kind}", metadata=metadata, dpi=120)
    pyplot.close(figure)
    return folder / f"{name}.{kind}"


def speedup(results: Json) -> pyplot.Figure:
    layers = rows(results, "relevance")[::-1]  # the first one on top
    figure, axes = pyplot.subplots(figsize=(7.5, 0.5 + 0.55 * len(layers)))
    height = 0.27
    for place, (name, label) in enumerate(BASELINES.items()):
        values = [ratio(row, name) for row in layers]
        positions = [i + (1 - place) * height for i in range(len(layers))]
        bars = axes.barh(positions, values, height, color=COLORS[name], label=label)
        axes.bar_label(bars, [f"{value:.0f}" for value in values], padding=2, fontsize=7)
    axes.set_yticks(range(len(layers)), [f"{row['layer']}\n{' x '.join(map(str, row['shape']))}" for row in layers])
    axes.tick_params(axis="y", labelsize=7)
    _logarithmic(axes.xaxis)
    axes.set_xlim(left=1)
    axes.set_xlabel(f"times faster than the baseline\n{machine_line(results)}")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3)
    return figure


def scaling(results: Json) -> pyplot.Figure:
    found = curves(results)
    figure, grid = pyplot.subplots(2, math.ceil(len(found) / 2), figsize=(8, 5.2), squeeze=False)
    for axes, (curve, points) in zip(grid.flat, found.items(), strict=False):
        sizes, times = zip(*sorted(points), strict=True)
        axes.plot(sizes, times, "o-", color=COLORS["ours"], markersize=3.5)
        axes.set_ylabel("time, ms")
        if len(points) > 3:
            _logarithmic(axes.xaxis, (1,))
            _logarithmic(axes.yaxis)
            axes.set_xlabel(f"{curve} ({CURVE_AXES[curve]})")
            axes.set_title(f"exponent {exponent(points):.2f}", fontsize=9)
        else:
            axes.set_xticks(sizes)
            axes.set_ylim(0, 1.1 * max(times))
            axes.set_xlabel(curve)
            axes.set_title(f"speed-up {times[0] / times[-1]:.2f}x", fontsize=9)
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    return figure


def roofline(results: Json) -> pyplot.Figure:
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
    threads = results["machine_info"]["hrel_ext"]["threads"]
    ceilings = {row["threads"]: row for row in rows(results, "ceilings")}
    points = [(_work(row["shape"]), row) for row in rows(results, "relevance")]
    intensities = [flops / num_bytes for (flops, num_bytes), _ in points]
    low, high = min(intensities) / 4, max(intensities) * 3
    if threads in ceilings:
        peak, bandwidth = ceilings[threads]["fma_flops_per_s"], ceilings[threads]["bandwidth_bytes_per_s"]
        low = min(low, peak / bandwidth / 4)
        knee = [low, peak / bandwidth, high]
        axes.plot(knee, [min(peak, x * bandwidth) / 1e9 for x in knee], color="black", linewidth=1)
        axes.annotate(
            f"multiply-adds, {peak / 1e9:.0f} GFLOP/s",
            (high, peak / 1e9),
            (0, 3),
            textcoords="offset points",
            ha="right",
        )
        axes.annotate(
            f"memory, {bandwidth / 1e9:.0f} GB/s", (low, low * bandwidth / 1e9), (4, 8), textcoords="offset points"
        )
    for intensity, ((flops, _), row) in zip(intensities, points, strict=True):
        rate = flops / row["ours"]["median_ms"] / 1e6
        axes.plot(intensity, rate, "o", color=COLORS["ours"], markersize=5)
        # Layers of several networks lie close together, where their maps are of one size: each network has its side.
        offset, side, height, angle = LABEL_PLACES.get(row["network"], ((3, 3), "left", "bottom", 30))
        place = {"ha": side, "va": height, "rotation": angle, "rotation_mode": "anchor"}
        axes.annotate(row["layer"], (intensity, rate), offset, textcoords="offset points", fontsize=7, **place)
    _logarithmic(axes.xaxis, (1,))
    _logarithmic(axes.yaxis)
    axes.set_ylim(top=1.6 * axes.get_ylim()[1])  # room for the labels
    axes.set_xlabel("operations per byte of the activations, read once")
    axes.set_ylabel("GFLOP/s of the operations that no version avoids")
    axes.set_title(machine_line(results), fontsize=9)
    return figure


def criteria(studies: list[Json]) -> pyplot.Figure:
    """A row of panels for each network, one for each budget: a dot for each seed, a bar at their mean."""
    heights = [0.9 + 0.2 * len(study["settings"]["criteria"]) for study in studies]
    figure = pyplot.figure(figsize=(8.5, sum(heights)))
    bands = figure.subfigures(len(studies), 1, height_ratios=heights, squeeze=False)[:, 0]
    for band, study in zip(bands, studies, strict=True):
        settings = study["settings"]
        names, budgets = list(settings["criteria"]), list(settings["budgets"])
        band.suptitle(f"{settings['model']}, {settings['data']}", fontsize=10)
        grid = band.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
        for axes, budget in zip(grid, budgets, strict=True):
            for place, name in enumerate(names):
                found = criteria_tables.drops(study, budget, name)
                values = [value for draws in found.values() for value in draws]
                color = COLORS["strong" if name == criteria_tables.RANDOM else "reference"]
                if values:
                    middle = sum(values) / len(values)
                    axes.plot([min(values), max(values)], [place, place], color=color, linewidth=1, alpha=0.5)
                    axes.plot(values, [place] * len(values), "o", color=color, markersize=3)
                    axes.plot(middle, place, "|", color=color, markersize=11, markeredgewidth=2)
                if values and name == criteria_tables.RANDOM:
                    axes.axvline(middle, color=color, linestyle="--", linewidth=0.8, label="mean of random filters")
            axes.set_yticks(range(len(names)), names, fontsize=7)
            axes.set_ylim(len(names) - 0.5, -0.5)  # the first one on top
            axes.set_xlabel("test accuracy lost, points")
            axes.set_title(f"{budget} filters" if "%" not in budget else budget, fontsize=9)
        handles, labels = grid[0].get_legend_handles_labels()  # none yet in a study that has just begun
        if handles:
            band.legend(handles, labels, fontsize=8, loc="upper right")
    return figure


def _work(shape: list[int]) -> tuple[float, float]:
    """Operations of the Gram matrix and of the reduction of one layer, and the bytes of its activations."""
    n, f, d = shape[0], shape[1], math.prod(shape[2:])
    return f * (n * (n + 1) * d + 4 / 3 * n**3), 4 * n * f * d


def _logarithmic(axis: Axis, steps: tuple[int, ...] = (1, 2, 5)) -> None:
    """A logarithmic axis with plain numbers at these steps of every decade."""
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())
