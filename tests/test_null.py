"""The label-permutation null: against a loop of relevances, its statistics by hand, its level on noise, its errors."""
# SPDX-License-Identifier: MIT

import re

import pytest
import torch
from torch import Generator

import hrel_ext
from hrel_ext import _ops, null, testing
from hrel_ext._batch import prepare

DTYPES = (torch.float32, torch.float64)
ALPHAS = (0.95, 1.0, 1.01, 1.5, 2.0, 3.0)  # by eigenvalues, poles, power sums without and with a reduction
LABELS = {
    "unequal": [0] * 17 + [1] * 9 + [2] * 4 + [3] * 2 + [7],
    "singletons": list(range(33)),
    "one class": [4] * 33,
    "one sample": [0],
    "two samples": [1, 0],
}


def problem(rng, labels, dtype=torch.float32, num_filters=9):
    """Prepared batch, permutations (R, N), the first one the identity, and sigma (F,)."""
    labels = torch.tensor(labels)[torch.randperm(len(labels), generator=rng)]  # (N,)
    acts = torch.randn(len(labels), num_filters, 3, generator=rng, dtype=dtype)
    acts[:, 1] = 0
    draws = null.draw_permutations(4, len(labels), rng)
    draws[0] = torch.arange(len(labels))
    sigma = (torch.rand(num_filters, generator=rng) * 3 + 0.5).to(dtype)
    return acts, labels, draws, sigma


def permuted(labels, permutation):
    order = labels.sort(stable=True).indices
    return torch.empty_like(labels).scatter_(0, order[permutation], labels[order])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_null_is_a_loop_of_relevances(rng, kind, alpha, dtype):
    acts, labels, draws, sigma = problem(rng, LABELS[kind], dtype)
    result = null.null_of_batch(prepare(acts, labels, 0.1), sigma, alpha, draws)
    tolerance = 2 * testing.tolerance_bits(dtype, len(labels), alpha)
    for row, draw in zip(result.null, draws, strict=True):
        expected = testing.oracle(acts, permuted(labels, draw), sigma, alpha).relevance
        torch.testing.assert_close(row.double(), expected, rtol=0, atol=tolerance)
    assert torch.equal(result.null[0], result.relevance)  # the identity, bit for bit
    assert torch.equal(result.relevance, hrel_ext.relevance(acts, labels, sigma=sigma, alpha=alpha))


@pytest.mark.parametrize("chunk_bytes", (1, _ops.MAX_CHUNK_BYTES), ids=("alone", "at once"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LABELS)
def test_composition_of_class_blocks_agrees_with_the_kernels(rng, monkeypatch, kind, dtype, chunk_bytes):
    # What CUDA tensors take, here on the CPU.
    monkeypatch.setattr(_ops, "MAX_CHUNK_BYTES", chunk_bytes)
    acts, labels, draws, sigma = problem(rng, LABELS[kind], dtype)
    acts[0, 2, 1], sigma[3] = torch.nan, -1
    batch = prepare(acts, labels, 0.1)
    for alpha in (*ALPHAS, 1 + 1e-9, 30.0):
        operands = (batch.acts, batch.classes.order, batch.classes.class_offsets, draws, sigma, alpha)
        expected = _ops.permuted_joint_entropy(*operands[:4], sigma.abs(), alpha)
        expected[:, 3] = torch.nan
        result = torch.empty_like(expected)
        _ops._permuted_joint_entropy_by_classes(*operands, result)
        tolerance = testing.tolerance_bits(dtype, len(labels), alpha)
        torch.testing.assert_close(result, expected, rtol=0, atol=tolerance, equal_nan=True)
        assert result.isnan().any(0).tolist() == [f in (2, 3) for f in range(9)]


def test_a_wide_label_kernel_is_permuted_as_a_matrix(rng):
    acts, labels, draws, sigma = problem(rng, LABELS["unequal"])
    result = null.null_of_batch(prepare(acts, labels, 1.0), sigma, 1.01, draws)
    for row, draw in zip(result.null, draws, strict=True):
        expected = hrel_ext.relevance(acts, permuted(labels, draw), sigma=sigma, label_sigma=1.0)
        torch.testing.assert_close(row, expected, rtol=0, atol=4e-5)


def test_number_of_threads_and_neighbours_do_not_change_a_bit(rng):
    acts, labels, draws, sigma = problem(rng, LABELS["unequal"], num_filters=19)
    num_threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(null.null_of_batch(prepare(acts, labels, 0.1), sigma, 1.01, draws).null)
    finally:
        torch.set_num_threads(num_threads)
    assert all(torch.equal(result, results[0]) for result in results)
    for f in (0, 7, 18):
        alone = null.null_of_batch(prepare(acts[:, f : f + 1], labels, 0.1), sigma[f : f + 1], 1.01, draws).null
        assert torch.equal(alone[:, 0], results[0][:, f])
    fewer = null.null_of_batch(prepare(acts, labels, 0.1), sigma, 1.01, draws[2:3]).null
    assert torch.equal(fewer[0], results[0][2])


def test_informed_filters_are_told_from_noise_and_from_dead_ones(rng):
    labels = torch.arange(60) % 5
    informed = labels[:, None] + 0.3 * torch.randn(60, 10, generator=rng)
    acts = torch.cat((informed, torch.randn(60, 100, generator=rng), torch.zeros(60, 1)), 1)  # (N, F)
    for sigma in (1.0, None, "filter"):
        result = hrel_ext.permutation_null(acts, labels, sigma=sigma, permutations=99)
        assert (result.p_value[:10] == 0.01).all() and (result.z[:10] > 4).all()
        assert result.z[10:-1].abs().max() < 5 and 0.3 < result.p_value[10:-1].mean() < 0.7
        if sigma == 1.0:  # a width that was aligned with the labels leaves some of the bias
            assert result.debiased[10:-1].mean().abs() < 0.1 * result.mean[10:-1].mean()
        assert result.p_value[-1] == 1 and result.z[-1] == 0 and result.debiased[-1].abs() < 1e-6


def test_p_values_of_noise_are_uniform_with_a_given_width(rng):
    num_filters, draws = 600, 99
    acts, labels = torch.randn(40, num_filters, 2, generator=rng), torch.arange(40) % 4
    p = hrel_ext.permutation_null(acts, labels, sigma=2.0, permutations=draws).p_value.sort().values  # (F,)
    distance = (p - torch.arange(1, num_filters + 1) / num_filters).abs().max()
    assert distance < 1.36 / num_filters**0.5 + 1 / (draws + 1)  # Kolmogorov-Smirnov at 5 %, and the steps of p


def test_the_seed_alone_decides(rng):
    acts, labels = torch.randn(20, 3, generator=rng), torch.arange(20) % 3
    first = hrel_ext.permutation_null(acts, labels, permutations=5, sigma=1.0, seed=3)
    torch.manual_seed(99)
    assert torch.equal(first.null, hrel_ext.permutation_null(acts, labels, permutations=5, sigma=1.0, seed=3).null)
    assert not torch.equal(first.null, hrel_ext.permutation_null(acts, labels, permutations=5, sigma=1.0, seed=4).null)
    assert (
        null.draw_permutations(50, 20, Generator().manual_seed(0)).sort(1).values.equal(torch.arange(20).expand(50, 20))
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_filters_have_an_empty_null(dtype):
    for label_sigma in (0.1, 1.0):
        result = hrel_ext.permutation_null(
            torch.empty(6, 0, 4, dtype=dtype), torch.arange(6) % 2, permutations=7, label_sigma=label_sigma
        )
        assert result.null.shape == (7, 0) and result.null.dtype == dtype
        assert result.p_value.shape == result.z.shape == result.debiased.shape == (0,)


def test_statistics_by_hand():
    result = hrel_ext.PermutationNull(torch.tensor([4.0, 1.0, 2.0]), torch.tensor([[1.0, 1.0, 3.0], [3.0, 1.0, 1.0]]))
    assert result.mean.tolist() == [2, 1, 2]
    assert result.std.tolist() == pytest.approx([2**0.5, 0, 2**0.5])
    assert result.debiased.tolist() == [2, 0, 0]
    assert result.z.tolist() == pytest.approx([2**0.5, 0, 0])
    assert result.p_value.tolist() == pytest.approx([1 / 3, 1, 2 / 3])
    one = hrel_ext.PermutationNull(torch.tensor([1.0]), torch.tensor([[0.5]]))
    assert one.std.isnan().all() and one.z.isnan().all() and one.p_value.tolist() == [0.5]


def test_rounding_counts_as_equal():
    result = hrel_ext.PermutationNull(torch.tensor([1.0 + 1e-6]), torch.tensor([[1.0], [1.0 + 2e-6]]))
    assert result.p_value.tolist() == [1] and result.z.tolist() == [0]
    exact = hrel_ext.PermutationNull(result.relevance.double(), result.null.double())
    assert exact.p_value.item() == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"permutations": 0}, ValueError, "permutations must be >= 1, got 0"),
        ({"permutations": 2.0}, TypeError, "permutations must be an int, got float"),
        ({"permutations": True}, TypeError, "permutations must be an int, got bool"),
        ({"seed": -1}, ValueError, "seed must be >= 0, got -1"),
        ({"seed": None}, TypeError, "seed must be an int, got NoneType"),
        ({"alpha": 0}, ValueError, "alpha must be > 0 and finite, got 0"),
        ({"sigma": torch.tensor([1.0, -1.0])}, ValueError, "sigma must be > 0 and finite for every filter, got -1.0"),
    ),
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        hrel_ext.permutation_null(torch.rand(6, 2), torch.arange(6) % 2, **arguments)


def test_shapes_and_values_are_checked():
    message = "relevance must have shape (F,) and null (R, F) with R >= 1, got (2,) and (3, 1)"
    with pytest.raises(ValueError, match=re.escape(message)):
        hrel_ext.PermutationNull(torch.zeros(2), torch.zeros(3, 1))
    acts = torch.zeros(6, 2)
    acts[3, 1] = torch.inf
    with pytest.raises(ValueError, match="acts must be finite, filter 1 holds NaN or Inf"):
        hrel_ext.permutation_null(acts, torch.arange(6) % 2, sigma=1.0)
