"""hrel_ext.relevance against PyTorch, layer by layer: same tensors, same threads, one run, the width given.

The contestants: ``hrel_ext.reference`` (the definition), the strong form and the published loop of baselines.py. Every
result is compared with float64 before anything is timed.
"""
# SPDX-License-Identifier: MIT

import math

import baselines
import pytest
import torch
from conftest import SEED

import hrel_ext
from hrel_ext import reference
from hrel_ext.testing import LAYERS, RESNET56, VGG16, oracle, tolerance_bits

ALPHA = 1.01
CHECKED_FILTERS = 8
CONTESTANTS = {
    "reference": reference.relevance,
    "strong": baselines.relevance,
    "published": baselines.published,
}
EVERY = {"reference": 3, "strong": 3, "published": 3}  # of our turns: they take ten times as long and more


@pytest.mark.benchmark(group="relevance")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_relevance(layer, sized, take_turns, record_row):
    layer = sized(layer)
    acts, labels = layer.case().make(SEED)
    options = {"sigma": math.prod(layer.map_shape) ** 0.5, "alpha": ALPHA}  # near the mean distance
    checked = torch.linspace(0, layer.num_filters - 1, CHECKED_FILTERS).long().unique()
    some = acts[:, checked]
    exact = oracle(some, labels, **options)

    def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        return (ours.double() - theirs).abs().max().item()

    terms = hrel_ext.relevance_terms(acts, labels, **options)  # of all filters, as it is timed
    entropy_errors = (
        error(getattr(terms, name)[checked], getattr(exact, name)) for name in ("entropy", "joint_entropy")
    )
    entropy_error_bits = max(entropy_errors)
    assert entropy_error_bits <= tolerance_bits(acts.dtype, layer.num_samples, ALPHA)
    error_bits = {name: error(call(some, labels, **options), exact.relevance) for name, call in CONTESTANTS.items()}
    error_bits["ours"] = error(terms.relevance[checked], exact.relevance)

    times = take_turns(
        lambda: hrel_ext.relevance(acts, labels, **options),
        {name: (lambda call=call: call(acts, labels, **options)) for name, call in CONTESTANTS.items()},
        every=EVERY,
    )
    record_row(
        layer=layer.name,
        network=layer.name.split()[0],
        shape=[layer.num_samples, layer.num_filters, *layer.map_shape],
        layers_of_this_shape=layer.count,
        alpha=ALPHA,
        error_bits=error_bits,
        entropy_error_bits=entropy_error_bits,
        **times,
    )


@pytest.mark.benchmark(group="layout")
@pytest.mark.parametrize("layer", (*VGG16, *RESNET56), ids=str)
def test_channels_last(layer, sized, take_turns, record_row):
    layer = sized(layer)
    acts, labels = layer.case().make(SEED)
    channels_last, _ = layer.case("channels_last").make(SEED)
    sigma = math.prod(layer.map_shape) ** 0.5
    expected = hrel_ext.relevance(acts, labels, sigma=sigma, alpha=ALPHA)
    result = hrel_ext.relevance(channels_last, labels, sigma=sigma, alpha=ALPHA)
    torch.testing.assert_close(result, expected, rtol=0, atol=2 * tolerance_bits(acts.dtype, len(acts), ALPHA))
    times = take_turns(
        lambda: hrel_ext.relevance(channels_last, labels, sigma=sigma, alpha=ALPHA),
        {"contiguous": lambda: hrel_ext.relevance(acts, labels, sigma=sigma, alpha=ALPHA)},
    )
    record_row(layer=layer.name, shape=list(acts.shape), **times)
