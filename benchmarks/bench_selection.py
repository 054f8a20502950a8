"""hrel_ext.select_filters: the greedy forward selection of 128 of 512 filters over four mini-batches, timed once.

Beside it ``hrel_ext.reference`` on a few of its candidates, scaled up to all of them, distances included.
"""
# SPDX-License-Identifier: MIT

import time
from dataclasses import replace

import pytest
from conftest import SEED, timing

import hrel_ext
from hrel_ext import reference
from hrel_ext.testing import VGG16, oracle, tolerance_bits

ALPHA = 1.01
BATCHES = 4
FILTERS_PER_KEPT = 4
FEW_FILTERS = 16  # candidates of the reference: all of them would take it half an hour
ROUNDS = 3  # of the reference
(LAYER,) = (layer for layer in VGG16 if layer.name == "vgg16 conv8-10")


@pytest.mark.benchmark(group="selection")
def test_select_filters(sized, benchmark, record_row):
    layer = sized(LAYER)
    batches = [layer.case().make(SEED + batch) for batch in range(BATCHES)]
    acts, labels = batches[0]
    keep = layer.num_filters // FILTERS_PER_KEPT
    few, sigma = acts[:, :FEW_FILTERS], hrel_ext.kernel_width(acts, labels).item()

    def warm_up() -> None:
        hrel_ext.select_filters(batches, keep=1, alpha=ALPHA)
        reference.relevance(few, labels, sigma=sigma, alpha=ALPHA)

    selection = benchmark.pedantic(
        lambda: hrel_ext.select_filters(batches, keep=keep, alpha=ALPHA), setup=warm_up, rounds=1
    )
    reference_ms = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        reference.relevance(few, labels, sigma=sigma, alpha=ALPHA)
        reference_ms.append(1e3 * (time.perf_counter() - start))
    error_bits = max(_error(selection, batches, steps) for steps in {1, keep})
    assert error_bits <= 2 * tolerance_bits(acts.dtype, len(acts), ALPHA)
    candidates = BATCHES * sum(range(layer.num_filters - keep + 1, layer.num_filters + 1))
    theirs, scale = timing(reference_ms), candidates / few.shape[1]
    record_row(
        layer=layer.name,
        shape=list(acts.shape),
        batches=BATCHES,
        kept=keep,
        candidates=candidates,
        error_bits=error_bits,
        ours=timing([1e3 * seconds for seconds in benchmark.stats.stats.data]),
        reference=replace(
            theirs,
            median_ms=scale * theirs.median_ms,
            interquartile_ms=scale * theirs.interquartile_ms,
            estimated_from_filters=few.shape[1],
        ),
    )


def _error(selection: hrel_ext.Selection, batches: list, steps: int) -> float:
    """Error of the objective after so many steps, bits: the maps of the set, side by side, are one map."""
    exact = 0.0
    for acts, labels in batches:
        together = acts[:, selection.order[:steps]].flatten(1)[:, None]  # (N, 1, steps D)
        sigma = hrel_ext.kernel_width(acts, labels).item()
        exact += oracle(together, labels, sigma, ALPHA).relevance.item() / len(batches)
    return abs(selection.objective[steps - 1].item() - exact)
