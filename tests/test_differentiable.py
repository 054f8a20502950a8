"""Gradients of the relevance, to the maps and to the widths."""
# SPDX-License-Identifier: MIT

import pytest
import torch

import hrel_ext
from hrel_ext.testing import CASES, tolerance_bits

COMPARED = ("n1", "n2", "n33", "n100", "f33", "c1", "c100", "channels_last2d", "sliced3d", "dead", "outlier", "offset")


@pytest.mark.parametrize("case", [case for case in CASES if case.name in COMPARED], ids=str)
def test_value_is_that_of_the_op(case):
    acts, labels = case.make()
    sigma = case.sigma(acts)
    for alpha in (1, 1.01, 2):
        expected = hrel_ext.relevance_terms(acts, labels, sigma=sigma, alpha=alpha)
        got = hrel_ext.relevance_terms(acts, labels, sigma=sigma, alpha=alpha, differentiable=True)
        tolerance = 4 * tolerance_bits(case.dtype, case.num_samples, alpha)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("alpha", (0.9, 1, 1.01, 2))
@pytest.mark.parametrize("label_sigma", (0.1, 0.8))
def test_gradients_are_those_of_finite_differences(rng, alpha, label_sigma):
    acts = torch.randn(6, 2, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])

    def relevance(acts, sigma):
        return hrel_ext.relevance(acts, labels, sigma=sigma, alpha=alpha, label_sigma=label_sigma, differentiable=True)

    assert torch.autograd.gradcheck(relevance, (acts, sigma))


@pytest.mark.parametrize("sigma", (None, "layer", "filter", 2.0))
def test_a_width_that_is_searched_is_a_constant(rng, sigma):
    acts = torch.randn(12, 3, 4, generator=rng, requires_grad=True)
    labels = torch.arange(12) % 3
    hrel_ext.relevance(acts, labels, sigma=sigma, differentiable=True).sum().backward()
    gradient, acts.grad = acts.grad, None
    if not isinstance(sigma, float):
        width = hrel_ext.kernel_width(acts, labels, per_filter=sigma == "filter")
        hrel_ext.relevance(acts, labels, sigma=width.expand(3), differentiable=True).sum().backward()
        torch.testing.assert_close(gradient, acts.grad)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_filters_taken_some_at_a_time_give_the_same(rng, monkeypatch):
    acts = torch.randn(12, 5, 4, generator=rng, requires_grad=True)
    labels = torch.arange(12) % 3
    results = []
    for limit in (1 << 20, 2 * 8 * 12 * 12, 1):
        monkeypatch.setattr(hrel_ext._ops, "MAX_CHUNK_BYTES", limit)
        bits = hrel_ext.relevance(acts, labels, sigma=2.0, differentiable=True)
        (gradient,) = torch.autograd.grad(bits.sum(), acts)
        results.append((bits, gradient))
    for bits, gradient in results[1:]:
        torch.testing.assert_close(bits, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_without_the_argument_nothing_needs_a_gradient(rng):
    acts = torch.randn(8, 2, 3, generator=rng, requires_grad=True)
    assert not hrel_ext.relevance(acts, torch.arange(8) % 2, sigma=1.0).requires_grad


def test_a_layer_learns_to_tell_the_classes_apart(rng):
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    images = torch.randn(40, 1, 6, 6, generator=rng)
    images[:, :, 2:4, 2:4] += labels[:, None, None, None]
    layer = torch.nn.Conv2d(1, 3, 3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    history = []
    for _ in range(15):
        bits = hrel_ext.relevance(layer(images), labels, sigma=4.0, differentiable=True).mean()
        optimizer.zero_grad()
        (-bits).backward()
        optimizer.step()
        history.append(bits.item())
    assert history[-1] > history[0] + 0.1


def test_edges_and_values_not_finite():
    none = hrel_ext.relevance(torch.ones(3, 0, 2), torch.arange(3), sigma=1.0, differentiable=True)
    assert none.shape == (0,)
    acts = torch.ones(3, 2)
    acts[1, 1] = torch.inf
    with pytest.raises(ValueError, match="acts must be finite, filter 1 holds NaN or Inf"):
        hrel_ext.relevance(acts, torch.arange(3), sigma=1.0, differentiable=True)
    with pytest.raises(ValueError, match=r"sigma must be > 0 and finite for every filter, got -1.0 for filter 1"):
        hrel_ext.relevance(acts, torch.arange(3), sigma=torch.tensor([1.0, -1.0]), differentiable=True)
