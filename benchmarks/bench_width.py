"""hrel_ext.kernel_width over its 300 widths, of the layer and per filter, beside the relevance of the same layer."""
# SPDX-License-Identifier: MIT

import math
from dataclasses import replace

import pytest
import torch
from conftest import SEED

import hrel_ext
from hrel_ext import reference
from hrel_ext.testing import LENET5, VGG16

ALPHA = 1.01
FEW_FILTERS = 4  # of the reference per filter, scaled up: all of them would take ten seconds and more
STEP = (10.0 - 0.3) / 299  # between two widths of the default search, in mean distances


@pytest.mark.benchmark(group="width")
@pytest.mark.parametrize("layer", (*LENET5, *VGG16), ids=str)
def test_kernel_width(layer, sized, take_turns, record_row):
    layer = sized(layer)
    acts, labels = layer.case().make(SEED)
    few, sigma = acts[:, :FEW_FILTERS], math.prod(layer.map_shape) ** 0.5
    # Neighbours on the grid may be aligned alike to the last digit: a step of it is not an error, two are.
    errors = {
        "layer": _relative(hrel_ext.kernel_width(acts, labels), reference.kernel_width(acts.double(), labels)),
        "per_filter": _relative(
            hrel_ext.kernel_width(few, labels, per_filter=True),
            reference.kernel_width(few.double(), labels, per_filter=True),
        ),
    }
    times = take_turns(
        lambda: hrel_ext.kernel_width(acts, labels),
        {
            "per_filter": lambda: hrel_ext.kernel_width(acts, labels, per_filter=True),
            "relevance": lambda: hrel_ext.relevance(acts, labels, sigma=sigma, alpha=ALPHA),
            "reference": lambda: reference.kernel_width(acts, labels),
            "reference_per_filter": lambda: reference.kernel_width(few, labels, per_filter=True),
        },
        every={"per_filter": 2, "reference": 3, "reference_per_filter": 3},
    )
    few_ms, scale = times["reference_per_filter"], acts.shape[1] / few.shape[1]
    times["reference_per_filter"] = replace(
        few_ms,
        median_ms=scale * few_ms.median_ms,
        interquartile_ms=scale * few_ms.interquartile_ms,
        estimated_from_filters=few.shape[1],
    )
    record_row(layer=layer.name, shape=list(acts.shape), relative_error=errors, **times)


def _relative(width: torch.Tensor, exact: torch.Tensor) -> float:
    error = ((width.double() - exact).abs() / exact).max().item()
    assert error <= 1.5 * STEP / 0.3  # no width is smaller than 0.3 mean distances
    return error
