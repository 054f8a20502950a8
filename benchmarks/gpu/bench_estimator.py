"""Times what the estimator offers beyond the relevance: a permutation of the null, and greedy selection of filters.

A permutation costs the difference of the times with many and with few of them, over that of their numbers, and is
compared with the relevance of the layer, the width given, in the same run. The selection takes 128 of 512 filters over
four mini-batches, once. Both are checked against float64 first. The JSON is rewritten after each row. Times in ms.
"""
# SPDX-License-Identifier: MIT

import argparse
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_layers import ALPHA, FULL, NUM_CLASSES, ON_CPU, SEED, SMALL, Clock, Effort, make, shrink
from protocol import environment, write_json
from torch import Tensor

import hrel_ext
from hrel_ext.null import draw_permutations
from hrel_ext.testing import VGG16, Layer, oracle, tolerance_bits

FEW, MANY = 4, 20  # permutations
BATCHES, FILTERS_PER_KEPT = 4, 4  # of the selection: a quarter of the filters
SELECTED = "vgg16 conv8-10"


def null_row(clock: Clock, layer: Layer, device: str, effort: Effort) -> dict[str, Any]:
    """Check one permutation of a layer, then time some."""
    acts, labels, sigma = make(layer, device)

    def null(permutations: int) -> Tensor:
        return hrel_ext.permutation_null(acts, labels, permutations=permutations, sigma=sigma, alpha=ALPHA).null

    def relevance() -> Tensor:
        return hrel_ext.relevance(acts, labels, sigma=sigma, alpha=ALPHA)

    (permutation,) = draw_permutations(1, len(labels), torch.Generator().manual_seed(0)).to(device)
    order = labels.argsort(stable=True)
    permuted = torch.empty_like(labels).scatter_(0, order[permutation], labels[order])
    checked = sorted({0, acts.shape[1] // 2, acts.shape[1] - 1})
    exact = oracle(acts[:, checked], permuted, sigma, ALPHA).relevance  # (filters checked,)
    error = (null(1)[0, checked].cpu().double() - exact.cpu()).abs().max().item()
    relevance()
    few, many, once = (
        clock.times(call, effort.ours_s, effort.most_rounds)
        for call in (lambda: null(FEW), lambda: null(MANY), relevance)
    )
    permutation_ms = (many.median_ms - few.median_ms) / (MANY - FEW)
    return {
        "layer": layer.name,
        "shape": tuple(acts.shape),
        "error_bits": error,
        "tolerance_bits": 2 * tolerance_bits(acts.dtype, len(acts), ALPHA),
        "permutations": (FEW, MANY),
        "few": asdict(few),
        "many": asdict(many),
        "relevance": asdict(once),
        "permutation_ms": permutation_ms,
        "share_of_relevance": permutation_ms / once.median_ms,
    }


def selection_row(layer: Layer, device: str) -> dict[str, Any]:
    """Select a quarter of the filters of a layer, and check the first objective."""
    batches = []
    for batch in range(BATCHES):
        rng = torch.Generator(device).manual_seed(SEED + batch)
        shape = (layer.num_samples, layer.num_filters, *layer.map_shape)
        acts = torch.randn(shape, generator=rng, device=device).relu_()
        batches.append((acts, torch.randint(NUM_CLASSES, shape[:1], generator=rng, device=device)))
    keep = layer.num_filters // FILTERS_PER_KEPT
    hrel_ext.select_filters(batches, keep=1, alpha=ALPHA)
    start = time.perf_counter()
    selection = hrel_ext.select_filters(batches, keep=keep, alpha=ALPHA)
    objective, first = selection.objective[0].item(), selection.order[:1].tolist()  # waits for the device
    seconds = time.perf_counter() - start
    exact = sum(
        oracle(acts[:, first], labels, hrel_ext.kernel_width(acts, labels).item(), ALPHA).relevance.item()
        for acts, labels in batches
    )
    return {
        "layer": layer.name,
        "shape": tuple(batches[0][0].shape),
        "batches": BATCHES,
        "kept": keep,
        "seconds": seconds,
        "error_bits": abs(objective - exact / BATCHES),
        "tolerance_bits": 2 * tolerance_bits(torch.float32, layer.num_samples, ALPHA),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="S", help="start no row after that")
    parser.add_argument("--small", action="store_true", help="few samples, filters and rounds, to try the script")
    arguments = parser.parse_args()
    device, end = arguments.device, time.perf_counter() + arguments.time_limit
    effort = SMALL if arguments.small else FULL if device == "cuda" else ON_CPU
    layers = [shrink(layer) for layer in VGG16] if arguments.small else list(VGG16)
    results: dict[str, Any] = {
        "environment": environment(device),
        "small": arguments.small,
        "alpha": ALPHA,
        "classes": NUM_CLASSES,
        "seed": SEED,
        "complete": False,
        "null": [],
        "selection": [],
    }
    clock = Clock(device)
    (selected,) = (layer for layer in layers if layer.name == SELECTED)
    jobs = [("null", layer) for layer in layers] + [("selection", selected)]
    for kind, layer in jobs:
        if time.perf_counter() > end:
            print("time limit: not all rows were timed")
            break
        row = null_row(clock, layer, device, effort) if kind == "null" else selection_row(layer, device)
        results[kind].append(row)
        results["complete"] = (kind, layer) == jobs[-1]
        write_json(arguments.out, results)
        cost = (
            f"a permutation {row['permutation_ms']:.3f} ms, {row['share_of_relevance']:.1%} of the relevance"
            if kind == "null"
            else f"{row['kept']} filters over {row['batches']} mini-batches in {row['seconds']:.2f} s"
        )
        print(
            f"{layer.name:<24}{'x'.join(map(str, row['shape'])):<20} {cost}; {row['error_bits']:.0e} bits", flush=True
        )
    rows = results["null"] + results["selection"]
    if wrong := [row["layer"] for row in rows if not row["error_bits"] <= row["tolerance_bits"]]:
        sys.exit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
