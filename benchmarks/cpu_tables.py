"""The CPU tables of docs/results.md and of README.md, from the JSON of `make bench`."""
# SPDX-License-Identifier: MIT

import math
from typing import Any

import numpy as np
from targets import MIB, evaluate, network_ms, ratio, rows

Json = dict[str, Any]
CPU = "results/cpu.json"
PLOTS = ("speedup", "scaling", "roofline")  # docs/plots/*.svg, by plots.py
CURVE_AXES = {"filters": "F", "samples": "N", "positions": "HW", "classes": "C", "threads": "threads"}


def table(head: list[str], body: list[list[str]]) -> list[str]:
    lines = ["|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|" for cells in (head, *body)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def shape_of(row: Json) -> str:
    return " x ".join(map(str, row["shape"]))


def digits(value: float, count: int = 3) -> str:
    """So many significant digits, without an exponent."""
    return f"{value:.{max(0, count - 1 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def ms(row: Json, name: str) -> str:
    """Median and half of the interquartile range; "~" marks a time that was scaled up from a few filters."""
    timing = row[name]
    mark = "~" if timing["estimated_from_filters"] else ""
    return f"{mark}{digits(timing['median_ms'])} ± {digits(timing['interquartile_ms'] / 2, 1)}"


def times(value: float) -> str:
    return f"{value:.1f}x" if value < 10 else f"{value:.0f}x"


def machine_line(results: Json) -> str:
    machine = results["machine_info"]["hrel_ext"]
    build = machine["hrel_ext"]
    return (
        f"{machine['threads']} threads on {machine['processor']} ({build['isa_level']} kernels by "
        f"{build['compiler']}), torch {machine['torch']}"
    )


def exponent(points: list[tuple[float, float]]) -> float:
    """Slope of log time over log size in the upper half of a curve."""
    upper = sorted(points)[len(points) // 2 :]
    x, y = np.log(np.array(upper)).T
    return float(np.polyfit(x, y, 1)[0])


def curves(results: Json) -> dict[str, list[tuple[float, float]]]:
    """Points (value, ms) of every curve."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows(results, "scaling"):
        found.setdefault(row["curve"], []).append((row["value"], row["ours"]["median_ms"]))
    return found


def speedup_table(results: Json, link: str) -> list[str]:
    """The table of README.md."""
    layers = rows(results, "relevance")
    body = [
        [
            row["layer"],
            shape_of(row),
            digits(row["ours"]["median_ms"]),
            *(times(ratio(row, name)) for name in ("reference", "strong", "published")),
            f"{row['entropy_error_bits']:.0e}",
        ]
        for row in layers
    ]
    for network in ("vgg16", "resnet56"):
        count = sum(row["layers_of_this_shape"] for row in layers if row["network"] == network)
        ours = network_ms(layers, network, "ours")
        ratios = (network_ms(layers, network, name) / ours for name in ("reference", "strong", "published"))
        body.append([f"**{network}**", f"all {count} convolutions", digits(ours), *map(times, ratios), ""])
    return [
        f"Scoring a layer, `make bench`, {machine_line(results)}, ten classes, rectified random maps, the width given. "
        "How many times faster than `hrel_ext.reference` (cdist, exp, batched eigvalsh), than the strongest plain "
        "PyTorch form (bmm, class blocks, one eigvalsh) and than the published loop over the filters (our "
        f"re-implementation of its arithmetic), all on the same tensors and threads in one run ({link}):",
        "",
        *table(["layer", "N x F x map", "ours, ms", "reference", "strong", "loop", "error, bits per entropy"], body),
    ]


def targets_table(results: Json) -> list[str]:
    body = [
        [
            t.name,
            ("≥ " if t.at_least else "≤ ") + f"{t.limit:g}{t.unit}",
            f"{t.reached:.3g}{t.unit}",
            "" if t.at_floor is None else f"{t.at_floor:.3g}{t.unit}",
            t.where,
            t.verdict,
        ]
        for t in evaluate(results)
    ]
    return table(["target", "limit", "reached", "at the floor", "worst at", ""], body)


def section(results: Json, link: str, plots: str) -> list[str]:
    """The page, below its heading; ``plots`` is the folder of the plots as the page sees it."""
    speedup, scaling, roofline = (f"{plots}{name}.svg" for name in PLOTS)
    return [
        *speedup_table(results, link),
        "",
        f"![How many times faster than each baseline, layer by layer]({speedup})",
        "",
        "### Targets",
        "*At the floor*: what it would be if every step took its floor (below, *Steps*) on all threads.",
        "",
        *targets_table(results),
        "",
        "### Times and errors",
        "Medians ± half of the interquartile range, in ms; errors of the relevance against float64, in bits.",
        "",
        *_times_table(results),
        "",
        "### Steps",
        *_stages(results),
        "",
        f"![Rate against operations per byte, under the ceilings of the processor]({roofline})",
        "",
        "### Width search",
        "`hrel_ext.kernel_width`, 300 widths, beside the relevance of the same layer, in ms; ~ is scaled up from a few "
        "filters. The error is that of the width, relative to float64; widths next to each other on the grid may tie.",
        "",
        *_width_table(results),
        "",
        "### Entropy of matrices",
        "`torch.ops.hrel_ext.matrix_entropy` against one batched eigvalsh:",
        "",
        *_entropy_table(results),
        "",
        "### A whole model",
        "`hrel_ext.collect`: one mini-batch, every convolution, forward pass and width search included; the reference "
        "is the same pass with `hrel_ext.reference` in the hooks.",
        "",
        *_model_table(results),
        "",
        *_null(results),
        *_selection(results),
        "### Scale",
        "Time of `hrel_ext.relevance` against one size at a time; the exponent is the slope of log time over log size "
        "in the upper half of the curve.",
        "",
        *_curve_table(results),
        "",
        f"![Time against the number of filters, samples, positions, classes and threads]({scaling})",
        "",
        "Extra memory of one call at N = 128 in a fresh process, by the largest resident size since it was reset "
        "(VmHWM, /proc/self/clear_refs):",
        "",
        *_memory_table(results),
        "",
        "Activations in channels_last, read in place:",
        "",
        *_layout_table(results),
    ]


def _times_table(results: Json) -> list[str]:
    names = {"ours": "ours", "reference": "reference", "strong": "strong", "published": "loop"}
    body = [
        [
            row["layer"],
            *(ms(row, name) for name in names),
            *(f"{row['error_bits'][name]:.0e}" for name in names),
        ]
        for row in rows(results, "relevance")
    ]
    return table(["layer", *names.values(), *(f"error, {name}" for name in names.values())], body)


def _stages(results: Json) -> list[str]:
    stages, ceilings = rows(results, "stages"), rows(results, "ceilings")
    if not stages:
        return ["Not measured: the C++ program that times them could not be built."]
    measured = ", ".join(
        f"{row['fma_flops_per_s'] / 1e9:.0f} GFLOP/s and {row['bandwidth_bytes_per_s'] / 1e9:.0f} GB/s on "
        f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        for row in ceilings
    )
    names = list(stages[0]["stage_ms"])
    body = []
    for row in stages:
        cells = [f"{digits(row['stage_ms'][n])} ({row['stage_ms'][n] / row['floor_ms'][n]:.1f})" for n in names]
        whole, floor = sum(row["stage_ms"].values()), sum(row["floor_ms"].values())
        body.append(
            [row["layer"], shape_of(row), *cells, f"{digits(whole)} ({whole / floor:.1f})", digits(row["whole_ms"])]
        )
    return [
        "Each step of the relevance on one thread, ms, and in brackets how many times its floor: the least time for "
        "the bytes it must read from memory and the operations it cannot do without (`benchmarks/bench_stages.py` "
        f"names them) at the rates measured in the same run, {measured}. *Op*: the whole op without a look at the "
        "clock in between.",
        "",
        *table(["layer", "N x F x map", *names, "sum", "op"], body),
    ]


def _width_table(results: Json) -> list[str]:
    body = [
        [
            row["layer"],
            ms(row, "relevance"),
            ms(row, "ours"),
            ms(row, "per_filter"),
            ms(row, "reference"),
            ms(row, "reference_per_filter"),
            *(f"{row['relative_error'][name]:.0e}" for name in ("layer", "per_filter")),
        ]
        for row in rows(results, "width")
    ]
    head = ["layer", "relevance", "width, layer", "widths, per filter", "reference, layer", "reference, per filter"]
    return table([*head, "error, layer", "error, per filter"], body)


def _entropy_table(results: Json) -> list[str]:
    body = [
        [
            f"{row['matrices']} x {row['size']} x {row['size']}",
            ms(row, "ours"),
            ms(row, "reference"),
            times(ratio(row, "reference")),
            *(f"{row['error_bits'][name]:.0e}" for name in ("ours", "reference")),
        ]
        for row in rows(results, "entropy")
    ]
    return table(["matrices", "ours, ms", "eigvalsh, ms", "ratio", "error, bits", "error, eigvalsh"], body)


def _model_table(results: Json) -> list[str]:
    body = [
        [
            row["model"],
            " x ".join(map(str, [row["num_samples"], *row["image"]])),
            str(row["layers"]),
            ms(row, "forward"),
            ms(row, "ours"),
            ms(row, "reference"),
            times(ratio(row, "reference")),
            f"{row['error_bits']:.0e}",
        ]
        for row in rows(results, "model")
    ]
    head = ["model", "mini-batch", "layers", "forward alone, ms", "ours, ms", "reference, ms", "ratio", "error, bits"]
    return table(head, body)


def _null(results: Json) -> list[str]:
    found = rows(results, "null")
    if not found:  # a run from before there was one
        return []
    body = [
        [
            row["layer"],
            shape_of(row),
            ms(row, "ours"),
            ms(row, "many"),
            digits(row["permutation_ms"]),
            f"{100 * row['permutation_ms'] / row['ours']['median_ms']:.1f} %",
            f"{row['error_bits']:.0e}",
        ]
        for row in found
    ]
    head = ["layer", "N x F x map", "relevance, ms", f"null of {found[0]['permutations'][1]}, ms", "a permutation, ms"]
    return [
        "### The null",
        "`hrel_ext.permutation_null`, which includes the relevance, and what one more permutation of the labels costs.",
        "",
        *table([*head, "over the relevance", "error, bits"], body),
        "",
    ]


def _selection(results: Json) -> list[str]:
    found = rows(results, "selection")
    if not found:  # a run from before there was one
        return []
    body = [
        [
            row["layer"],
            shape_of(row),
            str(row["batches"]),
            str(row["kept"]),
            f"{row['candidates']:,}",
            digits(row["ours"]["median_ms"] / 1e3),
            f"~{digits(row['reference']['median_ms'] / 1e3)}",
            times(ratio(row, "reference")),
            f"{row['error_bits']:.0e}",
        ]
        for row in found
    ]
    head = ["layer", "N x F x map", "mini-batches", "kept", "candidates", "ours, s", "reference, s", "ratio"]
    return [
        "### Choosing a set of filters",
        "`hrel_ext.select_filters`, forward, timed once, width search and distances included; the reference is "
        "`hrel_ext.reference` on a few candidates, scaled up to all of them.",
        "",
        *table([*head, "error, bits"], body),
        "",
    ]


def _curve_table(results: Json) -> list[str]:
    found = curves(results)
    body = []
    for curve, points in found.items():
        row = next(row for row in rows(results, "scaling") if row["curve"] == curve)
        fixed = ", ".join(f"{axis} = {row[name]}" for name, axis in CURVE_AXES.items() if name != curve)
        (low, first), (high, last) = min(points), max(points)
        slope = f"{exponent(points):.2f}" if len(points) > 3 else f"speed-up {first / last:.2f}x"
        body.append([CURVE_AXES[curve], f"{low:g} to {high:g}", fixed, digits(first), digits(last), slope])
    return table(["varied", "from, to", "fixed", "first, ms", "last, ms", "exponent"], body)


def _memory_table(results: Json) -> list[str]:
    body = [
        [
            str(row["threads"]),
            str(row["filters"]),
            f"{row['operand_bytes'] / MIB:.1f}",
            f"{row['extra_bytes'] / MIB:.2f}",
        ]
        for row in rows(results, "memory")
    ]
    return table(["threads", "F", "activations, MiB", "extra, MiB"], body)


def _layout_table(results: Json) -> list[str]:
    body = [
        [row["layer"], ms(row, "contiguous"), ms(row, "ours"), f"{1 / ratio(row, 'contiguous'):.2f}x"]
        for row in rows(results, "layout")
    ]
    return table(["layer", "NCHW, ms", "channels_last, ms", "channels_last / NCHW"], body)
