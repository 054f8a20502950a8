"""The oracle against closed forms and hand-computed numbers, in float64."""
# SPDX-License-Identifier: MIT

import math

import pytest
import torch

from hrel_ext import reference

ALPHAS = (0.5, 0.9, 1, 1.01, 1.3, 1.5, 2, 2.5, 3, 40)
CLOSE = {"rtol": 0.0, "atol": 1e-12}


def renyi_bits(shares, alpha):
    """Renyi entropy of a distribution from its textbook form, which is good enough away from alpha = 1."""
    if alpha == 1:
        return -sum(p * math.log2(p) for p in shares)
    return math.log2(sum(p**alpha for p in shares)) / (1 - alpha)


def random_problem(rng, num_samples=24, num_filters=5, num_classes=4):
    acts = torch.randn(num_samples, num_filters, 3, 2, generator=rng, dtype=torch.float64)
    labels = torch.arange(num_samples) % num_classes
    return acts, labels


def gram(acts, f, sigma):
    """K of filter f, written with differences instead of cdist."""
    x = acts[:, f].flatten(1)  # (N, D)
    return torch.exp(-(x[:, None] - x[None]).pow(2).sum(-1) / sigma**2)  # (N, N)


def spectrum_bits(matrix, alpha):
    return renyi_bits([p for p in torch.linalg.eigvalsh(matrix).tolist() if p > 1e-14], alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_constant_filter_has_no_entropy_and_no_relevance(alpha):
    acts, labels = torch.full((12, 2, 3), 7.0).double(), torch.arange(12) % 3
    terms = reference.relevance_terms(acts, labels, sigma=0.7, alpha=alpha)
    # Below 1 a rounding error u of a zero eigenvalue counts as u^alpha.
    tolerance = 1e-12 if alpha >= 0.9 else 12 * 2.2e-16**alpha
    torch.testing.assert_close(terms.entropy, torch.zeros(2).double(), rtol=0, atol=tolerance)
    torch.testing.assert_close(terms.relevance, torch.zeros(2).double(), rtol=0, atol=3 * tolerance)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_far_apart_samples_have_log2_n_bits_and_tell_the_label(alpha):
    acts = torch.arange(16.0).double()[:, None] * 1e3  # (16, 1)
    labels = torch.tensor([0] * 8 + [1] * 4 + [2] * 4)
    terms = reference.relevance_terms(acts, labels, sigma=1.0, alpha=alpha)
    tolerance = 1e-12 if alpha >= 0.9 else 16 * 2.2e-16**alpha  # B is singular
    torch.testing.assert_close(terms.entropy, torch.tensor([4.0]).double(), **CLOSE)
    torch.testing.assert_close(terms.joint_entropy, torch.tensor([4.0]).double(), **CLOSE)
    assert terms.label_entropy.item() == pytest.approx(renyi_bits([1 / 2, 1 / 4, 1 / 4], alpha), abs=tolerance)
    assert terms.relevance.item() == pytest.approx(terms.label_entropy.item(), abs=tolerance)


@pytest.mark.parametrize("alpha", (1, 1.01, 1.5, 2))
def test_maps_equal_to_one_hot_labels_have_the_entropy_of_the_label(alpha):
    labels = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0])
    acts = torch.nn.functional.one_hot(labels).double()[:, None]  # (8, 1, 3)
    terms = reference.relevance_terms(acts, labels, sigma=0.1, alpha=alpha)
    assert terms.relevance.item() == pytest.approx(renyi_bits([1 / 2, 1 / 4, 1 / 4], alpha), abs=1e-12)
    assert terms.entropy.item() == pytest.approx(terms.label_entropy.item(), abs=1e-12)


@pytest.mark.parametrize("alpha", (0.9, 1, 1.01, 1.5, 3))
def test_one_class_has_no_relevance(rng, alpha):
    acts, labels = random_problem(rng, num_classes=1)
    terms = reference.relevance_terms(acts, labels, sigma=2.0, alpha=alpha)
    torch.testing.assert_close(terms.joint_entropy, terms.entropy, **CLOSE)
    torch.testing.assert_close(terms.relevance, torch.zeros(5).double(), **CLOSE)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_all_classes_different_make_the_relevance_the_entropy(rng, alpha):
    acts, labels = random_problem(rng, num_classes=24)
    terms = reference.relevance_terms(acts, labels, sigma=2.0, alpha=alpha)
    torch.testing.assert_close(terms.relevance, terms.entropy, **CLOSE)
    torch.testing.assert_close(terms.joint_entropy, torch.full((5,), math.log2(24), dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("alpha", (0.9, 1, 1.01, 1.5, 2, 3))
def test_two_far_groups_have_the_entropy_of_their_shares(alpha):
    acts = torch.tensor([0.0] * 3 + [1e3] * 7).double()[:, None]  # (10, 1)
    terms = reference.relevance_terms(acts, torch.zeros(10, dtype=torch.int64), sigma=1.0, alpha=alpha)
    assert terms.entropy.item() == pytest.approx(renyi_bits([0.3, 0.7], alpha), abs=1e-11)


def test_order_two_and_three_are_power_sums_of_the_matrix(rng):
    acts, labels = random_problem(rng)
    same = labels[:, None] == labels  # (N, N)
    for f in range(5):
        a = gram(acts, f, 2.0) / 24
        for alpha, power_sum in ((2, lambda m: (m @ m).trace()), (3, lambda m: (m @ m @ m).trace())):
            terms = reference.relevance_terms(acts, labels, sigma=2.0, alpha=alpha)
            torch.testing.assert_close(terms.entropy[f], power_sum(a).log2() / (1 - alpha), **CLOSE)
            torch.testing.assert_close(terms.joint_entropy[f], power_sum(a * same).log2() / (1 - alpha), **CLOSE)


def test_shannon_relevance_is_the_holevo_information(rng):
    acts, labels = random_problem(rng)
    relevance = reference.relevance(acts, labels, sigma=2.0, alpha=1)
    for f in range(5):
        k = gram(acts, f, 2.0)
        conditional = sum(spectrum_bits(k[labels == c][:, labels == c] / 6, 1) / 4 for c in range(4))
        assert relevance[f].item() == pytest.approx(spectrum_bits(k / 24, 1) - conditional, abs=1e-12)


@pytest.mark.parametrize("alpha", (0.5, 0.69, 0.71, 0.9, 1.1, 1.29, 1.31, 3))
def test_both_stable_forms_agree_with_the_textbook_form(rng, alpha):
    acts, labels = random_problem(rng)
    entropy = reference.relevance_terms(acts, labels, sigma=2.0, alpha=alpha).entropy
    for f in range(5):
        assert entropy[f].item() == pytest.approx(spectrum_bits(gram(acts, f, 2.0) / 24, alpha), abs=1e-12)


def test_entropy_is_continuous_at_the_shannon_limit(rng):
    acts, labels = random_problem(rng)
    at_one = reference.relevance_terms(acts, labels, sigma=2.0, alpha=1)
    for alpha in (1 - 1e-12, 1 + 1e-12):
        near_one = reference.relevance_terms(acts, labels, sigma=2.0, alpha=alpha)
        for a, b in zip(at_one, near_one, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_very_large_order_is_the_min_entropy(rng):
    acts, labels = random_problem(rng)
    entropy = reference.relevance_terms(acts, labels, sigma=2.0, alpha=1e300).entropy
    for f in range(5):
        largest = torch.linalg.eigvalsh(gram(acts, f, 2.0) / 24)[-1]
        torch.testing.assert_close(entropy[f], -torch.log2(largest), **CLOSE)


def test_one_sample_has_no_entropy():
    for sigma in (None, "filter", 0.3):
        for value in reference.relevance_terms(torch.ones(1, 3, 2), torch.tensor([5]), sigma=sigma):
            assert (value == 0).all()


def test_two_samples_by_hand():
    # K_12 = exp(-1), so A has the eigenvalues (1 +- e^-1) / 2 = 0.68394, 0.31606. Classes are sqrt(2) apart: with
    # label_sigma = sqrt(2) they have the same kernel, B = A, and J = A o B / tr(A o B) has the off-diagonal e^-2 / 2.
    acts, labels = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([4, 9])
    terms = reference.relevance_terms(acts, labels, sigma=1.0, alpha=2, label_sigma=math.sqrt(2))
    assert terms.entropy.item() == pytest.approx(0.8168815879, abs=1e-10)  # 1 - log2(1 + e^-2)
    assert terms.label_entropy.item() == pytest.approx(0.8168815879, abs=1e-10)
    assert terms.joint_entropy.item() == pytest.approx(0.9738151890, abs=1e-10)  # 1 - log2(1 + e^-4)
    assert terms.relevance.item() == pytest.approx(0.6599479868, abs=1e-10)
    shannon = reference.relevance_terms(acts, labels, sigma=1.0, alpha=1)
    assert shannon.entropy.item() == pytest.approx(0.9000456, abs=1e-7)  # -0.68394 log2 0.68394 - 0.31606 log2 0.31606
    assert shannon.joint_entropy.item() == pytest.approx(1.0, abs=1e-12)


def test_sigma_has_no_factor_two_and_may_differ_between_filters():
    acts = torch.tensor([[0.0, 0.0], [1.0, 3.0]]).double()  # (2, 2)
    entropy = reference.relevance_terms(acts, torch.tensor([0, 0]), sigma=torch.tensor([1.0, 2.0]), alpha=2).entropy
    expected = [1 - math.log2(1 + math.exp(-2 * d**2 / sigma**2)) for d, sigma in ((1, 1), (3, 2))]
    torch.testing.assert_close(entropy, torch.tensor(expected, dtype=torch.float64), **CLOSE)


def test_kernel_width_of_three_points_by_hand():
    # Points 0, 1, 3: distances 1, 2, 3, mean over nine pairs 12 / 9. The grid is 3/4, 3/2, 9/4 times it: 1, 2, 3.
    # With points 0 and 1 in one class <K, L> / |K| is 2.0655, 2.1471, 2.0072 there, so the width is 2.
    acts = torch.tensor([0.0, 1.0, 3.0]).double()[:, None]  # (3, 1)
    grid = {"low": 0.75, "high": 2.25, "num_widths": 3}
    assert reference.kernel_width(acts, torch.tensor([0, 0, 1]), **grid).item() == pytest.approx(2.0, abs=1e-12)
    # All classes different: 3 / |K| falls with the width. One class: |K|_1 / |K| rises with it.
    assert reference.kernel_width(acts, torch.tensor([0, 1, 2]), **grid).item() == pytest.approx(1.0, abs=1e-12)
    assert reference.kernel_width(acts, torch.tensor([0, 0, 0]), **grid).item() == pytest.approx(3.0, abs=1e-12)


def test_kernel_width_per_layer_uses_the_distances_of_the_whole_layer():
    acts = torch.tensor([[0.0, 0.0], [3.0, 4.0]]).double()  # (2, 2): distances 3 and 4, of the layer 5
    one_width = {"low": 1.0, "high": 1.0, "num_widths": 1}
    labels = torch.tensor([0, 1])
    assert reference.kernel_width(acts, labels, **one_width).item() == pytest.approx(2.5)
    per_filter = reference.kernel_width(acts, labels, per_filter=True, **one_width)
    torch.testing.assert_close(per_filter, torch.tensor([1.5, 2.0]).double())


def test_kernel_width_of_equal_maps_is_one():
    acts, labels = torch.full((6, 2, 3), 4.0), torch.arange(6) % 2
    assert reference.kernel_width(acts, labels).item() == 1
    assert reference.kernel_width(acts, labels, per_filter=True).tolist() == [1, 1]


def test_given_width_equals_the_width_that_is_searched(rng):
    acts, labels = random_problem(rng)
    for sigma, per_filter in ((None, False), ("layer", False), ("filter", True)):
        width = reference.kernel_width(acts, labels, per_filter=per_filter, label_sigma=0.9)
        width = width if per_filter else width.item()
        expected = reference.relevance(acts, labels, sigma=width, label_sigma=0.9)
        torch.testing.assert_close(reference.relevance(acts, labels, sigma=sigma, label_sigma=0.9), expected, **CLOSE)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_lower_precision_is_computed_in_float32(rng, dtype):
    acts, labels = random_problem(rng)
    low = acts.to(dtype)
    relevance = reference.relevance(low, labels, sigma=2.0)
    assert relevance.dtype == torch.float32
    exact = reference.relevance(low.double(), labels, sigma=2.0)
    torch.testing.assert_close(relevance.double(), exact, rtol=0, atol=1e-4)


def test_gradients_are_not_followed_and_no_filters_are_no_scores():
    acts = torch.randn(6, 0, 4, requires_grad=True)
    assert reference.relevance(acts, torch.arange(6)).shape == (0,)
    assert not reference.relevance(torch.ones(6, 2, requires_grad=True), torch.arange(6)).requires_grad
