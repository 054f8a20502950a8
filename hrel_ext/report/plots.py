"""Pictures of a training and of a pruning: arrays in, a matplotlib Figure out, which `save` writes to a file.

No function touches pyplot or leaves a setting behind. Each takes ``dark=True`` for a dark background. Information is in
bits, accuracies are in percent, widths are in the units of the layer's output.
"""
# SPDX-License-Identifier: MIT

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from torch import Tensor

from hrel_ext.entropy import entropy, joint_entropy
from hrel_ext.gram import gram
from hrel_ext.report.information_plane import PlaneHistory
from hrel_ext.scores import kendall_tau

_Plot = TypeVar("_Plot", bound=Callable[..., Figure])

STYLE = {
    **{"svg.hashsalt": "hrel_ext", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True},
    **{"grid.color": "#e6e6e6", "legend.frameon": False, "figure.dpi": 120, "axes.titlesize": 9},
}
_DARK_INK, _DARK_PAPER = "#dddddd", "#16181d"
DARK = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _DARK_INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), _DARK_PAPER),
    **{"grid.color": "#333740"},
}
# Of the layers in the order of depth: the colours of HRel's plots of LeNet-5, and three more.
LAYER_COLORS = ("#cb181d", "#6a51a3", "#2171b5", "#238b45", "#d94801", "#8c564b", "#d6569a", "#17999f")
RELEVANCE = "relevance I(A; Y), bits"
MOST_PANELS = 12  # histograms of one layer
MOST_THUMBNAILS = 6  # maps of one filter, of a class each
MOST_STAGE_NAMES = 8  # along one axis


def _themed(plot: _Plot) -> _Plot:
    @wraps(plot)
    def call(*args: object, dark: bool = False, **kwargs: object) -> Figure:
        with matplotlib.rc_context({**STYLE, **(DARK if dark else {})}):
            return plot(*args, **kwargs)

    return call


def save(figure: Figure, file: str | os.PathLike | BinaryIO, kind: str | None = None) -> None:
    """Write a figure; the same figure gives the same SVG, byte for byte.

    Args:
        figure: of one of the functions below.
        file: its path, or an open file.
        kind: "svg", "png" or "pdf"; None takes the ending of the path.
    """
    kind = kind or Path(file).suffix.removeprefix(".")
    # A date and the name of the program would change with every run.
    metadata = {"Date": None, "Creator": None} if kind == "svg" else None
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format=kind, metadata=metadata, dpi=150, facecolor=figure.get_facecolor())


@_themed
def information_plane(history: PlaneHistory, *, average: int = 1, last: int = 10) -> Figure:
    """Draw the way of each layer through the information plane: x = I(X; T), y = I(T; Y), light early, saturated late.

    Args:
        history: of an `InformationPlane`.
        average: recorded points that make one drawn point, their mean; a rest at the end makes one more.
        last: recorded points whose mean is the final point of a layer, which is labelled.

    Returns:
        A figure with one axes and a bar for the time.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    colors = layer_colors(len(history.layers))
    points = _averaged(history.information.numpy(), average)
    _draw_way(axes, points, colors)
    final = history.final(list(history.stages)[-1], last).numpy()  # (L, 2)
    _draw_final(axes, final, colors)
    _finish_plane([axes], history)
    _label_points(axes, final, history.layers, colors, points.reshape(-1, 2))
    axes.set_title(_how_recorded(history))
    _time_bar(figure, axes, history, history.iterations.numpy())
    return figure


@_themed
def before_and_after(
    history: PlaneHistory, before: str, after: str | None = None, *, average: int = 1, last: int = 10
) -> Figure:
    """Draw the information plane of one stage beside that of the stages behind it, on the same axes.

    The number in the title says how far the plane moved: the mean over the layers of the Euclidean distance, in bits,
    between their final points, each the mean of the last recorded points of its stage (`PlaneHistory.moved`). In
    brackets, as a yardstick, the same between the last points of ``before`` and as many before them.

    Args:
        history: of an `InformationPlane` with stages.
        before: the stage on the left, say "baseline".
        after: the last stage on the right; None takes the last one of all.
        average, last: as for `information_plane`.

    Returns:
        A figure with two axes; on the right a hollow circle is where a layer was.

    Raises:
        ValueError: a stage without points, or ``after`` that is not behind ``before``.
    """
    stages = list(history.stages)
    after = stages[-1] if after is None else after
    start, end = history.final(before, last).numpy(), history.final(after, last).numpy()  # (L, 2) each
    if stages.index(after) <= stages.index(before):
        raise ValueError(f"after must be a stage behind {before!r} in {', '.join(stages)}, got {after!r}")
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    colors = layer_colors(len(history.layers))
    own = history.stages[before]
    behind = slice(own.stop, history.stages[after].stop)
    ways = [_averaged(history.information[span].numpy(), average) for span in (own, behind)]
    for axes, points, final in zip((left, right), ways, (start, end), strict=True):
        _draw_way(axes, points, colors)
        _draw_final(axes, final, colors)
    for (x0, y0), (x1, y1), color in zip(start, end, colors, strict=True):
        right.plot([x0, x1], [y0, y1], color=color, linewidth=0.8, zorder=3)
        right.plot(x0, y0, "o", markersize=8, markerfacecolor="none", markeredgecolor=color, zorder=3)
    _finish_plane([left, right], history)
    for axes, points, final in zip((left, right), ways, (start, end), strict=True):
        _label_points(axes, final, history.layers, colors, np.concatenate([points.reshape(-1, 2), start]))
    between = stages[stages.index(before) + 1 : stages.index(after) + 1]
    left.set_title(before)
    span = between[0] if len(between) == 1 else f"{between[0]} to {between[-1]}"
    right.set_title(f"{span} (hollow: end of {before})")
    moved = history.moved(before, after, last).mean().item()
    text = f"the plane moved {moved:.2f} bits, the mean over its {len(colors)} layers"
    recorded = history.information[own]
    if len(recorded) >= 2 * last:
        chance = (recorded[-last:].mean(0) - recorded[-2 * last : -last].mean(0)).norm(dim=1).mean().item()
        text += f" (between the last and the last but one {last} points of {before}: {chance:.2f})"
    figure.suptitle(f"{text}\n{_how_recorded(history)}", fontsize=9)
    return figure


@_themed
def width_curves(history: PlaneHistory) -> Figure:
    """Draw the averaged kernel width of each layer and of the input against the iteration; dotted where stages begin.

    Args:
        history: of an `InformationPlane`.

    Returns:
        A figure with one axes, logarithmic in the width.
    """
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.add_subplot()
    times = history.iterations.numpy()
    for name, color, widths in zip(history.layers, layer_colors(len(history.layers)), history.widths.T, strict=True):
        axes.plot(times, widths.numpy(), color=color, label=name, linewidth=1.2)
    axes.plot(times, history.input_widths.numpy(), "--", color="#888888", label="input", linewidth=1.2)
    _log_widths(axes)
    axes.set(xlabel="iteration", ylabel="kernel width sigma, units of the tensor")
    _mark_stages(axes, history)
    _legend_beside(axes, 1 + len(history.layers))
    return figure


@_themed
def relevance_heatmap(
    name: str, per_batch: Tensor, *, filters: Sequence[int] | None = None, quantity: str = RELEVANCE
) -> Figure:
    """Draw the relevance of each filter of a layer in each mini-batch; vertical stripes are a ranking that is stable.

    The title has Kendall's tau-b between the means over every other mini-batch and over the rest, as
    `hrel_ext.LayerScores.rank_stability`.

    Args:
        name: of the layer.
        per_batch: (B, F), of its filters, as ``per_batch`` of `hrel_ext.LayerScores`.
        filters: the numbers of the filters, ascending; None counts from 0.
        quantity: what the scores are, with their unit.

    Returns:
        A figure with one axes and a colour bar.

    Raises:
        ValueError: not as many numbers as filters.
    """
    count, num_filters = per_batch.shape
    filters = list(range(num_filters)) if filters is None else list(filters)
    if len(filters) != num_filters:
        raise ValueError(f"filters must be one number for each of the {num_filters} filters, got {len(filters)}")
    figure = Figure(figsize=(min(9.0, max(4.6, 3.5 + 0.09 * len(filters))), 4), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(per_batch.numpy(), aspect="auto", interpolation="nearest", cmap="viridis")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    step = math.ceil(len(filters) / 12)
    axes.set_xticks(range(0, len(filters), step), filters[::step])
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set(xlabel="filter", ylabel="mini-batch")
    said = "one mini-batch"
    if count > 1:
        stability = kendall_tau(per_batch[::2].mean(dim=0), per_batch[1::2].mean(dim=0))
        said = f"Kendall's tau-b {stability:.2f} between halves of the mini-batches"
    axes.set_title(f"{name}: {said}")
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(quantity)
    bar.outline.set_visible(False)
    return figure


@_themed
def relevance_histograms(
    name: str, by_cycle: Mapping[int, Sequence[float]], *, bins: int = 15, quantity: str = RELEVANCE
) -> Figure:
    """Draw how the relevances of a layer's filters are spread before each cycle; each filter weighs 1 / F.

    Args:
        name: of the layer.
        by_cycle: number of the cycle to the relevances (F,) of the filters there were, in bits. Of more than twelve
            cycles twelve are drawn, the first and the last among them, which the title says.
        bins: of all panels alike.
        quantity: what the scores are, with their unit.

    Returns:
        A figure with one axes a cycle, y in percent of the filters.

    Raises:
        ValueError: no cycle.
    """
    if not by_cycle:
        raise ValueError("by_cycle must hold at least one cycle, got none")
    numbers = sorted(by_cycle)
    chosen = [numbers[round(i)] for i in np.linspace(0, len(numbers) - 1, min(len(numbers), MOST_PANELS))]
    columns = min(4, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(max(3.2, 2.3 * columns), 0.6 + 1.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    values = {number: np.asarray(by_cycle[number], dtype=float) for number in chosen}
    together = np.concatenate(list(values.values()))
    _, _, body, _, line, *_ = layer_colors(len(LAYER_COLORS))
    low, high = min(0.0, together.min()), max(0.0, together.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for axes, (number, relevance) in zip(grid.flat, values.items(), strict=False):
        share = np.full(len(relevance), 100 / len(relevance))
        axes.hist(relevance, edges, weights=share, color=body, linewidth=0)
        axes.axvline(relevance.mean(), color=line, linewidth=1)
        axes.set_title(f"cycle {number}: {len(relevance)} filters", fontsize=8)
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    figure.supxlabel(f"{quantity} (line: mean)", fontsize=9)
    figure.supylabel("filters, %", fontsize=9)
    left_out = "" if len(chosen) == len(numbers) else f", {len(chosen)} of {len(numbers)} cycles"
    figure.suptitle(f"{name}{left_out}", fontsize=9)
    return figure


@_themed
def survivor_curves(
    by_layer: Mapping[str, Mapping[int, Mapping[int, float]]],
    survivors: Mapping[str, Sequence[int]],
    *,
    at_first_width: Mapping[str, Mapping[int, Mapping[int, float]]] | None = None,
    quantity: str = RELEVANCE,
) -> Figure:
    """Draw the mean relevance of the filters that are left, cycle by cycle, beside that of the final survivors alone.

    Removing the lowest raises the first curve by itself; only the second is of the same filters all the time, and only
    the third is measured by the same kernel width as well.

    Args:
        by_layer: layer to cycle to filter to its relevance, in bits, when the cycle began; see `scores_by_cycle`.
        survivors: layer to the filters that are left after the last cycle.
        at_first_width: as ``by_layer``, at the kernel width that each layer had in its first cycle; None is not drawn.
        quantity: what the scores are, with their unit.

    Returns:
        A figure with one axes a layer; the band holds the middle 80 % of the filters that are left.

    Raises:
        ValueError: no layer, or a survivor without a relevance.
    """
    if not by_layer:
        raise ValueError("by_layer must hold at least one layer, got none")
    columns = min(4, len(by_layer), max(2, math.ceil(math.sqrt(len(by_layer)))))
    rows = math.ceil(len(by_layer) / columns)
    figure = Figure(figsize=(max(4.4, 3.4 * columns), 0.8 + 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    _, of_same, of_left, _, of_fixed, *_ = layer_colors(len(LAYER_COLORS))
    for axes, (name, cycles) in zip(grid.flat, by_layer.items(), strict=False):
        lacking = [f for scores in cycles.values() for f in survivors[name] if f not in scores]
        if lacking:
            raise ValueError(f"survivors of {name!r} must have a relevance in every cycle, got none for {lacking[0]}")
        numbers = sorted(cycles)
        left = [np.array(list(cycles[number].values())) for number in numbers]
        fixed = [np.mean([cycles[number][f] for f in survivors[name]]) for number in numbers]
        low, high = (np.array([np.quantile(values, q) for values in left]) for q in (0.1, 0.9))
        axes.fill_between(numbers, low, high, color=of_left, alpha=0.15, linewidth=0)
        axes.plot(numbers, [values.mean() for values in left], "o-", color=of_left, markersize=3, label="left")
        axes.plot(numbers, fixed, "s--", color=of_fixed, markersize=3, label="final survivors")
        if at_first_width:
            same = [np.mean([at_first_width[name][number][f] for f in survivors[name]]) for number in numbers]
            axes.plot(numbers, same, "^:", color=of_same, markersize=3, label="at the first width")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_title(f"{name}: {len(left[0])} filters, {len(survivors[name])} survive")
        axes.set_xlabel("cycle")
    for axes in grid.flat[len(by_layer) :]:
        axes.set_visible(False)
    figure.supylabel(f"mean {quantity}", fontsize=9)
    handles, _ = grid.flat[0].get_legend_handles_labels()
    names = [
        "filters that are left (band: the middle 80 %)",
        "the final survivors, the same filters in every cycle",
        "the same, at the kernel width of the first cycle",
    ]
    figure.legend(handles, names[: len(handles)], loc="outside upper center", ncols=1, fontsize=8)
    return figure


@_themed
def scoring_widths(by_layer: Mapping[str, Mapping[int, float | Sequence[float]]]) -> Figure:
    """Draw the kernel width that the filters of each layer were scored with, cycle by cycle.

    Args:
        by_layer: layer to cycle to the mean width over the mini-batches, in units of the maps; or one for each filter,
            whose median is drawn.

    Returns:
        A figure with one axes, logarithmic in the width.

    Raises:
        ValueError: no layer.
    """
    if not by_layer:
        raise ValueError("by_layer must hold at least one layer, got none")
    figure = Figure(figsize=(6.8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (name, widths), color in zip(by_layer.items(), layer_colors(len(by_layer)), strict=True):
        numbers = sorted(widths)
        axes.plot(numbers, [np.median(widths[n]) for n in numbers], "o-", color=color, markersize=3, label=name)
    _log_widths(axes)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set(xlabel="cycle", ylabel="kernel width sigma, units of the maps")
    _legend_beside(axes, len(by_layer))
    return figure


@_themed
def filters_kept(before: Mapping[str, int], cycles: Sequence[Mapping[str, int]]) -> Figure:
    """Draw the filters that each layer keeps: cycle by cycle in percent, and at the end in numbers.

    Args:
        before: layer to its filters before the first cycle, in the order of depth.
        cycles: the same after each cycle.

    Returns:
        A figure with two axes.

    Raises:
        ValueError: no layer or no cycle.
    """
    if not before or not cycles:
        raise ValueError(f"before and cycles must not be empty, got {len(before)} layers and {len(cycles)} cycles")
    figure = Figure(figsize=(9, max(3.2, 0.8 + 0.21 * len(before))), layout="constrained")
    lines, bars = figure.subplots(1, 2)
    colors = layer_colors(len(before))
    for (name, width), color in zip(before.items(), colors, strict=True):
        counts = [width, *(cycle[name] for cycle in cycles)]
        lines.step(range(len(counts)), [100 * n / width for n in counts], color=color, where="post", label=name)
    lines.set(xlabel="cycle", ylabel="filters left, %", ylim=(0, 103))
    lines.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if len(before) <= len(LAYER_COLORS):
        lines.legend(fontsize=8)
    places = range(len(before))
    bars.barh(places, before.values(), color="#888888", alpha=0.35, height=0.8)
    bars.barh(places, [cycles[-1][name] for name in before], color=colors, height=0.8)
    for place, (name, width) in enumerate(before.items()):
        bars.annotate(f"{width} → {cycles[-1][name]}", (width, place), (3, 0), textcoords="offset points", va="center")
    bars.set_yticks(places, before)
    bars.tick_params(axis="y", labelsize=8 if len(before) <= 20 else 6)
    bars.set_ylim(max(len(before), 4) - 0.5, -0.5)
    bars.margins(x=0.18)
    bars.set_xlabel("filters (grey: before)")
    bars.grid(axis="y", visible=False)
    return figure


@_themed
def accuracy_against_macs(
    runs: Mapping[str, Sequence[Sequence[tuple[float, float]]]], *, accuracy: str = "validation accuracy"
) -> Figure:
    """Draw the accuracy against the share of MACs that is left (one MAC is two FLOPs), for one or more ways of pruning.

    Args:
        runs: name, say of a criterion, to its runs, say one a seed; a run is the pairs of MACs and accuracy in [0, 1]
            of the network before the first cycle and after each one.
        accuracy: what it is called.

    Returns:
        A figure with one axes; a line a run, and a dashed one at the mean accuracy of the unpruned networks.

    Raises:
        ValueError: a run without points.
    """
    if not runs or not all(of_name and all(of_name) for of_name in runs.values()):
        raise ValueError("runs must hold at least one run, with at least one point each")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, of_name), color in zip(runs.items(), layer_colors(len(runs)), strict=True):
        for number, run in enumerate(of_name):
            macs, values = np.array(run).T  # (K,) each
            label = None if number else f"{name}, {len(of_name)} runs" if len(of_name) > 1 else name
            axes.plot(100 * macs / macs[0], 100 * values, "o-", color=color, markersize=3.5, linewidth=1, label=label)
    start = 100 * np.mean([run[0][1] for of_name in runs.values() for run in of_name])
    axes.axhline(start, linestyle="--", color="#888888", linewidth=1, label=f"unpruned, {start:.2f} %")
    axes.invert_xaxis()
    axes.set(xlabel="MACs left, % (one MAC is two FLOPs)", ylabel=f"{accuracy}, %")
    axes.legend(loc="best", fontsize=8)
    return figure


@_themed
def accuracy_by_cycle(
    runs: Mapping[str, Sequence[Sequence[tuple[float, float, float]]]], *, accuracy: str = "validation accuracy"
) -> Figure:
    """Draw the accuracy after each cycle, for one or more ways of pruning, above the costs that are left.

    Args:
        runs: name, say of a criterion, to its runs, say one a seed; a run is the accuracy in [0, 1], the MACs and the
            parameters of the network before the first cycle and after each one.
        accuracy: what it is called.

    Returns:
        A figure with two axes, a line a run above, the costs of the first run below.

    Raises:
        ValueError: a run without points.
    """
    if not runs or not all(of_name and all(of_name) for of_name in runs.values()):
        raise ValueError("runs must hold at least one run, with at least one point each")
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for (name, of_name), color in zip(runs.items(), layer_colors(len(runs)), strict=True):
        for number, run in enumerate(of_name):
            label = None if number else f"{name}, {len(of_name)} runs" if len(of_name) > 1 else name
            values = [100 * point[0] for point in run]
            above.plot(values, "o-", color=color, markersize=3, linewidth=1, label=label)
    first = next(iter(runs.values()))[0]
    for at, name, style in ((1, "MACs", "-"), (2, "parameters", "--")):
        left = [100 * point[at] / first[0][at] for point in first]
        below.plot(left, style, color="#888888", linewidth=1.2, label=f"{name}, {left[-1]:.1f} % in the end")
    above.set_ylabel(f"{accuracy}, %")
    above.legend(fontsize=8)
    below.set(xlabel="cycle (0: unpruned)", ylabel="left, %", ylim=(0, 105))
    below.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    below.legend(fontsize=8)
    return figure


@_themed
def pipeline(steps: Sequence[tuple[str, str]], again: str) -> Figure:
    """Draw the loop of HRel: train, then score, remove and retrain until every layer is at its limit.

    Args:
        steps: what each of the boxes says, a word and the numbers of a run; all but the first are the loop.
        again: beside the arrow that leads from the last box back to the second.

    Returns:
        A figure with one axes without scales.
    """
    figure = Figure(figsize=(9, 1.9), layout="constrained")
    axes = figure.add_subplot(xlim=(-0.45, len(steps) - 0.55), ylim=(-1.2, 0.5))
    axes.set_axis_off()
    ink = matplotlib.rcParams["text.color"]
    colors = layer_colors(len(LAYER_COLORS))
    box = {"boxstyle": "round,pad=0.6", "facecolor": "none", "linewidth": 1.2}
    texts = [
        axes.text(at, 0, f"{word}\n{numbers}", ha="center", va="center", bbox={**box, "edgecolor": colors[at]})
        for at, (word, numbers) in enumerate(steps)
    ]
    figure.draw_without_rendering()  # the boxes are as wide as their texts
    inverse = axes.transData.inverted()
    bounds = [inverse.transform(text.get_bbox_patch().get_window_extent().get_points()) for text in texts]
    arrow = {"arrowstyle": "-|>", "color": ink, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    for one, other in pairwise(bounds):
        axes.annotate("", (other[0][0], 0), (one[1][0], 0), arrowprops=arrow)
    bottom, floor, last = bounds[0][0][1], -0.85, len(steps) - 1
    axes.plot([last, last, 1], [bottom, floor, floor], color=ink, linewidth=1.2)
    axes.annotate("", (1, bottom), (1, floor), arrowprops=arrow)
    axes.annotate(
        again, ((1 + last) / 2, floor), (0, -4), textcoords="offset points", ha="center", va="top", fontsize=8
    )
    return figure


@_themed
def estimator(name: str, maps: Mapping[int, Tensor], labels: Tensor, sigma: float, *, alpha: float = 1.0) -> Figure:
    """Draw how a filter gets its relevance: maps of a mini-batch and labels, their Gram matrices, and I(A; Y).

    I(A; Y) = S(K_A) + S(K_Y) - S(K_A o K_Y), with K_A = exp(-d^2 / sigma^2) of the maps, K_Y 1 within a class and 0
    across; samples are in the order of their classes.

    Args:
        name: of the layer.
        maps: number of a filter to its maps (N, H, W).
        labels: (N,), class ids.
        sigma: kernel width of the layer.
        alpha: order of the entropy.

    Returns:
        A figure with a row for each filter.
    """
    order = labels.argsort(stable=True)  # (N,)
    labels = labels[order]
    of_labels = (labels[:, None] == labels).double()  # (N, N)
    first = [int((labels == c).nonzero()[0]) for c in labels.unique()][:MOST_THUMBNAILS]
    columns = math.ceil(len(first) / 2)
    figure = Figure(figsize=(9, 0.7 + 2.3 * len(maps)), layout="constrained")
    parts = figure.subfigures(len(maps), 1, squeeze=False)[:, 0]
    last = entropy(of_labels, alpha=alpha).item()
    for part, (number, of_filter) in zip(parts, maps.items(), strict=True):
        of_filter = of_filter[order]
        kernel = gram(of_filter.flatten(1).double(), sigma=sigma)  # (N, N)
        own, joint = entropy(kernel, alpha=alpha).item(), joint_entropy(kernel, of_labels, alpha=alpha).item()
        left, right = part.subfigures(1, 2, width_ratios=(columns, 6))
        low, high = of_filter.min().item(), of_filter.max().item()
        thumbnails = list(left.subplots(2, columns, squeeze=False).flat)
        for axes in thumbnails:
            axes.set_axis_off()
        for axes, sample in zip(thumbnails, first, strict=False):
            axes.imshow(of_filter[sample].numpy(), cmap="gray", vmin=low, vmax=high)
            axes.set_title(f"class {int(labels[sample])}", fontsize=7, pad=2)
        left.supylabel(f"{name}, filter {number}", fontsize=9)
        panels = (
            (kernel, "$K_A$ of the maps", f"S(A) = {own:.2f}"),
            (of_labels, "$K_Y$ of the labels", f"S(Y) = {last:.2f}"),
            (kernel * of_labels, "$K_A \\circ K_Y$", f"S(A, Y) = {joint:.2f}"),
        )
        for axes, (matrix, title, said) in zip(right.subplots(1, 3), panels, strict=True):
            image = axes.imshow(matrix.numpy(), cmap="viridis", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], xlabel=said)
            axes.grid(visible=False)
            axes.set_title(title, fontsize=9)
        right.colorbar(image, ax=right.axes, fraction=0.03).outline.set_visible(False)
        text = f"I(A; Y) = S(A) + S(Y) - S(A, Y) = {own + last - joint:.2f} bits"
        right.suptitle(f"{text} (N = {len(labels)})", fontsize=9)
    return figure


def scores_by_cycle(
    filters: Mapping[str, int], cycles: Sequence[Mapping[str, Any]], key: str = "score_mean"
) -> tuple[dict[str, dict[int, dict[int, float]]], dict[str, list[int]]]:
    """The score of every filter by its number in the unpruned network, and the filters left in the end.

    Args:
        filters: layer to its filters before the first cycle, ``report["filters"]["before"]`` of a run.
        cycles: ``report["cycles"]``: of each ``cycle``, ``removed`` and ``key``.
        key: "score_mean", or "relevance_at_first_width".

    Returns:
        Layer to cycle to filter to score, of the layers that were scored, and layer to the filters left.

    Raises:
        ValueError: not as many scores as filters.
    """
    left = {name: list(range(count)) for name, count in filters.items()}
    table: dict[str, dict[int, dict[int, float]]] = {}
    for cycle in cycles:
        for name, scores in cycle[key].items():
            if len(scores) != len(left[name]):
                raise ValueError(
                    f"{key} of {name!r} in cycle {cycle['cycle']} must be of the {len(left[name])} filters that "
                    f"are left, got {len(scores)}"
                )
            table.setdefault(name, {})[cycle["cycle"]] = dict(zip(left[name], scores, strict=True))
        for name, gone in cycle["removed"].items():
            left[name] = [f for f in left[name] if f not in set(gone)]
    return table, left


def layer_colors(count: int) -> list[tuple[float, float, float]]:
    """One colour a layer, RGB: eight that are told apart, for more a rainbow in the order of depth."""
    if count <= len(LAYER_COLORS):
        colors = [to_rgb(color) for color in LAYER_COLORS[:count]]
    else:
        colors = [tuple(color[:3]) for color in matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count))]
    return [_on_paper(color) for color in colors]


def _on_paper(color: tuple[float, float, float]) -> tuple[float, float, float]:
    """The colour, lighter where the background is dark."""
    is_dark = sum(to_rgb(matplotlib.rcParams["axes.facecolor"])) < 1.5
    return tuple(0.6 * part + 0.4 for part in color) if is_dark else color


def _fading(color: tuple[float, float, float]) -> Colormap:
    """From nearly the background to the colour."""
    paper = np.array(to_rgb(matplotlib.rcParams["axes.facecolor"]))
    return LinearSegmentedColormap.from_list("fading", [0.82 * paper + 0.18 * np.array(color), color])


def _averaged(points: NDArray, count: int) -> NDArray:
    """The means of ``count`` points in a row: (P, L, 2) to (ceil(P / count), L, 2)."""
    if count < 1:
        raise ValueError(f"average must be at least 1, got {count}")
    return np.stack([points[start : start + count].mean(0) for start in range(0, len(points), count)])


def _draw_way(axes: Axes, points: NDArray, colors: Sequence[tuple[float, float, float]]) -> None:
    """Of points (P, L, 2), light early."""
    order = np.linspace(0, 1, len(points))
    for at, color in enumerate(colors):
        shades = _fading(color)(order)
        axes.scatter(*points[:, at].T, s=14, c=shades, linewidths=0, zorder=2, rasterized=len(points) > 200)


def _draw_final(axes: Axes, final: NDArray, colors: Sequence[tuple[float, float, float]]) -> None:
    ink = matplotlib.rcParams["text.color"]
    axes.scatter(*final.T, s=55, c=colors, edgecolors=ink, linewidths=0.8, zorder=4)


def _finish_plane(all_axes: Sequence[Axes], history: PlaneHistory) -> None:
    limit = history.label_entropy.mean().item()
    for axes in all_axes:
        axes.axhline(limit, linestyle="--", color="#888888", linewidth=1, zorder=1)
        axes.set_xlabel("I(X; T), bits")
        axes.margins(0.08)
        axes.label_outer()
    all_axes[0].set_ylabel("I(T; Y), bits")
    all_axes[0].annotate(
        f"S(Y) = {limit:.2f}, mean of the mini-batches",
        (0, limit),
        (4, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=7,
        color="#888888",
    )


def _how_recorded(history: PlaneHistory) -> str:
    header, width = history.header, history.input_widths[-1].item()
    rule = "given" if header.input_sigma == "given" else f"{header.input_sigma} rule"
    return f"N = {header.batch_size}, alpha = {header.alpha:g}, width of the input {width:.3g} ({rule})"


def _time_bar(figure: Figure, axes: Axes, history: PlaneHistory, times: NDArray) -> None:
    shades = ScalarMappable(cmap=_fading(to_rgb(matplotlib.rcParams["text.color"])))
    shades.set_clim(times[0], max(times[-1], times[0] + 1))
    bar = figure.colorbar(shades, ax=axes, fraction=0.03)
    bar.set_label("iteration")
    bar.outline.set_visible(False)


def _label_points(axes: Axes, points: NDArray, names: Sequence[str], colors: Sequence, others: NDArray) -> None:
    """Names beside points (L, 2), where they cover no point, none of the others (K, 2) and no name, but near."""
    axes.figure.draw_without_rendering()  # the transforms are those of the finished layout
    scale = axes.figure.dpi / 72  # pixels per point
    size = 8
    room = axes.get_window_extent().extents / scale
    taken = [
        (x - radius, y - radius, x + radius, y + radius)
        for group, radius in ((points, 5), (others, 2))
        for x, y in axes.transData.transform(group) / scale
    ]
    ways = [(math.cos(a), math.sin(a)) for a in np.radians([0, 180, 90, 270, 45, 135, 225, 315])]
    places = [(round(r * c, 3), round(r * s, 3)) for r in (9, 17, 26, 36, 48) for c, s in ways]
    for at, (x, y) in enumerate(axes.transData.transform(points) / scale):
        width, height = 0.62 * size * len(names[at]) + 2, 1.3 * size
        boxes = {}
        for dx, dy in places:
            left = x + dx - (0 if dx > 0 else width if dx < 0 else width / 2)
            boxes[dx, dy] = (left, y + dy - height / 2, left + width, y + dy + height / 2)
        dx, dy = min(places, key=lambda place: _overlap(boxes[place], taken, room) + math.hypot(*place))
        taken.append(boxes[dx, dy])
        axes.annotate(
            names[at],
            points[at],
            (dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right" if dx < 0 else "center",
            va="center",
            fontsize=size,
            color=colors[at],
            zorder=5,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": axes.get_facecolor(), "alpha": 0.8, "linewidth": 0},
            arrowprops={"arrowstyle": "-", "color": colors[at], "linewidth": 0.6} if math.hypot(dx, dy) > 12 else None,
        )


def _overlap(box: tuple[float, float, float, float], taken: Sequence[tuple], room: NDArray) -> float:
    """The area that a box (left, bottom, right, top) shares with others or has outside of the room."""

    def shared(a, b) -> float:
        return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))

    own = (box[2] - box[0]) * (box[3] - box[1])
    return sum(shared(box, other) for other in taken) + own - shared(box, room)


def _mark_stages(axes: Axes, history: PlaneHistory) -> None:
    stages = list(history.header.stages.items())
    step = math.ceil(len(stages) / MOST_STAGE_NAMES)
    for number, (name, begun) in enumerate(stages):
        axes.axvline(begun, linestyle=":", color="#888888", linewidth=1)
        if number % step == 0:
            axes.annotate(
                name,
                (begun, 1),
                (0, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                fontsize=7,
                rotation=45,
                rotation_mode="anchor",
            )


def _log_widths(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _legend_beside(axes: Axes, names: int) -> None:
    """A legend on the right, in as many columns as it takes to stay as high as the axes."""
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8 if names <= 16 else 6, ncols=1 + names // 20)
