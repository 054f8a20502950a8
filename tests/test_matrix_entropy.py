"""The op ``matrix_entropy`` against the float64 oracle, closed forms, and what holds whatever the numbers are."""
# SPDX-License-Identifier: MIT

import math
import re

import pytest
import torch

from hrel_ext import _ops, reference, testing

ALPHAS = (0.5, 0.9, 1, 1.01, 1.3, 1.5, 2, 2.5, 3)
SIZES = (1, 2, 3, 13, 31, 33, 64, 97, 100, 127, 128, 129, 257)
DTYPES = (torch.float32, torch.float64)


def wishart(rng, count, size):
    """Products of normal values, of a rank that grows from 1 with the matrix, (B, N, N) float64."""
    factors = torch.randn(count, size, size, generator=rng, dtype=torch.float64)
    factors *= torch.arange(size) < (torch.arange(count)[:, None, None] + 1) ** 2  # columns past the rank are 0
    gram = factors @ factors.mT
    return (gram + gram.mT) / 2  # symmetric to the last bit


def gaussian(rng, count, size):
    """Gaussian Gram matrices, from nearly all ones to nearly the identity, (B, N, N) float64."""
    distances = torch.randn(count, size, 3, generator=rng, dtype=torch.float64)
    sigma = torch.logspace(2, -1, count, dtype=torch.float64)[:, None, None]
    return torch.exp(-((torch.cdist(distances, distances) / sigma) ** 2))


def assert_entropies(gram, alpha, expected=None):
    """Check against ``expected``, or the oracle; returns the entropies."""
    entropy = _ops.matrix_entropy(gram, alpha)
    assert entropy.shape == gram.shape[:1] and entropy.dtype == gram.dtype
    expected = reference.matrix_entropy(gram.double(), alpha) if expected is None else expected
    expected = torch.as_tensor(expected, dtype=torch.float64).expand(len(gram))
    tolerance = testing.tolerance_bits(gram.dtype, gram.shape[1], alpha)
    torch.testing.assert_close(entropy.double(), expected, rtol=0, atol=tolerance)
    return entropy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("maker", (wishart, gaussian))
@pytest.mark.parametrize("size", SIZES)
def test_every_size_agrees_with_the_oracle(rng, size, maker, dtype):
    gram = maker(rng, 9 if size < 100 else 3, size).to(dtype)
    for alpha in ALPHAS:
        assert_entropies(gram, alpha)


@pytest.mark.parametrize("count", (0, 1, 7, 8, 9))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", (0.5, 1.01, 2, 3))
def test_batch_equals_loop_bit_for_bit(rng, alpha, dtype, count):
    gram = wishart(rng, count, 33).to(dtype)
    together = assert_entropies(gram, alpha)
    alone = [_ops.matrix_entropy(gram[b : b + 1], alpha) for b in range(count)]
    assert torch.equal(together, torch.cat([gram.new_empty(0), *alone]))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_closed_forms(dtype, alpha):
    for size in (1, 2, 7, 100, 128, 260):
        identity, ones = torch.eye(size, dtype=dtype), torch.ones(size, size, dtype=dtype)
        bits = torch.tensor([math.log2(size), 0.0], dtype=torch.float64)
        assert_entropies(torch.stack([identity, ones]), alpha, bits)
    blocks = torch.block_diag(torch.ones(16, 16), torch.ones(16, 16)).to(dtype)
    assert_entropies(blocks[None], alpha, 1.0)
    signs = torch.tensor([1.0, -1.0]).repeat(16).to(dtype)  # rank one as well, and no mean to take out
    assert_entropies(torch.outer(signs, signs)[None], alpha, 0.0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_diagonal_matrix_has_the_entropy_of_its_diagonal(dtype, alpha):
    shares = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625], dtype=torch.float64)
    if alpha == 1:
        bits = -(shares * shares.log2()).sum()
    else:
        bits = (shares**alpha).sum().log2() / (1 - alpha)
    assert_entropies(torch.diag(shares).to(dtype)[None], alpha, bits)
    assert_entropies(torch.diag(17 * shares).to(dtype)[None], alpha, bits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_by_two_by_hand(dtype):
    # Eigenvalues 3/4 and 1/4, then (5 +- sqrt(5)) / 10 of a trace of 5.
    half = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]], dtype=dtype)
    assert_entropies(half, 1, 2 - 0.75 * math.log2(3))
    assert_entropies(half, 2, 3 - math.log2(5))
    assert_entropies(half, 3, 2 - math.log2(7) / 2)
    root = torch.tensor([[[2.0, 1.0], [1.0, 3.0]]], dtype=dtype)
    assert_entropies(root, 2, math.log2(25 / 15))


@pytest.mark.parametrize("alpha", (0.9, 1, 1.01, 1.5, 2, 3))
@pytest.mark.parametrize("exponent", (-140, -126, -60, -7, 5, 40, 120))
def test_scale_does_not_matter(rng, exponent, alpha):
    factors = torch.randint(-1, 2, (9, 33, 33), generator=rng).double()
    gram = factors @ factors.mT / 64  # below 1 in steps that the smallest float32 keep
    expected = _ops.matrix_entropy(gram.float(), alpha)
    scaled = _ops.matrix_entropy((gram * 2.0**exponent).float(), alpha)
    tolerance = testing.tolerance_bits(torch.float32, 33, alpha)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=tolerance)
    exact = _ops.matrix_entropy(gram * 2.0 ** (7 * exponent), alpha)
    torch.testing.assert_close(exact, _ops.matrix_entropy(gram, alpha), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", (0.9, 1.01, 2, 3))
def test_near_ones_keep_the_digits_of_the_small_rest(dtype, alpha):
    # (1 - t) 11' + t I: one eigenvalue 1 - t + t/N, the others t / N.
    size, eps = 128, torch.finfo(dtype).eps
    for t in (4096 * eps, 64 * eps, eps):
        gram = torch.full((size, size), 1 - t, dtype=dtype).fill_diagonal_(1)
        share = t / size
        if alpha == 2:
            bits = -math.log2((1 - t + share) ** 2 + (size - 1) * share**2)
        else:
            bits = math.log2((1 - t + share) ** alpha + (size - 1) * share**alpha) / (1 - alpha)
        assert_entropies(gram[None], alpha, bits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", (1.01, 1.5, 2))
def test_memory_layout_does_not_change_the_answer(rng, alpha, dtype):
    gram = wishart(rng, 9, 13).to(dtype)
    expected = _ops.matrix_entropy(gram, alpha)
    layouts = {layout: testing.lay_out(gram, layout) for layout in testing.LAYOUTS if layout != "expanded"}
    for name, view in layouts.items():
        assert torch.equal(_ops.matrix_entropy(view, alpha), expected), name
    assert torch.equal(_ops.matrix_entropy(gram.mT, alpha), expected)
    assert torch.equal(_ops.matrix_entropy(gram[:1].expand(9, 13, 13), alpha), expected[:1].expand(9))
    assert torch.equal(
        _ops.matrix_entropy(gram.flip(0)[:, :5, :5], alpha).flip(0), _ops.matrix_entropy(gram[:, :5, :5], alpha)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", (1.01, 1.5, 2, 3))
def test_only_the_lower_triangle_is_read_and_nothing_is_changed(rng, alpha, dtype):
    gram = wishart(rng, 9, 13).to(dtype)
    expected = _ops.matrix_entropy(gram, alpha)
    lower = gram + torch.full((13, 13), math.nan, dtype=dtype).triu(1)
    copy = lower.clone()
    assert torch.equal(_ops.matrix_entropy(lower, alpha), expected)
    assert torch.equal(lower.tril(), copy.tril()) and lower._version == copy._version


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", (1, 1.01, 1.5, 2, 3))
def test_a_matrix_that_is_not_finite_or_has_no_trace_spoils_itself_alone(rng, alpha, dtype):
    gram = wishart(rng, 10, 13).to(dtype)
    expected = _ops.matrix_entropy(gram, alpha)
    gram[1, 4, 2] = math.nan
    gram[2, 12, 12] = math.inf
    gram[3, 3, 0] = -math.inf
    gram[4] = 0
    gram[6] *= -1
    bad = [1, 2, 3, 4, 6]
    entropy = _ops.matrix_entropy(gram, alpha)
    assert entropy[bad].isnan().all()
    good = [b for b in range(10) if b not in bad]
    assert torch.equal(entropy[good], expected[good])


@pytest.mark.parametrize("alpha", (0.9, 1, 1.01, 1.5, 2.5))
def test_negative_eigenvalues_count_as_zero(alpha):
    gram = torch.eye(33) - 1.5 / 33  # the eigenvalues 1 (32 times) and -1/2, so not a kernel
    assert_entropies(gram.expand(3, 33, 33), alpha)


def test_opcheck(rng):
    for dtype in DTYPES:
        for count in (0, 3):
            arguments = (wishart(rng, count, 13).to(dtype), 1.01)
            torch.library.opcheck(torch.ops.hrel_ext.matrix_entropy.default, arguments)


@pytest.mark.parametrize(
    ("gram", "got"),
    (
        (torch.eye(3), "(3, 3) of torch.float32"),
        (torch.ones(2, 3, 4), "(2, 3, 4) of torch.float32"),
        (torch.ones(2, 0, 0), "(2, 0, 0) of torch.float32"),
        (torch.ones(2, 3, 3).half(), "(2, 3, 3) of torch.float16"),
    ),
)
def test_operand_is_checked(gram, got):
    message = f"gram must be (B, N, N) with N >= 1 of float32 or float64, got {got}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _ops.matrix_entropy(gram, 1.01)
    with pytest.raises(ValueError, match="alpha must be > 0"):
        _ops.matrix_entropy(torch.eye(3)[None], 0.0)
