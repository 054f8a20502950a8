"""Targets that are no classes: a label Gram matrix in the place of labels."""
# SPDX-License-Identifier: MIT

import pytest
import torch

import hrel_ext
from hrel_ext import reference
from hrel_ext.testing import tolerance_bits


def problem(rng, num_samples=37, num_filters=5, dtype=torch.float32):
    acts = torch.randn(num_samples, num_filters, 3, generator=rng, dtype=dtype)
    return acts, torch.randint(4, (num_samples,), generator=rng)


def by_definition(acts, kernel, sigma, alpha):
    widths = torch.full((acts.shape[1],), sigma, dtype=torch.float64)
    own, joint = reference.entropies(acts.double(), kernel.double(), widths, alpha)
    return own + reference.matrix_entropy(kernel.double(), alpha) - joint


@pytest.mark.parametrize("alpha", (1, 1.01, 1.5, 2))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_any_kernel_agrees_with_the_definition(rng, dtype, alpha):
    acts, _ = problem(rng, dtype=dtype)
    for targets in (torch.rand(37, 4, generator=rng).softmax(1), torch.randn(37, 1, generator=rng)):
        kernel = hrel_ext.gram(targets.to(dtype), sigma=0.3)
        bits = hrel_ext.relevance(acts, label_gram=kernel, sigma=2.0, alpha=alpha)
        tolerance = 3 * tolerance_bits(dtype, 37, alpha)
        torch.testing.assert_close(bits.double(), by_definition(acts, kernel, 2.0, alpha), rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", (1.0, 0.25))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_a_kernel_of_classes_gives_the_bits_of_the_labels(rng, dtype, scale):
    acts, labels = problem(rng, dtype=dtype)
    labels = (labels[:, None] == labels[None, :]).int().argmax(1)  # in the order of their first samples
    kernel = scale * (labels[:, None] == labels[None, :]).to(dtype)
    for sigma in (2.0, None, "filter"):
        for expected, got in zip(
            hrel_ext.relevance_terms(acts, labels, sigma=sigma),
            hrel_ext.relevance_terms(acts, label_gram=kernel, sigma=sigma),
            strict=True,
        ):
            assert torch.equal(expected, got)
    assert torch.equal(hrel_ext.kernel_width(acts, label_gram=kernel), hrel_ext.kernel_width(acts, labels))


def test_a_diagonal_is_scaled_to_1(rng):
    acts, _ = problem(rng)
    kernel = hrel_ext.gram(torch.randn(37, 2, generator=rng), sigma=1.0)
    size = 1 + torch.rand(37, generator=rng)
    scaled = size[:, None] * kernel * size
    bits = hrel_ext.relevance(acts, label_gram=scaled, sigma=2.0)
    torch.testing.assert_close(bits, hrel_ext.relevance(acts, label_gram=kernel, sigma=2.0), rtol=0, atol=4e-5)


def test_soft_labels_that_harden_become_classes(rng):
    acts, labels = problem(rng)
    hard = hrel_ext.relevance(acts, labels, sigma=2.0)
    logits = torch.nn.functional.one_hot(labels, 4).float() + 0.1 * torch.rand(37, 4, generator=rng)
    distance = []
    for temperature in (1.0, 0.1, 0.01):
        kernel = hrel_ext.gram((logits / temperature).softmax(1), sigma=0.1)
        distance.append((hrel_ext.relevance(acts, label_gram=kernel, sigma=2.0) - hard).abs().max().item())
    assert distance[0] > distance[1] > distance[2] and distance[2] < 4e-5


def test_filters_that_follow_a_number_or_one_of_many_labels_score_above_noise(rng):
    acts = torch.randn(100, 6, 1, generator=rng)
    number = torch.rand(100, 1, generator=rng)
    several = torch.randint(2, (100, 5), generator=rng).float()
    acts[:, 0] = 4 * number + 0.1 * torch.randn(100, 1, generator=rng)
    acts[:, 1] = 4 * several[:, :1] + 0.1 * torch.randn(100, 1, generator=rng)
    for target, informed in ((number, 0), (several, 1)):
        kernel = hrel_ext.gram(target, sigma="median")
        assert hrel_ext.relevance(acts, label_gram=kernel, sigma=1.0).argmax() == informed


@pytest.mark.parametrize(
    ("kernel", "message"),
    (
        (torch.eye(3), r"label_gram must have shape \(N, N\) = \(2, 2\) to match acts, got \(3, 3\)"),
        (torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), "label_gram must be finite, got nan"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "label_gram must have a diagonal > 0, got 0.0 at 1"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "label_gram must be symmetric, .* got elements 5.0e-01 apart"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "label_gram must be positive semidefinite, got the eigenvalue -1"),
    ),
)
def test_a_wrong_kernel_is_named(kernel, message):
    with pytest.raises(ValueError, match=message):
        hrel_ext.relevance(torch.ones(2, 1), label_gram=kernel)


def test_labels_and_a_kernel_exclude_each_other():
    acts, labels = torch.ones(2, 1), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="labels or label_gram must be given, one of the two, got neither"):
        hrel_ext.relevance(acts)
    with pytest.raises(ValueError, match="labels or label_gram must be given, one of the two, got both"):
        hrel_ext.kernel_width(acts, labels, label_gram=torch.eye(2))
    with pytest.raises(ValueError, match=r"label_sigma must be left at 0.1 with a label_gram, got 0.5"):
        hrel_ext.relevance(acts, label_gram=torch.eye(2), label_sigma=0.5)
    with pytest.raises(TypeError, match=r"label_gram must be floating point, got torch.int64"):
        hrel_ext.relevance(acts, label_gram=torch.eye(2, dtype=torch.int64))
