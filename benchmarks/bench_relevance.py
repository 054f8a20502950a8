"""hrel_ext.relevance against plain PyTorch on the layers of LeNet-5 and VGG-16: same tensors, same threads, one run.

Each test times one layer with the contestants taking turns, so that a machine that slows down slows both. The width is
given: the search for it is not timed.
"""
# SPDX-License-Identifier: MIT

import itertools
import statistics
import time

import pytest
import torch

import hrel_ext
from hrel_ext import reference
from hrel_ext.testing import LAYERS, Layer, tolerance_bits

ALPHA = 1.01
CHECKED_FILTERS = 8  # against float64, before anything is timed
ROUNDS, ROUNDS_PER_BASELINE = 15, 3  # the baseline, ten times slower and more, takes every third turn


def make(layer: Layer) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Rectified normal maps (N, F, ...), labels (N,) of ten classes, and a width near the mean distance."""
    rng = torch.Generator().manual_seed(1787)
    acts = torch.randn(layer.num_samples, layer.num_filters, *layer.map_shape, generator=rng).relu()
    labels = torch.randint(0, 10, (layer.num_samples,), generator=rng)
    return acts, labels, float(acts[0, 0].numel() ** 0.5)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_relevance(benchmark, layer, record_row):
    acts, labels, sigma = make(layer)
    few = acts[:, :CHECKED_FILTERS]
    exact = reference.relevance(few.double(), labels, sigma=sigma, alpha=ALPHA)
    errors = {
        name: (function(few, labels, sigma=sigma, alpha=ALPHA) - exact).abs().max().item()
        for name, function in (("hrel_ext", hrel_ext.relevance), ("reference", reference.relevance))
    }
    assert errors["hrel_ext"] <= 2 * tolerance_bits(torch.float32, layer.num_samples, ALPHA)

    baseline_ms: list[float] = []
    turn = itertools.count(-1)  # -1 is the warm-up

    def baseline_first() -> None:  # pytest-benchmark calls it before each turn of ours, outside of the clock
        if (this := next(turn)) % ROUNDS_PER_BASELINE and this >= 0:
            return
        start = time.perf_counter()
        reference.relevance(acts, labels, sigma=sigma, alpha=ALPHA)
        if this >= 0:
            baseline_ms.append(1e3 * (time.perf_counter() - start))

    benchmark.pedantic(
        lambda: hrel_ext.relevance(acts, labels, sigma=sigma, alpha=ALPHA),
        setup=baseline_first,
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    ours_ms = 1e3 * benchmark.stats.stats.median
    lower, theirs_ms, upper = statistics.quantiles(baseline_ms, n=4, method="inclusive")
    record_row(
        benchmark,
        layer=layer.name,
        shape=[layer.num_samples, layer.num_filters, *layer.map_shape],
        layers_of_this_shape=layer.count,
        threads=torch.get_num_threads(),
        ours_ms=ours_ms,
        ours_interquartile_ms=1e3 * benchmark.stats.stats.iqr,
        reference_ms=theirs_ms,
        reference_interquartile_ms=upper - lower,
        ratio=theirs_ms / ours_ms,
        error_bits=errors["hrel_ext"],
        reference_error_bits=errors["reference"],
    )
